//! How commands end: by themselves, at their time, cancelled, at the close.

use super::*;

#[test]
fn a_background_child_does_not_delay_the_end_and_is_killed() {
    in_all_modes(|bench| {
        let marker = marker();
        let started = Instant::now();
        let finished = bench.run(&format!("sleep {marker} & setsid sleep {marker} & echo done"));
        assert!(started.elapsed() < LONG);
        assert_eq!(finished.end, End::Exited(0));
        assert_eq!(finished.stdout.text, "done\n");
        assert!(finished.all_dead);
        assert_eq!(processes_with(&marker), Vec::<String>::new());
    });
}

#[test]
fn at_the_timeout_every_process_is_dead_and_partial_output_is_kept() {
    let stubborn = [
        "sleep MARK",
        "setsid sleep MARK & wait",
        "(setsid bash -c 'sleep MARK & sleep MARK' &) ; sleep MARK",
        "trap '' TERM INT HUP; sleep MARK; sleep MARK",
        "sleep MARK & kill -STOP $!; kill -STOP $$",
        "(trap '' TERM; setsid setsid sleep MARK > /dev/null 2>&1 < /dev/null &) ; sleep MARK",
        "python3 -c 'import os,time\nif os.fork()==0:\n os.setsid()\n if os.fork()==0: os.execlp(\"sleep\",\"sleep\",\"MARK\")\n os._exit(0)\ntime.sleep(99)'",
    ];
    // Time enough for a shell to start on a machine that is busy.
    let timeout = Duration::from_secs(4);
    in_all_modes(|bench| {
        let ends = stubborn.map(|command| {
            let marker = marker();
            let command = format!("echo begun; {}", command.replace("MARK", &marker));
            let spec = CommandSpec { timeout, ..bench.spec(&command) };
            (command, marker, bench.start(spec).1)
        });
        for (command, marker, end) in ends {
            let finished = end.recv_timeout(LONG).unwrap();
            assert_eq!(finished.end, End::TimedOut, "{command}");
            assert_eq!(finished.stdout.text, "begun\n", "{command}");
            assert!(finished.all_dead, "{command}");
            assert!(finished.wall >= timeout, "{command}");
            assert_eq!(processes_with(&marker), Vec::<String>::new(), "{command}");
        }
    });
}

#[test]
fn a_command_whose_time_is_up_or_that_is_cancelled_is_asked_before_it_is_killed() {
    let ask = "trap 'echo cleaned; exit' TERM; touch NAME; sleep 1000 & wait; echo never";
    in_all_modes(|bench| {
        let (id, cancelled) = bench.start(bench.spec(&ask.replace("NAME", "one")));
        bench.wait_for_file("one");
        bench.supervisor.cancel(id);
        let cancelled = cancelled.recv_timeout(LONG).unwrap();
        // Time enough for a shell to start on a machine that is busy.
        let at_its_time = bench.run_for(4000, &ask.replace("NAME", "two"));
        for (end, finished) in [(End::Cancelled, cancelled), (End::TimedOut, at_its_time)] {
            assert_eq!((finished.end, &*finished.stdout.text), (end, "cleaned\n"));
            assert!(finished.all_dead);
        }
    });
}

#[test]
fn without_a_sandbox_a_command_that_stops_its_reaper_is_killed_all_the_same() {
    let (bench, marker) = (Bench::bare(), marker());
    let command = format!("kill -STOP $PPID; (setsid sleep {marker} &); sleep {marker}");
    let finished = bench.run_for(500, &command);
    assert_eq!(finished.end, End::TimedOut);
    assert!(finished.all_dead);
    assert_eq!(processes_with(&marker), Vec::<String>::new());
}

