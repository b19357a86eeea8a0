//! What the batcher tells the user by the log.
//!
//! A log may block – on a full pipe, in the user's own code –, so the batcher does not write to
//! it: a thread of a pool does, one at a time however much there is to tell.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::workers::{Workers, guarded};

/// How many texts may wait for the log. Those beyond it are dropped, which is told.
const MOST: usize = 64;

/// The texts that wait.
#[derive(Debug, Default)]
pub(crate) struct Notices(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<String>,
    dropped: usize,
    /// Whether a thread is writing.
    writing: bool,
}

impl Notices {
    /// Has a thread of `pool` write a text as a warning. Does not block.
    pub(crate) fn warn(self: &Arc<Self>, text: String, pool: &Workers) {
        if self.add(text) {
            let notices = self.clone();
            pool.spawn(move || notices.write(|text| log::warn!("{text}")));
        }
    }

    /// Adds a text; says whether a thread is to write.
    fn add(&self, text: String) -> bool {
        let mut state = self.0.lock();
        if state.waiting.len() >= MOST {
            state.dropped += 1;
        } else {
            state.waiting.push_back(text);
        }
        !std::mem::replace(&mut state.writing, true)
    }

    /// Writes until nothing waits.
    fn write(&self, mut log: impl FnMut(&str)) {
        while let Some(text) = self.next() {
            // The log may be the user's code.
            if let Err(panic) = guarded(|| log(&text)) {
                drop(panic);
            }
        }
    }

    fn next(&self) -> Option<String> {
        let mut state = self.0.lock();
        if let Some(text) = state.waiting.pop_front() {
            return Some(text);
        }
        match std::mem::take(&mut state.dropped) {
            0 => {
                state.writing = false;
                None
            }
            dropped => Some(format!("{dropped} more warnings were dropped: the log was too slow")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_writes_whatever_comes_meanwhile_and_what_is_too_much_is_counted() {
        let notices = Notices::default();
        assert!(notices.add("0".to_owned()));
        let mut written = Vec::new();
        notices.write(|text| {
            if written.is_empty() {
                for number in 1..=MOST + 2 {
                    assert!(!notices.add(number.to_string()), "a thread writes already");
                }
            }
            written.push(text.to_owned());
            assert_ne!(text, "5", "expected by this test");
        });
        assert_eq!(written.len(), MOST + 2);
        assert_eq!(written[MOST], MOST.to_string());
        assert!(written[MOST + 1].starts_with("2 more warnings"), "{written:?}");
        assert!(notices.add("again".to_owned()), "the thread has ended");
    }
}
