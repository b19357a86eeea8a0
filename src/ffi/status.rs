//! Status codes, the guard around every function, and the message of the last error.

use std::cell::RefCell;
use std::error::Error;
use std::ffi::c_char;
use std::fmt::Write as _;

use crate::artifact::ArtifactError;
use crate::error::{BeginError, ReleaseError, StartError, SubmitError};
use crate::snapshot::SnapshotError;
use crate::workers::guarded;

/// What a function says. The numbers never change; new ones may be added. te_last_error() has the
/// details, in words.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum te_status {
    /// Done.
    TE_OK = 0,
    /// The time was up before anything came. Not an error.
    TE_TIMEOUT = 1,
    /// The executor is closed, or closing; of a completion queue: and nothing more will come.
    TE_CLOSED = 2,
    /// As many calls as `queue_capacity` wait to run: fetch completions, and submit again.
    TE_QUEUE_FULL = 3,
    /// The completion queue has as many calls as its capacity: fetch completions, and submit again.
    TE_COMPLETIONS_FULL = 4,

    /// A pointer is NULL that must not be.
    TE_NULL = 10,
    /// A number makes no sense: a length, a timeout, a level.
    TE_INVALID_ARGUMENT = 11,
    /// Text is not UTF-8.
    TE_INVALID_UTF8 = 12,
    /// Text is not JSON, or not the JSON that is asked for.
    TE_INVALID_JSON = 13,
    /// The configuration makes no sense: an unknown key, a value out of its range.
    TE_INVALID_CONFIG = 14,
    /// A pointer is not such a handle: it is another kind's, or was freed. A best effort: that a
    /// pointer is wild cannot be known.
    TE_INVALID_HANDLE = 15,
    /// A tool cannot be registered: its name is taken, or is no name.
    TE_INVALID_TOOL = 16,

    /// The sandbox, or a thread, could not be started.
    TE_START_FAILED = 20,
    /// The ToolServer cannot be used.
    TE_TOOL_SERVER_FAILED = 21,
    /// A workspace could not be emptied. Its slot is not given out before that succeeds.
    TE_RESET_FAILED = 22,

    /// The trajectory has no slot: it has run nothing in a sandbox, or was released.
    TE_NO_SLOT = 30,
    /// The path leads out of the workspace.
    TE_OUTSIDE_WORKSPACE = 31,
    /// Nothing is at this path.
    TE_NOT_FOUND = 32,
    /// What is at this path is no regular file.
    TE_NOT_A_FILE = 33,
    /// What is at this path is neither a file nor a directory.
    TE_UNSUPPORTED_TYPE = 34,
    /// The archive is larger than was allowed.
    TE_TOO_LARGE = 35,
    /// The sandbox that held the workspace is gone, or does not answer.
    TE_SANDBOX_LOST = 36,
    /// This system, or this sandbox, does not have this.
    TE_UNSUPPORTED = 37,
    /// Reading or writing failed.
    TE_IO = 38,
    /// There is no room for it in the slot.
    TE_DISK_FULL = 39,

    /// The tool's call was answered before.
    TE_ALREADY_ANSWERED = 40,
    /// The process has a logger of its own: the host is a Rust program.
    TE_LOGGER_TAKEN = 41,

    /// What is at the path is the kernel's, and no file.
    TE_REFUSED = 45,
    /// The tar stream is none, or has what cannot be unpacked.
    TE_BAD_ARCHIVE = 46,

    /// The trajectory keeps processes that would end with a snapshot.
    TE_KEEPS_PROCESSES = 42,
    /// As many snapshots are kept as may be, or were made of the trajectory.
    TE_TOO_MANY_SNAPSHOTS = 43,
    /// The trajectory has begun, has failed to begin, or has made a call: release it first.
    TE_ALREADY_BEGUN = 47,
    /// The trajectory did not begin as its spec asks; te_begin() gives the outcome.
    TE_NOT_BEGUN = 48,
    /// The spec makes no sense: an unknown key, a value of another type or out of its range.
    TE_INVALID_SPEC = 49,

    /// This process is a fork of the one that made the handle. Its threads are not here: nothing
    /// works but freeing.
    TE_FORKED = 50,
    /// A bug in the library was caught. The handle may be used further.
    TE_PANIC = 51,
}

