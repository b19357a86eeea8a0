//! Which servers a fleet has, while it runs: those that it was started with, those that are added,
//! and those that are to go and still have trajectories.
//!
//! What is wanted is a list of URLs, told ([`Members::want`]) or read from where it is kept
//! ([`ServerList`]), which the thread `tool-list` looks at again and again: a name server or a file
//! system that hangs holds up nothing else. The thread `tool-members` brings the fleet to it: it
//! has a new server met by a thread of its own, `tool-connect-N`, again and again until it answers
//! or is wanted no more; it has one that is wanted no more *drained*, and forgets it when the last
//! of its slots was given back.
//!
//! A server that is bad ([`faults`](super::faults)) is not wanted for as long as it is, nor one
//! that says that it is about to end.
//!
//! # Bounds
//! So many servers are met at a time as at a start. A server that is wanted no more and hangs is
//! forgotten as soon as it is given up.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, at, bounded, select};
use parking_lot::{Mutex, RwLock};

use super::list::ServerList;
use super::start::{ASKED_AT_ONCE, GIVE_UP, Meeting, Met};
use super::{Connection, Making, Server};
use crate::backend::{ContainerChange, Watcher};
use crate::error::BackendError;
use crate::interrupt::Interrupt;
use crate::thread::OwnedThread;
use crate::workers::guarded;

/// How long one try to meet a new server takes at most; then there is another.
const TRY: Duration = Duration::from_secs(20);
/// The pause after a server could not be met.
const PAUSE: Duration = Duration::from_secs(2);
/// How often it is looked whether a server that is to go can go.
const LOOK: Duration = Duration::from_millis(100);

/// A server of the fleet.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) number: usize,
    pub(super) connection: Connection,
    pub(super) server: Server,
    /// It goes as soon as nothing of it is in use.
    is_draining: bool,
}

/// The servers of a fleet.
pub(super) struct Members {
    shared: Arc<Shared>,
    thread: Mutex<Option<OwnedThread>>,
    /// The one that looks at the list.
    list_thread: Mutex<Option<OwnedThread>>,
}

struct Shared {
    making: Arc<Making>,
    table: RwLock<BTreeMap<Arc<str>, Member>>,
    state: Mutex<State>,
    stop: Interrupt,
}

#[derive(Default)]
struct State {
    wanted: HashMap<Arc<str>, Connection>,
    /// Who is told what becomes of the servers, as soon as there is one.
    watcher: Option<Watcher>,
    next_number: usize,
    /// Why servers that are wanted are not there yet.
    awaited: BTreeMap<Arc<str>, String>,
}

/// What is to be done for the fleet to be what is wanted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Difference {
    /// Servers to meet.
    meet: Vec<Arc<str>>,
    /// Servers whose meeting is to be given up.
    leave: Vec<Arc<str>>,
    /// Members to be drained.
    drain: Vec<Arc<str>>,
    /// Members that were being drained and stay.
    keep: Vec<Arc<str>>,
}

impl Difference {
    /// Between what is wanted and what there is: members, with whether they are being drained, and
    /// servers that are being met. Pure.
    fn of(
        wanted: &BTreeSet<Arc<str>>,
        members: &BTreeMap<Arc<str>, bool>,
        met: &BTreeSet<Arc<str>>,
    ) -> Self {
        let is_new = |addr: &&Arc<str>| !members.contains_key(*addr) && !met.contains(*addr);
        let chosen = |is_draining: bool| {
            let members = members.iter().filter(move |(addr, draining)| {
                **draining == is_draining && wanted.contains(*addr) == is_draining
            });
            members.map(|(addr, _)| addr.clone()).collect()
        };
        Self {
            meet: wanted.iter().filter(is_new).cloned().collect(),
            leave: met.iter().filter(|addr| !wanted.contains(*addr)).cloned().collect(),
            drain: chosen(false),
            keep: chosen(true),
        }
    }
}

impl Members {
    /// None yet.
    pub(super) fn new(making: Arc<Making>) -> Self {
        let shared = Shared {
            making,
            table: RwLock::default(),
            state: Mutex::default(),
            stop: Interrupt::new(),
        };
        Self { shared: Arc::new(shared), thread: Mutex::default(), list_thread: Mutex::default() }
    }

