//! What a command leaves running: it is told, and what ends by itself is not.

use super::*;

/// What was said of the processes that were ended with a command: how many, and their names.
fn ended(finished: &Finished) -> Option<(u64, Vec<String>)> {
    let told = finished.background.ended.as_ref()?.to_json();
    let names = told["names"].as_array().unwrap().iter();
    let names = names.map(|name| name.as_str().unwrap().to_owned());
    Some((told["count"].as_u64().unwrap(), names.collect()))
}

/// Waits until the latest background process runs the program of this name.
const UNTIL: &str =
    r#"until_is() { until [ "$(tr -d '\n' < /proc/$!/comm)" = "$1" ]; do :; done; }"#;

#[test]
fn what_a_command_leaves_running_is_told() {
    in_sandboxes(|bench| {
        let marker = marker();
        let command = format!(
            "{UNTIL}; sleep {marker} & until_is sleep; setsid sleep {marker} & until_is sleep
            bash -c 'exec 3<&1; sleep {marker}; :' & until_is bash; echo done; exit 3"
        );
        let finished = bench.run(&command);
        assert_eq!((finished.end.clone(), &*finished.stdout.text), (End::Exited(3), "done\n"));
        let (count, names) = ended(&finished).unwrap();
        // The last one may not have begun its own sleep.
        assert!(matches!(count, 3 | 4), "{finished:?}");
        assert_eq!(names, ["sleep", "bash"]);
        assert!(finished.all_dead);
        assert_eq!(processes_with(&marker), Vec::<String>::new());
        assert_eq!(ended(&bench.run("true")), None, "of the next command nothing is told");
    });
}

#[test]
fn processes_that_do_not_end_at_a_sigterm_are_told_too() {
    in_sandboxes(|bench| {
        let marker = marker();
        let command = format!(
            "{UNTIL}; (trap '' TERM; exec sleep {marker}) & until_is sleep
            sleep {marker} & until_is sleep; kill -STOP $!"
        );
        assert_eq!(ended(&bench.run(&command)), Some((2, vec!["sleep".to_owned()])));
        assert_eq!(processes_with(&marker), Vec::<String>::new());
    });
}

#[test]
fn what_ends_by_itself_soon_after_a_command_is_not_told_and_may_finish() {
    in_sandboxes(|bench| {
        for command in ["true", "yes | head -1", "seq 9 | tee f > /dev/null"] {
            assert_eq!(ended(&bench.run(command)), None, "{command}");
        }
        // These see the end of the command, or their own, and take some milliseconds more. How long
        // that is on a busy machine cannot be told, so that they may be late, but not each time.
        for command in [
            "sleep 99 & kill $!",
            "rm -f f; exec > >(cat > /dev/null; sleep 0.004; echo written > f)",
        ] {
            let quick = (0..50).any(|_| ended(&bench.run(command)).is_none());
            assert!(quick, "it was ended each time: {command}");
        }
        let slot = bench.slots[0].path().join("f");
        assert_eq!(std::fs::read_to_string(slot).unwrap(), "written\n");
    });
}

#[test]
fn a_command_whose_time_is_up_or_that_is_cancelled_leaves_nothing_running() {
    in_sandboxes(|bench| {
        let command = format!("sleep {0} & touch begun; sleep {0}", marker());
        let late = bench.run_for(300, &command);
        assert_eq!((late.end.clone(), ended(&late)), (End::TimedOut, None));
        let (id, end) = bench.start(bench.spec(&command));
        bench.wait_for_file("begun");
        bench.supervisor.cancel(id);
        let cancelled = end.recv_timeout(LONG).unwrap();
        assert_eq!((cancelled.end.clone(), ended(&cancelled)), (End::Cancelled, None));
    });
}

#[test]
fn a_process_may_call_itself_what_it_likes() {
    in_sandboxes(|bench| {
        // Its state would be that of a zombie to a reader who took the first parenthesis.
        let command = "cp \"$(type -P sleep)\" $'a\\nb) Z (\\x1b['; ./a* 99 &
            until [ \"$(head -c 3 /proc/$!/comm)\" = $'a\\nb' ]; do :; done";
        assert_eq!(ended(&bench.run(command)), Some((1, vec!["a?b) Z (?[".to_owned()])));
    });
}

#[test]
fn ten_names_are_told_of_any_number_of_processes() {
    in_sandboxes(|bench| {
        let command = format!(
            "{UNTIL}; for name in {{a..l}}; do cp \"$(type -P sleep)\" program-$name; done
            for name in {{a..l}} {{a..l}}; do ./program-$name 99 & until_is program-$name; done"
        );
        let (count, names) = ended(&bench.run(&command)).unwrap();
        let expected: Vec<_> = ('a'..='j').map(|name| format!("program-{name}")).collect();
        assert_eq!((count, names), (24, expected));
    });
}

#[test]
fn a_thousand_processes_and_a_storm_of_forks_hold_the_end_up_no_longer() {
    let bench = Bench::warm();
    let marker = marker();
    let many = format!("for i in {{1..1100}}; do sleep {marker} & done");
    let storm = "touch up; f() { (f &); }; while :; do f; done";
    let storm = format!("sleep {marker} & ({storm}) & until [ -e up ]; do :; done");
    let finished = bench.run(&many);
    assert_eq!((finished.end.clone(), ended(&finished).unwrap().0), (End::Exited(0), 1000));
    let finished = bench.run(&storm);
    assert_eq!(finished.end, End::Exited(0));
    let (count, names) = ended(&finished).unwrap();
    assert!((2..=1000).contains(&count) && names.contains(&"bash".to_owned()), "{finished:?}");
    assert!(finished.all_dead);
    assert_eq!(processes_with(&marker), Vec::<String>::new());
}
