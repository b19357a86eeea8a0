//! How many descriptors of this process the slots of an engine need, and whether it may have them.
//!
//! Found out late, a lack of them fails every command. So they are counted at the start: what each
//! slot may hold at its fullest, and a reserve for what the engine holds for a moment or for all
//! slots together.

use std::fmt;

use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit};

use crate::egress;

/// What this process raises its soft limit to, unless it needs more: enough for what usual hosts
/// do besides.
const USUAL: u64 = 65_536;

/// The descriptors of a slot's held directories: its workspace, its `/tmp` and its home.
const DIRECTORIES: u64 = 3;
/// The jail of its commands: the socket to its first process, that process, its root.
const JAIL: u64 = 3;
/// The namespaces and the root of a slot's two machines: with the host's network, and without it.
const MACHINES: u64 = 2 * (5 + 1);
/// One that is ending meanwhile: the same, but for the socket.
const ENDING_JAIL: u64 = 2;
/// A command's output (`outputs`, `spool`): two pipes, the event of its files, and two for each of
/// the two files; before it runs the two write ends and its script instead.
const OUTPUT: u64 = 7;
/// A session of `bash_stateful` (`terminal::shell`): its command file, its status, its lines, its
/// two outputs; and its jail. Before it runs it holds two more, while there is no command.
const SESSION: u64 = 5 + JAIL;
/// A terminal of `tmux`: its input, output and errors, its root; and its jail. Before it runs it
/// holds one more, while there is no command.
const TERMINAL: u64 = 4 + JAIL;

/// The listening socket of a slot's machine that has a proxy, and that of one that is ending.
const PROXIES: u64 = 2;

/// What the engine holds itself: two epolls, two events, two `/dev/null`, the data directory's
/// three, the program of first processes.
const ENGINE: u64 = 10;
/// What is held while a process is started, for the supervisor and the terminals: both ends of its
/// pipes, its program, script and filter, a place for its pidfd, and duplicates of those with low
/// numbers.
const STARTS: u64 = 2 * 24;
/// What the four threads hold that empty slots.
const RESETS: u64 = 4 * 8;
/// What is held while a workspace is counted, as deep as one may be (`limits::disk`).
const COUNTING: u64 = 2 * 128 + 4;
/// What file tools, readers of workspaces and the executor hold.
const FILES: u64 = 50;

/// What is kept for all slots together.
pub(crate) const RESERVE: u64 = ENGINE + STARTS + RESETS + COUNTING + FILES;

/// What one slot may hold at its fullest. It has one call at a time, which is a command or a
/// session's; a session and a terminal stay. Further sessions have what is left then.
pub(crate) const PER_SLOT: u64 =
    DIRECTORIES + MACHINES + JAIL + ENDING_JAIL + OUTPUT + SESSION + TERMINAL;

/// What a start needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    /// How many slots.
    pub(crate) slots: u64,
    /// What each may hold.
    pub(crate) per_slot: u64,
    /// What this process has open already, and what is kept for all slots together.
    pub(crate) reserve: u64,
}

/// There are too few.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooFew {
    need: Need,
    limit: u64,
}

impl Need {
    /// What `slots` slots need in a process that has `open` descriptors open.
    pub(crate) fn new(slots: usize, open: u64) -> Self {
        Self { slots: slots as u64, per_slot: PER_SLOT, reserve: open + RESERVE }
    }

    /// The same, where each sandbox has a proxy: its listening socket, and what all proxies hold.
    pub(crate) fn with_proxies(self) -> Self {
        let slots = usize::try_from(self.slots).unwrap_or(usize::MAX);
        Self {
            per_slot: self.per_slot + PROXIES,
            reserve: self.reserve.saturating_add(egress::descriptors(slots)),
            ..self
        }
    }

    /// All of it.
    pub(crate) fn total(self) -> u64 {
        self.slots.saturating_mul(self.per_slot).saturating_add(self.reserve)
    }

