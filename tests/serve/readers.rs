//! Readers of artifacts, beside each other.

use serde_json::json;

use super::{Program, call};

#[test]
fn readers_that_wait_for_a_busy_trajectory_hold_up_no_other() {
    let mut program = Program::serve(&["--slots", "2"], &[]);
    program.bash("idle", "echo hi > f");
    let running = program.send("POST", "/execute", &call("busy", "touch begun; sleep 500"));
    program.until_there_is("begun");
    let read = |trajectory_id: &str| json!({"trajectory_id": trajectory_id, "path": "f"});
    // More than may read at a time. Half of the clients leave.
    let mut waiting: Vec<_> =
        (0..64).map(|_| program.send("POST", "/artifacts/read", &read("busy"))).collect();
    waiting.truncate(32);
    for _ in 0..3 {
        assert_eq!(program.post("/artifacts/read", &read("idle"))["content"], "hi\n");
    }
    // Those that have stayed have their turn when the call ends.
    program.post("/cancel", &json!({"trajectory_id": "busy"}));
    for mut client in waiting {
        let answer = client.receive().json();
        assert!(answer["error"].as_str().is_some_and(|error| error.contains("f")), "{answer}");
    }
    drop(running);
    program.terminate();
    program.ends();
}