#[test]
fn a_flood_on_both_streams_ends_at_the_timeout_and_does_not_hold_others_up() {
    in_all_modes(|bench| {
        let flood = CommandSpec {
            timeout: Duration::from_millis(1500),
            ..bench.spec("touch flooding; yes & yes >&2")
        };
        let (_, end) = bench.start(flood);
        bench.wait_for_file("flooding");
        assert_eq!(bench.output("echo hello"), "hello\n");
        let finished = end.recv_timeout(LONG).unwrap();
        assert_eq!(finished.end, End::TimedOut);
        assert!(finished.stdout.bytes > 1 << 20 && finished.stderr.bytes > 1 << 20);
        assert!(finished.stdout.text.starts_with("y\ny\n"));
    });
}

#[test]
fn a_cancelled_command_is_dead_with_all_its_processes() {
    in_all_modes(|bench| {
        let marker = marker();
        let command = format!("setsid sleep {marker} & echo begun; touch begun; sleep {marker}");
        let (id, end) = bench.start(bench.spec(&command));
        bench.wait_for_file("begun");
        bench.supervisor.cancel(id);
        let finished = end.recv_timeout(LONG).unwrap();
        assert_eq!(finished.end, End::Cancelled);
        assert_eq!(finished.stdout.text, "begun\n");
        assert!(finished.all_dead);
        assert_eq!(processes_with(&marker), Vec::<String>::new());
        bench.supervisor.cancel(id);
        std::fs::remove_file(bench.workspace.path().join("begun")).unwrap();
    });
}

#[test]
fn commands_cancelled_at_any_moment_of_their_start_leave_nothing() {
    in_all_modes(|bench| {
        let marker = marker();
        for step in 0..40 {
            let (id, end) = bench.start(bench.spec(&format!("sleep {marker}")));
            let moment = Instant::now() + Duration::from_micros(200 * step);
            while Instant::now() < moment {
                std::hint::spin_loop();
            }
            bench.supervisor.cancel(id);
            let finished = end.recv_timeout(LONG).unwrap();
            assert_eq!(finished.end, End::Cancelled);
            assert!(finished.all_dead);
        }
        assert_eq!(processes_with(&marker), Vec::<String>::new());
    });
}

#[test]
fn closing_ends_every_command_once_and_leaves_no_process() {
    in_all_modes(|bench| {
        let marker = marker();
        let ends: Vec<_> = (0..20)
            .map(|_| bench.start(bench.spec(&format!("echo >> ready; sleep {marker}"))).1)
            .collect();
        bench.wait_for_size("ready", 5);
        bench.supervisor.close();
        for end in ends {
            // The answer was there before `close` returned.
            let finished = end.try_recv().unwrap();
            assert!(matches!(finished.end, End::Cancelled | End::SetupFailed(_)));
            assert!(end.try_recv().is_err());
        }
        assert_eq!(processes_with(&marker), Vec::<String>::new());
        assert!(matches!(bench.run("true").end, End::SetupFailed(_)));
        bench.supervisor.close();
    });
}

#[test]
fn a_panic_of_the_receiver_ends_nothing_else() {
    in_all_modes(|bench| {
        let (sender, receiver) = channel();
        bench.supervisor.run(
            bench.spec("true"),
            Box::new(move |_| {
                sender.send(()).unwrap();
                panic!("a test's own panic");
            }),
        );
        receiver.recv_timeout(LONG).unwrap();
        assert_eq!(bench.output("echo alive"), "alive\n");
    });
}

#[test]
fn dropping_the_supervisor_from_its_own_thread_does_not_hang() {
    let bench = Bench::bare();
    let spec = bench.spec("true");
    let Bench { supervisor, workspace, slots: _, busy: _, _data, _base, _etc } = bench;
    let supervisor = Arc::new(supervisor);
    let (sender, receiver) = channel();
    let own = Arc::clone(&supervisor);
    supervisor.run(
        spec,
        Box::new(move |_| {
            own.close();
            drop(own);
            sender.send(()).unwrap();
        }),
    );
    receiver.recv_timeout(LONG).unwrap();
    drop(workspace);
}
