//! One simulator thread drives many trajectories through a completion queue, with more
//! trajectories than slots and a tool of its own.
//!
//! `cargo run --example simulator`

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use serde_json::json;
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::LocalConfig;
use tool_executor::{ToolCall, ToolExecutor, ToolRegistry, ToolSchema};

const TRAJECTORIES: u64 = 200;
const STEPS: usize = 3;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A tool that runs in this process: a closure.
    let mut registry = ToolRegistry::builtin();
    let schema = ToolSchema::new("reward", "Scores an answer.").with_required(
        "answer",
        "string",
        "What the agent found out.",
    );
    registry.register_fn(schema, |_context, arguments| {
        let right = arguments["answer"].as_str() == Some("42");
        Ok(if right { "1.0" } else { "0.0" }.to_owned())
    })?;

    let backend = LocalBackend::start(LocalConfig::new(8))?;
    let executor = ToolExecutor::builder().backend(backend).registry(registry).start()?;
    let queue = executor.completion_queue(TRAJECTORIES as usize);

    // What a policy would decide from the result before it.
    let next_call = |step: usize, seen: &str| match step {
        0 => ToolCall::new("write_file", json!({"path": "q.py", "content": "print(6 * 7)\n"})),
        1 => ToolCall::bash("python3 q.py"),
        _ => ToolCall::new("reward", json!({"answer": seen})),
    };

    let mut steps = vec![0; TRAJECTORIES as usize];
    for tag in 0..TRAJECTORIES {
        executor.submit_to(&format!("agent-{tag}"), next_call(0, ""), queue.tagged(tag))?;
    }
    let mut total_reward = 0.0;
    while queue.outstanding() > 0 {
        let done = queue.next_timeout(Duration::from_secs(120)).ok_or("no progress")?;
        let step = &mut steps[done.tag as usize];
        *step += 1;
        if *step < STEPS && done.result.success {
            let call = next_call(*step, &done.result.output);
            executor.submit_to(&done.trajectory_id, call, queue.tagged(done.tag))?;
        } else {
            total_reward += done.result.output.parse().unwrap_or(0.0);
            executor.submit_release(&done.trajectory_id);
        }
    }
    executor.close();
    let stats = executor.stats();
    println!(
        "{TRAJECTORIES} trajectories on {} slots: {} calls, mean reward {:.2}, execution p50 {:.1} ms",
        stats.slots.total,
        stats.total_requests,
        total_reward / TRAJECTORIES as f64,
        stats.exec_ms.p50,
    );
    Ok(())
}
