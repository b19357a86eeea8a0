//! `background = keep`: what a command leaves running goes on until the release, and can be told
//! from what is to be ended.

use std::time::Duration;

use serde_json::{Value, json};
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{BackgroundProcesses, ExecutorConfig, LocalConfig, Policy, SlotLimits};
use tool_executor::{Outcome, ToolExecutor, ToolResult};

use crate::caller::directory;
use crate::fakes::{bash, until};

fn start_with(local: LocalConfig) -> (tempfile::TempDir, ToolExecutor) {
    let dir = directory();
    let backend = LocalBackend::start(local.with_data_dir(dir.path())).unwrap();
    assert_eq!(backend.not_isolated_because(), None, "these tests need sandboxes");
    let policy = Policy::default().with_background(BackgroundProcesses::Keep);
    let config = ExecutorConfig::default().with_policy(policy);
    (dir, ToolExecutor::builder().backend(backend).config(config).start().unwrap())
}

fn start() -> (tempfile::TempDir, ToolExecutor) {
    start_with(LocalConfig::new(1))
}

fn run(executor: &ToolExecutor, command: &str) -> ToolResult {
    executor.execute("t", bash(command))
}

/// What a command that succeeds prints, without the lines that the engine adds.
fn output(executor: &ToolExecutor, command: &str) -> String {
    let result = run(executor, command);
    assert_eq!(result.outcome, Outcome::Ok, "{command}: {result:?}");
    let own = |line: &&str| !line.starts_with("[1 background process");
    result.output.lines().filter(own).collect::<Vec<_>>().join("\n")
}

fn earlier_ended(result: &ToolResult) -> Option<&str> {
    let why = result.metadata.get("earlier_processes_ended").and_then(Value::as_str)?;
    let line = format!("[the background processes of earlier calls were ended: {why}]");
    assert!(result.output.contains(&line), "{result:?}");
    Some(why)
}

/// A process that appends to `ticks` and prints, for as long as it lives; its number is in `pid`.
const TICKER: &str = "(while :; do echo tick; echo x >> ticks; sleep 0.01; done) & echo $! > pid";

/// Whether it lives: it must have gone on by itself, not have been seen at some moment.
fn ticks_on(executor: &ToolExecutor) -> bool {
    let count = "wc -l < ticks";
    let before = output(executor, count);
    let wait = format!(
        "for i in {{1..300}}; do [ $({count}) -gt $(({before} + 2)) ] && echo on && exit; sleep 0.01; done; echo off"
    );
    output(executor, &wait) == "on"
}

#[test]
fn what_a_command_leaves_goes_on_is_seen_and_ends_with_the_release() {
    for warm in [true, false] {
        let (_dir, executor) = start_with(LocalConfig::new(1).with_warm_slots(warm));
        let result = run(&executor, TICKER);
        assert_eq!(result.outcome, Outcome::Ok, "{result:?}");
        assert_eq!(
            result.metadata["kept_processes"]["count"].as_u64().unwrap_or(0),
            2,
            "{result:?}"
        );
        assert_eq!(result.metadata["kept_processes"]["names"], json!(["bash", "sleep"]));
        let line = "[2 background processes go on running: bash, sleep]";
        assert!(result.output.ends_with(line), "{result:?}");
        // It prints more than a pipe holds, and to a pipe that its call reads no more.
        assert!(ticks_on(&executor) && ticks_on(&executor));
        assert_eq!(output(&executor, "kill -0 $(cat pid) && echo there"), "there");
        // Nothing is said of it again.
        let next = run(&executor, "true");
        assert_eq!((&*next.output, next.metadata.get("kept_processes")), ("", None), "{next:?}");
        executor.release("t").unwrap();
        assert_eq!(output(&executor, "ls; pgrep sleep || echo none"), "none");
        executor.close();
    }
}

#[test]
fn one_that_prints_without_end_neither_blocks_nor_ends() {
    let (_dir, executor) = start();
    output(&executor, "(while :; do printf '%65536s' x; echo x >> ticks; done) & :");
    assert!(ticks_on(&executor) && ticks_on(&executor));
}

#[test]
fn a_later_command_can_end_it_and_the_next_is_as_quick_as_ever() {
    let (_dir, executor) = start();
    output(&executor, "sleep 1000 & echo $! > pid");
    output(&executor, "kill $(cat pid)");
    let next = run(&executor, "pgrep sleep || echo none");
    assert_eq!((&*next.output, earlier_ended(&next)), ("none", None), "{next:?}");
}

