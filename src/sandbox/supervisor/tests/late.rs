//! A supervisor that is late: its thread is held, as that of a host is which was stopped.

use super::*;
use crate::sandbox::jail::KILL_MARGIN;

/// So many commands have more events at their end than are taken at a time.
const COMMANDS: usize = 60;
/// They have no trouble to start and to end within this.
const LIMIT: Duration = Duration::from_secs(6);
/// How late it is seen.
const MORE: Duration = Duration::from_secs(1);

/// Waits for what is sure to come, and looks now and then.
fn until(is_so: impl Fn() -> bool) {
    let give_up = Instant::now() + LONG;
    let (_nobody, never) = channel::<()>();
    while !is_so() {
        assert!(Instant::now() < give_up);
        let _ = never.recv_timeout(Duration::from_millis(2));
    }
}

impl Bench {
    /// Holds the supervisor's thread, until the sender that it gives is dropped.
    fn hold(&self) -> std::sync::mpsc::Sender<()> {
        let (release, released) = channel::<()>();
        let (tell, told) = channel();
        let (slot, spec) = self.in_free_slot(self.spec("true"));
        let on_end = move |_| {
            tell.send(()).unwrap();
            let _ = released.recv();
        };
        self.supervisor.run(spec, Box::new(on_end));
        told.recv_timeout(LONG).unwrap();
        self.busy.lock().remove(&slot);
        release
    }

    /// Has the commands end in time, and sees them after it.
    fn see_ends_late(&self) {
        let (began, path) = (Instant::now(), self.workspace.path());
        let waits: Vec<_> = (0..COMMANDS)
            .map(|number| {
                let command = format!(
                    "mkfifo go{number}; : >up{number}; read x <go{number}; echo {number}; : >down{number}"
                );
                self.start(CommandSpec { timeout: LIMIT, ..self.spec(&command) }).1
            })
            .collect();
        let all =
            |name: &str| (0..COMMANDS).all(|number| path.join(format!("{name}{number}")).exists());
        until(|| all("up"));
        let held = self.hold();
        for number in 0..COMMANDS {
            std::fs::write(path.join(format!("go{number}")), "\n").unwrap();
        }
        until(|| all("down"));
        assert!(began.elapsed() < LIMIT, "this machine is too slow for this test");
        until(|| began.elapsed() > LIMIT + MORE);
        drop(held);
        for (number, finished) in waits.into_iter().enumerate() {
            let finished = finished.recv_timeout(LONG).unwrap();
            assert_eq!(finished.end, End::Exited(0), "{number}");
            assert_eq!(finished.stdout.text, format!("{number}\n"));
        }
    }
}

#[test]
fn a_command_that_has_ended_in_time_is_seen_to_have_however_late() {
    Bench::bare().see_ends_late();
}

#[test]
fn a_sandbox_that_has_ended_is_seen_to_have_however_late() {
    let bench = Bench::warm();
    bench.see_ends_late();
    let (tell, told) = channel();
    let (release, released) = channel::<()>();
    let mut released = Some(released);
    for slot in 0..COMMANDS {
        let (tell, held) = (tell.clone(), released.take());
        let on_gone = move |gone| {
            tell.send((slot, gone)).unwrap();
            // The first of them to be gone keeps the thread from seeing the others.
            if let Some(held) = held {
                let _ = held.recv();
            }
        };
        bench.supervisor.leave(slot, Box::new(on_gone));
    }
    assert_eq!(told.recv_timeout(LONG).map(|(_, gone)| gone), Ok(true));
    let began = Instant::now();
    until(|| began.elapsed() > KILL_MARGIN + MORE);
    drop(release);
    for _ in 1..COMMANDS {
        let (slot, gone) = told.recv_timeout(LONG).unwrap();
        assert!(gone, "slot {slot} is lost");
    }
}
