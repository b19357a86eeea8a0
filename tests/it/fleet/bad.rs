//! Servers that answer and in whose slots nothing can be run.

use std::sync::atomic::{AtomicU8, Ordering};

use tool_executor::BackendError;
use tool_executor::backend::{Container, Execution, ResetReply, SlotRef};

use super::*;
use crate::fakes::until;

/// What is wrong with a server.
const NOTHING: u8 = 0;
const NO_RESET: u8 = 1;
const NO_START: u8 = 2;
/// What a command breaks that has begun.
const BREAKS: u8 = 3;

/// A backend of which something may be wrong.
struct Faulty(Arc<AtomicU8>);

impl Backend for Faulty {
    fn start(&self, _interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
        Ok(crate::fakes::one_container(3))
    }

    fn execute(&self, _addr: &str, batch: Vec<Execution>) {
        for execution in batch {
            let mut failed = ToolResult::failure(Outcome::BackendFailed, "there is no room");
            execution.reply.send(match self.0.load(Ordering::Relaxed) {
                NO_START => {
                    failed.may_have_executed = false;
                    failed
                }
                BREAKS => failed,
                // As where a tool is not installed.
                _ if execution.tool == "tmux" => {
                    failed.may_have_executed = false;
                    failed
                }
                _ => ToolResult::ok("fine"),
            });
        }
    }

    fn reset(&self, _slot: &SlotRef, reply: ResetReply) {
        let fails = self.0.load(Ordering::Relaxed) == NO_RESET;
        reply.send(if fails { Err("the disk is gone".to_owned()) } else { Ok(()) });
    }
}

/// A server of three slots, and what is wrong with it.
fn faulty(wrong: u8) -> (SandboxServer, Arc<AtomicU8>) {
    let state = Arc::new(AtomicU8::new(wrong));
    (SandboxServer::start(config(), Faulty(state.clone())).unwrap(), state)
}

fn fleet_with_pause(urls: impl IntoIterator<Item = String>, pause: Duration) -> FleetConfig {
    let mut config = fleet(urls);
    config.allow_unisolated = true;
    config.with_bad_server_pause(pause)
}

const LONG: Duration = Duration::from_secs(3600);

#[test]
fn a_server_that_starts_no_command_is_drained_and_told_of() {
    let (bad, state) = faulty(NO_START);
    let good = server(2);
    let (bad_url, good_url) = (url(&bad), url(&good));
    let executor = executor(fleet_with_pause([bad_url.clone(), good_url.clone()], LONG));
    let ids: Vec<_> = (0..4).map(|n| format!("t{n}")).collect();
    let results: Vec<_> = ids.iter().map(|id| executor.execute(id, bash("true"))).collect();
    let failed = results.iter().filter(|result| result.outcome == Outcome::BackendFailed).count();
    assert!((1..=3).contains(&failed), "{results:?}");
    // As many as it takes, each in a slot of its own.
    let mut more = Vec::new();
    until(|| {
        let is_bad = !executor.stats().bad_containers.is_empty();
        if !is_bad {
            let id = format!("more{}", more.len());
            executor.execute(&id, bash("true"));
            more.push(id);
        }
        is_bad
    });
    let stats = executor.stats();
    let told = &stats.bad_containers[0];
    assert_eq!((&*told.addr, &*told.why), (&*bad_url, "there is no room"));
    assert_eq!((told.failures, stats.containers_found_bad), (3, 1));
    assert!(told.again_in > LONG / 2);
    let state_of = |url: &str| {
        let lanes = executor.stats().lanes;
        lanes.into_iter().find(|lane| lane.addr == url).map(|lane| lane.state)
    };
    until(|| state_of(&bad_url) == Some("draining"));
    assert_eq!(state_of(&good_url), Some("up"));
    // Who is there goes on there; who comes is put elsewhere, where there is room.
    state.store(NOTHING, Ordering::Relaxed);
    let there = ids.iter().chain(&more).find(|id| *executor.slot_of(id).unwrap().addr == *bad_url);
    assert_eq!(executor.execute(there.unwrap(), bash("true")).output, "fine");
    for id in ids.iter().chain(&more) {
        executor.release(id).unwrap();
    }
    until(|| state_of(&bad_url).is_none());
    for n in 0..4 {
        let result = executor.execute(&format!("new{n}"), bash("echo real"));
        assert_eq!(result.output, "real", "{result:?}");
        executor.release(&format!("new{n}")).unwrap();
    }
    assert_eq!(executor.stats().bad_containers.len(), 1, "it is told of while it is gone");
    assert!(executor.close().all_threads_ended);
}

#[test]
fn a_server_that_empties_no_slot_is_bad_and_is_used_again_when_it_does() {
    let (bad, state) = faulty(NO_RESET);
    let pause = Duration::from_millis(300);
    let executor = executor(fleet_with_pause([url(&bad)], pause));
    // Found by those who wait for a slot.
    let waits = executor.submit("a", bash("true")).unwrap();
    until(|| executor.stats().containers_found_bad == 1);
    state.store(NOTHING, Ordering::Relaxed);
    let result = waits.wait();
    assert_eq!((result.outcome, &*result.output), (Outcome::Ok, "fine"), "{}", result.error);
    until(|| executor.stats().bad_containers.is_empty());
    assert_eq!(executor.stats().containers.up, 1);
    assert!(executor.close().all_threads_ended);
}

#[test]
fn no_model_can_have_a_server_taken_for_bad() {
    let (server, state) = faulty(NOTHING);
    let executor = executor(fleet_with_pause([url(&server)], LONG));
    let mut failed = 0;
    for n in 0..12 {
        let id = format!("t{n}");
        let call = match n % 3 {
            // A tool that the server has not, as the first call.
            0 => ToolCall::new("tmux", json!({"action": "view"})),
            // A command that breaks its sandbox, as the first call, and later.
            1 => {
                state.store(BREAKS, Ordering::Relaxed);
                bash("true")
            }
            _ => {
                assert!(executor.execute(&id, bash("true")).success);
                state.store(NO_START, Ordering::Relaxed);
                bash("true")
            }
        };
        let result = executor.execute(&id, call);
        failed += usize::from(result.outcome == Outcome::BackendFailed);
        state.store(NOTHING, Ordering::Relaxed);
        executor.release(&id).unwrap();
    }
    assert_eq!(failed, 12);
    let stats = executor.stats();
    assert_eq!((stats.containers_found_bad, stats.containers.up), (0, 1));
    assert!(executor.close().all_threads_ended);
}

#[test]
fn a_reference_server_that_empties_no_slot_is_bad_too() {
    let server = Server::start(|request: &Request| match &*request.path {
        "/health" => ok(r#"{"status": "ok"}"#),
        "/slots" => ok(r#"{"slots": [{"slot_id": "slot_0"}, {"slot_id": "slot_1"}]}"#),
        _ => ok(r#"{"success": false, "error": "no reset"}"#),
    });
    let executor = executor(fleet_with_pause([server.url.clone()], LONG));
    let pending = executor.submit("a", bash("true")).unwrap();
    until(|| executor.stats().containers_found_bad == 1);
    let told = &executor.stats().bad_containers[0];
    assert_eq!((&*told.addr, &*told.why), (&*server.url, "no reset"));
    until(|| executor.stats().lanes.is_empty());
    pending.cancel();
    assert_eq!(pending.wait().outcome, Outcome::Cancelled);
}
