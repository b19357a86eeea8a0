//! The tools `read_file` and `write_file`.
//!
//! The engine calls them on its own I/O threads with a call's arguments. They do file system work
//! in the slot's machine only (see [`paths`](super::paths)), and never wait for others, but for the
//! machine where a path is outside of the slot's directories and nothing has run in it yet:
//! what is not a regular file is refused before it is opened and again after, and every open is
//! `O_NONBLOCK`, so that no FIFO, device or lease of the model's making can hold a thread.
//!
//! Sizes are bytes. Text is read as UTF-8 with U+FFFD for what is not, and written as it is: no
//! new line is ever translated. No text or metadata that leaves here holds a path of the host.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FallocateFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use serde_json::Value;

use super::paths::{PathError, Resolved, View, file_type};
use super::reach::Reach;
use super::user::{Entered, Purpose};
use super::workspace::GONE;
use crate::tool::{JsonObject, Outcome, ToolResult, appends};

/// How often a path is resolved again because what it led to had changed before it was opened.
pub(super) const RACE_TRIES: usize = 32;

/// Why a file tool failed.
enum Failure {
    /// There is no workspace any more. Nothing was done.
    Gone,
    Outside,
    /// In a directory whose files are the kernel's.
    Kernel(&'static str),
    /// The machine that the path leads into cannot be had. Nothing was done.
    NoMachine(String),
    NotFound,
    NotAFile,
    /// A file of this many bytes.
    TooLarge(u64),
    /// Anything else, in words that name the place as the sandbox sees it.
    Other(String),
}

impl Failure {
    fn os(errno: Errno, path: &str) -> Self {
        let code = errno.raw_os_error();
        let text = io::Error::from(errno).to_string();
        let text = text.strip_suffix(&format!(" (os error {code})")).unwrap_or(&text);
        Self::Other(format!("[Errno {code}] {text}: '{path}'"))
    }

    /// The result, in the words of the reference protocol. `verb` is what was tried.
    fn into_result(self, verb: &str, given: &str, max_bytes: u64) -> ToolResult {
        let error = match self {
            Self::Gone => {
                let mut result = ToolResult::failure(Outcome::BackendFailed, GONE);
                result.may_have_executed = false;
                return result;
            }
            Self::NoMachine(why) => {
                let error = format!("cannot reach '{given}': {why}");
                let mut result = ToolResult::failure(Outcome::BackendFailed, error);
                result.may_have_executed = false;
                return result;
            }
            Self::Kernel(directory) => kernels(directory),
            Self::Outside => "Access denied: path outside workspace".to_owned(),
            Self::NotFound => format!("File not found: {given}"),
            Self::NotAFile => format!("Not a file: {given}"),
            Self::TooLarge(size) => format!("File too large: {size} bytes (max {max_bytes})"),
            Self::Other(text) => format!("Failed to {verb} file: {text}"),
        };
        ToolResult::failure(Outcome::ToolError, error)
    }
}

/// Reads a text file of at most `max_bytes` bytes. Does not wait for anything but the disk.
///
/// `{"path": string = ""}`; the output is the whole text, the metadata `path` (in the sandbox,
/// symlinks resolved) and `size` (bytes). Failures are [`Outcome::ToolError`], a path that is no
/// string is [`Outcome::InvalidCall`].
pub(crate) fn read_file<'a>(
    files: impl Into<Reach<'a>>,
    arguments: &JsonObject,
    max_bytes: u64,
) -> ToolResult {
    let given = match string_argument(arguments, "path") {
        Ok(given) => given,
        Err(error) => return ToolResult::failure(Outcome::InvalidCall, error),
    };
    match read(files.into(), given, max_bytes) {
        Ok((bytes, path)) => {
            let size = bytes.len() as u64;
            let text = match String::from_utf8(bytes) {
                Ok(text) => text,
                Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
            };
            ToolResult { metadata: metadata(path, size), ..ToolResult::ok(text) }
        }
        Err(failure) => failure.into_result("read", given, max_bytes),
    }
}