    /// The fleet begins with these.
    pub(super) fn begin_with(&self, servers: Vec<(Connection, Server)>) {
        let mut state = self.shared.state.lock();
        let mut table = self.shared.table.write();
        for (number, (connection, server)) in servers.into_iter().enumerate() {
            let addr: Arc<str> = connection.url.as_str().into();
            state.wanted.insert(addr.clone(), connection.clone());
            state.next_number = number + 1;
            table.insert(addr, Member { number, connection, server, is_draining: false });
        }
    }

    /// The server at this address.
    pub(super) fn get(&self, addr: &str) -> Option<Member> {
        self.shared.table.read().get(addr).cloned()
    }

    /// All servers, those that are to go, too.
    pub(super) fn all(&self) -> Vec<Member> {
        self.shared.table.read().values().cloned().collect()
    }

    /// Tells `watcher` from now on what becomes of the servers, and now which slots they give.
    pub(super) fn watch(&self, watcher: Watcher) {
        let mut state = self.shared.state.lock();
        for member in self.all() {
            member.watch(watcher.clone());
        }
        state.watcher = Some(watcher);
        drop(state);
        // Without it a bad server is used on, and the log says so.
        if let Err(error) = self.start() {
            log::error!("no thread for the changes of sandbox servers: {error}");
        }
    }

    /// These servers are wanted from now on.
    ///
    /// # Errors
    /// A URL makes no sense, or is there twice: nothing has changed then. Or there is no thread.
    pub(super) fn want(&self, urls: &[String]) -> Result<(), BackendError> {
        self.shared.want(urls).map_err(BackendError::new)?;
        self.start().map_err(|error| BackendError::with_source("cannot start a thread", error))
    }

    /// Looks at the list from now on, and waits until a server of it is there; or not at all, if it
    /// is empty.
    ///
    /// # Errors
    /// There is no list, none of it answers until the deadline, or the interrupt.
    pub(super) fn await_first(
        &self,
        list: &ServerList,
        deadline: Instant,
        interrupt: &Interrupt,
    ) -> Result<(), BackendError> {
        let (tell, told) = bounded(1);
        let (shared, watched) = (self.shared.clone(), list.clone());
        let watch = move || shared.watch_list(watched, &tell);
        let thread = OwnedThread::spawn("tool-list", watch);
        let thread =
            thread.map_err(|error| BackendError::with_source("cannot start a thread", error))?;
        *self.list_thread.lock() = Some(thread);
        let first = select! {
            recv(told) -> first => first.unwrap_or_else(|_| Err("reading it panicked".to_owned())),
            recv(interrupt.fired()) -> _ => return Err(BackendError::interrupted()),
            recv(at(deadline)) -> _ => Err(format!("{} cannot be read in time", list.what())),
        };
        let urls = first.map_err(BackendError::new)?;
        if urls.is_empty() {
            log::warn!("{} is empty: calls wait until there is a server", list.what());
        }
        self.want(&urls)?;
        while !urls.is_empty() && self.shared.table.read().is_empty() {
            if Instant::now() >= deadline {
                let state = self.shared.state.lock();
                let why = state.awaited.iter().next();
                let why = why.map(|(url, why)| format!(" ({url}: {why})")).unwrap_or_default();
                let text = format!("no server of {} can be used{why}", list.what());
                return Err(BackendError::new(text));
            }
            if interrupt.wait_timeout(LOOK / 4) {
                return Err(BackendError::interrupted());
            }
        }
        Ok(())
    }

    /// A slot was given back.
    pub(super) fn given_back(&self) {
        self.shared.wake();
    }

    /// Ends the thread, and gives all servers, to be closed. What they said of themselves is still
    /// told.
    pub(super) fn close(&self, deadline: Instant) -> Vec<Server> {
        self.shared.stop.interrupt();
        let threads = [self.thread.lock().take(), self.list_thread.lock().take()];
        threads.into_iter().flatten().for_each(|thread| thread.join_or_leave(deadline));
        self.all().into_iter().map(|member| member.server).collect()
    }

    /// Starts the thread, or wakes it.
    fn start(&self) -> std::io::Result<()> {
        let mut thread = self.thread.lock();
        if thread.is_none() && !self.shared.stop.is_interrupted() {
            let shared = self.shared.clone();
            *thread = Some(OwnedThread::spawn("tool-members", move || shared.keep_up())?);
        }
        self.shared.wake();
        Ok(())
    }
}

impl Member {
    fn watch(&self, watcher: Watcher) {
        if let Err(error) = self.server.watch(watcher) {
            log::error!("no thread for a sandbox server, its calls will be lost: {error}");
        }
    }
}

