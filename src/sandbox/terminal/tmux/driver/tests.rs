//! A terminal whose tmux is played by the test.

use std::cell::RefCell;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::arguments::Request;
use super::super::asciicast::replay;
use super::super::look::Leader;
use super::*;

const TIMEOUT: Duration = Duration::from_secs(30);

/// A terminal, and what the test makes its surroundings be.
struct Bench {
    driver: Driver,
    now: Instant,
    look: RefCell<Option<Look>>,
    replies: u64,
}

impl Bench {
    fn asleep() -> Self {
        let now = Instant::now();
        let size = Size { width: 80, height: 3 };
        let shell = "/bin/bash";
        let settings =
            Settings { size, shell: shell.to_owned(), term: "tmux", output_limit_chars: 50_000 };
        let driver = Driver::new(settings, now);
        Self { driver, now, look: RefCell::new(Some(idle(7))), replies: 0 }
    }

    /// A terminal that is ready.
    fn awake() -> Self {
        let mut bench = Self::asleep();
        bench.driver.released(bench.now);
        assert_eq!(bench.commands().len(), 1);
        bench.say(b"%begin 1 1 0\n%end 1 1 0\n%session-changed $0 s\n");
        bench.driver.prompted = true;
        bench.reply("5 /dev/pts/0\n");
        bench
    }

    fn call(&mut self, arguments: Value) {
        self.call_for(TIMEOUT, arguments);
    }

    fn call_for(&mut self, timeout: Duration, arguments: Value) {
        let request = Request::parse(arguments.as_object().unwrap(), timeout).unwrap();
        let Request::Act(act) = request else { panic!("a stop") };
        self.driver.begin(act.action, timeout, self.now);
        self.advance();
        self.leave();
    }

    fn advance(&mut self) {
        let look = &self.look;
        self.driver.advance(self.now, &|pane| {
            assert_eq!(pane, Pane { shell: 5, terminal: 0 });
            look.borrow().clone()
        });
    }

    fn say(&mut self, bytes: &[u8]) {
        self.driver.read(bytes, self.now);
        self.advance();
    }

    fn reply_with(&mut self, text: &str, end: &str) {
        self.replies += 1;
        let number = self.replies;
        self.say(format!("%begin 1 {number} 1\n{text}%{end} 1 {number} 1\n").as_bytes());
    }

    fn reply(&mut self, text: &str) {
        self.reply_with(text, "end");
    }

    /// Lets time pass until something is due, and tells how much that was.
    fn pass(&mut self) -> Duration {
        let due = self.driver.due().expect("something is due").max(self.now);
        let passed = due - self.now;
        self.now = due;
        self.advance();
        passed
    }

    fn commands(&mut self) -> Vec<String> {
        self.leave();
        let commands = String::from_utf8(self.driver.take_commands()).unwrap();
        commands.lines().map(str::to_owned).collect()
    }

    /// It leaves tmux's modes before it types, which the oldest tmux cannot.
    fn leave(&mut self) {
        const LEAVE: &[u8] = b"copy-mode -q -t %0\n";
        let at = self.driver.commands.windows(LEAVE.len()).position(|line| line == LEAVE);
        if let Some(at) = at {
            self.driver.commands.drain(at..at + LEAVE.len());
            // Its turn comes later where tmux still owes other replies.
            if self.driver.replies.front().is_some_and(|owed| owed.asked == Asked::Leave) {
                self.reply_with("unknown flag\n", "error");
            }
        }
    }

    /// The bytes that the next command types.
    fn typed(&mut self) -> Vec<u8> {
        let commands = self.commands();
        assert_eq!(commands.len(), 1, "{commands:?}");
        let numbers = commands[0].strip_prefix("send-keys -t %0 -H ").expect("typing");
        numbers.split(' ').map(|number| u8::from_str_radix(number, 16).unwrap()).collect()
    }

    fn answer(&mut self) -> ToolResult {
        self.driver.take_answer().expect("an answer")
    }

