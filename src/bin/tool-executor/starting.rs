//! A start that a signal can end, whatever it waits for.
//!
//! The start runs on a thread of its own, `tool-start`; this one waits for its end or for a
//! signal. After the first signal the start is asked to give up and has a moment to put away what
//! it made; then, or at the second signal, the program ends without it. What it leaves behind then
//! – a directory, a process that dies with this one – the next start with the same data directory
//! removes.

use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, after, bounded, select};
use tool_executor::Interrupt;

use crate::console::{fail, warn_line};
use crate::exit_code::ExitCode;

/// How long a start may take to end after it was asked to: with it the program's end is within a
/// second of the signal.
const END_LIMIT: Duration = Duration::from_millis(900);

/// Starts something, and gives it to its user.
///
/// `signals` tells of each signal. `start` runs on a thread of its own, and is to give up when its
/// interrupt is triggered. What is made in vain is dropped on that thread.
///
/// # Errors
/// There is nothing to be used; this is how the program ends. Why, was said.
pub(crate) fn start<T: Send + 'static>(
    signals: &Receiver<()>,
    start: impl FnOnce(&Interrupt) -> Result<T, String> + Send + 'static,
) -> Result<T, ExitCode> {
    interruptible(signals, "starting", start)
}

/// The same for other work that may take long and is a command's first; `doing` says what it is.
///
/// # Errors
/// Those of [`start`].
pub(crate) fn interruptible<T: Send + 'static>(
    signals: &Receiver<()>,
    doing: &str,
    start: impl FnOnce(&Interrupt) -> Result<T, String> + Send + 'static,
) -> Result<T, ExitCode> {
    let interrupt = Interrupt::new();
    let handle = interrupt.clone();
    let (sender, result) = bounded(0);
    // Handed over only while it is waited for. Else it is dropped on that thread, which ends with
    // it.
    let (alive, ended) = bounded::<()>(0);
    let body = move || {
        let _alive = alive;
        let _ = sender.send(start(&interrupt));
    };
    #[expect(
        clippy::disallowed_methods,
        reason = "the library's owned threads are not public; this one is named and joined"
    )]
    let thread = thread::Builder::new().name("tool-start".to_owned()).spawn(body);
    let thread = thread.map_err(|error| {
        fail(ExitCode::NotStarted, &format!("could not start a thread: {error}"))
    })?;
    let result = select! {
        recv(result) -> result => result,
        recv(signals) -> _ => {
            drop(result);
            handle.interrupt();
            warn_line(&format!("tool-executor: interrupted while {doing}"));
            select! {
                recv(ended) -> _ => {}
                recv(signals) -> _ => {}
                recv(after(END_LIMIT)) -> _ => {}
            }
            return Err(ExitCode::Interrupted);
        }
    };
    // It has handed its result over, or panicked, which was told when it happened: it ends now.
    let _ = thread.join();
    match result {
        Ok(Ok(started)) => Ok(started),
        Ok(Err(problem)) => Err(fail(ExitCode::NotStarted, &problem)),
        Err(_) => Err(fail(ExitCode::NotStarted, "the start panicked")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// Tells of its drop.
    struct Made(crossbeam_channel::Sender<Option<String>>);

    impl Drop for Made {
        fn drop(&mut self) {
            let _ = self.0.send(thread::current().name().map(str::to_owned));
        }
    }

    #[test]
    fn what_was_started_is_given_and_what_failed_is_told() {
        let (_signal, signals) = bounded(1);
        assert_eq!(start(&signals, |_| Ok(7)), Ok(7));
        let failed = start::<()>(&signals, |_| Err("no".to_owned()));
        assert_eq!(failed, Err(ExitCode::NotStarted));
        let panicked = start::<()>(&signals, |_| panic!("expected by this test"));
        assert_eq!(panicked, Err(ExitCode::NotStarted));
    }

    #[test]
    fn a_signal_asks_the_start_to_give_up_and_what_it_made_is_dropped_before_the_end() {
        let (signal, signals) = bounded(1);
        let (tell, dropped) = bounded(1);
        let began = Instant::now();
        let body = move |interrupt: &Interrupt| {
            signal.send(()).unwrap();
            assert!(interrupt.wait_timeout(Duration::from_secs(60)));
            Ok(Made(tell))
        };
        let started = start(&signals, body);
        assert!(matches!(started, Err(ExitCode::Interrupted)));
        // Either it is dropped by now, or the machine is too busy for that.
        let thread = dropped.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(thread.as_deref(), Some("tool-start"));
        assert!(began.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn a_second_signal_does_not_wait_for_a_start_that_does_not_end() {
        let (signal, signals) = bounded(2);
        let (end, ends) = bounded::<()>(0);
        signal.send(()).unwrap();
        signal.send(()).unwrap();
        let body = move |_: &Interrupt| {
            let _ = ends.recv();
            Ok(())
        };
        assert_eq!(start(&signals, body), Err(ExitCode::Interrupted));
        assert!(signals.is_empty(), "the second one was taken");
        drop(end);
    }
}
