//! What a session does, one behaviour after the other, and what a hostile model may try with it.

use super::*;
use crate::sandbox::testing;

#[test]
fn output_and_exit_codes_are_exact() {
    in_both_modes(|bench| {
        for (command, stdout, stderr, expected) in [
            ("echo hi", "hi\n", "", 0),
            ("printf no-final-newline", "no-final-newline", "", 0),
            ("printf '\\n\\n  x \\n\\n'", "\n\n  x \n\n", "", 0),
            ("echo out; echo err >&2; exit_with() { return 7; }; exit_with", "out\n", "err\n", 7),
            ("echo $?", "7\n", "", 0),
            ("true", "", "", 0),
            ("false", "", "", 1),
            ("sh -c 'exit 250'", "", "", 250),
            ("sh -c 'kill -9 $$'", "", "", 137),
            ("cat <<EOF\none\ntwo\nEOF", "one\ntwo\n", "", 0),
            ("cat <<EOF\nno end", "no end\n", "", 0),
            ("echo a # a comment", "a\n", "", 0),
            ("# only a comment", "", "", 0),
            ("echo a \\", "a\n", "", 0),
            ("true &", "", "", 0),
            ("wait", "", "", 0),
            ("-a", "", "bash: -a: command not found\n", 127),
            ("read x; echo \"[$x] $?\"", "[] 1\n", "", 0),
            ("cat; cat <&0 | wc -c", "0\n", "", 0),
            ("echo 'a\r\tb\u{1b}[31m'", "a\r\tb\u{1b}[31m\n", "", 0),
            ("printf '%s\\n' \"$-\" | tr -d hiBsm", "\n", "", 0),
            ("echo __ATROPOS_EXIT__:$?", "__ATROPOS_EXIT__:0\n", "", 0),
            ("return 5", "", "", 5),
            ("for i in 1 2; do break 3; done; echo b", "b\n", "", 0),
            ("echo $LINENO\necho $LINENO $0 $#", "1\n2 bash 0\n", "", 0),
            ("echo ${nothing?really}; echo x", "", "bash: nothing: really\n", 1),
            ("jobs; echo $BASH_SUBSHELL $SHLVL", "0 1\n", "", 0),
        ] {
            // What cat prints at a heredoc without an end is a matter of bash's own warning.
            let ended = bench.run(command);
            let printed = &ended.finished.stdout.text;
            let errors = &ended.finished.stderr.text;
            assert_eq!(printed, stdout, "{command}");
            if !command.ends_with("no end") {
                assert_eq!(errors, stderr, "{command}");
            }
            assert_eq!(ended.finished.end, End::Exited(expected), "{command}");
            assert!(ended.background.iter().all(|text| text.bytes == 0), "{command}");
        }
    });
}

#[test]
fn the_shells_state_lives_on() {
    in_both_modes(|bench| {
        let first =
            bench.run("mkdir -p d; cd d; x='a  b'; f() { echo \"f$x\"; }; alias ll='echo LL'");
        assert_eq!((first.session, code(&first)), (Session::Started, 0));
        assert_eq!(bench.output("echo ${PWD##*/}; f; ll 1"), "d\nfa  b\nLL 1\n");
        assert_eq!(bench.run("").session, Session::Kept);
        bench.output("set -- 1 '2 3'; exec 7>kept; umask 027; shopt -s extglob");
        assert_eq!(
            bench.output("echo $# $2 $(umask); echo seven >&7; cat kept"),
            "2 2 3 0027\nseven\n"
        );
        bench.output("sleep 1000 & job=$!");
        assert_eq!(bench.output("kill -0 $job && echo alive; jobs %1 >/dev/null"), "alive\n");
        let waited = bench.run("kill $job; wait $job");
        assert_eq!(code(&waited), 143);
        assert_eq!(bench.output("exec >redirected; echo gone"), "");
        assert_eq!(bench.output("echo too; cat redirected >&2"), "");
        assert_eq!(bench.run("cat redirected >&2").finished.stderr.text, "gone\ntoo\n");
    });
}

#[test]
fn a_hosts_signals_and_umask_do_not_reach_its_sessions() {
    const NAME: &str = "a_hosts_signals_and_umask_do_not_reach_its_sessions";
    testing::alone(&format!("{}::{NAME}", module_path!()), || {
        testing::be_a_hostile_host();
        in_both_modes(|bench| {
            testing::assert_nothing_inherited(&bench.output(testing::INHERITED));
            assert_eq!(bench.output("trap"), "");
        });
    });
}