use te_status::*;

const ALL: [te_status; 36] = [
    TE_OK,
    TE_TIMEOUT,
    TE_CLOSED,
    TE_QUEUE_FULL,
    TE_COMPLETIONS_FULL,
    TE_NULL,
    TE_INVALID_ARGUMENT,
    TE_INVALID_UTF8,
    TE_INVALID_JSON,
    TE_INVALID_CONFIG,
    TE_INVALID_HANDLE,
    TE_INVALID_TOOL,
    TE_START_FAILED,
    TE_TOOL_SERVER_FAILED,
    TE_RESET_FAILED,
    TE_NO_SLOT,
    TE_OUTSIDE_WORKSPACE,
    TE_NOT_FOUND,
    TE_NOT_A_FILE,
    TE_UNSUPPORTED_TYPE,
    TE_TOO_LARGE,
    TE_SANDBOX_LOST,
    TE_UNSUPPORTED,
    TE_IO,
    TE_DISK_FULL,
    TE_ALREADY_ANSWERED,
    TE_LOGGER_TAKEN,
    TE_REFUSED,
    TE_BAD_ARCHIVE,
    TE_KEEPS_PROCESSES,
    TE_TOO_MANY_SNAPSHOTS,
    TE_ALREADY_BEGUN,
    TE_NOT_BEGUN,
    TE_INVALID_SPEC,
    TE_FORKED,
    TE_PANIC,
];

impl te_status {
    fn name(self) -> &'static std::ffi::CStr {
        match self {
            TE_OK => c"TE_OK",
            TE_TIMEOUT => c"TE_TIMEOUT",
            TE_CLOSED => c"TE_CLOSED",
            TE_QUEUE_FULL => c"TE_QUEUE_FULL",
            TE_COMPLETIONS_FULL => c"TE_COMPLETIONS_FULL",
            TE_NULL => c"TE_NULL",
            TE_INVALID_ARGUMENT => c"TE_INVALID_ARGUMENT",
            TE_INVALID_UTF8 => c"TE_INVALID_UTF8",
            TE_INVALID_JSON => c"TE_INVALID_JSON",
            TE_INVALID_CONFIG => c"TE_INVALID_CONFIG",
            TE_INVALID_HANDLE => c"TE_INVALID_HANDLE",
            TE_INVALID_TOOL => c"TE_INVALID_TOOL",
            TE_START_FAILED => c"TE_START_FAILED",
            TE_TOOL_SERVER_FAILED => c"TE_TOOL_SERVER_FAILED",
            TE_RESET_FAILED => c"TE_RESET_FAILED",
            TE_NO_SLOT => c"TE_NO_SLOT",
            TE_OUTSIDE_WORKSPACE => c"TE_OUTSIDE_WORKSPACE",
            TE_NOT_FOUND => c"TE_NOT_FOUND",
            TE_NOT_A_FILE => c"TE_NOT_A_FILE",
            TE_UNSUPPORTED_TYPE => c"TE_UNSUPPORTED_TYPE",
            TE_TOO_LARGE => c"TE_TOO_LARGE",
            TE_SANDBOX_LOST => c"TE_SANDBOX_LOST",
            TE_UNSUPPORTED => c"TE_UNSUPPORTED",
            TE_IO => c"TE_IO",
            TE_DISK_FULL => c"TE_DISK_FULL",
            TE_REFUSED => c"TE_REFUSED",
            TE_BAD_ARCHIVE => c"TE_BAD_ARCHIVE",
            TE_KEEPS_PROCESSES => c"TE_KEEPS_PROCESSES",
            TE_TOO_MANY_SNAPSHOTS => c"TE_TOO_MANY_SNAPSHOTS",
            TE_ALREADY_ANSWERED => c"TE_ALREADY_ANSWERED",
            TE_LOGGER_TAKEN => c"TE_LOGGER_TAKEN",
            TE_ALREADY_BEGUN => c"TE_ALREADY_BEGUN",
            TE_NOT_BEGUN => c"TE_NOT_BEGUN",
            TE_INVALID_SPEC => c"TE_INVALID_SPEC",
            TE_FORKED => c"TE_FORKED",
            TE_PANIC => c"TE_PANIC",
        }
    }
}

