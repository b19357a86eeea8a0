//! The supervisor's thread: what runs, what waits, and whose turn it is.
//!
//! Knows the commands (`command`) and the jails of slots (`jails`), hands them their events and
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
use super::super::init::RunEvent;
use super::super::isolation::{Contents, Isolation};
use super::super::jail::{Bounds, Jail, News, Phase};
use super::super::jails::{OnGone, SlotJails, Tenancy};
use super::super::limits::{Alarm, Exceeded, Leftover, Refusals};
use super::super::machines::{MachineRequest, Machines};
use super::super::running::{Reason, Running};
use super::super::stream::{READ_BUFFER, Watch};
use super::super::workspace::Workspace;
use super::{Answer, CommandSpec, End, Finished, Request, Shared, call_back, closed};

/// How many commands are started before events and deadlines are looked at again.
const STARTS_PER_TURN: usize = 8;
/// Why what was left running in a sandbox runs no more, where nothing better is known.
const ENDED_WITH_SANDBOX: &str = "the sandbox that they ran in has ended";
/// The thread's own state.
pub(super) struct Turn {
    running: HashMap<u64, (Command, Answer)>,
    jails: SlotJails,
    machines: Machines,
    /// One entry for each running command, and for each jail that is not just running.
    deadlines: BTreeSet<(Instant, u64)>,
    /// Taken from the queue and not dealt with yet.
    waiting: VecDeque<Request>,
    /// What is still to be reaped.
    leftovers: Vec<Leftover>,
    /// Those who wait for the slots of retired jails, until there are fewer of these.
    wait_for_fewer: Vec<OnGone>,
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
            jails: SlotJails::default(),
            machines: Machines::default(),
            deadlines: BTreeSet::new(),
            waiting: VecDeque::new(),
            leftovers: Vec::new(),
            wait_for_fewer: Vec::new(),
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
            if closing && self.running.is_empty() && self.jails.is_empty() {
                return;
            }
            self.wait(&mut events);
            self.deal_with(&mut events, shared);
            self.keep_deadlines(&mut events, shared);
            self.leftovers.retain(|leftover| !leftover.is_gone());
            if !self.host.limits.retired().is_full() {
                for on_gone in std::mem::take(&mut self.wait_for_fewer) {
                    call_back(on_gone, true);
                }
            }
        }
    }

    /// Hands on what has happened.
    fn deal_with(&mut self, events: &mut Vec<epoll::Event>, shared: &Shared) {
        for event in events.drain(..) {
            match Watch::decode(event.data.u64()) {
                Some((number, source)) if SlotJails::is_jail(number) => {
                    if let Some(source) = source.of_jail() {
                        self.change_jail(number, |jail, watch, now| {
                            jail.on_event(source, watch, now)
                        });
                    }
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
        for _ in 0..events::most_rounds(self.running.len() + self.jails.len()) {
            let is_all = events::take_waiting(&self.epoll, events);
            self.deal_with(events, shared);
            if is_all {
                break;
            }
        }
        while let Some(&(due, id)) = self.deadlines.first()
            && due <= now
        {
            if SlotJails::is_jail(id) {
                self.change_jail(id, |jail, watch, now| {
                    jail.on_deadline(watch, now);
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
                    // A wish for a machine answers itself.
                    Request::Cancel(_)
                    | Request::Machine(_)
                    | Request::HasBackground(..)
                    | Request::Exceeded(..) => {}
                }
            }
            let ids: Vec<u64> = self.running.keys().copied().collect();
            for id in ids {
                self.cancel(id);
            }
            if self.running.is_empty() {
                for number in self.jails.numbers() {
                    self.end_jail(number);
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
                Some(Request::Machine(request)) => {
                    starts += 1;
                    self.give_machine(request);
                }
                Some(Request::HasBackground(slot, reply)) => {
                    let has_some = |(_, tenancy): (u64, &mut Tenancy)| tenancy.has_background;
                    // Refused only when the asker has given up.
                    let _ = reply.try_send(self.jails.of_slot(slot).is_some_and(has_some));
                }
                Some(Request::Leave(slot, on_gone)) => self.leave(slot, on_gone),
                Some(Request::Exceeded(number, exceeded)) if SlotJails::is_jail(number) => {
                    self.background_exceeds(number, exceeded);
                }
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
                let text = "the network cannot be taken away on this machine";
                return answer.without_running(End::SetupFailed(text.to_owned()));
            }
        } else if !spec.network {
            let text = "without a sandbox the network cannot be taken away";
            return answer.without_running(End::SetupFailed(text.to_owned()));
        }
        if self.host.isolation.is_sandboxed() {
            return self.start_in_jail(id, spec, answer);
        }
        let watch = Watch { epoll: &self.epoll, id };
        match Running::start(spec, &self.host, &watch) {
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

    /// Starts a command in its slot's jail, which is made if there is none that fits.
    fn start_in_jail(&mut self, id: u64, spec: &CommandSpec, answer: Answer) {
        let watch = Watch { epoll: &self.epoll, id };
        // First what may be wrong with the command, so that no sandbox is made for nothing.
        let entered = Entered::new(spec, &self.host, &watch, self.alarm(id))
            .and_then(|entered| Ok((self.jail_for(&spec.workspace, spec.network)?, entered)));
        let (number, mut entered) = match entered {
            Ok(entered) => entered,
            Err(error) => return answer.without_running(End::SetupFailed(error.to_string())),
        };
        entered.wait_for(number);
        if let Some(why) = self.jails.take_background_lost(spec.workspace.slot()) {
            entered.earlier_ended(why);
        }
        self.insert(id, Command::Entered(entered), answer);
        if let Some(tenancy) = self.jails.get(number) {
            tenancy.occupant = Some(id);
        }
        self.let_enter(number);
    }

    /// Hands a slot's machine over. Where there is none yet, the jail of the slot's commands founds
    /// it.
    fn give_machine(&mut self, MachineRequest { workspace, network, reply }: MachineRequest) {
        if let Some(machine) = self.machines.get(workspace.slot(), network) {
            return reply.give(Ok(machine));
        }
        let number = match self.jail_for(&workspace, network) {
            Ok(number) => number,
            Err(error) => return reply.give(Err(error.to_string())),
        };
        if let Some(tenancy) = self.jails.get(number) {
            tenancy.machine_wanted.push(reply);
        }
        self.machine_is_made(number);
    }

    /// Notes the machine of a jail that is open, and hands it to those who wait for it.
    fn machine_is_made(&mut self, number: u64) {
        let Some(tenancy) = self.jails.get(number) else { return };
        let Some(machine) = tenancy.jail.machine().cloned() else { return };
        let waiting = std::mem::take(&mut tenancy.machine_wanted);
        let known = self.machines.get(tenancy.slot, tenancy.network);
        if known.is_none_or(|known| !Arc::ptr_eq(&known, &machine))
            && let Err(error) = tenancy.jail.workspace().on_founded(machine.root())
        {
            log::error!("the files of a slot cannot be seen from outside: {error}");
        }
        self.machines.insert(tenancy.slot, tenancy.network, machine.clone());
        waiting.into_iter().for_each(|reply| reply.give(Ok(machine.clone())));
    }

    /// The number of the jail that a command with these files is to enter.
    fn jail_for(&mut self, workspace: &Arc<Workspace>, network: bool) -> io::Result<u64> {
        let slot = workspace.slot();
        if let Some((number, tenancy)) = self.jails.of_slot(slot) {
            if tenancy.occupant.is_some() {
                return Err(io::Error::other("another command runs in this slot"));
            }
            // Whether files may be written to is decided when a sandbox is made.
            let is_full = self.host.limits.is_full(workspace);
            if tenancy.takes(network, is_full) {
                return Ok(number);
            }
            // Told to this command, though the jail may take a while to end.
            let why = match tenancy.jail.phase() {
                Phase::Ending | Phase::Gone => ENDED_WITH_SANDBOX,
                _ => "this call has another network",
            };
            if let Some(why) = tenancy.take_background(why) {
                self.jails.background_lost(slot, why);
            }
            self.end_jail(number);
        }
        let number = self.jails.next_number();
        let jail = self.make_jail(number, workspace, network)?;
        self.deadlines.extend(jail.deadline().map(|due| (due, number)));
        self.jails.insert(number, slot, network, jail);
        Ok(number)
    }

    /// Begins to make a jail for the commands of a slot, in the slot's machine if there is one.
    fn make_jail(
        &self,
        number: u64,
        workspace: &Arc<Workspace>,
        network: bool,
    ) -> io::Result<Jail> {
        let host = &self.host;
        let Isolation::Jailed(jails) = &host.isolation else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let (_, shell) = host.shell_of(workspace);
        let contents = Contents {
            workspace,
            network,
            program: shell,
            environment: host.environment(workspace, &workspace.inside()),
            open_files: host.open_files_of(workspace),
            cgroups: host.limits.shown(workspace),
        };
        let plan = jails.plan(contents);
        let origin = jails.origin(&host.null, workspace);
        let slot = workspace.slot();
        let machine = self.machines.get(slot, network).or_else(|| {
            // What is above layers is mounted once; only the network is another.
            self.machines.get(slot, !network).filter(|_| workspace.is_layered())
        });
        let (limits, workspace) = (host.limits.clone(), workspace.clone());
        let bounds = Bounds { limits, workspace, is_session: false };
        let watch = Watch { epoll: &self.epoll, id: number };
        Jail::start(&plan, machine, &origin, bounds, &watch).map_err(io::Error::other)
    }

    /// Lets the command that waits for a sandbox enter it, if it is open.
    fn let_enter(&mut self, number: u64) {
        let Some(tenancy) = self.jails.get(number) else { return };
        let is_open = tenancy.jail.phase() == Phase::Running;
        let Some(id) = tenancy.occupant.filter(|_| is_open) else { return };
        if let Some((Command::Entered(entered), _)) = self.running.get_mut(&id) {
            let before = entered.deadline();
            entered.enter(&mut tenancy.jail);
            self.after_change(id, before);
        }
    }

    /// What earlier commands have left running in a jail exceeds a limit of the slot.
    fn background_exceeds(&mut self, number: u64, exceeded: Exceeded) {
        // While a command runs in it that one's own alarm is heard.
        if let Some(tenancy) = self.jails.get(number)
            && tenancy.has_background
            && tenancy.occupant.is_none()
        {
            tenancy.ends_because.get_or_insert(exceeded.why());
            self.end_jail(number);
        }
    }

    /// Ends a slot's jails, whatever runs in them.
    fn leave(&mut self, slot: usize, on_gone: OnGone) {
        self.machines.forget(slot);
        self.jails.take_background_lost(slot);
        let numbers = self.jails.all_of_slot(slot);
        let Some(last) = numbers.last() else {
            return self.slot_is_left(on_gone);
        };
        // Any of them may be the last to go, so each hands on what it has.
        if let Some(tenancy) = self.jails.get(*last) {
            tenancy.on_gone.push(on_gone);
        }
        for number in numbers {
            self.end_jail(number);
        }
    }

    /// Nothing of a slot's jails is left that could run.
    fn slot_is_left(&mut self, on_gone: OnGone) {
        match self.host.limits.retired().is_full() {
            true => self.wait_for_fewer.push(on_gone),
            false => call_back(on_gone, true),
        }
    }

    fn end_jail(&mut self, number: u64) {
        self.change_jail(number, |jail, watch, now| {
            jail.end(watch, now);
            Vec::new()
        });
    }

    /// Lets something happen to a jail, if it is still there, and tells those concerned.
    fn change_jail(
        &mut self,
        number: u64,
        action: impl FnOnce(&mut Jail, &Watch<'_>, Instant) -> Vec<News>,
    ) {
        let now = Instant::now();
        let watch = Watch { epoll: &self.epoll, id: number };
        let Some(tenancy) = self.jails.get(number) else { return };
        let before = tenancy.jail.deadline();
        let news = action(&mut tenancy.jail, &watch, now);
        let after = tenancy.jail.deadline();
        if after != before {
            if let Some(before) = before {
                self.deadlines.remove(&(before, number));
            }
            self.deadlines.extend(after.map(|due| (due, number)));
        }
        for news in news {
            match news {
                News::Opened => {
                    self.machine_is_made(number);
                    self.let_enter(number);
                }
                News::Run(event) => self.on_run_event(number, event, now),
            }
        }
        if self.jails.get(number).is_some_and(|tenancy| tenancy.jail.phase() == Phase::Gone) {
            self.jail_gone(number, now);
        }
    }

    /// A jail's first process has said something of its command.
    fn on_run_event(&mut self, number: u64, event: RunEvent, now: Instant) {
        let Some(tenancy) = self.jails.get(number) else { return };
        let Some(id) = tenancy.occupant else { return };
        let mut refusals = Refusals::default();
        let ends_jail = match &event {
            // One that cannot start a shell is not used again either.
            RunEvent::Done { end, earlier_ended, .. } => {
                refusals = tenancy.jail.refusals();
                tenancy.has_background &= !earlier_ended;
                end.is_err() || !self.host.warm && !tenancy.has_background
            }
            RunEvent::Rest { is_kept, .. } => {
                tenancy.has_background |= is_kept;
                false
            }
            RunEvent::Ended { .. } => false,
        };
        self.change(id, |command, _, _, _| {
            if let Command::Entered(entered) = command {
                entered.was_refused(refusals);
                entered.on_run_event(event, now);
            }
        });
        if ends_jail {
            self.end_jail(number);
        }
    }

    /// A sandbox is gone: so is what ran in it.
    fn jail_gone(&mut self, number: u64, now: Instant) {
        let Some(mut tenancy) = self.jails.remove(number) else { return };
        if let Some(due) = tenancy.jail.deadline() {
            self.deadlines.remove(&(due, number));
        }
        let lost = tenancy.take_background(ENDED_WITH_SANDBOX);
        let all_dead = tenancy.jail.all_dead();
        let failure = tenancy.jail.failure().to_string();
        let out_of_memory = tenancy.jail.ran_out_of_memory();
        let watch = Watch { epoll: &self.epoll, id: number };
        self.leftovers.extend(tenancy.jail.finish(&watch));
        for reply in tenancy.machine_wanted {
            reply.give(Err(failure.clone()));
        }
        if let (Some(why), None) = (lost, tenancy.occupant) {
            // Unless the slot is being left.
            if tenancy.on_gone.is_empty() {
                self.jails.background_lost(tenancy.slot, why);
            }
        }
        if let Some(id) = tenancy.occupant {
            self.change(id, |command, _, _, _| {
                if let Command::Entered(entered) = command {
                    if let Some(why) = lost {
                        entered.earlier_ended(why);
                    }
                    if out_of_memory {
                        entered.ran_out_of_memory(now);
                    }
                    entered.on_jail_gone(all_dead, &failure, now);
                }
            });
        }
        let next = self.jails.all_of_slot(tenancy.slot).first().copied();
        for on_gone in tenancy.on_gone {
            match next.and_then(|next| self.jails.get(next)) {
                Some(other) => other.on_gone.push(on_gone),
                None => self.slot_is_left(on_gone),
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
        let jail = match command {
            Command::Entered(entered) => Some((entered.jail(), entered.wants_jail_ended())),
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
        if let Some((number, wants_jail_ended)) = jail {
            let left_running = over.then(|| self.alarm(number));
            if over
                && let Some(tenancy) = self.jails.get(number)
                && tenancy.occupant == Some(id)
            {
                tenancy.occupant = None;
                match left_running {
                    Some(alarm) if tenancy.has_background => tenancy.jail.left_running(alarm),
                    _ => tenancy.jail.left(),
                }
            }
            if wants_jail_ended {
                self.end_jail(number);
            }
        }
    }

    /// Answers a command that is over.
    fn finish(&mut self, id: u64) {
        let Some((command, answer)) = self.running.remove(&id) else { return };
        let watch = Watch { epoll: &self.epoll, id };
        let ending = command.finish(&watch);
        self.leftovers.extend(ending.leftover.map(Leftover::of));
        let (sandboxed, network_isolated) = (answer.sandboxed, answer.network_isolated);
        answer.give(Finished {
            end: ending.end,
            stdout: ending.stdout,
            stderr: ending.stderr,
            wall: ending.wall,
            sandboxed,
            network_isolated,
            all_dead: ending.all_dead,
            background: ending.background,
            limits_reached: ending.limits_reached,
        });
    }

    /// Waits for events, until the next deadline at the latest.
    fn wait(&self, events: &mut Vec<epoll::Event>) {
        let watched = !self.leftovers.is_empty() || !self.wait_for_fewer.is_empty();
        let longest = match (self.waiting.is_empty(), watched) {
            (false, _) => Some(Duration::ZERO),
            (true, true) => Some(Duration::from_secs(1)),
            (true, false) => None,
        };
        let next = self.deadlines.first().map(|(due, _)| *due);
        events::wait(&self.epoll, events, longest, next);
    }
}