    /// The shell was seen to wait: what was printed before comes through.
    fn drained(&mut self) {
        for _ in 0..QUIET_REPLIES {
            self.no_answer();
            assert_eq!(self.commands(), [SETTLE]);
            self.reply("settled\n");
        }
    }

    fn no_answer(&mut self) {
        assert_eq!(self.driver.take_answer().map(|answer| answer.error), None);
    }
}

/// A shell that waits for a command.
fn idle(switches: u64) -> Look {
    let leader = Leader { pid: 5, name: "bash".to_owned(), sleeps: true, switches };
    Look { unread: 0, gives_lines: false, leader: Some(leader) }
}

/// A program in the foreground that has not read this much.
fn busy(unread: u64) -> Look {
    let leader = Leader { pid: 9, name: "cat".to_owned(), sleeps: true, switches: 1 };
    Look { unread, gives_lines: true, leader: Some(leader) }
}

fn metadata(result: &ToolResult) -> Value {
    Value::Object(result.metadata.clone())
}

#[test]
fn a_start_waits_for_tmux_and_tells_what_the_terminal_is() {
    let mut bench = Bench::asleep();
    bench.call(json!({"action": "start"}));
    bench.driver.released(bench.now);
    let asked = bench.commands();
    assert_eq!(asked, ["display-message -p -t %0 '#{pane_pid} #{pane_tty}'"]);
    bench.say(b"%begin 1 1 0\n%end 1 1 0\n%session-changed $0 s\n%output %0 $ \n");
    bench.no_answer();
    bench.reply("5 /dev/pts/0\n");
    while bench.driver.answer.is_none() {
        bench.pass();
    }
    let answer = bench.answer();
    assert_eq!((answer.output.as_str(), answer.success), ("started", true));
    assert_eq!(
        metadata(&answer),
        json!({"stateful": true, "pane_width": 80, "pane_height": 3, "socket": "tmux.sock",
               "session": "s", "recording": ".asciinema.cast"})
    );
    assert_eq!(bench.driver.due(), None, "an idle terminal costs no time");
}

#[test]
fn tmux_is_asked_for_its_pane_until_it_knows_it_and_not_for_ever() {
    for unknown in [0, 3, MOST_PANE_ASKS - 1] {
        let mut bench = Bench::asleep();
        bench.driver.released(bench.now);
        bench.say(b"%begin 1 1 0\n%end 1 1 0\n");
        for _ in 0..unknown {
            bench.reply(" \n");
        }
        assert!(!bench.driver.is_ready() && !bench.driver.over());
        assert_eq!(bench.commands().len(), unknown as usize + 1);
        bench.reply("5 /dev/pts/0\n");
        assert!(bench.driver.is_ready());
    }
    let mut bench = Bench::asleep();
    bench.driver.released(bench.now);
    for _ in 0..MOST_PANE_ASKS {
        bench.reply(" \n");
    }
    assert!(bench.driver.over());
}

