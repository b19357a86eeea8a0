//! One output stream of one call: what is shown of it, and the file that has all of it.
//!
//! Whoever reads the stream – of a command (`stream`), or of a shell that is kept (`terminal`) –
//! puts here what it has read, and reads no more while this is [busy](Recording::is_busy). What is
//! shown is decided in `output`; the whole goes to `spool`, once it is too long to be shown.

use super::output::{Capture, Captured};
use super::spool::{Keep, Listener, Output, Tape};

/// One stream of a call on its way.
pub(super) struct Recording {
    capture: Capture,
    /// Where the whole of it goes, if the capture cannot hold it.
    tape: Tape,
}

impl Recording {
    /// Of a stream of which nothing was read yet.
    pub(super) fn new(output: Output, limit_chars: usize) -> Self {
        Self { capture: Capture::new(limit_chars), tape: Tape::new(output) }
    }

    /// Takes what was read. Does not block.
    pub(super) fn push(&mut self, bytes: &[u8], keep: Option<&mut Keep>) {
        if let Some(keep) = keep {
            self.keep(keep, bytes);
        }
        self.capture.push(bytes);
    }

    /// Keeps what the capture, which does not have it yet, will not hold.
    fn keep(&mut self, keep: &mut Keep, bytes: &[u8]) {
        if !self.tape.has_begun() {
            if !self.capture.would_overflow(bytes.len()) {
                return;
            }
            if let Some(whole) = self.capture.whole() {
                self.tape.take(keep, whole);
            }
        }
        self.tape.take(keep, bytes);
    }

    /// Hands over what was collected, if it is much. Must not be called while it [is
    /// busy](Self::is_busy).
    pub(super) fn hand_over_if_full(&mut self, keep: &mut Keep, listener: &dyn Listener) {
        if self.tape.is_full() {
            self.tape.hand_over(keep, listener, false);
        }
    }

    /// Whether a piece is on its way to the file. Until it is there nothing more should be read.
    pub(super) fn is_busy(&mut self) -> bool {
        self.tape.is_busy()
    }

    /// The stream has ended, or what belongs to the call: whether all of it is written. Does not
    /// block; to be called again when a piece was written.
    pub(super) fn settle(&mut self, keep: Option<&mut Keep>, listener: &dyn Listener) -> bool {
        if self.tape.is_busy() {
            return false;
        }
        let Some(keep) = keep else { return true };
        if !self.tape.is_closed() {
            if let (false, true, Some(whole)) =
                (self.tape.has_begun(), self.capture.is_cut(), self.capture.whole())
            {
                self.tape.take(keep, whole);
            }
            self.tape.hand_over(keep, listener, true);
        }
        !self.tape.is_busy()
    }

    /// What was captured. What is not written by now is given up.
    pub(super) fn finish(mut self) -> Captured {
        if self.tape.is_busy() || (self.tape.has_begun() && !self.tape.is_closed()) {
            self.tape.give_up();
        }
        let mut captured = self.capture.finish();
        captured.kept = self.tape.kept(captured.bytes);
        captured
    }
}