/// Why a function did not do what it was asked to do: a status, and a line for people.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) status: te_status,
    pub(super) message: String,
}

impl Fault {
    pub(super) fn new(status: te_status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// An error and its causes, in one line.
    pub(super) fn of(status: te_status, error: &dyn Error) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            // Writing to a String cannot fail.
            let _ = write!(message, ": {error}");
            cause = error.source();
        }
        Self { status, message }
    }
}

impl From<SubmitError> for Fault {
    fn from(error: SubmitError) -> Self {
        let status = match error {
            SubmitError::Closed(_) => TE_CLOSED,
            SubmitError::QueueFull(_) => TE_QUEUE_FULL,
            SubmitError::CompletionQueueFull(_) => TE_COMPLETIONS_FULL,
        };
        Self::of(status, &error)
    }
}

impl From<BeginError> for Fault {
    fn from(error: BeginError) -> Self {
        let status = match error {
            BeginError::Invalid(_) => TE_INVALID_SPEC,
            BeginError::AlreadyBegun => TE_ALREADY_BEGUN,
            BeginError::Closed => TE_CLOSED,
            BeginError::QueueFull => TE_QUEUE_FULL,
            // Its text is its cause's, and is to be there once.
            BeginError::Failed(failure) => return Self::of(TE_NOT_BEGUN, &failure),
        };
        Self::of(status, &error)
    }
}

impl From<ReleaseError> for Fault {
    fn from(error: ReleaseError) -> Self {
        let status = match error {
            ReleaseError::Closed => TE_CLOSED,
            ReleaseError::ResetFailed(_) => TE_RESET_FAILED,
        };
        Self::of(status, &error)
    }
}

impl From<StartError> for Fault {
    fn from(error: StartError) -> Self {
        let status = match error {
            StartError::Config(_) => TE_INVALID_CONFIG,
            StartError::Unsupported(_) => TE_UNSUPPORTED,
            // The C ABI has no interrupt.
            StartError::Backend(_) | StartError::Thread(_) | StartError::Interrupted => {
                TE_START_FAILED
            }
            StartError::ToolServer(_) => TE_TOOL_SERVER_FAILED,
        };
        Self::of(status, &error)
    }
}

impl From<ArtifactError> for Fault {
    fn from(error: ArtifactError) -> Self {
        Self::of(status_of(&error), &error)
    }
}

impl From<SnapshotError> for Fault {
    fn from(error: SnapshotError) -> Self {
        let status = match error {
            SnapshotError::NoSlot => TE_NO_SLOT,
            SnapshotError::KeepsProcesses(_) => TE_KEEPS_PROCESSES,
            SnapshotError::TooMany(_) | SnapshotError::TooDeep(_) => TE_TOO_MANY_SNAPSHOTS,
            SnapshotError::NotFound(_) => TE_NOT_FOUND,
            SnapshotError::Invalid(_) => TE_INVALID_ARGUMENT,
            SnapshotError::SandboxLost(_) => TE_SANDBOX_LOST,
            SnapshotError::Closed => TE_CLOSED,
            SnapshotError::Unsupported(_) => TE_UNSUPPORTED,
            SnapshotError::Io(..) => TE_IO,
        };
        Self::of(status, &error)
    }
}

