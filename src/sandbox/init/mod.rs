//! The first process of a jail, seen from the engine: its program, and the socket to it.
//!
//! `program.rs` tells what it does; `message` is what both sides say. A `jail` has one, and never
//! waits for it: the socket does not block.

pub(super) mod message;

use std::ffi::{CString, OsString};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{MemfdFlags, Mode, SealFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use super::spawn;
use message::{
    ASK_FIRST, DONE, DRAIN, EARLIER_ENDED, ENDED, FAILED, HEADER, Header, KEPT, KILL, LONGEST,
    MAY_KEEP, MOST_FDS, MOST_NAMES, NAME_LENGTH, READY, REST, RUN, SET_UP, SIGNAL, WITH_INPUT,
    WITH_SCRIPT, WITH_VERDICT, handle,
};

pub(super) use message::{SOCKET_FD, VERDICT_FD};

/// The executable; empty where it could not be built (see `build.rs`).
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tool-init"));

/// The program, in a file that exists in memory only, to be executed by its descriptor. It may be
/// executed and not read, so that the kernel keeps processes of the same user from looking into
/// one that runs it, from its first moment.
///
/// # Errors
/// Of the system, and [`io::ErrorKind::Unsupported`] where this library was built without it.
pub(super) fn program() -> io::Result<OwnedFd> {
    if PROGRAM.is_empty() {
        let text = "this library was built without the first process of its sandboxes";
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = match rustix::fs::memfd_create(c"tool-init", flags | MemfdFlags::EXEC) {
        // Linux before 6.3, where each may be executed.
        Err(Errno::INVAL) => rustix::fs::memfd_create(c"tool-init", flags)?,
        made => made?,
    };
    spawn::write_at_start(file.as_fd(), PROGRAM)?;
    rustix::fs::fchmod(&file, Mode::XUSR | Mode::XGRP | Mode::XOTH)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file)
}

/// What the process says.
#[derive(Debug)]
pub(super) enum InitEvent {
    /// The jail is complete, and waits for its first run. It has handed over what was wanted.
    Ready(Handles),
    /// The step with this number failed; the process ends.
    Failed(usize, Errno),
    /// What is said of a run.
    Run(RunEvent),
}

/// What the process says of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RunEvent {
    /// The main process of this run has ended. What it left behind still dies.
    Ended {
        /// The run.
        run: u32,
        /// The main process's wait status.
        status: i32,
    },
    /// What it left behind did not end by itself: it is asked to, or goes on running.
    Rest {
        /// The run.
        run: u32,
        /// How many processes, at most [`message::MOST_COUNTED`].
        count: u32,
        /// Their names, as [`message::REST`] has them.
        names: Vec<u8>,
        /// Whether they go on running.
        is_kept: bool,
    },
    /// No process of this run is left, but for those that go on running.
    Done {
        /// The run.
        run: u32,
        /// How the main process ended: its wait status, or why there never was one.
        end: Result<i32, i32>,
        /// Whether what earlier runs had left running was ended with it.
        earlier_ended: bool,
    },
}

/// Descriptors that a first process has handed over, each with its [`handle`].
#[derive(Debug, Default)]
pub(super) struct Handles(Vec<(i32, OwnedFd)>);

impl Handles {
    /// What came with the sum of its handles: one descriptor for each, in their order.
    fn new(sum: i32, fds: impl Iterator<Item = OwnedFd>) -> Self {
        let handles = (0..handle::MOST).map(|bit| 1 << bit).filter(|handle| sum & handle != 0);
        Self(handles.zip(fds).collect())
    }

    /// Puts one more in.
    pub(super) fn put(&mut self, handle: i32, fd: OwnedFd) {
        self.0.push((handle, fd));
    }

    /// Takes one out, if it is there.
    pub(super) fn take(&mut self, handle: i32) -> Option<OwnedFd> {
        let index = self.0.iter().position(|(which, _)| *which == handle)?;
        Some(self.0.swap_remove(index).1)
    }
}

/// A program to run: the jail's own, with these arguments and files.
pub(super) struct Run<'a> {
    /// Its `$0` and its arguments.
    pub(super) argv: &'a [OsString],
    /// Its standard input; `/dev/null` if there is none.
    pub(super) stdin: Option<BorrowedFd<'a>>,
    /// Its standard output.
    pub(super) stdout: BorrowedFd<'a>,
    /// Its standard error.
    pub(super) stderr: BorrowedFd<'a>,
    /// What it gets as descriptor 5.
    pub(super) script: Option<BorrowedFd<'a>>,
    /// What it gets as [`VERDICT_FD`].
    pub(super) verdict: Option<BorrowedFd<'a>>,
    /// Whether what it leaves running is to go on.
    pub(super) may_keep: bool,
}

/// The engine's end of the socket. Closing it ends the process, and the jail with it.
pub(super) struct InitSocket(OwnedFd);

impl InitSocket {
    /// The engine's end, and the process's, which is to be its [`SOCKET_FD`].
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