#[test]
fn errors_in_a_command_are_errors_and_nothing_hangs() {
    let bench = Bench::sandboxed();
    for (command, expected, needle) in [
        ("echo 'unbalanced", 2, "unexpected EOF"),
        ("if true; then", 2, "unexpected end of file"),
        ("for", 2, "syntax error"),
        (")", 2, "syntax error"),
        ("}; echo x", 2, "syntax error"),
        ("echo ${x!}", 1, "bad substitution"),
        ("echo $((1/0))", 1, "division by 0"),
        ("set -u; echo $nothing_there", 1, "unbound variable"),
        ("sh -c 'exit 2'", 2, ""),
        ("set +u; nonexistent_command", 127, "command not found"),
        ("readonly PS1=x PROMPT_COMMAND=y", 0, ""),
        ("echo still", 0, ""),
    ] {
        let ended = bench.run(command);
        assert_eq!(ended.finished.end, End::Exited(expected), "{command}: {ended:?}");
        assert!(ended.finished.stderr.text.contains(needle), "{command}: {ended:?}");
        assert_ne!(ended.session, Session::Ended, "{command}");
    }
}

/// See `Shell::look_after`: where bash dies of it, then in the call that did it.
#[test]
fn an_unterminated_substitution_harms_no_later_call() {
    let bench = Bench::sandboxed();
    for command in
        ["echo \"$(", "echo $(foo", "x=$(case a in a", "cat <(foo", "echo `ls", "${x", "$(("]
    {
        let ended = bench.run(command);
        // bash has two words for it, and two codes.
        assert!(matches!(ended.finished.end, End::Exited(1 | 2)), "{command}: {ended:?}");
        assert!(ended.finished.stderr.text.contains("unexpected"), "{command}: {ended:?}");
        for line in
            ["echo 1", "false || x='a long line to make it move its memory'; echo $x", "for"]
        {
            let next = bench.run(line);
            let expected = if line == "for" { 2 } else { 0 };
            assert_eq!(
                next.finished.end,
                End::Exited(expected),
                "{line} after {command}: {next:?}"
            );
        }
    }
}

#[test]
fn a_prompt_or_a_trace_shows_nothing_of_the_plumbing() {
    let bench = Bench::sandboxed();
    bench.output("PS1='(venv) '; PS0=zero; PROMPT_COMMAND='echo prompt'");
    let ended = bench.run("echo a");
    assert_eq!((&*ended.finished.stdout.text, &*ended.finished.stderr.text), ("a\n", ""));
    assert!(ended.background.iter().all(|text| text.bytes == 0), "{:?}", ended.background);
    assert_eq!(bench.run("set -x; echo 1").finished.stderr.text, "++ echo 1\n");
    let ended = bench.run("echo 2");
    assert_eq!(ended.finished.stderr.text, "++ echo 2\n");
    assert_eq!(bench.run("false").finished.end, End::Exited(1));
    bench.output("set +x");
    let ended = bench.run("echo $-");
    assert!(!ended.finished.stdout.text.contains('x'), "{ended:?}");
    assert_eq!(ended.finished.stderr.text, "");
}

#[test]
fn a_shell_that_ends_says_so_and_another_one_begins() {
    in_both_modes(|bench| {
        for (command, expected) in [
            ("x=1; echo bye; exit 3", 3),
            ("exit", 0),
            ("set -e; false; echo not reached", 1),
            ("exec sh -c 'echo bye; exit 9'", 9),
            ("exec true", 0),
            ("exec bash", 0),
        ] {
            bench.output("x=before");
            let ended = bench.run(command);
            assert_eq!(ended.finished.end, End::Exited(expected), "{command}");
            assert_eq!(ended.session, Session::Ended, "{command}");
            assert!(ended.finished.all_dead);
            assert_eq!(
                ended.finished.stdout.text,
                if command.contains("bye") { "bye\n" } else { "" }
            );
            let next = bench.run("echo [$x]");
            assert_eq!((next.session, &*next.finished.stdout.text), (Session::Started, "[]\n"));
        }
        let ended = bench.run("kill -9 $$");
        let killed = matches!(ended.finished.end, End::Exited(137) | End::Signaled(9));
        assert!(killed && ended.session == Session::Ended, "{ended:?}");
        assert_eq!(bench.output("echo again"), "again\n");
    });
}