fn status_of(error: &ArtifactError) -> te_status {
    match error {
        ArtifactError::NoSlot => TE_NO_SLOT,
        ArtifactError::Outside => TE_OUTSIDE_WORKSPACE,
        ArtifactError::NotFound(_) => TE_NOT_FOUND,
        ArtifactError::NotAFile(_) => TE_NOT_A_FILE,
        ArtifactError::UnsupportedType(_) => TE_UNSUPPORTED_TYPE,
        ArtifactError::TooLarge { .. } => TE_TOO_LARGE,
        ArtifactError::SandboxLost(_) => TE_SANDBOX_LOST,
        ArtifactError::Closed => TE_CLOSED,
        ArtifactError::Unsupported => TE_UNSUPPORTED,
        ArtifactError::Refused(_) => TE_REFUSED,
        ArtifactError::Invalid(_) => TE_INVALID_ARGUMENT,
        ArtifactError::BadArchive(_) => TE_BAD_ARCHIVE,
        ArtifactError::DiskFull { .. } => TE_DISK_FULL,
        ArtifactError::Partial { source, .. } => status_of(source),
        ArtifactError::Io(..) => TE_IO,
    }
}

/// The body of every function: its error becomes a status and the thread's message, and so does a
/// panic.
pub(super) fn guard(run: impl FnOnce() -> Result<(), Fault>) -> te_status {
    let fault = match guarded(run) {
        Ok(Ok(())) => return TE_OK,
        Ok(Err(fault)) => fault,
        Err(panic) => Fault::new(TE_PANIC, format!("a bug in the library: {panic}")),
    };
    note(&fault.message);
    fault.status
}

/// The message's bytes. An array, so that the thread-local variable has no destructor: a thread
/// that ends after the library was unloaded would run it.
type Message = [u8; 2048];

thread_local! {
    static LAST: RefCell<Message> = const { RefCell::new([0; 2048]) };
}

fn note(message: &str) {
    LAST.with(|last| {
        let mut last = last.borrow_mut();
        let mut len = message.len().min(last.len() - 1);
        while !message.is_char_boundary(len) {
            len -= 1;
        }
        for (to, from) in last.iter_mut().zip(&message.as_bytes()[..len]) {
            // It ends at its first NUL.
            *to = if *from == 0 { b'?' } else { *from };
        }
        last[len] = 0;
    });
}

/// What went wrong in the last function that did not give TE_OK, of those called on this thread: a
/// line for people, in UTF-8, with a NUL at its end; "" if nothing has. It may hold what the host
/// passed, such as a file's name.
///
/// The text belongs to the library, and is valid until the next function that does not give TE_OK
/// on this thread, or the thread's end. Never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn te_last_error() -> *const c_char {
    LAST.with(|last| last.as_ptr().cast_const().cast())
}

/// The name of a status, such as "TE_CLOSED"; "TE_UNKNOWN" for a number that is none. Static text,
/// with a NUL at its end.
#[unsafe(no_mangle)]
pub extern "C" fn te_status_name(status: i32) -> *const c_char {
    let known = ALL.into_iter().find(|known| *known as i32 == status);
    known.map_or(c"TE_UNKNOWN", te_status::name).as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn last() -> String {
        // SAFETY: documented to be such a text.
        unsafe { CStr::from_ptr(te_last_error()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn numbers_and_names_are_distinct() {
        let numbers: std::collections::HashSet<_> = ALL.iter().map(|s| *s as i32).collect();
        let names: std::collections::HashSet<_> = ALL.iter().map(|s| s.name()).collect();
        assert_eq!((numbers.len(), names.len()), (ALL.len(), ALL.len()));
    }

    #[test]
    fn a_message_is_cut_at_a_character_and_has_no_nul_within() {
        assert_eq!(guard(|| Err(Fault::new(TE_IO, "a\0b"))), TE_IO);
        assert_eq!(last(), "a?b");
        assert_eq!(guard(|| Ok(())), TE_OK);
        assert_eq!(last(), "a?b", "what succeeds leaves it");
        guard(|| Err(Fault::new(TE_IO, format!("x{}", "é".repeat(3000)))));
        assert_eq!(last().len(), 2047);
        guard(|| Err(Fault::new(TE_IO, "y".repeat(3000))));
        assert_eq!(last().len(), 2047);
    }

    #[test]
    fn a_panic_is_a_status() {
        assert_eq!(guard(|| panic!("expected by this test")), TE_PANIC);
        assert_eq!(last(), "a bug in the library: expected by this test");
    }
}
