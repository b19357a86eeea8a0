//! One terminal: what is said to its tmux, what becomes of a call, and what is recorded.
//!
//! A state machine without a file, a thread or a clock. It is told what tmux wrote, how a pane
//! looks and what time it is; it says what is to be written to tmux, what a call's answer is, when
//! it wants to be asked again, and when it is [over](Driver::over).
//!
//! # Typing
//! What tmux is told to type it takes at once and keeps for the pane, however much it is; a key
//! that interrupts would wait behind it. So no more is given to tmux than the kernel has room for:
//! the next part follows when the program has read the one before ([`Look::unread`]). Keys that
//! interrupt are given in any case, since there is always room for them; and where nothing is read
//! for a while, what was to be typed before such a key is left out, as a terminal would throw it
//! away.
//!
//! What is typed is for the pane's program. tmux has modes of its own, to show messages and to
//! copy, in which it takes the keys for itself; one that something in the terminal has entered is
//! left first.
//!
//! # The first prompt
//! The first call of a terminal waits, as below, until its shell reads, for a moment: keys that
//! come before are shown twice.
//!
//! # Waiting for a command's end
//! A call with `block` first waits until tmux has passed on all keys, and then until two looks,
//! some time apart, show the shell waiting for a command, that it has run since the last of the
//! typing, and that it has not run in between; and then until all has come through that was
//! printed before. A full-screen
//! program in the foreground is waited for like any other command: until it ends.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::json;

use super::arguments::{Action, SendKeys, Size};
use super::asciicast::Recording;
use super::control::{Event, Parser};
use super::keys::{CHUNK_BYTES, Keys, Typing};
use super::look::{Look, Pane};
use crate::sandbox::limits::Exceeded;
use crate::sandbox::output::Capture;
use crate::tool::python_json::float_text;
use crate::tool::{JsonObject, Outcome, ToolResult};

/// The pane: the first of a new server.
const PANE: u32 = 0;
/// Where a pane has more unread bytes, nothing is typed. The kernel has room for 4,095; there may
/// be the latest part on its way, the next one, and keys that interrupt.
const MOST_UNREAD: u64 = CHUNK_BYTES as u64;
/// For how long nothing must have been read before an interrupting key overtakes.
const OVERTAKE_AFTER: Duration = Duration::from_millis(250);
/// The shortest and the longest time between two looks at a pane.
const LOOKS: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(20));
/// The time between the two looks that show that a command has ended, and the longest time between
/// two looks that wait for that.
const IDLE_LOOKS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(50));
/// How often tmux is asked for its pane, each time when it has answered.
const MOST_PANE_ASKS: u32 = 50;
/// What tmux is asked to see how far it is.
const SETTLE: &str = "display-message -p settled";
/// How many replies in a row without anything printed between them show that all has come through
/// that was printed before, and how long that is waited for: something may print for ever.
const QUIET_REPLIES: u32 = 3;
const DRAIN_LIMIT: Duration = Duration::from_millis(200);
/// How long tmux may owe a reply when a call's time is over. A call may have so little time that a
/// busy machine does not run tmux in it, and what the terminal has got to must not be lost for
/// that.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a new terminal's shell may take until it reads, before it is used all the same: what it
/// runs at its start may wait for the keyboard.
const PROMPT_LIMIT: Duration = Duration::from_secs(2);
/// How long tmux may take to pass on the key that interrupts a cancelled call.
const INTERRUPT_LIMIT: Duration = Duration::from_secs(1);
/// How much is kept of a reply that should be a word or two.
const HEARD: usize = 300;
/// No screen has more lines, with what has scrolled away.
const MOST_LINES: usize = 1_000_000;

/// What a terminal is made with.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// Its size.
    pub(super) size: Size,
    /// The shell's path.
    pub(super) shell: String,
    /// The name of the terminal's type.
    pub(super) term: &'static str,
    /// How much of a screen is given, in characters.
    pub(super) output_limit_chars: usize,
}

/// See the [module](self).
pub(super) struct Driver {
    settings: Settings,
    parser: Parser,
    recording: Recording,
    /// Not yet taken by [`take_commands`](Self::take_commands).
    commands: Vec<u8>,
    /// What the next replies are to.
    replies: VecDeque<Question>,
    /// The reply that is open.
    reply: Reply,
    pane: Option<Pane>,
    /// How often tmux was asked for it.
    pane_asks: u32,
    /// Whether the pane has printed something since this was last asked.
    printed: bool,
    /// Whether the shell has been waited for until it reads.
    prompted: bool,
    over: Option<String>,
    calls: u64,
    work: Option<Work>,
    answer: Option<ToolResult>,
}