/// Runs a command and cancels it when it has made the file FILE.
fn cancelled(bench: &Bench, command: &str) -> ShellEnded {
    let file = marker();
    let (call, receiver) = bench.start(&command.replace("FILE", &format!("/workspace/{file}")));
    bench.wait_for_file(&file);
    bench.terminals.cancel(call);
    receiver.recv_timeout(LONG).expect("an answer")
}

#[test]
fn an_interrupt_ends_the_command_and_keeps_the_session() {
    let bench = Bench::sandboxed();
    bench.output("x=kept");
    for command in [
        "echo begun; SLEEP; echo next",
        "echo begun; while true; do SLEEP; done; echo next",
        "echo begun; : >FILE; while :; do :; done",
        "f() { SLEEP; echo next; }; echo begun; f; echo next",
        "echo begun; (SLEEP; echo sub); echo next",
        "echo begun; y=$(SLEEP); echo next",
        "echo begun; sleep 1000 & : >FILE; wait",
    ] {
        // Of the child's own making: it is another program then.
        let command = command.replace("SLEEP", "sh -c ': >FILE; exec sleep 1000'");
        let ended = cancelled(&bench, &command);
        assert_eq!(ended.finished.end, End::Cancelled, "{command}");
        assert_eq!(ended.session, Session::Kept, "{command}: {ended:?}");
        assert_eq!(ended.finished.stdout.text, "begun\n", "{command}: {ended:?}");
        assert_eq!(ended.finished.stderr.text, "", "{command}: {ended:?}");
    }
    assert_eq!(bench.output("echo $x"), "kept\n");
}

/// Where bash starts a child just then it may not abandon the rest of the command, or take a
/// failure for it; but it comes back.
#[test]
fn an_interrupt_at_a_bad_moment_is_no_hang() {
    let bench = Bench::sandboxed();
    bench.output("x=kept");
    for _ in 0..5 {
        for command in [
            ": >FILE; sleep 1000; echo next",
            ": >FILE; while :; do /bin/true; done",
            "(: >FILE; sleep 1000); (sleep 0.001)",
            ": >FILE; kill -STOP $$; sleep 1000",
            ": >FILE; sleep 1000 | cat; echo next",
            "x=$(: >FILE; echo kept; sleep 0.001 | sleep 1000)",
        ] {
            let ended = cancelled(&bench, command);
            assert_eq!(ended.finished.end, End::Cancelled, "{command}");
            // Where every interrupt meets a child that is just ending, bash minds none of them.
            let may_end = command.contains("/bin/true");
            assert!(may_end || ended.session != Session::Ended, "{command}: {ended:?}");
            assert_eq!(bench.output("echo next"), "next\n", "{command}");
        }
    }
    let ended = cancelled(&bench, "set -e; echo begun; : >FILE; sleep 1000; echo next");
    assert_eq!(ended.finished.end, End::Cancelled);
    bench.output("true");
}

#[test]
fn a_timeout_interrupts_and_kills_only_what_does_not_mind() {
    in_both_modes(|bench| {
        bench.output("x=kept");
        let mark = marker();
        for command in ["sleep MARK; echo next", "while :; do :; done", "sleep MARK | cat"] {
            let ended = bench.run_for(100, &command.replace("MARK", &mark));
            assert_eq!((ended.finished.end, ended.session), (End::TimedOut, Session::Kept));
            assert_eq!((ended.finished.stdout.bytes, ended.finished.stderr.bytes), (0, 0));
            assert_eq!(processes_with(&mark), 0, "{command}");
            assert_eq!(bench.output("echo $x"), "kept\n", "{command}");
        }
        bench.output("trap '' INT");
        let ended = bench.run_for(100, &format!("sleep {mark}"));
        assert_eq!((ended.finished.end, ended.session), (End::TimedOut, Session::Ended));
        assert!(ended.finished.all_dead);
        assert_eq!(processes_with(&mark), 0);
        assert_eq!(bench.run("echo next").session, Session::Started);
    });
}

#[test]
fn what_does_not_mind_an_interrupt_is_killed_with_its_session() {
    let bench = Bench::sandboxed();
    for command in [
        "echo begun; trap '' INT; sh -c ': >FILE; exec sleep MARK'",
        "echo begun; setsid bash -c ': >FILE; exec sleep MARK'",
        "echo begun; bash -c 'trap \"\" INT TERM HUP; : >FILE; while :; do sleep MARK; done'",
        "echo begun; trap '' INT; : >FILE; kill -STOP $$; sleep MARK",
    ] {
        let mark = marker();
        let ended = cancelled(&bench, &command.replace("MARK", &mark));
        assert_eq!((ended.finished.end, ended.session), (End::Cancelled, Session::Ended));
        assert!(ended.finished.all_dead, "{command}");
        assert_eq!(ended.finished.stdout.text, "begun\n", "{command}");
        assert_eq!(processes_with(&mark), 0, "{command}");
        assert_eq!(bench.run("echo next").session, Session::Started, "{command}");
    }
}