    /// Whether the limit is high enough; `None` is no limit.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn check(self, limit: Option<u64>) -> Result<(), TooFew> {
        match limit {
            Some(limit) if limit < self.total() => Err(TooFew { need: self, limit }),
            _ => Ok(()),
        }
    }
}

impl TooFew {
    /// How many slots there could be.
    fn most_slots(self) -> u64 {
        self.limit.saturating_sub(self.need.reserve) / self.need.per_slot
    }
}

impl fmt::Display for TooFew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Need { slots, per_slot, reserve } = self.need;
        let (limit, total) = (self.limit, self.need.total());
        write!(
            f,
            "{slots} slots need {} descriptors of this process ({per_slot} each), {reserve} are the \
             reserve, the limit is {limit}: ",
            slots * per_slot
        )?;
        if let most @ 1.. = self.most_slots() {
            write!(f, "give fewer slots (at most {most}) or ")?;
        }
        write!(f, "raise it (ulimit -n {total})")
    }
}

impl std::error::Error for TooFew {}

/// How many descriptors this process has open; 0 where that cannot be seen.
pub(crate) fn open_now() -> u64 {
    std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64)
}

/// How many sessions there may be beyond one a slot, where a start needs so much.
pub(crate) fn more_sessions(need: Need, limit: Option<u64>) -> usize {
    let left = limit.map_or(u64::MAX, |limit| limit.saturating_sub(need.total()));
    usize::try_from(left / SESSION).unwrap_or(usize::MAX)
}

/// This process's soft limit of open files; `None` where there is none.
pub(crate) fn limit() -> Option<u64> {
    rustix::process::getrlimit(Resource::Nofile).current
}

/// Raises this process's soft limit of open files to 65,536, or to `needed` if that is more, as
/// far as its hard limit allows; gives the limit that it had before it was raised for the first
/// time.
pub(crate) fn raise_limit(needed: u64) -> Option<u64> {
    static BEFORE: Mutex<Option<u64>> = Mutex::new(None);
    let mut before = BEFORE.lock();
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let wanted = USUAL.max(needed);
    let raised = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    if let Some(current) = limit.current.filter(|current| *current < raised) {
        let new = Rlimit { current: Some(raised), maximum: limit.maximum };
        if rustix::process::setrlimit(Resource::Nofile, new).is_ok() {
            before.get_or_insert(current);
        }
    }
    *before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_in_the_message_and_what_would_be_right() {
        let need = Need { slots: 10, per_slot: 33, reserve: 400 };
        assert_eq!(need.total(), 730);
        assert_eq!(need.check(Some(730)), Ok(()));
        assert_eq!(need.check(None), Ok(()));
        let text = need.check(Some(729)).unwrap_err().to_string();
        assert_eq!(
            text,
            "10 slots need 330 descriptors of this process (33 each), 400 are the reserve, the limit \
             is 729: give fewer slots (at most 9) or raise it (ulimit -n 730)"
        );
        // What is advised works, and one more does not.
        let with = |slots| Need { slots, ..need };
        assert!(with(9).check(Some(729)).is_ok() && with(10).check(Some(729)).is_err());
        let text = need.check(Some(40)).unwrap_err().to_string();
        assert!(text.ends_with("the limit is 40: raise it (ulimit -n 730)"), "{text}");
    }

    #[test]
    fn a_start_needs_what_its_slots_need_and_a_reserve() {
        assert_eq!(PER_SLOT, 42);
        let need = Need::new(usize::MAX, 7);
        assert_eq!(need.total(), u64::MAX);
        assert_eq!(need.reserve, RESERVE + 7);
        assert!(open_now() >= 3);
        let need = Need { slots: 10, per_slot: 33, reserve: 400 };
        for (limit, more) in [(Some(0), 0), (Some(737), 0), (Some(738), 1), (Some(1530), 100)] {
            assert_eq!(more_sessions(need, limit), more, "{limit:?}");
        }
        assert!(more_sessions(need, None) > 1_000_000);
    }
}
