//! An ordinary user whom `/etc/subuid` gives ids: the slots' users, images, what a killed host
//! leaves, and what is said where there are no such ids.
//!
//! As root the tests run the program as a user of the system, with files of their own in the place
//! of `/etc/subuid` and `/etc/subgid`, which no other process sees. As another user they need a
//! line for that one.

use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Instant;

use super::images::archive_of;
use super::*;

/// Whom the program runs as where the tests are root's: a user that every Debian has and nothing
/// uses.
const USER: &str = "games";
/// The ids that this user is given: far from those of others.
const FIRST: u32 = 1_100_000_000;

/// An ordinary user, with a directory that is this user's alone.
struct Ordinary {
    dir: TempDir,
    is_root: bool,
}

/// Writes a file that all users may read, whatever the umask is.
fn write_for_all(path: &Path, text: impl AsRef<[u8]>) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
}

impl Ordinary {
    /// One with ids; `None`, and a word about it, where there can be none.
    #[expect(clippy::print_stderr, reason = "who runs the tests is told what is not tried")]
    fn with_ids() -> Option<Self> {
        let line = format!("{USER}:{FIRST}:65536\n");
        let user = Self::given(&line)?;
        let tried = Run::of(user.program(&["unshare", "true"]).output().unwrap());
        if !user.is_root && tried.code == Some(5) {
            eprintln!("not tried, since this user has no ids: {}", tried.stderr);
            return None;
        }
        assert_eq!(tried.code, Some(0), "{tried:?}");
        Some(user)
    }

