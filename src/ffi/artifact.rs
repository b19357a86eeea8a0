//! Artifacts: the files of a trajectory's workspace.

use std::ffi::{c_char, c_int};
use std::fs::File;
use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::executor::te_executor;
use super::handle::hold;
use super::signals::without_sigpipe;
use super::status::te_status::{TE_INVALID_ARGUMENT, TE_INVALID_JSON};
use super::status::{Fault, guard, te_status};
use super::text::{Out, object, on_a_stack, te_buffer, text};
use crate::artifact::{ArchiveArtifacts, ArchiveFormat, ListArtifacts, ReadArtifact};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Read {
    path: String,
    offset: Option<u64>,
    max_bytes: Option<u64>,
    #[serde(default)]
    sha256: bool,
    #[serde(default)]
    file_sha256: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct List {
    path: Option<String>,
    recursive: bool,
    max_entries: Option<usize>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Archive {
    path: Option<String>,
    max_bytes: Option<u64>,
    max_entries: Option<usize>,
    format: ArchiveFormat,
}

impl Archive {
    fn request(self) -> ArchiveArtifacts {
        let default = ArchiveArtifacts::default();
        ArchiveArtifacts {
            path: self.path.unwrap_or(default.path),
            max_bytes: self.max_bytes.unwrap_or(default.max_bytes),
            max_entries: self.max_entries.unwrap_or(default.max_entries),
            format: self.format,
        }
    }
}

/// A request in JSON; nothing is `{}`.
pub(super) fn request<T: DeserializeOwned + Send>(
    json: *const c_char,
    len: usize,
) -> Result<T, Fault> {
    let json = match text(json, len, "request")? {
        "" => "{}",
        json => json,
    };
    on_a_stack(json, || {
        object(json).map_err(|error| Fault::new(TE_INVALID_JSON, format!("the request: {error}")))
    })
}

/// Reads a part of a file of a trajectory's workspace, after the trajectory's earlier calls and
/// before its later ones. Blocks for its turn. A tool must not ask for its own trajectory's files:
/// it would wait for itself.
///
/// `request` is a JSON object: {"path": "a/b", "offset": 0, "max_bytes": 5000000, "sha256": false,
/// "file_sha256": false}; only "path" is needed, and 5,000,000 is the most.
///
/// On success `*content` has the bytes, and `*info` a JSON object with "path", "offset",
/// "file_size", "truncated", "mime", and the checksums that were asked for. Both are the caller's,
/// to be freed by te_buffer_free(). `info` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_artifact_read(
    executor: *const te_executor,
    trajectory: *const c_char,
    trajectory_len: usize,
    request: *const c_char,
    request_len: usize,
    content: *mut te_buffer,
    info: *mut te_buffer,
) -> te_status {
    guard(|| {
        let info = Out::buffer(info, "info").ok();
        let content = Out::buffer(content, "content")?;
        let trajectory = text(trajectory, trajectory_len, "trajectory")?;
        let read: Read = self::request(request, request_len)?;
        let executor = hold(executor)?;
        let mut request = ReadArtifact::new(read.path);
        request.offset = read.offset.unwrap_or(request.offset);
        request.max_bytes = read.max_bytes.unwrap_or(request.max_bytes);
        (request.sha256, request.file_sha256) = (read.sha256, read.file_sha256);
        let artifact = executor.executor.read_artifact(trajectory, &request)?;
        if let Some(info) = info {
            info.json(&json!({
                "path": artifact.path,
                "offset": artifact.offset,
                "file_size": artifact.file_size,
                "truncated": artifact.truncated,
                "mime": artifact.mime,
                "sha256": artifact.sha256,
                "file_sha256": artifact.file_sha256,
            }));
        }
        content.put(te_buffer::of(artifact.content));
        Ok(())
    })
}

/// Lists files of a trajectory's workspace; in order and blocking as te_artifact_read().
///
/// `request` is a JSON object: {"path": ".", "recursive": false, "max_entries": 5000}; all may be
/// left out, and so may it (a length of 0).
///
/// On success `*list` is a JSON object {"entries": [{"path", "is_dir", "size", "mtime"}, ...],
/// "truncated"}, the caller's, to be freed by te_buffer_free().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_artifact_list(
    executor: *const te_executor,
    trajectory: *const c_char,
    trajectory_len: usize,
    request: *const c_char,
    request_len: usize,
    list: *mut te_buffer,
) -> te_status {
    guard(|| {
        let out = Out::buffer(list, "list")?;
        let trajectory = text(trajectory, trajectory_len, "trajectory")?;
        let list: List = self::request(request, request_len)?;
        let executor = hold(executor)?;
        let default = ListArtifacts::default();
        let request = ListArtifacts {
            path: list.path.unwrap_or(default.path),
            recursive: list.recursive,
            max_entries: list.max_entries.unwrap_or(default.max_entries),
        };
        let listed = executor.executor.list_artifacts(trajectory, &request)?;
        let entries = listed.entries.into_iter().map(|entry| {
            json!({
                "path": entry.path,
                "is_dir": entry.is_dir,
                "size": entry.size,
                "mtime": entry.mtime,
            })
        });
        let entries: Vec<_> = entries.collect();
        out.json(&json!({"entries": entries, "truncated": listed.truncated}));
        Ok(())
    })
}

