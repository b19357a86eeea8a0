//! Trajectories that begin with a spec on sandbox servers.

use serde_json::json;
use tool_executor::server::SandboxServer;
use tool_executor::{
    BeginError, BeginFailure, Outcome, SpecField, SpecFile, TrajectoryLimits, TrajectorySpec,
};

use super::{config, executor, fleet, server, url};
use crate::fakes::{Echoes, HandsOver, bash, next};
use crate::http::{Request, Server, ok};
use crate::proxy::{Proxy, Trouble};

fn spec() -> TrajectorySpec {
    let limits = TrajectoryLimits::default().with_open_files(64_u64);
    TrajectorySpec::default()
        .with_env([("A".to_owned(), "b".to_owned())].into())
        .with_limits(limits)
}

fn failure(error: BeginError) -> BeginFailure {
    match error {
        BeginError::Failed(failure) => failure,
        other => panic!("expected that it failed: {other}"),
    }
}

#[test]
fn a_spec_holds_on_a_server_and_what_that_cannot_give_is_refused() {
    let server = server(1);
    let executor = executor(fleet([url(&server)]));
    let given = executor.capabilities().spec;
    assert!([SpecField::Env, SpecField::Limits].iter().all(|field| given.contains(field)));
    executor.begin("t", spec()).unwrap();
    let look = "echo -$A $(ulimit -n)";
    assert_eq!(executor.execute("t", bash(look)).output, "-b 64");
    executor.release("t").unwrap();
    let after = executor.execute("t", bash(look));
    assert!(after.output.starts_with("- ") && !after.output.ends_with(" 64"), "{after:?}");
    executor.release("t").unwrap();
    let limits = TrajectoryLimits::default().with_open_files(1_u64 << 20);
    let more = TrajectorySpec::default().with_limits(limits);
    let refused = failure(executor.begin("t", more).unwrap_err());
    assert_eq!(refused.outcome(), Outcome::SpecUnsupported);
    assert!(refused.to_string().contains("the operator gives, which is 4096"), "{refused}");
    executor.release("t").unwrap();
    let path = TrajectorySpec::default().with_env([("PATH".to_owned(), "/x".to_owned())].into());
    let refused = failure(executor.begin("t", path).unwrap_err());
    assert_eq!(refused.outcome(), Outcome::SpecUnsupported);
    assert!(refused.to_string().contains("--path-prepend"), "{refused}");
    let result = executor.execute("t", bash("true"));
    assert_eq!((result.outcome, result.may_have_executed), (Outcome::SpecUnsupported, false));
    executor.release("t").unwrap();
    assert!(executor.execute("t", bash("true")).success);
}

#[test]
fn a_begin_takes_place_once_whatever_is_cut() {
    let (backend, told) = HandsOver::new(1);
    let server = SandboxServer::start(config(), backend).unwrap();
    let proxy = Proxy::before(server.addr());
    let executor = executor(fleet([proxy.url.clone()]));
    for (number, trouble) in [
        Trouble::CutRequest(40),
        Trouble::CutResponse(40),
        Trouble::NoResponse,
        Trouble::TwiceBefore,
    ]
    .into_iter()
    .enumerate()
    {
        std::thread::scope(|scope| {
            let begin = scope.spawn(|| executor.begin("t", spec()));
            // For the reset before it.
            let (slot, reset) = next(&told).reset();
            proxy.next("POST /v3/calls", trouble.clone());
            reset.send(Ok(()));
            let (begins, asked, reply) = next(&told).begin();
            assert_eq!((begins.index, &*asked), (slot.index, &spec()), "{number}");
            reply.send(Ok(()));
            begin.join().unwrap().unwrap_or_else(|error| panic!("{trouble:?}: {error}"));
        });
        assert!(told.is_empty(), "{trouble:?}");
        executor.release_keeping_files("t").unwrap();
    }
}

#[test]
fn a_server_without_specs_and_one_that_knows_fewer_fields_refuse_by_name() {
    let reference = Server::start(|request: &Request| match &*request.path {
        "/health" => ok(r#"{"status": "ok", "slots": 1}"#),
        "/slots" => ok(r#"{"slots": [{"slot_id": "slot_0"}]}"#),
        "/reset" => ok(r#"{"success": true, "output": "", "error": "", "metadata": {}}"#),
        other => panic!("{other}"),
    });
    let executor_of = |url: String| executor(fleet([url]));
    let executor = executor_of(reference.url.clone());
    let refused = failure(executor.begin("t", spec()).unwrap_err());
    assert_eq!(refused.outcome(), Outcome::SpecUnsupported);
    assert!(refused.to_string().contains("cannot give env"), "{refused}");

    let server = SandboxServer::start(config(), Echoes(1)).unwrap();
    let executor = executor_of(url(&server));
    let large =
        TrajectorySpec::default().with_files(vec![SpecFile::bytes("a", vec![255; 8 << 20])]);
    let refused = failure(executor.begin("t", large).unwrap_err());
    assert_eq!(refused.outcome(), Outcome::SpecUnsupported, "{refused}");
    // What a later version's spec has is refused by the name of the field.
    let mut client = crate::http_client::Client::connect(server.addr());
    let token = format!("Bearer {}", super::TOKEN);
    let headers = [("Authorization", &*token), ("Content-Type", "application/json")];
    let session = json!({"session": "s"}).to_string();
    assert_eq!(client.ask("POST", "/v3/session", &headers, session.as_bytes()).status, 200);
    let op = json!({"slot": 0, "seq": 1, "epoch": 1, "begin": {"later": 1}});
    let body = json!({"session": "s", "ops": [op]}).to_string();
    let answer = client.ask("POST", "/v3/calls", &headers, body.as_bytes());
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("unknown field `later`"), "{}", answer.text());
}
