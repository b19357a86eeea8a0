//! Real commands, in a sandbox and without one.

mod ends;
mod hosts;
mod late;
mod machines;
mod rest;
mod walls;

use std::collections::{BTreeSet, HashSet};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

use std::time::Instant;

use super::*;
use crate::sandbox::etc::EtcCopy;
use crate::sandbox::identity::Identity;
use crate::sandbox::workspace::DataDir;

/// Long enough for anything that is expected to happen at all.
const LONG: Duration = Duration::from_secs(60);

/// A supervisor with a slot's files, in one of the two modes.
struct Bench {
    supervisor: Supervisor,
    workspace: Arc<Workspace>,
    /// All have the same files.
    slots: Vec<Arc<Workspace>>,
    /// Those that are in use.
    busy: Arc<Mutex<BTreeSet<usize>>>,
    // Dropped in this order.
    _data: DataDir,
    _base: tempfile::TempDir,
    /// Lives as long as the sandboxes that show it.
    _etc: Option<tempfile::TempDir>,
}

/// The files of some slots, for the user that commands run as.
fn slot_files() -> (DataDir, tempfile::TempDir) {
    let base = tempfile::tempdir().unwrap();
    std::fs::set_permissions(base.path(), PermissionsExt::from_mode(0o711)).unwrap();
    let data = DataDir::create(Some(base.path()), 1, CommandUser::detect()).unwrap();
    (data, base)
}

fn probe() -> Isolation {
    let (data, _base) = slot_files();
    Isolation::probe(&data.workspaces()[0])
}

impl Bench {
    fn new(isolation: Isolation) -> Self {
        let supervisor = Supervisor::start(
            isolation,
            CommandUser::detect(),
            Arc::new(Limits::none()),
            Spool::start().unwrap(),
        )
        .unwrap();
        let (data, base) = slot_files();
        let workspace = data.workspaces()[0].clone();
        let slots = (0..200).map(|slot| Arc::new(workspace.in_slot(slot))).collect();
        Self {
            supervisor,
            workspace,
            slots,
            busy: Arc::default(),
            _data: data,
            _base: base,
            _etc: None,
        }
    }

    fn bare() -> Self {
        Self::new(Isolation::none("a test"))
    }

    fn sandboxed() -> Self {
        let etc = tempfile::tempdir().unwrap();
        let copy = EtcCopy::make(etc.path(), &Identity::detect(CommandUser::detect())).unwrap();
        let isolation = probe().with_etc(copy).with_warm_slots(false);
        assert!(isolation.is_sandboxed(), "{isolation:?}");
        Self { _etc: Some(etc), ..Self::new(isolation) }
    }

    /// With a sandbox that is kept.
    fn warm() -> Self {
        let etc = tempfile::tempdir().unwrap();
        let copy = EtcCopy::make(etc.path(), &Identity::detect(CommandUser::detect())).unwrap();
        let isolation = probe().with_etc(copy);
        assert!(isolation.is_warm(), "{isolation:?}");
        Self { _etc: Some(etc), ..Self::new(isolation) }
    }

    fn spec(&self, command: &str) -> CommandSpec {
        CommandSpec {
            workspace: self.workspace.clone(),
            command: command.to_owned(),
            network: true,
            timeout: LONG,
            output_limit_chars: 50_000,
            output_file_bytes: 0,
            stdin: String::new(),
            output_order: Default::default(),
            verdict: None,
            keeps_background: false,
        }
    }

    fn start(&self, spec: CommandSpec) -> (CommandId, Receiver<Finished>) {
        let (sender, receiver) = channel();
        let busy = self.busy.clone();
        let (slot, spec) = self.in_free_slot(spec);
        let on_end = Box::new(move |finished| {
            busy.lock().remove(&slot);
            sender.send(finished).unwrap();
        });
        (self.supervisor.run(spec, on_end), receiver)
    }

    /// A slot runs one command at a time, as the executor sees to.
    fn in_free_slot(&self, mut spec: CommandSpec) -> (usize, CommandSpec) {
        let mut busy = self.busy.lock();
        let slot = (0..self.slots.len()).find(|slot| !busy.contains(slot)).unwrap();
        busy.insert(slot);
        if Arc::ptr_eq(&spec.workspace, &self.workspace) {
            spec.workspace = self.slots[slot].clone();
        }
        (slot, spec)
    }

    /// Ends the sandboxes that are kept, so that nothing of any command is left.
    fn settle(&self) {
        for slot in 0..self.slots.len() {
            let (sender, gone) = channel();
            self.supervisor.leave(slot, Box::new(move |gone| sender.send(gone).unwrap()));
            assert!(gone.recv_timeout(LONG).unwrap());
        }
    }

