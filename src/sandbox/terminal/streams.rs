//! The reading of a shell's output, and to which call it belongs.
//!
//! A shell has one pipe for each of its two output streams, for as long as it lives. What came
//! before the word that a command has ended is that command's; what comes between two commands
//! belongs to neither and is kept apart. The pipe is the measure: what is in it at that moment was
//! written before.
//!
//! # Complete outputs
//! What of a call's output its result does not show is in a file, as of any command
//! ([`spool`]): a pipe is read all the time, but for while its last piece is on its way
//! to the disk. The call is answered when all of it is written, or [`SETTLE_LIMIT`] after its end;
//! what the shell prints meanwhile is read, and belongs to no call. What is printed between two
//! calls has no file: nobody has asked for it, and it may have no end. Its beginning and its end
//! are kept, and its length.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::io::Errno;

use super::watch::{Source, Watch};
use crate::sandbox::output::{Capture, Captured};
use crate::sandbox::recording::Recording;
use crate::sandbox::spawn;
use crate::sandbox::spool::{self, Keep, Listener, SETTLE_LIMIT, log_given_up};

/// How often a pipe is read in one turn, so that a flood does not keep the others waiting.
const READS_PER_TURN: usize = 4;
/// How much is kept of what is printed between two calls, in characters of each stream.
const BACKGROUND_CHARS: usize = 10_000;
/// How much is read between two calls. A job that prints more than this is held up until the next
/// one: the thread is there for all sessions.
const BACKGROUND_LIMIT: u64 = 64 << 20;
/// No more than this is read at the end. Pipes hold 64 KiB, 1 MiB at the utmost unless the
/// administrator allows more; the bound matters where a process escaped and still writes.
const DRAIN_LIMIT: u64 = 16 << 20;

/// The shell's standard output.
pub(super) const STDOUT: Source = Source::File(0);
/// Its standard error.
pub(super) const STDERR: Source = Source::File(1);
/// A part of a call's output was written to its file.
pub(super) const WRITTEN: Source = Source::File(2);

impl Listener for Watch<'_> {
    fn listen(&self, written: BorrowedFd<'_>) -> io::Result<()> {
        self.add(written, WRITTEN)
    }

    fn ignore(&self, written: BorrowedFd<'_>) {
        self.remove(written);
    }
}

/// Both output streams of a shell.
pub(super) struct Streams {
    stdout: Stream,
    stderr: Stream,
    /// Where the whole output of the present call is kept.
    keep: Option<Keep>,
    /// When what is not written is given up, once the call has ended.
    give_up: Option<Instant>,
    /// It is.
    given_up: bool,
}

impl Streams {
    /// The streams, watched, and the write ends for the shell, which are blocking.
    ///
    /// # Errors
    /// Whatever the system refuses.
    pub(super) fn new(limit_chars: usize, watch: &Watch<'_>) -> io::Result<(Self, [OwnedFd; 2])> {
        let (stdout, stdout_writer) = Stream::new(spool::Output::Stdout, limit_chars)?;
        let (stderr, stderr_writer) = Stream::new(spool::Output::Stderr, limit_chars)?;
        for stream in [&stdout, &stderr] {
            if let Some(pipe) = &stream.pipe {
                watch.add(pipe.as_fd(), stream.source)?;
            }
        }
        let streams = Self { stdout, stderr, keep: None, give_up: None, given_up: false };
        Ok((streams, [stdout_writer, stderr_writer]))
    }

    fn both(&mut self) -> [&mut Stream; 2] {
        [&mut self.stdout, &mut self.stderr]
    }

    /// Deals with an event of the streams and of their files. Reads a bounded part of what is
    /// there.
    pub(super) fn on_event(&mut self, source: Source, watch: &Watch<'_>, buffer: &mut [u8]) {
        match source {
            STDOUT => self.stdout.on_ready(watch, buffer, self.keep.as_mut()),
            STDERR => self.stderr.on_ready(watch, buffer, self.keep.as_mut()),
            _ => {
                if let Some(keep) = &self.keep {
                    keep.heard();
                }
                self.stdout.resume(watch);
                self.stderr.resume(watch);
            }
        }
    }

    /// What comes from here on belongs to a call, and is kept by `keep`. Gives what came since the
    /// latest one.
    pub(super) fn begin_call(
        &mut self,
        keep: Option<Keep>,
        watch: &Watch<'_>,
        buffer: &mut [u8],
    ) -> [Captured; 2] {
        self.keep = keep;
        self.both().map(|stream| stream.begin_call(watch, buffer))
    }

