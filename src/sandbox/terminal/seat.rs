//! Who sits in the slots: kept sandboxes of one kind, each with its name in its slot and the state
//! machine of its program.
//!
//! The thread feeds [`Seats`] with calls, events and deadlines; they start sandboxes, hand events
//! on to the [`Program`]s, end what is to be ended, and forget what is gone. What a program is to
//! be told, and what its words mean, only the program knows.
//!
//! A slot has one of each kind as a rule, for which the descriptors are set aside; it may have more
//! of some kinds, as long as there are descriptors.
//!
//! A panic of a program ends its sandbox, and its call with it, and nothing else.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use super::kept::{Kept, Phase};
use super::tmux::Tmux;
use super::watch::{Key, Kind, Source, Watch};
use crate::sandbox::host::Host;
use crate::sandbox::jail::Machine;
use crate::sandbox::limits::{Alarm, Exceeded, Leftover};
use crate::sandbox::supervisor::Supervisor;
use crate::sandbox::workspace::Workspace;

/// Where a call runs.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The slot's number.
    pub(crate) slot: usize,
    /// Its files.
    pub(crate) workspace: Arc<Workspace>,
    /// Whether the network may be used. A kept sandbox that has it the other way is ended, and
    /// another one started.
    pub(crate) network: bool,
    /// Which of the slot's kept sandboxes of its kind: a name that can be one of a file.
    pub(crate) session: Arc<str>,
}

/// A program that lives in a kept sandbox: a state machine without a thread, which never blocks.
///
/// It holds at most one call at a time, and answers it in [`gone`](Self::gone) at the latest.
pub(super) trait Program: Sized {
    /// A call, with the obligation to answer it: dropped, it answers itself.
    type Call;
    /// Its kind.
    const KIND: Kind;
    /// How many a slot may have.
    const MOST: usize;

    /// Makes the program's pipes and files, has them watched, and starts its sandbox, for this
    /// call, which it is to [`take`](Self::take) then.
    ///
    /// # Errors
    /// Whatever the system refuses. Then nothing runs.
    fn start(
        place: &Place,
        call: &Self::Call,
        common: &Common,
        watch: &Watch<'_>,
    ) -> io::Result<(Self, Kept)>;

    /// The call's number.
    fn number(call: &Self::Call) -> u64;

    /// Answers a call for which no sandbox can be started.
    fn refuse(call: Self::Call, why: &str);

    /// Answers a call that would begin one more than a slot may have, which has those of these
    /// names.
    fn refuse_one_more(call: Self::Call, names: &[&str]);