#[test]
fn the_first_call_waits_until_the_shell_reads_for_a_moment() {
    for arguments in [json!({"action": "start"}), json!({"action": "send_keys", "keys": "x"})] {
        let begin = || {
            let mut bench = Bench::awake();
            bench.driver.prompted = false;
            bench.look.replace(Some(busy(0)));
            bench.call(arguments.clone());
            bench
        };
        let has_begun = |bench: &mut Bench| {
            bench.driver.take_answer().is_some() || !bench.commands().is_empty()
        };
        let mut bench = begin();
        for _ in 0..10 {
            bench.pass();
            assert!(!has_begun(&mut bench), "the shell does not read yet");
        }
        // Two looks show that it waits, some time apart; it has not run between them.
        for switches in [1, 2, 3] {
            bench.look.replace(Some(idle(switches)));
            bench.pass();
            assert!(!has_begun(&mut bench));
        }
        assert!(bench.pass() >= IDLE_LOOKS.0);
        assert!(has_begun(&mut bench));

        // A shell that never reads, and one that cannot be looked at, are used all the same.
        for look in [Some(busy(0)), None] {
            let mut bench = begin();
            bench.look.replace(look);
            let began = bench.now;
            while !has_begun(&mut bench) {
                bench.pass();
            }
            assert_eq!(bench.now - began, PROMPT_LIMIT);
        }
        let mut bench = begin();
        bench.driver.cancel(bench.now);
        assert_eq!(bench.answer().outcome, Outcome::Cancelled);
    }
    // A call with little time keeps the half of it.
    let mut bench = Bench::awake();
    bench.driver.prompted = false;
    bench.look.replace(None);
    let began = bench.now;
    bench.call_for(Duration::from_secs(1), json!({"action": "start"}));
    while bench.driver.answer.is_none() {
        bench.pass();
    }
    assert_eq!(
        (&*bench.answer().output, bench.now - began),
        ("started", Duration::from_millis(500))
    );
    // Only the first call waits.
    bench.call(json!({"action": "start"}));
    assert_eq!(bench.answer().output, "started");
}

#[test]
fn keys_are_typed_one_part_after_the_other_and_then_answered() {
    let mut bench = Bench::awake();
    bench.call(json!({"action": "send_keys", "keys": ["ls", "Enter", "Up"]}));
    assert_eq!(bench.typed(), b"ls\r");
    bench.no_answer();
    bench.reply("");
    assert_eq!(bench.commands(), ["send-keys -t %0 -- Up"]);
    bench.reply("");
    let answer = bench.answer();
    assert_eq!(answer.output, "ok");
    assert_eq!(
        metadata(&answer),
        json!({"stateful": true, "blocked": false, "session_started": true})
    );
    bench.call(json!({"action": "send_keys", "keys": []}));
    assert_eq!(metadata(&bench.answer()), json!({"stateful": true, "blocked": false}));
}

#[test]
fn the_least_wait_is_waited_in_any_case() {
    let mut bench = Bench::awake();
    bench.call(json!({"action": "send_keys", "keys": "x", "min_wait_s": 2}));
    bench.reply("");
    bench.no_answer();
    assert_eq!(bench.pass(), Duration::from_secs(2));
    assert_eq!(bench.answer().output, "ok");
    // All of the call's time is no failure.
    bench.call(json!({"action": "send_keys", "keys": "x", "min_wait_s": 1000}));
    bench.now += Duration::from_secs(1);
    bench.reply("");
    assert_eq!(bench.pass(), TIMEOUT - Duration::from_secs(1));
    assert_eq!(bench.answer().output, "ok");
}

#[test]
fn no_more_is_typed_than_is_read() {
    let mut bench = Bench::awake();
    let text = "x".repeat(2500);
    bench.call(json!({"action": "send_keys", "keys": [text, "Enter"]}));
    assert_eq!(bench.typed().len(), CHUNK_BYTES);
    bench.look.replace(Some(busy(MOST_UNREAD + 1)));
    bench.reply("");
    for _ in 0..50 {
        assert_eq!(bench.commands(), [""; 0]);
        assert!(bench.pass() <= LOOKS.1);
    }
    bench.look.replace(Some(busy(MOST_UNREAD)));
    bench.pass();
    assert_eq!(bench.typed().len(), CHUNK_BYTES);
    bench.reply("");
    assert_eq!(bench.typed().len(), 2501 - 2 * CHUNK_BYTES);
    bench.reply("");
    assert_eq!(bench.answer().output, "ok");
}

#[test]
fn what_is_never_read_is_told_at_the_end_of_the_calls_time_and_the_terminal_lives() {
    let mut bench = Bench::awake();
    let text = "x".repeat(5000);
    bench.call(json!({"action": "send_keys", "keys": text}));
    bench.look.replace(Some(busy(4000)));
    bench.reply("");
    let begun = bench.now;
    while bench.now - begun < TIMEOUT {
        bench.no_answer();
        bench.pass();
    }
    let answer = bench.answer();
    assert_eq!(answer.outcome, Outcome::Timeout);
    assert!(
        answer.error.contains("after 30.0s: 1024 of 5000 bytes were typed"),
        "{}",
        answer.error
    );
    assert!(!bench.driver.over());
}

