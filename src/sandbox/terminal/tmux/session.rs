//! A terminal's processes and pipes: tmux's server and client in a kept sandbox, the [`Driver`]
//! that speaks with them, and the eyes that it is lent.
//!
//! The sandbox's program is the client, which ends when its server does, and then everything ends.
//! Both standard streams are pipes; there is no other way in or out, and no process is started for
//! a call.
//!
//! # Floods
//! What a pane prints is read all the time, so that nothing in it is ever held up, but no faster
//! than
//! [`READ_PER_SLICE`]: the thread is there for all sessions. tmux, which finds the pipe full, then reads
//! no more from the pane, and its program waits.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::arguments::{Act, Size};
use super::driver::{Driver, ENSURE, Gone, Settings};
use super::look::Root;
use crate::sandbox::limits::Exceeded;
use crate::sandbox::spawn;
use crate::sandbox::terminal::kept::{Kept, KeptEnd, Phase, Plan};
use crate::sandbox::terminal::seat::{Common, Context, Place, Program};
use crate::sandbox::terminal::watch::{Kind, Source, Watch};
use crate::sandbox::toolbox;
use crate::tool::{Outcome, ToolResult};

/// The time slices of the reading, and how much is read in each: some 12 MB/s.
const SLICE: Duration = Duration::from_millis(20);
const READ_PER_SLICE: usize = 256 * 1024;
/// Longer timeouts are taken for this, so that no deadline overflows the clock.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);
/// How much is read when everything is over: what a pipe holds.
const LAST_WORDS: usize = 1 << 20;

/// How many lines that have scrolled away are kept.
const HISTORY: &str = "20000";
/// Where tmux listens in its sandbox: in the machine's own file system, which is not counted among
/// the slot's files.
const SOCKET: &str = "/run/tmux.sock";

const OUTPUT: Source = Source::File(0);

/// The kind of terminal that every image's tmux knows.
const OF_IMAGES: &str = "screen";

/// The tmux of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tmux {
    /// Where it is, inside sandboxes too.
    program: PathBuf,
    /// The type of terminal that its panes are.
    term: &'static str,
}

impl Tmux {
    /// Looks for it in these directories, divided by colons, which sandboxes have too. Blocks on a
    /// few file system calls.
    pub(crate) fn detect(path: &str) -> Option<Self> {
        let usable = |path: &PathBuf| {
            rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file()
        };
        let program = path.split(':').map(|directory| Path::new(directory).join("tmux"));
        let described = |term: &&str| {
            ["/etc/terminfo", "/lib/terminfo", "/usr/lib/terminfo", "/usr/share/terminfo"]
                .iter()
                .any(|base| Path::new(base).join(&term[..1]).join(term).exists())
        };
        let terms = ["tmux-256color", "screen-256color"];
        let term = terms.into_iter().find(|term| described(term)).unwrap_or("screen");
        Some(Self { program: program.into_iter().find(usable)?, term })
    }
}

/// What is known of a call after its end.
#[derive(Debug)]
pub(crate) struct TmuxEnded {
    /// Its result.
    pub(crate) result: ToolResult,
    /// Whether the end of every process was seen, where the terminal has ended; else `true`.
    pub(crate) all_dead: bool,
}

/// One call.
pub(in crate::sandbox::terminal) struct TmuxCall {
    number: u64,
    act: Act,
    timeout: Duration,
    answer: Answer,
}

impl TmuxCall {
    /// A call whose result `on_end` gets.
    pub(in crate::sandbox::terminal) fn new(
        number: u64,
        act: Act,
        timeout: Duration,
        on_end: Box<dyn FnOnce(TmuxEnded) + Send>,
    ) -> Self {
        let timeout = timeout.min(LONGEST_TIMEOUT);
        Self { number, act, timeout, answer: Answer(Some(on_end)) }
    }
}

/// The obligation to call `on_end`. Dropped unanswered (which only a panic of this module's own
/// can bring about) it says so.
struct Answer(Option<Box<dyn FnOnce(TmuxEnded) + Send>>);

