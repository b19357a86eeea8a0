//! The supervisor's thread: what runs, what waits, and whose turn it is.
//!
//! Knows the commands (`command`) and the warm sandboxes (`rooms`), hands them their events and
//! deadlines, and answers those that are over. What happens to one of them is their own matter.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll;

use super::super::command::Command;
use super::super::entered::Entered;
use super::super::events::{self, EVENTS_PER_TURN};
use super::super::host::Host;
use super::super::init::Said;
use super::super::isolation::Isolation;
use super::super::limits::Alarm;
use super::super::room::{News, Room};
use super::super::rooms::{OnGone, Rooms};
use super::super::running::{Reason, Running};
use super::super::spawn::{Child, Reaped};
use super::super::stream::{READ_BUFFER, Watch};
use super::{Answer, CommandSpec, End, Finished, Request, Shared, call_back, closed};

/// How many commands are started before events and deadlines are looked at again.
const STARTS_PER_TURN: usize = 8;

/// The thread's own state.
pub(super) struct Turn {
    running: HashMap<u64, (Command, Answer)>,
    rooms: Rooms,
    /// One entry for each running command, and for each warm sandbox that is not just open.
    deadlines: BTreeSet<(Instant, u64)>,
    /// Taken from the queue and not dealt with yet.
    waiting: VecDeque<Request>,
    /// Processes that were given up on and may become zombies.
    leftovers: Vec<Child>,
    buffer: Vec<u8>,
    epoll: OwnedFd,
    host: Host,
    /// For those who have something to say of a command.
    shared: Arc<Shared>,
}

impl Turn {
    /// Nothing runs yet. `epoll` watches the queue's wake-up already.
    pub(super) fn new(epoll: OwnedFd, host: Host, shared: Arc<Shared>) -> Self {
        Self {
            running: HashMap::new(),
            rooms: Rooms::default(),
            deadlines: BTreeSet::new(),
            waiting: VecDeque::new(),
            leftovers: Vec::new(),
            buffer: vec![0; READ_BUFFER],
            epoll,
            host,
            shared,
        }
    }

    /// Until the supervisor is closed and the last command has ended.
    pub(super) fn run(&mut self, shared: &Shared) {
        let mut events = Vec::with_capacity(EVENTS_PER_TURN);
        loop {
            let closing = self.take_requests(shared);
            if closing && self.running.is_empty() && self.rooms.is_empty() {
                return;
            }
            self.wait(&mut events);
            self.deal_with(&mut events, shared);
            self.keep_deadlines(&mut events, shared);
            self.leftovers.retain(|child| child.reap() == Reaped::Running);
        }
    }

    fn deal_with(&mut self, events: &mut Vec<epoll::Event>, shared: &Shared) {
        for event in events.drain(..) {
            match Watch::decode(event.data.u64()) {
                Some((number, source)) if Rooms::is_room(number) => {
                    self.change_room(number, |room, watch, now| room.on_event(source, watch, now));
                }
                Some((id, source)) => self.change(id, |command, watch, buffer, now| {
                    command.on_event(source, watch, buffer, now);
                }),
                None => {
                    let _ = rustix::io::read(&shared.wake, &mut [0; 8]);
                }
            }
        }
    }

    /// Deals with the deadlines that are over, and before them with all that has happened by now.
    fn keep_deadlines(&mut self, events: &mut Vec<epoll::Event>, shared: &Shared) {
        let now = Instant::now();
        if self.deadlines.first().is_none_or(|&(due, _)| now < due) {
            return;
        }
        for _ in 0..events::most_rounds(self.running.len() + self.rooms.len()) {
            let is_all = events::take_waiting(&self.epoll, events);
            self.deal_with(events, shared);
            if is_all {
                break;
            }
        }
        while let Some(&(due, id)) = self.deadlines.first()
            && due <= now
        {
            if Rooms::is_room(id) {
                self.change_room(id, |room, watch, now| {
                    room.on_deadline(watch, now);
                    Vec::new()
                });
            } else {
                self.change(id, |command, _, _, now| command.on_deadline(now));
            }
        }
    }

