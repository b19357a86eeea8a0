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
        shared_memory: Some(4096),
        terminals: 9,
        proc: Proc::Own,
        inotify: Some([3, 40]),
        devices: vec!["/dev/dri/card0".into()],
        filter: Some(vec![1; 16]),
        directory: "/a/b",
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
    let steps = plan().steps_of_founder().unwrap();
    let devices = ["null", "zero", "full", "random", "urandom", "tty", "dri/card0"];
    let mut expected: Vec<String> = [
        "w0 0 /proc/self/oom_score_adj 1000",
        "w0 0 /proc/self/setgroups deny",
        "w0 0 /proc/self/uid_map 7 70 1",
        "w0 0 /proc/self/gid_map 8 80 1",
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
        Plan { network: Network::Host, filter: None, ..plan() }.steps_of_founder().unwrap();
    assert!(lines(&with_network).iter().all(|line| !line.starts_with('n')));
    assert!(lines(&with_network).last().unwrap().starts_with('k'));
    let shared = Plan { proc: Proc::Shared, host_name: None, ..plan() };
    let joining = lines(&shared.steps_of_joiner());
    assert!(!joining.iter().any(|line| line.contains("/proc ")), "{joining:?}");
    let shared = shared.steps_of_founder().unwrap();
    let shared = lines(&shared);
    assert!(shared.contains(&"s0 15 /proc".to_owned()), "{shared:?}");
    let at = shared.iter().position(|line| line == "d0 493 /proc").unwrap();
    assert!(shared[at + 1].ends_with(" /proc") && shared[at + 1].starts_with("a0 "));
    let of_its_own = |line: &String| {
        ["m0 14 proc", "o0 1 /proc", "h0", "w0 0 /proc/sys"].iter().any(|own| line.starts_with(own))
    };
    assert!(!shared.iter().any(of_its_own), "{shared:?}");
    let many = IdMap { inside: 0, outside: 1000, count: 9 };
    let mapped_outside = Plan { users: many, groups: many, ..plan() }.steps_of_founder().unwrap();
    assert_eq!(lines(&mapped_outside)[0], found[0]);
    assert_eq!(lines(&mapped_outside)[1..], found[4..]);
}

#[test]
fn a_jail_in_a_machine_mounts_its_processes_and_nothing_else() {
    let expected = [
        "m0 14 proc /proc",
        "w0 0 /proc/self/oom_score_adj 1000",
        "o0 1 /proc",
        "c0 0 /a/b",
        "k0 0 ",
    ];
    let steps = plan().steps_of_joiner();
    assert_eq!(lines(&steps[..steps.len() - 1]), expected);
    assert_eq!(steps.last().unwrap().text, [1; 16]);
}

#[test]
fn steps_are_read_as_they_were_written() {
    let steps = plan().steps_of_founder().unwrap();
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
    assert!(Plan { root, ..plan() }.steps_of_founder().is_err());
}
