//! Bytes between the caller's thread and one that acts as the slot's user.
//!
//! What a caller reads from or writes to is its own: it may open files, or call into another
//! language, and must do so with the caller's rights and on the caller's thread. Files of the slot
//! are touched with the rights of the slot's user, on a thread of its own. Between the two go
//! pieces, of which a few are in memory.

use std::io::{self, Read, Write};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::super::reach::Reach;
use super::super::user::{Purpose, on_own_thread_beside};
use super::super::workspace::GONE;
use crate::artifact::ArtifactError;

/// The bytes of one piece.
const PIECE: usize = 128 * 1024;
/// How many pieces are on their way.
const ON_THE_WAY: usize = 2;

/// What comes from the side that has bytes.
enum Piece {
    Bytes(Vec<u8>),
    End,
    Failed(io::Error),
}

/// Does `work` as the slot's user with what `from` gives, which is read on this thread.
pub(super) fn reading<T: Send>(
    files: Reach<'_>,
    from: &mut (dyn Read + Send),
    work: impl FnOnce(&mut dyn Read) -> Result<T, ArtifactError> + Send,
) -> Result<T, ArtifactError> {
    let Some(owner) = owner(files)? else { return work(from) };
    let (pieces, taken) = bounded(ON_THE_WAY);
    let (give_back, empty) = bounded(ON_THE_WAY + 1);
    let done = on_own_thread_beside(
        move || {
            let _entered = owner.enter(Purpose::Files)?;
            let mut source = Source { taken, give_back, piece: Vec::new(), at: 0, ended: false };
            Ok(work(&mut source))
        },
        move || feed(from, &pieces, &empty),
    );
    done.unwrap_or_else(|error| Err(not_acting(error)))
}

/// Reads all of `from`, until it is wanted no more. Pieces are full, but for the last: a change of
/// threads for each small read would cost more than the read.
fn feed(from: &mut dyn Read, pieces: &Sender<Piece>, empty: &Receiver<Vec<u8>>) {
    loop {
        let mut piece = empty.try_recv().unwrap_or_default();
        piece.resize(PIECE, 0);
        let mut length = 0;
        let last = loop {
            match from.read(&mut piece[length..]) {
                Ok(0) => break Some(Piece::End),
                Ok(read) => length += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Some(Piece::Failed(error)),
            }
            if length == PIECE {
                break None;
            }
        };
        piece.truncate(length);
        if !piece.is_empty() && pieces.send(Piece::Bytes(piece)).is_err() {
            return;
        }
        if let Some(last) = last {
            // Refused where it is wanted no more.
            let _ = pieces.send(last);
            return;
        }
    }
}

/// What is read on the other side.
struct Source {
    taken: Receiver<Piece>,
    give_back: Sender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            if self.ended {
                return Ok(0);
            }
            // There is room for each, or it is not needed.
            let _ = self.give_back.try_send(std::mem::take(&mut self.piece));
            self.at = 0;
            match self.taken.recv() {
                Ok(Piece::Bytes(piece)) => self.piece = piece,
                Ok(Piece::End) => self.ended = true,
                Ok(Piece::Failed(error)) => return Err(error),
                // It has panicked.
                Err(_) => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
        let length = buffer.len().min(self.piece.len() - self.at);
        buffer[..length].copy_from_slice(&self.piece[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

/// Does `work` as the slot's user with a writer whose bytes are written to `into` on this thread.
pub(super) fn writing<T: Send>(
    files: Reach<'_>,
    into: &mut (dyn Write + Send),
    work: impl FnOnce(&mut (dyn Write + Send)) -> Result<T, ArtifactError> + Send,
) -> Result<T, ArtifactError> {
    let Some(owner) = owner(files)? else { return work(into) };
    let (pieces, taken) = bounded(ON_THE_WAY);
    let (refuse, refused) = bounded(1);
    let (give_back, empty) = bounded(ON_THE_WAY + 1);
    let done = on_own_thread_beside(
        move || {
            let _entered = owner.enter(Purpose::Files)?;
            let mut sink = Sink { pieces, refused, empty, piece: Vec::new() };
            let done = work(&mut sink);
            Ok(done.and_then(|done| match sink.hand_over() {
                Ok(()) => Ok((done, sink.refused)),
                Err(error) => Err(not_written(error)),
            }))
        },
        move || drain(into, &taken, &give_back, &refuse),
    );
    let (done, refused) = done.unwrap_or_else(|error| Err(not_acting(error)))?;
    // The last piece was refused after the work was done.
    match refused.try_recv() {
        Ok(error) => Err(not_written(error)),
        Err(_) => Ok(done),
    }
}

/// Writes what comes, until there is nothing more.
fn drain(
    into: &mut dyn Write,
    taken: &Receiver<Vec<u8>>,
    give_back: &Sender<Vec<u8>>,
    refuse: &Sender<io::Error>,
) {
    while let Ok(piece) = taken.recv() {
        if let Err(error) = into.write_all(&piece) {
            // There is room for the one.
            let _ = refuse.try_send(error);
            return;
        }
        let _ = give_back.try_send(piece);
    }
    if let Err(error) = into.flush() {
        let _ = refuse.try_send(error);
    }
}

/// What is written to on the other side.
struct Sink {
    pieces: Sender<Vec<u8>>,
    refused: Receiver<io::Error>,
    empty: Receiver<Vec<u8>>,
    piece: Vec<u8>,
}

impl Sink {
    fn hand_over(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, self.empty.try_recv().unwrap_or_default());
        self.piece.clear();
        // Without the error it has panicked.
        let gone = |_| self.refused.try_recv().unwrap_or(io::ErrorKind::BrokenPipe.into());
        self.pieces.send(piece).map_err(gone)
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.piece.len() >= PIECE {
            self.hand_over()?;
        }
        let taken = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hand_over()
    }
}

/// Who is to act, if another one than this thread. Refused where the workspace is gone.
fn owner(files: Reach<'_>) -> Result<Option<super::super::user::CommandUser>, ArtifactError> {
    match files.workspace().is_there() {
        true => Ok(files.workspace().owner()),
        false => Err(ArtifactError::SandboxLost(GONE.to_owned())),
    }
}

fn not_written(error: io::Error) -> ArtifactError {
    ArtifactError::Io("cannot write what was read".to_owned(), error)
}

fn not_acting(error: io::Error) -> ArtifactError {
    ArtifactError::Io("cannot act as the user of the sandbox".to_owned(), error)
}