/// What became of servers that are to go.
#[derive(Default)]
struct Drained {
    /// Some are still in use.
    are_left: bool,
    /// Some were forgotten.
    were_forgotten: bool,
}

/// Servers that are being met, and what became of that.
struct Meetings {
    under_way: BTreeMap<Arc<str>, (Interrupt, OwnedThread)>,
    /// Servers that could not be met, and when they are tried again.
    paused: BTreeMap<Arc<str>, Instant>,
    tell: Sender<(Arc<str>, usize, Result<Met, BackendError>)>,
    told: Receiver<(Arc<str>, usize, Result<Met, BackendError>)>,
}

impl Shared {
    fn wake(&self) {
        self.making.reports.wake();
    }

    fn want(&self, urls: &[String]) -> Result<(), String> {
        let mut wanted = HashMap::new();
        let mut state = self.state.lock();
        for url in urls {
            let connection = match state.wanted.get(url.trim_end_matches('/')) {
                Some(known) => known.clone(),
                None => self.making.connection(url)?,
            };
            let addr: Arc<str> = connection.url.as_str().into();
            if wanted.insert(addr.clone(), connection).is_some() {
                return Err(format!("the sandbox server {addr} is there twice"));
            }
        }
        state.awaited.retain(|addr, _| wanted.contains_key(addr));
        state.wanted = wanted;
        Ok(())
    }

    /// The thread that looks at the list: until the fleet is closed. `tell` gets what it says
    /// first.
    fn watch_list(&self, list: ServerList, tell: &Sender<Result<Vec<String>, String>>) {
        let first = list.read();
        let mut watch = ListWatch::new(list, first.clone().unwrap_or_default());
        // Refused only when the start was given up.
        if tell.send(first).is_err() {
            return;
        }
        while !self.stop.wait_timeout(watch.list.pause()) {
            let Some(urls) = watch.look() else { continue };
            match self.want(&urls) {
                Ok(()) => self.wake(),
                Err(why) => log::warn!("the list of sandbox servers stays as it was: {why}"),
            }
        }
    }

    /// The thread: until the fleet is closed.
    fn keep_up(self: Arc<Self>) {
        let (tell, told) = bounded(ASKED_AT_ONCE);
        let mut meetings =
            Meetings { under_way: BTreeMap::new(), paused: BTreeMap::new(), tell, told };
        while !self.stop.is_interrupted() {
            self.reconcile(&mut meetings);
            let Drained { are_left, were_forgotten } = self.forget_drained();
            if were_forgotten {
                // They may be wanted again.
                self.reconcile(&mut meetings);
            }
            self.making.reports.tell();
            let due = match (are_left, meetings.paused.is_empty()) {
                (true, _) => LOOK,
                (false, false) => PAUSE,
                (false, true) => Duration::from_secs(60),
            };
            let now = Instant::now();
            let again = self.making.reports.due(now);
            let due = again.map_or(due, |again| due.min(again.duration_since(now)));
            select! {
                recv(meetings.told) -> told => if let Ok((addr, number, met)) = told {
                    self.take_in(&addr, number, met, &mut meetings);
                },
                recv(self.making.reports.woken()) -> _ => {}
                recv(self.stop.fired()) -> _ => {}
                default(due) => {}
            }
        }
        for (interrupt, _) in meetings.under_way.values() {
            interrupt.interrupt();
        }
        let deadline = Instant::now() + GIVE_UP;
        for (_, thread) in std::mem::take(&mut meetings.under_way).into_values() {
            thread.join_or_leave(deadline);
        }
        for (_, _, met) in meetings.told.try_iter() {
            if let Ok((server, _)) = met {
                server.close(deadline);
            }
        }
    }

