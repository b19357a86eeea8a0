//! A server's thread: reads the results, notices that the server is gone, and finds out what
//! became of its operations when it is back.

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use super::state::{Ended, InFlight, Phase};
use super::{GONE, NativeServer, begin, new_session, resume};
use crate::backend::ContainerChange;
use crate::backend::fleet::{PAUSE_FIRST, PAUSE_MOST, warn_given_up};
use crate::client::{self, Failure};
use crate::wire::native::{MAX_LINE, RESULTS, ResultLine, ResultsRequest};

/// How often the stream may be opened again only to ask once more.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// The bytes of a line's buffer that are kept for the next line.
const KEPT: usize = 64 * 1024;

/// Why a stream of results was left.
enum Left {
    /// It is of no use any more.
    Lost(Failure),
    /// To open it again, with the question what became of the operations in flight.
    ToAsk,
    /// The fleet is being closed.
    Closing,
}

impl NativeServer {
    /// The server's thread: reads results for as long as the server is there, and finds it again.
    pub(super) fn result_stream(&self) {
        let mut pause = PAUSE_FIRST;
        let mut next = new_session();
        loop {
            let began = Instant::now();
            let failure = match self.read_results() {
                Left::Lost(failure) => failure,
                Left::ToAsk => continue,
                Left::Closing => return,
            };
            if self.state.lock().closing {
                return;
            }
            log::debug!("{}: results end: {}", self.connection.url, failure.text());
            if began.elapsed() > PAUSE_MOST {
                pause = PAUSE_FIRST;
            }
            self.now_unknown();
            // At once, if it was of no use for long enough.
            self.give_up_in_time(&failure);
            loop {
                {
                    let mut state = self.state.lock();
                    if !state.closing {
                        self.wake.wait_for(&mut state, pause);
                    }
                    if state.closing {
                        return;
                    }
                }
                pause = (pause * 2).min(PAUSE_MOST);
                let Err(why) = self.find_again(&mut next) else { break };
                log::debug!("{}: {}", self.connection.url, why.text());
                self.give_up_in_time(&why);
            }
        }
    }

    /// Reads the stream of results until it ends.
    fn read_results(&self) -> Left {
        let opened = Instant::now();
        let request = {
            let mut state = self.state.lock();
            ResultsRequest { waiting: state.ask(), session: state.session.clone() }
        };
        let lost = |text: &str| Left::Lost(Failure::Broken(text.to_owned()));
        let Ok(body) = serde_json::to_vec(&request) else {
            return lost("the request cannot be written");
        };
        let connection = &self.connection;
        let response = match connection.post(&connection.pooled, RESULTS, &body, None) {
            Ok(response) if response.status().is_success() => response,
            Ok(response) => {
                let refused = client::read_json::<serde_json::Value>(response);
                return Left::Lost(refused.err().unwrap_or(Failure::Timeout));
            }
            Err(failure) => return Left::Lost(failure),
        };
        let reader = response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        loop {
            let read = read_line(&mut reader, &mut line, connection.stall_timeout);
            let result = match read.map(|()| serde_json::from_slice(&line)) {
                Ok(Ok(line)) => line,
                Ok(Err(error)) => return lost(&format!("a line makes no sense: {error}")),
                Err(failure) => return Left::Lost(failure),
            };
            let mut state = self.state.lock();
            if state.closing {
                return Left::Closing;
            }
            state.heard = Instant::now();
            if state.phase != Phase::Up {
                state.phase = Phase::Up;
                self.notify(ContainerChange::Recovered);
                self.outgoing.notify_one();
            }
            if state.trouble_since.is_some_and(|since| since.elapsed() > self.bound) {
                // It answers, and takes nothing: of no use.
                return lost("it takes no calls");
            }
            match result {
                ResultLine::Op(result) => {
                    let ended = self.complete(&mut state, vec![result]);
                    // It may be that something is to be sent once more.
                    let owes = state.owes_server();
                    drop(state);
                    ended.into_iter().for_each(Ended::answer);
                    if owes {
                        self.outgoing.notify_one();
                    }
                }
                ResultLine::Lease { lease } => self.lease_is(&mut state, &lease),
                ResultLine::Beat { told, .. } => {
                    if opened.elapsed() > ASK_EVERY && state.misses_any(&told) {
                        return Left::ToAsk;
                    }
                }
            }
        }
    }

    fn now_unknown(&self) {
        let mut state = self.state.lock();
        if state.phase == Phase::Up {
            let since = state.trouble_since.map_or(state.heard, |since| since.min(state.heard));
            state.phase = Phase::Unknown { since };
            self.notify(ContainerChange::Unreachable);
        }
    }