    /// What comes from here on belongs to no call. The call's is to [`settle`](Self::settle) now.
    pub(super) fn end_call(&mut self, watch: &Watch<'_>, buffer: &mut [u8], now: Instant) {
        self.stdout.end_call(watch, buffer, self.keep.as_mut());
        self.stderr.end_call(watch, buffer, self.keep.as_mut());
        self.give_up.get_or_insert(now + SETTLE_LIMIT);
    }

    /// Whether what belongs to the ended call is written, or was given up. Does not block; to be
    /// called again after each event, and at [`deadline`](Self::deadline).
    pub(super) fn settle(&mut self, watch: &Watch<'_>, now: Instant) -> bool {
        let settled = [
            self.stdout.settle(watch, self.keep.as_mut()),
            self.stderr.settle(watch, self.keep.as_mut()),
        ];
        settled == [true; 2] || self.gives_up(now)
    }

    fn gives_up(&mut self, now: Instant) -> bool {
        if !self.given_up && self.give_up.is_some_and(|due| due <= now) {
            self.given_up = true;
            log_given_up();
        }
        self.given_up
    }

    /// When [`settle`](Self::settle) waits no longer.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.give_up
    }

    /// What the call printed that has [settled](Self::settle).
    pub(super) fn finish_call(&mut self, watch: &Watch<'_>) -> [Captured; 2] {
        let finished =
            self.both().map(|stream| stream.call.take().map(|call| call.recording.finish()));
        if let Some(keep) = self.keep.take() {
            keep.unwatch(watch);
        }
        (self.give_up, self.given_up) = (None, false);
        finished.map(Option::unwrap_or_default)
    }

    /// The shell has ended: reads what is left, as far as what was read before is written. Whether
    /// it was read and written, or given up. Does not block; to be called again as
    /// [`settle`](Self::settle).
    pub(super) fn drain(&mut self, watch: &Watch<'_>, buffer: &mut [u8], now: Instant) -> bool {
        self.give_up.get_or_insert(now + SETTLE_LIMIT);
        let drained = [
            self.stdout.drain(watch, buffer, self.keep.as_mut()),
            self.stderr.drain(watch, buffer, self.keep.as_mut()),
        ];
        if drained == [true; 2] { self.settle(watch, now) } else { self.gives_up(now) }
    }

    /// The shell has ended, and its pipes are [drained](Self::drain). Gives what the call printed
    /// if there is one, and else what was printed since the latest one.
    pub(super) fn close(mut self, watch: &Watch<'_>) -> [Captured; 2] {
        let called = self.stdout.call.is_some();
        let printed = self.finish_call(watch);
        let background = self.both().map(|stream| {
            watch.remove_and_close(&mut stream.pipe);
            std::mem::replace(&mut stream.background, Capture::new(0)).finish()
        });
        if called { printed } else { background }
    }
}

/// One output stream of a shell.
struct Stream {
    output: spool::Output,
    source: Source,
    limit_chars: usize,
    /// The read end, non-blocking; `None` after its end.
    pipe: Option<OwnedFd>,
    /// The present call's.
    call: Option<Part>,
    /// What belongs to no call, since the latest one.
    background: Capture,
    background_bytes: u64,
    /// Not read, and not watched: until what was read is written, or until the next call.
    paused: bool,
    /// Read at the end.
    drained: u64,
}

/// A call's part of a stream.
struct Part {
    recording: Recording,
    /// Nothing that is read belongs to it any more.
    ended: bool,
}

impl Part {
    fn must_wait(&mut self) -> bool {
        !self.ended && self.recording.is_busy()
    }
}

impl Stream {
    fn new(output: spool::Output, limit_chars: usize) -> io::Result<(Self, OwnedFd)> {
        let (pipe, writer) = spawn::pipe()?;
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let stream = Self {
            output,
            source: match output {
                spool::Output::Stdout => STDOUT,
                spool::Output::Stderr => STDERR,
            },
            limit_chars,
            pipe: Some(pipe),
            call: None,
            background: Capture::new(BACKGROUND_CHARS),
            background_bytes: 0,
            paused: false,
            drained: 0,
        };
        Ok((stream, writer))
    }

    fn on_ready(&mut self, watch: &Watch<'_>, buffer: &mut [u8], mut keep: Option<&mut Keep>) {
        if self.paused {
            return;
        }
        for _ in 0..READS_PER_TURN {
            if self.read_once(watch, buffer, keep.as_deref_mut()) < buffer.len() {
                break;
            }
        }
        self.hand_over_if_full(watch, keep);
        if self.must_wait() {
            self.pause(watch);
        }
    }

