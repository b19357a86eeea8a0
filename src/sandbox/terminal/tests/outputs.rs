//! The complete outputs of calls, as files in the workspace.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::*;
use crate::sandbox::output::Captured;
use crate::sandbox::spool::Kept;
use crate::sandbox::terminal::result::stateful_result;
use crate::sandbox::testing::{hold, small_file_system, with_small_file_system};

const SHOWN: usize = 1_000;

/// What `seq 1 <last>` prints.
fn sequence(last: usize) -> String {
    (1..=last).map(|n| format!("{n}\n")).collect()
}

#[track_caller]
fn kept(captured: &Captured) -> Kept {
    assert!(captured.omitted_bytes > 0, "{captured:?}");
    captured.kept.clone().expect("something is said of the file")
}

impl Bench {
    fn at(&self, path: &str) -> PathBuf {
        self.workspaces[0].at(path)
    }

    /// What is in the file of a stream that must be complete.
    #[track_caller]
    fn whole(&self, captured: &Captured) -> String {
        let kept = kept(captured);
        assert!(kept.complete && kept.error.is_none(), "{kept:?}");
        assert_eq!(kept.bytes, captured.bytes);
        std::fs::read_to_string(self.at(&kept.path.expect("a file"))).unwrap()
    }

    /// Cancels the call when it has made `begun` and its output is in the workspace.
    fn cancel_when_begun(&self, command: &str) -> ShellEnded {
        let (call, receiver) = self.start(command);
        self.wait_for_file("begun");
        self.terminals.cancel(call);
        let ended = receiver.recv_timeout(LONG).expect("an answer");
        std::fs::remove_file(self.at("begun")).unwrap();
        ended
    }
}

#[test]
fn a_long_output_is_in_a_file_byte_by_byte() {
    for sandboxed in [false, true] {
        let bench = Bench::keeping(sandboxed, [SHOWN, 16 << 20]);
        let home = bench.output("echo ~").trim_end().to_owned();
        for number in 1..=3 {
            let ended = bench.run("seq 1 300000 & seq 1 200000 >&2; wait; x=$x.");
            assert_eq!(ended.finished.end, End::Exited(0));
            assert!(bench.whole(&ended.finished.stdout) == sequence(300_000));
            assert!(bench.whole(&ended.finished.stderr) == sequence(200_000));
            let path = kept(&ended.finished.stdout).path.unwrap();
            assert_eq!(path, format!("{home}/.tool-output/{number}-stdout.txt"));
            // The model has it, and what it is shown as a whole has none.
            let tail = bench.run(&format!("tail -n1 '{path}'; echo $x"));
            assert_eq!(tail.finished.stdout.text, format!("300000\n{}\n", ".".repeat(number)));
            assert_eq!((&tail.finished.stdout.kept, &tail.finished.stderr.kept), (&None, &None));
            let result = stateful_result(ended, 30.0);
            assert_eq!(result.metadata["output_file"], path);
            assert_eq!(result.metadata["output_file_bytes"], sequence(300_000).len());
            let stderr_file = format!("{home}/.tool-output/{number}-stderr.txt");
            assert_eq!(result.metadata["stderr_file"], stderr_file);
            assert!(!result.metadata.contains_key("output_file_truncated"));
        }
        // One code point more than is shown, and bytes of any kind.
        let whole = bench.run("printf %1000s x");
        assert_eq!(whole.finished.stdout.kept, None);
        let ended = bench.run("printf %1001s x");
        assert_eq!(bench.whole(&ended.finished.stdout), format!("{:>1001}", "x"));
        let noise = bench.run(r"for i in {1..400}; do printf '\xff\xe2\x82\0€'; done");
        let path = kept(&noise.finished.stdout).path.unwrap();
        let expected = b"\xff\xe2\x82\0\xe2\x82\xac".repeat(400);
        assert!(std::fs::read(bench.at(&path)).unwrap() == expected);
    }
}

