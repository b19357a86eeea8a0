//! A server's thread: reads the results, notices that the server is gone, and finds out what became of
//! its operations when it is back.

use std::io::{BufRead, BufReader, Read};
use std::time::Instant;

use super::state::{Ended, Flight, Phase};
use super::{NativeServer, begin, new_session};
use crate::backend::fleet::{PAUSE_FIRST, PAUSE_MOST};
use crate::backend::{ContainerChange, Watcher};
use crate::client::{self, Failure};
use crate::wire::native::{RESULTS, ResultLine, ResultsRequest};

/// The longest line of results that is read.
const MAX_LINE: u64 = 64 * 1024 * 1024;
/// The status that says that there is no such session.
const GONE: u16 = 410;

impl NativeServer {
    /// The server's thread: reads results for as long as the server is there, and finds it again.
    pub(super) fn keep_up(&self, watcher: &Watcher) {
        let mut pause = PAUSE_FIRST;
        loop {
            let began = Instant::now();
            let ended = self.read_results(watcher);
            if self.is_closing() {
                return;
            }
            log::debug!("{}: results end: {}", self.connection.url, ended.text());
            if began.elapsed() > PAUSE_MOST {
                pause = PAUSE_FIRST;
            }
            self.now_unknown(watcher);
            // At once, if it was of no use for long enough.
            self.give_up_in_time(watcher);
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
                if self.find_again(watcher) {
                    break;
                }
                self.give_up_in_time(watcher);
            }
        }
    }

    /// Reads the stream of results until it ends.
    fn read_results(&self, watcher: &Watcher) -> Failure {
        let request = {
            let mut state = self.state.lock();
            // Those that are still to be sent are no business of the server's yet.
            let waiting = state.flights.iter_mut().filter(|(_, flight)| flight.sent);
            let waiting = waiting.map(|(key, flight)| {
                // One that is just being sent may arrive after the answer.
                flight.asked = !flight.sending;
                *key
            });
            let waiting = waiting.collect();
            ResultsRequest { session: state.session.clone(), waiting }
        };
        let Ok(body) = serde_json::to_vec(&request) else {
            return Failure::Broken("the request cannot be written".to_owned());
        };
        let connection = &self.connection;
        let response = match connection.post(&connection.pooled, RESULTS, &body, None) {
            Ok(response) if response.status().is_success() => response,
            Ok(response) => {
                return client::read_json::<serde_json::Value>(response)
                    .err()
                    .unwrap_or(Failure::Timeout);
            }
            Err(failure) => return failure,
        };
        let reader = response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        loop {
            line.clear();
            match reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) => return Failure::Broken("the stream ended".to_owned()),
                Ok(_) if line.last() != Some(&b'\n') => {
                    return Failure::Broken("a line is cut off or too long".to_owned());
                }
                Ok(_) => {}
                Err(error) => return Failure::Broken(error.to_string()),
            }
            let result = match serde_json::from_slice(&line) {
                Ok(ResultLine::Op(result)) => Some(result),
                Ok(ResultLine::Beat { .. }) => None,
                Err(error) => return Failure::Broken(format!("a line makes no sense: {error}")),
            };
            let mut state = self.state.lock();
            if state.closing {
                return Failure::Timeout;
            }
            if state.phase != Phase::Up {
                state.phase = Phase::Up;
                watcher.tell(self.number, ContainerChange::Back);
            }
            if state.trouble_since.is_some_and(|since| since.elapsed() > self.bound) {
                // It answers, and takes nothing: of no use.
                return Failure::Broken("it takes no calls".to_owned());
            }
            let ended = state.land(result.into_iter().collect());
            drop(state);
            ended.into_iter().for_each(Ended::answer);
            let state = self.state.lock();
            if !state.outbox.is_empty() || !state.cancel.is_empty() {
                self.send_outbox(state);
            }
        }
    }

    fn now_unknown(&self, watcher: &Watcher) {
        let mut state = self.state.lock();
        if state.phase == Phase::Up {
            let since = state.trouble_since.unwrap_or_else(Instant::now);
            state.phase = Phase::Unknown { since };
            watcher.tell(self.number, ContainerChange::Unknown);
        }
    }

    /// Resumes the session, or begins a new one where the server has begun anew or was given up.
    /// Whether the server is there.
    fn find_again(&self, watcher: &Watcher) -> bool {
        let (session, instance, was_down) = {
            let state = self.state.lock();
            (state.session.clone(), state.instance.clone(), state.phase == Phase::Down)
        };
        let resumed = if was_down {
            Err(Failure::Refused(GONE, String::new()))
        } else {
            begin(&self.connection, &session, true, None)
        };
        let mut new = session.clone();
        let answer = match resumed {
            // It knows the session no more: it began anew, or it gave us up.
            Err(Failure::Refused(GONE, _)) => {
                new = new_session();
                begin(&self.connection, &new, false, Some(session))
            }
            resumed => resumed,
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure) => {
                log::debug!("{}: {}", self.connection.url, failure.text());
                return false;
            }
        };
        let mut state = self.state.lock();
        if answer.slots.len() != state.latest.len() {
            log::error!("{} has another number of slots now", self.connection.url);
            return false;
        }
        if answer.resumed && answer.instance == instance {
            // Up as soon as the stream of results says something.
            return true;
        }
        let lost = state.begin_anew(new, answer);
        watcher.tell(self.number, ContainerChange::BeganAnew);
        drop(state);
        lost.into_iter().for_each(Flight::lose);
        true
    }

    /// Gives the server up if it has been out of reach for too long.
    fn give_up_in_time(&self, watcher: &Watcher) {
        let mut state = self.state.lock();
        let Phase::Unknown { since } = state.phase else { return };
        if since.elapsed() < self.bound {
            return;
        }
        log::warn!("the sandbox server {} is given up: it does not answer", self.connection.url);
        state.phase = Phase::Down;
        let lost = state.clear();
        watcher.tell(self.number, ContainerChange::Down);
        drop(state);
        lost.into_iter().for_each(Flight::lose);
    }

    fn is_closing(&self) -> bool {
        self.state.lock().closing
    }
}