    fn run_spec(&self, spec: CommandSpec) -> Finished {
        self.start(spec).1.recv_timeout(LONG).expect("an answer")
    }

    fn run(&self, command: &str) -> Finished {
        self.run_spec(self.spec(command))
    }

    /// What a command that succeeds prints.
    fn output(&self, command: &str) -> String {
        let finished = self.run(command);
        assert_eq!(finished.end, End::Exited(0), "{command}: {}", finished.stderr.text);
        finished.stdout.text
    }

    fn run_for(&self, milliseconds: u64, command: &str) -> Finished {
        self.run_spec(CommandSpec {
            timeout: Duration::from_millis(milliseconds),
            ..self.spec(command)
        })
    }

    /// Waits until commands have made this file in the workspace.
    fn wait_for_file(&self, name: &str) {
        self.wait_for_size(name, 0);
    }

    /// Waits until commands have written this much to a file in the workspace.
    fn wait_for_size(&self, name: &str, size: u64) {
        let path = self.workspace.path().join(name);
        wait_until(|| path.metadata().is_ok_and(|metadata| metadata.len() >= size));
    }
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    let give_up = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < give_up, "it never happened");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs a test in both modes.
fn in_all_modes(test: impl Fn(&Bench)) {
    test(&Bench::bare());
    in_sandboxes(test);
}

/// In one for each command, and in one that is kept.
fn in_sandboxes(test: impl Fn(&Bench)) {
    test(&Bench::sandboxed());
    test(&Bench::warm());
}

/// A duration for `sleep`, by which a process is known among all of the machine.
fn marker() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("98761.{}{next:04}", std::process::id())
}

/// The command lines of all living processes that contain this text.
fn processes_with(text: &str) -> Vec<String> {
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let directory = entry.ok()?.path();
            // A zombie has none.
            let line = std::fs::read(directory.join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains(text).then_some(line)
        })
        .collect()
}

fn children_of_this_process() -> HashSet<String> {
    let mut children = HashSet::new();
    for thread in std::fs::read_dir("/proc/self/task").unwrap() {
        let list = std::fs::read_to_string(thread.unwrap().path().join("children"));
        children.extend(list.unwrap_or_default().split_whitespace().map(str::to_owned));
    }
    children
}

#[test]
fn exit_codes_signals_and_both_streams_are_told_apart() {
    in_all_modes(|bench| {
        let finished = bench.run("echo out; echo err >&2; exit 3");
        assert_eq!(finished.end, End::Exited(3));
        assert_eq!(finished.stdout.text, "out\n");
        assert_eq!(finished.stderr.text, "err\n");
        assert_eq!(finished.stdout.bytes, 4);
        assert!(finished.all_dead);
        assert_eq!(finished.sandboxed, bench.supervisor.isolation().is_sandboxed());
        assert_eq!(bench.run("").end, End::Exited(0));
        assert_eq!(bench.run("foo-bar").end, End::Exited(127));
        assert_eq!(bench.run("foo-bar").stderr.text, "bash: line 1: foo-bar: command not found\n");
        assert_eq!(bench.run("-x foo").end, End::Exited(127));
        assert_eq!(bench.run("-x foo").stderr.text, "bash: line 1: -x: command not found\n");
        assert_eq!(bench.run("if").end, End::Exited(2));
        let killed = match finished.sandboxed {
            true => End::Exited(137),
            false => End::Signaled(9),
        };
        assert_eq!(bench.run("kill -9 $$").end, killed);
    });
}

#[test]
fn a_command_has_bash_its_workspace_and_an_empty_input() {
    in_all_modes(|bench| {
        let home = match bench.supervisor.isolation().is_sandboxed() {
            true => Path::new("/workspace"),
            false => bench.workspace.path(),
        };
        assert_eq!(bench.output("[[ a == a ]] && pwd"), format!("{}\n", home.display()));
        assert_eq!(bench.output("cat; read x || echo $0 $# $-"), "bash 0 hBc\n");
        bench.output("echo kept > file");
        let file = bench.workspace.path().join("file");
        assert_eq!(std::fs::read_to_string(file).unwrap(), "kept\n");
    });
}

#[test]
fn the_environment_is_fixed_and_nothing_of_the_hosts() {
    in_all_modes(|bench| {
        let printed = bench.output("env -0 | tr '\\0' '\\n' | cut -d= -f1 | sort | tr '\\n' ' '");
        let expected =
            "HOME LANG LOGNAME PATH PWD PYTHONUNBUFFERED SHELL SHLVL TERM TMPDIR USER _ ";
        assert_eq!(printed, expected);
        let printed = bench
            .output("echo $SHELL $LANG $TERM $PATH; [[ $HOME != $PWD && -w $HOME && -w $TMPDIR ]]");
        assert_eq!(
            printed,
            "/bin/bash C.UTF-8 dumb \
             /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
        );
        assert_eq!(bench.output("echo $USER"), bench.output("id -un"));
    });
}

