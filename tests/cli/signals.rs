//! What signals do, whenever they come.

use std::net::TcpListener;
use std::time::Instant;

use super::*;
use crate::program::program_ignoring;

#[test]
fn the_first_signal_lets_running_calls_finish_and_starts_no_others() {
    let setup = Setup::new(&[trajectory("t", &["sleep 0.3"; 200]), trajectory("u", &["true"])]);
    let mut child = spawn(setup.command(&["--concurrency", "1"]));
    wait_for_lines(&mut child, &setup.path("out.jsonl"), 1);
    signal(&child, Signal::TERM);
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!(run.code, Some(130), "{run:?}");
    let results = setup.results();
    assert!((1..200).contains(&results.len()));
    for (place, result) in results.iter().enumerate() {
        assert_eq!((&result["index"], &result["outcome"]), (&json!(place), &json!("ok")));
        assert_eq!(result["trajectory_id"], "t");
    }
    assert!(run.stderr.contains("interrupted: no new calls; 1 running calls have 5 s"));
    assert!(run.stdout.contains("1 cut short") && run.stdout.contains("interrupted"));
}

#[test]
fn the_second_signal_cancels_and_every_accepted_call_has_its_line() {
    let lines: Vec<_> =
        (0..6).map(|n| trajectory(&format!("t{n}"), &["true", "sleep 300", "true"])).collect();
    let setup = Setup::new(&lines);
    let mut child =
        spawn(setup.command(&["--slots", "2", "--concurrency", "4", "--timeout-s", "600"]));
    wait_for_lines(&mut child, &setup.path("out.jsonl"), 2);
    let began = Instant::now();
    signal(&child, Signal::INT);
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("interrupted:") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "no word about the first signal");
    }
    signal(&child, Signal::INT);
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!(run.code, Some(130), "{run:?} {rest}");
    assert!(began.elapsed() < DEADLINE);
    assert!(rest.contains("cancelling 4 running calls"), "{rest}");
    let results = setup.results();
    let cancelled = results.iter().filter(|r| r["outcome"] == "cancelled").count();
    assert_eq!(cancelled, 4, "two that ran and two that waited for a slot: {results:?}");
    let mut calls: Vec<_> =
        results.iter().map(|r| (r["trajectory_id"].to_string(), r["index"].as_u64())).collect();
    calls.sort();
    let all = calls.len();
    calls.dedup();
    assert_eq!(calls.len(), all, "no call has two lines");
}

#[test]
fn a_signal_while_the_sandbox_is_made_leaves_nothing_behind() {
    let setup = Setup::new(&[trajectory("t", &["sleep 300"])]);
    let tmp = setup.path("tmp");
    make_directory(&tmp);
    let mut command = setup.command(&["--timeout-s", "600", "--grace-s", "0"]);
    command.env("TMPDIR", &tmp);
    let mut child = spawn(command);
    // Its own directory is the first thing that the sandbox makes.
    wait_until(&mut child, || !runs_in(&tmp).is_empty());
    signal(&child, Signal::INT);
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!(run.code, Some(130), "{run:?}");
    assert_eq!(runs_in(&tmp), Vec::<PathBuf>::new());
}

/// How long after a signal a start may end on a busy machine. A second is what is promised.
const SOON: Duration = Duration::from_secs(5);

/// Has it start in a kernel in which the making of a sandbox does not end.
fn hanging_in_sandbox(command: &mut Command) {
    let hang = || {
        let Some(listener) = Filter::of(libc::SYS_sethostname, Answer::Never).load()? else {
            return Err(std::io::ErrorKind::Other.into());
        };
        // It stays open in the program.
        rustix::io::dup(&listener).map(std::mem::forget)?;
        Ok(())
    };
    // SAFETY: between fork and exec it only makes system calls.
    unsafe { command.pre_exec(hang) };
}

/// Whether a process makes a sandbox.
fn makes_sandbox(id: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let mut children = children
        .flat_map(|list| list.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>());
    children.any(|pid| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "tool-init\n")
    })
}

/// Whether a process catches a signal, or ignores it.
fn has_signal(id: u32, mask: &str, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix(mask));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal.as_raw() - 1)) != 0)
}

