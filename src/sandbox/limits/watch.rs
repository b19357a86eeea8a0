//! Keeps slots within their memory and their workspaces' size where the kernel does not do it.
//!
//! Two threads, `tool-watch-mem` and `tool-watch-disk`, look at the sandboxes in which a command
//! has run for 100 ms, and tell whoever runs the command that it must be killed. How often they
//! look depends on how soon a sandbox could be at its limit: 4 to 40 times a second at the memory,
//! 1 to 10 times at the disk. Shorter commands cost an entry in a table. A thread that has much to
//! look at pauses the longer, up to a second. One slot can hold a look up, for a second with its
//! memory and for five with its disk; that is why there are two.
//!
//! Where the kernel limits memory, and kills one process after the other for it (cgroups of version
//! 1), the first thread looks ten times a second at whether it has killed one: then the command is
//! ended as a whole, since half of it is of no use.
//!
//! What a sandbox may have is said with it. A thread is started for the first that needs it, and
//! looks at those only of which it keeps a limit.
//!
//! # What is counted
//! - *Memory*: that of all processes of the sandbox, shared memory and page tables included, and
//!   memory files (`memfd`) that they hold open, and what is in the sandbox's file systems in
//!   memory (`/dev/shm`, its root). Pages which several share count once; to see that is slow, and
//!   is done only where the sum without it is above the limit.
//! - *Workspace*: what the slot's directories take up, how many files they are, and removed files
//!   that are still open. They are counted when the file system has lost half of what the slot has
//!   left, and every two
//!   seconds otherwise; also once after a command, since many short ones can fill a disk, too.
//!
//! # What is not
//! Memory that no process has: System V segments that nobody is attached to (the filter of system
//! calls keeps them small), the buffers of sockets and pipes. For those there are cgroups.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Exceeded;
use super::cgroup::KillCount;
use super::disk::{self, Usage};
use super::sample::{self, Nameless};
use crate::sandbox::workspace::Workspace;

/// How long a command runs before it is looked at.
const INTERVAL: Duration = Duration::from_millis(100);
/// The least and the longest time between two looks at the memory, and how many bytes a second a
/// sandbox is taken to fill at most.
const MEMORY_PACE: Pace = Pace {
    least: Duration::from_millis(25),
    most: Duration::from_millis(250),
    bytes_per_second: 16 << 30,
};
/// As of the memory.
const DISK_PACE: Pace =
    Pace { least: INTERVAL, most: Duration::from_secs(1), bytes_per_second: 8 << 30 };
/// Of its time the thread spends one part in so many looking.
const COST_SHARE: u32 = 10;
/// No pause is longer than this, so that no slot is out of sight for long.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Counting one sandbox's memory exactly may take so long.
const EXACT_LIMIT: Duration = Duration::from_secs(1);
/// Memory is counted exactly again after this at the latest.
const EXACT_INTERVAL: Duration = Duration::from_secs(5);
/// Open files are looked through no more often than this.
const FILES_INTERVAL: Duration = Duration::from_millis(500);
/// A workspace is counted so often where nothing else makes it necessary.
const DISK_INTERVAL: Duration = Duration::from_secs(2);
/// How long after a command its workspace is counted.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// How often is looked.
struct Pace {
    least: Duration,
    most: Duration,
    bytes_per_second: u64,
}

impl Pace {
    /// How long to wait where a sandbox has so many bytes left: half of the time in which it could
    /// use them up.
    fn pause(&self, left: u64) -> Duration {
        let seconds = left as f64 / self.bytes_per_second as f64 / 2.0;
        Duration::from_secs_f64(seconds).clamp(self.least, self.most)
    }
}

/// Called on a thread of the watch when a limit is exceeded, again and again until that ends. Must
/// only hand it on.
pub(crate) type Alarm = Arc<dyn Fn(Exceeded) + Send + Sync>;

/// The limits of a sandbox that are watched.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Watched {
    pub(super) memory: Option<u64>,
    /// Whether what the kernel kills for want of memory is ended as a whole.
    pub(super) kills: bool,
    pub(super) workspace: Option<Usage>,
}

