//! The shell of `bash_stateful`: the state machine of one session.
//!
//! Its states: *starting* until bash has said its first word; then *idle*, or *busy* with a call.
//! A busy shell whose call's time is up, or that is to be cancelled, is *interrupted* as by
//! Ctrl-C. If it then says within [`GRACE`] that the call has ended, the session goes on; else it
//! is killed. However it ends, its call is answered when the end is known: by the shell's word, or
//! when nothing of its sandbox is left; and when its complete output is written, if it is kept
//! (see [`streams`](super::streams)).

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::kept::{Kept, KeptEnd, Plan};
use super::script::{self, Directory, KILLED, SYNTAX_ERROR, Status, StatusReader};
use super::seat::{Common, Context, Place, Program};
use super::streams::{STDERR, STDOUT, Streams, WRITTEN};
use super::watch::{Kind, Source, Watch};
use crate::sandbox::output::Captured;
use crate::sandbox::shell::Shell as ShellProgram;
use crate::sandbox::spawn;
use crate::sandbox::spool::Keep;
use crate::sandbox::supervisor::{End, Finished};
use crate::sandbox::workspace::{SESSIONS, Workspace};
use crate::tool::OutputOrder;

/// How long a shell may take from its start to its first word.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long a shell may take to come back from an interrupt.
const GRACE: Duration = Duration::from_secs(1);
/// How often it is interrupted in the first half of that time: programs may want to clean up.
const INTERRUPT_EVERY: Duration = Duration::from_millis(250);
/// And in the second half: bash goes on with its loop where it is interrupted while a child of it
/// ends.
const HAMMER_EVERY: Duration = Duration::from_millis(40);
/// For how long a call's first line may be on its own.
const SECOND_LINE_AFTER: Duration = Duration::from_millis(3);
/// Longer timeouts are taken for this, so that no deadline overflows the clock.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);
/// No more than this is read from the FIFO beyond what each call may need: some hundred bytes are
/// usual.
const STATUS_LIMIT: usize = 1 << 20;
const STATUS_OF_A_CALL: usize = 4096;

const STATUS: Source = Source::File(3);

/// What became of the session in a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Session {
    /// The call began it, and it goes on.
    Started,
    /// It goes on.
    Kept,
    /// It ended; the next call begins another one.
    Ended,
}

/// What is known of a call after its end.
#[derive(Debug)]
pub(crate) struct ShellEnded {
    /// As of any command. `all_dead` speaks of the session, where that has ended.
    pub(crate) finished: Finished,
    /// What became of the session.
    pub(crate) session: Session,
    /// Whether the call began the session in place of another one, whose end no call was told.
    pub(crate) replaces_a_lost_one: bool,
    /// What was printed between the session's latest call and this one.
    pub(crate) background: [Captured; 2],
}

/// What a call has the shell run.
#[derive(Debug, Default)]
pub(crate) struct ShellCommand {
    pub(crate) text: String,
    /// Whether what it writes as errors goes where its output goes.
    pub(crate) order: OutputOrder,
}

/// One call.
pub(super) struct ShellCall {
    number: u64,
    command: ShellCommand,
    timeout: Duration,
    answer: Answer,
}

impl ShellCall {
    /// A call whose end `on_end` is told.
    pub(super) fn new(
        number: u64,
        command: ShellCommand,
        timeout: Duration,
        on_end: Box<dyn FnOnce(ShellEnded) + Send>,
    ) -> Self {
        let timeout = timeout.min(LONGEST_TIMEOUT);
        Self { number, command, timeout, answer: Answer(Some(on_end)) }
    }
}

/// The obligation to call `on_end`. Dropped unanswered (which only a panic of this module's own
/// can bring about) it answers [`End::Lost`].
struct Answer(Option<Box<dyn FnOnce(ShellEnded) + Send>>);

impl Answer {
    fn give(mut self, ended: ShellEnded) {
        self.call(ended);
    }

    fn call(&mut self, ended: ShellEnded) {
        if let Some(on_end) = self.0.take()
            && catch_unwind(AssertUnwindSafe(|| on_end(ended))).is_err()
        {
            log::error!("the receiver of a call's end has panicked");
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let mut ended = nothing_ran(End::Lost("the session has failed".to_owned()));
        ended.finished.all_dead = false;
        self.call(ended);
    }
}

fn nothing_ran(end: End) -> ShellEnded {
    let finished = Finished {
        end,
        stdout: Captured::default(),
        stderr: Captured::default(),
        wall: Duration::ZERO,
        sandboxed: false,
        network_isolated: false,
        all_dead: true,
        background: Default::default(),
        limits_reached: Vec::new(),
    };
    ShellEnded {
        finished,
        session: Session::Ended,
        replaces_a_lost_one: false,
        background: Default::default(),
    }
}

/// Why a call is to end before its command has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    TimedOut,
    Cancelled,
}