/// The commands, each in a start that does not end by itself: of servers that say nothing or are
/// not there, or of a sandbox that hangs.
fn starts_without_end(setup: &Setup, silent: &TcpListener) -> Vec<Command> {
    let silent = format!("http://{}", silent.local_addr().unwrap());
    let input = setup.path("in.jsonl");
    let input = input.to_str().unwrap();
    let lines: [&[&str]; 7] = [
        &["replay", input, "--sandbox-url", &silent],
        &["replay", input, "--sandbox-url", "http://127.0.0.1:1"],
        &["serve", "--port", "0", "--sandbox-url", &silent],
        &["serve", "--port", "0", "--sandbox-url", "http://127.0.0.1:1"],
        &["replay", input],
        &["serve", "--port", "0"],
        &["sandbox", "--port", "0"],
    ];
    let command = |line: &[&str]| {
        let mut command = program();
        command.args(line).env("TMPDIR", setup.path("tmp"));
        if !line.contains(&"--sandbox-url") {
            hanging_in_sandbox(&mut command);
        }
        command
    };
    lines.map(command).into()
}

#[test]
fn a_signal_ends_a_start_that_does_not_end() {
    let setup = Setup::new(&[trajectory("t", &["true"])]);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    make_directory(&setup.path("tmp"));
    let signals = [Signal::INT, Signal::TERM, Signal::HUP].into_iter().cycle();
    for (command, which) in starts_without_end(&setup, &silent).into_iter().zip(signals) {
        let said = format!("{command:?}");
        let mut child = spawn(command);
        let id = child.id();
        let is_local = !said.contains("--sandbox-url");
        wait_until(&mut child, || has_signal(id, "SigCgt:", which));
        if is_local {
            wait_until(&mut child, || makes_sandbox(id));
        }
        let began = Instant::now();
        signal(&child, which);
        let run = Run::of(child.wait_with_output().unwrap());
        assert!(began.elapsed() < SOON, "{said}: {:?}", began.elapsed());
        assert_eq!(run.code, Some(130), "{said}: {run:?}");
        assert!(run.stderr.contains("interrupted while starting"), "{said}: {run:?}");
        assert_eq!(run.stdout, "", "{said}");
        assert_eq!(runs_in(&setup.path("tmp")), Vec::<PathBuf>::new(), "{said}");
    }
}

#[test]
fn what_a_second_signal_leaves_of_a_start_the_next_start_removes() {
    let setup = Setup::new(&[trajectory("t", &["true"])]);
    let tmp = setup.path("tmp");
    make_directory(&tmp);
    let mut command = setup.command(&[]);
    command.env("TMPDIR", &tmp);
    hanging_in_sandbox(&mut command);
    let mut child = spawn(command);
    wait_until(&mut child, || !runs_in(&tmp).is_empty());
    signal(&child, Signal::INT);
    signal(&child, Signal::TERM);
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!(run.code, Some(130), "{run:?}");
    let mut command = setup.command(&[]);
    assert_eq!(Run::of(command.env("TMPDIR", &tmp).output().unwrap()).code, Some(0));
    assert_eq!(runs_in(&tmp), Vec::<PathBuf>::new());
}

#[test]
fn a_signal_that_was_ignored_when_it_was_started_stays_ignored() {
    const IGNORED: [Signal; 3] = [Signal::HUP, Signal::INT, Signal::QUIT];
    let setup = Setup::new(&[]);
    let out = setup.path("out.jsonl");
    let mut command = program_ignoring(&IGNORED);
    command.args(["replay", "-", "--quiet", "--out"]).arg(&out).stdin(Stdio::piped());
    let mut child = spawn(command);
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "{}", trajectory("first", &["echo 1"])).unwrap();
    wait_for_lines(&mut child, &out, 1);
    for ignored in IGNORED {
        assert!(has_signal(child.id(), "SigIgn:", ignored), "{ignored:?}");
        signal(&child, ignored);
    }
    assert!(has_signal(child.id(), "SigCgt:", Signal::TERM));
    writeln!(stdin, "{}", trajectory("second", &["echo 2"])).unwrap();
    drop(stdin);
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!(run.code, Some(0), "{run:?}");
    assert_eq!(setup.results()[1]["trajectory_id"], "second");
}

#[test]
fn a_signal_that_was_blocked_when_it_was_started_is_heeded() {
    let setup = Setup::new(&[]);
    let out = setup.path("out.jsonl");
    let mut command = program();
    let block_all = || {
        let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigfillset(3) writes all of the set, which pthread_sigmask(3) then reads.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut());
        }
        Ok(())
    };
    // SAFETY: between fork and exec it only calls functions that may be called there.
    unsafe { command.pre_exec(block_all) };
    command.args(["replay", "-", "--quiet", "--out"]).arg(&out).stdin(Stdio::piped());
    let mut child = spawn(command);
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "{}", trajectory("first", &["echo 1"])).unwrap();
    wait_for_lines(&mut child, &out, 1);
    assert!(has_signal(child.id(), "SigBlk:", Signal::TERM), "its main thread has it blocked");
    signal(&child, Signal::TERM);
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!(run.code, Some(130), "{run:?}");
}
