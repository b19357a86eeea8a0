//! Terminals whose thread is late, as that of a host is which was stopped.

use std::time::Instant;

use super::*;

/// So many calls have more events at their end than are taken at a time.
const CALLS: usize = 60;
/// They have no trouble to end within this.
const LIMIT: Duration = Duration::from_secs(6);

#[test]
fn a_call_that_has_ended_in_time_is_seen_to_have_however_late() {
    let bench = Bench::new(false, CALLS + 1);
    for slot in 0..CALLS {
        assert_eq!(bench.run_in(slot, &format!("mkfifo go{slot}")).finished.end, End::Exited(0));
    }
    let file =
        |name: &str, slot: usize| bench.workspaces[slot].path().join(format!("{name}{slot}"));
    let give_up = Instant::now() + LONG;
    let (_nobody, never) = channel::<()>();
    let until = |is_so: &dyn Fn() -> bool| {
        while !is_so() {
            assert!(Instant::now() < give_up);
            let _ = never.recv_timeout(Duration::from_millis(2));
        }
    };
    let began = Instant::now();
    let waits: Vec<_> = (0..CALLS)
        .map(|slot| {
            let command =
                format!(": >up{slot}; read x <go{slot}; echo {slot}; echo e >&2; : >down{slot}");
            bench.start_at(bench.place(slot, true), LIMIT, &command).1
        })
        .collect();
    until(&|| (0..CALLS).all(|slot| file("up", slot).exists()));
    let (release, released) = channel::<()>();
    let (tell, told) = channel();
    let on_end = move |_| {
        tell.send(()).unwrap();
        let _ = released.recv();
    };
    let command = ShellCommand { text: "true".to_owned(), ..ShellCommand::default() };
    bench.terminals.bash(bench.place(CALLS, true), command, LONG, Box::new(on_end));
    told.recv_timeout(LONG).unwrap();
    for slot in 0..CALLS {
        std::fs::write(file("go", slot), "\n").unwrap();
    }
    until(&|| (0..CALLS).all(|slot| file("down", slot).exists()));
    assert!(began.elapsed() < LIMIT, "this machine is too slow for this test");
    until(&|| began.elapsed() > LIMIT + Duration::from_secs(1));
    drop(release);
    for (slot, ended) in waits.into_iter().enumerate() {
        let ended = ended.recv_timeout(LONG).unwrap();
        assert_eq!(ended.finished.end, End::Exited(0), "{slot}");
        assert_eq!(
            (ended.finished.stdout.text, ended.session),
            (format!("{slot}\n"), Session::Kept)
        );
    }
}