    fn pause(&mut self, watch: &Watch<'_>) {
        if let (false, Some(pipe)) = (self.paused, &self.pipe) {
            watch.pause(pipe.as_fd(), self.source);
        }
        self.paused = true;
    }

    fn hand_over_if_full(&mut self, watch: &Watch<'_>, keep: Option<&mut Keep>) {
        if let (Some(Part { recording, ended: false }), Some(keep)) = (&mut self.call, keep)
            && !recording.is_busy()
        {
            recording.hand_over_if_full(keep, watch);
        }
    }

    /// Whether nothing may be read just now.
    fn must_wait(&mut self) -> bool {
        match &mut self.call {
            Some(call) if !call.ended => call.must_wait(),
            _ => self.background_bytes > BACKGROUND_LIMIT,
        }
    }

    /// Goes on with a stream that was paused, if nothing is in the way any more.
    fn resume(&mut self, watch: &Watch<'_>) {
        if !self.paused || self.must_wait() {
            return;
        }
        self.paused = false;
        if let Some(pipe) = &self.pipe {
            watch.resume(pipe.as_fd(), self.source);
        }
    }

    fn begin_call(&mut self, watch: &Watch<'_>, buffer: &mut [u8]) -> Captured {
        self.read_what_is_there(watch, buffer, None);
        let background = std::mem::replace(&mut self.background, Capture::new(BACKGROUND_CHARS));
        self.background_bytes = 0;
        let recording = Recording::new(self.output, self.limit_chars);
        self.call = Some(Part { recording, ended: false });
        self.resume(watch);
        background.finish()
    }

    fn end_call(&mut self, watch: &Watch<'_>, buffer: &mut [u8], keep: Option<&mut Keep>) {
        // No more than a pipe holds, also where the file is behind.
        self.read_what_is_there(watch, buffer, keep);
        if let Some(call) = &mut self.call {
            call.ended = true;
        }
        self.resume(watch);
    }

    /// Whether all of the ended call is written.
    fn settle(&mut self, watch: &Watch<'_>, keep: Option<&mut Keep>) -> bool {
        self.call.as_mut().is_none_or(|call| call.recording.settle(keep, watch))
    }

    /// Reads what is left, as far as what was read before is written.
    fn drain(&mut self, watch: &Watch<'_>, buffer: &mut [u8], mut keep: Option<&mut Keep>) -> bool {
        while self.pipe.is_some() {
            if self.call.as_mut().is_some_and(Part::must_wait) {
                self.pause(watch);
                return false;
            }
            let count = self.read_once(watch, buffer, keep.as_deref_mut());
            self.hand_over_if_full(watch, keep.as_deref_mut());
            self.drained += count as u64;
            if count == 0 || self.drained >= DRAIN_LIMIT {
                // What may still be written is not read.
                watch.remove_and_close(&mut self.pipe);
            }
        }
        if let Some(call) = &mut self.call {
            call.ended = true;
        }
        true
    }

    /// Reads as much as is in the pipe now, and not what is written meanwhile.
    fn read_what_is_there(
        &mut self,
        watch: &Watch<'_>,
        buffer: &mut [u8],
        mut keep: Option<&mut Keep>,
    ) {
        let there = self.pipe.as_ref().map(rustix::io::ioctl_fionread);
        let mut left = there.and_then(Result::ok).unwrap_or(0);
        while left > 0 {
            let size = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            match self.read_once(watch, &mut buffer[..size], keep.as_deref_mut()) {
                0 => break,
                count => left = left.saturating_sub(count as u64),
            }
        }
    }

