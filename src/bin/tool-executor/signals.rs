//! The signals that ask the program to end: SIGINT (Ctrl-C), SIGTERM, SIGHUP.
//!
//! A thread of its own, `tool-signals`, counts them and tells of each; what they mean is for the
//! commands to say. A signal that this process was started with ignored stays ignored, so that
//! `nohup` and a shell's `&` work; one that is blocked is heeded, since only mistakes hand that
//! down. SIGQUIT keeps what it does: it is for those who want a core file.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Handle;

/// Signals that are told of and not yet taken, at most. Beyond the second one none means anything.
const UNTAKEN: usize = 16;

/// The signals that came so far. Its drop ends the thread, and leaves the signals without effect.
#[derive(Debug)]
pub(crate) struct Signals {
    count: Arc<AtomicU32>,
    /// The number of the first one, or 0.
    first: Arc<AtomicI32>,
    arrivals: Receiver<()>,
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Signals {
    /// Counts the signals from now on, instead of dying of them.
    ///
    /// # Errors
    /// The operating system refuses the handler or the thread.
    pub(crate) fn install() -> io::Result<Self> {
        let mut heeded = Vec::new();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            if !is_ignored(signal)? {
                heeded.push(signal);
            }
        }
        // A limit on the size of files (`ulimit -f`) is then an error of writing and not our end.
        // Unlike one that is ignored, a signal that is handled does in a command what it always
        // does.
        if !is_ignored(SIGXFSZ)? {
            signal_hook::flag::register(SIGXFSZ, Arc::default())?;
        }
        let mut signals = signal_hook::iterator::Signals::new(&heeded)?;
        let handle = signals.handle();
        let count = Arc::new(AtomicU32::new(0));
        let first = Arc::new(AtomicI32::new(0));
        let (counter, noted) = (count.clone(), first.clone());
        let (sender, arrivals) = bounded(UNTAKEN);
        #[expect(
            clippy::disallowed_methods,
            reason = "the library's owned threads are not public; this one is named and joined"
        )]
        let thread = thread::Builder::new().name("tool-signals".to_owned()).spawn(move || {
            if let Err(error) = unblock(&heeded) {
                log::warn!("signals that were blocked stay so: {error}");
            }
            for signal in signals.forever() {
                // Before it is told of. Refused where there was one before.
                let _ = noted.compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed);
                counter.fetch_add(1, Ordering::Relaxed);
                // Refused where so many wait that one more says nothing new.
                let _ = sender.try_send(());
            }
        })?;
        Ok(Self { count, first, arrivals, handle, thread: Some(thread) })
    }

    /// How many came.
    pub(crate) fn count(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether the first one was SIGTERM: a scheduler's or an orchestrator's word that the end is
    /// near. Known as soon as that signal is told of.
    pub(crate) fn is_terminated(&self) -> bool {
        self.first.load(Ordering::Relaxed) == SIGTERM
    }

    /// Tells of each signal, once.
    pub(crate) fn arrivals(&self) -> &Receiver<()> {
        &self.arrivals
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            // It only fails by a panic, which was told when it happened.
            let _ = thread.join();
        }
    }
}

/// Whether this process does nothing at this signal.
fn is_ignored(signal: libc::c_int) -> io::Result<bool> {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: with no new action it only writes the present one, into memory of its size.
    let result = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it succeeded, so it has written all of it.
    let action = unsafe { action.assume_init() };
    Ok(action.sa_sigaction == libc::SIG_IGN)
}

/// Lets this thread take these signals, for the whole process.
fn unblock(signals: &[libc::c_int]) -> io::Result<()> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: it writes all of a set of its size.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in signals {
        // SAFETY: the set was made above.
        unsafe { libc::sigaddset(set.as_mut_ptr(), *signal) };
    }
    // SAFETY: the set was made above, and the former one is not asked for.
    let error =
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut()) };
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}
