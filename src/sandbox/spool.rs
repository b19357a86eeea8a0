//! The complete output of a command, kept as files in its home directory.
//!
//! A result shows the beginning and the end of a long output. Where that leaves something out, the
//! whole stream is in a file: `~/.tool-output/<n>-stdout.txt`, or `…-stderr.txt`, for the model's
//! own commands, for `read_file` and for `read_artifact`. Each stream has a file of its
//! own: in what order two pipes were written to nobody knows, and so each file is exact, byte by
//! byte. A stream that is shown as a whole has none, so that a usual call costs nothing. The files
//! stay until the model or a reset removes them; they count as what else is in the workspace does.
//!
//! # Who does what
//! The supervisor must not wait for a disk. It collects what it reads from a pipe ([`Tape`]) and
//! hands it over to the threads `tool-spool-N`, one piece at a time; until that is written the
//! pipe is not read. So no more than one piece of each stream is in memory, nothing is left out,
//! and a command that writes faster than the disk waits as it would for any slow reader. When its
//! piece is written a thread writes to the call's eventfd, which the supervisor's epoll watches.
//!
//! Nothing here knows how a command is run: whoever waits for events as a [`Listener`] does and
//! reads a stream of one call, bounded, can keep it so – [`Tape::take`] what was read,
//! [`Tape::hand_over`] when it is full and at the end, and read no more while it is busy (see
//! [`recording`](super::recording)). The shells that are kept between calls do so, too, with the
//! same threads.
//!
//! # Limits
//! The files of one call have [`Keep::new`]'s `limit` of bytes together: beyond it they are
//! beginnings, and [`Kept::complete`] says so. An error – a full disk, a quota, a `.tool-output`
//! that is no directory – ends the file, never the call. Where the disk does not answer the file
//! is given up (see [`Tape::give_up`]); a thread that comes too late then takes its file back, so
//! that it never puts anything into the workspace of whoever is next.

mod file;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::Resource;

pub(super) use self::file::DIRECTORY;
use self::file::OutputFile;
use super::user::Purpose;
use super::workspace::Workspace;
use crate::workers::Workers;

/// How many threads write. One would do, but for a disk that makes one of them wait.
pub(super) const THREADS: usize = 2;
/// As much is collected before it is handed over, if it is there.
const PIECE: usize = 256 * 1024;
/// How long what a call printed may take to be written, once the call is over but for that.
pub(super) const SETTLE_LIMIT: Duration = Duration::from_secs(5);
/// How long the threads may take to write what they have, at the end of everything.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// The threads that write. Clones share them; the last one waits for them.
#[derive(Clone)]
pub(crate) struct Spool(Arc<Threads>);

struct Threads(Option<Workers>);

impl Spool {
    /// Starts the threads.
    ///
    /// # Errors
    /// Where the system gives none.
    pub(crate) fn start() -> io::Result<Self> {
        Ok(Self(Arc::new(Threads(Some(Workers::start("tool-spool", THREADS)?)))))
    }

    /// Has a thread do something else than to write.
    #[cfg(test)]
    pub(super) fn occupy(&self, job: impl FnOnce() + Send + 'static) {
        self.0.0.as_ref().unwrap().spawn(job);
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(workers) = self.0.take() {
            workers.close(Instant::now() + CLOSE_LIMIT);
        }
    }
}

/// Which of a command's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Its standard output.
    Stdout,
    /// Its standard error.
    Stderr,
}

impl Output {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// What became of the file of one stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Its path, as commands see it; `None` if there is no file, or not at its place any more.
    pub(crate) path: Option<String>,
    /// How many bytes of the stream were written to it: the first ones.
    pub(crate) bytes: u64,
    /// Whether that is all of the stream.
    pub(crate) complete: bool,
    /// What went wrong, as one line without a path of the host. The limit is no error.
    pub(crate) error: Option<String>,
}