#[test]
fn an_interrupting_key_overtakes_what_is_not_read() {
    let mut bench = Bench::awake();
    bench.look.replace(Some(busy(4000)));
    // In a call of its own it does not wait at all.
    bench.call(json!({"action": "send_keys", "keys": "C-c"}));
    assert_eq!(bench.typed(), b"\x03");
    bench.reply("");
    assert_eq!(bench.answer().output, "ok");
    // Behind text it waits for a moment, and the text is never typed.
    bench.call(json!({"action": "send_keys", "keys": ["y".repeat(3000), "C-c", "q"]}));
    let begun = bench.now;
    let interrupt = loop {
        assert_eq!(bench.driver.take_commands(), b"");
        bench.pass();
        if !bench.driver.commands.is_empty() {
            break bench.typed();
        }
    };
    assert_eq!(interrupt, b"\x03");
    assert!((OVERTAKE_AFTER..OVERTAKE_AFTER * 2).contains(&(bench.now - begun)));
    bench.look.replace(Some(idle(1)));
    bench.reply("");
    assert_eq!(bench.typed(), b"q");
    // In front of text that is read it keeps its place.
    bench.reply("");
    bench.answer();
    bench.call(json!({"action": "send_keys", "keys": ["y", "C-c"]}));
    assert_eq!(bench.typed(), b"y");
    bench.reply("");
    assert_eq!(bench.typed(), b"\x03");
}

#[test]
fn a_call_that_blocks_ends_when_the_shell_waits_again() {
    let mut bench = Bench::awake();
    bench.call(json!({"action": "send_keys", "keys": ["make", "Enter"], "block": true}));
    assert_eq!(bench.typed(), b"make\r");
    bench.reply("");
    assert_eq!(bench.commands(), ["display-message -p settled"]);
    bench.look.replace(Some(busy(0)));
    bench.reply("settled\n");
    for _ in 0..100 {
        bench.no_answer();
        assert!(bench.pass() <= IDLE_LOOKS.1);
    }
    // As long as it runs between two looks it does not wait for a command.
    for switches in 0..20 {
        bench.look.replace(Some(idle(switches)));
        bench.no_answer();
        bench.pass();
    }
    bench.no_answer();
    bench.pass();
    // A prompt comes late, and then a reply with nothing before it.
    assert_eq!(bench.commands(), [SETTLE]);
    bench.say(b"%output %0 $ \n");
    bench.reply("settled\n");
    bench.drained();
    let answer = bench.answer();
    assert_eq!((answer.output.as_str(), &answer.metadata["blocked"]), ("ok", &json!(true)));
    assert_eq!(bench.commands(), [""; 0], "nothing else was typed");
}

#[test]
fn a_shell_that_has_not_run_since_it_was_typed_to_has_not_got_the_keys() {
    let mut bench = Bench::awake();
    bench.look.replace(Some(idle(7)));
    bench.call(json!({"action": "send_keys", "keys": "ls\n", "block": true}));
    bench.reply("");
    bench.reply("settled\n");
    for _ in 0..20 {
        bench.no_answer();
        bench.pass();
    }
    bench.look.replace(Some(idle(8)));
    bench.pass();
    bench.no_answer();
    bench.pass();
    bench.commands();
    // Something prints for ever.
    let begun = bench.now;
    while bench.driver.answer.is_none() {
        bench.now += Duration::from_millis(1);
        bench.say(b"%output %0 y\n");
        bench.reply("settled\n");
    }
    assert_eq!(bench.now - begun, DRAIN_LIMIT);
    assert_eq!(bench.answer().output, "ok");
}