#[test]
fn a_command_gets_no_file_descriptors_but_the_three() {
    // One that the host forgot to mark close-on-exec.
    let leak = rustix::io::dup(crate::sandbox::isolation::open_null().unwrap()).unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    in_all_modes(|bench| {
        // 3 is the listing's own.
        assert_eq!(bench.output("ls /proc/self/fd | tr '\\n' ' '"), "0 1 2 3 ");
        let long = format!("ls /proc/self/fd | tr '\\n' ' ' #{}", "x".repeat(200_000));
        assert_eq!(bench.output(&long), "0 1 2 3 ");
        assert_eq!(bench.output("ulimit -S -n"), bench.output("sh -c 'ulimit -S -n'"));
    });
}

#[test]
fn raising_the_limit_of_open_files_does_not_reach_commands() {
    in_all_modes(|bench| {
        if let Some(before) = crate::sandbox::descriptors::raise_limit(0) {
            assert_eq!(bench.output("ulimit -S -n"), format!("{before}\n"));
        }
    });
}

#[test]
fn the_wall_time_is_that_of_the_command() {
    in_all_modes(|bench| {
        let finished = bench.run("sleep 0.1");
        assert_eq!(finished.end, End::Exited(0));
        assert!(finished.wall >= Duration::from_millis(100));
        assert_eq!(bench.run("a\0b").wall, Duration::ZERO);
    });
}

#[test]
fn much_output_is_counted_exactly_in_bounded_memory() {
    in_all_modes(|bench| {
        let before = resident_mib();
        let finished = bench.run("head -c 200000000 /dev/zero; echo end >&2");
        assert_eq!(finished.end, End::Exited(0));
        assert_eq!(finished.stdout.bytes, 200_000_000);
        assert_eq!(finished.stderr.bytes, 4);
        assert!(finished.stdout.text.len() < 400_000);
        // Other tests run meanwhile; an engine that keeps the output exceeds this by far.
        assert!(resident_mib() < before + 100);
    });
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024
}

#[test]
fn binary_output_is_no_failure() {
    in_all_modes(|bench| {
        let finished = bench.run("printf 'a\\0b\\377c'");
        assert_eq!(finished.end, End::Exited(0));
        assert_eq!(finished.stdout.text, "a\0b\u{fffd}c");
        assert_eq!(finished.stdout.bytes, 5);
    });
}

#[test]
fn a_command_of_more_than_a_megabyte_runs_like_any_other() {
    in_all_modes(|bench| {
        let padding = "x".repeat(1 << 20);
        let command = format!("a={padding}\necho ${{#a}} $0 $#; cat\nexit 7");
        let finished = bench.run(&command);
        assert_eq!(finished.end, End::Exited(7), "{}", finished.stderr.text);
        assert_eq!(finished.stdout.text, format!("{} bash 0\n", 1 << 20));
        // Around the limit of one argument.
        for length in [127 * 1024 - 1, 127 * 1024, 128 * 1024 - 1, 128 * 1024] {
            let command = format!("echo ok{}", " ".repeat(length - "echo ok".len()));
            assert_eq!(bench.output(&command), "ok\n");
        }
    });
}

#[test]
fn a_command_that_cannot_start_says_why() {
    in_all_modes(|bench| {
        let end = bench.run("echo a\0b").end;
        assert_eq!(end, End::SetupFailed("embedded null byte".to_owned()));
        let (data, _base) = slot_files();
        let gone = data.workspaces()[0].clone();
        if bench.supervisor.isolation().is_sandboxed() {
            // In the words of the jail's first process.
            std::fs::remove_dir(gone.temporary()).unwrap();
            let workspace = gone.clone();
            bench.settle();
            let finished = bench.run_spec(CommandSpec { workspace, ..bench.spec("echo ran") });
            let End::SetupFailed(text) = finished.end else {
                panic!("{:?}", finished.end);
            };
            assert!(text.contains("No such file or directory"), "{text}");
            assert_eq!(finished.stdout.bytes, 0);
        }
        drop(data);
        bench.settle();
        let finished = bench.run_spec(CommandSpec { workspace: gone, ..bench.spec("echo ran") });
        let text = "the workspace was removed or replaced from outside";
        assert_eq!(finished.end, End::SetupFailed(text.to_owned()));
        assert_eq!(finished.stdout.bytes, 0);
        assert_eq!(bench.output("echo next"), "next\n");
    });
}
