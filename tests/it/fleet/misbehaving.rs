//! Servers that say they are ours, and do something else: each call has a typed outcome within a
//! bound, and the callers of other containers notice nothing.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use serde_json::{Value, json};
use tool_executor::backend::fleet::FleetBackend;
use tool_executor::backend::{Backend, Watcher};
use tool_executor::config::ExecutorConfig;
use tool_executor::server::SandboxServer;
use tool_executor::{Interrupt, Outcome, ToolExecutor};

use super::{config, fleet, is_alone, threads, url};
use crate::fakes::{Echoes, PATIENCE, bash, until};
use crate::http::{Reply, Request, Server, ok};

/// The head of a stream of results.
const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n";
/// More than any line may have.
const TOO_MUCH: usize = 100_000_000;

/// A server of so many slots. Resets it does; what it does with calls, and with the stream of
/// results, the test says. To the end of its session it says nothing.
fn native(
    slots: usize,
    calls: impl Fn(&[Value]) -> Reply + Send + Sync + 'static,
    results: impl Fn(&Value) -> Reply + Send + Sync + 'static,
) -> Server {
    let names: Vec<_> = (0..slots).map(|slot| format!("slot_{slot}")).collect();
    Server::start(move |request: &Request| {
        let asked: Value = serde_json::from_str(&request.body).unwrap_or_default();
        match &*request.path {
            "/health" => ok(r#"{"status": "ok", "features": ["native-3"]}"#),
            "/v3/session" if asked["end"] == true => silence(b""),
            "/v3/session" => ok(json!({"instance": "i", "resumed": asked["resume"],
                "slots": names, "max_body": 1_000_000, "lease": all_slots(names.len()),
                "lease_s": 15.0})
            .to_string()),
            "/v3/calls" => {
                let ops = asked["ops"].as_array().unwrap();
                if ops.iter().all(|op| op["reset"] == true) {
                    told(ops.iter().map(|op| done(op, "")))
                } else {
                    calls(ops)
                }
            }
            "/v3/results" => results(&asked),
            other => panic!("{other}"),
        }
    })
}

/// A lease of all of so many slots.
fn all_slots(slots: usize) -> Value {
    let held: Vec<_> = (0..slots).map(|slot| (slot, 1)).collect();
    json!({"version": 1, "held": held, "limit": slots, "sessions": 1})
}

/// The result of an operation.
fn done(op: &Value, output: &str) -> Value {
    json!({"slot": op["slot"], "seq": op["seq"],
        "done": {"outcome": "ok", "may_have_executed": true, "output": output}})
}

/// An answer to calls.
fn told(results: impl Iterator<Item = Value>) -> Reply {
    ok(json!({"results": results.collect::<Vec<_>>()}).to_string())
}

/// Does every call at once; its output is its command.
fn does(ops: &[Value]) -> Reply {
    told(ops.iter().map(|op| done(op, op["args"]["command"].as_str().unwrap_or_default())))
}

/// Takes calls, and has no results.
fn takes(_ops: &[Value]) -> Reply {
    told(std::iter::empty())
}

/// A stream that begins with these bytes, and what goes on with it.
fn stream(bytes: impl Into<Vec<u8>>) -> (Reply, Sender<Vec<u8>>) {
    let (sender, pieces) = unbounded();
    sender.send([HEAD.as_bytes(), &bytes.into()].concat()).unwrap();
    (Reply::Stream(pieces), sender)
}

/// A stream that says that the server is there, and then nothing more.
fn quiet(_asked: &Value) -> Reply {
    says("{\"beat\":0}\n")
}

/// A stream that says this, and then nothing more while it is open.
fn says(bytes: &str) -> Reply {
    silence(format!("{HEAD}{bytes}").as_bytes())
}

/// A server that does as it should.
fn good() -> SandboxServer {
    SandboxServer::start(config(), Echoes(1)).unwrap()
}

/// The executor over these, which does not wait for what never comes.
fn executor(urls: impl IntoIterator<Item = String>) -> ToolExecutor {
    let backend = FleetBackend::new(fleet(urls)).unwrap();
    let builder = ToolExecutor::builder()
        .backend(backend)
        .config(ExecutorConfig::default().with_answer_grace(Duration::from_secs(1)));
    builder
        .config(ExecutorConfig::default().with_acquire_timeout(Duration::from_secs(6)))
        .start()
        .unwrap()
}

/// Two calls, one of which is for this server: what becomes of that one, while the other server's
/// callers are served at once. A server that is of no use from the beginning gets no call: then it
/// is one that never ran.
fn outcome_beside_a_good_one(name: &str, bad: &Server, timeout: Duration) -> Outcome {
    let good = good();
    let executor = executor([bad.url.clone(), url(&good)]);
    let [a, b] = ["a", "b"].map(|id| executor.submit(id, bash("x").with_timeout(timeout)).unwrap());
    until(|| a.is_done() || b.is_done());
    let on_good = |id: &str| executor.slot_of(id).is_some_and(|slot| *slot.addr == *url(&good));
    until(|| on_good("a") || on_good("b"));
    let (id, served, other) = if on_good("a") { ("a", a, b) } else { ("b", b, a) };
    assert_eq!(served.wait().output, "x", "{name}");
    for _ in 0..10 {
        let result = executor.execute(id, bash("y"));
        assert_eq!(result.output, "y", "{name}: {}", result.error);
    }
    let result = other.wait_timeout(PATIENCE).unwrap_or_else(|_| panic!("{name}: nothing"));
    assert!(executor.close().all_threads_ended, "{name}");
    // Only a call that the server never got has certainly not run.
    let got = bad.requests.try_iter().any(|request| request.body.contains("\"bash\""));
    match result.outcome {
        Outcome::NeverRan => assert!(!result.may_have_executed, "{name}: {}", result.error),
        _ => assert!(result.may_have_executed || !got, "{name}: {}", result.error),
    }
    assert!(!(got && result.outcome == Outcome::NeverRan), "{name}: {}", result.error);
    assert!(got || result.outcome != Outcome::Ok, "{name}: done without having been asked");
    result.outcome
}

#[test]
fn whatever_a_server_says_a_call_has_its_outcome_within_a_bound() {
    type Calls = Box<dyn Fn(&[Value]) -> Reply + Send + Sync>;
    type Results = Box<dyn Fn(&Value) -> Reply + Send + Sync>;
    let (_never, hang) = bounded::<()>(0);
    let raw = |text: &'static str| Reply::Raw(text.as_bytes().to_vec());
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"res";
    let large = format!("HTTP/1.1 200 OK\r\nContent-Length: {TOO_MUCH}\r\n\r\n");
    let strange = |op: &Value| {
        let (slot, seq) = (op["slot"].as_u64().unwrap(), op["seq"].as_u64().unwrap());
        let of = |slot: u64, seq: u64| done(&json!({"slot": slot, "seq": seq}), "not yours");
        [of(slot, seq + 1), of(slot, seq - 1), of(slot + 7, seq), of(u64::from(u32::MAX), 1)]
    };
    let lost = Outcome::SandboxLost;
    let cases: Vec<(&str, Outcome, Calls, Results)> = vec![
        ("garbage", lost, Box::new(|_| ok("<html>")), Box::new(quiet)),
        ("another protocol", lost, Box::new(|_| ok(r#"{"results": 7}"#)), Box::new(quiet)),
        ("500", lost, Box::new(|_| Reply::Answer(500, "oops".to_owned())), Box::new(quiet)),
        ("closes", lost, Box::new(move |_| raw("")), Box::new(quiet)),
        ("half an answer", lost, Box::new(move |_| raw(half)), Box::new(quiet)),
        ("half, and silence", lost, Box::new(move |_| silence(half.as_bytes())), Box::new(quiet)),
        ("hangs", lost, Box::new(move |_| Reply::Hang(hang.clone())), Box::new(quiet)),
        (
            "a large answer",
            lost,
            Box::new(move |_| Reply::Flood(large.clone().into_bytes(), TOO_MUCH)),
            Box::new(quiet),
        ),
        ("too few results", lost, Box::new(takes), Box::new(quiet)),
        (
            "other operations' results",
            lost,
            Box::new(move |ops| told(strange(&ops[0]).into_iter())),
            Box::new(quiet),
        ),
        (
            "too many results",
            Outcome::Ok,
            Box::new(move |ops| {
                let right = done(&ops[0], "x");
                told(strange(&ops[0]).into_iter().chain([right.clone(), right]))
            }),
            Box::new(quiet),
        ),
        ("a stream of garbage", lost, Box::new(takes), Box::new(|_| says("<html>\n"))),
        ("a stream of nothing", lost, Box::new(takes), Box::new(|_| says(""))),
        ("half a line", lost, Box::new(takes), Box::new(|_| says("{\"beat\":"))),
        ("a stream that ends", lost, Box::new(takes), Box::new(move |_| raw(HEAD))),
        ("no stream", lost, Box::new(takes), Box::new(|_| Reply::Answer(404, "{}".to_owned()))),
        (
            "a large line",
            lost,
            Box::new(takes),
            Box::new(|_| Reply::Flood(HEAD.as_bytes().to_vec(), TOO_MUCH)),
        ),
        (
            "a stream of other operations' results",
            lost,
            Box::new(takes),
            Box::new(|_| {
                says(
                    "{\"slot\":9,\"seq\":9,\"stale\":true}\n{\"slot\":0,\"seq\":77,\"done\":{\"outcome\":\"ok\",\"may_have_executed\":true}}\n",
                )
            }),
        ),
    ];
    std::thread::scope(|scope| {
        for (name, outcome, calls, results) in cases {
            scope.spawn(move || {
                let bad = native(1, calls, results);
                // Either the fleet's bound ends it, or the executor's.
                let timeout = if name.contains("results") { 1 } else { 60 };
                let timeout = Duration::from_secs(timeout);
                let found = outcome_beside_a_good_one(name, &bad, timeout);
                let never_ran = outcome == lost && found == Outcome::NeverRan;
                assert!(found == outcome || never_ran, "{name}: {found:?}");
            });
        }
    });
}

/// Writes this, and then nothing while the connection is open.
fn silence(after: &[u8]) -> Reply {
    let (sender, pieces) = unbounded();
    sender.send(after.to_vec()).unwrap();
    // For ever: no limit would end it.
    std::mem::forget(sender);
    Reply::Stream(pieces)
}

#[test]
fn servers_that_hang_take_no_threads_of_others() {
    // More of them than the executor has threads for the backend.
    const HANG: usize = 12;
    let (_never, hang) = bounded::<()>(0);
    let hanging: Vec<_> = (0..HANG)
        .map(|_| {
            let hang = hang.clone();
            native(1, move |_| Reply::Hang(hang.clone()), quiet)
        })
        .collect();
    let good = good();
    let urls = hanging.iter().map(|server| server.url.clone()).chain([url(&good)]);
    let mut config = fleet(urls);
    config.unreachable_timeout = PATIENCE;
    let backend = FleetBackend::new(config).unwrap();
    let executor = ToolExecutor::builder().backend(backend).start().unwrap();
    let queue = executor.completion_queue(100);
    for tag in 0..=HANG {
        let id = format!("t{tag}");
        executor
            .submit_to(&id, bash("x").with_timeout(PATIENCE), queue.tagged(tag as u64))
            .unwrap();
    }
    let first = queue.next_timeout(PATIENCE).expect("the good one's");
    let id = format!("t{}", first.tag);
    for _ in 0..20 {
        assert_eq!(executor.execute(&id, bash("y")).output, "y");
    }
    // No request was given up yet: the good one's callers did not wait for that.
    for server in &hanging {
        let calls = server.requests.try_iter().filter(|request| request.body.contains("bash"));
        assert!(calls.count() <= 1);
    }
    assert!(queue.next_timeout(Duration::ZERO).is_none());
    executor.close_within(Duration::ZERO);
}

#[test]
fn closing_does_not_wait_for_servers_that_hang() {
    let (_never, hang) = bounded::<()>(0);
    let hanging: Vec<_> = (0..4)
        .map(|_| {
            let hang = hang.clone();
            native(1, does, move |_| Reply::Hang(hang.clone()))
        })
        .collect();
    let mut config = fleet(hanging.iter().map(|server| server.url.clone()));
    config.unreachable_timeout = PATIENCE;
    let backend = FleetBackend::new(config).unwrap();
    backend.start(&Interrupt::new()).unwrap();
    backend.watch(Watcher::from_fn(|_, _| {}));
    for server in &hanging {
        let mut requests = std::iter::from_fn(|| server.requests.recv_timeout(PATIENCE).ok());
        assert!(requests.any(|request| request.path == "/v3/results"));
    }
    let began = Instant::now();
    backend.close(began + Duration::from_millis(500));
    // Much less than a request may take.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[test]
fn a_result_whose_answer_was_lost_is_asked_for() {
    let (asked, streams) = unbounded();
    let server = native(1, takes, move |request| {
        let waiting = request["waiting"].as_array().unwrap();
        let (reply, sender) = stream("{\"beat\":0}\n");
        if let Some(op) = waiting.first() {
            let op = json!({"slot": op[0], "seq": op[1]});
            sender.send(format!("{}\n", done(&op, "found")).into_bytes()).unwrap();
        }
        asked.send((waiting.len(), sender)).unwrap();
        reply
    });
    let executor = executor([server.url.clone()]);
    let (_, first) = streams.recv_timeout(PATIENCE).unwrap();
    let pending = executor.submit("t", bash("x").with_timeout(PATIENCE)).unwrap();
    // It says that it has told the result, as often as need be.
    let second = next_stream(&first, &streams);
    assert_eq!(second, 1, "the new stream is opened with the question");
    assert_eq!(pending.wait_timeout(PATIENCE).unwrap().output, "found");
    assert!(executor.close().all_threads_ended);
}

#[test]
fn a_session_whose_beginning_was_not_told_is_begun_again_under_its_name() {
    // What a server of ours does with sessions, but for the answers: the second beginning is not
    // told.
    #[derive(Default)]
    struct Sessions {
        current: Option<String>,
        begun: usize,
    }
    let sessions = std::sync::Arc::new(parking_lot::Mutex::new(Sessions::default()));
    let (opened, streams) = unbounded();
    let its = sessions.clone();
    let server = Server::start(move |request: &Request| {
        let asked: Value = serde_json::from_str(&request.body).unwrap_or_default();
        match &*request.path {
            "/health" => ok(r#"{"status": "ok", "features": ["native-3"]}"#),
            "/v3/session" if asked["end"] == true => silence(b""),
            "/v3/session" => {
                let mut sessions = its.lock();
                let is_his = sessions.current.as_deref() == asked["session"].as_str();
                if asked["resume"] == true && !is_his {
                    return Reply::Answer(410, "{}".to_owned());
                }
                let current = sessions.current.as_deref();
                if !is_his && current.is_some() && current != asked["replaces"].as_str() {
                    return Reply::Answer(409, r#"{"detail": "another executor's"}"#.to_owned());
                }
                if !is_his {
                    sessions.current = asked["session"].as_str().map(str::to_owned);
                    sessions.begun += 1;
                    if sessions.begun == 2 {
                        return Reply::Raw(Vec::new());
                    }
                }
                ok(json!({"instance": "i", "resumed": is_his, "slots": ["slot_0"],
                    "max_body": 1_000_000, "lease": all_slots(1), "lease_s": 15.0})
                .to_string())
            }
            "/v3/calls" => does(asked["ops"].as_array().unwrap()),
            _ => {
                let (reply, sender) = stream("{\"beat\":0}\n");
                opened.send(sender).unwrap();
                reply
            }
        }
    });
    let executor = executor([server.url.clone()]);
    assert_eq!(executor.execute("t", bash("x").with_timeout(PATIENCE)).output, "x");
    let first = streams.recv_timeout(PATIENCE).unwrap();
    // It forgets the session, and the stream ends.
    sessions.lock().current = None;
    drop(first);
    let _second = streams.recv_timeout(PATIENCE).expect("it goes on without another's session");
    assert_eq!(sessions.lock().begun, 2);
    let lost = executor.execute("t", bash("x").with_timeout(PATIENCE));
    assert_eq!((lost.outcome, lost.may_have_executed), (Outcome::SandboxLost, false));
    executor.release("t").unwrap();
    let anew = executor.execute("t", bash("y").with_timeout(PATIENCE));
    assert_eq!(anew.output, "y", "{}", anew.error);
}

/// Beats on a stream until another one is opened; gives how many operations that one asks about.
fn next_stream(first: &Sender<Vec<u8>>, streams: &Receiver<(usize, Sender<Vec<u8>>)>) -> usize {
    for _ in 0..1000 {
        let _ = first.send(b"{\"beat\":1,\"told\":[[0,1],[0,2]]}\n".to_vec());
        if let Ok((waiting, sender)) = streams.recv_timeout(Duration::from_millis(50)) {
            std::mem::forget(sender);
            return waiting;
        }
    }
    panic!("the result is never asked for");
}

#[test]
fn a_call_that_a_server_refuses_is_refused_alone() {
    const SLOTS: usize = 8;
    let refuses = |ops: &[Value]| {
        if ops.iter().any(|op| op["args"]["command"] == "large") {
            return Reply::Answer(413, r#"{"detail": "too large for my proxy"}"#.to_owned());
        }
        does(ops)
    };
    let server = native(SLOTS, refuses, quiet);
    let executor = executor([server.url.clone()]);
    let queue = executor.completion_queue(100);
    for round in 0..5 {
        for tag in 0..SLOTS {
            let command = if tag == 3 { "large" } else { "small" };
            executor
                .submit_to(&format!("t{tag}"), bash(command), queue.tagged(tag as u64))
                .unwrap();
        }
        for _ in 0..SLOTS {
            let done = queue.next_timeout(PATIENCE).unwrap();
            let result = done.result;
            if done.tag == 3 {
                assert_eq!(result.outcome, Outcome::BackendFailed, "{round}");
                assert!(!result.may_have_executed);
                assert!(result.error.contains("too large for my proxy"), "{}", result.error);
            } else {
                assert_eq!(result.output, "small", "{round}: {}", result.error);
            }
        }
    }
}

#[test]
fn a_server_that_talks_nonsense_for_long_costs_neither_threads_nor_memory() {
    if !is_alone(
        "fleet::misbehaving::a_server_that_talks_nonsense_for_long_costs_neither_threads_nor_memory",
    ) {
        return;
    }
    // Each stream has a line of 100 MB, each answer another; none is ever of use.
    let (opened, streams) = unbounded();
    let server = native(
        1,
        |_| {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {TOO_MUCH}\r\n\r\n");
            Reply::Flood(head.into_bytes(), TOO_MUCH)
        },
        move |_| {
            let _ = opened.send(());
            Reply::Flood(format!("{HEAD}{{\"beat\":0}}\n").into_bytes(), TOO_MUCH)
        },
    );
    let executor = executor([server.url.clone()]);
    let ours = ["tool-"];
    let mut before = None;
    for round in 0..4 {
        let result = executor.execute("t", bash("x").with_timeout(Duration::from_secs(1)));
        assert_eq!(result.outcome, Outcome::SandboxLost, "{}", result.error);
        executor.release_keeping_files("t").unwrap();
        streams.recv_timeout(PATIENCE).expect("it is tried again");
        let now = threads(&ours);
        assert_eq!(*before.get_or_insert(now), now, "round {round}");
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: usize = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 250_000, "{peak} kB");
    assert!(executor.close().all_threads_ended);
    until(|| threads(&ours) == 0);
}
