//! What the caller of the tests must not decide: the program's surroundings, and who may enter a
//! directory.

use std::os::unix::fs::PermissionsExt;

/// The built program, as from a fresh shell: with default signals (a caller may ignore some, as
/// `nohup` does, and programs inherit that), and without variables that it would heed.
#[cfg(feature = "server")]
#[allow(dead_code, reason = "not every test runs it")]
pub(crate) fn program() -> std::process::Command {
    let built = env!("CARGO_BIN_EXE_tool-executor");
    // It becomes the program: the process that is signalled and waited for is the right one.
    let mut command = std::process::Command::new("env");
    command.args(["--default-signal", built]);
    for (name, _) in std::env::vars_os() {
        let is_heeded = name.to_str().is_some_and(|name| {
            name.starts_with("TOOL_EXECUTOR_") || ["RUST_LOG", "NO_COLOR"].contains(&name)
        });
        if is_heeded {
            command.env_remove(name);
        }
    }
    command
}

/// A temporary directory that others may pass through, whatever the umask is: as root's, commands
/// run as another user.
#[allow(dead_code, reason = "not every test has one")]
pub(crate) fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o711)).unwrap();
    directory
}