/// What tmux owes a reply to.
#[derive(Debug, Clone, Copy)]
struct Question {
    /// The call that it is asked for.
    call: u64,
    asked: Asked,
    since: Instant,
}

/// What tmux was told or asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// Which pane there is.
    Ready,
    /// To leave a mode of tmux's own.
    Leave,
    /// To type.
    Type,
    /// Nothing: a reply shows that it has got to everything before.
    Settle,
    /// How many lines there are.
    Geometry { entire: bool },
    /// The lines.
    Screen,
}

#[derive(Default)]
struct Reply {
    ours: bool,
    /// The beginning of its text.
    heard: Vec<u8>,
    /// Where the lines of a screen go.
    screen: Option<Capture>,
}

/// The call that the terminal has.
struct Work {
    number: u64,
    /// The terminal was begun for it, though it did not ask for that.
    first: bool,
    /// Its time is over then.
    deadline: Instant,
    timeout: Duration,
    /// When there is something to be done next, but for the deadline.
    due: Option<Instant>,
    stage: Stage,
}

enum Stage {
    /// The terminal is in the making.
    Waking(Action),
    /// The new terminal's shell does not read yet. What is typed now would be shown twice: by the
    /// terminal, and by the shell with its prompt.
    Prompting { action: Action, began: Instant, since: Instant, last: Option<Look> },
    /// Some keys are not typed yet.
    Typing { typing: Typing, total: usize, pace: Pace, rest: Rest },
    /// All keys are given to tmux, which may still have to pass them on.
    Settling(Rest),
    /// The shell is waited for.
    Watching { rest: Rest, since: Instant, last: Option<Look> },
    /// The shell waits. What was printed before that may not have come through yet.
    Draining { rest: Rest, since: Instant, quiet: u32 },
    /// Only the least wait is left.
    Waiting(Rest),
    /// The screen is asked for.
    Capturing { entire: bool },
    /// It was cancelled, and C-c is on its way.
    Interrupting,
}

/// How typing goes on.
struct Pace {
    /// tmux has not replied yet.
    asked: bool,
    /// Since when there was no room.
    stuck: Option<Instant>,
}

/// What is to be done when all is typed.
#[derive(Debug, Clone, Copy)]
struct Rest {
    block: bool,
    min_wait: Duration,
    max_wait: Duration,
    /// When all was typed.
    typed: Option<Instant>,
    /// The shell that waited just before the latest part was typed, and how often it had been put
    /// off a processor.
    before: Option<(u32, u64)>,
}

impl Driver {
    /// A terminal whose tmux is not there yet.
    pub(super) fn new(settings: Settings, now: Instant) -> Self {
        let recording = Recording::new(settings.size, &settings.shell, settings.term, now);
        // Another shell than bash reads lines, and does not show when.
        let prompted = !settings.shell.ends_with("/bash");
        Self {
            settings,
            parser: Parser::default(),
            recording,
            commands: Vec::new(),
            replies: VecDeque::new(),
            reply: Reply::default(),
            pane: None,
            pane_asks: 0,
            printed: false,
            prompted,
            over: None,
            calls: 0,
            work: None,
            answer: None,
        }
    }

    /// tmux was let go.
    pub(super) fn released(&mut self, now: Instant) {
        self.ask_for_pane(now);
    }

    fn ask_for_pane(&mut self, now: Instant) {
        let command = format!("display-message -p -t %{PANE} '#{{pane_pid}} #{{pane_tty}}'");
        self.ask(command, Asked::Ready, now);
        self.pane_asks += 1;
    }

    /// Takes a call. There must be none.
    pub(super) fn begin(&mut self, action: Action, timeout: Duration, now: Instant) {
        self.calls += 1;
        self.work = Some(Work {
            number: self.calls,
            first: self.calls == 1 && action != Action::Start,
            deadline: now + timeout,
            timeout,
            due: None,
            stage: Stage::Waking(action),
        });
    }

