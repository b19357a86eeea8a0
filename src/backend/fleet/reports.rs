//! What the servers of a fleet find out about themselves, for the thread `tool-members`, which acts
//! on it: trials of their slots, and that they are about to go.
//!
//! Its lock is taken under those of the servers, and no other is taken under it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use super::faults::{Faults, Trial};
use crate::backend::BadContainer;

/// Where servers tell what they found out.
pub(super) struct Reports {
    state: Mutex<State>,
    wake: Sender<()>,
    woken: Receiver<()>,
}

struct State {
    faults: Faults,
    /// What is to be said of servers that became bad: one entry a server.
    news: Vec<(Arc<str>, Duration)>,
}

impl Reports {
    /// Nothing was told yet. A bad server is left alone for `pause` at first.
    pub(super) fn new(pause: Duration) -> Self {
        let (wake, woken) = bounded(1);
        let state = State { faults: Faults::new(pause), news: Vec::new() };
        Self { state: Mutex::new(state), wake, woken }
    }

    /// Has the thread look what is to be done. Does not block.
    pub(super) fn wake(&self) {
        // Full: it is about to look.
        let _ = self.wake.try_send(());
    }

    /// Receives when there is something to look at.
    pub(super) fn woken(&self) -> &Receiver<()> {
        &self.woken
    }

    /// A slot of a server was tried, where the executor has `held` slots.
    pub(super) fn tried(&self, addr: &Arc<str>, slot: usize, held: usize, trial: Trial) {
        let mut state = self.state.lock();
        if let Some(pause) = state.faults.tried(addr, slot, held, trial, Instant::now()) {
            state.news.retain(|(known, _)| known != addr);
            state.news.push((addr.clone(), pause));
            drop(state);
            self.wake();
        }
    }

    /// Whether a server is bad.
    pub(super) fn is_bad(&self, addr: &str, now: Instant) -> bool {
        self.state.lock().faults.is_bad(addr, now)
    }

    /// When the next bad server may be tried again.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        self.state.lock().faults.due(now)
    }

    /// The servers that are bad, and how many became so.
    pub(super) fn bad(&self) -> (Vec<BadContainer>, u64) {
        let state = self.state.lock();
        (state.faults.bad(Instant::now()), state.faults.found())
    }

    /// Forgets all servers but those that are known elsewhere.
    pub(super) fn keep_only(&self, is_known: impl Fn(&str) -> bool) {
        self.state.lock().faults.keep_only(is_known);
    }

    /// Says in the log which servers became bad.
    pub(super) fn tell(&self) {
        let (news, bad) = {
            let mut state = self.state.lock();
            (std::mem::take(&mut state.news), state.faults.bad(Instant::now()))
        };
        for (addr, pause) in news {
            let why = bad.iter().find(|bad| *bad.addr == *addr).map_or("", |bad| &bad.why);
            log::warn!(
                "the sandbox server {addr} is bad: its slots cannot be used ({why}); its \
                 trajectories finish there, others go elsewhere, and it is tried again in {} s",
                pause.as_secs()
            );
        }
    }
}