/// The handle of the threads. Dropping it is [`close`](Self::close).
#[derive(Default)]
pub(super) struct Watcher {
    shared: Arc<Shared>,
    threads: Mutex<Vec<(Role, JoinHandle<()>)>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    entries: HashMap<u64, Entry>,
    next: u64,
    /// Workspaces in which a command has ended since they were counted, and when the first did.
    dirty: HashMap<PathBuf, Dirty>,
    /// Workspaces above their limit.
    full: HashSet<PathBuf>,
    /// Workspaces that were emptied: what is known of them is void.
    emptied: HashSet<PathBuf>,
    /// A thread waits for an entry.
    asleep: bool,
    closing: bool,
}

#[derive(Clone)]
struct Entry {
    init: i32,
    workspace: Arc<Workspace>,
    watched: Watched,
    /// Where the kernel kills one process after the other: how many it has, and how many it had
    /// when the command began.
    kills: Option<(KillCount, u64)>,
    /// Since when a command runs in it, and who is told when it must be killed.
    busy: Option<(Instant, Alarm)>,
}

/// A workspace that is to be counted.
struct Dirty {
    workspace: Arc<Workspace>,
    limit: Usage,
    since: Instant,
}

/// A sandbox that is being watched, until this is dropped.
pub(super) struct Ticket {
    shared: Arc<Shared>,
    id: u64,
}

impl Watcher {
    /// Starts the thread of a role, unless it runs already.
    ///
    /// # Errors
    /// The system gives no thread; the watch was closed.
    pub(super) fn start(&self, role: Role) -> io::Result<()> {
        let mut threads = self.threads.lock();
        if threads.iter().any(|(started, _)| *started == role) {
            return Ok(());
        }
        if self.shared.state.lock().closing {
            return Err(io::Error::other("the sandbox is closed"));
        }
        let name = match role {
            Role::Memory | Role::Kills => "tool-watch-mem",
            Role::Disk => "tool-watch-disk",
        };
        let mut thread = Thread { role, known: HashMap::new(), disks: HashMap::new() };
        let shared = self.shared.clone();
        #[expect(
            clippy::disallowed_methods,
            reason = "`close` joins it, which takes a look at most"
        )]
        let started =
            std::thread::Builder::new().name(name.to_owned()).spawn(move || thread.run(&shared))?;
        threads.push((role, started));
        Ok(())
    }

    /// Watches the sandbox with this first process, in which no command runs yet. The threads that
    /// this needs have been started.
    pub(super) fn add(
        &self,
        init: i32,
        workspace: Arc<Workspace>,
        watched: Watched,
        kills: Option<KillCount>,
    ) -> Ticket {
        let kills = kills.map(|count| (count, 0));
        let mut state = self.shared.state.lock();
        let id = state.next;
        state.next += 1;
        state.entries.insert(id, Entry { init, workspace, watched, kills, busy: None });
        Ticket { shared: self.shared.clone(), id }
    }

    /// Whether the workspace was above its limit when it was last counted.
    pub(super) fn is_full(&self, workspace: &Path) -> bool {
        self.shared.state.lock().full.contains(workspace)
    }

    /// Something was put into the workspace from outside: it is counted soon.
    pub(super) fn was_filled(&self, workspace: &Arc<Workspace>, watched: Watched) {
        let mut state = self.shared.state.lock();
        state.mark_dirty(workspace.clone(), watched);
        self.shared.wake(&mut state);
    }

    /// Ends the threads and waits for that, which takes no longer than one look. Calling it again
    /// does nothing.
    pub(super) fn close(&self) {
        // Of those that start a thread each has seen the end coming, or is seen here.
        let threads = {
            let mut threads = self.threads.lock();
            self.shared.state.lock().closing = true;
            self.shared.changed.notify_all();
            std::mem::take(&mut *threads)
        };
        for (_, thread) in threads {
            if thread.join().is_err() {
                log::error!("a thread that watches limits has panicked");
            }
        }
    }

    /// Forgets what is known of a workspace that was emptied.
    pub(super) fn emptied(&self, workspace: &Path) {
        let mut state = self.shared.state.lock();
        state.full.remove(workspace);
        state.dirty.remove(workspace);
        state.emptied.insert(workspace.to_owned());
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn wake(&self, state: &mut State) {
        if std::mem::take(&mut state.asleep) {
            self.changed.notify_all();
        }
    }
}

