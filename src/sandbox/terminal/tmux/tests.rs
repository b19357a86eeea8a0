//! Real terminals: tmux, bash and the programs that people use in them.

mod attacks;
mod programs;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::asciicast::{LIMIT, replay};
use super::*;
use crate::sandbox::etc::EtcCopy;
use crate::sandbox::isolation::{Budget, Isolation};
use crate::sandbox::limits::{Filter, Limits};
use crate::sandbox::shell;
use crate::sandbox::spool::Spool;
use crate::sandbox::supervisor::Supervisor;
use crate::sandbox::terminal::{Place, Setup, TerminalCall, Terminals};
use crate::sandbox::testing;
use crate::sandbox::user::CommandUser;
use crate::sandbox::workspace::{DataDir, Workspace};
use crate::tool::{Outcome, ToolResult};

/// Long enough for anything that is expected to happen at all.
const LONG: Duration = Duration::from_secs(20);

/// Terminals, and a slot's files.
struct Bench {
    terminals: Terminals,
    workspaces: Vec<Arc<Workspace>>,
    // Dropped in this order.
    _data: DataDir,
    _base: tempfile::TempDir,
    /// Lives as long as the sandboxes that show it.
    _etc: tempfile::TempDir,
}

impl Bench {
    fn new(sandboxed: bool, filtered: bool) -> Self {
        let user = CommandUser::detect();
        let (base, etc) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::set_permissions(base.path(), PermissionsExt::from_mode(0o711)).unwrap();
        let data = DataDir::create(Some(base.path()), 2, user).unwrap();
        let workspaces = data.workspaces().to_vec();
        let isolation = if sandboxed {
            let copy = EtcCopy::make(etc.path(), data.identity()).unwrap();
            let isolation = Isolation::probe(&workspaces[0]).with_etc(copy);
            assert!(isolation.is_sandboxed(), "{isolation:?}");
            match filtered {
                true => isolation
                    .with_filter(Filter::all(), &workspaces[0], &Budget::default())
                    .unwrap(),
                false => isolation,
            }
        } else {
            Isolation::none("a test")
        };
        let tmux = Tmux::detect(shell::PATH);
        assert!(tmux.is_some(), "install tmux");
        let (limits, spool) = (Arc::new(Limits::none()), Spool::start().unwrap());
        let supervisor =
            Supervisor::start(isolation.clone(), user, limits.clone(), spool.clone()).unwrap();
        let terminals = Terminals::start(Setup {
            isolation,
            user,
            limits,
            more_sessions: 0,
            supervisor: Arc::new(supervisor),
            output_limit_chars: 50_000,
            output_file_bytes: 16 << 20,
            spool,
            tmux,
        })
        .unwrap();
        Self { terminals, workspaces, _data: data, _base: base, _etc: etc }
    }

    fn sandboxed() -> Self {
        Self::new(true, true)
    }

    fn start_at(
        &self,
        slot: usize,
        timeout: Duration,
        arguments: Value,
    ) -> (Option<TerminalCall>, Receiver<TmuxEnded>) {
        let arguments = arguments.as_object().unwrap();
        let (sender, receiver) = channel();
        match Request::parse(arguments, timeout).unwrap() {
            Request::Act(act) => {
                let network = arguments.get("allow_network") != Some(&json!(false));
                let workspace = self.workspaces[slot].clone();
                let session = crate::tool::DEFAULT_SESSION.into();
                let place = Place { slot, workspace, network, session };
                let on_end = Box::new(move |ended| sender.send(ended).unwrap());
                (Some(self.terminals.tmux(place, act, timeout, on_end)), receiver)
            }
            Request::Stop => {
                let on_end = move |all_dead| {
                    sender.send(TmuxEnded { result: stop_result(), all_dead }).unwrap();
                };
                self.terminals.stop_tmux(slot, Box::new(on_end));
                (None, receiver)
            }
        }
    }

    /// Ends what the slot has; tells whether the end of everything was seen.
    fn leave(&self, slot: usize) -> bool {
        let (sender, receiver) = channel();
        self.terminals.leave(slot, Box::new(move |all_dead| sender.send(all_dead).unwrap()));
        receiver.recv_timeout(LONG).expect("an end")
    }