#[test]
fn a_flood_on_both_streams_is_kept_up_to_the_limit() {
    let flood = "yes | head -c 100000000 & yes n | head -c 100000000 >&2; wait";
    let bench = Bench::keeping(true, [SHOWN, 16 << 20]);
    let ended = bench.run(flood);
    assert_eq!(ended.finished.end, End::Exited(0));
    let mut all = 0;
    for (captured, line) in [(&ended.finished.stdout, "y\n"), (&ended.finished.stderr, "n\n")] {
        assert_eq!(captured.bytes, 100_000_000);
        let kept = kept(captured);
        assert!(!kept.complete && kept.error.is_none(), "{kept:?}");
        all += kept.bytes;
        if let Some(path) = kept.path {
            let expected = line.repeat(8 << 20);
            let content = std::fs::read_to_string(bench.at(&path)).unwrap();
            assert!(content == expected[..kept.bytes as usize]);
        }
    }
    assert_eq!(all, 16 << 20);
    assert_eq!(bench.run("echo next").session, Session::Kept);
    bench.terminals.close();
    // As much as there is.
    let bench = Bench::keeping(false, [SHOWN, 1 << 40]);
    let ended = bench.run(flood);
    for (captured, line) in [(&ended.finished.stdout, "y\n"), (&ended.finished.stderr, "n\n")] {
        assert!(bench.whole(captured) == line.repeat(50_000_000));
    }
}

#[test]
fn beyond_the_limit_the_files_are_beginnings() {
    for limit in [1, 3_999, 4_000, 4_001, 500_000] {
        let bench = Bench::keeping(false, [SHOWN, limit]);
        // The limit is each call's own.
        for _ in 0..2 {
            let ended = bench.run("seq 1 300000");
            let stdout = kept(&ended.finished.stdout);
            assert_eq!((stdout.bytes, stdout.complete, stdout.error), (limit as u64, false, None));
            let content = std::fs::read_to_string(bench.at(&stdout.path.unwrap())).unwrap();
            assert!(content == sequence(300_000)[..limit], "{limit}");
        }
    }
    let bench = Bench::keeping(false, [SHOWN, 0]);
    let ended = bench.run("seq 1 300000");
    assert!(ended.finished.stdout.omitted_bytes > 0 && ended.finished.stdout.kept.is_none());
    assert!(!bench.at("~/.tool-output").exists());
}

#[test]
fn the_output_of_an_interrupted_call_is_kept_and_the_session_goes_on() {
    for sandboxed in [false, true] {
        let bench = Bench::keeping(sandboxed, [SHOWN, 16 << 20]);
        bench.run("x=kept");
        let command = "seq 1 300000; seq 1 200000 >&2; sh -c ': >begun; exec sleep 1000'";
        let ended = bench.cancel_when_begun(command);
        assert_eq!((ended.finished.end, ended.session), (End::Cancelled, Session::Kept));
        assert!(bench.whole(&ended.finished.stdout) == sequence(300_000));
        // What bash adds is in the file, if anywhere.
        assert!(bench.whole(&ended.finished.stderr).trim_end() == sequence(200_000).trim_end());
        // In the middle of a flood, too.
        let ended = bench.cancel_when_begun("seq 1 300000; : >begun; exec 3>&1; yes y");
        assert_eq!((ended.finished.end, ended.session), (End::Cancelled, Session::Kept));
        let kept = kept(&ended.finished.stdout);
        let content = std::fs::read_to_string(bench.at(&kept.path.unwrap())).unwrap();
        assert_eq!(content.len() as u64, kept.bytes);
        let rest = content.strip_prefix(&sequence(300_000)).expect("the beginning");
        assert!(rest.as_bytes().chunks(2).all(|line| line == b"y\n" || line == b"y"));
        assert_eq!(bench.output("echo $x"), "kept\n");
    }
}

