//! The signals that ask the program to end: Ctrl-C, SIGTERM, SIGHUP.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The signals that came so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Signals(Arc<AtomicU32>);

impl Signals {
    /// Counts SIGINT, SIGTERM and SIGHUP from now on, instead of dying of them.
    ///
    /// # Errors
    /// Where the operating system refuses the handler.
    pub(crate) fn install() -> io::Result<Self> {
        Self::install_with(|| {})
    }

    /// The same, and calls `told` for each, on a thread of the handler's.
    ///
    /// # Errors
    /// Where the operating system refuses the handler.
    pub(crate) fn install_with(told: impl Fn() + Send + 'static) -> io::Result<Self> {
        let signals = Self::default();
        let counter = Arc::clone(&signals.0);
        ctrlc::set_handler(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            told();
        })
        .map_err(io::Error::other)?;
        Ok(signals)
    }

    /// How many came.
    pub(crate) fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}
