//! Files put into a trajectory's machine, and files that go to a callback.

use std::ffi::{c_char, c_int, c_void};
use std::io::{self, Read, Write};
use std::path::Path;

use serde_json::json;

use super::artifact::{Borrowed, request};
use super::executor::te_executor;
use super::handle::hold;
use super::status::te_status::TE_NULL;
use super::status::{Fault, guard, te_status};
use super::text::{Out, te_buffer, text};
use crate::artifact::{PutFiles, PutSummary};

/// Gives the next bytes of what is put: writes at most `len` of them to `data` and returns how many
/// that are, 0 at the end, or less than 0 if they cannot be had, which ends the put. `user` is what
/// was given with it. Called on the thread that puts, while that waits; it must not throw.
pub type te_read_fn =
    Option<unsafe extern "C" fn(user: *mut c_void, data: *mut c_char, len: usize) -> i64>;

/// Takes the next bytes of what is copied, all of them: 0 if it has, else it ends the copy. `user`
/// is what was given with it. Called on the thread that copies, while that waits; it must not
/// throw.
pub type te_write_fn =
    Option<unsafe extern "C" fn(user: *mut c_void, data: *const c_char, len: usize) -> c_int>;

/// A function of the host's, with what it wants to be given.
struct Callback<F> {
    function: F,
    user: *mut c_void,
}

// SAFETY: it is called on the host's own thread only, which waits for it: the library reads what is
// put, and writes what is copied, on the thread that asks for it.
unsafe impl<F> Send for Callback<F> {}

impl Read for Callback<unsafe extern "C" fn(*mut c_void, *mut c_char, usize) -> i64> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the caller's promise: a function that takes this; the buffer is as long as said.
        let read = unsafe { (self.function)(self.user, buffer.as_mut_ptr().cast(), buffer.len()) };
        match usize::try_from(read) {
            Ok(read) if read <= buffer.len() => Ok(read),
            Ok(read) => {
                let text = format!("the reader gave {read} bytes, and {} fit", buffer.len());
                Err(io::Error::new(io::ErrorKind::InvalidData, text))
            }
            Err(_) => Err(io::Error::other("the reader failed")),
        }
    }
}

impl Write for Callback<unsafe extern "C" fn(*mut c_void, *const c_char, usize) -> c_int> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: as above.
        match unsafe { (self.function)(self.user, bytes.as_ptr().cast(), bytes.len()) } {
            0 => Ok(bytes.len()),
            _ => Err(io::Error::other("the writer failed")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Puts a file, or what a tar stream has, into a trajectory's machine; in order and blocking as
/// te_artifact_read(). A trajectory that has no slot yet begins with this. A tool must not put
/// files into its own trajectory's machine: it would wait for itself.
///
/// `request` is a JSON object: {"path": "/srv/task/run.sh", "kind": "file", "mode": 493, "owner":
/// "root", "size": 12}; only "path" is needed. "kind" is "file" or "tar" (plain or compressed by
/// gzip, into the directory "path"); "mode" is a file's, 420 (octal 644) by default; "owner" is a
/// user of the machine, and after a colon a group, where a slot has several ids; "keep_owners" has
/// a tar stream say whose its entries are; "size" says beforehand how long a file is.
///
/// `read` gives the bytes. Nothing half is left after an error: TE_DISK_FULL if there is no room,
/// TE_BAD_ARCHIVE, TE_REFUSED, and those of reading. Of a tree that goes into a directory that was
/// there, the message says how many entries are in place.
///
/// On success `*info` is a JSON object {"path", "bytes", "entry_count", "skipped"}, the caller's,
/// to be freed by te_buffer_free(); `info` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_files_put(
    executor: *const te_executor,
    trajectory: *const c_char,
    trajectory_len: usize,
    request: *const c_char,
    request_len: usize,
    read: te_read_fn,
    user: *mut c_void,
    info: *mut te_buffer,
) -> te_status {
    guard(|| {
        let info = Out::buffer(info, "info").ok();
        let trajectory = text(trajectory, trajectory_len, "trajectory")?;
        let put: PutFiles = self::request(request, request_len)?;
        let missing = || Fault::new(TE_NULL, "read is NULL: there is nothing to be put".to_owned());
        let mut from = Callback { function: read.ok_or_else(missing)?, user };
        let executor = hold(executor)?;
        let summary = executor.executor.put(trajectory, &put, &mut from)?;
        tell(info, &summary);
        Ok(())
    })
}

/// As te_files_put(), with the bytes that the file descriptor `fd` gives until its end. `fd` stays
/// the caller's, and must be one that blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_files_put_fd(
    executor: *const te_executor,
    trajectory: *const c_char,
    trajectory_len: usize,
    request: *const c_char,
    request_len: usize,
    fd: c_int,
    info: *mut te_buffer,
) -> te_status {
    guard(|| {
        let info = Out::buffer(info, "info").ok();
        let trajectory = text(trajectory, trajectory_len, "trajectory")?;
        let put: PutFiles = self::request(request, request_len)?;
        let mut from = Borrowed::new(fd)?;
        let executor = hold(executor)?;
        let summary = executor.executor.put(trajectory, &put, &mut from)?;
        tell(info, &summary);
        Ok(())
    })
}

/// Puts what is in a directory of this host – files, directories, symlinks – into a directory of a
/// trajectory's machine; as te_files_put().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_tree_put(
    executor: *const te_executor,
    trajectory: *const c_char,
    trajectory_len: usize,
    from: *const c_char,
    from_len: usize,
    directory: *const c_char,
    directory_len: usize,
    info: *mut te_buffer,
) -> te_status {
    guard(|| {
        let info = Out::buffer(info, "info").ok();
        let trajectory = text(trajectory, trajectory_len, "trajectory")?;
        let from = text(from, from_len, "from")?;
        let directory = text(directory, directory_len, "directory")?;
        let executor = hold(executor)?;
        #[cfg(target_os = "linux")]
        tell(info, &executor.executor.put_tree(trajectory, Path::new(from), directory)?);
        #[cfg(not(target_os = "linux"))]
        let _ = (info, trajectory, Path::new(from), directory, executor);
        #[cfg(not(target_os = "linux"))]
        return Err(crate::artifact::ArtifactError::Unsupported.into());
        #[cfg(target_os = "linux")]
        Ok(())
    })
}

/// As te_artifact_copy(), with `write` in the place of a file descriptor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_artifact_copy_to(
    executor: *const te_executor,
    trajectory: *const c_char,
    trajectory_len: usize,
    path: *const c_char,
    path_len: usize,
    write: te_write_fn,
    user: *mut c_void,
    bytes: *mut u64,
) -> te_status {
    guard(|| {
        let out = Out::optional(bytes, 0);
        let trajectory = text(trajectory, trajectory_len, "trajectory")?;
        let path = text(path, path_len, "path")?;
        let missing = || Fault::new(TE_NULL, "write is NULL: nothing takes the bytes".to_owned());
        let mut into = Callback { function: write.ok_or_else(missing)?, user };
        let executor = hold(executor)?;
        let copied = executor.executor.copy_artifact(trajectory, path, &mut into)?;
        out.inspect(|out| out.put(copied));
        Ok(())
    })
}

fn tell(info: Option<Out<te_buffer>>, summary: &PutSummary) {
    if let Some(info) = info {
        info.json(&json!({
            "path": summary.path,
            "bytes": summary.bytes,
            "entry_count": summary.entry_count,
            "skipped": summary.skipped,
        }));
    }
}
