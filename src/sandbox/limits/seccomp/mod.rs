//! The system call filter of sandboxes (`seccomp(2)`).
//!
//! A filter takes away what no tool needs and an attacker could use: against the kernel, against
//! the sandbox's first process, which has the same user, and against the host's terminal. `rules`
//! says what that is; here the finished program is kept, for bubblewrap to load (`--seccomp FD`).
//! It holds for everything that runs in the sandbox, for ever, bubblewrap's own processes in it
//! included.
//!
//! The filter is no wall of its own: what a sandbox may see is decided by its namespaces.

#[cfg(all(
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"),
    target_pointer_width = "64"
))]
mod rules;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};

use super::super::spawn;

/// A filter that is ready to be loaded.
#[derive(Debug)]
pub(crate) struct Filter {
    /// The program as the kernel takes it. Sealed: sandboxes are given it, read-only.
    file: OwnedFd,
}

impl Filter {
    /// Builds the filter for this machine.
    ///
    /// # Errors
    /// Where there is none for its architecture, or no file for it: as one line for people.
    pub(crate) fn new() -> Result<Self, String> {
        let program = program()?;
        let file = sealed_file(&program).map_err(|error| format!("no file for it: {error}"))?;
        Ok(Self { file })
    }

    /// The program, to be read from its beginning by one start of bubblewrap: a reader moves its
    /// offset, so that every start needs a file of its own.
    ///
    /// # Errors
    /// Those of opening a file.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        match rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => Ok(file),
            // There may be no `/proc`.
            Err(_) => copy(self.file.as_fd()),
        }
    }
}

fn sealed_file(content: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create(c"tool-seccomp", flags)?;
    spawn::write_at_start(file.as_fd(), content)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file)
}

fn copy(file: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut content = vec![0; rustix::fs::fstat(file)?.st_size as usize];
    let count = rustix::io::pread(file, &mut content, 0)?;
    content.truncate(count);
    sealed_file(&content)
}

/// The program as bytes.
#[cfg(all(
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"),
    target_pointer_width = "64"
))]
fn program() -> Result<Vec<u8>, String> {
    let program = rules::program().map_err(|error| format!("it cannot be built: {error}"))?;
    // The kernel's `struct sock_filter`, in this machine's byte order.
    let bytes = program.iter().flat_map(|step| {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&step.code.to_ne_bytes());
        bytes[2] = step.jt;
        bytes[3] = step.jf;
        bytes[4..].copy_from_slice(&step.k.to_ne_bytes());
        bytes
    });
    Ok(bytes.collect())
}

#[cfg(not(all(
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"),
    target_pointer_width = "64"
)))]
fn program() -> Result<Vec<u8>, String> {
    Err(format!("there is none for {}", std::env::consts::ARCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(file: &OwnedFd) -> Vec<u8> {
        let mut content = vec![0; 64 * 1024];
        let count = rustix::io::read(file, &mut content).unwrap();
        content.truncate(count);
        content
    }

    #[test]
    fn every_start_reads_the_whole_program_and_none_can_change_it() {
        let filter = Filter::new().unwrap();
        let first = filter.open().unwrap();
        let second = filter.open().unwrap();
        let content = read_all(&first);
        assert!(content.len() > 100 && content.len().is_multiple_of(8), "{}", content.len());
        assert_eq!(read_all(&second), content);
        assert_eq!(read_all(&copy(filter.file.as_fd()).unwrap()), content);
        assert!(rustix::io::pwrite(&filter.file, b"x", 0).is_err());
        assert!(rustix::io::pwrite(&first, b"x", 0).is_err());
        assert!(rustix::fs::ftruncate(&filter.file, 0).is_err());
    }
}
