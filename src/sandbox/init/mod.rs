//! The first process of a warm sandbox, seen from the engine: its program, and the socket to it.
//!
//! `program.rs` tells what it does; `message` is what both sides say. A `room` has one for each
//! warm sandbox, and never waits for it: the socket does not block.

mod message;

use std::ffi::{CString, OsString};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType,
};

use super::spawn;
use message::{ASK_FIRST, DONE, ENDED, HEADER, Header, KILL, LONGEST, READY, RUN, STDIN, TRACES};

pub(super) use message::SOCKET_FD;

/// The executable; empty where it could not be built (see `build.rs`).
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tool-init"));

/// Where the program is inside a sandbox.
pub(super) const PROGRAM_PATH: &str = "/run/tool-init";

/// A command that is no longer than this can be an argument in a message.
pub(super) const INLINE_COMMAND_LIMIT: usize = LONGEST - 1024;

/// The program, for bubblewrap to read from its beginning.
///
/// # Errors
/// Of the system, and [`io::ErrorKind::Unsupported`] where this library was built without it.
pub(super) fn program() -> io::Result<OwnedFd> {
    if PROGRAM.is_empty() {
        let text = "this library was built without the program that keeps sandboxes warm";
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    spawn::memory_file(c"tool-init", PROGRAM)
}

/// What the process says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// It waits for its first run.
    Ready,
    /// The main process of this run has ended. What it left behind still dies.
    Ended {
        /// The run.
        run: u32,
    },
    /// No process of this run is left.
    Done {
        /// The run.
        run: u32,
        /// How the main process ended: its wait status, or why there never was one.
        end: Result<i32, i32>,
        /// Whether it left something that the next run would find.
        traces: bool,
    },
}

/// The standard streams of a command. Without a standard input it reads nothing.
#[derive(Clone, Copy)]
pub(super) struct Stdio<'a> {
    pub(super) stdin: Option<BorrowedFd<'a>>,
    pub(super) stdout: BorrowedFd<'a>,
    pub(super) stderr: BorrowedFd<'a>,
}

/// The engine's end of the socket. Closing it ends the process, and the sandbox with it.
pub(super) struct Link(OwnedFd);

impl Link {
    /// A link, and the process's end, which is to be its [`SOCKET_FD`].
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, its) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok((Self(ours), its))
    }

    /// Has the shell run, with these arguments, streams and script.
    ///
    /// # Errors
    /// Arguments that do not fit into a message or have a NUL in them; a process that is gone.
    pub(super) fn run(
        &self,
        run: u32,
        argv: &[OsString],
        Stdio { stdin, stdout, stderr }: Stdio<'_>,
        script: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let flag = if stdin.is_some() { STDIN } else { 0 };
        let header = Header { kind: RUN, flag, run, numbers: [argv.len() as i32, 0] };
        let mut message = header.to_bytes().to_vec();
        for argument in argv {
            let argument = CString::new(argument.as_bytes()).map_err(|_| spawn::embedded_nul())?;
            message.extend_from_slice(argument.as_bytes_with_nul());
        }
        if message.len() > LONGEST {
            return Err(Errno::TOOBIG.into());
        }
        let fds = [stdin, Some(stdout), Some(stderr), script];
        let fds: Vec<_> = fds.into_iter().flatten().collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        rustix::net::sendmsg(
            &self.0,
            &[IoSlice::new(&message)],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    /// Has it kill what runs under this number: with `ask_first`, after a SIGTERM and half a
    /// second. Nothing happens if that has ended.
    ///
    /// # Errors
    /// A process that is gone, or takes no orders.
    pub(super) fn kill(&self, run: u32, ask_first: bool) -> io::Result<()> {
        let flag = if ask_first { ASK_FIRST } else { 0 };
        let bytes = Header { kind: KILL, flag, run, numbers: [0; 2] }.to_bytes();
        rustix::net::send(&self.0, &bytes, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// What it has said next; `None` if nothing just now.
    ///
    /// # Errors
    /// A process that is gone ([`io::ErrorKind::UnexpectedEof`]).
    pub(super) fn receive(&self) -> io::Result<Option<Said>> {
        let mut bytes = [0; HEADER];
        loop {
            let received = rustix::net::recvmsg(
                &self.0,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut Default::default(),
                RecvFlags::empty(),
            );
            let length = match received {
                Ok(message) => message.bytes,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            };
            let Some(header) = Header::parse(&bytes[..length]) else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            let Header { kind, flag, run, numbers: [status, errno] } = header;
            return Ok(Some(match kind {
                READY => Said::Ready,
                ENDED => Said::Ended { run },
                DONE => Said::Done {
                    run,
                    end: if errno == 0 { Ok(status) } else { Err(errno) },
                    traces: flag & TRACES != 0,
                },
                _ => continue,
            }));
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
