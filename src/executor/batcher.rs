//! The batcher thread: takes events from the channel until the dispatch's next deadline, and sets
//! the workers to what is to be done. It never does I/O and never waits for anything but events;
//! the one thing that it does itself is to hand over calls that its backend says it takes at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::dispatch::{Action, Dispatch, HEARTBEAT};
use super::event::Event;
use super::external::{External, HandlerCall, ToolServerCall};
use super::lease::Lease;
use super::notices::Notices;
use super::stats::Stats;
use crate::backend::{Backend, BeginReply, Execution, ResetReply, Tier, tier};
use crate::tool::{Outcome, ToolReply, ToolResult};
use crate::toolserver::{ExternalCall, ToolServer};
use crate::workers::{Workers, guarded};

/// How many events are taken in before what follows from them is done: large enough that batches
/// form under load, small enough that no call waits long.
const DRAIN: usize = 512;
/// Who wakes up so much too late was not merely waiting for a processor.
const LATE: Duration = Duration::from_secs(1);
/// How often it wakes up while something has a deadline, only to see whether it is late: a stop
/// that ends shortly after a deadline would not show otherwise.
const PULSE: Duration = Duration::from_millis(500);

/// What the batcher works with.
pub(crate) struct Batcher {
    pub(crate) dispatch: Dispatch,
    pub(crate) events: Receiver<Event>,
    pub(crate) performer: Performer,
}

/// Does in the world what the dispatch says.
pub(crate) struct Performer {
    /// For the reports of what the workers did.
    pub(crate) report: Sender<Event>,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) inline_tools: InlineTools,
    pub(crate) pools: WorkerPools,
    pub(crate) notices: Arc<Notices>,
}

/// The tools whose calls the backend takes at once.
pub(crate) struct InlineTools {
    everywhere: &'static [&'static str],
    /// Those of each tier, by its name.
    by_tier: Vec<(String, &'static [&'static str])>,
}

impl InlineTools {
    /// Those of a backend, or of the tiers that it is made of.
    pub(crate) fn new(everywhere: &'static [&'static str], tiers: &[Tier]) -> Self {
        let of = |tier: &Tier| (tier.name.clone(), tier.capabilities.inline_tools);
        Self { everywhere, by_tier: tiers.iter().map(of).collect() }
    }

    /// Those of the container at this address.
    fn at(&self, addr: &str) -> &'static [&'static str] {
        match self.by_tier.is_empty() {
            true => self.everywhere,
            false => self.tier(addr).map_or(&[], |(tier, _)| self.by_tier[tier].1),
        }
    }

    /// The tier of an address, and what the address is there.
    fn tier<'a>(&self, addr: &'a str) -> Option<(usize, &'a str)> {
        tier::split(self.by_tier.iter().map(|(name, _)| &**name), addr)
    }
}

/// The threads that do what blocks, and what they need for it.
pub(crate) struct WorkerPools {
    pub(crate) io: Workers,
    pub(crate) handlers: Workers,
    pub(crate) tool_server: Option<(Arc<ToolServer>, Workers)>,
}

/// What the batcher leaves behind.
pub(crate) struct Ended {
    pub(crate) pools: WorkerPools,
    pub(crate) stats: Stats,
    /// How many calls had not ended when the closing time was up.
    pub(crate) cancelled: usize,
}

