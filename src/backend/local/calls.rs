//! The calls: what their arguments mean, who runs them, and how they are found to be cancelled.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{LocalBackend, Slot};
use crate::backend::{Cancellation, Execution, ExecutionId};
use crate::sandbox::bash::{IsolationPolicy, bash_result, in_order, not_started};
use crate::sandbox::files;
use crate::sandbox::shell::{self, Shell};
use crate::sandbox::supervisor::{CommandId, CommandSpec, Finished};
use crate::sandbox::terminal::result::{self as stateful, stateful_result};
use crate::sandbox::terminal::{Place, ShellCommand, ShellEnded, TerminalCall, tmux};
use crate::tool::python_json::is_truthy;
use crate::tool::{
    BackgroundProcesses, BashArguments, DEFAULT_SESSION, Outcome, output_order, session,
};

/// A call's command that was started and has not ended yet.
pub(super) struct Running {
    pub(super) command: Command,
    pub(super) slot: usize,
}

/// What runs, and who knows it.
#[derive(Clone, Copy)]
pub(super) enum Command {
    Plain(CommandId),
    Terminal(TerminalCall),
}

impl LocalBackend {
    pub(super) fn bash(&self, execution: Execution) {
        let Execution { id, slot, arguments, timeout, reply, .. } = execution;
        let policy = self.bounded(slot.index, IsolationPolicy::from_arguments(&arguments));
        let isolation = self.0.supervisor.isolation();
        let (sandboxed, can_cut_network) = (isolation.is_sandboxed(), isolation.can_cut_network());
        if let Some(refusal) = policy.refusal(sandboxed, can_cut_network) {
            return reply.send(refusal);
        }
        let Some(place) = self.0.slots.get(slot.index) else { return };
        let wanted = match BashArguments::parse(&arguments) {
            Ok(wanted) => wanted,
            // The model's doing, unlike what the engine itself may fail at.
            Err(why) => return reply.send(not_started(&why, sandboxed)),
        };
        place.has_network.store(policy.allow_network, Ordering::Release);
        let order = wanted.output_order;
        let workspace = place.workspace();
        let kind = workspace.shell_kind().unwrap_or_else(Shell::detect);
        let keeps_background =
            workspace.keeps_background().unwrap_or(wanted.background == BackgroundProcesses::Keep);
        let spec = CommandSpec {
            workspace: workspace.clone(),
            command: match workspace.begins_in() {
                // The jail in which the directory was made begins in another.
                Some(directory) => {
                    shell::script_in(directory, &shell::script_of(&wanted, kind, false))
                }
                None => shell::script_of(&wanted, kind, workspace.image().is_none()),
            },
            stdin: wanted.stdin.unwrap_or_default().to_owned(),
            output_order: order,
            verdict: None,
            keeps_background,
            network: policy.allow_network,
            timeout,
            output_limit_chars: self.0.max_output_chars,
            output_file_bytes: self.0.max_output_file_bytes,
        };
        let cancellation = reply.cancellation();
        let (note_end, ended) = self.note_end(id, place);
        let (egress, index) = (self.0.egress.clone(), slot.index);
        let (between, image_wait) = (place.ended.clone(), place.image_wait.clone());
        let on_end = move |finished: Finished| {
            // What is left of a jail runs nothing, and the slot gets another one.
            note_end(finished.all_dead || finished.sandboxed);
            let mut result = in_order(order, bash_result(finished, timeout.as_secs_f64()));
            Self::tell_usage(egress.as_deref(), index, &mut result);
            between.tell(&mut result);
            image_wait.tell(&mut result);
            reply.send(result);
        };
        let command = Command::Plain(self.0.supervisor.run(spec, Box::new(on_end)));
        self.note_start(id, Running { command, slot: slot.index }, &ended, &cancellation);
    }

    pub(super) fn bash_stateful(&self, execution: Execution) {
        let Execution { id, slot, arguments, timeout, reply, .. } = execution;
        let policy = self.bounded(slot.index, stateful::policy(&arguments));
        let isolation = self.0.supervisor.isolation();
        let (sandboxed, can_cut_network) = (isolation.is_sandboxed(), isolation.can_cut_network());
        if let Some(refusal) = stateful::refusal(policy, sandboxed, can_cut_network) {
            return reply.send(refusal);
        }
        let Some(place) = self.0.slots.get(slot.index) else { return };
        let command = match stateful::command(&arguments, sandboxed) {
            Ok(command) => command.to_owned(),
            Err(refusal) => return reply.send(*refusal),
        };
        let order = match output_order(&arguments) {
            Ok(order) => order,
            Err(why) => return reply.send(not_started(&why, sandboxed)),
        };
        let session: Arc<str> = match session(&arguments) {
            Ok(name) => name.into(),
            Err(why) => return reply.send(not_started(&why, sandboxed)),
        };
        let cancellation = reply.cancellation();
        let (note_end, ended) = self.note_end(id, place);
        let name = session.clone();
        let (egress, index) = (self.0.egress.clone(), slot.index);
        let (between, image_wait) = (place.ended.clone(), place.image_wait.clone());
        let on_end = move |ended: ShellEnded| {
            note_end(ended.finished.all_dead);
            let result = stateful::of_session(stateful_result(ended, timeout.as_secs_f64()), &name);
            let mut result = in_order(order, result);
            Self::tell_usage(egress.as_deref(), index, &mut result);
            between.tell(&mut result);
            image_wait.tell(&mut result);
            reply.send(result);
        };
        place.has_network.store(policy.allow_network, Ordering::Release);
        let (workspace, network) = (place.workspace(), policy.allow_network);
        let place = Place { slot: slot.index, workspace, network, session };
        let command = ShellCommand { text: command, order };
        let call = self.0.terminals.bash(place, command, timeout, Box::new(on_end));
        let running = Running { command: Command::Terminal(call), slot: slot.index };
        self.note_start(id, running, &ended, &cancellation);
    }

