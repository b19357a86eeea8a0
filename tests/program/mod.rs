//! The built program, started so that nothing of it depends on who runs the tests: without their
//! variables, and with the signals doing what they do by default.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Longer than anything here takes on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// The program.
pub(crate) fn program() -> Command {
    program_ignoring(&[])
}

/// The program, started with these signals ignored, as by `nohup`.
pub(crate) fn program_ignoring(ignored: &'static [Signal]) -> Command {
    started(Command::new(env!("CARGO_BIN_EXE_tool-executor")), ignored)
}

/// Another program that becomes this one, started in the same way.
pub(crate) fn started(mut command: Command, ignored: &'static [Signal]) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TOOL_EXECUTOR_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    let set_signals = move || {
        for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::XFSZ] {
            let action = if ignored.contains(&signal) { libc::SIG_IGN } else { libc::SIG_DFL };
            // SAFETY: no handler is set, so nothing of this process runs in one.
            if unsafe { libc::signal(signal.as_raw(), action) } == libc::SIG_ERR {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec it only calls signal(2), which may be called there.
    unsafe { command.pre_exec(set_signals) };
    command
}

/// Makes a directory that other users can pass through, whatever the umask is: where the tests run
/// as root, commands run as another user.
pub(crate) fn make_directory(path: &Path) {
    fs::create_dir(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Sends a signal.
pub(crate) fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Waits until it is so, or fails the test when the program ends before.
pub(crate) fn wait_until(child: &mut Child, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        if began.elapsed() > DEADLINE || child.try_wait().unwrap().is_some() {
            let _ = child.kill();
            panic!("it did not come to it");
        }
        // Between two looks, not in the hope that it is so afterwards.
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until the program has ended, or kills it and fails the test.
pub(crate) fn wait_until_ended(child: &mut Child) {
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > DEADLINE {
            let _ = child.kill();
            panic!("it did not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