    /// Deals with requests, a few starts at a time. Tells whether the supervisor is closing.
    fn take_requests(&mut self, shared: &Shared) -> bool {
        let closing = {
            let mut queue = shared.queue.lock();
            self.waiting.append(&mut queue.requests);
            queue.closing
        };
        if closing {
            for request in std::mem::take(&mut self.waiting) {
                match request {
                    Request::Run(_, _, answer) => answer.without_running(closed()),
                    Request::Leave(slot, on_gone) => self.leave(slot, on_gone),
                    Request::Cancel(_) | Request::Exceeded(..) => {}
                }
            }
            let ids: Vec<u64> = self.running.keys().copied().collect();
            for id in ids {
                self.cancel(id);
            }
            if self.running.is_empty() {
                for number in self.rooms.numbers() {
                    self.end_room(number);
                }
            }
            return true;
        }
        let mut starts = 0;
        while starts < STARTS_PER_TURN {
            match self.waiting.pop_front() {
                Some(Request::Run(id, spec, answer)) => {
                    starts += 1;
                    self.start(id, &spec, answer);
                }
                Some(Request::Cancel(id)) => self.cancel(id),
                Some(Request::Leave(slot, on_gone)) => self.leave(slot, on_gone),
                Some(Request::Exceeded(id, exceeded)) => {
                    self.change(id, |command, _, _, now| {
                        command.kill(Reason::Exceeded(exceeded), now);
                    });
                }
                None => break,
            }
        }
        false
    }

    fn start(&mut self, id: u64, spec: &CommandSpec, answer: Answer) {
        if !spec.network && self.host.isolation.is_sandboxed() {
            if !self.host.isolation.can_cut_network() {
                let text = "bubblewrap cannot take the network away on this machine";
                return answer.without_running(End::SetupFailed(text.to_owned()));
            }
        } else if !spec.network {
            let text = "without bubblewrap the network cannot be taken away";
            return answer.without_running(End::SetupFailed(text.to_owned()));
        }
        if self.host.warm {
            return self.start_in_room(id, spec, answer);
        }
        let watch = Watch { epoll: &self.epoll, id };
        match Running::start(spec, &self.host, &watch, self.alarm(id)) {
            Ok(running) => self.insert(id, Command::Alone(running), answer),
            Err(error) => answer.without_running(End::SetupFailed(error.to_string())),
        }
    }

    /// What the watch calls when a command exceeds a limit.
    fn alarm(&self, id: u64) -> Alarm {
        let shared = self.shared.clone();
        Arc::new(move |exceeded| {
            // Refused after the close, which kills everything.
            let _ = shared.send(Request::Exceeded(id, exceeded));
        })
    }

    fn insert(&mut self, id: u64, command: Command, answer: Answer) {
        self.deadlines.insert((command.deadline(), id));
        self.running.insert(id, (command, answer));
    }

    /// Starts a command in its slot's warm sandbox, which is made if there is none that fits.
    fn start_in_room(&mut self, id: u64, spec: &CommandSpec, answer: Answer) {
        let watch = Watch { epoll: &self.epoll, id };
        // First what may be wrong with the command, so that no sandbox is made for nothing.
        let entered = Entered::new(spec, &self.host, &watch, self.alarm(id))
            .and_then(|entered| Ok((self.room_for(spec)?, entered)));
        let (number, mut entered) = match entered {
            Ok(entered) => entered,
            Err(error) => return answer.without_running(End::SetupFailed(error.to_string())),
        };
        entered.wait_for(number);
        self.insert(id, Command::Entered(entered), answer);
        if let Some(tenancy) = self.rooms.get(number) {
            tenancy.occupant = Some(id);
        }
        self.let_enter(number);
    }