/// Whoever is told by an eventfd that a piece is written: the epoll of one call's reader.
pub(super) trait Listener {
    /// Has the eventfd watched.
    fn listen(&self, written: BorrowedFd<'_>) -> io::Result<()>;
    /// No longer.
    fn ignore(&self, written: BorrowedFd<'_>);
}

/// Logs that a file is given up, [`SETTLE_LIMIT`] after the end of its call.
pub(super) fn log_given_up() {
    log::warn!(
        "the complete output of a command is not kept: the disk did not take it in {} s",
        SETTLE_LIMIT.as_secs()
    );
}

/// What the streams of one call share.
pub(crate) struct Keep {
    spool: Spool,
    workspace: Arc<Workspace>,
    /// Where commands see their home directory.
    home: Arc<Path>,
    /// How many bytes may still be handed over.
    left: u64,
    /// The number in the names of the files, once one was made.
    number: Arc<Mutex<Option<u64>>>,
    /// Told when a piece is written. Made with the first one.
    written: Option<Arc<OwnedFd>>,
}

impl Keep {
    /// Keeps at most `limit` bytes of a call that has `workspace`, and is in a sandbox or not.
    pub(crate) fn new(
        spool: Spool,
        workspace: Arc<Workspace>,
        limit: u64,
        sandboxed: bool,
    ) -> Self {
        let places = if sandboxed { workspace.inside() } else { workspace.on_host() };
        let home = Arc::from(places.home);
        // A process that writes beyond this is killed by the kernel.
        let allowed = rustix::process::getrlimit(Resource::Fsize).current;
        let left = limit.min(allowed.unwrap_or(u64::MAX));
        Self { spool, workspace, home, left, number: Arc::default(), written: None }
    }

    /// Takes note of what its [`Listener`] heard. Does not block.
    pub(crate) fn heard(&self) {
        if let Some(fd) = &self.written {
            let _ = rustix::io::read(fd, &mut [0; 8]);
        }
    }

    /// Stops watching, at the end of the call.
    pub(super) fn unwatch(&self, listener: &dyn Listener) {
        if let Some(fd) = &self.written {
            listener.ignore(fd.as_fd());
        }
    }

    /// What is told when a piece is written, watched by the call's reader.
    fn event(&mut self, listener: &dyn Listener) -> io::Result<Arc<OwnedFd>> {
        if let Some(fd) = &self.written {
            return Ok(fd.clone());
        }
        let fd = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        listener.listen(fd.as_fd())?;
        self.written = Some(fd.clone());
        Ok(fd)
    }
}

/// One stream on its way to its file.
pub(crate) struct Tape {
    output: Output,
    shared: Option<Arc<Shared>>,
    /// Collected, and not handed over yet.
    pending: Vec<u8>,
    /// Nothing more goes to the file.
    ended: bool,
    /// The last piece was handed over.
    closed: bool,
    /// Why nothing could be handed over.
    error: Option<String>,
}

/// What the reader and the threads know of one file.
struct Shared {
    state: Mutex<State>,
    workspace: Arc<Workspace>,
    home: Arc<Path>,
    number: Arc<Mutex<Option<u64>>>,
    output: Output,
    written: Arc<OwnedFd>,
}

#[derive(Default)]
struct State {
    /// A piece is on its way.
    busy: bool,
    /// No call waits any more.
    given_up: bool,
    /// With the threads while they are busy.
    file: Option<OutputFile>,
    kept: Kept,
}

impl Tape {
    /// A stream of which nothing is kept yet.
    pub(crate) fn new(output: Output) -> Self {
        Self { output, shared: None, pending: Vec::new(), ended: false, closed: false, error: None }
    }

    /// Whether the file was begun, or was to be.
    pub(crate) fn has_begun(&self) -> bool {
        self.shared.is_some() || self.ended || !self.pending.is_empty()
    }

    /// Takes the next bytes of the stream; the first ones are all those up to now. Does not block.
    pub(crate) fn take(&mut self, keep: &mut Keep, bytes: &[u8]) {
        if self.ended {
            return;
        }
        let room = usize::try_from(keep.left).unwrap_or(usize::MAX);
        let taken = &bytes[..bytes.len().min(room)];
        keep.left -= taken.len() as u64;
        self.pending.extend_from_slice(taken);
        // The limit. What was collected is still handed over.
        self.ended = taken.len() < bytes.len();
    }

    /// Whether as much is collected as should be handed over at a time.
    pub(crate) fn is_full(&self) -> bool {
        self.pending.len() >= PIECE
    }

    /// Hands over what was collected; with `last` the file is finished too. Must not be called
    /// while [`is_busy`](Self::is_busy). Does not block. When the piece is written, the
    /// [`Listener`] hears of it.
    pub(super) fn hand_over(&mut self, keep: &mut Keep, listener: &dyn Listener, last: bool) {
        self.closed |= last;
        let bytes = std::mem::take(&mut self.pending);
        if bytes.is_empty() && (!last || self.shared.is_none()) {
            return;
        }
        let shared = match &self.shared {
            Some(shared) => shared.clone(),
            None => match keep.event(listener) {
                Ok(written) => {
                    let shared = Arc::new(Shared {
                        state: Mutex::default(),
                        workspace: keep.workspace.clone(),
                        home: keep.home.clone(),
                        number: keep.number.clone(),
                        output: self.output,
                        written,
                    });
                    self.shared.insert(shared).clone()
                }
                Err(error) => {
                    self.error = Some(error.to_string());
                    self.ended = true;
                    return;
                }
            },
        };
        shared.state.lock().busy = true;
        let piece = Piece(shared);
        if let Some(workers) = &keep.spool.0.0 {
            workers.spawn(move || piece.write(&bytes, last));
        }
    }

    /// Whether a piece is on its way.
    pub(crate) fn is_busy(&mut self) -> bool {
        let Some(shared) = &self.shared else { return false };
        let state = shared.state.lock();
        self.ended |= state.kept.error.is_some();
        state.busy
    }

    /// Whether the last piece was handed over.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Waits no longer for what is on its way. A thread that is just making the file removes it
    /// again.
    pub(crate) fn give_up(&mut self) {
        (self.ended, self.closed) = (true, true);
        let Some(shared) = &self.shared else { return };
        let mut state = shared.state.lock();
        if state.busy {
            state.given_up = true;
            state.kept.path = None;
            state.kept.error = Some("the disk did not answer in time".to_owned());
        }
    }

    /// What became of the file, of a stream of `total` bytes; `None` if there was no call for one.
    pub(crate) fn kept(&self, total: u64) -> Option<Kept> {
        let Some(shared) = &self.shared else {
            // The limit was used up by the other stream, or there was no way to write.
            return self.ended.then(|| Kept { error: self.error.clone(), ..Kept::default() });
        };
        let mut kept = shared.state.lock().kept.clone();
        kept.complete = kept.error.is_none() && kept.bytes == total;
        Some(kept)
    }
}

/// A piece on its way. Dropped – after it was written, by a panic, or because the threads have
/// ended – it says so.
struct Piece(Arc<Shared>);

impl Piece {
    /// Writes it. Blocks for as long as the disk needs.
    fn write(self, bytes: &[u8], last: bool) {
        let shared = &self.0;
        let (mut file, earlier_error) = {
            let mut state = shared.state.lock();
            (state.file.take(), state.kept.error.is_some())
        };
        let mut done = Ok(0);
        if !earlier_error {
            done = self.try_write(&mut file, bytes);
        }
        let at_its_place = match &file {
            Some(file) if last => file.is_at_its_place(&shared.workspace),
            _ => true,
        };
        let mut state = shared.state.lock();
        if state.given_up {
            return;
        }
        match done {
            Ok(written) => state.kept.bytes += written,
            Err((written, error)) => {
                state.kept.bytes += written;
                state.kept.error = Some(error);
            }
        }
        if !at_its_place {
            state.kept.path = None;
            state.kept.error.get_or_insert_with(|| "the file was moved or removed".to_owned());
        } else if let Some(file) = &file {
            state.kept.path = Some(file.path(&shared.home));
        }
        state.file = file.filter(|_| !last);
    }

    /// How much was written, also before an error.
    fn try_write(&self, file: &mut Option<OutputFile>, bytes: &[u8]) -> Result<u64, (u64, String)> {
        let shared = &self.0;
        if shared.state.lock().given_up {
            return Ok(0);
        }
        let owner = shared.workspace.owner();
        let _entered = owner
            .map(|owner| owner.enter(Purpose::Files))
            .transpose()
            .map_err(|error| (0, error.to_string()))?;
        let file = match file {
            Some(file) => file,
            None => {
                let made = OutputFile::create(&shared.workspace, &shared.number, shared.output)
                    .map_err(|error| (0, error))?;
                // From here on it is in a workspace that may belong to somebody else by now.
                if shared.state.lock().given_up {
                    made.remove();
                    return Ok(0);
                }
                file.insert(made)
            }
        };
        if shared.state.lock().given_up {
            return Ok(0);
        }
        file.write(bytes)
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.busy = false;
        if std::thread::panicking() {
            state.kept.error = Some("writing it has failed".to_owned());
        }
        drop(state);
        // Fails only where the counter is full, and then it is readable.
        let _ = rustix::io::write(&*self.0.written, &1u64.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests;