    /// Brings the fleet to what is wanted.
    fn reconcile(&self, meetings: &mut Meetings) {
        let (mut state, now) = (self.state.lock(), Instant::now());
        let reports = &self.making.reports;
        reports.keep_only(|addr| {
            state.wanted.contains_key(addr) || self.table.read().contains_key(addr)
        });
        let ending: BTreeSet<_> = {
            let table = self.table.read();
            let ending = table.iter().filter(|(_, member)| member.server.is_ending());
            ending.map(|(addr, _)| addr.clone()).collect()
        };
        let is_good = |addr: &&Arc<str>| !reports.is_bad(addr, now) && !ending.contains(*addr);
        let wanted: BTreeSet<_> = state.wanted.keys().filter(is_good).cloned().collect();
        meetings.paused.retain(|addr, _| wanted.contains(addr));
        let members = {
            let table = self.table.read();
            let draining = table.iter().map(|(addr, member)| (addr.clone(), member.is_draining));
            draining.collect::<BTreeMap<_, _>>()
        };
        let met = meetings.under_way.keys().cloned().collect();
        let difference = Difference::of(&wanted, &members, &met);
        for addr in difference.leave {
            if let Some((interrupt, _)) = meetings.under_way.get(&addr) {
                interrupt.interrupt();
            }
        }
        for (addr, drains) in difference
            .drain
            .into_iter()
            .map(|addr| (addr, true))
            .chain(difference.keep.into_iter().map(|addr| (addr, false)))
        {
            let mut table = self.table.write();
            let Some(member) = table.get_mut(&addr) else { continue };
            member.is_draining = drains;
            log::info!(
                "the sandbox server {addr} {}{}",
                if ending.contains(&addr) { "is about to end, and " } else { "" },
                if drains { "is drained: its trajectories finish there" } else { "stays" }
            );
            self.making.shares.drain(member.number, drains);
            let Some(watcher) = &state.watcher else { continue };
            match drains {
                true => watcher.notify(&addr, ContainerChange::Draining),
                false => member.server.tell_slots(),
            }
        }
        for addr in difference.meet {
            let is_paused = meetings.paused.get(&addr).is_some_and(|until| now < *until);
            if meetings.under_way.len() >= ASKED_AT_ONCE || is_paused {
                continue;
            }
            let Some(connection) = state.wanted.get(&addr).cloned() else { continue };
            let number = state.next_number;
            state.next_number += 1;
            self.making.shares.expect(number);
            let interrupt = Interrupt::new();
            let meeting = Meeting {
                number,
                connection,
                making: self.making.clone(),
                deadline: now + TRY,
                interrupt: interrupt.clone(),
            };
            let (tell, name) = (meetings.tell.clone(), addr.clone());
            let meet = move || {
                let met = guarded(|| meeting.connect(|_| true)).unwrap_or_else(|panic| {
                    Err(BackendError::new(format!("asking a server panicked: {panic}")))
                });
                // Refused only after the fleet was closed: then its session ends here.
                if let Err(refused) = tell.send((name, number, met))
                    && let (_, _, Ok((server, _))) = refused.into_inner()
                {
                    server.close(Instant::now() + GIVE_UP);
                }
            };
            match OwnedThread::spawn(format!("tool-connect-{number}"), meet) {
                Ok(thread) => drop(meetings.under_way.insert(addr, (interrupt, thread))),
                Err(error) => {
                    log::warn!("no thread to meet the sandbox server {addr}: {error}");
                    meetings.paused.insert(addr, now + PAUSE);
                }
            }
        }
    }

    /// A meeting is over.
    fn take_in(
        &self,
        addr: &Arc<str>,
        number: usize,
        met: Result<Met, BackendError>,
        meetings: &mut Meetings,
    ) {
        if let Some((_, thread)) = meetings.under_way.remove(addr) {
            thread.join_or_leave(Instant::now() + GIVE_UP);
        }
        let mut state = self.state.lock();
        let connection = state.wanted.get(addr).cloned();
        match (met, connection) {
            (Ok((server, _)), Some(connection)) => {
                log::info!("the sandbox server {addr} is there");
                state.awaited.remove(addr);
                meetings.paused.remove(addr);
                let member = Member { number, connection, server, is_draining: false };
                if let Some(watcher) = &state.watcher {
                    member.watch(watcher.clone());
                }
                self.table.write().insert(addr.clone(), member);
            }
            (Ok((server, _)), None) => {
                drop(state);
                self.making.shares.forget(number);
                server.close(Instant::now() + GIVE_UP);
            }
            (Err(error), connection) => {
                self.making.shares.forget(number);
                if connection.is_none() {
                    return;
                }
                let why = error.to_string();
                if state.awaited.get(addr) != Some(&why) {
                    log::warn!("{why}; it is asked again until it can be used");
                    state.awaited.insert(addr.clone(), why);
                }
                meetings.paused.insert(addr.clone(), Instant::now() + PAUSE);
            }
        }
    }

