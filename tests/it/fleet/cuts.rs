//! A proxy between the fleet and a server, which cuts connections, loses responses, and sends
//! requests late or twice: each command runs once, and its caller gets its result.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use tool_executor::server::SandboxServer;
use tool_executor::{Outcome, ToolExecutor};

use super::{config, executor, fleet, server};
use crate::fakes::{Counts, PATIENCE, bash, until};
use crate::proxy::{Proxy, Trouble};

/// Says how often it ran in its workspace.
const COUNTS: &str = "echo x >> count; wc -l < count";

/// The next run is this one, and the only one.
fn runs_once(executor: &ToolExecutor, number: usize) {
    let result = executor.execute("t", bash(COUNTS));
    assert_eq!(result.outcome, Outcome::Ok, "{number}: {}", result.error);
    assert_eq!(result.output, number.to_string());
}

/// Servers whose results come by the stream, and in the answer to the calls.
fn late_and_at_once() -> [SandboxServer; 2] {
    [server(1), SandboxServer::start(config(), Counts::default()).unwrap()]
}

/// Wherever a connection is cut, a command runs once and its caller gets its result.
fn once_whatever_is_cut(route: &'static str, cuts: impl Iterator<Item = Trouble>) {
    let server = server(1);
    let proxy = Proxy::before(server.addr());
    let executor = executor(fleet([proxy.url.clone()]));
    let mut calls = 0;
    for cut in cuts {
        let before = proxy.done();
        proxy.next(route, cut.clone());
        // One for the request that is cut, at least.
        for _ in 0..2 {
            calls += 1;
            let result = executor.execute("t", bash(COUNTS));
            assert_eq!(result.outcome, Outcome::Ok, "{cut:?}: {}", result.error);
            assert_eq!(result.output, calls.to_string(), "{cut:?}");
        }
        if route == "POST /v3/calls" {
            assert!(proxy.done() > before, "{cut:?} did not come to pass");
        }
    }
}

#[test]
fn a_request_that_is_cut_anywhere_runs_once() {
    let places = [0, 1, 15, 16, 17, 60, 120, 180, 200, 240, 260, 300];
    once_whatever_is_cut("POST /v3/calls", places.into_iter().map(Trouble::CutRequest));
}

#[test]
fn a_response_that_is_cut_anywhere_was_run_once() {
    let places = [0, 1, 9, 15, 17, 40, 80, 100, 110, 120];
    once_whatever_is_cut("POST /v3/calls", places.into_iter().map(Trouble::CutResponse));
}

#[test]
fn many_calls_at_once_survive_the_loss_of_requests_and_of_the_stream() {
    const TRAJECTORIES: u64 = 8;
    let server = server(TRAJECTORIES as usize);
    let proxy = Proxy::before(server.addr());
    proxy.next("POST /v3/results", Trouble::CutResponse(700));
    let executor = executor(fleet([proxy.url.clone()]));
    let queue = executor.completion_queue(100);
    for round in 1..=12 {
        proxy.next("POST /v3/calls", Trouble::CutRequest(round * 40));
        for tag in 0..TRAJECTORIES {
            let command = bash("sleep 0.05; echo x >> count; wc -l < count");
            executor.submit_to(&format!("t{tag}"), command, queue.tagged(tag)).unwrap();
        }
        for _ in 0..TRAJECTORIES {
            let done = queue.next_timeout(PATIENCE).expect("an answer");
            assert_eq!(done.result.output, round.to_string(), "{}", done.result.error);
        }
        if round % 4 == 0 {
            proxy.cut_all();
        }
    }
    assert!(proxy.done() > 10);
}

#[test]
fn a_stream_of_results_that_is_cut_anywhere_is_resumed() {
    let server = server(1);
    let proxy = Proxy::before(server.addr());
    // Each executor's stream is cut once, at another place.
    for place in [1, 20, 90, 110, 150, 160, 200, 300] {
        proxy.next("POST /v3/results", Trouble::CutResponse(place));
        let executor = executor(fleet([proxy.url.clone()]));
        for number in 1..=3 {
            // Long enough that the result comes by the stream.
            let command = "sleep 0.02; echo x >> count; wc -l < count";
            let result = executor.execute("t", bash(command));
            assert_eq!(result.output, number.to_string(), "{place}: {}", result.error);
        }
        executor.release("t").unwrap();
        assert!(executor.close().all_threads_ended);
    }
}

