//! Tests that need a process of their own: for another environment, other limits, fewer rights, or
//! because they count what the whole process has.

use std::process::{Child, Command, Stdio};

const VARIABLE: &str = "TOOL_EXECUTOR_TEST_ALONE";

/// Which case this process runs, if it is such a process.
pub(crate) fn case() -> Option<String> {
    std::env::var(VARIABLE).ok()
}

/// Runs `test` once more, in a process of its own that is told the `case`: behind the program and
/// arguments of `wrapper`, and as `configure` wants it.
pub(crate) fn run(test: &str, case: &str, wrapper: &[&str], configure: impl FnOnce(&mut Command)) {
    let me = std::env::current_exe().unwrap();
    let mut command = match wrapper {
        [] => Command::new(&me),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(&me);
            command
        }
    };
    configure(&mut command);
    finish(command, test, case, |_| {});
}

/// The same for a test that is ignored; what it says is shown.
pub(crate) fn run_ignored(test: &str, case: &str, configure: impl FnOnce(&mut Command)) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    configure(&mut command);
    command.args([test, "--exact", "--ignored", "--nocapture"]).env(VARIABLE, case);
    assert!(command.status().unwrap().success(), "{case}");
}

/// Runs `test` once more, in a process of its own that is told the `case`, and tells which process
/// that is.
pub(crate) fn run_with(test: &str, case: &str, on_start: impl FnOnce(&Child)) {
    finish(Command::new(std::env::current_exe().unwrap()), test, case, on_start);
}

fn finish(mut command: Command, test: &str, case: &str, on_start: impl FnOnce(&Child)) {
    command.args([test, "--exact", "--nocapture"]).env(VARIABLE, case);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    on_start(&child);
    let output = child.wait_with_output().unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{case}: {out}{err}");
}

/// Whether this process runs this test only. If not, the test has been run in one that does.
pub(crate) fn is_alone(test: &str) -> bool {
    if case().is_some() {
        return true;
    }
    run(test, "alone", &[], |_| {});
    false
}