    fn call_for(&self, timeout: Duration, arguments: Value) -> ToolResult {
        let (_, receiver) = self.start_at(0, timeout, arguments);
        let ended = receiver.recv_timeout(LONG + timeout).expect("an answer");
        assert!(ended.all_dead, "{ended:?}");
        ended.result
    }

    fn call(&self, arguments: Value) -> ToolResult {
        self.call_for(LONG, arguments)
    }

    /// A call that succeeds, in a terminal that was there before.
    fn ok(&self, arguments: Value) -> ToolResult {
        let result = self.call(arguments.clone());
        assert!(result.success, "{arguments}: {}", result.error);
        assert_eq!(result.metadata.get("session_started"), None, "{arguments}");
        result
    }

    /// A new terminal, at its prompt.
    fn begin(&self) {
        let started = self.call(json!({"action": "start"}));
        assert_eq!((started.output.as_str(), started.error.as_str()), ("started", ""));
        self.until("$");
    }

    fn keys(&self, keys: Value) {
        assert_eq!(self.ok(json!({"action": "send_keys", "keys": keys})).output, "ok");
    }

    /// Types, and waits until the shell waits again.
    fn run(&self, command: &str) {
        let keys = [command, "Enter"];
        let result = self.ok(json!({"action": "send_keys", "keys": keys, "block": true}));
        assert_eq!((result.output.as_str(), &result.metadata["blocked"]), ("ok", &json!(true)));
    }

    fn screen(&self) -> String {
        self.ok(json!({})).output
    }