    /// A call for it. It has none just now. The sandbox may still be in the making.
    fn take(&mut self, call: Self::Call, cx: &mut Context<'_>);

    /// The number of the call that it has.
    fn current(&self) -> Option<u64>;

    /// Its slot had another one before, whose end no call was told.
    fn replaces_a_lost_one(&mut self) {}

    /// The call that it has is to end early.
    fn cancel(&mut self, cx: &mut Context<'_>);

    /// The sandbox is ready, and the program was let go.
    fn on_released(&mut self, cx: &mut Context<'_>);

    /// Something is to be read from a file of its own, or can be written to it.
    fn on_file(&mut self, file: u8, cx: &mut Context<'_>);

    /// When [`on_deadline`](Self::on_deadline) is due.
    fn deadline(&self) -> Option<Instant>;

    /// The time is up.
    fn on_deadline(&mut self, cx: &mut Context<'_>);

    /// Everything in the sandbox is over. Whether [`gone`](Self::gone) may be called: if not, the
    /// program is asked again after each event and each deadline of its own. Must end within
    /// seconds.
    fn is_settled(&mut self, _cx: &mut Context<'_>) -> bool {
        true
    }

    /// Everything is over: [`Phase::Gone`]. Answers the call that it has.
    fn gone(self, cx: &mut Context<'_>);
}

/// What a program may use while it deals with something.
pub(super) struct Context<'a> {
    /// Its sandbox.
    pub(super) kept: &'a mut Kept,
    /// What is watched.
    pub(super) watch: Watch<'a>,
    /// Scratch space for reads.
    pub(super) buffer: &'a mut [u8],
    /// What every start needs.
    pub(super) host: &'a Host,
    /// The time.
    pub(super) now: Instant,
}

/// Gets the machine in which the sandbox of a key is to be made, or why there is none.
pub(super) type TakeMachine = dyn Fn(Key, Result<Arc<Machine>, String>) + Send + Sync;

/// What all kinds of one thread share.
pub(super) struct Common {
    /// What the thread waits in.
    pub(super) epoll: OwnedFd,
    /// What every start needs.
    pub(super) host: Host,
    /// Called when a sandbox exceeds a limit of its slot, on a thread of the watch.
    pub(super) exceeded: Arc<dyn Fn(Key, Exceeded) + Send + Sync>,
    /// Has the machines of slots.
    pub(super) supervisor: Arc<Supervisor>,
    /// Called when the supervisor has a machine for a sandbox, or none, on its thread.
    pub(super) machine: Arc<TakeMachine>,
    /// The tmux of this machine, if it has one.
    pub(super) tmux: Option<Tmux>,
    /// How much is shown of an output stream, in characters.
    pub(super) output_limit_chars: usize,
    /// How much of a call's complete output is kept in files.
    pub(super) output_file_bytes: u64,
    /// Scratch space for reads.
    pub(super) buffer: Vec<u8>,
    /// One entry at most for each sandbox.
    pub(super) deadlines: BTreeSet<(Instant, Key)>,
    /// How many sandboxes slots may have beyond one of each kind, all together.
    pub(super) more_sessions: usize,
    /// Processes that were given up on and may become zombies.
    pub(super) leftovers: Vec<Leftover>,
    /// The number of the next sandbox.
    pub(super) next_serial: u64,
}

impl Common {
    /// What the watch calls when the sandbox of this key exceeds a limit.
    pub(super) fn alarm(&self, key: Key) -> Alarm {
        let exceeded = self.exceeded.clone();
        Arc::new(move |limit| exceeded(key, limit))
    }

    /// Asks for the machine of a workspace's slot, for the sandbox of this key, which is told
    /// later.
    pub(super) fn ask_for_machine(&self, workspace: &Arc<Workspace>, network: bool, key: Key) {
        let machine = self.machine.clone();
        let take = Box::new(move |made| machine(key, made));
        self.supervisor.machine(workspace.clone(), network, take);
    }
}

/// Tells, when its last copy is dropped, that sandboxes are gone.
pub(super) struct Notice {
    reply: Mutex<Option<TakeNotice>>,
    all_dead: AtomicBool,
}

/// Gets whether the end of every process was seen. Called on the thread: it must not block.
pub(super) type TakeNotice = Box<dyn FnOnce(bool) + Send>;

impl Notice {
    /// One that tells `reply`.
    pub(super) fn new(reply: TakeNotice) -> Arc<Self> {
        Arc::new(Self { reply: Mutex::new(Some(reply)), all_dead: AtomicBool::new(true) })
    }
}

impl Drop for Notice {
    fn drop(&mut self) {
        if let Some(reply) = self.reply.get_mut().take() {
            reply(self.all_dead.load(Ordering::Acquire));
        }
    }
}

/// A sandbox and its program.
struct Seat<P: Program> {
    slot: usize,
    session: Arc<str>,
    network: bool,
    program: P,
    /// Then it is told nothing more, and its call answers itself when it is dropped.
    panicked: bool,
    kept: Kept,
    /// The entry among the deadlines.
    due: Option<Instant>,
    /// Waits for the end of this sandbox, to have another one.
    next: Option<(Place, P::Call)>,
    /// That call is to end early.
    cancel_next: bool,
    notices: Vec<Arc<Notice>>,
}

impl<P: Program> Drop for Seats<P> {
    /// The thread has panicked if there are any.
    fn drop(&mut self) {
        for seat in self.seats.values() {
            seat.notices.iter().for_each(|notice| notice.all_dead.store(false, Ordering::Release));
        }
    }
}

/// The kept sandboxes of one kind.
pub(super) struct Seats<P: Program> {
    seats: HashMap<u64, Seat<P>>,
    slots: HashMap<usize, Slot>,
    /// How many there are beyond one in each slot.
    more: usize,
}

/// What is known of a slot.
#[derive(Default)]
struct Slot {
    /// Its sandboxes, by their names.
    serials: BTreeMap<Arc<str>, u64>,
    /// Those that have ended between two calls: as many as it may have.
    lost: BTreeSet<Arc<str>>,
    /// The end of one of them was not seen: what is left of it may touch its files.
    is_haunted: bool,
}

impl<P: Program> Seats<P> {
    /// None.
    pub(super) fn new() -> Self {
        Self { seats: HashMap::new(), slots: HashMap::new(), more: 0 }
    }

    /// Whether no sandbox is left.
    pub(super) fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.seats.len()
    }

    /// The names of a slot's sandboxes that are not ending.
    pub(super) fn names(&self, slot: usize) -> Vec<Arc<str>> {
        let serials = self.slots.get(&slot).into_iter().flat_map(|slot| &slot.serials);
        let lives = |serial: &u64| {
            self.seats.get(serial).is_some_and(|seat| seat.kept.phase() < Phase::Ending)
        };
        serials.filter(|(_, serial)| lives(serial)).map(|(name, _)| name.clone()).collect()
    }

    /// Runs a call in its slot's sandbox, which is started if there is none that will do.
    pub(super) fn call(&mut self, place: Place, call: P::Call, common: &mut Common) {
        let slot = self.slots.get(&place.slot);
        let Some(serial) = slot.and_then(|slot| slot.serials.get(&place.session)).copied() else {
            return self.start(place, call, common);
        };
        let Some(seat) = self.seats.get_mut(&serial) else { return };
        if seat.program.current().is_some() || seat.next.is_some() {
            return P::refuse(call, "an earlier call of the slot has not ended");
        }
        if seat.kept.phase() < Phase::Ending && seat.network == place.network {
            return self.change(serial, common, |program, cx| program.take(call, cx));
        }
        seat.next = Some((place, call));
        self.end(serial, common);
    }

    fn start(&mut self, place: Place, call: P::Call, common: &mut Common) {
        let slot = self.slots.entry(place.slot).or_default();
        if slot.serials.len() >= P::MOST {
            let names: Vec<&str> = slot.serials.keys().map(|name| &**name).collect();
            return P::refuse_one_more(call, &names);
        }
        let is_one_more = !slot.serials.is_empty();
        if is_one_more && self.more >= common.more_sessions {
            return P::refuse(call, NO_DESCRIPTORS);
        }
        let serial = common.next_serial;
        common.next_serial += 1;
        let watch = Watch { epoll: &common.epoll, key: Key { kind: P::KIND, serial } };
        let (program, kept) = match P::start(&place, &call, common, &watch) {
            Ok(started) => started,
            Err(error) => {
                self.tidy(place.slot);
                return P::refuse(call, &error.to_string());
            }
        };
        let released = kept.phase() == Phase::Running;
        let Place { slot, network, session, .. } = place;
        let here = self.slots.entry(slot).or_default();
        let replaces = here.lost.remove(&session);
        here.serials.insert(session.clone(), serial);
        self.more += usize::from(is_one_more);
        let seat = Seat {
            slot,
            session,
            network,
            program,
            panicked: false,
            kept,
            due: None,
            next: None,
            cancel_next: false,
            notices: Vec::new(),
        };
        self.seats.insert(serial, seat);
        self.change(serial, common, |program, cx| {
            if replaces {
                program.replaces_a_lost_one();
            }
            program.take(call, cx);
            if released {
                program.on_released(cx);
            }
        });
    }

    /// Ends the call early, if the slot still has it.
    pub(super) fn cancel(&mut self, slot: usize, call: u64, common: &mut Common) {
        for serial in self.of_slot(slot) {
            let Some(seat) = self.seats.get_mut(&serial) else { continue };
            if seat.next.as_ref().is_some_and(|(_, next)| P::number(next) == call) {
                seat.cancel_next = true;
                return;
            }
            if seat.program.current() == Some(call) {
                return self.change(serial, common, |program, cx| program.cancel(cx));
            }
        }
    }

    /// The sandboxes of a slot.
    fn of_slot(&self, slot: usize) -> Vec<u64> {
        let slot = self.slots.get(&slot);
        slot.map(|slot| slot.serials.values().copied().collect()).unwrap_or_default()
    }

    /// Ends the slot's sandboxes, and drops the notice when that is done: at once if it has none.
    pub(super) fn end_slot(&mut self, slot: usize, notice: Arc<Notice>, common: &mut Common) {
        if let Some(slot) = self.slots.get_mut(&slot) {
            if slot.is_haunted {
                notice.all_dead.store(false, Ordering::Release);
            }
            slot.lost.clear();
        }
        for serial in self.of_slot(slot) {
            if let Some(seat) = self.seats.get_mut(&serial) {
                seat.notices.push(notice.clone());
                seat.next = None;
            }
            self.end(serial, common);
        }
        self.tidy(slot);
    }

    /// Forgets a slot of which there is nothing to be known.
    fn tidy(&mut self, slot: usize) {
        let is_empty =
            |slot: &Slot| slot.serials.is_empty() && slot.lost.is_empty() && !slot.is_haunted;
        if self.slots.get(&slot).is_some_and(is_empty) {
            self.slots.remove(&slot);
        }
    }

    /// Ends them all.
    pub(super) fn end_all(&mut self, common: &mut Common) {
        let all: Vec<u64> = self.seats.keys().copied().collect();
        for serial in all {
            if let Some(seat) = self.seats.get_mut(&serial) {
                seat.next = None;
            }
            self.end(serial, common);
        }
    }

    /// A sandbox has exceeded a limit of its slot: it is ended, with the call that it has.
    pub(super) fn exceeded(&mut self, serial: u64, exceeded: Exceeded, common: &mut Common) {
        if let Some(seat) = self.seats.get_mut(&serial) {
            let cx = context::<P>(&mut seat.kept, serial, common);
            cx.kept.exceed(exceeded, &cx.watch, cx.now);
        }
        self.settle(serial, common);
    }

    /// The machine of a sandbox is there, or cannot be had.
    pub(super) fn on_machine(
        &mut self,
        serial: u64,
        machine: Result<Arc<Machine>, String>,
        common: &mut Common,
    ) {
        // One that was ended meanwhile needs none.
        let Some(seat) = self.seats.get_mut(&serial) else { return };
        let cx = context::<P>(&mut seat.kept, serial, common);
        cx.kept.on_machine(machine, cx.host, &cx.watch);
        self.settle(serial, common);
    }

    fn end(&mut self, serial: u64, common: &mut Common) {
        if let Some(seat) = self.seats.get_mut(&serial) {
            let cx = context::<P>(&mut seat.kept, serial, common);
            cx.kept.kill(&cx.watch, cx.now);
        }
        self.settle(serial, common);
    }

    /// Deals with one event.
    pub(super) fn on_event(&mut self, serial: u64, source: Source, common: &mut Common) {
        if let Source::File(file) = source {
            return self.change(serial, common, |program, cx| program.on_file(file, cx));
        }
        let Some(seat) = self.seats.get_mut(&serial) else { return };
        let before = seat.kept.phase();
        let cx = context::<P>(&mut seat.kept, serial, common);
        cx.kept.on_event(source, &cx.watch, cx.now);
        if before == Phase::SettingUp && cx.kept.phase() == Phase::Running {
            return self.change(serial, common, P::on_released);
        }
        self.settle(serial, common);
    }

    /// The sandbox's deadline has come.
    pub(super) fn on_deadline(&mut self, serial: u64, common: &mut Common) {
        let Some(seat) = self.seats.get_mut(&serial) else { return };
        let cx = context::<P>(&mut seat.kept, serial, common);
        if cx.kept.deadline().is_some_and(|due| due <= cx.now) {
            cx.kept.on_deadline(&cx.watch, cx.now);
            return self.settle(serial, common);
        }
        self.change(serial, common, |program, cx| {
            if program.deadline().is_some_and(|due| due <= cx.now) {
                program.on_deadline(cx);
            }
        });
    }

    /// Lets something happen to a program, if it is still there, and sees what becomes of it.
    fn change(
        &mut self,
        serial: u64,
        common: &mut Common,
        action: impl FnOnce(&mut P, &mut Context<'_>),
    ) {
        let Some(seat) = self.seats.get_mut(&serial) else { return };
        if !seat.panicked {
            let mut cx = context::<P>(&mut seat.kept, serial, common);
            let program = &mut seat.program;
            if catch_unwind(AssertUnwindSafe(|| action(program, &mut cx))).is_err() {
                log::error!("a session has panicked; it is ended");
                cx.kept.kill(&cx.watch, cx.now);
                seat.panicked = true;
            }
        }
        self.settle(serial, common);
    }

    /// Brings the deadlines up to date, and deals with a sandbox that is gone.
    fn settle(&mut self, serial: u64, common: &mut Common) {
        let Some(seat) = self.seats.get_mut(&serial) else { return };
        let gone = seat.kept.phase() == Phase::Gone && {
            let mut cx = context::<P>(&mut seat.kept, serial, common);
            let program = &mut seat.program;
            seat.panicked
                || catch_unwind(AssertUnwindSafe(|| program.is_settled(&mut cx))).unwrap_or_else(
                    |_| {
                        log::error!("a session has panicked at its end");
                        seat.panicked = true;
                        true
                    },
                )
        };
        let program_due = Some(&seat.program).filter(|_| !seat.panicked).and_then(P::deadline);
        let due = seat.kept.deadline().into_iter().chain(program_due).min().filter(|_| !gone);
        if due != seat.due {
            if let Some(before) = seat.due {
                common.deadlines.remove(&(before, key::<P>(serial)));
            }
            if let Some(due) = due {
                common.deadlines.insert((due, key::<P>(serial)));
            }
            seat.due = due;
        }
        if gone {
            self.forget(serial, common);
        }
    }

    fn forget(&mut self, serial: u64, common: &mut Common) {
        let Some(mut seat) = self.seats.remove(&serial) else { return };
        let all_dead = seat.kept.all_dead();
        let slot = self.slots.entry(seat.slot).or_default();
        slot.serials.remove(&seat.session);
        self.more -= usize::from(!slot.serials.is_empty());
        slot.is_haunted |= !all_dead;
        // Whoever ends the slot wants none of it.
        let was_lost = seat.program.current().is_none() && seat.notices.is_empty();
        if was_lost && slot.lost.len() < P::MOST {
            slot.lost.insert(seat.session.clone());
        }
        self.tidy(seat.slot);
        if !seat.panicked {
            let program = seat.program;
            let mut cx = context::<P>(&mut seat.kept, serial, common);
            if catch_unwind(AssertUnwindSafe(|| program.gone(&mut cx))).is_err() {
                log::error!("a session has panicked at its end");
            }
        }
        let watch = Watch { epoll: &common.epoll, key: key::<P>(serial) };
        let leftover = seat.kept.into_leftover(&watch);
        common.leftovers.extend(leftover.filter(|leftover| !leftover.is_gone()));
        for notice in &seat.notices {
            notice.all_dead.fetch_and(all_dead, Ordering::AcqRel);
        }
        seat.notices.clear();
        if let Some((place, call)) = seat.next.take() {
            let (slot, number) = (place.slot, P::number(&call));
            self.start(place, call, common);
            if seat.cancel_next {
                self.cancel(slot, number, common);
            }
        }
    }
}

/// Why there is no further sandbox, where there may be one.
const NO_DESCRIPTORS: &str = "all further sessions that this program has descriptors for are taken; \
                              use one that there is, end one by exit, or allow more (ulimit -n)";

fn key<P: Program>(serial: u64) -> Key {
    Key { kind: P::KIND, serial }
}

fn context<'a, P: Program>(kept: &'a mut Kept, serial: u64, common: &'a mut Common) -> Context<'a> {
    Context {
        kept,
        watch: Watch { epoll: &common.epoll, key: key::<P>(serial) },
        buffer: &mut common.buffer,
        host: &common.host,
        now: Instant::now(),
    }
}