    /// What is to be written to tmux.
    pub(super) fn take_commands(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.commands)
    }

    /// The answer to the call, once.
    pub(super) fn take_answer(&mut self) -> Option<ToolResult> {
        self.answer.take()
    }

    /// Whether the terminal cannot be used any more, and its sandbox is to be ended.
    pub(super) fn over(&self) -> bool {
        self.over.is_some()
    }

    /// Whether tmux has said its first word: its sandbox is complete.
    pub(super) fn is_ready(&self) -> bool {
        self.pane.is_some()
    }

    /// When [`advance`](Self::advance) is due: never when it is over, and there is nothing to be
    /// done.
    pub(super) fn due(&self) -> Option<Instant> {
        let work = self.work.as_ref().filter(|_| !self.over())?;
        Some(work.due.map_or(work.deadline, |due| due.min(work.deadline)))
    }

    /// Ends the terminal, for this reason, unless it is over already.
    pub(super) fn end(&mut self, why: &str) {
        self.over.get_or_insert_with(|| why.to_owned());
    }

    /// tmux has written this.
    pub(super) fn read(&mut self, bytes: &[u8], now: Instant) {
        if self.over() {
            return;
        }
        self.parser.push(bytes);
        while !self.over() {
            let (ok, exited) = match self.parser.next() {
                Ok(Some(Event::Output { pane: PANE, bytes })) => {
                    self.recording.push(bytes, now);
                    self.printed = true;
                    if let Some(Work { due, stage: Stage::Watching { since, .. }, .. }) =
                        &mut self.work
                    {
                        // Perhaps a prompt.
                        let soon = now.max(*since + LOOKS.0);
                        *due = due.map(|due| due.min(soon));
                    }
                    continue;
                }
                Ok(Some(Event::Output { .. } | Event::Other)) => continue,
                Ok(Some(Event::Begin { ours })) => {
                    self.reply.ours = ours;
                    self.reply.heard.clear();
                    continue;
                }
                Ok(Some(Event::Line(line))) => {
                    match &mut self.reply.screen {
                        Some(screen) => {
                            screen.push(line);
                            screen.push(b"\n");
                        }
                        None => {
                            let room = HEARD.saturating_sub(self.reply.heard.len());
                            self.reply.heard.extend_from_slice(&line[..line.len().min(room)]);
                        }
                    }
                    continue;
                }
                Ok(Some(Event::End { ok })) => (ok, None),
                Ok(Some(Event::Exit(why))) => (false, Some(text(why))),
                Ok(None) => return,
                Err(broken) => (false, Some(broken.to_string())),
            };
            match exited {
                Some(why) if why.is_empty() => self.end("tmux session ended"),
                Some(why) => self.end(&format!("tmux session ended: {why}")),
                None => self.replied(ok, now),
            }
        }
    }

    /// A reply is over.
    fn replied(&mut self, ok: bool, now: Instant) {
        let heard = text(&self.reply.heard);
        let screen = self.reply.screen.take();
        if !self.reply.ours {
            // The first commands, which tmux got as arguments.
            if !ok && self.pane.is_none() {
                self.end(&heard);
            }
            return;
        }
        let Some(Question { call: number, asked, .. }) = self.replies.pop_front() else {
            return self.end("tmux session ended: it replied to nothing");
        };
        if !ok {
            let what = match asked {
                Asked::Ready => return self.end(&heard),
                // An old tmux cannot. What is typed then may not arrive.
                Asked::Leave => return,
                Asked::Type | Asked::Settle => "send-keys",
                Asked::Geometry { .. } | Asked::Screen => "capture-pane",
            };
            let error = format!("tmux {what} failed: {heard}");
            if self.work.as_ref().is_some_and(|work| work.number == number) {
                let mut result = ToolResult::failure(Outcome::ToolError, &*error);
                result.metadata.insert("session_ended".to_owned(), true.into());
                self.finish(result);
            }
            return self.end(&error);
        }
        // A call that was cancelled meanwhile does not care.
        let work = self.work.as_mut().filter(|work| work.number == number);
        match (asked, work.map(|work| &mut work.stage)) {
            (Asked::Ready, _) => match Pane::parse(&heard) {
                Some(pane) => self.pane = Some(pane),
                // tmux says nothing of a pane that it does not find, and no error: it may not be
                // there yet. Where it has gone, tmux ends.
                None if self.pane_asks < MOST_PANE_ASKS => self.ask_for_pane(now),
                None => self.end(&format!("tmux session ended: it has no pane ({heard:?})")),
            },
            (Asked::Type, Some(Stage::Typing { pace, .. })) => pace.asked = false,
            (Asked::Type, Some(Stage::Interrupting)) => {
                self.finish(cancelled());
            }
            (Asked::Settle, Some(stage @ &mut Stage::Settling(rest))) => {
                *stage = Stage::Watching { rest, since: now, last: None };
            }
            (Asked::Settle, Some(stage @ &mut Stage::Draining { rest, since, quiet })) => {
                let quiet = if std::mem::take(&mut self.printed) { 0 } else { quiet + 1 };
                if quiet >= QUIET_REPLIES || now.saturating_duration_since(since) >= DRAIN_LIMIT {
                    *stage = Stage::Waiting(rest);
                } else {
                    *stage = Stage::Draining { rest, since, quiet };
                    self.ask(SETTLE.to_owned(), Asked::Settle, now);
                }
            }
            (Asked::Geometry { entire }, _) => match lines(&heard, entire) {
                Some(lines) => {
                    self.parser.expect_lines(lines);
                    self.reply.screen = Some(Capture::new(self.settings.output_limit_chars));
                }
                None => self.end("tmux session ended: its pane is gone"),
            },
            (Asked::Screen, Some(&mut Stage::Capturing { entire })) => {
                let Some(screen) = screen else { return };
                let screen = screen.finish();
                let mut result = success(screen.text, "capture_entire", entire.into());
                if screen.omitted_bytes > 0 {
                    result.metadata.insert("omitted_bytes".to_owned(), screen.omitted_bytes.into());
                }
                self.finish(result);
            }
            _ => {}
        }
    }

    /// Goes on as far as it can. `look` looks at a pane, and gives nothing where that is not
    /// possible.
    pub(super) fn advance(&mut self, now: Instant, look: &dyn Fn(Pane) -> Option<Look>) {
        while !self.over() && self.answer.is_none() && self.step(now, look) {}
        self.check_deadline(now);
    }

    /// Does one thing; `false` when there is nothing to be done before something happens.
    fn step(&mut self, now: Instant, look: &dyn Fn(Pane) -> Option<Look>) -> bool {
        let (Some(work), Some(pane)) = (&mut self.work, self.pane) else { return false };
        if work.due.is_some_and(|due| due > now) {
            return false;
        }
        work.due = None;
        match &mut work.stage {
            Stage::Waking(_) => {
                self.wake(now);
                true
            }
            Stage::Prompting { began, since, last, .. } => {
                let seen = look(pane).filter(|look| look.waits_for_command(pane));
                let unmoved = seen.is_some() && *last == seen;
                let limit = PROMPT_LIMIT.min(work.timeout / 2);
                if (unmoved && now.saturating_duration_since(*since) >= IDLE_LOOKS.0)
                    || now.saturating_duration_since(*began) >= limit
                {
                    self.prompted = true;
                    self.wake(now);
                    return true;
                }
                if !unmoved {
                    *since = now;
                }
                let waited = now.saturating_duration_since(*began);
                let pause =
                    if seen.is_some() { IDLE_LOOKS.0 } else { waited.clamp(LOOKS.0, IDLE_LOOKS.1) };
                *last = seen;
                work.due = Some((now + pause).min(*began + limit));
                false
            }
            Stage::Typing { pace: Pace { asked: true, .. }, .. } => false,
            Stage::Typing { typing, pace, rest, .. } => {
                if typing.left() == 0 {
                    rest.typed = Some(now);
                    let (rest, block) = (*rest, rest.block);
                    work.stage = if block { Stage::Settling(rest) } else { Stage::Waiting(rest) };
                    if block {
                        self.ask(SETTLE.to_owned(), Asked::Settle, now);
                    }
                    return true;
                }
                let seen = look(pane);
                // What an earlier call typed may not have got to the kernel yet.
                let number = work.number;
                let earlier = |owed: &Question| owed.asked == Asked::Type && owed.call != number;
                let room = seen.as_ref().is_none_or(|seen| seen.unread <= MOST_UNREAD)
                    && !self.replies.iter().any(earlier);
                if typing.next_interrupts() || room {
                    rest.before = seen
                        .filter(|seen| seen.waits_for_command(pane))
                        .and_then(|seen| seen.leader.map(|leader| (leader.pid, leader.switches)));
                    pace.stuck = None;
                    pace.asked = true;
                    if let Some(chunk) = typing.next_chunk(PANE) {
                        self.ask(chunk.command, Asked::Type, now);
                    }
                    return true;
                }
                let since = *pace.stuck.get_or_insert(now);
                let stuck = now.saturating_duration_since(since);
                if stuck >= OVERTAKE_AFTER && typing.skip_to_interrupt() {
                    return true;
                }
                work.due = Some(now + stuck.clamp(LOOKS.0, LOOKS.1));
                false
            }
            Stage::Watching { rest, since, last } => {
                let typed = rest.typed.unwrap_or(now);
                let waited = now.saturating_duration_since(typed);
                // A shell that has not run since it was typed to has not got the keys yet: the
                // kernel takes its time.
                let has_run = |look: &Look| {
                    let now = look.leader.as_ref().map(|leader| (leader.pid, leader.switches));
                    rest.before.is_none() || rest.before != now
                };
                let seen = look(pane).filter(|look| look.waits_for_command(pane) && has_run(look));
                let unmoved = seen.is_some() && *last == seen;
                if unmoved && now.saturating_duration_since(*since) >= IDLE_LOOKS.0 {
                    work.stage = Stage::Draining { rest: *rest, since: now, quiet: 0 };
                    self.printed = false;
                    self.ask(SETTLE.to_owned(), Asked::Settle, now);
                    return true;
                }
                if waited >= rest.max_wait {
                    // The least wait comes before the longest.
                    if waited < rest.min_wait {
                        work.due = Some(typed + rest.min_wait);
                        return false;
                    }
                    let limit = float_text(rest.max_wait.as_secs_f64());
                    let error = format!("tmux blocked keys timed out after {limit}s");
                    self.finish(ToolResult::failure(Outcome::Timeout, error));
                    return true;
                }
                if !unmoved {
                    *since = now;
                }
                let pause =
                    if seen.is_some() { IDLE_LOOKS.0 } else { waited.clamp(LOOKS.0, IDLE_LOOKS.1) };
                *last = seen;
                work.due = Some((now + pause).min(typed + rest.max_wait));
                false
            }
            Stage::Waiting(rest) => {
                let until = rest.typed.unwrap_or(now) + rest.min_wait;
                // The wait may take all of the call's time, and is no failure then.
                let until = until.min(work.deadline);
                if now >= until {
                    let block = rest.block;
                    self.finish(success("ok".to_owned(), "blocked", block.into()));
                    return true;
                }
                work.due = Some(until);
                false
            }
            Stage::Settling(_)
            | Stage::Draining { .. }
            | Stage::Capturing { .. }
            | Stage::Interrupting => false,
        }
    }

    /// The terminal is there: the call begins.
    fn wake(&mut self, now: Instant) {
        let Some(Work { stage, .. }) = &mut self.work else { return };
        let action = match stage {
            Stage::Waking(action) if !self.prompted => {
                let action = action.clone();
                *stage = Stage::Prompting { action, began: now, since: now, last: None };
                return;
            }
            Stage::Waking(action) | Stage::Prompting { action, .. } => action,
            _ => return,
        };
        match action {
            Action::Start => {
                self.recording.rewind();
                let Size { width, height } = self.settings.size;
                let mut result = success("started".to_owned(), "pane_width", width.into());
                for (name, value) in [
                    ("pane_height", json!(height)),
                    ("socket", json!("tmux.sock")),
                    ("session", json!("s")),
                    ("recording", json!(RECORDING)),
                ] {
                    result.metadata.insert(name.to_owned(), value);
                }
                self.finish(result);
            }
            Action::SendKeys(SendKeys { keys, block, min_wait, max_wait }) => {
                let typing = Typing::new(std::mem::take(keys));
                let (block, min_wait, max_wait) = (*block, *min_wait, *max_wait);
                let rest = Rest { block, min_wait, max_wait, typed: None, before: None };
                let (total, pace) = (typing.left(), Pace { asked: false, stuck: None });
                *stage = Stage::Typing { typing, total, pace, rest };
                self.ask(format!("copy-mode -q -t %{PANE}"), Asked::Leave, now);
            }
            &mut Action::Capture { entire } => {
                *stage = Stage::Capturing { entire };
                // One line, which tmux carries out in one go: the numbers fit the screen.
                let history = if entire { " -S - -E -" } else { "" };
                self.ask(
                    format!(
                        "display-message -p -t %{PANE} '#{{history_size}} #{{pane_height}}' ; \
                         capture-pane -p -t %{PANE}{history}"
                    ),
                    Asked::Geometry { entire },
                    now,
                );
                self.owe(Asked::Screen, now);
            }
            &mut Action::Stream { reset, max_bytes } => {
                if reset {
                    self.recording.rewind();
                }
                let part = self.recording.read(max_bytes);
                let mut result = success(part.text, "stream", true.into());
                result.metadata.insert("offset".to_owned(), part.offset.into());
                result.metadata.insert("recording".to_owned(), RECORDING.into());
                if part.dropped > 0 {
                    result.metadata.insert("dropped_bytes".to_owned(), part.dropped.into());
                }
                self.finish(result);
            }
        }
    }

    /// The call's time may be over.
    fn check_deadline(&mut self, now: Instant) {
        let Some(work) = self.work.as_ref().filter(|work| work.deadline <= now) else { return };
        let limit = float_text(work.timeout.as_secs_f64());
        let silent = match &work.stage {
            Stage::Typing { typing, total, pace: Pace { asked: false, .. }, .. } => {
                let typed = total - typing.left();
                let error = format!(
                    "tmux send_keys timed out after {limit}s: {typed} of {total} bytes were typed; the \
                     program in the terminal does not read the rest"
                );
                return self.finish(ToolResult::failure(Outcome::Timeout, error));
            }
            // A moment later, and it would have ended by itself.
            Stage::Watching { rest, .. } => {
                let limit = float_text(rest.max_wait.as_secs_f64());
                let error = format!("tmux blocked keys timed out after {limit}s");
                return self.finish(ToolResult::failure(Outcome::Timeout, error));
            }
            Stage::Draining { rest, .. } | Stage::Waiting(rest) => {
                let block = rest.block;
                return self.finish(success("ok".to_owned(), "blocked", block.into()));
            }
            Stage::Interrupting => cancelled(),
            Stage::Waking(_) => {
                let error = format!("{ENSURE}: tmux was not ready after {limit}s");
                ToolResult::failure(Outcome::Timeout, error)
            }
            // It may yet answer: the next call finds the terminal as it is then.
            stage if !self.is_deaf(now) => {
                let error = match stage {
                    Stage::Typing { typing, total, .. } => {
                        let typed = total - typing.left();
                        format!(
                            "tmux send_keys timed out after {limit}s: {typed} of {total} bytes were \
                             typed, and tmux is still at it"
                        )
                    }
                    Stage::Settling(_) => format!("tmux blocked keys timed out after {limit}s"),
                    _ => format!("tmux did not answer within {limit}s"),
                };
                return self.finish(ToolResult::failure(Outcome::Timeout, error));
            }
            _ => {
                let error = format!("tmux did not answer within {limit}s; its session is ended");
                ToolResult::failure(Outcome::Timeout, error)
            }
        };
        self.finish(silent);
        self.end("tmux session ended: it did not answer");
    }

    /// The call is to end early: a program that was typed to gets C-c.
    pub(super) fn cancel(&mut self, now: Instant) {
        let Some(work) = &mut self.work else { return };
        match work.stage {
            Stage::Waking(_) | Stage::Prompting { .. } | Stage::Capturing { .. } => {
                self.finish(cancelled());
            }
            Stage::Interrupting => {}
            _ => {
                // Under a number of its own, which earlier replies do not have.
                self.calls += 1;
                work.number = self.calls;
                (work.stage, work.due) = (Stage::Interrupting, None);
                work.deadline = work.deadline.min(now + INTERRUPT_LIMIT);
                if let Some(key) = Typing::new(Keys::interrupt()).next_chunk(PANE) {
                    self.ask(key.command, Asked::Type, now);
                }
            }
        }
    }

    /// Everything is over: the answer to the call that it still has.
    pub(super) fn gone(mut self, end: Gone) -> Option<ToolResult> {
        let work = self.work.take()?;
        let (outcome, why) = match (self.over, end) {
            // A reset wanted the slot to be empty.
            (_, Gone::Killed) => (Outcome::Cancelled, "tmux session was ended".to_owned()),
            (Some(why), Gone::Ended) => (Outcome::ToolError, why),
            (None, Gone::Ended) => (Outcome::ToolError, "tmux session ended".to_owned()),
            (_, Gone::Exceeded(exceeded)) => {
                (exceeded.outcome(), format!("tmux session {}", exceeded.what()))
            }
            (_, Gone::NeverBegan(why)) => (Outcome::BackendFailed, why),
        };
        // What was typed has ended, and more than that.
        let typed = match &work.stage {
            Stage::Settling(rest)
            | Stage::Watching { rest, .. }
            | Stage::Draining { rest, .. }
            | Stage::Waiting(rest) => Some(rest),
            Stage::Typing { typing, rest, .. } => (typing.left() == 0).then_some(rest),
            _ => None,
        };
        let mut result = match (&work.stage, typed) {
            (Stage::Interrupting, _) => cancelled(),
            (_, Some(rest)) if outcome == Outcome::ToolError => {
                success("ok".to_owned(), "blocked", rest.block.into())
            }
            (Stage::Waking(_), _) => ToolResult::failure(outcome, format!("{ENSURE}: {why}")),
            _ => ToolResult::failure(outcome, why),
        };
        if matches!(work.stage, Stage::Waking(_) | Stage::Prompting { .. }) {
            result.may_have_executed = false;
        }
        if work.first && matches!(work.stage, Stage::Prompting { .. }) {
            result.metadata.insert("session_started".to_owned(), true.into());
        }
        result.metadata.insert("session_ended".to_owned(), true.into());
        Some(result)
    }

    fn ask(&mut self, command: String, asked: Asked, now: Instant) {
        self.commands.extend_from_slice(command.as_bytes());
        self.commands.push(b'\n');
        self.owe(asked, now);
    }

    /// tmux will reply to this.
    fn owe(&mut self, asked: Asked, now: Instant) {
        self.replies.push_back(Question { call: self.calls, asked, since: now });
    }

    /// Whether tmux has owed a reply for so long that it will not come any more.
    fn is_deaf(&self, now: Instant) -> bool {
        let oldest = self.replies.front();
        oldest.is_some_and(|oldest| now.saturating_duration_since(oldest.since) >= PATIENCE)
    }

    fn finish(&mut self, mut result: ToolResult) {
        if let Some(Work { first: true, .. }) = &self.work {
            result.metadata.insert("session_started".to_owned(), true.into());
        }
        self.work = None;
        self.answer = Some(result);
    }
}