#[test]
fn a_cancelled_call_is_interrupted_too() {
    in_both_modes(|bench| {
        let (call, receiver) = bench.start("x=1; echo begun; sh -c ': >begun; exec sleep 1000'");
        bench.wait_for_file("begun");
        bench.terminals.cancel(call);
        let ended = receiver.recv_timeout(LONG).unwrap();
        assert_eq!((ended.finished.end, ended.session), (End::Cancelled, Session::Started));
        assert_eq!(ended.finished.stdout.text, "begun\n");
        // One that has ended is nobody's any more.
        bench.terminals.cancel(call);
        assert_eq!(bench.output("echo $x"), "1\n");
        // At once: the shell may not even be there.
        bench.output("exit 0");
        let (call, receiver) = bench.start("sleep 1000");
        bench.terminals.cancel(call);
        assert_eq!(receiver.recv_timeout(LONG).unwrap().finished.end, End::Cancelled);
    });
}

#[test]
fn background_jobs_live_on_and_their_output_is_kept_apart() {
    let bench = Bench::sandboxed();
    bench.output("mkfifo go; (read x <go; echo late; echo error >&2; touch said) & echo now");
    let first = bench.run("echo >go; echo first");
    bench.wait_for_file("said");
    let second = bench.run("echo second");
    // Said between the calls, or while the first one ran: the job is not to be hurried.
    let [late, error] = &second.background;
    let printed = [&*first.finished.stdout.text, &late.text].concat();
    assert!(matches!(&*printed, "first\nlate\n" | "late\nfirst\n"), "{printed:?}");
    assert_eq!([&*first.finished.stderr.text, &error.text].concat(), "error\n");
    assert_eq!(second.finished.stdout.text, "second\n");
    // What nobody can have been waiting for is between the calls.
    bench.output("mkfifo again; (read x <again; echo much later; touch said2) & ");
    std::fs::write(bench.workspaces[0].path().join("again"), "x\n").unwrap();
    bench.wait_for_file("said2");
    let third = bench.run("echo third");
    assert_eq!(third.background[0].text, "much later\n");
    assert_eq!(third.finished.stdout.text, "third\n");
}

#[test]
fn a_job_that_floods_its_output_harms_nobody() {
    let bench = Bench::new(true, 2);
    bench.output("yes & echo $! >pid");
    assert_eq!(bench.run_in(1, "echo neighbour").finished.stdout.text, "neighbour\n");
    // It is held up at some time; a call sets it free, and may end it.
    let ended = bench.run("kill -9 $(<pid); wait");
    assert!(matches!(ended.finished.end, End::Exited(_)), "{ended:?}");
    assert!(ended.background[0].bytes > 0 && ended.background[0].text.len() < 20_000);
    assert_eq!(bench.output("echo quiet"), "quiet\n");
}

#[test]
fn much_output_is_bounded_and_counted() {
    let bench = Bench::sandboxed();
    let ended = bench.run("head -c 100000000 /dev/zero; head -c 100000000 /dev/zero >&2");
    assert_eq!(ended.finished.end, End::Exited(0));
    for stream in [&ended.finished.stdout, &ended.finished.stderr] {
        assert_eq!(stream.bytes, 100_000_000);
        assert!(stream.text.len() < 60_000);
    }
    let ended = cancelled(&bench, "(head -c 1000000 /dev/zero; : >FILE; exec yes)");
    assert_eq!((ended.finished.end, ended.session), (End::Cancelled, Session::Kept));
    assert!(ended.finished.stdout.bytes >= 1_000_000);
    assert_eq!(bench.output("echo next"), "next\n");
}

#[test]
fn long_commands_are_commands() {
    let bench = Bench::sandboxed();
    let long = format!("x={}; echo ${{#x}}", "y".repeat(1 << 20));
    assert_eq!(bench.output(&long), "1048576\n");
    let lines = "echo -n .\n".repeat(20_000);
    assert_eq!(bench.output(&lines), ".".repeat(20_000));
    assert_eq!(bench.output("echo short"), "short\n");
}