impl Reason {
    fn end(self) -> End {
        match self {
            Self::TimedOut => End::TimedOut,
            Self::Cancelled => End::Cancelled,
        }
    }
}

/// The call that a shell has.
struct Current {
    call: ShellCall,
    /// Whether the session was begun for it.
    first: bool,
    /// In place of another one that was lost.
    replaces_a_lost_one: bool,
    /// When the shell was told of it.
    began: Option<Instant>,
    word: String,
    /// When it is to be told the second line, unless it was.
    second_line: Option<Instant>,
    deadline: Option<Instant>,
    /// It was interrupted, and when waiting for that is given up.
    interrupted: Option<(Reason, Instant)>,
    /// It was not begun, or could not be, and the sandbox was killed.
    given_up: Option<End>,
    /// It has ended, so far without what it printed. That is not told before the shell has spoken
    /// once more, if it is to, and before all is written.
    ended: Option<Finished>,
    /// It has ended, and the shell can go on.
    over: bool,
    background: [Captured; 2],
}

/// A shell that lives on between calls.
pub(super) struct Shell {
    sandboxed: bool,
    network_isolated: bool,
    /// Where commands find its directory.
    shown: PathBuf,
    directory: Directory,
    /// Where bash gets its lines from. Non-blocking.
    lines: Option<OwnedFd>,
    streams: Streams,
    workspace: Arc<Workspace>,
    /// How much of a call's complete output is kept.
    output_file_bytes: u64,
    status: StatusReader,
    status_bytes: usize,
    /// What it says when it is ready, until it has.
    first_word: Option<String>,
    start_deadline: Option<Instant>,
    /// The end of the latest command.
    last: Status,
    current: Option<Current>,
    calls: u64,
    /// The slot had another one before, whose end no call was told.
    replaces_a_lost_one: bool,
    /// Since when nothing of the sandbox is left.
    gone_since: Option<Instant>,
}

impl Program for Shell {
    type Call = ShellCall;
    const KIND: Kind = Kind::Shell;
    const MOST: usize = 8;

    fn start(
        place: &Place,
        _call: &ShellCall,
        common: &Common,
        watch: &Watch<'_>,
    ) -> io::Result<(Self, Kept)> {
        let host = &common.host;
        let sandboxed = host.isolation.is_sandboxed();
        let argv = script::ARGV.map(OsString::from).to_vec();
        let found = match place.workspace.image() {
            Some(image) => image.bash().map(|bash| (&*bash.path, bash.arguments(argv))),
            None if host.shell == ShellProgram::Bash => Some((Path::new(host.shell.path()), argv)),
            None => None,
        };
        let (program, argv) = found.ok_or_else(|| {
            io::Error::other(
                "there is no bash, which a kept shell needs, neither here nor in an image",
            )
        })?;
        if !place.network && !host.isolation.can_cut_network() {
            return Err(io::Error::other("the network cannot be taken away on this machine"));
        }
        let path = place.workspace.sessions().join(&*place.session);
        let shown = match sandboxed {
            true => Path::new(SESSIONS).join(&*place.session),
            false => path.clone(),
        };
        if !script::is_speakable(&shown) {
            return Err(io::Error::other("the data directory's path cannot be used by a shell"));
        }
        let directory = Directory::create(path, &shown, place.workspace.owner())?;
        let (lines_reader, lines) = spawn::pipe()?;
        rustix::io::ioctl_fionbio(&lines, true)?;
        let (streams, [stdout_writer, stderr_writer]) =
            Streams::new(common.output_limit_chars, watch)?;
        if let Some(user) = place.workspace.owner() {
            // Of a pipe, `/dev/stderr` can be opened by its owner only.
            for pipe in [&stdout_writer, &stderr_writer] {
                rustix::fs::fchown(pipe, Some(user.uid()), Some(user.gid()))?;
            }
        }
        let plan = Plan {
            workspace: &place.workspace,
            network: place.network,
            program,
            argv: &argv,
            variables: &[],
            stdio: [lines_reader.as_fd(), stdout_writer.as_fd(), stderr_writer.as_fd()],
        };
        watch.add(directory.status.as_fd(), STATUS)?;
        let kept = Kept::start(&plan, common, watch)?;
        let shell = Self {
            sandboxed,
            network_isolated: sandboxed && !place.network,
            shown,
            directory,
            lines: Some(lines),
            streams,
            workspace: place.workspace.clone(),
            output_file_bytes: common.output_file_bytes,
            status: StatusReader::default(),
            status_bytes: 0,
            first_word: Some(script::new_word()),
            start_deadline: None,
            last: Status::default(),
            current: None,
            calls: 0,
            replaces_a_lost_one: false,
            gone_since: None,
        };
        Ok((shell, kept))
    }