/// Writes a text of at most `max_bytes` bytes to a file, made with its directories if it does not
/// exist, else replaced in place, or added to: its mode and its other names stay. Does not wait for
/// anything but the disk.
///
/// `{"path": string = "", "content": string = "", "append": boolean = false}`; the metadata are
/// those of [`read_file`], and of a file that was added to `appended_bytes`. Failures are
/// [`Outcome::ToolError`], arguments of other types [`Outcome::InvalidCall`]. A file is left as it
/// was by every failure that can be known beforehand, a full disk included.
pub(crate) fn write_file<'a>(
    files: impl Into<Reach<'a>>,
    arguments: &JsonObject,
    max_bytes: u64,
) -> ToolResult {
    let strings = string_argument(arguments, "path")
        .and_then(|given| Ok((given, string_argument(arguments, "content")?)));
    let wanted = strings.and_then(|strings| Ok((strings, appends(arguments)?)));
    let ((given, content), append) = match wanted {
        Ok(wanted) => wanted,
        Err(error) => return ToolResult::failure(Outcome::InvalidCall, error),
    };
    let size = content.len() as u64;
    if size > max_bytes {
        let error = format!("Content too large: {size} bytes (max {max_bytes})");
        return ToolResult::failure(Outcome::ToolError, error);
    }
    match write(files.into(), given, content.as_bytes(), append) {
        Ok((path, total)) if append => {
            let mut metadata = metadata(path, total);
            metadata.insert("appended_bytes".to_owned(), size.into());
            let output = format!("Successfully appended {size} bytes to {given}");
            ToolResult { metadata, ..ToolResult::ok(output) }
        }
        Ok((path, _)) => {
            let output = format!("Successfully wrote {size} bytes to {given}");
            ToolResult { metadata: metadata(path, size), ..ToolResult::ok(output) }
        }
        Err(failure) => failure.into_result("write", given, max_bytes),
    }
}

/// The content of the file at `given`, and its path in the sandbox.
fn read(files: Reach<'_>, given: &str, max: u64) -> Result<(Vec<u8>, String), Failure> {
    let _entered = enter(files, given)?;
    let view = files.view();
    let mut last = Errno::AGAIN;
    for _ in 0..RACE_TRIES {
        let place = resolve(&view, given)?;
        let path = place.sandbox_path();
        match (place.rest().len(), place.found()) {
            (0, _) => return Err(Failure::NotAFile),
            (1, Some(FileType::RegularFile)) => {}
            (1, Some(_)) => return Err(Failure::NotAFile),
            _ => return Err(Failure::NotFound),
        }
        let file = match open_leaf(&place, OFlags::RDONLY) {
            Ok(Some(file)) => file,
            Ok(None) => return Err(Failure::NotAFile),
            Err(errno) if raced(errno) => {
                last = errno;
                continue;
            }
            Err(errno) => return Err(Failure::os(errno, &path)),
        };
        let os = |error: io::Error| Failure::os(errno_of(&error), &path);
        let size = file.metadata().map_err(os)?.len();
        if size > max {
            return Err(Failure::TooLarge(size));
        }
        let bytes = read_bounded(&file, max).map_err(os)?;
        if bytes.len() as u64 > max {
            // It grew meanwhile.
            let size = file.metadata().map_or(0, |now| now.len());
            return Err(Failure::TooLarge(size.max(max + 1)));
        }
        return Ok((bytes, path));
    }
    Err(Failure::os(last, &workspace_path(given)))
}

