//! What the thread's epoll watches of one kept sandbox, and what an event there is about.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, EventFlags};

use crate::sandbox::jail;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// A file of the program, by the number that the program has given it: 0 to 7.
    File(u8),
    /// The pipe that the reaper reports to.
    Reports,
    /// The end of the reaper.
    Child,
    /// The end of a jail's last process.
    JailEnd,
    /// The socket to a jail's first process.
    JailSocket,
}

/// The kinds of kept sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A shell.
    Shell,
    /// A terminal.
    Tmux,
}

/// Names one kept sandbox of one thread, for ever: numbers are not used again, so that an event
/// that comes late is nobody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// What it is.
    pub(super) kind: Kind,
    /// Its number.
    pub(super) serial: u64,
}

/// The event data of the wake-up, which no sandbox's event has.
pub(super) const WAKE: u64 = u64::MAX;

impl Source {
    fn code(self) -> u64 {
        match self {
            Self::File(number) => u64::from(number & 7),
            Self::Reports => 8,
            Self::Child => 9,
            Self::JailEnd => 10,
            Self::JailSocket => 11,
        }
    }

    fn from_code(code: u64) -> Option<Self> {
        match code {
            0..=7 => Some(Self::File(code as u8)),
            8 => Some(Self::Reports),
            9 => Some(Self::Child),
            10 => Some(Self::JailEnd),
            11 => Some(Self::JailSocket),
            _ => None,
        }
    }
}

impl Kind {
    const ALL: [Self; 2] = [Self::Shell, Self::Tmux];
}

/// The sandbox and the source that an event's data stands for.
pub(super) fn decode(data: u64) -> Option<(Key, Source)> {
    let kind = *Kind::ALL.get((data >> 4 & 3) as usize)?;
    Some((Key { kind, serial: data >> 6 }, Source::from_code(data & 15)?))
}

/// The events of one kept sandbox in the thread's epoll.
pub(super) struct Watch<'a> {
    /// The epoll.
    pub(super) epoll: &'a OwnedFd,
    /// The sandbox.
    pub(super) key: Key,
}

impl jail::Events for Watch<'_> {
    fn add(&self, fd: BorrowedFd<'_>, source: jail::Source) -> io::Result<()> {
        let source = match source {
            jail::Source::Socket => Source::JailSocket,
            jail::Source::End => Source::JailEnd,
        };
        Watch::add(self, fd, source)
    }

    fn remove(&self, fd: BorrowedFd<'_>) {
        Watch::remove(self, fd);
    }
}

impl Watch<'_> {
    fn data(&self, source: Source) -> epoll::EventData {
        epoll::EventData::new_u64(
            self.key.serial << 6 | (self.key.kind as u64) << 4 | source.code(),
        )
    }

    /// Has `fd` watched for something to read, or for an end.
    pub(super) fn add(&self, fd: BorrowedFd<'_>, source: Source) -> io::Result<()> {
        Ok(epoll::add(self.epoll, fd, self.data(source), EventFlags::IN)?)
    }

    /// Has a watched `fd` left alone for a while. Unlike removing it, this can be undone without
    /// fail.
    pub(super) fn pause(&self, fd: BorrowedFd<'_>, source: Source) {
        // An end is reported all the same, but, edge-triggered, only once.
        self.modify(fd, source, EventFlags::ET);
    }

    /// Has a paused `fd` watched as before.
    pub(super) fn resume(&self, fd: BorrowedFd<'_>, source: Source) {
        self.modify(fd, source, EventFlags::IN);
    }

    fn modify(&self, fd: BorrowedFd<'_>, source: Source, flags: EventFlags) {
        if let Err(error) = epoll::modify(self.epoll, fd, self.data(source), flags) {
            log::error!("cannot change what is watched: {error}");
        }
    }

    /// Stops watching. Must come before a file descriptor is closed: a fork of the host, made by
    /// whomever, may hold a copy, and then closing ours does not end the events.
    pub(super) fn remove(&self, fd: BorrowedFd<'_>) {
        let _ = epoll::delete(self.epoll, fd);
    }

    /// Stops watching, and closes.
    pub(super) fn remove_and_close(&self, fd: &mut Option<OwnedFd>) {
        use std::os::fd::AsFd;
        if let Some(fd) = fd.take() {
            self.remove(fd.as_fd());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn event_data_is_decoded_to_what_it_was_made_of() {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let of_jail = [Source::JailEnd, Source::JailSocket];
        let sources = (0..8).map(Source::File).chain([Source::Reports, Source::Child]);
        let sources = sources.chain(of_jail);
        for source in sources {
            let key = Key { kind: Kind::Shell, serial: 77 };
            let data = Watch { epoll: &epoll, key }.data(source);
            assert_eq!(decode(data.u64()), Some((key, source)));
        }
        assert_eq!(decode(WAKE), None);
        // Removing what is not watched is no error.
        Watch { epoll: &epoll, key: Key { kind: Kind::Shell, serial: 1 } }.remove(epoll.as_fd());
    }
}
