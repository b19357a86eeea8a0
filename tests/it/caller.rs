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
