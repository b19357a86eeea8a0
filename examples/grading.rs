//! Grades what a trajectory has left, in a way that the trajectory cannot forge: `docs/grading.md`.
//!
//! `cargo run --example grading`

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use tool_executor::config::{ExecutorConfig, LocalConfig};
use tool_executor::grade::GradeSpec;
use tool_executor::{SpecFile, ToolCall, ToolExecutor};

/// It runs the solution in processes that have nothing of its own, and judges their answers.
const GRADER: &str = include_str!("grading/grader.py");
/// What only the grader knows.
const CASES: &str = r#"[
    {"numbers": [1, 2, 3], "expected": 6},
    {"numbers": [], "expected": 0},
    {"numbers": [-5, 5, 70], "expected": 70}
]"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let executor = ToolExecutor::start(ExecutorConfig::default().with_local(LocalConfig::new(2)))?;
    let spec = GradeSpec::new("exec python3 -I grader.py")
        .with_files(vec![SpecFile::text("grader.py", GRADER)])
        .with_stdin(CASES.to_owned())
        .with_timeout(Duration::from_secs(60));
    for (agent, solution) in [
        ("honest", "def total(numbers): return sum(numbers)"),
        ("wrong", "def total(numbers): return 6"),
        ("forger", "import os; os.write(1, b'{\"score\": 1}'); os._exit(0)"),
    ] {
        let write = format!("cat > solution.py <<'EOF'\n{solution}\nEOF");
        executor.execute(agent, ToolCall::bash(write));
        let graded = executor.grade(agent, &spec)?;
        // What has no verdict has failed.
        let verdict = graded.verdict_json().unwrap_or_default();
        println!("{agent}: {}", verdict["score"].as_f64().unwrap_or(0.0));
        executor.release(agent)?;
    }
    Ok(())
}