#[test]
fn output_makes_it_look_sooner_but_never_shortens_the_time_between_the_two_looks() {
    let mut bench = Bench::awake();
    bench.look.replace(Some(busy(0)));
    bench.call(json!({"action": "send_keys", "keys": "x", "block": true, "min_wait_s": 0}));
    bench.reply("");
    bench.reply("settled\n");
    bench.now += Duration::from_secs(1);
    bench.pass();
    bench.now += Duration::from_millis(3);
    bench.look.replace(Some(idle(1)));
    let first = bench.now;
    for _ in 0..100 {
        bench.say(b"%output %0 x\n");
        bench.now += Duration::from_micros(90);
    }
    bench.no_answer();
    bench.commands();
    while bench.driver.commands.is_empty() {
        bench.pass();
    }
    assert!(bench.now - first >= IDLE_LOOKS.0);
}

#[test]
fn a_call_that_blocks_gives_up_and_the_terminal_lives() {
    let mut bench = Bench::awake();
    bench.look.replace(Some(busy(0)));
    bench.call(json!({"action": "send_keys", "keys": "x", "block": true, "max_wait_s": 2}));
    bench.reply("");
    bench.reply("settled\n");
    let begun = bench.now;
    while bench.driver.answer.is_none() {
        bench.pass();
    }
    assert_eq!(bench.now - begun, Duration::from_secs(2));
    let answer = bench.answer();
    assert_eq!(
        (answer.error.as_str(), answer.outcome),
        ("tmux blocked keys timed out after 2.0s", Outcome::Timeout)
    );
    assert!(!bench.driver.over());

    // The same where nobody can look, and where the least wait is longer.
    bench.look.replace(None);
    let asked = json!({"action": "send_keys", "keys": "x", "block": true, "max_wait_s": 0, "min_wait_s": 3});
    bench.call(asked);
    bench.reply("");
    bench.reply("settled\n");
    bench.no_answer();
    assert_eq!(bench.pass(), Duration::from_secs(3));
    assert_eq!(bench.answer().error, "tmux blocked keys timed out after 0.0s");
    // And at the end of the call's time.
    bench.call(json!({"action": "send_keys", "keys": "x", "block": true}));
    bench.reply("");
    bench.reply("settled\n");
    while bench.driver.answer.is_none() {
        bench.pass();
    }
    assert_eq!(bench.answer().error, "tmux blocked keys timed out after 30.0s");
}

#[test]
fn a_cancelled_call_that_typed_interrupts_and_leaves_the_rest() {
    let mut bench = Bench::awake();
    bench.look.replace(Some(busy(0)));
    bench.call(json!({"action": "send_keys", "keys": "sleep\n", "block": true}));
    bench.typed();
    bench.reply("");
    bench.commands();
    // A reply to the call is still on its way.
    bench.driver.cancel(bench.now);
    assert_eq!(bench.typed(), b"\x03");
    bench.reply("settled\n");
    bench.no_answer();
    bench.reply("");
    assert_eq!(bench.answer().outcome, Outcome::Cancelled);
    bench.driver.cancel(bench.now);
    assert!(bench.driver.take_commands().is_empty(), "no call, no interrupt");

    // With a tmux that says nothing.
    bench.call(json!({"action": "send_keys", "keys": "x".repeat(9000)}));
    bench.driver.cancel(bench.now);
    assert_eq!(bench.pass(), INTERRUPT_LIMIT);
    assert_eq!(bench.answer().outcome, Outcome::Cancelled);
    assert!(bench.driver.over());
}

#[test]
fn a_cancelled_capture_does_not_confuse_the_next() {
    let mut bench = Bench::awake();
    bench.call(json!({}));
    bench.driver.cancel(bench.now);
    assert_eq!(bench.answer().outcome, Outcome::Cancelled);
    bench.call(json!({}));
    assert_eq!(bench.commands().len(), 2);
    bench.reply("0 3\n");
    bench.reply("old\n\n\n");
    bench.no_answer();
    bench.reply("0 3\n");
    bench.reply("new\n\n\n");
    assert_eq!(bench.answer().output, "new\n\n\n");
}