/// A .tar.gz of a trajectory's workspace, or of a part of it, in memory; in order and blocking as
/// te_artifact_read(). Larger ones go through te_archive_copy().
///
/// `request` is a JSON object: {"path": ".", "max_bytes": 5000000, "max_entries": 5000}; all may
/// be left out, and so may it (a length of 0).
///
/// On success `*archive` has the bytes, and `*info` a JSON object {"bytes", "entry_count",
/// "truncated"}. Both are the caller's, to be freed by te_buffer_free(). `info` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_artifact_archive(
    executor: *const te_executor,
    trajectory: *const c_char,
    trajectory_len: usize,
    request: *const c_char,
    request_len: usize,
    archive: *mut te_buffer,
    info: *mut te_buffer,
) -> te_status {
    guard(|| {
        let info = Out::buffer(info, "info").ok();
        let out = Out::buffer(archive, "archive")?;
        let trajectory = text(trajectory, trajectory_len, "trajectory")?;
        let archive: Archive = self::request(request, request_len)?;
        let executor = hold(executor)?;
        let (bytes, summary) =
            executor.executor.archive_artifacts(trajectory, &archive.request())?;
        if let Some(info) = info {
            info.json(&summary_json(&summary));
        }
        out.put(te_buffer::of(bytes));
        Ok(())
    })
}

fn summary_json(summary: &crate::artifact::ArchiveSummary) -> serde_json::Value {
    json!({
        "bytes": summary.bytes,
        "entry_count": summary.entry_count,
        "truncated": summary.truncated,
    })
}

/// A file descriptor of the host's, which stays its own.
pub(super) struct Borrowed(ManuallyDrop<File>);

impl Borrowed {
    pub(super) fn new(fd: c_int) -> Result<Self, Fault> {
        if fd < 0 {
            let text = format!("the file descriptor is {fd}");
            return Err(Fault::new(TE_INVALID_ARGUMENT, text));
        }
        // SAFETY: never closed by us; one that is not open gives errors, not more.
        Ok(Self(ManuallyDrop::new(unsafe { File::from_raw_fd(fd) })))
    }
}

impl io::Read for Borrowed {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        io::Read::read(&mut *self.0, bytes)
    }
}

impl Write for Borrowed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        without_sigpipe(|| self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a whole file of a trajectory's workspace to the file descriptor `fd`, without holding it
/// in memory, and says how many bytes that were; in order and blocking as te_artifact_read(). `fd`
/// stays the caller's, and must be one that blocks. After an error it has some part of the file; a
/// pipe that has no reader is TE_IO and brings no SIGPIPE. `bytes` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_artifact_copy(
    executor: *const te_executor,
    trajectory: *const c_char,
    trajectory_len: usize,
    path: *const c_char,
    path_len: usize,
    fd: c_int,
    bytes: *mut u64,
) -> te_status {
    guard(|| {
        let out = Out::optional(bytes, 0);
        let trajectory = text(trajectory, trajectory_len, "trajectory")?;
        let path = text(path, path_len, "path")?;
        let mut into = Borrowed::new(fd)?;
        let executor = hold(executor)?;
        let copied = executor.executor.copy_artifact(trajectory, path, &mut into)?;
        out.inspect(|out| out.put(copied));
        Ok(())
    })
}

/// Writes a .tar.gz to the file descriptor `fd`, as te_artifact_copy() does; the limits of
/// `request`, which is that of te_artifact_archive(), may be as large as one likes; "format": "tar"
/// is an archive that is not compressed. On success
/// `*info` is as there; it may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_archive_copy(
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
        let archive: Archive = self::request(request, request_len)?;
        let mut into = Borrowed::new(fd)?;
        let executor = hold(executor)?;
        let summary = executor.executor.copy_archive(trajectory, &archive.request(), &mut into)?;
        if let Some(info) = info {
            info.json(&summary_json(&summary));
        }
        Ok(())
    })
}
