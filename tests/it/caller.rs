//! What the caller of the tests must not decide: who may enter a directory. (What reaches the
//! program: `tests/program`.)

use std::os::unix::fs::PermissionsExt;

/// A temporary directory that others may pass through, whatever the umask is: as root's, commands
/// run as another user.
pub(crate) fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o711)).unwrap();
    directory
}

/// The image that slots are to have in the tests that can do with one, as `dir:/path`:
/// `tests/image-of-host` makes one. By default they have the host's files.
#[allow(dead_code, reason = "not all test programs use it")]
pub(crate) fn image() -> Option<String> {
    std::env::var("TOOL_EXECUTOR_TEST_IMAGE").ok()
}