/// Each of these may end its own session or fake its own result. None may hang beyond its time
/// limit, or say anything to the next call.
#[test]
fn what_a_model_does_to_its_own_shell_harms_nobody_else() {
    let bench = Bench::new(true, 2);
    bench.run_in(1, "x=neighbour");
    for attack in [
        "builtin() { :; }",
        "printf() { :; }",
        ".() { :; }; source() { :; }",
        "return() { :; }; set() { :; }; unset() { :; }; case() { :; }",
        "alias .=false builtin=false printf=false '{=false' 'case=false' 'PS2=false'",
        "enable -n .",
        "enable -n printf builtin",
        "shopt -s extdebug; trap 'false' DEBUG",
        "trap 'echo debug; return 2' DEBUG",
        "trap 'exit 3' DEBUG",
        "trap 'kill -STOP $$' DEBUG",
        "trap 'sleep 1000' RETURN",
        "trap 'exec sleep 1000' EXIT; exit",
        "trap '' INT TERM HUP QUIT",
        "set -n",
        "set -f -k -t",
        "set -o posix; set -eu",
        "ulimit -n 3",
        "ulimit -f 0",
        "readonly PS0 PS1 PS2 PROMPT_COMMAND",
        "PS2=; declare -r PS2; echo ${x?}",
        "declare -i PS2; declare -n PS1=PS1",
        "TMOUT=1",
        "exec <&-; exec 10<&- 11<&- 255<&-",
        "cat <&10",
        "exec 0<&10; cat",
        "head -c 1 /proc/$$/fd/0",
        "exec >&- 2>&-",
        "for i in {1..50}; do echo \"word 0 h\" >/run/terminal/default/status; done",
        "yes 'x 0 h' >/run/terminal/default/status",
        "cat /dev/zero >/run/terminal/default/status & sleep 1000",
        "cat /run/terminal/default/status",
        "rm -rf /run/terminal; chmod 777 /run/terminal/*; echo x >/run/terminal/default/command",
        "kill -STOP $$",
        "(sleep 0.4; kill -STOP $$) & ",
        "(sleep 0.4; kill -9 $$) & ",
        "ulimit -v 0",
        "ulimit -u 0; ulimit -s 8",
        "ulimit -t 0; while :; do :; done",
        "ulimit -c 0 -d 0 -l 0 -m 0 -q 0",
        "exec bash",
        "exec bash -i",
        "exec bash <&10",
        "readonly BASHPID PPID UID; BASHPID=1",
        "PROMPT_COMMAND='kill -9 $$'; readonly PROMPT_COMMAND",
        "PROMPT_COMMAND=(false 'sleep 1000'); readonly PROMPT_COMMAND",
        "PS0='$(kill -STOP $$)'; readonly PS0",
        "PS1='$(sleep 1000)'; readonly PS1",
        "set -o ignoreeof; set -o noglob -o noclobber -o noexec",
        "command_not_found_handle() { exit 4; }; PATH=/nonexistent; nothing",
        "printf '%s' >/run/terminal/default/status junk",
        "printf '\\0\\n\\0 0 h\\n' >/run/terminal/default/status",
        "head -c 1000000 /dev/zero; printf '\\e]0;%s\\a' $(seq 1 100000) >&2",
        "for i in {1..100}; do sleep 1000 & done; disown -a",
        "coproc cat; exec 0<&${COPROC[0]}",
        "kill -TSTP $$; kill -TTIN $$; kill -TTOU 0",
        "kill -INT $$; kill -INT 0; kill -QUIT 0",
        "cd ..; rm -rf /workspace/* /workspace/.[a-z]*; chmod 0 /workspace",
        "kill -9 1; kill -9 -1",
        "exec sleep 1000",
        "IFS=0123456789abcdef/. ; unset PATH",
        "BASH_ENV=/dev/stdin; ENV=x; HISTFILE=h; set -o history; LC_ALL=zz_ZZ",
        "unset BASH_ARGV0; unset -; $(exit 1)",
        "while :; do (:) & done",
        "eval 'exec 2>/dev/null; while read -r -t 1 -u 10 l; do echo \"$l\"; done'",
    ] {
        let started = Instant::now();
        bench.run_for(300, attack);
        // Whatever is left of it, the next call comes to an end, and is not told anything by it.
        let next = bench.run_for(300, "builtin echo next");
        let took = started.elapsed();
        assert!(took < Duration::from_secs(15), "{attack}: took {took:?}");
        if next.finished.end == End::Exited(0) && next.finished.stdout.bytes > 0 {
            assert!(next.finished.stdout.text.contains("next\n"), "{attack}: {next:?}");
        }
        bench.end_slot(0);
        bench.workspaces[0].clear().unwrap();
        assert_eq!(bench.output("echo ours"), "ours\n", "{attack}");
    }
    assert_eq!(bench.run_in(1, "echo $x").finished.stdout.text, "neighbour\n");
}

