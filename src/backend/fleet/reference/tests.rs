//! What did not arrive, over a server of the test's own.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::thread;

use crossbeam_channel::{Receiver, bounded, unbounded};

use super::*;
use crate::backend::fleet::FleetConfig;
use crate::backend::{ExecutionId, Reply};

const PATIENCE: Duration = Duration::from_secs(60);

/// A server that is there whenever it is asked, what is told of it, and which calls and resets
/// have reached it.
fn met() -> (Arc<ReferenceServer>, Receiver<ContainerChange>, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (tell_request, requests) = unbounded();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let first = lines.next().unwrap().unwrap();
            while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
            if first.starts_with("POST") {
                tell_request.send(first).unwrap();
            }
            let body = r#"{"status": "ok", "slots": [{"slot_id": "slot_0"}], "success": true}"#;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n", body.len());
            write!(stream, "{head}Connection: close\r\n\r\n{body}").unwrap();
        }
    });
    let config = FleetConfig::new([&url]);
    let names = Names::new();
    let connection = Connection::new(&url, None, &config, &names).unwrap();
    let requests_of_all = StockRequests::new(names, client::tls_config(None).unwrap());
    let met = ReferenceServer::connect(
        0,
        connection,
        PATIENCE,
        &requests_of_all,
        Arc::new(Reports::new(PATIENCE)),
    );
    let (server, _) = met.unwrap();
    let (tell, told) = unbounded();
    server.watch(Watcher::from_fn(move |_, change| tell.send(change).unwrap())).unwrap();
    (server, told, requests)
}

fn call() -> (Execution, Receiver<ToolResult>) {
    let (tell, told) = bounded(1);
    let execution = Execution {
        id: ExecutionId(1),
        trajectory_id: "t".into(),
        slot: SlotRef::new("box", 0, "slot_0", 1),
        tool: "bash",
        arguments: crate::tool::JsonObject::new(),
        timeout: Duration::from_secs(5),
        reply: Reply::from_fn(move |result| tell.send(result).unwrap()),
    };
    (execution, told)
}

#[test]
fn a_call_that_was_refused_is_not_sent_to_the_server_that_came_after() {
    let (server, told, requests) = met();
    let deadline = Instant::now() + PATIENCE;
    // It was gone for as short as can be, and answers again.
    let (execution, result) = call();
    server.not_arrived(Job::Call(execution, 0), Failure::NoListener, deadline);
    let result = result.recv_timeout(PATIENCE).unwrap();
    assert!(result.error.contains("anew"), "{}", result.error);
    assert_eq!((result.outcome, result.may_have_executed), (Outcome::SandboxLost, false));
    let slots = LeasedSlots::all(["slot_0"], 1);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), ContainerChange::Added(slots));
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), ContainerChange::Restarted);
    assert!(requests.is_empty());
    // A reset has no workspace to lose: it is sent again.
    let (tell, reset) = bounded(1);
    let reply = ResetReply::from_fn(move |outcome| tell.send(outcome).unwrap());
    let job = Job::Reset(SlotRef::new("box", 0, "slot_0", 1), reply);
    server.not_arrived(job, Failure::NoListener, deadline);
    assert_eq!(reset.recv_timeout(PATIENCE).unwrap(), Ok(()));
    assert!(requests.recv_timeout(PATIENCE).unwrap().starts_with("POST /reset "));
    // One whose server could not be reached at all is sent again: nothing is known to be lost.
    let (execution, result) = call();
    let losses = server.state.lock().losses;
    let no_route = Failure::NotSent("no route".to_owned());
    server.not_arrived(Job::Call(execution, losses), no_route, deadline);
    assert!(result.recv_timeout(PATIENCE).unwrap().success);
    assert!(requests.recv_timeout(PATIENCE).unwrap().starts_with("POST /execute "));
    server.close(Instant::now() + PATIENCE);
}

#[test]
fn what_did_not_arrive_waits_for_its_time_or_for_news() {
    let now = Instant::now();
    let later = now + Duration::from_secs(1);
    let waiting = |again| {
        let job = Job::Reset(SlotRef::new("box", 0, "slot_0", 1), ResetReply::from_fn(|_| ()));
        Waiting { job, failure: Failure::NoListener, again, deadline: later }
    };
    let unknown = Phase::Unknown { since: now };
    for (again, phase, refused, at, turn) in [
        (Some(now), Phase::Up, false, now, Turn::TryAgain),
        (Some(now), unknown, true, now, Turn::TryAgain),
        (Some(later), Phase::Up, false, now, Turn::Wait),
        (None, Phase::Up, true, now, Turn::Wait),
        (None, unknown, true, now, Turn::Wait),
        (None, Phase::Up, false, now, Turn::TryAgain),
        (None, Phase::Down, true, now, Turn::GiveUp),
        (Some(now), Phase::Down, false, now, Turn::GiveUp),
        (Some(now), Phase::Up, false, later, Turn::GiveUp),
    ] {
        assert_eq!(waiting(again).turn(phase, refused, at), turn, "{again:?} {phase:?}");
    }
    assert_eq!(waiting(None).next(), later);
    assert_eq!(waiting(Some(now)).next(), now);
}

#[test]
fn what_waits_when_the_server_is_closed_says_so() {
    let (server, _told, _requests) = met();
    server.close(Instant::now() + PATIENCE);
    let (execution, result) = call();
    let failure = Failure::NotSent("no route".to_owned());
    server.not_arrived(Job::Call(execution, 0), failure, Instant::now() + PATIENCE);
    let result = result.recv_timeout(PATIENCE).unwrap();
    assert_eq!((result.outcome, result.may_have_executed), (Outcome::SandboxLost, false));
}