    /// Captures until the screen shows this.
    fn until(&self, text: &str) -> String {
        let give_up = Instant::now() + LONG;
        loop {
            let screen = self.screen();
            if screen.contains(text) {
                return screen;
            }
            assert!(Instant::now() < give_up, "{text:?} never came:\n{screen}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.workspaces[0].at(name)
    }

    fn content(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.file(name)).unwrap()
    }

    /// Makes a file that commands can read, whatever the umask is.
    fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.file(name), content).unwrap();
        std::fs::set_permissions(self.file(name), PermissionsExt::from_mode(0o644)).unwrap();
    }

    fn wait_for_file(&self, name: &str) {
        let give_up = Instant::now() + LONG;
        while !self.file(name).exists() {
            assert!(Instant::now() < give_up, "{name} never came:\n{}", self.screen());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The next call must find a new terminal.
    fn is_fresh(&self) {
        let result = self.call(json!({"action": "capture"}));
        assert!(result.success, "{}", result.error);
        assert_eq!(result.metadata["session_started"], true);
        self.until("$");
        self.run("echo alive > alive");
        assert_eq!(self.content("alive"), b"alive\n");
    }
}

/// A program for the foreground that reads nothing, and says when it is interrupted.
const DEAF: &str = "bash -c 'trap \"echo caught > caught; exit 3\" INT; touch ready; while :; do sleep 0.05; done'";

#[test]
fn a_terminal_is_clean_and_of_its_size() {
    let bench = Bench::sandboxed();
    let started = bench.call(json!({"action": "start", "pane_width": 80, "pane_height": 12}));
    assert_eq!(
        Value::Object(started.metadata),
        json!({"stateful": true, "pane_width": 80, "pane_height": 12, "socket": "tmux.sock",
               "session": "s", "recording": ".asciinema.cast"})
    );
    let screen = bench.until("$");
    assert_eq!(screen.matches('\n').count(), 12);
    assert!(screen.lines().all(|line| line == line.trim_end()));
    bench.run("stty size; tput cols; pwd; ls -A; echo \"$TERM\"; env | cut -d= -f1 | sort | xargs");
    let screen = bench.screen();
    for line in [
        "12 80",
        "80",
        "/workspace",
        "tmux-256color",
        "HISTFILE HOME LANG LOGNAME PATH PWD PYTHONUNBUFFERED SHELL SHLVL TERM",
    ] {
        assert!(screen.lines().any(|shown| shown.starts_with(line)), "{line}:\n{screen}");
    }
    // A size is for a new terminal only.
    let again = bench.ok(json!({"action": "start", "pane_width": 100, "pane_height": 50}));
    assert_eq!(
        (&again.metadata["pane_width"], &again.metadata["pane_height"]),
        (&json!(80), &json!(12))
    );
    bench.run("clear; seq 1 30000; tmux display -p '#{history_limit}'");
    let entire = bench.ok(json!({"capture_entire": true}));
    assert_eq!(entire.metadata["capture_entire"], true);
    assert!(entire.output.contains("\n20000\n"), "the limit of its history");
    assert!(entire.metadata["omitted_bytes"].as_u64().unwrap() > 0);
    assert_eq!(
        std::fs::read_dir(bench.file("")).unwrap().count(),
        0,
        "nothing is left in the workspace"
    );
}

#[test]
fn everything_works_without_a_sandbox_too() {
    let bench = Bench::new(false, false);
    bench.begin();
    bench.run("echo a$((1+1))b > said; sleep 0.2");
    assert_eq!(bench.content("said"), b"a2b\n");
    bench.keys(json!([DEAF, "Enter"]));
    bench.wait_for_file("ready");
    bench.keys(json!("C-c"));
    bench.wait_for_file("caught");
    assert_eq!(bench.call(json!({"action": "stop"})).output, "stopped");
    bench.is_fresh();
}

#[test]
fn stop_ends_it_and_the_next_call_begins_another() {
    let bench = Bench::sandboxed();
    assert_eq!(bench.call(json!({"action": "stop"})).output, "stopped", "none was there");
    bench.begin();
    bench.run("x=1");
    let stopped = bench.call(json!({"action": "stop"}));
    assert_eq!((stopped.output.as_str(), &stopped.metadata["stateful"]), ("stopped", &json!(true)));
    bench.is_fresh();
    bench.run("echo \"x=$x.\"");
    assert!(bench.screen().contains("x=.\n"));
}

#[test]
fn a_call_that_blocks_waits_for_the_commands_end_and_types_nothing_else() {
    let bench = Bench::sandboxed();
    bench.begin();
    bench.run("sleep 0.3; echo done > out");
    assert_eq!(bench.content("out"), b"done\n");
    // Builtins, functions, substitutions, jobs, many at once.
    bench.run("x=$(sleep 0.3; echo sub); f() { sleep 0.2; echo \"$x\" > f; }; f");
    assert_eq!(bench.content("f"), b"sub\n");
    bench.run("sleep 0.2; echo 1 >> many\nsleep 0.2; echo 2 >> many\nread -t 0.3 y < <(sleep 9); echo 3 >> many");
    assert_eq!(bench.content("many"), b"1\n2\n3\n");
    bench.run("sleep 1000 & echo started");
    bench.run("kill %1; wait");
    // What was typed is what was asked for.
    bench.run("fc -ln -100 > history");
    let history = String::from_utf8(bench.content("history")).unwrap();
    let typed: Vec<_> = history.lines().map(str::trim).collect();
    assert_eq!(typed[0], "sleep 0.3; echo done > out");
    assert!(!history.contains("wait-for"), "{history}");
    // A line that is not finished is nothing to wait for.
    let unfinished = json!({"action": "send_keys", "keys": ["echo 'a", "Enter"], "block": true});
    bench.ok(unfinished);
    assert!(bench.screen().contains("\n>"));
    bench.keys(json!("C-c"));
    bench.ok(json!({"action": "send_keys", "keys": ["echo nothing"], "block": true}));
    bench.keys(json!("C-c"));
    // A shell within the shell.
    bench.run("bash");
    bench.run("sleep 0.2; echo nested > nested; exit");
    assert_eq!(bench.content("nested"), b"nested\n");
}

#[test]
fn a_call_that_blocks_gives_up_and_the_session_is_kept() {
    let bench = Bench::sandboxed();
    bench.begin();
    bench.run("x=kept");
    let begun = Instant::now();
    let blocked =
        json!({"action": "send_keys", "keys": [DEAF, "Enter"], "block": true, "max_wait_s": 0.3});
    let result = bench.call(blocked);
    assert_eq!(result.error, "tmux blocked keys timed out after 0.3s");
    assert_eq!((result.outcome, result.success), (Outcome::Timeout, false));
    assert!(begun.elapsed() >= Duration::from_millis(300));
    bench.wait_for_file("ready");
    let end = Instant::now();
    let waits = json!({"action": "send_keys", "keys": "C-c", "block": true, "min_wait_s": 0.5});
    bench.ok(waits);
    assert!(end.elapsed() >= Duration::from_millis(500));
    assert_eq!(bench.content("caught"), b"caught\n");
    bench.run("echo $x > x");
    assert_eq!(bench.content("x"), b"kept\n");
    // The call's own time bounds all others.
    let waits = json!({"action": "send_keys", "keys": "x", "min_wait_s": 1000});
    assert_eq!(bench.call_for(Duration::from_millis(300), waits).output, "ok");
    let waits = json!({"action": "send_keys", "keys": ["C-u", "sleep 1000", "Enter"], "block": true, "max_wait_s": 1000});
    let result = bench.call_for(Duration::from_millis(400), waits);
    assert_eq!(result.error, "tmux blocked keys timed out after 0.4s");
    bench.ok(json!({"action": "send_keys", "keys": "C-c", "block": true}));
}

#[test]
fn much_text_arrives_exactly() {
    let bench = Bench::sandboxed();
    bench.begin();
    let line = "0123456789 é中😀\u{301} 'quoted' \"$HOME\" `x` \\ ; # %0 {} ~\n";
    let text: String = (0..100 * 1024 / line.len()).map(|n| format!("{n} {line}")).collect();
    assert!(text.len() > 100 * 1024);
    bench.keys(json!(["cat > file; touch ended", "Enter"]));
    bench.keys(json!([text, "C-d"]));
    bench.wait_for_file("ended");
    assert_eq!(String::from_utf8(bench.content("file")), Ok(text));

    // Control characters, to a program that takes them as they are.
    let all: String = (0..128u8).map(char::from).chain("\u{80}ÿ\u{ffff}".chars()).collect();
    let length = all.len();
    bench.run("rm ended");
    bench.keys(json!([
        format!("stty raw -echo; touch raw; head -c {length} > raw; stty sane; touch ended"),
        "Enter"
    ]));
    bench.wait_for_file("raw");
    bench.keys(json!([all]));
    bench.wait_for_file("ended");
    assert_eq!(String::from_utf8(bench.content("raw")), Ok(all));
}

#[test]
fn lines_and_heredocs_are_typed_as_they_are() {
    let bench = Bench::sandboxed();
    bench.begin();
    bench.run("cat > a <<'END'\nfirst\n  $second\n\nEND\nfor i in 1 2; do\necho $i >> b\ndone");
    assert_eq!(bench.content("a"), b"first\n  $second\n\n");
    assert_eq!(bench.content("b"), b"1\n2\n");
    // What looks like a key is one; what looks like a command of tmux is text.
    bench.run("echo 'Enter' '-l' '-t' ';' 'kill-server' \\; > c");
    assert_eq!(bench.content("c"), b"Enter -l -t ; kill-server ;\n");
    bench.keys(json!(["echo", "Space", "'kill-server ;'", " -H ", ";", "BSpace", "> d", "Enter"]));
    bench.run("");
    assert_eq!(bench.content("d"), b"kill-server ; -H\n");
}

#[test]
fn a_hosts_signals_and_umask_do_not_reach_its_terminals() {
    const NAME: &str = "a_hosts_signals_and_umask_do_not_reach_its_terminals";
    testing::alone(&format!("{}::{NAME}", module_path!()), || {
        testing::be_a_hostile_host();
        let bench = Bench::sandboxed();
        bench.begin();
        bench.run(&format!("({}) > inherited", testing::INHERITED));
        testing::assert_nothing_inherited(&String::from_utf8(bench.content("inherited")).unwrap());
    });
}

#[test]
fn a_key_that_interrupts_is_never_behind_text() {
    let bench = Bench::sandboxed();
    bench.begin();
    let text = "echo typed >> typed\n".repeat(5000);
    bench.keys(json!([DEAF, "Enter"]));
    bench.wait_for_file("ready");
    // The text before it was never read.
    let typed =
        bench.call_for(Duration::from_millis(500), json!({"action": "send_keys", "keys": text}));
    assert_eq!(typed.outcome, Outcome::Timeout);
    assert!(typed.error.contains("of 100000 bytes were typed"), "{}", typed.error);
    bench.ok(json!({"action": "send_keys", "keys": "C-c", "block": true}));
    assert_eq!(bench.content("caught"), b"caught\n");
    // It is in the same call.
    bench.run("rm ready caught");
    bench.keys(json!([DEAF, "Enter"]));
    bench.wait_for_file("ready");
    bench.ok(json!({"action": "send_keys", "keys": [text, "\u{3}"], "block": true}));
    assert_eq!(bench.content("caught"), b"caught\n");
    // Many calls have typed a little.
    bench.run("rm ready caught");
    bench.keys(json!([DEAF, "Enter"]));
    bench.wait_for_file("ready");
    for _ in 0..20 {
        bench.call_for(
            Duration::from_millis(50),
            json!({"action": "send_keys", "keys": text[..1000]}),
        );
    }
    bench.ok(json!({"action": "send_keys", "keys": "C-c", "block": true}));
    assert_eq!(bench.content("caught"), b"caught\n");
    assert!(!bench.file("typed").exists(), "nothing of the text reached the shell");
}

#[test]
fn cancelling_a_call_that_waits_interrupts_what_it_waits_for() {
    let bench = Bench::sandboxed();
    bench.begin();
    for keys in [json!([DEAF, "Enter"]), json!([DEAF, "Enter", "text\n".repeat(10_000)])] {
        let blocked = json!({"action": "send_keys", "keys": keys, "block": true});
        let (call, receiver) = bench.start_at(0, LONG, blocked);
        // Not by a capture: the slot is busy.
        while !bench.file("ready").exists() {
            assert!(receiver.try_recv().is_err());
            std::thread::sleep(Duration::from_millis(1));
        }
        bench.terminals.cancel(call.unwrap());
        let ended = receiver.recv_timeout(LONG).unwrap();
        assert_eq!((ended.result.outcome, ended.all_dead), (Outcome::Cancelled, true));
        bench.wait_for_file("caught");
        bench.run("rm ready caught");
    }
}

#[test]
fn what_is_streamed_is_what_was_printed() {
    let bench = Bench::sandboxed();
    bench.begin();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut byte = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 32) as u8
    };
    let bytes: Vec<u8> = (0..60_000).map(|_| byte()).filter(|byte| *byte != b'\n').collect();
    bench.put("bytes", &bytes);
    let mut streamed = String::new();
    let mut offset = 0;
    let mut stream = |streamed: &mut String, max_bytes: usize| {
        let part = bench.ok(json!({"action": "stream", "max_bytes": max_bytes}));
        assert_eq!(part.metadata.get("dropped_bytes"), None);
        offset += part.output.len();
        assert_eq!(part.metadata["offset"], offset);
        streamed.push_str(&part.output);
    };
    let print = "printf '<%s' '<<'; dd if=bytes bs=997 2> /dev/null; printf '>%s' '>>'; stty sane";
    bench.keys(json!([format!("stty -echo -opost; {print}; touch printed"), "Enter"]));
    bench.wait_for_file("printed");
    while !replay(&streamed).contains(">>>") {
        stream(&mut streamed, 3000);
    }
    let printed = replay(&streamed);
    let (_, printed) = printed.rsplit_once("<<<").unwrap();
    let (printed, _) = printed.split_once(">>>").unwrap();
    assert_eq!(printed, String::from_utf8_lossy(&bytes));
    // From the beginning it is the same.
    let again = bench.ok(json!({"action": "stream", "reset": true, "max_bytes": 1}));
    assert!(again.output.starts_with("{\"version\":2,"), "{}", again.output);
}