    /// Resumes the session, or begins one called `next` where the server has begun anew or was
    /// given up.
    ///
    /// # Errors
    /// Why the server is of no use yet.
    pub(super) fn find_again(&self, next: &mut String) -> Result<(), Failure> {
        let (session, instance, was_down, seen) = {
            let state = self.state.lock();
            let was_down = state.phase == Phase::Down;
            (state.session.clone(), state.instance.clone(), was_down, state.images_seen)
        };
        let resumed = if was_down {
            Err(Failure::Refused(GONE, String::new()))
        } else {
            resume(&self.connection, &session, seen, self.shares.asked(self.number))
        };
        let is_resumed = resumed.is_ok();
        let answer = match resumed {
            // It knows the session no more: it began anew, or it gave us up. One name for all
            // tries: an answer that was lost began it all the same.
            Err(Failure::Refused(GONE, _)) => {
                let asked = self.shares.asked(self.number);
                begin(&self.connection, next, Some(session.clone()), asked)
            }
            resumed => resumed,
        };
        let mut answer = answer?;
        let images = answer.images.take();
        let goes_on = is_resumed && answer.resumed && answer.instance == instance;
        if !goes_on && let Err(failure) = self.connection.health() {
            if self.connection.is_barred() {
                return Err(failure);
            }
            // What is told of its limits stays as it was.
            log::debug!("{}: {}", self.connection.url, failure.text());
        }
        let mut state = self.state.lock();
        let was_ending = state.leased.is_draining();
        if goes_on {
            // Up as soon as the stream of results says something.
            self.lease_is(&mut state, &answer.lease);
            self.note_images(&mut state, images);
            return Ok(());
        }
        let (had, slots) = (state.leased.of_server(), answer.slots.len());
        let new = if is_resumed { session } else { std::mem::replace(next, new_session()) };
        self.connection.patient.take_back();
        let lost = state.begin_anew(new, answer);
        self.note_share(&state);
        // First which slots there are: as soon as it is up, they are given out.
        self.notify(ContainerChange::Resized(state.leased.slots()));
        self.notify(ContainerChange::Restarted);
        self.note_images(&mut state, images);
        drop(state);
        if was_ending {
            // What has begun anew stays.
            self.reports.wake();
        }
        self.outgoing.notify_one();
        lost.into_iter().for_each(InFlight::lose);
        if slots != had {
            let url = &self.connection.url;
            log::warn!("the sandbox server {url} has {slots} slots now, and had {had}");
        }
        if was_down {
            log::warn!("the sandbox server {} is there again, all empty", self.connection.url);
        }
        Ok(())
    }

    /// Gives the server up if it has been out of reach for too long. One that has said that it is
    /// about to end, and where nothing listens any more, has ended.
    fn give_up_in_time(&self, why: &Failure) {
        let mut state = self.state.lock();
        let Phase::Unknown { since } = state.phase else { return };
        let has_ended = state.leased.is_draining() && matches!(why, Failure::NoListener);
        if since.elapsed() < self.bound && !has_ended {
            return;
        }
        state.phase = Phase::Down;
        let lost = state.clear();
        self.shares.lost(self.number);
        self.notify(ContainerChange::Lost);
        drop(state);
        // What reads there holds up its trajectory.
        self.connection.patient.give_up();
        lost.into_iter().for_each(InFlight::lose);
        warn_given_up(&self.connection.url, &why.text());
    }
}

/// Reads a line, whose end must come in time. Each of its pieces comes within the agent's time
/// limit, or not at all.
fn read_line(
    reader: &mut impl BufRead,
    line: &mut Vec<u8>,
    patience: Duration,
) -> Result<(), Failure> {
    line.clear();
    line.shrink_to(KEPT);
    let broken = |text: &str| Err(Failure::Broken(text.to_owned()));
    let mut began = None;
    loop {
        let piece = match reader.fill_buf() {
            Ok(piece) => piece,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ureq::Error::from(error).into()),
        };
        if piece.is_empty() {
            return broken(if line.is_empty() { "the stream ended" } else { "a line is cut off" });
        }
        let end = piece.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(piece.len(), |end| end + 1);
        line.extend_from_slice(&piece[..taken]);
        reader.consume(taken);
        if end.is_some() {
            return Ok(());
        }
        if line.len() > MAX_LINE {
            return broken("a line is too long");
        }
        // As much longer as a slow connection may need.
        let patience = patience + Duration::from_secs(line.len() as u64 / 100_000);
        if began.get_or_insert_with(Instant::now).elapsed() > patience {
            return broken("a line comes too slowly");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_line_has_a_bound_in_length_and_in_time() {
        let mut line = Vec::new();
        let mut read =
            |bytes: &mut dyn BufRead, patience| read_line(&mut { bytes }, &mut line, patience);
        let second = Duration::from_secs(1);
        let mut two = &b"one\ntwo\nhal"[..];
        assert!(read(&mut two, second).is_ok() && read(&mut two, second).is_ok());
        assert!(read(&mut two, second).unwrap_err().text().contains("cut off"));
        assert!(read(&mut two, second).unwrap_err().text().contains("ended"));
        let mut endless = BufReader::new(std::io::repeat(b'x'));
        assert!(read(&mut endless, second).unwrap_err().text().contains("too long"));
        // A byte at a time, for ever.
        let mut dribbles = BufReader::with_capacity(1, std::io::repeat(b'x').take(1 << 40));
        let slow = read(&mut dribbles, Duration::ZERO).unwrap_err();
        assert!(slow.text().contains("too slowly"), "{slow:?}");
    }
}