    pub(super) fn tmux(&self, execution: Execution) {
        let Execution { id, slot, arguments, timeout, reply, .. } = execution;
        let Some(place) = self.0.slots.get(slot.index) else { return };
        let act = match tmux::Request::parse(&arguments, timeout) {
            Ok(tmux::Request::Act(act)) => act,
            Ok(tmux::Request::Stop) => {
                let haunted = place.haunted.clone();
                let on_end = move |all_dead: bool| {
                    if !all_dead {
                        haunted.store(true, Ordering::Release);
                    }
                    reply.send(tmux::stop_result());
                };
                return self.0.terminals.stop_tmux(slot.index, Box::new(on_end));
            }
            Err(refusal) => return reply.send(*refusal),
        };
        let policy = self.bounded(slot.index, stateful::policy(&arguments));
        let isolation = self.0.supervisor.isolation();
        let (sandboxed, can_cut_network) = (isolation.is_sandboxed(), isolation.can_cut_network());
        if let Some(why) = stateful::lacking(policy, sandboxed, can_cut_network) {
            let refusal = tmux::not_ensured(Outcome::IsolationUnavailable, &why, true);
            return reply.send(refusal);
        }
        if !self.0.terminals.has_tmux() {
            let requires_bwrap = policy.require_sandbox || !policy.allow_network;
            let why = "tmux is not installed";
            let refusal = tmux::not_ensured(Outcome::BackendFailed, why, requires_bwrap);
            return reply.send(refusal);
        }
        let cancellation = reply.cancellation();
        let (note_end, ended) = self.note_end(id, place);
        let (egress, index) = (self.0.egress.clone(), slot.index);
        let (between, image_wait) = (place.ended.clone(), place.image_wait.clone());
        let on_end = move |ended: tmux::TmuxEnded| {
            note_end(ended.all_dead);
            let mut result = ended.result;
            Self::tell_usage(egress.as_deref(), index, &mut result);
            between.tell(&mut result);
            image_wait.tell(&mut result);
            reply.send(result);
        };
        place.has_network.store(policy.allow_network, Ordering::Release);
        let (workspace, network) = (place.workspace(), policy.allow_network);
        let session = DEFAULT_SESSION.into();
        let place = Place { slot: slot.index, workspace, network, session };
        let call = self.0.terminals.tmux(place, act, timeout, Box::new(on_end));
        let running = Running { command: Command::Terminal(call), slot: slot.index };
        self.note_start(id, running, &ended, &cancellation);
    }

    /// What is to be called when a command has ended, before its reply is given, and what tells
    /// [`note_start`](Self::note_start) that it was.
    fn note_end(
        &self,
        id: ExecutionId,
        place: &Slot,
    ) -> (impl FnOnce(bool) + Send + use<>, Arc<AtomicBool>) {
        let ended = Arc::new(AtomicBool::new(false));
        let (inner, noted) = (Arc::downgrade(&self.0), ended.clone());
        let haunted = place.haunted.clone();
        let note = move |all_dead: bool| {
            // Before the slot counts as idle: a reset that comes now must see it.
            if !all_dead {
                haunted.store(true, Ordering::Release);
            }
            if let Some(inner) = inner.upgrade() {
                let mut running = inner.running.lock();
                noted.store(true, Ordering::Release);
                running.remove(&id);
            }
        };
        (note, ended)
    }

    /// Notes where a call runs, unless it has ended, and cancels it if that was asked for before.
    fn note_start(
        &self,
        id: ExecutionId,
        running: Running,
        ended: &AtomicBool,
        cancellation: &Cancellation,
    ) {
        let command = running.command;
        {
            let mut all = self.0.running.lock();
            if !ended.load(Ordering::Acquire) {
                all.insert(id, running);
            }
        }
        if cancellation.is_requested() {
            self.cancel_command(command);
        }
    }

    pub(super) fn cancel_command(&self, command: Command) {
        match command {
            Command::Plain(command) => self.0.supervisor.cancel(command),
            Command::Terminal(call) => self.0.terminals.cancel(call),
        }
    }

    pub(super) fn file(&self, execution: Execution) {
        let Some(slot) = self.0.slots.get(execution.slot.index) else { return };
        if execution.arguments.get("allow_network").is_some_and(|allow| !is_truthy(allow)) {
            slot.has_network.store(false, Ordering::Release);
        }
        let mut result = slot.with_files(&self.0.supervisor, |files| {
            let (arguments, most) = (&execution.arguments, self.0.max_file_bytes);
            match execution.tool {
                "read_file" => files::read_file(files, arguments, most),
                _ => files::write_file(files, arguments, most),
            }
        });
        slot.image_wait.tell(&mut result);
        execution.reply.send(result);
    }
}