#[test]
fn a_session_that_dies_keeps_what_it_has_printed() {
    for sandboxed in [false, true] {
        let bench = Bench::keeping(sandboxed, [SHOWN, 16 << 20]);
        for end in ["exit 3", "kill -9 $$", "exec false", "exec seq 1 10"] {
            let ended = bench.run(&format!("seq 1 300000; seq 1 200000 >&2; {end}"));
            assert_eq!(ended.session, Session::Ended, "{end}");
            let mut expected = sequence(300_000);
            if end.starts_with("exec seq") {
                expected += &sequence(10);
            }
            assert!(bench.whole(&ended.finished.stdout) == expected, "{end}");
            assert!(bench.whole(&ended.finished.stderr) == sequence(200_000), "{end}");
        }
        // Killed with what does not mind an interrupt.
        let command = "trap '' INT; seq 1 300000; : >begun; sleep 1000";
        let ended = bench.cancel_when_begun(command);
        assert_eq!((ended.finished.end, ended.session), (End::Cancelled, Session::Ended));
        assert!(bench.whole(&ended.finished.stdout) == sequence(300_000));
        // In the middle of a flood.
        let ended = bench.cancel_when_begun("trap '' INT; seq 1 9999; : >begun; yes");
        let kept = kept(&ended.finished.stdout);
        let content = std::fs::read_to_string(bench.at(&kept.path.unwrap())).unwrap();
        assert!(content.len() as u64 == kept.bytes && content.starts_with(&sequence(9999)));
        // One that still holds the pipe delays nothing.
        if !sandboxed {
            continue;
        }
        let ended = bench.run("seq 1 300000; setsid -f sleep 1000; exit 5");
        assert_eq!(ended.finished.end, End::Exited(5));
        assert!(bench.whole(&ended.finished.stdout) == sequence(300_000));
    }
}

