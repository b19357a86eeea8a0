//! How much memory the processes of one sandbox use, read from `/proc`. For the watch.
//!
//! The processes are found by walking from the sandbox's first process down the lists of children:
//! an orphan becomes a child of the first one, so that none is ever outside. A process that moves
//! while the walk passes may be missed; the next look finds it.
//!
//! The files of `/proc` are the kernel's; names of programs, which a command chooses, are not
//! read.

use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

/// No more processes than this are looked at.
const MOST_PROCESSES: usize = 8192;
/// No more open files than this are looked at.
const MOST_FILES: usize = 65_536;

/// What one look at all processes found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Processes {
    /// Their numbers, the first process's first.
    pub(super) pids: Vec<i32>,
    /// The bytes that they use, memory which several of them share counted for each.
    pub(super) bytes: u64,
}

/// Bytes that a process uses.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Status {
    /// Private and shared memory, in swap or not, but no memory of mapped files, which the kernel
    /// can have back; and the tables that lead to it.
    bytes: u64,
    threads: u64,
}

/// Looks at the processes of the sandbox whose first process has this number.
pub(super) fn processes(init: i32) -> Processes {
    let mut found = Processes::default();
    let mut waiting = vec![init];
    let mut buffer = Vec::new();
    while let Some(pid) = waiting.pop() {
        if found.pids.len() >= MOST_PROCESSES {
            break;
        }
        let Some(text) = read(&format!("/proc/{pid}/status"), &mut buffer) else { continue };
        let status = parse_status(text);
        found.pids.push(pid);
        found.bytes = found.bytes.saturating_add(status.bytes);
        if status.threads <= 1 {
            children(pid, pid, &mut buffer, &mut waiting);
            continue;
        }
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for thread in threads.flatten().take(MOST_PROCESSES) {
            let number = thread.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(thread) = number {
                children(pid, thread, &mut buffer, &mut waiting);
            }
        }
    }
    found
}

/// Whether this kernel has what [`processes`] needs.
pub(super) fn is_possible() -> bool {
    let thread = rustix::thread::gettid().as_raw_nonzero();
    fs::read(format!("/proc/self/task/{thread}/children")).is_ok()
}

fn children(pid: i32, thread: i32, buffer: &mut Vec<u8>, into: &mut Vec<i32>) {
    if let Some(text) = read(&format!("/proc/{pid}/task/{thread}/children"), buffer) {
        into.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
}

/// The whole file, which ends with the process that it is about.
fn read<'a>(path: &str, buffer: &'a mut Vec<u8>) -> Option<&'a str> {
    buffer.clear();
    fs::File::open(path).ok()?.read_to_end(buffer).ok()?;
    // The name of the program may be anything.
    let text = buffer.iter_mut().filter(|byte| !byte.is_ascii());
    text.for_each(|byte| *byte = b'?');
    std::str::from_utf8(buffer).ok()
}

fn parse_status(text: &str) -> Status {
    let bytes = ["RssAnon", "RssShmem", "VmSwap", "VmPTE"];
    Status {
        bytes: bytes.iter().map(|name| kilobytes(text, name)).sum(),
        threads: number(text, "Threads"),
    }
}

/// Bytes that processes use, each page counted once however many share it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exact {
    /// Their own memory.
    pub(super) own: u64,
    /// Memory in files without a disk, and anonymous memory that was shared on purpose.
    pub(super) shared: u64,
}

/// What the processes use, exactly. Slow: the kernel visits every page; those whose turn has not
/// come when the time is up count as if they shared nothing. `None` where it may not be read.
pub(super) fn exact(pids: &[i32], deadline: Instant) -> Option<Exact> {
    let mut buffer = Vec::new();
    let (mut exact, mut any) = (Exact::default(), false);
    for pid in pids {
        if Instant::now() >= deadline {
            let text = read(&format!("/proc/{pid}/status"), &mut buffer);
            exact.own += text.map_or(0, |text| parse_status(text).bytes);
            continue;
        }
        let Some(text) = read(&format!("/proc/{pid}/smaps_rollup"), &mut buffer) else { continue };
        any |= !text.is_empty();
        exact.own += kilobytes(text, "Pss_Anon") + kilobytes(text, "SwapPss");
        exact.shared += kilobytes(text, "Pss_Shmem");
        if let Some(text) = read(&format!("/proc/{pid}/status"), &mut buffer) {
            exact.own += kilobytes(text, "VmPTE");
        }
    }
    any.then_some(exact)
}