    /// Forgets the servers that are to go and of which nothing is in use.
    fn forget_drained(&self) -> Drained {
        let draining: Vec<_> = {
            let table = self.table.read();
            let draining = table.iter().filter(|(_, member)| member.is_draining);
            draining.map(|(addr, member)| (addr.clone(), member.clone())).collect()
        };
        let mut drained = Drained::default();
        for (addr, member) in draining {
            if !member.server.is_unused() {
                drained.are_left = true;
                continue;
            }
            drained.were_forgotten = true;
            self.table.write().remove(&addr);
            {
                let mut state = self.state.lock();
                if let Some(watcher) = &state.watcher {
                    watcher.notify(&addr, ContainerChange::Gone);
                }
                // With the server its connection ends. If it is wanted, it is met by another.
                match self.making.connection(&addr) {
                    Ok(connection) => {
                        state.wanted.entry(addr.clone()).and_modify(|known| *known = connection);
                    }
                    // It was one before.
                    Err(why) => log::error!("{why}"),
                }
            }
            self.making.shares.forget(member.number);
            log::info!("the sandbox server {addr} is used no more");
            member.server.close(Instant::now() + GIVE_UP);
        }
        drained
    }
}

/// A list that is looked at again and again.
struct ListWatch {
    list: ServerList,
    /// What it said last, and what of it was taken in: a list that is just being written is not.
    said: Result<Vec<String>, String>,
    taken: Vec<String>,
}

impl ListWatch {
    /// One of which this was taken in.
    fn new(list: ServerList, taken: Vec<String>) -> Self {
        Self { list, said: Ok(taken.clone()), taken }
    }

    /// What is to be taken in now: what was there at two looks. Blocks while it looks.
    fn look(&mut self) -> Option<Vec<String>> {
        let said = self.list.read();
        if said != self.said {
            if let Err(why) = &said {
                log::warn!("{why}; the sandbox servers stay as they are");
            }
            self.said = said;
            return None;
        }
        let urls = said.ok().filter(|urls| *urls != self.taken)?;
        self.taken.clone_from(&urls);
        Some(urls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(names: &[&str]) -> BTreeSet<Arc<str>> {
        names.iter().map(|&name| name.into()).collect()
    }

    #[test]
    fn what_is_wanted_is_met_and_what_is_not_goes() {
        let members = [("a", false), ("b", false), ("c", true), ("d", true)];
        let members = members.map(|(name, draining)| (name.into(), draining)).into();
        let found = Difference::of(&set(&["a", "c", "e", "f"]), &members, &set(&["f", "g"]));
        let names = |names: &[&str]| names.iter().map(|&name| name.into()).collect();
        let expected = Difference {
            meet: names(&["e"]),
            leave: names(&["g"]),
            drain: names(&["b"]),
            keep: names(&["c"]),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn a_list_is_taken_in_when_it_was_there_at_two_looks() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        std::fs::write(&path, "http://a:1\n").unwrap();
        let taken = vec!["http://a:1".to_owned()];
        let mut watch = ListWatch::new(ServerList::File(path.clone()), taken);
        let mut look = |text: Option<&str>| {
            if let Some(text) = text {
                std::fs::write(&path, text).unwrap();
            }
            watch.look()
        };
        assert_eq!(look(None), None);
        assert_eq!(look(Some("http://a:1\nhttp://b:1")), None, "it may be half of it");
        assert_eq!(look(None), Some(vec!["http://a:1".to_owned(), "http://b:1".to_owned()]));
        assert_eq!(look(None), None);
        assert_eq!(look(Some("nonsense")), None);
        assert_eq!(look(None), None, "it stays as it was");
        assert_eq!(look(Some("")), None);
        assert_eq!(look(None), Some(Vec::new()));
    }

    proptest! {
        #[test]
        fn after_all_is_done_the_members_are_what_is_wanted(
            wanted in prop::collection::btree_set("[a-e]", 0..5),
            members in prop::collection::btree_map("[a-e]", any::<bool>(), 0..5),
        ) {
            let wanted: BTreeSet<Arc<str>> = wanted.into_iter().map(Into::into).collect();
            let mut members: BTreeMap<Arc<str>, bool> =
                members.into_iter().map(|(name, draining)| (name.into(), draining)).collect();
            let first = Difference::of(&wanted, &members, &BTreeSet::new());
            let Difference { meet, leave: _, drain, keep } = first;
            members.extend(meet.into_iter().chain(keep).map(|name| (name, false)));
            members.extend(drain.into_iter().map(|name| (name, true)));
            let used: BTreeSet<_> =
                members.iter().filter(|(_, draining)| !**draining).map(|(name, _)| name.clone()).collect();
            prop_assert_eq!(&used, &wanted);
            prop_assert_eq!(Difference::of(&wanted, &members, &BTreeSet::new()), Difference::default());
        }
    }
}