impl Answer {
    fn give(mut self, result: ToolResult, all_dead: bool) {
        self.call(TmuxEnded { result, all_dead });
    }

    fn call(&mut self, ended: TmuxEnded) {
        if let Some(on_end) = self.0.take()
            && catch_unwind(AssertUnwindSafe(|| on_end(ended))).is_err()
        {
            log::error!("the receiver of a call's end has panicked");
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let result = ToolResult::failure(Outcome::BackendFailed, "the tmux session has failed");
        self.call(TmuxEnded { result, all_dead: false });
    }
}

/// The call that a terminal has.
struct Current {
    number: u64,
    answer: Answer,
}

/// A terminal that lives on between calls.
pub(in crate::sandbox::terminal) struct Terminal {
    driver: Driver,
    /// tmux's standard input, non-blocking.
    input: OwnedFd,
    /// Its standard output, non-blocking; `None` after its end.
    output: Option<OwnedFd>,
    /// Its standard error, non-blocking, of which only the beginning is of interest.
    errors: OwnedFd,
    /// The sandbox's root, once it is known; `Some(None)` if it cannot be had.
    root: Option<Option<Root>>,
    current: Option<Current>,
    /// It was killed because the driver was over.
    ended: bool,
    slice: Slice,
}

/// How much was read of late.
struct Slice {
    since: Instant,
    bytes: usize,
    /// Not watched until the slice is over.
    full: bool,
}

impl Program for Terminal {
    type Call = TmuxCall;
    const KIND: Kind = Kind::Tmux;
    const MOST: usize = 1;

    fn start(
        place: &Place,
        call: &TmuxCall,
        common: &Common,
        watch: &Watch<'_>,
    ) -> io::Result<(Self, Kept)> {
        let host = &common.host;
        let sandboxed = host.isolation.is_sandboxed();
        // What an image knows of terminals every image knows.
        let term = common.tmux.as_ref().map_or(OF_IMAGES, |tmux| tmux.term);
        let term = if place.workspace.image().is_some() { OF_IMAGES } else { term };
        if !place.network && !host.isolation.can_cut_network() {
            return Err(io::Error::other("the network cannot be taken away on this machine"));
        }
        let socket = match sandboxed {
            true => PathBuf::from(SOCKET),
            false => place.workspace.temporary().join("tmux.sock"),
        };
        let settings = Settings {
            size: call.act.size,
            shell: host.shell_of(&place.workspace).1.to_string_lossy().into_owned(),
            term,
            output_limit_chars: common.output_limit_chars,
        };
        let (input_reader, input) = spawn::pipe()?;
        let (output, output_writer) = spawn::pipe()?;
        let (errors, errors_writer) = spawn::pipe()?;
        for ours in [&input, &output, &errors] {
            rustix::io::ioctl_fionbio(ours, true)?;
        }
        let argv = arguments(&socket, &settings);
        let found = match (place.workspace.image(), &common.tmux) {
            (Some(image), _) => image.tmux().map(|tmux| (&*tmux.path, tmux.arguments(argv))),
            (None, Some(tmux)) => Some((&*tmux.program, argv)),
            (None, None) => None,
        };
        let (program, argv) = found.ok_or_else(|| io::Error::other("tmux is not installed"))?;
        // No history in the workspace, where only the model's own files should appear.
        let mut variables = vec![("HISTFILE", "")];
        let image = place.workspace.image().and_then(|image| image.tmux());
        if image.is_some_and(|tmux| tmux.is_brought_along()) {
            variables.push(toolbox::LOCALES);
        }
        let plan = Plan {
            workspace: &place.workspace,
            network: place.network,
            program,
            argv: &argv,
            variables: &variables,
            stdio: [input_reader.as_fd(), output_writer.as_fd(), errors_writer.as_fd()],
        };
        watch.add(output.as_fd(), OUTPUT)?;
        let kept = Kept::start(&plan, common, watch)?;
        let now = Instant::now();
        let terminal = Self {
            driver: Driver::new(settings, now),
            input,
            output: Some(output),
            errors,
            root: None,
            current: None,
            ended: false,
            slice: Slice { since: now, bytes: 0, full: false },
        };
        Ok((terminal, kept))
    }

