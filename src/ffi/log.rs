//! What the library logs, given to a function of the host's.

use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::sync::OnceLock;
use std::time::Duration;

use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::RwLock;

use super::executor::is_forked_process;
use super::handle::forked;
use super::status::te_status::{TE_INVALID_ARGUMENT, TE_LOGGER_TAKEN, TE_TIMEOUT};
use super::status::{Fault, guard, te_status};

/// How much is logged.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum te_log_level {
    /// Nothing.
    TE_LOG_OFF = 0,
    /// What went wrong.
    TE_LOG_ERROR = 1,
    /// And what one should know: that commands are not isolated, for one.
    TE_LOG_WARN = 2,
    /// And what one may want to know.
    TE_LOG_INFO = 3,
    /// And what helps to find a bug.
    TE_LOG_DEBUG = 4,
    /// Everything.
    TE_LOG_TRACE = 5,
}

/// Takes one line of the log. `message` is UTF-8, without a NUL or a line's end at its end, and
/// valid until the function returns. Called on any thread, by several at the same time; must not
/// block for long, throw an exception or longjmp. What the library logs while it runs, on the same
/// thread, is left out.
pub type te_log_fn = Option<
    unsafe extern "C" fn(user: *mut c_void, level: i32, message: *const c_char, message_len: usize),
>;

/// The host's function and its data.
struct Taker {
    function: unsafe extern "C" fn(*mut c_void, i32, *const c_char, usize),
    user: *mut c_void,
}

// SAFETY: the host's promise in `te_log_set`: any thread may use them.
unsafe impl Send for Taker {}
// SAFETY: as above, several at the same time.
unsafe impl Sync for Taker {}

struct Logger(RwLock<Option<Taker>>);

static LOGGER: Logger = Logger(RwLock::new(None));

/// How long a change waits for the lines that are being taken.
const PATIENCE: Duration = Duration::from_secs(10);

thread_local! {
    /// Whether this thread is in the host's function.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

impl Log for Logger {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        !INSIDE.get()
    }

    fn log(&self, record: &Record<'_>) {
        if INSIDE.get() {
            return;
        }
        // Held while the host's function runs, so that it is not in use any more once it was
        // replaced.
        let taker = self.0.read_recursive();
        let Some(Taker { function, user }) = &*taker else { return };
        let message = format!("{}: {}", record.target(), record.args());
        INSIDE.set(true);
        // SAFETY: the host's promise: a function of this type, that takes this data.
        unsafe { function(*user, level(record.level()), message.as_ptr().cast(), message.len()) };
        INSIDE.set(false);
    }

    fn flush(&self) {}
}

fn level(level: Level) -> i32 {
    let level = match level {
        Level::Error => te_log_level::TE_LOG_ERROR,
        Level::Warn => te_log_level::TE_LOG_WARN,
        Level::Info => te_log_level::TE_LOG_INFO,
        Level::Debug => te_log_level::TE_LOG_DEBUG,
        Level::Trace => te_log_level::TE_LOG_TRACE,
    };
    level as i32
}

/// Has everything up to `level` (a te_log_level) that the library logs given to `function`, with
/// `user`. NULL, or TE_LOG_OFF, ends that. There is one log for the whole process; what was set
/// before is replaced, and not in use any more when this returns TE_OK.
///
/// TE_LOGGER_TAKEN: the process has a logger already, because the host is a Rust program.
/// TE_TIMEOUT: a function that was set before has not returned for 10 seconds; nothing was
/// changed. Not to be called by a log function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_log_set(
    function: te_log_fn,
    user: *mut c_void,
    level: i32,
) -> te_status {
    guard(|| {
        static OURS: OnceLock<bool> = OnceLock::new();
        let filter = match level {
            0 => LevelFilter::Off,
            1 => LevelFilter::Error,
            2 => LevelFilter::Warn,
            3 => LevelFilter::Info,
            4 => LevelFilter::Debug,
            5 => LevelFilter::Trace,
            _ => {
                let text = format!("level is {level}; it must be a te_log_level");
                return Err(Fault::new(TE_INVALID_ARGUMENT, text));
            }
        };
        if INSIDE.get() {
            let text = "the log is not to be set by a function that takes it";
            return Err(Fault::new(TE_INVALID_ARGUMENT, text));
        }
        if is_forked_process() {
            return Err(forked());
        }
        if !*OURS.get_or_init(|| log::set_logger(&LOGGER).is_ok()) {
            let text = "this process has a logger of its own, which gets what is logged here";
            return Err(Fault::new(TE_LOGGER_TAKEN, text));
        }
        let Some(mut taker) = LOGGER.0.try_write_for(PATIENCE) else {
            let text = "the log function that was set before has not returned";
            return Err(Fault::new(TE_TIMEOUT, text));
        };
        *taker = match (function, filter) {
            (None, _) | (_, LevelFilter::Off) => None,
            (Some(function), _) => Some(Taker { function, user }),
        };
        log::set_max_level(if taker.is_some() { filter } else { LevelFilter::Off });
        Ok(())
    })
}