#[test]
fn a_flood_is_bounded_and_holds_up_nobody() {
    let bench = Bench::sandboxed();
    bench.begin();
    bench.ok(json!({"action": "stream"}));
    bench.keys(json!(["yes 'a line of the flood'", "Enter"]));
    let end = Instant::now() + Duration::from_secs(3);
    let mut captures = 0;
    while Instant::now() < end {
        bench.until("a line of the flood");
        // A neighbour works as usual.
        let (_, receiver) = bench.start_at(1, LONG, json!({"action": "capture"}));
        assert!(receiver.recv_timeout(LONG).unwrap().result.success);
        captures += 1;
    }
    assert!(captures >= 3, "{captures} captures in 3 s");
    bench.ok(json!({"action": "send_keys", "keys": "C-c", "block": true}));
    let part = bench.ok(json!({"action": "stream", "max_bytes": 200_000}));
    assert!(part.metadata["dropped_bytes"].as_u64().unwrap() > 0);
    let mut length = part.output.len();
    loop {
        let part = bench.ok(json!({"action": "stream", "max_bytes": 200_000})).output;
        if part.is_empty() {
            break;
        }
        length += part.len();
    }
    assert!(length <= LIMIT && length > LIMIT / 2, "{length}");
}

#[test]
fn another_network_policy_begins_another_terminal() {
    let bench = Bench::sandboxed();
    bench.begin();
    bench.run("x=1");
    let offline = json!({"action": "send_keys", "allow_network": false, "block": true,
                         "keys": ["wc -l < /proc/net/dev > interfaces; echo $x >> interfaces", "Enter"]});
    let result = bench.call(offline);
    assert_eq!((result.output.as_str(), &result.metadata["session_started"]), ("ok", &json!(true)));
    assert_eq!(bench.content("interfaces"), b"3\n\n", "two lines of title, and lo");
}