    /// Reads once: 0 if nothing is there.
    fn read_once(
        &mut self,
        watch: &Watch<'_>,
        buffer: &mut [u8],
        keep: Option<&mut Keep>,
    ) -> usize {
        let Some(pipe) = &self.pipe else { return 0 };
        loop {
            match rustix::io::read(pipe, &mut *buffer) {
                Ok(count) if count > 0 => {
                    match &mut self.call {
                        Some(Part { recording, ended: false }) => {
                            recording.push(&buffer[..count], keep);
                        }
                        _ => {
                            self.background.push(&buffer[..count]);
                            self.background_bytes += count as u64;
                        }
                    }
                    return count;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return 0,
                _ => {
                    watch.remove_and_close(&mut self.pipe);
                    return 0;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;
    use std::time::Duration;

    use proptest::prelude::*;
    use rustix::event::{PollFd, PollFlags, epoll, poll};

    use super::*;
    use crate::sandbox::spool::{Kept, Spool};
    use crate::sandbox::terminal::watch::{Key, Kind, decode};
    use crate::sandbox::testing::hold;
    use crate::sandbox::user::CommandUser;
    use crate::sandbox::workspace::{DataDir, Workspace};

    const SHOWN: usize = 100;
    const LONG: Duration = Duration::from_secs(60);

    /// The streams of a shell that a test is.
    struct Shell {
        epoll: OwnedFd,
        streams: Streams,
        writers: [File; 2],
        buffer: Vec<u8>,
        spool: Spool,
        data: DataDir,
        _dir: tempfile::TempDir,
    }

    impl Shell {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o711)).unwrap();
            let data = DataDir::create(Some(dir.path()), 1, CommandUser::detect()).unwrap();
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
            let (streams, writers) = Streams::new(SHOWN, &watch(&epoll)).unwrap();
            let writers = writers.map(|writer| {
                rustix::pipe::fcntl_setpipe_size(&writer, 1 << 20).unwrap();
                rustix::io::ioctl_fionbio(&writer, true).unwrap();
                File::from(writer)
            });
            let (buffer, spool) = (vec![0; 64 * 1024], Spool::start().unwrap());
            Self { epoll, streams, writers, buffer, spool, data, _dir: dir }
        }

        fn workspace(&self) -> &Arc<Workspace> {
            &self.data.workspaces()[0]
        }

        fn begin(&mut self, limit: u64) -> [Captured; 2] {
            let keep = Keep::new(self.spool.clone(), self.workspace().clone(), limit, true);
            self.streams.begin_call(Some(keep), &watch(&self.epoll), &mut self.buffer)
        }

        fn end(&mut self) {
            self.streams.end_call(&watch(&self.epoll), &mut self.buffer, Instant::now());
        }

        /// Deals with what happens within `longest`; whether there was something.
        fn turn(&mut self, longest: Duration) -> bool {
            let mut events = Vec::with_capacity(8);
            let room = rustix::buffer::spare_capacity(&mut events);
            epoll::wait(&self.epoll, room, Some(&longest.try_into().unwrap())).unwrap();
            for event in &events {
                let (_, source) = decode(event.data.u64()).unwrap();
                self.streams.on_event(source, &watch(&self.epoll), &mut self.buffer);
            }
            !events.is_empty()
        }

        fn write(&mut self, stream: usize, mut bytes: &[u8]) {
            while !bytes.is_empty() {
                match self.writers[stream].write(bytes) {
                    Ok(count) => bytes = &bytes[count..],
                    // It is read when the file has caught up.
                    Err(_) => assert!(self.turn(LONG), "nobody reads"),
                }
            }
        }

        fn settle(&mut self) -> [Captured; 2] {
            while !self.streams.settle(&watch(&self.epoll), Instant::now()) {
                assert!(self.turn(LONG), "it is never written");
            }
            self.streams.finish_call(&watch(&self.epoll))
        }

        fn content(&self, kept: &Kept) -> Vec<u8> {
            match &kept.path {
                Some(path) => std::fs::read(self.workspace().at(path)).unwrap(),
                None => Vec::new(),
            }
        }
    }

    fn watch(epoll: &OwnedFd) -> Watch<'_> {
        Watch { epoll, key: Key { kind: Kind::Shell, serial: 1 } }
    }

    /// What is written, and how many events are dealt with then.
    fn writes() -> impl Strategy<Value = Vec<(usize, usize, usize)>> {
        let size = prop_oneof![
            0_usize..300,
            Just(SHOWN),
            Just(4 * SHOWN),
            Just(65_536),
            250_000_usize..270_000,
            500_000_usize..1_000_000,
        ];
        proptest::collection::vec((0_usize..2, size, 0_usize..4), 0..4)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

        /// Each byte belongs to the call in which it was written, or to none, whatever was read
        /// when; the files have the first bytes of their streams, and together no more than the
        /// limit.
        #[test]
        fn each_call_has_what_was_written_in_it(
            calls in proptest::collection::vec((writes(), writes()), 1..4),
            limit in prop_oneof![Just(1_u64), 300..600_u64, 200_000..600_000_u64, Just(1 << 40)],
        ) {
            let mut shell = Shell::new();
            let mut between = [0, 0];
            let mut next = 0_u32;
            let mut content = |size: usize| -> Vec<u8> {
                let numbers = (next..).flat_map(|number| format!("{number:07} ").into_bytes());
                next += size as u32 / 8 + 1;
                numbers.take(size).collect()
            };
            for (in_call, after) in calls {
                let background = shell.begin(limit);
                prop_assert_eq!(background.map(|captured| captured.bytes), between);
                let mut written = [Vec::new(), Vec::new()];
                for (stream, size, turns) in in_call {
                    let bytes = content(size);
                    shell.write(stream, &bytes);
                    written[stream].extend(bytes);
                    for _ in 0..turns {
                        shell.turn(Duration::ZERO);
                    }
                }
                shell.end();
                between = [0, 0];
                for (stream, size, turns) in after {
                    let bytes = vec![b'-'; size];
                    shell.write(stream, &bytes);
                    between[stream] += size as u64;
                    for _ in 0..turns {
                        shell.turn(Duration::ZERO);
                    }
                }
                let mut all = 0;
                let mut left_out = false;
                for (captured, written) in shell.settle().iter().zip(&written) {
                    prop_assert_eq!(captured.bytes, written.len() as u64);
                    let whole = written.len() <= SHOWN;
                    prop_assert_eq!(captured.omitted_bytes == 0, whole);
                    prop_assert_eq!(captured.kept.is_none(), whole);
                    let Some(kept) = &captured.kept else { continue };
                    prop_assert_eq!(&kept.error, &None);
                    let file = shell.content(kept);
                    prop_assert_eq!(file.len() as u64, kept.bytes);
                    prop_assert!(file == written[..file.len()]);
                    prop_assert_eq!(kept.complete, file.len() == written.len());
                    all += kept.bytes;
                    left_out |= !kept.complete;
                }
                prop_assert!(all <= limit && (!left_out || all == limit), "{} of {}", all, limit);
            }
        }
    }

    #[test]
    fn while_the_disk_is_slow_the_pipe_waits_and_only_until_the_end_of_the_call() {
        let mut shell = Shell::new();
        shell.begin(1 << 40);
        let held = hold(&shell.spool);
        let lines = "0123456\n".repeat(8 << 20);
        let mut taken = 0;
        // The end is that it is not read any more.
        loop {
            match shell.writers[0].write(&lines.as_bytes()[taken..]) {
                Ok(count) => taken += count,
                Err(_) if shell.turn(Duration::from_millis(200)) => {}
                Err(_) => break,
            }
        }
        assert!((1 << 20..4 << 20).contains(&taken), "{taken} bytes are in");
        shell.end();
        // It belongs to no call, and is read.
        shell.write(0, &vec![b'-'; 8 << 20]);
        assert!(!shell.streams.settle(&watch(&shell.epoll), Instant::now()));
        drop(held);
        let [stdout, _] = shell.settle();
        let kept = stdout.kept.as_ref().unwrap();
        assert!(kept.complete && kept.bytes == taken as u64, "{kept:?}");
        assert!(shell.content(kept) == lines.as_bytes()[..taken]);
        while shell.turn(Duration::ZERO) {}
        let [background, _] = shell.begin(1);
        assert_eq!(background.bytes, 8 << 20);
    }

    #[test]
    fn at_the_end_of_the_shell_all_is_written_that_is_there_though_somebody_holds_the_pipe() {
        let mut shell = Shell::new();
        shell.begin(1 << 40);
        let lines = "0123456\n".repeat(100_000);
        shell.write(1, lines.as_bytes());
        while !shell.streams.drain(&watch(&shell.epoll), &mut shell.buffer, Instant::now()) {
            assert!(shell.turn(LONG));
        }
        let Shell { epoll, streams, data, mut writers, .. } = shell;
        let [stdout, stderr] = streams.close(&watch(&epoll));
        assert_eq!((stdout.bytes, stderr.bytes), (0, lines.len() as u64));
        let kept = stderr.kept.unwrap();
        assert!(kept.complete);
        let path = data.workspaces()[0].at(&kept.path.unwrap());
        assert!(std::fs::read_to_string(path).unwrap() == lines);
        // A process that another test starts just now has the other end, too, until it executes.
        let mut closed = [PollFd::new(&writers[1], PollFlags::empty())];
        assert_eq!(poll(&mut closed, Some(&LONG.try_into().unwrap())), Ok(1), "nobody reads it");
        let error = writers[1].write(b"more").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