/// All that `source` has, but one byte more than `max` at most.
fn read_bounded(source: impl Read, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Puts `content` into the file at `given`, or at its end; its path in the sandbox, and its size.
fn write(
    files: Reach<'_>,
    given: &str,
    content: &[u8],
    append: bool,
) -> Result<(String, u64), Failure> {
    let size = content.len() as u64;
    let access = if append { OFlags::WRONLY | OFlags::APPEND } else { OFlags::WRONLY };
    let _entered = enter(files, given)?;
    let view = files.view();
    let mut last = Errno::AGAIN;
    for _ in 0..RACE_TRIES {
        let place = resolve(&view, given)?;
        let path = place.sandbox_path();
        let written = match (place.rest().len(), place.found()) {
            (0, _) => Err(Errno::ISDIR),
            (1, Some(FileType::RegularFile)) => match open_leaf(&place, access) {
                Ok(Some(file)) if append => add(file, content),
                Ok(Some(file)) => overwrite(file, content).map(|()| size),
                Ok(None) => return Err(not_regular(&path)),
                Err(errno) => Err(errno),
            },
            (1, Some(_)) => return Err(not_regular(&path)),
            // A file where a directory should be made.
            (_, Some(_)) => return Err(Failure::os(Errno::EXIST, &path)),
            (_, None) => create(&place)
                .and_then(|mut file| file.write_all(content).map_err(|error| errno_of(&error)))
                .map(|()| size),
        };
        match written {
            Ok(size) => return Ok((path, size)),
            Err(errno) if raced(errno) => last = errno,
            Err(errno) => return Err(Failure::os(errno, &path)),
        }
    }
    Err(Failure::os(last, &workspace_path(given)))
}

/// Why nothing is read or written in a directory whose files are the kernel's.
pub(super) fn kernels(directory: &str) -> String {
    format!("Access denied: what is in /{directory} are no files: only commands can use it")
}

fn not_regular(path: &str) -> Failure {
    Failure::Other(format!("not a regular file: '{path}'"))
}

/// Opens what the place was found to be, a regular file in an existing directory. `None` if it is
/// none any more.
pub(super) fn open_leaf(place: &Resolved, access: OFlags) -> Result<Option<File>, Errno> {
    let [name] = place.rest() else {
        return Err(Errno::NOENT);
    };
    open_regular(place.dir(), name, access)
}

/// Opens an entry of a held directory, if it is a regular file, without ever blocking. `None` if
/// it is something else; a symlink is `ELOOP`.
pub(super) fn open_regular(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    access: OFlags,
) -> Result<Option<File>, Errno> {
    let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(fd) if file_type(&fd)? == FileType::RegularFile => Ok(Some(File::from(fd))),
        // A FIFO without a reader, a socket; a directory that is to be written.
        Ok(_) | Err(Errno::NXIO | Errno::ISDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Makes the missing directories of a place, one by one beneath each other, and an empty file.
fn create(place: &Resolved) -> Result<File, Errno> {
    let (leaf, dirs) = place.rest().split_last().ok_or(Errno::ISDIR)?;
    let mut made = None;
    for name in dirs {
        let dir = made.as_ref().map_or(place.dir(), |fd: &rustix::fd::OwnedFd| fd.as_fd());
        match rustix::fs::mkdirat(dir, name, Mode::RWXU | Mode::RWXG | Mode::RWXO) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        made = Some(rustix::fs::openat(dir, name, flags, Mode::empty())?);
    }
    let dir = made.as_ref().map_or(place.dir(), |fd| fd.as_fd());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
    Ok(File::from(rustix::fs::openat(dir, leaf, flags, mode)?))
}

/// Replaces the content of a file. Its space is reserved first, and it is cut last, so that a full
/// disk does not cost the model what was in it.
fn overwrite(mut file: File, content: &[u8]) -> Result<(), Errno> {
    let size = content.len() as u64;
    reserve(&file, 0, size)?;
    file.write_all(content).and_then(|()| file.set_len(size)).map_err(|error| errno_of(&error))
}

/// Adds to the end of a file that was opened for that, and gives its size. Its space is reserved
/// first, so that a full disk does not leave a part of `content` in it.
fn add(mut file: File, content: &[u8]) -> Result<u64, Errno> {
    let size = |file: &File| file.metadata().map(|now| now.len()).map_err(|error| errno_of(&error));
    reserve(&file, size(&file)?, content.len() as u64)?;
    file.write_all(content).map_err(|error| errno_of(&error))?;
    size(&file)
}

/// Reserves space for `size` bytes at `offset`, where the file system can.
fn reserve(file: &File, offset: u64, size: u64) -> Result<(), Errno> {
    if size == 0 {
        return Ok(());
    }
    let reserved = rustix::io::retry_on_intr(|| {
        rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, offset, size)
    });
    match reserved {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// The tools act as the user that commands run as: what they make is that user's, and they reach
/// nothing that it could not. Refused where the workspace is gone.
fn enter(files: Reach<'_>, given: &str) -> Result<Option<Entered>, Failure> {
    let workspace = files.workspace();
    if !workspace.is_there() {
        return Err(Failure::Gone);
    }
    let entered = workspace.owner().map(|owner| owner.enter(Purpose::Files)).transpose();
    entered.map_err(|error| Failure::os(errno_of(&error), &workspace_path(given)))
}

fn resolve(view: &View<'_>, given: &str) -> Result<Resolved, Failure> {
    view.resolve(given).map_err(|error| match error {
        PathError::Outside => Failure::Outside,
        PathError::Kernel(directory) => Failure::Kernel(directory),
        PathError::NoMachine(why) => Failure::NoMachine(why),
        PathError::Os(errno) => Failure::os(errno, &workspace_path(given)),
    })
}

/// Whether an error says that the place is not what it was found to be.
pub(super) fn raced(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::LOOP | Errno::EXIST | Errno::NOTDIR)
}

/// What the sandbox would call a path that could not be resolved.
fn workspace_path(given: &str) -> String {
    if given.starts_with('/') { given.to_owned() } else { format!("/workspace/{given}") }
}

pub(super) fn errno_of(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// A string argument; `""` if it is missing, an error text if it is something else.
fn string_argument<'a>(arguments: &'a JsonObject, name: &str) -> Result<&'a str, String> {
    match arguments.get(name) {
        None => Ok(""),
        Some(Value::String(string)) => Ok(string),
        Some(_) => Err(format!("{name} must be a string")),
    }
}

fn metadata(path: String, size: u64) -> JsonObject {
    JsonObject::from_iter([("path".to_owned(), path.into()), ("size".to_owned(), size.into())])
}

#[cfg(test)]
mod tests;