#[test]
fn a_session_that_floods_its_status_is_killed() {
    let bench = Bench::sandboxed();
    let ended = bench.run("cat /dev/zero >/run/terminal/default/status");
    assert_eq!((ended.finished.end, ended.session), (End::Exited(137), Session::Ended));
    bench.output("yes 'x 0 h' >/run/terminal/default/status & ");
    wait_until(|| bench.run("true").session != Session::Kept);
}

/// It is all one line for whoever reads it.
#[test]
fn a_job_that_leaves_unfinished_lines_keeps_no_end_from_being_seen() {
    let bench = Bench::sandboxed();
    bench.output(
        "(while :; do printf 'x 0 '; : >said; sleep 0.001; done >/run/terminal/default/status 2>/dev/null) & \
         until [ -e said ]; do :; done; echo",
    );
    for number in 0..20 {
        let ended = bench.run(&format!("(exit {number})"));
        assert_eq!((code(&ended), ended.session), (number, Session::Kept));
    }
    // One that is longer than any.
    bench.output("head -c 5000 /dev/zero | tr '\\0' x >/run/terminal/default/status");
    assert_eq!(code(&bench.run("(exit 3)")), 3);
}

/// What a call is told does not depend on what it does to the pipe by which its shell is told.
#[test]
fn a_shell_that_does_not_read_its_lines_is_ended_as_it_should() {
    let bench = Bench::sandboxed();
    // While a command runs bash keeps it elsewhere, since the command's own input is another.
    let find = "for n in {10..19}; do [[ $(readlink /proc/$$/fd/$n) == pipe:* ]] && break; done";
    let small = "perl -e 'fcntl(STDIN, 1031, 4096) or die' <&$n";
    let command = format!("trap '' INT; {find}; {small} && echo small; while :; do sleep 1; done");
    let ended = bench.run_for(1_000, &command);
    assert_eq!((ended.finished.end, ended.session), (End::TimedOut, Session::Ended));
    assert_eq!(ended.finished.stdout.text, "small\n", "{}", ended.finished.stderr.text);
    assert_eq!(bench.output("echo next"), "next\n");
}

#[test]
fn a_job_cannot_speak_for_a_later_call() {
    let bench = Bench::sandboxed();
    // It repeats what it could see of its own call's end, for ever.
    bench.output(
        "(while :; do for w in word $BASH_COMMAND 0 1; do echo \"$w 0 h\"; done; sleep 0.01; done \
         >/run/terminal/default/status) & echo job",
    );
    for _ in 0..20 {
        assert_eq!(code(&bench.run("sleep 0.05; exit_with() { return 5; }; exit_with")), 5);
    }
}

#[test]
fn a_session_sees_its_slots_files_and_nothing_of_the_host() {
    let bench = Bench::sandboxed();
    bench.output("echo w >/workspace/w; echo t >/tmp/t");
    assert_eq!(std::fs::read(bench.workspaces[0].path().join("w")).unwrap(), b"w\n");
    assert_eq!(std::fs::read(bench.workspaces[0].temporary().join("t")).unwrap(), b"t\n");
    assert_eq!(bench.output("pwd"), "/workspace\n");
    assert_eq!(bench.output("echo $HOME"), bench.output("getent passwd $(id -u) | cut -d: -f6"));
    assert_eq!(bench.output("ls -a /workspace"), ".\n..\nw\n", "nothing of ours is there");
    let fds = bench.output(
        "bash -c 'for f in /proc/self/fd/*; do echo ${f##*/}; done' | sort -n | head -3 | xargs",
    );
    assert_eq!(fds, "0 1 2\n");
    let host = bench.base.to_string_lossy().into_owned();
    let mounts = bench.output("cat /proc/self/mountinfo | wc -l; ls /");
    assert!(!mounts.contains(&host), "{mounts}");
}

#[test]
fn bash_reads_nothing_of_the_workspace_at_its_start() {
    let bench = Bench::sandboxed();
    for name in [".bashrc", ".bash_history", ".bash_profile", ".profile", ".inputrc"] {
        let path = bench.workspaces[0].path().join(name);
        // Whoever reads it hangs.
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o666),
            0,
        )
        .unwrap();
    }
    assert_eq!(bench.run_for(10_000, "echo up").finished.end, End::Exited(0));
    assert_eq!(bench.run("exit 4").finished.end, End::Exited(4));
}