    fn number(call: &ShellCall) -> u64 {
        call.number
    }

    fn refuse(call: ShellCall, why: &str) {
        call.answer.give(nothing_ran(End::SetupFailed(why.to_owned())));
    }

    fn refuse_one_more(call: ShellCall, names: &[&str]) {
        let why = format!(
            "there are {} sessions, which is as many as there may be: {}; use one of them, or end one \
             by running exit in it",
            names.len(),
            names.join(", ")
        );
        call.answer.give(nothing_ran(End::Refused(why)));
    }

    fn take(&mut self, call: ShellCall, cx: &mut Context<'_>) {
        self.current = Some(Current {
            call,
            first: self.calls == 0,
            replaces_a_lost_one: std::mem::take(&mut self.replaces_a_lost_one),
            began: None,
            word: script::new_word(),
            second_line: None,
            deadline: None,
            interrupted: None,
            given_up: None,
            ended: None,
            over: false,
            background: Default::default(),
        });
        self.calls += 1;
        if self.first_word.is_none() {
            self.begin(cx);
        }
    }

    fn current(&self) -> Option<u64> {
        self.current.as_ref().map(|current| current.call.number)
    }

    fn replaces_a_lost_one(&mut self) {
        self.replaces_a_lost_one = true;
    }

    fn cancel(&mut self, cx: &mut Context<'_>) {
        let Some(current) = &mut self.current else { return };
        if current.over {
            // It has ended by itself.
        } else if current.began.is_some() {
            self.interrupt(Reason::Cancelled, cx);
        } else {
            current.given_up = Some(End::Cancelled);
            cx.kept.kill(&cx.watch, cx.now);
        }
    }

    fn on_released(&mut self, cx: &mut Context<'_>) {
        self.start_deadline = Some(cx.now + START_LIMIT);
        if let Some(word) = &self.first_word {
            let line =
                script::first_line(&self.shown, word, cx.host.open_files_of(&self.workspace));
            self.say(&line, cx);
        }
    }