    /// One of whom both files say this.
    #[expect(clippy::print_stderr, reason = "who runs the tests is told what is not tried")]
    fn given(line: &str) -> Option<Self> {
        let is_there = |name| Path::new("/usr/bin").join(name).exists();
        if !["newuidmap", "newgidmap", "unshare", "setpriv"].into_iter().all(is_there) {
            eprintln!("not tried: this needs the packages uidmap and util-linux");
            return None;
        }
        let user = Self { dir: directory(), is_root: rustix::process::geteuid().is_root() };
        fs::create_dir(user.path("own")).unwrap();
        fs::set_permissions(user.path("own"), fs::Permissions::from_mode(0o700)).unwrap();
        if user.is_root {
            for (name, file) in [("subuid", "/etc/subuid"), ("subgid", "/etc/subgid")] {
                write_for_all(&user.path(name), line);
                // There must be something that the mount is over.
                File::options().append(true).create(true).open(file).unwrap();
            }
            // The program may be where only root gets.
            let built = env!("CARGO_BIN_EXE_tool-executor");
            if fs::hard_link(built, user.path("program")).is_err() {
                fs::copy(built, user.path("program")).unwrap();
            }
            let chown = Command::new("chown").arg(USER).arg(user.path("own")).status().unwrap();
            assert!(chown.success());
        }
        Some(user)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The program as this user. It is this very process, so that it can be killed.
    fn program(&self, args: &[&str]) -> Command {
        let mut command = program();
        if self.is_root {
            let script = "mount --bind \"$0/subuid\" /etc/subuid && \
                          mount --bind \"$0/subgid\" /etc/subgid && user=$1 && shift && \
                          exec setpriv --reuid \"$user\" --regid \"$user\" --clear-groups \
                          \"$0/program\" \"$@\"";
            command = started(Command::new("unshare"), &[]);
            command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
            command.arg(self.dir.path()).arg(USER);
        }
        command.args(args).env("TMPDIR", self.path("own")).current_dir(self.dir.path());
        command
    }

    fn replay(&self, lines: &[String], args: &[&str]) -> (Run, Vec<Value>) {
        let input = self.path("in.jsonl");
        write_for_all(&input, lines.iter().map(|line| format!("{line}\n")).collect::<String>());
        let out = self.path("own/out.jsonl");
        let _ = fs::remove_file(&out);
        let own = ["replay", input.to_str().unwrap(), "--out", out.to_str().unwrap(), "--quiet"];
        let run = Run::of(self.program(&[&own, args].concat()).output().unwrap());
        let results = if out.exists() { results_in(&out) } else { Vec::new() };
        (run, results)
    }

    /// The directories of engines beneath the default base.
    fn runs(&self) -> Vec<PathBuf> {
        let bases = fs::read_dir(self.path("own")).unwrap().flatten();
        let entries = bases.flat_map(|base| fs::read_dir(base.path()).into_iter().flatten());
        let paths = entries.flatten().map(|entry| entry.path());
        paths.filter(|path| path.to_string_lossy().contains("/run-")).collect()
    }

    /// An archive with an image of busybox, whose commands are root.
    fn image(&self) -> String {
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
        let busybox = busybox.into_iter().find(|path| path.exists()).expect("busybox-static");
        let bytes = fs::read(busybox).unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |name: &str, kind, (mode, uid, gid), bytes: &[u8]| {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_uid(uid);
            header.set_gid(gid);
            header.set_size(bytes.len() as u64);
            match kind {
                tar::EntryType::Symlink => tar.append_link(&mut header, name, "busybox").unwrap(),
                _ => tar.append_data(&mut header, name, bytes).unwrap(),
            }
        };
        let (dir, file, link) =
            (tar::EntryType::Directory, tar::EntryType::Regular, tar::EntryType::Symlink);
        add("bin/", dir, (0o755, 0, 0), b"");
        add("bin/busybox", file, (0o755, 0, 0), &bytes);
        for name in ["sh", "id", "cat", "chown", "stat", "su", "sleep", "touch", "mkdir", "true"] {
            add(&format!("bin/{name}"), link, (0o777, 0, 0), b"");
        }
        add(
            "etc/passwd",
            file,
            (0o644, 0, 0),
            b"root:x:0:0::/root:/bin/sh\nme:x:33:44::/:/bin/sh\n",
        );
        add("etc/group", file, (0o644, 0, 0), b"root:x:0:\nme:x:44:\n");
        add("of-me", file, (0o640, 33, 44), b"mine");
        // A slot's id, and one that no range has.
        add("of-a-slot", file, (0o644, 61_190, 61_190), b"");
        add("of-none", file, (0o644, 65_535, 70_000), b"");
        let archive = archive_of("task:1", &[tar.into_inner().unwrap()], "");
        write_for_all(&self.path("image.tar"), archive);
        format!("docker-archive:{}", self.path("image.tar").display())
    }
}

/// What the outputs of all calls are.
fn outputs(results: &[Value]) -> Vec<&str> {
    results.iter().map(|result| result["output"].as_str().unwrap()).collect()
}

/// The first number of the second column of a `/proc/self/uid_map`.
fn outside(map: &str) -> u32 {
    map.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn in_an_image_all_its_users_are_there_and_files_are_theirs() {
    let Some(user) = Ordinary::with_ids() else { return };
    let image = user.image();
    let commands = [
        "id -u; stat -c %u:%g /of-me /of-a-slot /of-none",
        "touch /f && chown 33:44 /f && stat -c %u:%g /f",
        // As another user: what is root's cannot be changed, what is its own can be read.
        "su me -c 'id -u; id -g; cat /of-me; touch /g' 2>&1; su me -c 'touch /f && echo changed'",
        "cat /proc/self/uid_map",
        // What is another slot's, or the user's own, cannot be had.
        "for id in 61190 65535; do chown $id /f || echo no; done 2>/dev/null; \
         echo 0 0 1 > /proc/self/uid_map || echo no",
    ];
    let (run, results) = user.replay(&[trajectory("t", &commands)], &["--image", &image]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let found = outputs(&results);
    assert_eq!(found[0], "0\n33:44\n65534:65534\n65534:65534", "{results:?}");
    assert_eq!(found[1], "33:44");
    assert!(found[2].starts_with("33\n44\nmine") && found[2].contains("denied"), "{}", found[2]);
    assert!(found[2].ends_with("changed"), "{}", found[2]);
    // Of the ids that the user was given, without those of slots.
    let lines: Vec<Vec<_>> =
        found[3].lines().map(|line| line.split_ascii_whitespace().collect()).collect();
    assert_eq!(lines, [["0", "1", "61184"], ["65520", "65521", "15"]], "{}", found[3]);
    assert!(found[4].starts_with("no\nno\nno"), "{}", found[4]);
    assert_eq!(user.runs(), Vec::<PathBuf>::new());
    // Nothing on the way to the slots, or to an image, is open to others.
    let base = fs::read_dir(user.path("own"))
        .unwrap()
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with("tool-executor-"));
    let mode = base.unwrap().metadata().unwrap().mode();
    assert_eq!(mode & 0o777, 0o700, "{mode:o}");
}

#[test]
fn on_the_hosts_files_slots_have_ids_apart_and_a_fork_has_those_of_its_files() {
    let Some(user) = Ordinary::with_ids() else { return };
    let map = "cat /proc/self/uid_map; id -u; echo text > f; cat f";
    let lines = [trajectory("a", &[map]), trajectory("b", &[map])];
    // They run at the same time, so each has a slot of its own.
    let (run, results) = user.replay(&lines, &["--slots", "2", "--concurrency", "2"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let found = outputs(&results);
    assert!(found.iter().all(|output| output.ends_with("\n65534\ntext")), "{found:?}");
    let ids: Vec<_> = found.iter().map(|output| outside(output)).collect();
    // The user is 0 there.
    assert!(ids.iter().all(|id| (61_185..65_521).contains(id)), "{ids:?}");

    let line = json!({
        "trajectory_id": "fork",
        "setup": [bash("mkdir -m 700 d && echo one > d/f")],
        "calls": [bash("cat /proc/self/uid_map; echo two >> d/f; mv d e; cat e/f; stat -c %u e/f")],
    });
    let args = ["--slots", "3", "--repeat", "3", "--share-setup"];
    let (run, results) = user.replay(&[line.to_string()], &args);
    assert_eq!(run.code, Some(0), "{run:?}");
    let forks: Vec<_> = results.iter().filter(|result| result["setup"] != true).collect();
    assert_eq!(forks.len(), 3, "{results:?}");
    let maps = forks.iter().map(|result| {
        let output = result["output"].as_str().unwrap();
        assert!(output.ends_with("\none\ntwo\n65534"), "{result:?}");
        outside(output)
    });
    let maps: Vec<_> = maps.collect();
    assert_eq!(maps, [maps[0]; 3], "whichever slot it is in");
}

#[test]
fn what_a_killed_host_leaves_is_removed_by_the_next_start_or_by_hand() {
    let Some(user) = Ordinary::with_ids() else { return };
    let image = user.image();
    let sleeps = trajectory("t", &["mkdir -p /d && touch /d/f && chown 33 /d/f /d && sleep 600"]);
    let of_user = |path: &Path| {
        let found =
            Command::new("find").arg(path).args(["-path", "*/upper/d/f", "-print"]).output();
        String::from_utf8(found.unwrap().stdout).unwrap()
    };
    for by_hand in [false, true] {
        write_for_all(&user.path("in.jsonl"), format!("{sleeps}\n"));
        let args = ["replay", "in.jsonl", "--image", &image, "--quiet", "--slots", "1"];
        let mut child = user.program(&args).stdout(Stdio::null()).spawn().unwrap();
        // An ordinary user cannot look into it.
        let is_there = || match user.is_root {
            true => user.runs().iter().any(|run| !of_user(run).is_empty()),
            false => {
                let own = user.path("own");
                let find = ["unshare", "find", own.to_str().unwrap(), "-path", "*/upper/d/f"];
                let found = user.program(&find).output().unwrap();
                !found.stdout.is_empty()
            }
        };
        wait_until(&mut child, is_there);
        signal(&child, Signal::KILL);
        child.wait().unwrap();
        let left = user.runs();
        assert_eq!(left.len(), 1, "{left:?}");
        // Who has just one id cannot remove it, and says what can.
        let (run, _) =
            user.replay(&[trajectory("t", &["true"])], &["--user-ids", "shared", "--slots", "1"]);
        assert_eq!(run.code, Some(0), "{run:?}");
        let command = format!("tool-executor unshare rm -r {}", left[0].display());
        assert!(run.stderr.contains(&command), "{run:?}");
        assert_eq!(user.runs(), left);
        if by_hand {
            let removed =
                user.program(&["unshare", "rm", "-r", left[0].to_str().unwrap()]).status();
            assert!(removed.unwrap().success());
        } else {
            let (run, _) = user.replay(&[trajectory("t", &["true"])], &["--slots", "1"]);
            assert_eq!(run.code, Some(0), "{run:?}");
        }
        assert_eq!(user.runs(), Vec::<PathBuf>::new());
    }
}

/// What `/health` says of a sandbox server of this user.
fn health(user: &Ordinary, path: Option<&str>) -> Value {
    let mut command = user.program(&["sandbox", "--port", "0", "--slots", "1"]);
    if let Some(path) = path {
        command.env("PATH", path);
    }
    let mut server = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let url = line.split("http://").nth(1).and_then(|rest| rest.split([' ', '/']).next());
    let answer = url.map(|address| {
        let mut stream = TcpStream::connect(address).unwrap();
        let request =
            format!("GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split("\r\n\r\n").nth(1).unwrap().to_owned()
    });
    signal(&server, Signal::TERM);
    let begun = Instant::now();
    wait_until_ended(&mut server);
    assert!(begun.elapsed() < DEADLINE);
    serde_json::from_str(&answer.unwrap_or_else(|| panic!("{line}"))).unwrap()
}

#[test]
fn health_says_how_many_ids_slots_have_and_what_would_give_them_more() {
    if let Some(user) = Ordinary::with_ids() {
        let health = health(&user, None);
        assert_eq!(health["image_ids"], "shared_range", "{health}");
        assert_eq!(health["isolation_level"], "full", "{health}");
    }
    // Whose files these are can be said as root only.
    let Some(user) = Ordinary::given("other:100000:65536\n").filter(|user| user.is_root) else {
        return;
    };
    let says = |health: &Value, words: &str| {
        assert_eq!(health["image_ids"], "one", "{health}");
        assert_eq!(health["isolation_level"], "one_user", "{health}");
        let because = health["weakened_because"].to_string();
        assert!(because.contains(words), "{because}");
    };
    let line = format!(
        "/etc/subuid gives {USER} no user ids; add the line {USER}:196608:65536 to /etc/subuid and \
         to /etc/subgid"
    );
    says(&health(&user, None), &line);
    let refused = Run::of(user.program(&["unshare", "true"]).output().unwrap());
    assert_eq!(refused.code, Some(5));
    assert!(refused.stderr.contains(&line), "{refused:?}");

    let Some(user) = Ordinary::given(&format!("{USER}:{FIRST}:65536\n")) else { return };
    let broken = user.path("broken");
    fs::create_dir(&broken).unwrap();
    let script = broken.join("newuidmap");
    fs::write(&script, "#!/bin/sh\necho it is broken >&2\nexit 1\n").unwrap();
    for path in [&broken, &script] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", broken.display(), std::env::var("PATH").unwrap());
    says(
        &health(&user, Some(&path)),
        "newuidmap says: it is broken; newuidmap must be set-user-ID",
    );
    // Ids of another are not used, whatever the file says.
    let both = format!("{USER}:{FIRST}:65536\nother:{}:9\n", FIRST + 65_530);
    for name in ["subuid", "subgid"] {
        write_for_all(&user.path(name), &both);
    }
    says(&health(&user, None), "others have some");
}

#[test]
fn a_program_of_the_users_own_is_root_of_these_ids_and_the_user_outside() {
    let Some(user) = Ordinary::with_ids() else { return };
    let script = "id -u; pwd; cat /proc/self/uid_map; touch own/mine own/others && \
                  chown 7:8 own/others && stat -c %u:%g own/others; exit 9";
    let run = Run::of(user.program(&["unshare", "sh", "-c", script]).output().unwrap());
    assert_eq!(run.code, Some(9), "{run:?}");
    let here = user.dir.path().canonicalize().unwrap();
    assert!(run.stdout.starts_with(&format!("0\n{}\n", here.display())), "{run:?}");
    assert!(run.stdout.ends_with("\n7:8\n"), "{run:?}");
    let owner = |name| fs::metadata(user.path("own").join(name)).unwrap().uid();
    assert_eq!(owner("mine"), fs::metadata(user.path("own")).unwrap().uid());
    if user.is_root {
        assert_eq!(owner("others"), FIRST + 6, "1 is the first id that was given");
    }
    let absent = Run::of(user.program(&["unshare", "/there/is/none"]).output().unwrap());
    assert_eq!(absent.code, Some(5));
    assert!(absent.stderr.contains("/there/is/none"), "{absent:?}");
}