#[test]
fn a_command_whose_time_is_up_is_ended_alone() {
    let (_dir, executor) = start();
    output(&executor, TICKER);
    for command in [
        "sleep 997",
        "setsid sleep 997 & sleep 997",
        "(trap '' TERM; setsid bash -c 'sleep 997; :' & sleep 997)",
        "setsid setsid bash -c 'sleep 997 & kill -STOP $!; kill -STOP $$' & sleep 997",
    ] {
        let call = bash(command).with_timeout(Duration::from_secs(1));
        let late = executor.execute("t", call);
        assert_eq!((late.outcome, earlier_ended(&late)), (Outcome::Timeout, None), "{late:?}");
        assert_eq!(output(&executor, "pgrep -f 'sleep 997' || echo none"), "none", "{command}");
    }
    assert!(ticks_on(&executor));
    let cancelled = executor.submit("t", bash("sleep 997")).unwrap();
    until(|| executor.stats().running > 0);
    cancelled.cancel();
    let cancelled = cancelled.wait();
    assert_eq!(cancelled.outcome, Outcome::Cancelled);
    assert_eq!(output(&executor, "pgrep -f 'sleep 997' || echo none"), "none");
    assert!(ticks_on(&executor));
}

#[test]
fn what_forks_faster_than_it_is_found_ends_with_all_others() {
    let (_dir, executor) = start();
    output(&executor, TICKER);
    let storm = "f() { (setsid bash -c true & f &); }; while :; do f; done";
    let late = executor.execute("t", bash(storm).with_timeout(Duration::from_secs(1)));
    assert_eq!(late.outcome, Outcome::Timeout, "{late:?}");
    // Whether it could be told apart in time depends on the machine; either is said.
    match earlier_ended(&late) {
        Some(_) => assert_eq!(output(&executor, "pgrep sleep || echo none"), "none"),
        None => assert!(ticks_on(&executor)),
    }
    let left = output(
        &executor,
        "ps -e -o comm= | grep -vc -e ps -e grep -e bash -e sleep -e tool-init; :",
    );
    assert_eq!(left, "0");
}

#[test]
fn more_calls_than_there_may_be_leave_nothing_and_say_so() {
    let (_dir, executor) = start();
    let results: Vec<_> = (0..18).map(|_| run(&executor, "sleep 1000 &")).collect();
    let kept = |result: &ToolResult| result.metadata.contains_key("kept_processes");
    let ended = |result: &ToolResult| result.metadata.contains_key("ended_processes");
    assert!(results[..16].iter().all(|result| kept(result) && !ended(result)), "{results:?}");
    assert!(results[16..].iter().all(|result| ended(result) && !kept(result)), "{results:?}");
    assert_eq!(output(&executor, "pgrep -c sleep"), "16");
    // Those whose output is elsewhere hold none of the places.
    output(&executor, "pkill sleep; :");
    for _ in 0..18 {
        assert!(kept(&run(&executor, "sleep 1000 > /dev/null 2>&1 &")));
    }
    assert_eq!(output(&executor, "pgrep -c sleep"), "18");
}

#[test]
fn what_exceeds_a_limit_between_calls_is_ended_and_the_next_result_says_so() {
    let limits = SlotLimits::none().with_memory_bytes(Some(256 << 20));
    let (_dir, executor) = start_with(LocalConfig::new(1).with_limits(limits));
    let hog = "(perl -e 'sleep 1; $x = \"x\" x (600 << 20); sleep 1000' > /dev/null 2>&1) & :";
    assert!(run(&executor, hog).metadata.contains_key("kept_processes"));
    let mut why = None;
    until(|| {
        let next = run(&executor, "true");
        why = earlier_ended(&next).map(str::to_owned).or(why.take());
        why.is_some() || next.outcome == Outcome::OutOfMemory
    });
    assert_eq!(why.as_deref().unwrap_or("they ran out of memory"), "they ran out of memory");
    // What the kernel has killed has its memory to give back before it is gone.
    until(|| run(&executor, "pgrep perl || echo none").output.lines().any(|line| line == "none"));
}

#[test]
fn nothing_is_left_when_the_executor_is_closed() {
    let (_dir, executor) = start();
    let marker = format!("76543.{}", std::process::id());
    output(&executor, &format!("setsid sleep {marker} > /dev/null 2>&1 & :"));
    let is_there = || {
        let lines = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok());
        lines
            .map(|line| String::from_utf8_lossy(&line).into_owned())
            .any(|line| line.contains(&marker))
    };
    assert!(is_there());
    executor.close();
    assert!(!is_there());
}