#[test]
fn another_network_is_another_session() {
    let bench = Bench::sandboxed();
    bench.output("x=1");
    let run = |network, command: &str| {
        let (_, receiver) = bench.start_at(bench.place(0, network), LONG, command);
        receiver.recv_timeout(LONG).unwrap()
    };
    let offline = run(
        false,
        "echo [$x]; ls /sys/class/net 2>/dev/null | grep -vx lo; grep -c : /proc/net/dev",
    );
    assert!(offline.finished.network_isolated);
    assert_eq!((offline.session, &*offline.finished.stdout.text), (Session::Started, "[]\n1\n"));
    assert_eq!(run(false, "true").session, Session::Kept);
    // A call that has to wait for the end of the other one can be cancelled all the same.
    let (call, receiver) = bench.start_at(bench.place(0, true), LONG, "sleep 1000");
    bench.terminals.cancel(call);
    assert_eq!(receiver.recv_timeout(LONG).unwrap().finished.end, End::Cancelled);
    let online = run(true, "true");
    assert!(!online.finished.network_isolated && online.session == Session::Started);
}

#[test]
fn ending_a_slot_kills_what_is_kept_for_it_and_only_that() {
    let bench = Bench::new(true, 2);
    let (mine, other) = (marker(), marker());
    bench.run_in(0, &format!("sleep {mine} & setsid -f sleep {mine}"));
    bench.run_in(1, &format!("x=there; sleep {other} &"));
    wait_until(|| processes_with(&mine) == 2);
    bench.end_slot(0);
    assert_eq!(processes_with(&mine), 0);
    bench.end_slot(0);
    assert_eq!(bench.run_in(1, "echo $x").finished.stdout.text, "there\n");
    assert!(processes_with(&other) > 0);
    let next = bench.run_in(0, "jobs");
    assert_eq!((next.session, &*next.finished.stdout.text), (Session::Started, ""));
    // With a call under way.
    let (_, receiver) = bench.start("touch begun; sleep 1000");
    bench.wait_for_file("begun");
    bench.end_slot(0);
    let ended = receiver.recv_timeout(LONG).unwrap();
    assert_eq!((ended.finished.end, ended.session), (End::Cancelled, Session::Ended));
    bench.terminals.close();
    assert_eq!(processes_with(&other), 0);
    let refused = bench.run_in(1, "echo too late");
    assert!(matches!(refused.finished.end, End::SetupFailed(_)));
    bench.end_slot(1);
}