#[test]
fn what_the_model_put_in_the_place_of_the_directory_gets_no_file() {
    let bench = Bench::keeping(true, [SHOWN, 16 << 20]);
    let outside = bench.base.join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::set_permissions(&outside, PermissionsExt::from_mode(0o777)).unwrap();
    let link = format!("ln -s '{}' ~/.tool-output", outside.display());
    for prepare in
        [&*link, "ln -s . ~/.tool-output", "echo mine >~/.tool-output", "mkfifo ~/.tool-output"]
    {
        let ended = bench.run(&format!("{prepare}; seq 1 300000"));
        assert_eq!(ended.finished.end, End::Exited(0), "{prepare}");
        let kept = kept(&ended.finished.stdout);
        assert_eq!((kept.path, kept.bytes, kept.complete), (None, 0, false), "{prepare}");
        assert_eq!(kept.error.as_deref(), Some(".tool-output: Not a directory"), "{prepare}");
        bench.output("rm ~/.tool-output; echo");
    }
    symlink(&outside, bench.at("~/.tool-output")).unwrap();
    assert_eq!(kept(&bench.run("seq 1 300000").finished.stdout).path, None);
    bench.output("rm ~/.tool-output");
    // Taken away meanwhile, or moved.
    let wait = "until [ -e ~/.tool-output/*-stdout.txt ]; do :; done";
    for take in [
        "rm -r ~/.tool-output",
        "mv ~/.tool-output ~/x",
        "mv ~/.tool-output ~/y; ln -s y ~/.tool-output",
    ] {
        let command = format!("seq 1 200000; {wait}; {take}; seq 1 200000");
        let kept = kept(&bench.run(&command).finished.stdout);
        assert_eq!((kept.path, kept.complete), (None, false), "{take}");
        assert_eq!(kept.error.as_deref(), Some("the file was moved or removed"));
    }
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn what_is_printed_between_two_calls_has_no_file_and_what_a_job_prints_in_a_call_has() {
    let bench = Bench::keeping(true, [SHOWN, 16 << 20]);
    // Two of them: whoever wrote to the first may still have it open when the job goes on.
    let job = "(read x <go; seq 1 100000; : >said; read x <again; seq 1 300000)";
    bench.output(&format!("mkfifo go again; {job} & "));
    std::fs::write(bench.at("go"), "x\n").unwrap();
    bench.wait_for_file("said");
    let ended = bench.run("echo x >again; wait");
    let background = &ended.background[0];
    assert_eq!((background.bytes, &background.kept), (sequence(100_000).len() as u64, &None));
    assert!(bench.whole(&ended.finished.stdout) == sequence(300_000));
}

/// The disk does not answer: the thread does not wait for it, and calls end all the same.
#[test]
fn a_disk_that_does_not_answer_holds_up_only_who_prints_much() {
    let bench = Bench::keeping(true, [SHOWN, 16 << 20]);
    bench.output("x=kept");
    let held = hold(&bench.spool);
    let (_, ending) = bench.start("seq 1 1000");
    assert_eq!(bench.run_in(1, "echo others").finished.stdout.text, "others\n");
    assert!(ending.try_recv().is_err(), "it waits for the disk, and nobody else does");
    let dying = bench.start_at(bench.place(1, true), LONG, "seq 1 1000; exit 7").1;
    let ended = ending.recv_timeout(LONG).unwrap();
    assert_eq!((ended.finished.end, ended.session), (End::Exited(0), Session::Kept));
    let given_up = kept(&ended.finished.stdout);
    assert_eq!(given_up.error.as_deref(), Some("the disk did not answer in time"));
    assert_eq!((given_up.path, given_up.complete), (None, false));
    assert!(ended.finished.wall < Duration::from_secs(5), "that is not the command's time");
    let ended = dying.recv_timeout(LONG).unwrap();
    assert_eq!((ended.finished.end, ended.session), (End::Exited(7), Session::Ended));
    assert_eq!(kept(&ended.finished.stdout).path, None);
    assert!(ended.finished.wall < Duration::from_secs(5), "that is not the command's time");
    // One that is held up by it can be ended, and short ones go on.
    assert_eq!(bench.output("echo $x"), "kept\n");
    let ended = bench.run_for(100, "seq 1 3000000");
    assert_eq!((ended.finished.end, ended.session), (End::TimedOut, Session::Kept));
    assert_eq!(kept(&ended.finished.stdout).path, None);
    assert_eq!(bench.output("echo $x"), "kept\n");
    bench.end_slot(0);
    bench.workspaces[0].clear().unwrap();
    drop(held);
    bench.terminals.close();
    // Whatever the threads still had to do is done when the last handle is gone.
    let Bench { terminals, spool, workspaces, .. } = &bench;
    let _ = (terminals, hold(spool));
    assert!(!workspaces[0].at("~/.tool-output").exists());
}

#[test]
fn a_slot_that_is_left_while_its_output_is_written_gets_no_file_later() {
    let bench = Bench::keeping(true, [SHOWN, 16 << 20]);
    let held = hold(&bench.spool);
    let (_, receiver) = bench.start("seq 1 1000; : >begun; sleep 1000");
    bench.wait_for_file("begun");
    bench.end_slot(0);
    let ended = receiver.try_recv().expect("the call has ended before its slot was left");
    assert_eq!(ended.finished.end, End::Cancelled);
    bench.workspaces[0].clear().unwrap();
    drop(held);
    drop(hold(&bench.spool));
    assert!(!bench.at("~/.tool-output").exists());
}

#[test]
fn a_full_disk_ends_the_file_and_not_the_call() {
    with_small_file_system(1 << 20, "sandbox::terminal::tests::outputs::on_a_small_file_system");
}

#[test]
fn on_a_small_file_system() {
    let Some(small) = small_file_system() else { return };
    let outer = tempfile::tempdir().unwrap();
    let bench = Bench::with(false, 1, small, outer, [SHOWN, 16 << 20]);
    for _ in 0..2 {
        let ended = bench.run("x=$x.; seq 1 600000");
        assert_eq!(ended.finished.end, End::Exited(0));
        let kept = kept(&ended.finished.stdout);
        assert_eq!(kept.error.as_deref(), Some("No space left on device"));
        assert!(!kept.complete && kept.bytes > 500_000, "{kept:?}");
        let path = bench.at(&kept.path.unwrap());
        let content = std::fs::read_to_string(&path).unwrap();
        assert!(content == sequence(600_000)[..kept.bytes as usize]);
        std::fs::remove_file(path).unwrap();
    }
    assert_eq!(bench.output("echo $x"), "..\n");
}

/// Without a sandbox whoever kills the reaper frees what it held: it may write for ever.
#[test]
fn what_escaped_and_still_writes_delays_no_answer() {
    let bench = Bench::keeping(false, [SHOWN, 1 << 40]);
    let mark = marker();
    let flood =
        format!("setsid bash -c ': {mark}; while :; do echo {mark}; done; :' 2>/dev/null &");
    let ended = bench.run(&format!(
        "{flood} until [ -e ~/.tool-output ]; do :; done; kill -9 $PPID; exec sleep {mark}"
    ));
    assert!(matches!(ended.finished.end, End::Lost(_)), "{:?}", ended.finished.end);
    assert!(!ended.finished.all_dead && ended.session == Session::Ended);
    let file = bench.whole(&ended.finished.stdout);
    assert!(
        file.split_inclusive('\n')
            .all(|line| line.trim_end().is_empty() || mark.starts_with(line.trim_end()))
    );
    assert_eq!(bench.run("echo next").finished.stdout.text, "next\n");
    // The other one has nobody any more who reads.
    end_processes_with(&mark);
}