/// The value of a line `name:   123 kB`, in bytes; 0 where there is none.
fn kilobytes(text: &str, name: &str) -> u64 {
    number(text, name).saturating_mul(1024)
}

fn number(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let value = value.and_then(|value| value.split_ascii_whitespace().next());
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// What is in files that have no name, and live as long as a process holds them open.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Nameless {
    /// Memory (`memfd_create(2)`).
    pub(super) memory: u64,
    /// Removed files of the file system asked for.
    pub(super) disk: u64,
}

/// Looks through the open files of the processes. `device` is the workspace's file system.
pub(super) fn nameless_files(pids: &[i32], device: u64) -> Nameless {
    let mut found = Nameless::default();
    let mut seen = HashSet::new();
    let mut left = MOST_FILES;
    for pid in pids {
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for file in files.flatten() {
            left -= 1;
            if left == 0 {
                return found;
            }
            let path = file.path();
            let Ok(target) = fs::read_link(&path) else { continue };
            if !target.as_os_str().as_bytes().ends_with(b" (deleted)") {
                continue;
            }
            // Never opened: that of a FIFO would wait.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            if !metadata.is_file() || !seen.insert((metadata.dev(), metadata.ino())) {
                continue;
            }
            let bytes = metadata.blocks().saturating_mul(512);
            if metadata.dev() == device && metadata.nlink() == 0 {
                found.disk += bytes;
            } else if target.as_os_str().as_bytes().starts_with(b"/memfd:") {
                found.memory += bytes;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_status_is_read_by_name() {
        let text = "Name:\tRssAnon: 5 kB\nVmPTE:\t      44 kB\nVmSwap:\t 1 kB\nRssAnon:\t     100 kB\n\
                    RssFile:\t    9000 kB\nRssShmem:\t       3 kB\nThreads:\t7\n";
        let expected = Status { bytes: (44 + 1 + 100 + 3) * 1024, threads: 7 };
        assert_eq!(parse_status(text), expected);
        assert_eq!(parse_status(""), Status::default());
        assert_eq!(kilobytes("VmPTE: 99999999999999999999 kB", "VmPTE"), 0);
    }

    #[test]
    fn all_descendants_are_found_and_counted() {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "(sleep 60 & echo; wait) & echo; read x; kill $!"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut two_lines = [0; 2];
        child.stdout.as_mut().unwrap().read_exact(&mut two_lines).unwrap();
        let pid = child.id() as i32;
        let found = processes(pid);
        assert_eq!((found.pids.len(), found.pids[0]), (3, pid), "{found:?}");
        assert!(found.bytes > 4096, "{found:?}");
        let later = Instant::now() + std::time::Duration::from_secs(60);
        let Exact { own, shared } = exact(&found.pids, later).unwrap();
        // A process that had just been started may have grown meanwhile.
        let most = processes(pid).bytes.max(found.bytes);
        assert!(0 < own && own + shared <= most, "{own} {shared} {most} {found:?}");
        assert_eq!(exact(&found.pids, Instant::now()), None, "nothing was read exactly");
        for pid in &found.pids[1..] {
            let _ = rustix::process::kill_process(
                rustix::process::Pid::from_raw(*pid).unwrap(),
                rustix::process::Signal::KILL,
            );
        }
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        child.wait().unwrap();
        assert_eq!(processes(pid), Processes::default());
    }

    #[test]
    fn files_without_a_name_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().metadata().unwrap().dev();
        let before = nameless_files(&[std::process::id() as i32], device);
        let mut removed = tempfile::tempfile_in(dir.path()).unwrap();
        removed.write_all(&[7; 1 << 20]).unwrap();
        removed.sync_all().unwrap();
        let memory = rustix::fs::memfd_create(c"x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&memory, &[7; 1 << 20]).unwrap();
        let after = nameless_files(&[std::process::id() as i32], device);
        // Other tests of this process have such files, too.
        assert!(
            after.disk + after.memory >= before.disk.min(1) + (1 << 20),
            "{before:?} {after:?}"
        );
        assert!(after.disk >= 1 << 20 && after.memory >= 1 << 20, "{before:?} {after:?}");
    }
}
