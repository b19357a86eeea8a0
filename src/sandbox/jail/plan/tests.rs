//! The steps of a plan, one by one.

use super::*;

fn plan() -> Plan {
    let shown = |host: &str, place: &str, access| Entry::Shown {
        host: host.into(),
        place: place.into(),
        access,
    };
    let over = |host: &str, place: &str, is_optional| Entry::Over {
        host: host.into(),
        place: place.into(),
        access: Access::ReadOnly,
        is_optional,
    };
    Plan {
        users: IdMap::single(7, 70),
        groups: IdMap::single(8, 80),
        host_name: Some("sandbox"),
        network: Network::Own,
        root: vec![
            shown("/usr", "/usr", Access::ReadOnly),
            Entry::Link { target: "usr/bin".into(), place: "/bin".into() },
            shown("/data/etc", "/etc", Access::ReadOnly),
            over("/etc/resolv.conf", "/etc/resolv.conf", true),
            shown("/data/w", "/a/b", Access::Writable),
            Entry::Directory { place: "/run".into() },
            Entry::Mounted { kind: "sysfs", place: "/run".into(), options: "" },
            Entry::File { place: "/run/x/socket".into() },
            over("/data/socket", "/run/x/socket", false),
        ],
        barred: None,
        shared_memory: Some(4096),
        terminals: 9,
        proc: Proc::Own,
        inotify: Some([3, 40]),
        devices: vec!["/dev/dri/card0".into()],
        filter: Some(vec![1; 16]),
        directory: "/a/b".into(),
        rights: Rights::default(),
        program: "/bin/sh".into(),
        environment: Vec::new(),
        open_files: None,
    }
}

/// Each step as a line: its kind, flag, number and strings.
fn lines(steps: &[Step]) -> Vec<String> {
    let line = |step: &Step| {
        let text = String::from_utf8_lossy(&step.text).replace('\0', " ");
        format!("{}{} {} {}", char::from(step.kind), step.flag, step.number, text.trim_end())
    };
    steps.iter().map(line).collect()
}

#[test]
fn the_steps_of_a_plan_are_exactly_these() {
    let steps = plan().steps_of_founder(0).unwrap();
    let devices = ["null", "zero", "full", "random", "urandom", "tty", "dri/card0"];
    let mut expected: Vec<String> = [
        "w0 0 /proc/self/oom_score_adj 1000",
        "w0 0 /proc/self/setgroups deny",
        "w0 0 /proc/self/uid_map 7 70 1",
        "w0 0 /proc/self/gid_map 8 80 1",
        "y0 0 ",
        "p0 0 ",
        "s0 7 /usr",
        "s0 7 /data/etc",
        "s1 7 /etc/resolv.conf",
        "s0 6 /data/w",
        "s0 7 /data/socket",
    ]
    .map(str::to_owned)
    .to_vec();
    expected.extend(devices.map(|name| format!("s0 2 /dev/{name}")));
    expected.extend(
        [
            "r0 0 /usr mode=0755,nr_inodes=65536,size=4096",
            "d0 493 /usr",
            "a0 0 /usr",
            "l0 0 usr/bin /bin",
            "d0 493 /etc",
            "a0 1 /etc",
            "a0 2 /etc/resolv.conf",
            "d0 493 /a",
            "d0 493 /a/b",
            "a0 3 /a/b",
            "d0 493 /run",
            "m0 15 sysfs /run",
            "d0 493 /run/x",
            "f0 420 /run/x/socket",
            "a0 4 /run/x/socket",
            "d0 493 /proc",
            "m0 14 proc /proc",
            "w0 0 /proc/sys/user/max_user_namespaces 0",
            "w0 0 /proc/sys/user/max_inotify_instances 3",
            "w0 0 /proc/sys/user/max_inotify_watches 40",
            "o0 1 /proc",
            "d0 493 /dev",
            "m0 2 tmpfs /dev mode=0755",
        ]
        .map(str::to_owned),
    );
    for (number, name) in (5..).zip(devices) {
        if name.contains('/') {
            expected.push("d0 493 /dev/dri".to_owned());
        }
        expected.push(format!("f0 420 /dev/{name}"));
        expected.push(format!("a0 {number} /dev/{name}"));
    }
    expected.extend(
        [
            "l0 0 /proc/self/fd /dev/fd",
            "l0 0 /proc/self/fd/0 /dev/stdin",
            "l0 0 /proc/self/fd/1 /dev/stdout",
            "l0 0 /proc/self/fd/2 /dev/stderr",
            "l0 0 /proc/kcore /dev/core",
            "l0 0 pts/ptmx /dev/ptmx",
            "d0 493 /dev/pts",
            "m0 10 devpts /dev/pts newinstance,ptmxmode=0666,mode=620,max=9",
            "d0 493 /dev/shm",
            "m0 6 tmpfs /dev/shm mode=0755,nr_inodes=65536,size=4096",
            "d0 493 /dev/mqueue",
            "m0 14 mqueue /dev/mqueue",
            "o0 1 /dev",
            "x0 0 ",
            "h0 0 sandbox",
            "n0 0 ",
            "c0 0 /a/b",
            "k0 0 ",
        ]
        .map(str::to_owned),
    );
    let found = lines(&steps);
    assert_eq!(found[..found.len() - 1], expected);
    assert_eq!(steps.last().unwrap().text, [1; 16]);
    // What is said of a failure names no path of the host.
    assert!(steps.iter().all(|step| !step.what.contains("/data")), "{steps:?}");
    let with_network =
        Plan { network: Network::Host, filter: None, ..plan() }.steps_of_founder(0).unwrap();
    assert!(lines(&with_network).iter().all(|line| !line.starts_with('n')));
    assert!(lines(&with_network).last().unwrap().starts_with('k'));
    let shared = Plan { proc: Proc::Shared, host_name: None, ..plan() };
    let joining = lines(&shared.steps_of_joiner(false, 0));
    assert!(!joining.iter().any(|line| line.contains("/proc ")), "{joining:?}");
    let shared = shared.steps_of_founder(0).unwrap();
    let shared = lines(&shared);
    assert!(shared.contains(&"s0 15 /proc".to_owned()), "{shared:?}");
    let at = shared.iter().position(|line| line == "d0 493 /proc").unwrap();
    assert!(shared[at + 1].ends_with(" /proc") && shared[at + 1].starts_with("a0 "));
    let of_its_own = |line: &String| {
        ["m0 14 proc", "o0 1 /proc", "h0", "w0 0 /proc/sys"].iter().any(|own| line.starts_with(own))
    };
    assert!(!shared.iter().any(of_its_own), "{shared:?}");
    let many = IdMap { count: 9, ..IdMap::whole(1000) };
    let mapped_outside = Plan { users: many, groups: many, ..plan() }.steps_of_founder(0).unwrap();
    assert_eq!(lines(&mapped_outside)[0], found[0]);
    assert_eq!(lines(&mapped_outside)[1..], found[4..]);
}