#[test]
fn a_response_that_never_comes_was_run_once() {
    for server in late_and_at_once() {
        let proxy = Proxy::before(server.addr());
        let executor = executor(fleet([proxy.url.clone()]));
        for number in 1..=3 {
            proxy.next("POST /v3/calls", Trouble::NoResponse);
            runs_once(&executor, number);
            assert_eq!(proxy.done(), number);
        }
    }
}

#[test]
fn a_stream_of_results_that_says_nothing_is_opened_again() {
    let server = server(1);
    let proxy = Proxy::before(server.addr());
    proxy.next("POST /v3/results", Trouble::NoResponse);
    let mut config = fleet([proxy.url.clone()]);
    config.unreachable_timeout = Duration::from_secs(10);
    let executor = executor(config);
    until(|| proxy.done() == 1);
    let result = executor.execute("t", bash("sleep 0.5; echo done"));
    assert_eq!(result.output, "done", "{}", result.error);
}

#[test]
fn a_request_that_comes_late_runs_no_more() {
    for server in late_and_at_once() {
        let proxy = Proxy::before(server.addr());
        let executor = executor(fleet([proxy.url.clone()]));
        let mut number = 0;
        for _ in 0..2 {
            let (release, held) = bounded::<()>(0);
            proxy.next("POST /v3/calls", Trouble::Held(held));
            // Its client gives up on it, and sends it again.
            for _ in 0..2 {
                number += 1;
                runs_once(&executor, number);
            }
            drop(release);
            for _ in 0..20 {
                number += 1;
                runs_once(&executor, number);
            }
        }
        assert_eq!(proxy.done(), 2);
    }
}

#[test]
fn a_request_that_comes_twice_runs_once() {
    for server in late_and_at_once() {
        let proxy = Proxy::before(server.addr());
        let executor = executor(fleet([proxy.url.clone()]));
        let mut number = 0;
        for round in 1..=5 {
            proxy.next("POST /v3/calls", Trouble::TwiceBefore);
            number += 1;
            runs_once(&executor, number);
            let (release, late) = bounded::<()>(0);
            proxy.next("POST /v3/calls", Trouble::TwiceAfter(late));
            for call in 0..20 {
                if call == round {
                    // It is a later operation's turn by now.
                    let _ = release.try_send(());
                }
                number += 1;
                runs_once(&executor, number);
            }
            drop(release);
            assert_eq!(proxy.done(), 2 * round);
        }
    }
}

#[test]
fn sessions_and_streams_that_are_asked_for_twice_are_one() {
    let server = server(1);
    let proxy = Proxy::before(server.addr());
    proxy.next("POST /v3/session", Trouble::TwiceBefore);
    let executor = executor(fleet([proxy.url.clone()]));
    for number in 1..=6 {
        // The second stream takes over from the first: the client asks for another one.
        let route = if number % 2 == 0 { "POST /v3/session" } else { "POST /v3/results" };
        proxy.next(route, Trouble::TwiceBefore);
        proxy.cut_all();
        runs_once(&executor, number);
    }
    assert!(proxy.done() > 3);
}

#[test]
fn a_server_that_comes_and_goes_runs_each_call_once() {
    const TRAJECTORIES: usize = 4;
    let server = server(TRAJECTORIES);
    let proxy = Proxy::before(server.addr());
    let mut config = fleet([proxy.url.clone()]);
    config.unreachable_timeout = PATIENCE;
    let executor = executor(config);
    let (ended, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for trajectory in 0..TRAJECTORIES {
            let (executor, ended, stop) = (&executor, &ended, &stop);
            scope.spawn(move || {
                let began = Instant::now();
                for number in 1.. {
                    if stop.load(Ordering::SeqCst) || began.elapsed() > 3 * PATIENCE {
                        return;
                    }
                    let result = executor.execute(&format!("t{trajectory}"), bash(COUNTS));
                    assert_eq!(result.output, number.to_string(), "{}", result.error);
                    ended.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for _ in 0..4 {
            let (ran, refused) = (ended.load(Ordering::SeqCst), proxy.refused());
            until(|| ended.load(Ordering::SeqCst) > ran + TRAJECTORIES);
            proxy.refuse(true);
            until(|| proxy.refused() > refused + 1);
            proxy.refuse(false);
        }
        stop.store(true, Ordering::SeqCst);
    });
}
