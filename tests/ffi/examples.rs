//! The examples, compiled and run as a user does.

use std::process::Command;

use crate::harness::{self, Language, Linked, Program, Under, libraries, root};

fn example(path: &str, language: Language) -> Program {
    Program { source: root().join("examples").join(path), language, linked: Linked::Shared }
}

#[test]
fn the_c_simulator_drives_a_thousand_trajectories_through_poll() {
    let simulator = example("c/simulator.c", Language::C);
    let said = simulator.run(Under::Nothing, &[]);
    assert_eq!(said, "1000 trajectories, mean reward 1.00\n");
    simulator.run(Under::Sanitizers, &[]);
}

#[test]
fn the_cpp_example_runs_without_exceptions() {
    let rollout = example("cpp/rollout.cpp", Language::Cpp);
    let said = rollout.run(Under::Nothing, &[]);
    assert_eq!(said, "100 of 100 calls were good\n");
    rollout.run(Under::Sanitizers, &[]);
}

#[test]
fn the_python_example_runs() {
    let dir = harness::workplace();
    let mut python = Command::new("python3");
    python.env("TOOL_EXECUTOR_LIBRARY", libraries().join("libtool_executor.so"));
    python.env("PYTHONDONTWRITEBYTECODE", "1").args(["-X", "dev"]);
    python.arg(root().join("examples/python-one-file/rollout.py"));
    let said = harness::run(python, dir.path(), "rollout.py".as_ref());
    assert_eq!(said, "100 trajectories, mean reward 1.00\n");
}