#[test]
fn a_jail_in_a_machine_mounts_its_processes_and_nothing_else() {
    let expected = [
        "y0 0 ",
        "m0 14 proc /proc",
        "w0 0 /proc/self/oom_score_adj 1000",
        "o0 1 /proc",
        "c0 0 /a/b",
        "k0 0 ",
    ];
    let steps = plan().steps_of_joiner(false, 0);
    assert_eq!(lines(&steps[..steps.len() - 1]), expected);
    assert_eq!(steps.last().unwrap().text, [1; 16]);
}

#[test]
fn cgroups_are_shown_over_one_directory_or_each_in_its_own() {
    let of = |shown: &[(&str, &str)]| {
        let shown = shown.iter().map(|(host, place)| (host.into(), place.into())).collect();
        let root = vec![Entry::Groups { place: "/c".into(), shown }];
        let found = lines(&Plan { root, ..plan() }.steps_of_founder(0).unwrap());
        let from = found.iter().position(|line| line.starts_with('r')).unwrap();
        let until = found.iter().position(|line| line.ends_with(" /proc")).unwrap();
        (
            found.iter().filter(|line| line.starts_with("s1 7")).cloned().collect::<Vec<_>>(),
            found[from + 1..until].to_vec(),
        )
    };
    assert_eq!(of(&[("/h", "/c")]), (vec!["s1 7 /h".to_owned()], vec!["a0 0 /c".to_owned()]));
    let (sources, made) = of(&[("/h/m", "/c/memory"), ("/h/p", "/c/pids")]);
    assert_eq!(sources, ["s1 7 /h/m", "s1 7 /h/p"]);
    let expected = [
        "m0 14 tmpfs /c mode=0755,size=4096",
        "d0 493 /c/memory",
        "a0 0 /c/memory",
        "d0 493 /c/pids",
        "a0 1 /c/pids",
        "o0 1 /c",
    ];
    assert_eq!(made, expected);
}