    fn on_file(&mut self, file: u8, cx: &mut Context<'_>) {
        match Source::File(file) {
            source @ (STDOUT | STDERR) => self.streams.on_event(source, &cx.watch, cx.buffer),
            WRITTEN => {
                self.streams.on_event(WRITTEN, &cx.watch, cx.buffer);
                self.answer_if_settled(cx);
            }
            _ => self.read_status(cx),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let over = self.current.as_ref().is_some_and(|current| current.over);
        if over || self.gone_since.is_some() {
            return self.streams.deadline();
        }
        match self.first_word {
            Some(_) => self.start_deadline,
            None => self
                .current
                .as_ref()
                .and_then(|current| current.second_line.into_iter().chain(current.deadline).min()),
        }
    }

    fn on_deadline(&mut self, cx: &mut Context<'_>) {
        let over = self.current.as_ref().is_some_and(|current| current.over);
        if over || self.gone_since.is_some() {
            return self.answer_if_settled(cx);
        }
        if self.first_word.is_some() {
            self.start_deadline = None;
            if let Some(current) = &mut self.current {
                let text = "the shell was not ready in time".to_owned();
                current.given_up = Some(End::SetupFailed(text));
            }
            return cx.kept.kill(&cx.watch, cx.now);
        }
        let deadline = self.current.as_ref().and_then(|current| current.deadline);
        if deadline.is_some_and(|due| due <= cx.now) {
            self.interrupt(Reason::TimedOut, cx);
        } else {
            self.say_second_line(cx);
        }
    }

    fn is_settled(&mut self, cx: &mut Context<'_>) -> bool {
        if self.gone_since.is_none() {
            self.gone_since = Some(cx.now);
            // What it says now is not asked for any more.
            cx.watch.remove(self.directory.status.as_fd());
        }
        // No call waits for what is printed between two calls.
        self.current.is_none() || self.streams.drain(&cx.watch, cx.buffer, cx.now)
    }

    fn gone(mut self, cx: &mut Context<'_>) {
        let [stdout, stderr] = self.streams.close(&cx.watch);
        let Some(mut current) = self.current.take() else { return };
        let kept_end = cx.kept.end();
        if let Some(finished) = current.ended.take() {
            drop(self.directory);
            let finished = Finished { all_dead: cx.kept.all_dead(), ..finished };
            let printed = current.without_interrupt([stdout, stderr]);
            return current.answer(finished, printed, Session::Ended);
        }
        let end = match (current.given_up.take(), current.interrupted) {
            (Some(end), _) => end,
            (None, Some((reason, _))) => reason.end(),
            (None, None) => end_of_shell(kept_end, current.began.is_some()),
        };
        let end_of_all = self.gone_since.unwrap_or(cx.now);
        let wall = current.began.map_or(Duration::ZERO, |began| end_of_all - began);
        let began = current.began.is_some();
        let finished = Finished {
            end,
            wall,
            stdout: Captured::default(),
            stderr: Captured::default(),
            sandboxed: self.sandboxed,
            network_isolated: self.network_isolated,
            all_dead: cx.kept.all_dead(),
            background: Default::default(),
            limits_reached: Vec::new(),
        };
        // Before the answer: its caller may look.
        drop(self.directory);
        // Before its first word bash only complains of the missing terminal.
        let printed = if began { [stdout, stderr] } else { Default::default() };
        current.answer(finished, printed, Session::Ended);
    }
}

impl Current {
    /// What the call printed, without what bash adds at an interrupt: it moves on to a new line, as
    /// if somebody had typed Ctrl-C, once as a rule, and twice where a child was interrupted, too.
    fn without_interrupt(&self, printed: [Captured; 2]) -> [Captured; 2] {
        let [stdout, mut stderr] = printed;
        // Where there is a file, it has them.
        if self.interrupted.is_some() && stderr.omitted_bytes == 0 {
            for _ in 0..2 {
                if stderr.text.ends_with('\n') {
                    stderr.text.pop();
                    stderr.bytes -= 1;
                }
            }
        }
        [stdout, stderr]
    }

    fn answer(self, finished: Finished, printed: [Captured; 2], session: Session) {
        let Self { background, replaces_a_lost_one, .. } = self;
        let [stdout, stderr] = printed;
        let finished = Finished { stdout, stderr, ..finished };
        let ended = ShellEnded { finished, session, replaces_a_lost_one, background };
        self.call.answer.give(ended);
    }
}

impl Shell {
    /// Tells the ready shell of its call.
    fn begin(&mut self, cx: &mut Context<'_>) {
        let spool = cx.host.spool.clone().filter(|_| self.output_file_bytes > 0);
        let (bytes, sandboxed) = (self.output_file_bytes, cx.host.isolation.is_sandboxed());
        let keep = spool.map(|spool| Keep::new(spool, self.workspace.clone(), bytes, sandboxed));
        let background = self.streams.begin_call(keep, &cx.watch, cx.buffer);
        self.status_bytes = self.status_bytes.saturating_sub(STATUS_OF_A_CALL);
        let Some(current) = &mut self.current else { return };
        // Not needed any more afterwards.
        let ShellCommand { text, order } = std::mem::take(&mut current.call.command);
        let text = script::command_file(&text, &self.last);
        let line = script::first_line_of_call(&self.shown, &current.word, self.last.code, order);
        if !current.first {
            current.background = background;
        }
        if let Err(error) = self.directory.put_command(&text) {
            current.given_up = Some(End::SetupFailed(format!("cannot hand it over: {error}")));
            return cx.kept.kill(&cx.watch, cx.now);
        }
        let now = Instant::now();
        current.began = Some(now);
        current.second_line = Some(now + SECOND_LINE_AFTER);
        self.say(&line, cx);
        if let Some(current) = &mut self.current {
            // Its time begins when the shell was told: this process may have been stopped before.
            current.deadline = Some(Instant::now() + current.call.timeout);
        }
    }

    /// In case bash abandons the first one.
    fn say_second_line(&mut self, cx: &mut Context<'_>) {
        if let Some(current) = &mut self.current
            && current.second_line.take().is_some()
        {
            let line = script::second_line(&self.shown, &current.word);
            self.say(&line, cx);
        }
    }