#[test]
fn a_screen_is_taken_as_it_is() {
    let mut bench = Bench::awake();
    bench.call(json!({"action": "capture"}));
    let asked = "display-message -p -t %0 '#{history_size} #{pane_height}' ; capture-pane -p -t %0";
    assert_eq!(bench.commands(), [asked]);
    bench.reply("7 3\n");
    // It shows what looks like the reply's end.
    let number = bench.replies + 1;
    let screen = format!("%end 1 {number} 1\n%exit\n\n");
    bench.reply(&screen);
    let answer = bench.answer();
    assert_eq!(answer.output, screen);
    assert_eq!(answer.metadata["capture_entire"], false);

    bench.call(json!({"action": "capture", "capture_entire": true}));
    assert_eq!(bench.commands(), [format!("{asked} -S - -E -")]);
    bench.reply("2 3\n");
    bench.reply("1\n2\n3\n4\n5\n");
    assert_eq!(bench.answer().output, "1\n2\n3\n4\n5\n");
}

#[test]
fn a_long_screen_is_cut_and_says_so() {
    let mut bench = Bench::awake();
    bench.call(json!({"action": "capture", "capture_entire": true}));
    bench.reply("19997 3\n");
    bench.reply(&"0123456789\n".repeat(20_000));
    let answer = bench.answer();
    let mark = crate::sandbox::output::TRUNCATION_MARK;
    assert!(answer.output.contains(mark));
    assert_eq!(answer.output.len(), 50_000 + mark.len());
    assert_eq!(answer.metadata["omitted_bytes"], 20_000 * 11 - 50_000);
}

#[test]
fn a_stream_goes_on_where_the_last_one_ended() {
    let mut bench = Bench::awake();
    bench.say(b"%output %0 a\\015\\012\n%output %1 not this pane\n");
    bench.call(json!({"action": "stream"}));
    let first = bench.answer();
    assert_eq!(replay(&first.output), "a\r\n");
    let offset = first.output.len();
    assert_eq!(
        metadata(&first),
        json!({"stateful": true, "stream": true, "offset": offset, "recording": ".asciinema.cast",
               "session_started": true})
    );
    bench.call(json!({"action": "stream"}));
    assert_eq!(bench.answer().output, "");
    bench.say(b"%output %0 b\n");
    bench.call(json!({"action": "stream", "max_bytes": 1}));
    assert_eq!(replay(&bench.answer().output), "b");
    bench.call(json!({"action": "stream", "reset": true}));
    assert_eq!(replay(&bench.answer().output), "a\r\nb");
    bench.call(json!({"action": "start"}));
    bench.answer();
    bench.call(json!({"action": "stream"}));
    assert_eq!(replay(&bench.answer().output), "a\r\nb");
}

#[test]
fn a_tmux_that_is_silent_ends_the_call_at_its_time_and_the_terminal() {
    for (arguments, error) in [
        (json!({}), "tmux did not answer within 30.0s; its session is ended"),
        (
            json!({"action": "send_keys", "keys": "x"}),
            "tmux did not answer within 30.0s; its session is ended",
        ),
    ] {
        let mut bench = Bench::awake();
        bench.call(arguments);
        assert_eq!(bench.pass(), TIMEOUT);
        let answer = bench.answer();
        assert_eq!((answer.error.as_str(), answer.outcome), (error, Outcome::Timeout));
        assert!(bench.driver.over());
        assert_eq!(bench.driver.gone(Gone::Killed), None, "answered once");
    }
    let mut bench = Bench::asleep();
    bench.call(json!({}));
    bench.pass();
    let error = "Failed to ensure tmux session: tmux was not ready after 30.0s";
    assert_eq!(bench.answer().error, error);
    assert!(bench.driver.over());
}