#[test]
fn slots_do_not_see_each_other_and_an_ended_slot_answers_its_call() {
    let bench = Bench::sandboxed();
    bench.begin();
    bench.run("ls /dev/shm; ps -e | wc -l > processes");
    let processes: u32 =
        String::from_utf8(bench.content("processes")).unwrap().trim().parse().unwrap();
    assert!(processes < 12, "{processes}");
    let blocked = json!({"action": "send_keys", "keys": [DEAF, "Enter"], "block": true});
    let (_, receiver) = bench.start_at(0, LONG, blocked);
    while !bench.file("ready").exists() {
        assert!(receiver.try_recv().is_err());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(bench.leave(0));
    let ended = receiver.recv_timeout(LONG).unwrap();
    assert_eq!((ended.result.outcome, ended.all_dead), (Outcome::Cancelled, true));
    bench.is_fresh();
    bench.terminals.close();
    let refused = bench.call(json!({"action": "start"}));
    assert_eq!(refused.error, "Failed to ensure tmux session: the sandbox is closed");
    assert_eq!(refused.metadata["requires_bwrap"], false);
    assert_eq!(bench.call(json!({"action": "stop"})).output, "stopped");
}

/// Without a sandbox whoever kills the reaper frees what it held.
#[test]
fn a_slot_is_never_free_of_a_terminal_whose_end_nobody_saw() {
    let bench = Bench::new(false, false);
    bench.begin();
    let client = "$(tmux list-clients -F '#{client_pid}')";
    bench.run(&format!(
        "tmux display -p '#{{pid}}' > server; sed 's/.*) . //; s/ .*//' /proc/{client}/stat > reaper"
    ));
    let number = |name: &str| {
        let text = String::from_utf8(bench.content(name)).unwrap();
        rustix::process::Pid::from_raw(text.trim().parse().unwrap()).unwrap()
    };
    let (server, reaper) = (number("server"), number("reaper"));
    rustix::process::kill_process(reaper, rustix::process::Signal::KILL).unwrap();
    // It dies between two calls, and the next one has another terminal, which ends as it should.
    let give_up = Instant::now() + LONG;
    while bench
        .start_at(0, LONG, json!({}))
        .1
        .recv_timeout(LONG)
        .unwrap()
        .result
        .metadata
        .get("session_started")
        .is_none()
    {
        assert!(Instant::now() < give_up);
    }
    for _ in 0..2 {
        assert!(!bench.leave(0), "it was taken to be free");
    }
    // What was let go ends here.
    let _ = rustix::process::kill_process(server, rustix::process::Signal::KILL);
}