#[test]
fn what_the_first_process_cannot_get_to_is_handed_over_in_the_order_of_its_use() {
    let plan = plan();
    let root = [plan.root.clone(), vec![overlay("/work", Hold::HandedOver(None))]].concat();
    let plan = Plan { root, barred: Some("/data".into()), ..plan };
    let given: Vec<_> =
        plan.handed_over().map(|(path, _, own)| (path.to_str().unwrap(), own)).collect();
    let expected = [("/data/etc", false), ("/data/w", true), ("/data/socket", false)];
    assert_eq!(given[..3], expected);
    let layers = ["/data/l0", "/data/l1", "/data/l2"].map(|layer| (layer, false));
    assert_eq!(given[3..], [&layers[..], &[("/data/own", true)]].concat());
    let found = lines(&plan.steps_of_founder(0).unwrap());
    assert!(!found.iter().any(|line| line.starts_with("s0") && line.ends_with("/data/w")));
    // Seven are handed over; what it takes hold of itself is numbered after them.
    for line in [
        "a0 0 /etc",
        "a0 1 /a/b",
        "a0 2 /run/x/socket",
        "a0 3 /.stage/0",
        "a0 4 /.stage/1",
        "a0 6 /.stage/3",
        "a0 7 /usr",
        "a0 8 /etc/resolv.conf",
        "a0 9 /dev/null",
    ] {
        assert!(found.contains(&line.to_owned()), "{line}: {found:?}");
    }
}

fn tree(host: &str, hold: Hold) -> Tree {
    Tree { host: host.into(), hold }
}

fn overlay(place: &str, own: Hold) -> Entry {
    let map = IdMap { count: 100, ..IdMap::whole(9000) };
    Entry::Layered(Overlay {
        place: place.into(),
        lower: vec![
            tree("/data/l0", Hold::HandedOver(Some(map))),
            tree("/data/l1", Hold::ByPath),
            tree("/data/l2", Hold::HandedOver(None)),
        ],
        writable: tree("/data/own", own),
        work: "work-3".to_owned(),
    })
}

#[test]
fn an_overlay_is_mounted_over_its_layers_which_are_not_seen_then() {
    let root = vec![overlay("/work", Hold::ByPath), overlay("/tmp", Hold::HandedOver(None))];
    let plan = Plan { root, ..plan() };
    let given: Vec<_> = plan.handed_over().map(|(path, _, own)| (path, own)).collect();
    let expected = [("/data/l0", false), ("/data/l2", false)];
    let own = ("/data/own", true);
    let expected = [expected[0], expected[1], expected[0], expected[1], own];
    assert!(given.into_iter().map(|(path, own)| (path.to_str().unwrap(), own)).eq(expected));
    let found = lines(&plan.steps_of_founder(0).unwrap());
    // Numbered after the five that are handed over.
    for line in ["s0 7 /data/l1", "s0 6 /data/own", "a0 5 /.stage/1", "a0 6 /.stage/3"] {
        assert!(found.contains(&line.to_owned()), "{line}: {found:?}");
    }
    let first = found.iter().position(|line| line == "d0 448 /.stage").unwrap();
    let expected = [
        "d0 448 /.stage",
        "m0 6 tmpfs /.stage mode=0700",
        "d0 448 /.stage/0",
        "a0 0 /.stage/0",
        "d0 448 /.stage/1",
        "a0 5 /.stage/1",
        "d0 448 /.stage/2",
        "a0 1 /.stage/2",
        "d0 448 /.stage/3",
        "a0 6 /.stage/3",
        "d0 448 /.stage/3/work-3",
        "d0 493 /work",
        "m0 6 overlay /work lowerdir=/.stage/2:/.stage/1:/.stage/0,upperdir=/.stage/3/upper,\
         workdir=/.stage/3/work-3,userxattr,volatile",
        "u0 0 /.stage",
    ];
    assert_eq!(found[first..first + expected.len()], expected);
    let second = &found[first + expected.len()..];
    let attached: Vec<_> = second.iter().filter(|line| line.contains(" /.stage/")).collect();
    assert!(attached.contains(&&"a0 2 /.stage/0".to_owned()), "{attached:?}");
    assert!(attached.contains(&&"a0 7 /.stage/1".to_owned()), "{attached:?}");
    assert!(attached.contains(&&"a0 4 /.stage/3".to_owned()), "{attached:?}");
    assert!(!found.iter().any(|line| line.starts_with('g')), "{found:?}");
    let steps = plan.steps_of_founder(0).unwrap();
    assert!(steps.iter().all(|step| !step.what.contains("/data")), "{steps:?}");
}

#[test]
fn an_overlay_at_the_root_gets_what_else_is_mounted() {
    let mut root = vec![overlay("/", Hold::HandedOver(None))];
    root.extend(plan().root);
    let user = Some(User { uid: 0, gid: 0, groups: Vec::new() });
    let rights = Rights { user, ..Rights::default() };
    let found = lines(&Plan { root, rights, ..plan() }.steps_of_founder(0).unwrap());
    assert!(!found.iter().any(|line| line.starts_with('u')), "{found:?}");
    let at = found.iter().position(|line| line == "x0 0 ").unwrap();
    let expected = [
        "i0 0 ",
        "v0 0 /.root /usr",
        "v0 0 /.root /etc",
        "v0 0 /.root /a/b",
        "v0 0 /.root /run",
        "v2 0 /.root /proc",
        "v2 0 /.root /dev",
        "g0 0 /.root",
    ];
    assert_eq!(found[at + 1..at + 1 + expected.len()], expected);
}