    fn refuse(call: TmuxCall, why: &str) {
        call.answer.give(not_ensured(Outcome::BackendFailed, why, false), true);
    }

    fn refuse_one_more(call: TmuxCall, _names: &[&str]) {
        Self::refuse(call, "a slot has one terminal");
    }

    fn number(call: &TmuxCall) -> u64 {
        call.number
    }

    fn take(&mut self, call: TmuxCall, cx: &mut Context<'_>) {
        self.current = Some(Current { number: call.number, answer: call.answer });
        self.driver.begin(call.act.action, call.timeout, cx.now);
        self.go_on(cx);
    }

    fn current(&self) -> Option<u64> {
        self.current.as_ref().map(|current| current.number)
    }

    fn cancel(&mut self, cx: &mut Context<'_>) {
        self.driver.cancel(cx.now);
        self.go_on(cx);
    }

    fn on_released(&mut self, cx: &mut Context<'_>) {
        self.driver.released(cx.now);
        self.go_on(cx);
    }

    fn on_file(&mut self, _file: u8, cx: &mut Context<'_>) {
        if cx.now.saturating_duration_since(self.slice.since) >= SLICE {
            (self.slice.since, self.slice.bytes) = (cx.now, 0);
        }
        self.slice.bytes += self.read(cx);
        if let Some(output) = &self.output
            && self.slice.bytes >= READ_PER_SLICE
        {
            cx.watch.remove(output.as_fd());
            self.slice.full = true;
        }
        self.go_on(cx);
    }

    fn deadline(&self) -> Option<Instant> {
        let slice_over = self.slice.full.then(|| self.slice.since + SLICE);
        self.driver.due().into_iter().chain(slice_over).min()
    }

    fn on_deadline(&mut self, cx: &mut Context<'_>) {
        if self.slice.full && cx.now >= self.slice.since + SLICE {
            self.slice.full = false;
            let watched = self.output.as_ref().map(|output| cx.watch.add(output.as_fd(), OUTPUT));
            if let Some(Err(error)) = watched {
                self.driver.end(&format!("tmux session ended: it cannot be watched: {error}"));
            }
        }
        self.go_on(cx);
    }

    fn gone(mut self, cx: &mut Context<'_>) {
        // What it said last says why.
        let mut left = LAST_WORDS;
        while left > 0 {
            match self.read(cx) {
                0 => break,
                count => left = left.saturating_sub(count),
            }
        }
        cx.watch.remove_and_close(&mut self.output);
        let mut errors = [0; 4096];
        let count = rustix::io::read(&self.errors, &mut errors).unwrap_or(0);
        let errors = String::from_utf8_lossy(&errors[..count]);
        let gone = match cx.kept.end() {
            // Its shell may have been what was killed, by which it ended.
            KeptEnd::Killed if self.ended && cx.kept.ran_out_of_memory() => {
                Gone::Exceeded(Exceeded::Memory)
            }
            KeptEnd::Killed if self.ended => Gone::Ended,
            KeptEnd::Killed => Gone::Killed,
            KeptEnd::Exceeded(exceeded) => Gone::Exceeded(exceeded),
            KeptEnd::SetupFailed(why) => Gone::NeverBegan(why),
            KeptEnd::Exited(_) | KeptEnd::Signaled(_) | KeptEnd::Lost(_) => {
                if !errors.trim().is_empty() {
                    self.driver.end(errors.trim().lines().next().unwrap_or_default());
                }
                Gone::Ended
            }
        };
        let result = self.driver.take_answer().or_else(|| self.driver.gone(gone));
        if let (Some(current), Some(result)) = (self.current, result) {
            current.answer.give(result, cx.kept.all_dead());
        }
    }
}

impl Terminal {
    /// Reads once from tmux, and tells how much there was.
    fn read(&mut self, cx: &mut Context<'_>) -> usize {
        let Some(output) = &self.output else { return 0 };
        match rustix::io::retry_on_intr(|| rustix::io::read(output, &mut *cx.buffer)) {
            Ok(0) => {
                cx.watch.remove_and_close(&mut self.output);
                self.driver.end("tmux session ended");
                0
            }
            Ok(count) => {
                self.driver.read(&cx.buffer[..count], cx.now);
                count
            }
            Err(Errno::AGAIN) => 0,
            Err(error) => {
                cx.watch.remove_and_close(&mut self.output);
                self.driver.end(&format!("tmux session ended: {error}"));
                0
            }
        }
    }