impl Ticket {
    /// A command runs in the sandbox from now on: it is looked at. Or another one does, or what the
    /// latest has left running: then it goes on being looked at, and this alarm is called.
    pub(super) fn occupied(&self, alarm: Alarm) {
        let mut state = self.shared.state.lock();
        let Some(entry) = state.entries.get_mut(&self.id) else { return };
        if let (None, Some((count, before))) = (&entry.busy, &mut entry.kills) {
            *before = count.read();
        }
        let since = entry.busy.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        entry.busy = Some((since, alarm));
        self.shared.wake(&mut state);
    }

    /// No command runs in it any more.
    pub(super) fn vacated(&self) {
        let mut state = self.shared.state.lock();
        let Some(entry) = state.entries.get_mut(&self.id) else { return };
        if entry.busy.take().is_some() {
            let (workspace, watched) = (entry.workspace.clone(), entry.watched);
            state.mark_dirty(workspace, watched);
            self.shared.wake(&mut state);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        if let Some(entry) = state.entries.remove(&self.id)
            && entry.busy.is_some()
        {
            state.mark_dirty(entry.workspace, entry.watched);
            self.shared.wake(&mut state);
        }
    }
}

impl State {
    fn mark_dirty(&mut self, workspace: Arc<Workspace>, watched: Watched) {
        let Some(limit) = watched.workspace else { return };
        let path = workspace.path();
        if !self.dirty.contains_key(path) {
            let dirty = Dirty { limit, since: Instant::now(), workspace: workspace.clone() };
            self.dirty.insert(path.to_owned(), dirty);
        }
    }
}

/// What a thread looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The memory of a sandbox.
    Memory,
    /// What the kernel kills of a sandbox's for want of memory.
    Kills,
    /// What a workspace takes up.
    Disk,
}

impl Role {
    /// Whether it is its thread that keeps one of these limits.
    fn keeps(self, watched: &Watched) -> bool {
        match self {
            Self::Memory => watched.memory.is_some(),
            Self::Kills => watched.kills,
            Self::Disk => watched.workspace.is_some(),
        }
    }

    /// How long to wait where the sandbox that is nearest to such a limit has `left`. One that has
    /// just begun is looked at soon, and may fill all of it.
    fn pause(self, left: u64, smallest: u64) -> Duration {
        match self {
            Self::Memory => MEMORY_PACE.pause(left.min(smallest)),
            Self::Kills => INTERVAL,
            Self::Disk => DISK_PACE.pause(left.min(smallest)),
        }
    }

    /// All that a sandbox may fill of what this thread looks at, in bytes.
    fn all_of(self, watched: &Watched) -> u64 {
        let all = match self {
            Self::Memory => watched.memory,
            Self::Kills => None,
            Self::Disk => watched.workspace.map(bytes_until_full),
        };
        all.unwrap_or(u64::MAX)
    }
}

/// What is to be looked at now.
struct Due {
    entries: Vec<(u64, Entry)>,
    dirty: Vec<Dirty>,
    /// The least that any sandbox may fill, in bytes.
    smallest: u64,
}

/// A thread's own state.
struct Thread {
    role: Role,
    known: HashMap<u64, Known>,
    disks: HashMap<PathBuf, Disk>,
}

/// What is known of a sandbox.
struct Known {
    nameless: Nameless,
    /// When its open files are looked through again.
    files_due: Instant,
    /// When its memory may be counted exactly again.
    exact_due: Instant,
}

/// What is known of a workspace.
#[derive(Debug, Clone, Copy)]
struct Disk {
    size: Usage,
    counted: Instant,
    cost: Duration,
    /// What the file system had left then, and at the first time.
    free: Usage,
    free_at_first: Usage,
}