#[test]
fn a_session_that_was_killed_between_calls_is_replaced() {
    let bench = Bench::sandboxed();
    let mark = marker();
    bench.output(&format!("x=1; (read -t 0.01 <> <(:); kill -9 $$; sleep {mark}) & "));
    wait_until(|| {
        // Either call may meet the dying shell; what it gets is typed.
        let ended = bench.run("echo [$x]");
        match ended.finished.end {
            End::Exited(0) => ended.finished.stdout.text == "[]\n",
            End::Exited(137) | End::Lost(_) => false,
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(processes_with(&mark), 0);
}

/// Without a sandbox whoever kills the reaper frees what it held.
#[test]
fn a_slot_is_never_free_of_a_session_whose_end_nobody_saw() {
    let bench = Bench::new(false, 2);
    let mark = marker();
    bench.output(&format!("setsid sleep {mark} & mkfifo go; (read x < go; kill -9 $PPID) &"));
    wait_until(|| processes_with(&mark) == 1);
    std::fs::write(bench.workspaces[0].path().join("go"), "now\n").unwrap();
    // It dies between two calls, and the next one has another session, which ends as it should.
    wait_until(|| bench.run("echo").session == Session::Started);
    assert_eq!(processes_with(&mark), 1, "this proves nothing");
    for _ in 0..2 {
        assert!(!bench.leave(0), "it was taken to be free");
    }
    bench.run_in(1, "true");
    assert!(bench.leave(1), "another slot has nothing to do with it");
    end_processes_with(&mark);
}

#[test]
fn a_second_call_of_a_slot_is_refused() {
    let bench = Bench::sandboxed();
    let (call, receiver) = bench.start("touch begun; sleep 1000");
    bench.wait_for_file("begun");
    assert!(matches!(bench.run("echo 2").finished.end, End::SetupFailed(_)));
    bench.terminals.cancel(call);
    assert_eq!(receiver.recv_timeout(LONG).unwrap().finished.end, End::Cancelled);
}

#[test]
fn fifty_sessions_live_at_once_and_cost_no_thread() {
    let bench = Bench::new(true, 50);
    bench.run_in(0, "true");
    let named = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        tasks
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .filter(|name| name.starts_with("tool-terminals"))
            .count()
    };
    let before = named();
    for round in 0..3 {
        let running: Vec<_> = (0..50)
            .map(|slot| {
                let command = match round {
                    0 => format!("x={slot}; cd /tmp"),
                    _ => "echo $x $PWD".to_owned(),
                };
                (slot, bench.start_at(bench.place(slot, true), LONG, &command).1)
            })
            .collect();
        for (slot, receiver) in running {
            let ended = receiver.recv_timeout(LONG).unwrap();
            let expected = if round == 0 { String::new() } else { format!("{slot} /tmp\n") };
            assert_eq!(ended.finished.stdout.text, expected);
        }
    }
    // Other tests of this process have such threads of their own, and come and go.
    assert!(named() <= before + 8, "{} of {before}", named());
}

/// As in a script, of which the calls are the parts.
#[test]
fn a_trap_on_debug_is_there_for_the_next_call_and_can_be_taken_away() {
    let bench = Bench::sandboxed();
    for (command, printed) in [
        ("trap 'echo \"it'\\''s $BASH_COMMAND\"' DEBUG; echo one", "it's echo one\none\n"),
        ("echo two; false", "it's echo two\ntwo\nit's false\n"),
        ("echo $?", "it's echo $?\n1\n"),
        ("f() { echo in f; }; f", "it's f\nin f\n"),
        ("return 4; echo never", "it's return 4\n"),
        ("x=$((1/0))", "it's x=$((1/0))\n"),
        ("trap -p DEBUG", "it's trap -p DEBUG\ntrap -- 'echo \"it'\\''s $BASH_COMMAND\"' DEBUG\n"),
        ("trap - DEBUG; echo three", "it's trap - DEBUG\nthree\n"),
        ("echo four; trap -p DEBUG", "four\n"),
        ("trap '' DEBUG; echo five", "five\n"),
        ("trap - DEBUG; echo six", "six\n"),
        ("trap 'echo a\necho b' DEBUG", ""),
        ("echo seven", "a\nb\nseven\n"),
    ] {
        let ended = bench.run(command);
        assert_eq!(ended.finished.stdout.text, printed, "{command}: {ended:?}");
        assert!(matches!(ended.session, Session::Started | Session::Kept), "{command}: {ended:?}");
    }
    // Also after a call that was interrupted.
    bench.output("trap 'echo dbg' DEBUG");
    let ended = bench.run_for(300, "sleep 1000");
    assert_eq!((ended.finished.end, ended.session), (End::TimedOut, Session::Kept));
    assert_eq!(ended.finished.stdout.text, "dbg\n");
    assert_eq!(bench.output("echo on"), "dbg\non\n");
    assert_eq!(bench.output("trap - DEBUG"), "dbg\n");
    assert_eq!(bench.output("echo off"), "off\n");
}

#[test]
fn a_session_that_ends_between_two_calls_is_told_to_the_next_one() {
    let bench = Bench::sandboxed();
    assert!(!bench.run("x=1").replaces_a_lost_one);
    bench.output("(until [ -e go ]; do sleep 0.01; done; kill -9 $$) >/dev/null 2>&1 &");
    std::fs::write(bench.workspaces[0].path().join("go"), "").unwrap();
    let mut told = 0;
    wait_until(|| {
        let ended = bench.run("echo ${x-gone}");
        let is_new = ended.session == Session::Started;
        assert_eq!(ended.replaces_a_lost_one, is_new, "{ended:?}");
        told += usize::from(is_new);
        // A call that was there when it ended is told so itself.
        is_new || ended.session == Session::Ended
    });
    let next = bench.run("echo ${x-gone}");
    assert!(!next.replaces_a_lost_one && next.finished.stdout.text == "gone\n", "{next:?}, {told}");
    // One that its call has ended, and one that is ended with its slot, is lost to no one.
    assert_eq!(bench.run("exit 3").session, Session::Ended);
    assert!(!bench.run("true").replaces_a_lost_one);
    bench.end_slot(0);
    assert!(!bench.run("true").replaces_a_lost_one);
}
