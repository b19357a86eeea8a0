//! The sockets: non-blocking, and watched by an epoll only for what is wanted of them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, sockopt,
};

/// A socket that is watched.
pub(super) struct Socket {
    fd: OwnedFd,
    data: u64,
    watched: EventFlags,
}

impl Socket {
    /// Its events come with `data`. It is not watched yet.
    pub(super) fn new(fd: OwnedFd, data: u64) -> Self {
        Self { fd, data, watched: EventFlags::empty() }
    }

    /// Has it watched for these events. Without any it is not watched at all: an end or an error of
    /// which nothing is to be made yet would be told again and again.
    pub(super) fn watch(&mut self, epoll: &OwnedFd, wanted: EventFlags) -> io::Result<()> {
        if wanted == self.watched {
            return Ok(());
        }
        let data = EventData::new_u64(self.data);
        match (self.watched.is_empty(), wanted.is_empty()) {
            (_, true) => epoll::delete(epoll, &self.fd)?,
            (true, false) => epoll::add(epoll, &self.fd, data, wanted)?,
            (false, false) => epoll::modify(epoll, &self.fd, data, wanted)?,
        }
        self.watched = wanted;
        Ok(())
    }

    /// Reads what is there: `None` if that is nothing yet, 0 at the end.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match rustix::net::recv(&self.fd, &mut *buffer, RecvFlags::empty()) {
                Ok((read, _)) => return Ok(Some(read)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Writes as much as it takes.
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut written = 0;
        while written < bytes.len() {
            match rustix::net::send(&self.fd, &bytes[written..], SendFlags::NOSIGNAL) {
                Ok(sent) => written += sent,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(written)
    }

    /// Nothing more is written.
    pub(super) fn end_writing(&self) {
        // Fails only where there is no connection any more.
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Write);
    }

    /// Whether the connection that was begun is there.
    ///
    /// # Errors
    /// It is not, and will not be.
    pub(super) fn connected(&self) -> io::Result<()> {
        sockopt::socket_error(&self.fd)??;
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The next connection that waits; `None` if none does.
pub(super) fn accept(listener: &Socket) -> io::Result<Option<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    match rustix::net::accept_with(&listener.fd, flags) {
        Ok(fd) => {
            // Of no consequence where it fails.
            let _ = sockopt::set_tcp_nodelay(&fd, true);
            Ok(Some(fd))
        }
        // Those that have gone again, too.
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED | Errno::PROTO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Begins a connection.
pub(super) fn connect(address: SocketAddr) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(family(address.ip()), SocketType::STREAM, flags, None)?;
    let _ = sockopt::set_tcp_nodelay(&fd, true);
    match rustix::net::connect(&fd, &address) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(fd),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether an address is one of this machine's: the kernel would send from it what is sent to it.
/// Nothing is sent for that.
pub(super) fn is_own(address: IpAddr) -> bool {
    let flags = SocketFlags::CLOEXEC;
    let from = || -> io::Result<Option<SocketAddr>> {
        let fd = rustix::net::socket_with(family(address), SocketType::DGRAM, flags, None)?;
        rustix::net::connect(&fd, &SocketAddr::new(address, 9))?;
        Ok(rustix::net::getsockname(&fd)?.try_into().ok())
    };
    // Without a route there is no connection either.
    from().is_ok_and(|from| from.is_some_and(|from| from.ip() == address))
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    }
}