    /// Writes lines for bash, which are short.
    fn say(&mut self, lines: &str, cx: &mut Context<'_>) {
        let written = match &self.lines {
            Some(pipe) => rustix::io::retry_on_intr(|| rustix::io::write(pipe, lines.as_bytes())),
            None => return,
        };
        match written {
            Ok(count) if count == lines.len() => {}
            // Nobody reads any more: it has ended, or has become another program.
            Err(Errno::PIPE) => self.lines = None,
            // It has not read for a long time what stands there already.
            _ => {
                log::debug!("a shell does not read its lines: {written:?}");
                self.kill_for_cause(cx);
            }
        }
    }

    /// Ends a session that was tampered with from inside: as if somebody there had killed it.
    fn kill_for_cause(&mut self, cx: &mut Context<'_>) {
        if let Some(current) = &mut self.current
            && current.interrupted.is_none()
        {
            current.given_up.get_or_insert_with(|| match current.began {
                Some(_) => End::Exited(KILLED),
                None => End::SetupFailed("the shell was tampered with".to_owned()),
            });
        }
        cx.kept.kill(&cx.watch, cx.now);
    }

    /// Reads what the shell says of its calls.
    fn read_status(&mut self, cx: &mut Context<'_>) {
        let mut bytes = [0; 4096];
        let count = self.directory.read_status(&mut bytes);
        self.status_bytes += count;
        let (first, current) = (&self.first_word, &self.current);
        let is_word = |word: &str| {
            first.as_deref() == Some(word) || current.as_ref().is_some_and(|call| call.word == word)
        };
        for status in self.status.push(&bytes[..count], is_word) {
            self.on_status(status, cx);
        }
        if self.status_bytes > STATUS_LIMIT {
            // Nothing that bash does by itself.
            log::debug!("a session is ended: it floods its status");
            self.kill_for_cause(cx);
        }
    }

    fn on_status(&mut self, status: Status, cx: &mut Context<'_>) {
        if self.first_word.as_ref() == Some(&status.word) {
            self.first_word = None;
            self.start_deadline = None;
            cx.kept.find_main();
            return self.begin(cx);
        }
        let this_call = |current: &Current| {
            current.began.is_some() && !current.over && current.word == status.word
        };
        if self.current.as_ref().is_some_and(this_call)
            && let Some(current) = self.current.take()
        {
            self.complete(current, status, cx);
        }
    }

    /// The shell has said that the call has ended.
    fn complete(&mut self, mut current: Current, status: Status, cx: &mut Context<'_>) {
        if current.ended.is_some() {
            return self.answer_when_settled(current, cx);
        }
        self.streams.end_call(&cx.watch, cx.buffer, cx.now);
        let end = match current.interrupted {
            Some((reason, _)) => reason.end(),
            None => End::Exited(status.code),
        };
        current.ended = Some(Finished {
            end,
            stdout: Captured::default(),
            stderr: Captured::default(),
            wall: current.began.map_or(Duration::ZERO, |began| cx.now - began),
            sandboxed: self.sandboxed,
            network_isolated: self.network_isolated,
            all_dead: true,
            background: Default::default(),
            limits_reached: Vec::new(),
        });
        let code = status.code;
        self.last = status;
        if code == SYNTAX_ERROR || current.interrupted.is_some() {
            return self.look_after(current, cx);
        }
        self.answer_when_settled(current, cx);
    }

    /// The call has ended, and the shell can go on.
    fn answer_when_settled(&mut self, mut current: Current, cx: &mut Context<'_>) {
        current.over = true;
        self.current = Some(current);
        self.answer_if_settled(cx);
    }

    /// Answers the call if it has ended and all that it printed is written, or was given up.
    fn answer_if_settled(&mut self, cx: &mut Context<'_>) {
        let ended = self.current.as_ref().is_some_and(|current| current.ended.is_some());
        // Also while the shell is still asked whether it can go on: it must not take longer for
        // that.
        if !ended || self.gone_since.is_some() || !self.streams.settle(&cx.watch, cx.now) {
            return;
        }
        if let Some(mut current) = self.current.take_if(|current| current.over)
            && let Some(finished) = current.ended.take()
        {
            let printed = current.without_interrupt(self.streams.finish_call(&cx.watch));
            let session = if current.first { Session::Started } else { Session::Kept };
            current.answer(finished, printed, session);
        }
    }