    /// The number of the sandbox that a command is to enter.
    fn room_for(&mut self, spec: &CommandSpec) -> io::Result<u64> {
        let slot = spec.workspace.slot();
        if self.rooms.is_haunted(slot) {
            return Err(io::Error::other("a process of an earlier call could not be killed"));
        }
        if let Some((number, tenancy)) = self.rooms.of_slot(slot) {
            if tenancy.occupant.is_some() {
                return Err(io::Error::other("another command runs in this slot"));
            }
            // Whether files may be written to is decided when a sandbox is made.
            let is_full = self.host.limits.is_full(&spec.workspace);
            if tenancy.room.takes(spec.network, is_full) {
                return Ok(number);
            }
            self.end_room(number);
        }
        let Isolation::Bubblewrap(bubblewrap) = &self.host.isolation else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let number = self.rooms.next_number();
        let watch = Watch { epoll: &self.epoll, id: number };
        let room = Room::start(&spec.workspace, spec.network, bubblewrap, &self.host, &watch)?;
        self.deadlines.extend(room.deadline().map(|due| (due, number)));
        self.rooms.insert(number, slot, room);
        Ok(number)
    }

    /// Lets the command that waits for a sandbox enter it, if it is open.
    fn let_enter(&mut self, number: u64) {
        let Some(tenancy) = self.rooms.get(number) else { return };
        let Some(id) = tenancy.occupant.filter(|_| tenancy.room.is_open()) else { return };
        if let Some((Command::Entered(entered), _)) = self.running.get_mut(&id) {
            let before = entered.deadline();
            entered.enter(&mut tenancy.room, Instant::now());
            self.after_change(id, before);
        }
    }

    /// Ends a slot's warm sandboxes, whatever runs in them.
    fn leave(&mut self, slot: usize, on_gone: OnGone) {
        let numbers = self.rooms.all_of_slot(slot);
        let Some(last) = numbers.last() else {
            return call_back(on_gone, !self.rooms.is_haunted(slot));
        };
        // Any of them may be the last to go, so each hands on what it has.
        if let Some(tenancy) = self.rooms.get(*last) {
            tenancy.on_gone.push(on_gone);
        }
        for number in numbers {
            self.end_room(number);
        }
    }

    fn end_room(&mut self, number: u64) {
        self.change_room(number, |room, watch, now| {
            room.end(watch, now);
            Vec::new()
        });
    }

