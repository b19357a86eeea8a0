//! Several sessions in one slot.

use super::*;

fn printed(ended: ShellEnded) -> String {
    assert_eq!(ended.finished.end, End::Exited(0), "{ended:?}");
    ended.finished.stdout.text
}

fn refusal(ended: ShellEnded) -> String {
    match ended.finished.end {
        End::Refused(why) => why,
        end => panic!("{end:?}"),
    }
}

#[test]
fn each_name_is_a_shell_of_its_own() {
    in_both_modes(|bench| {
        for name in ["default", "a", "b"] {
            let ended = bench.run_session(0, name, &format!("x={name}; cd /usr"));
            assert_eq!(ended.session, Session::Started, "{name}");
        }
        for name in ["a", "default", "b"] {
            let ended = bench.run_session(0, name, "echo $x $PWD");
            assert_eq!(ended.session, Session::Kept, "{name}");
            assert_eq!(printed(ended), format!("{name} /usr\n"));
        }
        // One ends, and is told of by its own name only.
        assert_eq!(bench.run_session(0, "a", "exit").session, Session::Ended);
        assert_eq!(printed(bench.run_session(0, "b", "echo $x")), "b\n");
        assert_eq!(printed(bench.run_session(0, "a", "echo new$x")), "new\n");
        bench.run_session(0, "b", "(sleep 0.05; kill -9 $$) &");
        wait_until(|| {
            let ended = bench.run_session(0, "b", "true");
            ended.replaces_a_lost_one || ended.session == Session::Ended
        });
        assert!(!bench.run_session(0, "default", "true").replaces_a_lost_one);
        bench.end_slot(0);
        for name in ["default", "a", "b"] {
            assert_eq!(printed(bench.run_session(0, name, "echo new$x")), "new\n");
        }
    });
}

#[test]
fn one_shell_too_many_is_refused_with_the_names_of_those_that_there_are() {
    let bench = Bench::new(true, 2);
    for number in 0..8 {
        printed(bench.run_session(0, &format!("s{number}"), "true"));
    }
    let why = refusal(bench.run_session(0, "more", "true"));
    assert!(why.starts_with("there are 8 sessions"), "{why}");
    assert!(why.contains(": s0, s1, s2, s3, s4, s5, s6, s7; use one of them"), "{why}");
    // Those that there are go on, and another slot has its own.
    assert_eq!(bench.run_session(0, "s7", "true").session, Session::Kept);
    printed(bench.run_session(1, "more", "true"));
    bench.run_session(0, "s3", "exit");
    printed(bench.run_session(0, "more", "true"));
    refusal(bench.run_session(0, "s3", "true"));
}

#[test]
fn further_shells_are_refused_while_there_are_no_descriptors_for_them() {
    let outer = tempfile::tempdir().unwrap();
    let base = outer.path().to_owned();
    let bench = Bench::with_sessions(true, 3, base, outer, [50_000, 1 << 20], 2);
    // One in each slot is always possible.
    for slot in 0..3 {
        printed(bench.run_session(slot, "first", "true"));
    }
    printed(bench.run_session(0, "second", "true"));
    printed(bench.run_session(1, "second", "true"));
    let refused = |slot, name| match bench.run_session(slot, name, "true").finished.end {
        End::SetupFailed(why) => assert!(why.contains("(ulimit -n)"), "{why}"),
        end => panic!("{end:?}"),
    };
    refused(2, "second");
    refused(0, "third");
    // What ends gives its place back: an own one, or the whole slot's.
    bench.run_session(0, "first", "exit");
    printed(bench.run_session(2, "second", "true"));
    refused(0, "third");
    bench.end_slot(1);
    printed(bench.run_session(0, "third", "true"));
    printed(bench.run_session(1, "first", "true"));
}
