//! Real shells, in a sandbox and without one.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};

use super::shell::Session;
use super::*;
use crate::sandbox::etc::EtcCopy;
use crate::sandbox::isolation::Budget;
use crate::sandbox::limits::Filter;
use crate::sandbox::supervisor::End;
use crate::sandbox::workspace::{DataDir, Workspace};

mod late;
mod named;
mod oracle;
mod outputs;
mod sessions;

/// Long enough for anything that is expected to happen at all.
const LONG: Duration = Duration::from_secs(60);

/// Terminals with the files of some slots.
struct Bench {
    terminals: Terminals,
    workspaces: Vec<Arc<Workspace>>,
    // Dropped in this order.
    _data: DataDir,
    base: PathBuf,
    spool: Spool,
    _outer: tempfile::TempDir,
    /// Lives as long as the sandboxes that show it.
    _etc: tempfile::TempDir,
}

impl Bench {
    fn new(sandboxed: bool, slots: usize) -> Self {
        let outer = tempfile::tempdir().unwrap();
        let base = outer.path().to_owned();
        Self::with(sandboxed, slots, base, outer, [50_000, 16 << 20])
    }

    /// Of each output this many characters are shown, and of each call so many bytes kept.
    fn keeping(sandboxed: bool, limits: [usize; 2]) -> Self {
        let outer = tempfile::tempdir().unwrap();
        let base = outer.path().to_owned();
        Self::with(sandboxed, 2, base, outer, limits)
    }

    fn with(
        sandboxed: bool,
        slots: usize,
        base: PathBuf,
        outer: tempfile::TempDir,
        limits: [usize; 2],
    ) -> Self {
        Self::with_sessions(sandboxed, slots, base, outer, limits, usize::MAX)
    }

    fn with_sessions(
        sandboxed: bool,
        slots: usize,
        base: PathBuf,
        outer: tempfile::TempDir,
        [output_limit_chars, output_file_bytes]: [usize; 2],
        more_sessions: usize,
    ) -> Self {
        let user = CommandUser::detect();
        std::fs::set_permissions(&base, PermissionsExt::from_mode(0o711)).unwrap();
        let data = DataDir::create(Some(&base), slots, user).unwrap();
        let etc = tempfile::tempdir().unwrap();
        let copy = EtcCopy::make(etc.path(), data.identity()).unwrap();
        let isolation = if sandboxed {
            let isolation = Isolation::probe(&data.workspaces()[0]);
            assert!(isolation.is_sandboxed(), "{isolation:?}");
            let isolation = isolation.with_etc(copy);
            isolation.with_filter(Filter::all(), &data.workspaces()[0], &Budget::default()).unwrap()
        } else {
            Isolation::none("a test")
        };
        let spool = Spool::start().unwrap();
        let limits = Arc::new(Limits::none());
        let supervisor =
            Supervisor::start(isolation.clone(), user, limits.clone(), spool.clone()).unwrap();
        let terminals = Terminals::start(Setup {
            isolation,
            user,
            limits,
            more_sessions,
            supervisor: Arc::new(supervisor),
            output_limit_chars,
            output_file_bytes: output_file_bytes as u64,
            spool: spool.clone(),
            tmux: None,
        })
        .unwrap();
        let workspaces = data.workspaces().to_vec();
        Self { terminals, workspaces, _data: data, base, spool, _outer: outer, _etc: etc }
    }

    fn sandboxed() -> Self {
        Self::new(true, 1)
    }

    fn run_session(&self, slot: usize, session: &str, command: &str) -> ShellEnded {
        let place = Place { session: session.into(), ..self.place(slot, true) };
        let (_, receiver) = self.start_at(place, LONG, command);
        receiver.recv_timeout(LONG).expect("an answer")
    }

    fn place(&self, slot: usize, network: bool) -> Place {
        let session = DEFAULT_SESSION.into();
        Place { slot, workspace: self.workspaces[slot].clone(), network, session }
    }

    fn start_at(
        &self,
        place: Place,
        timeout: Duration,
        command: &str,
    ) -> (TerminalCall, Receiver<ShellEnded>) {
        let (sender, receiver) = channel();
        let on_end = Box::new(move |ended| sender.send(ended).unwrap());
        let command = ShellCommand { text: command.to_owned(), ..ShellCommand::default() };
        (self.terminals.bash(place, command, timeout, on_end), receiver)
    }

    fn start(&self, command: &str) -> (TerminalCall, Receiver<ShellEnded>) {
        self.start_at(self.place(0, true), LONG, command)
    }

    fn run_in(&self, slot: usize, command: &str) -> ShellEnded {
        let (_, receiver) = self.start_at(self.place(slot, true), LONG, command);
        receiver.recv_timeout(LONG).expect("an answer")
    }

    fn run(&self, command: &str) -> ShellEnded {
        self.run_in(0, command)
    }

    fn run_for(&self, milliseconds: u64, command: &str) -> ShellEnded {
        let timeout = Duration::from_millis(milliseconds);
        let (_, receiver) = self.start_at(self.place(0, true), timeout, command);
        receiver.recv_timeout(LONG).expect("an answer")
    }

    /// What a command that succeeds prints.
    fn output(&self, command: &str) -> String {
        let ended = self.run(command);
        assert_eq!(ended.finished.end, End::Exited(0), "{command}: {ended:?}");
        ended.finished.stdout.text
    }

    /// Ends what the slot has; tells whether the end of everything was seen.
    fn leave(&self, slot: usize) -> bool {
        let (sender, receiver) = channel();
        self.terminals.leave(slot, Box::new(move |all_dead| sender.send(all_dead).unwrap()));
        receiver.recv_timeout(LONG).expect("an end")
    }

    fn end_slot(&self, slot: usize) {
        assert!(self.leave(slot), "something was not seen to end");
    }

    /// Waits until commands have made this file in the workspace.
    fn wait_for_file(&self, name: &str) {
        let path = self.workspaces[0].path().join(name);
        wait_until(|| path.exists());
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
fn in_both_modes(test: impl Fn(&Bench)) {
    test(&Bench::new(false, 1));
    test(&Bench::new(true, 1));
}

fn code(ended: &ShellEnded) -> i32 {
    match ended.finished.end {
        End::Exited(code) => code,
        ref other => panic!("{other:?}"),
    }
}

/// A duration for `sleep`, by which a process is known among all of the machine.
fn marker() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("98762.{}{next:04}", std::process::id())
}

/// The living processes of the machine that have this text in their command lines.
fn pids_with(text: &str) -> Vec<i32> {
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            // A zombie has none.
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let found = String::from_utf8_lossy(&line).replace('\0', " ").contains(text);
            found.then(|| entry.file_name().to_str()?.parse().ok()).flatten()
        })
        .collect()
}

fn processes_with(text: &str) -> usize {
    pids_with(text).len()
}

/// Ends those that a test has let escape.
fn end_processes_with(text: &str) {
    for pid in pids_with(text) {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    wait_until(|| processes_with(text) == 0);
}