    /// Lets the driver go on, and does what it wants.
    fn go_on(&mut self, cx: &mut Context<'_>) {
        if self.root.is_none() && self.driver.is_ready() {
            let root = cx.kept.root().inspect_err(|error| {
                // Then tmux gets all keys at once, and calls with `block` wait for as long as they
                // may.
                log::warn!("a terminal cannot be looked at from outside: {error}");
            });
            self.root = Some(root.ok().map(Root::new));
        }
        let root = &self.root;
        self.driver.advance(cx.now, &|pane| root.as_ref()?.as_ref()?.look(pane).ok());
        let commands = self.driver.take_commands();
        if !commands.is_empty() && !self.driver.over() {
            self.write(&commands);
        }
        if let Some(result) = self.driver.take_answer()
            && let Some(current) = self.current.take()
        {
            current.answer.give(result, true);
        }
        if self.driver.over() && cx.kept.phase() < Phase::Ending {
            self.ended = true;
            cx.kept.kill(&cx.watch, cx.now);
        }
    }

    /// Writes to tmux, which has read what there was before, or does not read at all.
    fn write(&mut self, bytes: &[u8]) {
        match rustix::io::retry_on_intr(|| rustix::io::write(&self.input, bytes)) {
            Ok(count) if count == bytes.len() => {}
            // The end of its output says more.
            Err(Errno::PIPE) => {}
            _ => self.driver.end("tmux session ended: it does not read its input"),
        }
    }
}

/// The answer to a call that cannot have a terminal.
pub(crate) fn not_ensured(outcome: Outcome, why: &str, requires_bwrap: bool) -> ToolResult {
    let mut result = ToolResult::failure(outcome, format!("{ENSURE}: {why}"));
    result.may_have_executed = false;
    result.metadata.insert("stateful".to_owned(), true.into());
    result.metadata.insert("requires_bwrap".to_owned(), requires_bwrap.into());
    result
}

/// How the sandbox's program is started.
fn arguments(socket: &Path, settings: &Settings) -> Vec<OsString> {
    let Size { width, height } = settings.size;
    let mut arguments: Vec<OsString> = ["tmux", "-u", "-C", "-S"].map(OsString::from).to_vec();
    arguments.extend([socket.as_os_str(), "-f".as_ref(), "/dev/null".as_ref()].map(OsString::from));
    let mut add = |command: &[&str]| arguments.extend(command.iter().map(OsString::from));
    add(&["start-server"]);
    // Before there is a pane, which has its history for life. Quietly: not every tmux has each.
    for (name, value) in [
        ("history-limit", HISTORY),
        ("default-terminal", settings.term),
        ("default-shell", &settings.shell),
        // The screen is the program's alone.
        ("status", "off"),
        // What is printed reaches nobody's clipboard, title or bell.
        ("set-clipboard", "off"),
        ("bell-action", "none"),
        ("automatic-rename", "off"),
        // An escape is an escape, however soon the next key follows.
        ("escape-time", "0"),
    ] {
        add(&[";", "set-option", "-gq", name, value]);
    }
    // It is tmux's alone.
    add(&[";", "set-environment", "-gu", toolbox::LOCALES.0]);
    let (width, height) = (width.to_string(), height.to_string());
    add(&[";", "new-session", "-s", "s", "-x", &width, "-y", &height, &settings.shell, "-i"]);
    arguments
}