impl Batcher {
    /// Runs until the executor is closed and everything accepted has ended.
    pub(crate) fn run(mut self) -> Ended {
        loop {
            let now = Instant::now();
            for action in self.dispatch.tick(now) {
                self.performer.perform(action);
            }
            if self.dispatch.is_done() {
                break;
            }
            let until = match self.dispatch.next_deadline() {
                Some(at) => at.min(now + PULSE),
                // Nothing depends on waking; it bounds the wait.
                None => now + HEARTBEAT,
            };
            let received = self.events.recv_deadline(until);
            let is_late = Instant::now() > until + LATE;
            match received {
                Ok(event) => self.take_in(event),
                Err(RecvTimeoutError::Timeout) => {}
                // We hold a sender ourselves.
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if is_late {
                self.dispatch.was_stopped(Instant::now());
            }
        }
        Ended {
            stats: self.dispatch.stats(Instant::now()),
            cancelled: self.dispatch.aborted_calls(),
            pools: self.performer.pools,
        }
    }

    fn take_in(&mut self, first: Event) {
        let now = Instant::now();
        self.dispatch.handle(first, now);
        for event in self.events.try_iter().take(DRAIN) {
            self.dispatch.handle(event, now);
        }
    }
}

impl Performer {
    fn perform(&self, action: Action) {
        let WorkerPools { io, handlers, tool_server } = &self.pools;
        // A report is refused only when the batcher has ended, and then it is not needed.
        let report = self.report.clone();
        let backend = self.backend.clone();
        match action {
            Action::Send { container, addr, batch } => {
                // A change of threads costs a lone call more than handing it over does.
                let inline_tools = self.inline_tools.at(&addr);
                let is_inline = |execution: &Execution| inline_tools.contains(&execution.tool);
                let (inline, others): (Vec<_>, Vec<_>) = batch.into_iter().partition(is_inline);
                hand_over(&*backend, &addr, inline);
                if others.is_empty() {
                    let _ = report.send(Event::BatchAccepted { container });
                    return;
                }
                io.spawn(move || {
                    hand_over(&*backend, &addr, still_wanted(others));
                    let _ = report.send(Event::BatchAccepted { container });
                });
            }
            Action::Handle(call) => handlers.spawn(move || {
                handle(call);
                let _ = report.send(Event::ExternalReturned(External::InProcess));
            }),
            Action::AskToolServer(mut call) => match tool_server {
                Some((tool_server, threads)) => {
                    // The server may go there itself: it gets the address as it is.
                    if let Some(slot) = &mut call.slot
                        && let Some((_, there)) = self.inline_tools.tier(&slot.addr)
                    {
                        slot.addr = there.into();
                    }
                    let tool_server = tool_server.clone();
                    threads.spawn(move || {
                        if let Err(panic) = guarded(|| ask(&tool_server, call)) {
                            log::error!("a request to the ToolServer panicked: {panic}");
                        }
                        let _ = report.send(Event::ExternalReturned(External::ToolServer));
                    });
                }
                // No call for a ToolServer passes the door without one; its reply would say so.
                None => drop(call),
            },
            Action::Reset { slot, slot_ref } => io.spawn(move || {
                let generation = slot_ref.generation;
                let reply = ResetReply::from_fn(move |outcome| {
                    let _ = report.send(Event::ResetDone { slot, generation, outcome });
                });
                if let Err(panic) = guarded(|| backend.reset(&slot_ref, reply)) {
                    log::error!("the sandbox backend panicked in reset: {panic}");
                }
            }),
            Action::Begin { slot, slot_ref, spec } => io.spawn(move || {
                let generation = slot_ref.generation;
                let reply = BeginReply::from_fn(move |outcome| {
                    let _ = report.send(Event::BeginDone { slot, generation, outcome });
                });
                if let Err(panic) = guarded(|| backend.begin(&slot_ref, &spec, reply)) {
                    log::error!("the sandbox backend panicked in begin: {panic}");
                }
            }),
            Action::GiveBack { slot, grant } => io.spawn(move || {
                if let Err(panic) = guarded(|| backend.give_back(&slot, grant)) {
                    log::error!("the sandbox backend panicked in give_back: {panic}");
                }
            }),
            Action::GrantLease { slot, trajectory_id, lost, reply } => {
                // Where the reader has given up the lease is dropped, which gives the slot back.
                reply(Ok(Lease::new(slot, lost, move || {
                    let _ = report.send(Event::LeaseReturned { trajectory_id });
                })));
            }
            Action::TellDemand(demand) => {
                if let Err(panic) = guarded(|| backend.demand(&demand)) {
                    log::error!("the sandbox backend panicked in demand: {panic}");
                }
            }
            Action::Warn(text) => self.notices.warn(text, io),
            Action::Cancel(id) => io.spawn(move || {
                if let Err(panic) = guarded(|| backend.cancel(id)) {
                    log::error!("the sandbox backend panicked in cancel: {panic}");
                }
            }),
        }
    }
}

fn hand_over(backend: &dyn Backend, addr: &str, batch: Vec<Execution>) {
    // A panic drops the batch's replies, which answers them.
    if !batch.is_empty()
        && let Err(panic) = guarded(|| backend.execute(addr, batch))
    {
        log::error!("the sandbox backend panicked in execute: {panic}");
    }
}

/// Leaves out the calls that have ended or were cancelled while the batch waited for a thread: a
/// slot whose call has ended may belong to another trajectory by now.
fn still_wanted(batch: Vec<Execution>) -> Vec<Execution> {
    let is_unwanted = |execution: &Execution| execution.reply.is_cancelled();
    if !batch.iter().any(is_unwanted) {
        return batch;
    }
    let (unwanted, wanted): (Vec<_>, Vec<_>) = batch.into_iter().partition(is_unwanted);
    for execution in unwanted {
        let error = "Tool call was cancelled before it started";
        let mut result = ToolResult::failure(Outcome::Cancelled, error);
        result.may_have_executed = false;
        execution.reply.send(result);
    }
    wanted
}

fn ask(tool_server: &ToolServer, call: ToolServerCall) {
    let ToolServerCall { name, context, arguments, timeout, slot, reply } = call;
    let request = ExternalCall {
        trajectory_id: context.trajectory_id(),
        name: &name,
        arguments: &arguments,
        uniq_id: context.uniq_id(),
        timeout,
        slot_id: slot.as_ref().map(|slot| &*slot.name),
        container_addr: slot.as_ref().map(|slot| &*slot.addr),
    };
    reply.send(tool_server.execute(&request));
}

fn handle(call: HandlerCall) {
    let HandlerCall { handler, context, arguments, reply } = call;
    if handler.is_deferred() {
        let reply = ToolReply::from_fn(move |result| reply.send(result));
        if let Err(panic) = guarded(|| handler.start(&context, &arguments, reply)) {
            log::error!("an in-process tool panicked: {panic}");
        }
        return drop_guarded((handler, context, arguments));
    }
    let result = guarded(|| handler.run(&context, &arguments)).unwrap_or_else(|panic| {
        let error = format!("Tool execution error: the tool panicked: {panic}");
        ToolResult::failure(Outcome::ExternalFailed, error)
    });
    reply.send(result);
    drop_guarded((handler, context, arguments));
}

/// The user's captured values may panic when they are dropped, too.
fn drop_guarded<T>(what: T) {
    if let Err(panic) = guarded(move || drop(what)) {
        log::error!("an in-process tool panicked while it was dropped: {panic}");
    }
}