#[test]
fn a_call_with_little_time_ends_alone_where_tmux_is_late() {
    let little = Duration::from_millis(50);
    let text = "x".repeat(3000);
    let keys = json!({"action": "send_keys", "keys": text});
    let blocks = json!({"action": "send_keys", "keys": "x", "block": true});
    for (arguments, replies, error) in [
        (
            &keys,
            0,
            "tmux send_keys timed out after 0.05s: 1024 of 3000 bytes were typed, and tmux is still at \
             it",
        ),
        (&blocks, 1, "tmux blocked keys timed out after 0.05s"),
        (&json!({}), 0, "tmux did not answer within 0.05s"),
    ] {
        let mut bench = Bench::awake();
        bench.call_for(little, arguments.clone());
        (0..replies).for_each(|_| bench.reply(""));
        assert_eq!(bench.pass(), little);
        let answer = bench.answer();
        assert_eq!((answer.error.as_str(), answer.outcome), (error, Outcome::Timeout));
        assert!(!bench.driver.over(), "{error}");
        // It answers after all, and the next call is as any other.
        bench.commands();
        match error.contains("within") {
            true => {
                bench.reply("0 3\n");
                bench.reply("late\n\n\n");
            }
            false => bench.reply(""),
        }
        bench.call(json!({"action": "send_keys", "keys": "y"}));
        assert_eq!(bench.typed(), b"y");
        bench.reply("");
        assert_eq!(bench.answer().output, "ok");
    }
}

#[test]
fn calls_with_little_time_type_no_more_than_tmux_passes_on() {
    let mut bench = Bench::awake();
    let keys = json!({"action": "send_keys", "keys": "x".repeat(1000)});
    let little = Duration::from_millis(50);
    bench.call_for(little, keys.clone());
    assert_eq!(bench.typed().len(), 1000);
    for _ in 0..20 {
        bench.now += little;
        bench.advance();
        assert_eq!(bench.answer().outcome, Outcome::Timeout);
        bench.call_for(little, keys.clone());
        assert!(bench.commands().is_empty(), "it still has the first part to pass on");
    }
    bench.now += little;
    bench.advance();
    bench.answer();
    // What interrupts is for tmux to pass on in any case.
    bench.call(json!({"action": "send_keys", "keys": "C-c"}));
    assert_eq!(bench.typed(), b"\x03");
}

#[test]
fn whatever_is_wrong_ends_the_terminal_and_answers_the_call_when_it_is_gone() {
    for (line, error) in [
        (&b"hello\n"[..], "tmux session ended: it wrote a line that is no notification"),
        (b"%output %0 \\9\n", "tmux session ended: it wrote a malformed notification"),
        (b"%exit\n", "tmux session ended"),
        (b"%exit server \x1bexited\n", "tmux session ended: server  exited"),
        (
            b"%begin 1 9 1\ncan't find pane: %0\n%error 1 9 1\n",
            "tmux capture-pane failed: can't find pane: %0",
        ),
        (b"%begin 1 9 1\n0 0\n%end 1 9 1\n", "tmux session ended: its pane is gone"),
        (b"%begin 1 9 1\n99999999999 1\n%end 1 9 1\n", "tmux session ended: its pane is gone"),
    ] {
        let mut bench = Bench::awake();
        bench.call(json!({"capture_entire": true}));
        bench.say(line);
        assert!(bench.driver.over());
        let answer = bench.driver.take_answer();
        let answer = answer.or_else(|| bench.driver.gone(Gone::Ended)).unwrap();
        assert_eq!((answer.error.as_str(), answer.outcome), (error, Outcome::ToolError));
        assert_eq!(answer.metadata["session_ended"], true);
    }
    let mut bench = Bench::awake();
    bench.reply("nobody asked\n");
    assert!(bench.driver.over());
    assert_eq!(bench.driver.gone(Gone::Ended), None);
}