    /// Lets something happen to a warm sandbox, if it is still there, and tells those concerned.
    fn change_room(
        &mut self,
        number: u64,
        action: impl FnOnce(&mut Room, &Watch<'_>, Instant) -> Vec<News>,
    ) {
        let now = Instant::now();
        let watch = Watch { epoll: &self.epoll, id: number };
        let Some(tenancy) = self.rooms.get(number) else { return };
        let before = tenancy.room.deadline();
        let news = action(&mut tenancy.room, &watch, now);
        let after = tenancy.room.deadline();
        if after != before {
            if let Some(before) = before {
                self.deadlines.remove(&(before, number));
            }
            self.deadlines.extend(after.map(|due| (due, number)));
        }
        for news in news {
            match news {
                News::Opened => self.let_enter(number),
                News::Said(said) => self.hear(number, said, now),
            }
        }
        if self.rooms.get(number).is_some_and(|tenancy| tenancy.room.is_gone()) {
            self.room_gone(number, now);
        }
    }

    /// A sandbox's first process has said something of its command.
    fn hear(&mut self, number: u64, said: Said, now: Instant) {
        let Some(id) = self.rooms.get(number).and_then(|tenancy| tenancy.occupant) else { return };
        self.change(id, |command, _, _, _| {
            if let Command::Entered(entered) = command {
                entered.on_said(said, now);
            }
        });
        // One that cannot start a shell is not used again either.
        if let Said::Done { traces: true, .. } | Said::Done { end: Err(_), .. } = said {
            self.end_room(number);
        }
    }

    /// A sandbox is gone: so is what ran in it.
    fn room_gone(&mut self, number: u64, now: Instant) {
        let Some(tenancy) = self.rooms.remove(number) else { return };
        if let Some(due) = tenancy.room.deadline() {
            self.deadlines.remove(&(due, number));
        }
        let all_dead = tenancy.room.all_dead();
        if !all_dead {
            self.rooms.haunt(tenancy.slot);
        }
        let failure = tenancy.room.failure();
        let out_of_memory = tenancy.room.ran_out_of_memory();
        let watch = Watch { epoll: &self.epoll, id: number };
        self.leftovers.extend(tenancy.room.finish(&watch));
        if let Some(id) = tenancy.occupant {
            self.change(id, |command, _, _, _| {
                if let Command::Entered(entered) = command {
                    if out_of_memory {
                        entered.ran_out_of_memory(now);
                    }
                    entered.on_room_gone(all_dead, &failure, now);
                }
            });
        }
        let next = self.rooms.all_of_slot(tenancy.slot).first().copied();
        for on_gone in tenancy.on_gone {
            match next.and_then(|next| self.rooms.get(next)) {
                Some(other) => other.on_gone.push(on_gone),
                None => call_back(on_gone, !self.rooms.is_haunted(tenancy.slot)),
            }
        }
    }

    fn cancel(&mut self, id: u64) {
        self.change(id, |command, _, _, now| command.kill(Reason::Cancelled, now));
    }

    /// Lets something happen to a command, if it is still there, and sees whether that ended it.
    fn change(
        &mut self,
        id: u64,
        action: impl FnOnce(&mut Command, &Watch<'_>, &mut [u8], Instant),
    ) {
        let Some((command, _)) = self.running.get_mut(&id) else {
            return;
        };
        let watch = Watch { epoll: &self.epoll, id };
        let before = command.deadline();
        action(command, &watch, &mut self.buffer, Instant::now());
        self.after_change(id, before);
    }

    /// Something has happened to a command whose deadline was `before`.
    fn after_change(&mut self, id: u64, before: Instant) {
        let Some((command, _)) = self.running.get_mut(&id) else { return };
        let watch = Watch { epoll: &self.epoll, id };
        command.settle(&watch, &mut self.buffer, Instant::now());
        let (after, over) = (command.deadline(), command.is_over());
        let room = match command {
            Command::Entered(entered) => Some((entered.room(), entered.wants_room_ended())),
            Command::Alone(_) => None,
        };
        if over || after != before {
            self.deadlines.remove(&(before, id));
        }
        if over {
            self.finish(id);
        } else if after != before {
            self.deadlines.insert((after, id));
        }
        if let Some((number, wants_room_ended)) = room {
            if over
                && let Some(tenancy) = self.rooms.get(number)
                && tenancy.occupant == Some(id)
            {
                tenancy.occupant = None;
                tenancy.room.left();
            }
            if wants_room_ended {
                self.end_room(number);
            }
        }
    }

    /// Answers a command that is over.
    fn finish(&mut self, id: u64) {
        let Some((command, answer)) = self.running.remove(&id) else { return };
        let watch = Watch { epoll: &self.epoll, id };
        let ending = command.finish(&watch);
        self.leftovers.extend(ending.leftover);
        let (sandboxed, network_isolated) = (answer.sandboxed, answer.network_isolated);
        answer.give(Finished {
            end: ending.end,
            stdout: ending.stdout,
            stderr: ending.stderr,
            wall: ending.wall,
            sandboxed,
            network_isolated,
            all_dead: ending.all_dead,
        });
    }

    /// Waits for events, until the next deadline at the latest.
    fn wait(&self, events: &mut Vec<epoll::Event>) {
        let longest = match (self.waiting.is_empty(), self.leftovers.is_empty()) {
            (false, _) => Some(Duration::ZERO),
            (true, false) => Some(Duration::from_secs(1)),
            (true, true) => None,
        };
        let next = self.deadlines.first().map(|(due, _)| *due);
        events::wait(&self.epoll, events, longest, next);
    }
}