#[test]
fn there_are_no_more_trees_than_can_be_handed_over() {
    let Entry::Layered(mut overlay) = overlay("/", Hold::HandedOver(None)) else { panic!() };
    let steps = |overlay: &Overlay| {
        Plan { root: vec![Entry::Layered(overlay.clone())], ..plan() }.steps_of_founder(0)
    };
    overlay.lower = vec![tree("/data/layer", Hold::HandedOver(None)); MOST_TREES - 1];
    let bytes = encode(&steps(&overlay).unwrap()).unwrap();
    assert!(bytes.len() + message::HEADER < message::LONGEST / 2, "{}", bytes.len());
    overlay.lower.push(tree("/data/layer", Hold::ByPath));
    assert!(steps(&overlay).is_err());
}

#[test]
fn a_jail_with_users_runs_programs_as_one_of_them_and_keeps_what_root_may_do() {
    let user = Some(User { uid: 7, gid: 9, groups: vec![1, 2] });
    let rights = Rights { user, capabilities: 0b101, any_directory: true };
    let plan = Plan { rights, filter: None, ..plan() };
    let founding = plan.steps_of_founder(0).unwrap();
    let [user, enter, drop] = founding.last_chunk().unwrap();
    assert_eq!(lines(&[enter.clone(), drop.clone()]), ["c4 0 /a/b", "k0 5 "]);
    assert_eq!((user.kind, user.number), (step::USER, 9 << 32 | 7));
    assert_eq!(user.text, [1u32.to_ne_bytes(), 2u32.to_ne_bytes()].concat());
    let joining = plan.steps_of_joiner(false, 0);
    assert_eq!(lines(&joining[joining.len() - 2..][..1]), ["c8 0 /a/b"]);
    // Beside a machine it has another network, and nothing else of its own.
    let beside = plan.steps_of_joiner(true, 0);
    assert_eq!(beside.len(), joining.len() + 1);
    assert!(lines(&beside).contains(&"n0 0 ".to_owned()));
}

#[test]
fn steps_are_read_as_they_were_written() {
    let steps = plan().steps_of_founder(0).unwrap();
    let bytes = encode(&steps).unwrap();
    let mut rest = &bytes[..];
    for step in &steps {
        let (head, text, more) = step::Head::split_first(rest).unwrap();
        assert_eq!(
            (head.kind, head.flag, head.number, text),
            (step.kind, step.flag, step.number, &step.text[..])
        );
        rest = more;
    }
    assert!(rest.is_empty());
    for length in [0, 1, step::HEADER - 1, step::HEADER + 3] {
        assert_eq!(step::Head::split_first(&bytes[..length]), None, "{length}");
    }
}

#[test]
fn a_path_with_a_nul_is_refused() {
    let root = vec![Entry::Directory { place: "/a\0b".into() }];
    assert!(Plan { root, ..plan() }.steps_of_founder(0).is_err());
}

#[test]
fn a_jail_joins_the_cgroups_of_its_slot_first_and_its_own_when_it_sees_no_others() {
    let root = vec![overlay("/", Hold::HandedOver(None))];
    let founding = lines(&Plan { root, ..plan() }.steps_of_founder(3).unwrap());
    // Behind the three trees.
    assert_eq!(founding[..2], ["j0 3 ", "j0 4 "]);
    let seen = founding.iter().position(|line| line == "y0 0 ").unwrap();
    assert_eq!(founding[seen + 1], "j1 5 ");
    // What has a path comes behind them.
    assert!(founding.contains(&"a0 6 /.layers/1".to_owned()), "{founding:?}");
    let joining = lines(&plan().steps_of_joiner(false, 2));
    assert_eq!(joining[..3], ["j0 0 ", "y0 0 ", "j1 1 "]);
}

#[test]
fn each_kind_of_step_has_a_letter_of_its_own() {
    let source = include_str!("../../init/message.rs");
    let steps = source.split_once("mod step").unwrap().1;
    let letters = steps.lines().filter_map(|line| line.split_once("u8 = b'").map(|(_, one)| one));
    let mut letters: Vec<_> = letters.collect();
    let count = letters.len();
    letters.sort_unstable();
    letters.dedup();
    assert!(count > 20 && letters.len() == count, "{letters:?}");
}