impl Thread {
    fn run(&mut self, shared: &Shared) {
        let mut pause = INTERVAL;
        loop {
            let due = {
                let mut state = shared.state.lock();
                let until = Instant::now() + pause;
                loop {
                    if state.closing {
                        return;
                    }
                    let idle = !state.entries.values().any(|entry| self.is_for(entry));
                    let now = Instant::now();
                    if idle && (state.dirty.is_empty() || self.role != Role::Disk) {
                        state.asleep = true;
                        shared.changed.wait(&mut state);
                    } else if now < until {
                        shared.changed.wait_until(&mut state, until);
                    } else {
                        break;
                    }
                }
                if self.role == Role::Disk {
                    for emptied in state.emptied.drain() {
                        self.disks.remove(&emptied);
                    }
                }
                self.known.retain(|id, _| state.entries.contains_key(id));
                self.due(&mut state)
            };
            let begun = Instant::now();
            let looked = catch_unwind(AssertUnwindSafe(|| self.look(shared, due)));
            pause = looked.unwrap_or_else(|_| {
                log::error!("a look at the limits has panicked");
                INTERVAL
            });
            pause = pause.max((begun.elapsed() * (COST_SHARE - 1)).min(LONGEST_PAUSE));
        }
    }

    /// Whether a command runs in a sandbox of which it keeps a limit.
    fn is_for(&self, entry: &Entry) -> bool {
        entry.busy.is_some() && self.role.keeps(&entry.watched)
    }

    /// What is to be looked at now.
    fn due(&self, state: &mut State) -> Due {
        let now = Instant::now();
        let is_due = |since: Instant, after| now.saturating_duration_since(since) >= after;
        let all = state.entries.values().map(|entry| self.role.all_of(&entry.watched));
        let smallest = all.min().unwrap_or(u64::MAX);
        let entries = state
            .entries
            .iter()
            .filter(|(_, entry)| {
                let since = entry.busy.as_ref().map(|(since, _)| *since);
                self.is_for(entry) && since.is_some_and(|since| is_due(since, INTERVAL))
            })
            .map(|(id, entry)| (*id, entry.clone()))
            .collect();
        let is_counted = |_: &PathBuf, dirty: &mut Dirty| is_due(dirty.since, AFTERWARDS);
        let dirty = match self.role {
            Role::Disk => state.dirty.extract_if(is_counted).map(|(_, dirty)| dirty).collect(),
            Role::Memory | Role::Kills => Vec::new(),
        };
        Due { entries, dirty, smallest }
    }

    /// Looks at everything, and tells how long to pause.
    fn look(&mut self, shared: &Shared, due: Due) -> Duration {
        let mut left = u64::MAX;
        for (id, entry) in &due.entries {
            let Some((began, alarm)) = &entry.busy else { continue };
            if self.role == Role::Kills {
                if entry.kills.as_ref().is_some_and(|(count, before)| count.read() > *before) {
                    alarm(Exceeded::Memory);
                }
                continue;
            }
            let found = sample::processes(entry.init);
            let now = Instant::now();
            let known = self.known.entry(*id).or_insert_with(|| Known {
                nameless: Nameless::default(),
                files_due: now,
                exact_due: now,
            });
            if now >= known.files_due {
                let device = entry.workspace.path().metadata().map_or(0, |data| data.dev());
                known.nameless = sample::nameless_files(&found.pids, device);
                known.nameless.memory += disk::bytes_in_memory(entry.init);
                known.files_due = now + FILES_INTERVAL.max(now.elapsed() * 2 * COST_SHARE);
            }
            let nameless = known.nameless;
            match (self.role, entry.watched) {
                (Role::Memory, Watched { memory: Some(limit), .. }) => {
                    let most = found.bytes.saturating_add(nameless.memory);
                    left = left.min(limit.saturating_sub(most));
                    if known.is_out_of_memory(limit, most, &found.pids) {
                        alarm(Exceeded::Memory);
                    }
                }
                (Role::Disk, Watched { workspace: Some(limit), .. }) => {
                    let reason = Reason::Command { began: *began };
                    let exceeded =
                        self.exceeded(shared, limit, &entry.workspace, nameless.disk, reason);
                    if let Some(exceeded) = exceeded {
                        alarm(exceeded);
                    }
                    let known = self.disks.get(entry.workspace.path());
                    let used = known.map_or_else(Usage::default, |known| known.size);
                    let rest = limit.minus(used.with_bytes(nameless.disk));
                    left = left.min(bytes_until_full(rest));
                }
                _ => {}
            }
        }
        for Dirty { workspace, limit, .. } in due.dirty {
            self.exceeded(shared, limit, &workspace, 0, Reason::Afterwards);
        }
        self.role.pause(left, due.smallest)
    }