    /// Has it set the jail up, and hand over what is `wanted`, a sum of [`handle`]s. `steps` are as
    /// many as `count`, as [`message::step`] has them. `mounts` are the first sources.
    ///
    /// # Errors
    /// More than fits into a message; a process that is gone.
    pub(super) fn set_up(
        &self,
        steps: &[u8],
        count: usize,
        wanted: i32,
        mounts: &[OwnedFd],
    ) -> io::Result<()> {
        let header = Header { kind: SET_UP, flag: 0, run: 0, numbers: [count as i32, wanted] };
        let message = [&header.to_bytes(), steps].concat();
        if message.len() > LONGEST {
            let text = "the paths that the sandbox shows are too long";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let mounts: Vec<_> = mounts.iter().map(AsFd::as_fd).collect();
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !mounts.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&mounts)) {
            return Err(Errno::TOOBIG.into());
        }
        let message = [IoSlice::new(&message)];
        rustix::net::sendmsg(&self.0, &message, &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Has it run something under this number.
    ///
    /// # Errors
    /// Arguments that do not fit into a message or have a NUL in them; a process that is gone.
    pub(super) fn run(&self, number: u32, run: &Run<'_>) -> io::Result<()> {
        let with = |given: bool, flag| if given { flag } else { 0 };
        let flag = with(run.stdin.is_some(), WITH_INPUT)
            | with(run.script.is_some(), WITH_SCRIPT)
            | with(run.verdict.is_some(), WITH_VERDICT)
            | with(run.may_keep, MAY_KEEP);
        let numbers = [run.argv.len() as i32, 0];
        let mut message = Header { kind: RUN, flag, run: number, numbers }.to_bytes().to_vec();
        for argument in run.argv {
            let argument = CString::new(argument.as_bytes()).map_err(|_| spawn::embedded_nul())?;
            message.extend_from_slice(argument.as_bytes_with_nul());
        }
        if message.len() > LONGEST {
            return Err(Errno::TOOBIG.into());
        }
        let fds = [run.stdin, Some(run.stdout), Some(run.stderr), run.script, run.verdict];
        let fds: Vec<_> = fds.into_iter().flatten().collect();
        self.send(&message, &fds)
    }

    /// Has it read these pipes to their ends, and forget what comes.
    ///
    /// # Errors
    /// A process that is gone, or takes no orders.
    pub(super) fn drain(&self, pipes: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send(&Header { kind: DRAIN, flag: 0, run: 0, numbers: [0; 2] }.to_bytes(), pipes)
    }

    /// Sends a message with at most five descriptors.
    fn send(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(5))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(fds));
        let message = [IoSlice::new(message)];
        rustix::net::sendmsg(&self.0, &message, &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Has it kill what runs under this number: with `ask_first`, after a SIGTERM and half a
    /// second, and without what earlier runs have left, if that can be done; else with everything
    /// in the jail. Nothing happens if that has ended.
    ///
    /// # Errors
    /// A process that is gone, or takes no orders.
    pub(super) fn kill(&self, run: u32, ask_first: bool) -> io::Result<()> {
        let flag = if ask_first { ASK_FIRST } else { 0 };
        self.order(Header { kind: KILL, flag, run, numbers: [0; 2] })
    }

    /// Has it send a signal to the process group of the main process of a run. Nothing happens if
    /// that has ended.
    ///
    /// # Errors
    /// A process that is gone, or takes no orders.
    pub(super) fn signal(&self, run: u32, signal: i32) -> io::Result<()> {
        self.order(Header { kind: SIGNAL, flag: 0, run, numbers: [signal, 0] })
    }

    fn order(&self, header: Header) -> io::Result<()> {
        rustix::net::send(&self.0, &header.to_bytes(), SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// What it has said next; `None` if nothing just now.
    ///
    /// # Errors
    /// A process that is gone ([`io::ErrorKind::UnexpectedEof`]).
    pub(super) fn receive(&self) -> io::Result<Option<InitEvent>> {
        let mut bytes = [0; HEADER + MOST_NAMES * (NAME_LENGTH + 1)];
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(handle::MOST))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let received = rustix::net::recvmsg(
                &self.0,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            );
            let length = match received {
                Ok(message) => message.bytes,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            };
            let mut received = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    received.extend(fds);
                }
            }
            let Some(header) = Header::parse(&bytes[..length]) else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            let Header { kind, flag, run, numbers: [first, errno] } = header;
            return Ok(Some(match kind {
                READY => InitEvent::Ready(Handles::new(first, received.into_iter())),
                FAILED => InitEvent::Failed(run as usize, Errno::from_raw_os_error(first)),
                ENDED => InitEvent::Run(RunEvent::Ended { run, status: first }),
                REST | KEPT => {
                    let (names, count) = (bytes[HEADER..length].to_vec(), first.unsigned_abs());
                    let is_kept = kind == KEPT;
                    InitEvent::Run(RunEvent::Rest { run, count, names, is_kept })
                }
                DONE => InitEvent::Run(RunEvent::Done {
                    run,
                    end: if errno == 0 { Ok(first) } else { Err(errno) },
                    earlier_ended: flag & EARLIER_ENDED != 0,
                }),
                _ => continue,
            }));
        }
    }
}

impl AsFd for InitSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