    /// Sees whether the shell can go on, before its call is answered.
    ///
    /// - After an interrupt bash may still have one to deal with, and would drop what it reads
    ///   next. It may also have missed that it has started a child, and will wait for it.
    /// - After a syntax error (or what may be one) it may be about to die: bash 5.2 damages its own
    ///   memory at an unterminated `$(`. That is for this call to tell, and not for the next one to
    ///   suffer.
    fn look_after(&mut self, mut current: Current, cx: &mut Context<'_>) {
        // What it printed is written meanwhile.
        self.streams.settle(&cx.watch, cx.now);
        if let Some((_, give_up)) = &mut current.interrupted {
            *give_up = cx.now + GRACE;
            self.current = Some(current);
            return self.ping(cx);
        }
        current.word = script::new_word();
        current.deadline = Some(cx.now + GRACE);
        current.second_line = Some(cx.now);
        let order = OutputOrder::Separate;
        let line = script::first_line_of_call(&self.shown, &current.word, SYNTAX_ERROR, order);
        self.current = Some(current);
        match self.directory.put_command(b"\n") {
            Ok(()) => {
                self.say(&line, cx);
                self.say_second_line(cx);
            }
            Err(_) => cx.kept.kill(&cx.watch, cx.now),
        }
    }

    /// Asks an interrupted shell for a new word: an answer to an earlier question does not count.
    fn ping(&mut self, cx: &mut Context<'_>) {
        let Some(current) = &mut self.current else { return };
        current.word = script::new_word();
        current.deadline = Some(cx.now + INTERRUPT_EVERY);
        let lines = script::ping_lines(&self.shown, &current.word);
        self.say(&lines, cx);
    }

    /// Ends the call as Ctrl-C does, or by force where that has not helped in time.
    fn interrupt(&mut self, reason: Reason, cx: &mut Context<'_>) {
        self.say_second_line(cx);
        let Some(current) = &mut self.current else { return };
        let ended = current.ended.is_some();
        if ended && current.deadline.is_some_and(|due| cx.now < due) {
            return;
        }
        let give_up = match current.interrupted {
            Some((_, give_up)) => give_up,
            // The shell has not got over a syntax error.
            None if ended => cx.now,
            None => current.interrupted.insert((reason, cx.now + GRACE)).1,
        };
        if cx.now >= give_up || !cx.kept.interrupt() {
            current.deadline = None;
            return cx.kept.kill(&cx.watch, cx.now);
        }
        if ended {
            return self.ping(cx);
        }
        let left = give_up - cx.now;
        let pause = if left > GRACE / 2 { INTERRUPT_EVERY } else { HAMMER_EVERY };
        current.deadline = Some(cx.now + pause.min(left));
        let lines = script::interrupt_lines(&self.shown, &current.word);
        self.say(&lines, cx);
    }
}

/// How a call ended whose shell has ended by itself.
fn end_of_shell(end: KeptEnd, began: bool) -> End {
    match end {
        KeptEnd::Exited(code) if began => End::Exited(code),
        KeptEnd::Signaled(signal) if began => End::Signaled(signal),
        KeptEnd::Exited(_) | KeptEnd::Signaled(_) => {
            End::SetupFailed("the shell ended before it was ready".to_owned())
        }
        KeptEnd::Killed => End::Cancelled,
        KeptEnd::Exceeded(exceeded) => End::Exceeded(exceeded),
        KeptEnd::SetupFailed(text) => End::SetupFailed(text),
        KeptEnd::Lost(text) => End::Lost(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_that_ends_by_itself_ends_its_call() {
        assert_eq!(end_of_shell(KeptEnd::Exited(3), true), End::Exited(3));
        assert_eq!(end_of_shell(KeptEnd::Signaled(9), true), End::Signaled(9));
        assert!(matches!(end_of_shell(KeptEnd::Exited(0), false), End::SetupFailed(_)));
        assert_eq!(end_of_shell(KeptEnd::Killed, true), End::Cancelled);
        let lost = End::Lost("x".to_owned());
        assert_eq!(end_of_shell(KeptEnd::Lost("x".to_owned()), true), lost);
    }

    #[test]
    fn a_call_that_is_dropped_is_answered_as_lost() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let on_end = Box::new(move |ended| sender.send(ended).unwrap());
        drop(ShellCall::new(0, ShellCommand::default(), Duration::MAX, on_end));
        let ended: ShellEnded = receiver.recv().unwrap();
        assert!(matches!(ended.finished.end, End::Lost(_)) && !ended.finished.all_dead);
    }
}