/// The name that the recording has on the wire. There is no such file.
const RECORDING: &str = ".asciinema.cast";
/// How the answer to a call begins that needs a terminal, and cannot have it.
pub(super) const ENSURE: &str = "Failed to ensure tmux session";
/// How a terminal came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Gone {
    /// It was killed, for a reason that has nothing to do with it.
    Killed,
    /// By itself, by what runs in it, or because it was [over](Driver::over).
    Ended,
    /// It exceeded a limit of its slot.
    Exceeded(Exceeded),
    /// It never was: why.
    NeverBegan(String),
}

fn cancelled() -> ToolResult {
    ToolResult::failure(Outcome::Cancelled, "tmux call was cancelled")
}

/// The answer to a call that ends the terminal.
pub(crate) fn stop_result() -> ToolResult {
    let mut result = ToolResult::ok("stopped");
    result.metadata.insert("stateful".to_owned(), true.into());
    result
}

fn success(output: String, name: &str, value: serde_json::Value) -> ToolResult {
    let mut metadata = JsonObject::new();
    metadata.insert("stateful".to_owned(), true.into());
    metadata.insert(name.to_owned(), value);
    ToolResult { metadata, ..ToolResult::ok(output) }
}

/// How many lines a screen has of which tmux says `history height`.
fn lines(text: &str, entire: bool) -> Option<usize> {
    let (history, height) = text.split_once(' ')?;
    let history: usize = history.parse().ok()?;
    let height: usize = height.parse().ok()?;
    let lines = if entire { history.checked_add(height)? } else { height };
    (1..=MOST_LINES).contains(&lines).then_some(lines)
}

/// What a program said, as one line.
fn text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(HEARD)]);
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests;
