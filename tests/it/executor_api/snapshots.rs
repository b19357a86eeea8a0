//! Snapshots, forks and grades over the port, with real sandboxes.

use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{ExecutorConfig, LocalConfig, Policy};

use super::*;
use crate::caller::directory;

#[test]
fn trajectories_are_forked_and_graded_over_the_port() {
    let dir = directory();
    let backend = LocalBackend::start(LocalConfig::new(3).with_data_dir(dir.path())).unwrap();
    let config = ExecutorConfig::default().with_policy(Policy::default().with_allow_network(false));
    let executor = ToolExecutor::builder().backend(backend).config(config).start().unwrap();
    let served = Served::of(executor, |_| {});
    let post = |path: &str, body: Value| {
        let answer = served.post(path, &body);
        (answer.status, answer.json())
    };
    let run = |id: &str, command: &str| {
        let tool = json!({"name": "bash", "arguments": {"command": command}, "uniq_id": "u"});
        post("/execute", json!({"trajectory_id": id, "tool": tool})).1["output"].clone()
    };
    let (status, answer) = post("/snapshot", json!({"trajectory_id": "from"}));
    assert_eq!((status, &answer["error"]), (409, &json!("no_slot")));
    run("from", "echo base > f");
    let (status, made) = post("/snapshot", json!({"trajectory_id": "from"}));
    assert_eq!((status, &made["container"]), (200, &json!("local")));
    assert_eq!(served.get("/snapshots").json()["snapshots"][0]["id"], made["id"]);
    let forked = json!({"trajectory_id": "from", "to": ["a", "b"], "spec": {}});
    let (status, forks) = post("/fork", forked);
    assert_eq!(status, 200, "{forks}");
    assert_eq!(forks["forks"][1]["trajectory_id"], "b");
    assert_eq!(forks["forks"][1]["begun"], true);
    assert_eq!(run("a", "echo a >> f; cat f"), "base\na");
    let spec =
        json!({"command": "cat /workspace/f g >&6", "files": [{"path": "g", "content": "G"}]});
    let (status, graded) = post("/grade", json!({"trajectory_id": "a", "spec": spec}));
    assert_eq!((status, &graded["verdict"]), (200, &json!("base\na\nG")));
    assert_eq!(graded["result"]["outcome"], "ok");
    let drop = json!({"id": made["id"]});
    assert_eq!(post("/snapshots/drop", drop.clone()).0, 200);
    assert_eq!(post("/snapshots/drop", drop).0, 404);

    for (path, body, status, words) in [
        ("/grade", json!({"trajectory_id": "a", "spec": {"comand": "x"}}), 422, "`comand`"),
        (
            "/grade",
            json!({"trajectory_id": "a", "spec": {"command": "x", "files_at": "/usr"}}),
            422,
            "files_at",
        ),
        ("/fork", json!({"trajectory_id": "a", "to": "b"}), 422, "sequence"),
        (
            "/fork",
            json!({"trajectory_id": "a", "to": [], "spec": {"snapshot": "s"}}),
            422,
            "snapshot",
        ),
        ("/snapshots/drop", json!({"id": "../x"}), 422, "not the id"),
        ("/snapshot", json!({"trajectory_id": "a", "end": true}), 422, "`end`"),
    ] {
        let (found, answer) = post(path, body);
        assert_eq!(found, status, "{path}: {answer}");
        assert!(answer.to_string().contains(words), "{path}: {answer}");
    }
    served.executor.close();
    assert_eq!(post("/snapshot", json!({"trajectory_id": "a"})).0, 503);
}

#[test]
fn nothing_of_them_is_without_a_token() {
    let served = Served::with_token(Echoes(1));
    for path in ["/snapshot", "/snapshots/drop", "/fork", "/grade"] {
        assert_eq!(served.post(path, &json!({})).status, 401, "{path}");
    }
    assert_eq!(served.get("/snapshots").status, 401);
}