    /// Counts the workspace if that is due, and tells for what what runs in it has to end.
    fn exceeded(
        &mut self,
        shared: &Shared,
        limit: Usage,
        workspace: &Workspace,
        nameless: u64,
        reason: Reason,
    ) -> Option<Exceeded> {
        let path = workspace.path();
        let free = disk::free(path)?;
        let before = self.disks.get(path).copied();
        if matches!(reason, Reason::Command { .. })
            && before.is_some_and(|before| !is_due(&before, limit, free, nameless))
        {
            return None;
        }
        let begun = Instant::now();
        let size = disk::size(workspace.directories());
        let free_at_first = before.map_or(free, |before| before.free_at_first);
        let size = size.used(nameless, free_at_first.minus(free));
        let known = Disk { size, counted: begun, cost: begun.elapsed(), free, free_at_first };
        {
            // Unless it was emptied meanwhile.
            let mut state = shared.state.lock();
            if state.emptied.contains(path) {
                return None;
            }
            if size.exceeds(limit) {
                state.full.insert(path.to_owned());
            } else {
                state.full.remove(path);
            }
        }
        self.disks.insert(path.to_owned(), known);
        let Reason::Command { began } = reason else { return None };
        let before =
            before.map(|before| Before { size: before.size, by_itself: before.counted >= began });
        let is_bytes = size.bytes > limit.bytes;
        let what = if is_bytes { Exceeded::Workspace } else { Exceeded::Files };
        is_exceeded(limit, before, size).then_some(what)
    }
}

impl Known {
    /// Whether the processes use more than the limit, where they may seem to use the `most`.
    fn is_out_of_memory(&mut self, limit: u64, most: u64, pids: &[i32]) -> bool {
        let begun = Instant::now();
        if most <= limit || begun < self.exact_due {
            return false;
        }
        let exact = sample::exact(pids, begun + EXACT_LIMIT);
        self.exact_due = begun + (begun.elapsed() * (COST_SHARE + 1)).min(EXACT_INTERVAL);
        // Of shared memory and memory files some are both.
        exact.map_or(most, |exact| exact.own + exact.shared.max(self.nameless.memory)) > limit
    }
}

/// Whether a workspace should be counted again.
fn is_due(before: &Disk, limit: Usage, free: Usage, nameless: u64) -> bool {
    let since = before.counted.elapsed();
    let rest = limit.minus(before.size.with_bytes(nameless));
    let lost = before.free.minus(free);
    let is_near =
        (lost.bytes >= rest.bytes / 2 || lost.files > rest.files / 2) && since >= before.cost * 3;
    is_near || since >= DISK_INTERVAL.max(before.cost * 2 * COST_SHARE)
}

/// How many bytes could be written until a slot that has so much left is full, where files are made
/// as fast as they can be.
fn bytes_until_full(rest: Usage) -> u64 {
    /// In the time that making a file takes so many bytes can be written.
    const PER_FILE: u64 = 16 << 10;
    rest.bytes.min(rest.files.saturating_mul(PER_FILE))
}

/// Why a workspace is counted.
#[derive(Debug, Clone, Copy)]
enum Reason {
    /// For a command that runs in it since then.
    Command { began: Instant },
    /// Its last command has ended.
    Afterwards,
}

/// What was counted the last time.
#[derive(Debug, Clone, Copy)]
struct Before {
    size: Usage,
    /// Whether the command was there already: what came since then it has written itself.
    by_itself: bool,
}

/// Whether a command has to end. One that finds the workspace full and does not make it fuller is
/// probably cleaning up. What the commands before it have written after they were counted is not
/// its doing: of a slot that was full the first count that a command sees is only what it is
/// measured by.
fn is_exceeded(limit: Usage, before: Option<Before>, now: Usage) -> bool {
    now.exceeds(limit)
        && before.is_none_or(|before| {
            let more = now.exceeds_more(limit, before.size);
            !before.size.exceeds(limit) || (before.by_itself && more)
        })
}

#[cfg(test)]
mod tests;