#[test]
fn a_terminal_that_never_was_says_why() {
    let mut bench = Bench::asleep();
    bench.call(json!({"action": "start"}));
    bench.say(b"%begin 1 1 0\nno space for new pane\n%error 1 1 0\n");
    assert!(bench.driver.over());
    let answer = bench.driver.gone(Gone::Ended).unwrap();
    assert_eq!(answer.error, "Failed to ensure tmux session: no space for new pane");
    assert!(!answer.may_have_executed);

    let mut bench = Bench::asleep();
    bench.call(json!({"action": "start"}));
    let answer = bench.driver.gone(Gone::NeverBegan("no user namespaces".to_owned())).unwrap();
    assert_eq!(answer.error, "Failed to ensure tmux session: no user namespaces");
    assert_eq!(answer.outcome, Outcome::BackendFailed);
}

#[test]
fn a_call_that_types_exit_and_waits_has_what_it_waited_for() {
    let mut bench = Bench::awake();
    bench.look.replace(Some(busy(0)));
    bench.call(json!({"action": "send_keys", "keys": "exit\n", "block": true}));
    bench.reply("");
    bench.reply("settled\n");
    bench.say(b"%exit\n");
    let answer = bench.driver.gone(Gone::Ended).unwrap();
    assert_eq!(answer.output, "ok");
    assert_eq!(answer.metadata["session_ended"], true);

    let mut bench = Bench::awake();
    bench.call(json!({"action": "send_keys", "keys": "x", "min_wait_s": 9}));
    bench.reply("");
    assert_eq!(bench.driver.gone(Gone::Killed).unwrap().outcome, Outcome::Cancelled);
}

proptest! {
    /// Whatever tmux writes, and whenever: each call is answered once, within its time.
    #[test]
    fn no_call_waits_for_ever(
        calls in proptest::collection::vec(0usize..6, 1..6),
        said in proptest::collection::vec(
            prop_oneof![
                Just(b"%begin 1 1 1\n".to_vec()),
                Just(b"%end 1 1 1\n".to_vec()),
                Just(b"%begin 1 1 1\n%end 1 1 1\n".to_vec()),
                Just(b"%begin 1 1 1\n3 3\n%end 1 1 1\n".to_vec()),
                Just(b"%begin 1 1 1\na\nb\nc\n%end 1 1 1\n".to_vec()),
                Just(b"%begin 1 1 1\n5 /dev/pts/0\n%end 1 1 1\n".to_vec()),
                Just(b"%begin 1 1 0\n%end 1 1 0\n".to_vec()),
                Just(b"%begin 1 1 1\nno\n%error 1 1 1\n".to_vec()),
                Just(b"%output %0 abc\n".to_vec()),
                proptest::collection::vec(any::<u8>(), 0..10),
            ],
            0..60,
        ),
        unread in 0u64..3000,
        cancel in any::<bool>(),
    ) {
        let mut bench = Bench::asleep();
        bench.driver.released(bench.now);
        bench.look.replace(Some(busy(unread)));
        let mut said = said.into_iter();
        'calls: for call in calls {
            bench.call([
                json!({"action": "start"}),
                json!({"action": "send_keys", "keys": ["abc".repeat(1000), "C-c", "Up"]}),
                json!({"action": "send_keys", "keys": "x", "block": true}),
                json!({}),
                json!({"action": "stream"}),
                json!({"capture_entire": true}),
            ][call].clone());
            let begun = bench.now;
            if cancel {
                bench.driver.cancel(bench.now);
            }
            let mut steps = 0;
            while bench.driver.take_answer().is_none() {
                if bench.driver.over() {
                    prop_assert_eq!(bench.driver.due(), None);
                    prop_assert!(bench.driver.gone(Gone::Killed).is_some());
                    break 'calls;
                }
                match said.next() {
                    Some(bytes) => bench.say(&bytes),
                    None => drop(bench.pass()),
                }
                steps += 1;
                prop_assert!(steps < 10_000);
                prop_assert!(bench.driver.commands.len() < 20_000);
            }
            prop_assert!(bench.now - begun <= TIMEOUT);
            if bench.driver.over() {
                break;
            }
        }
    }
}
