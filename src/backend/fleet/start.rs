//! The start of a fleet: asks every server what it is, and waits for those that are not there yet.
//!
//! What waiting cannot mend – a wrong token, scheme or certificate – ends it at once. What it
//! waits for is said by warnings (`waiting`), and it can be interrupted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{at, bounded, never, select};

use super::native::{self, Direct, NativeServer};
use super::reference::{ReferenceServer, StockRequests};
use super::waiting::WaitReport;
use super::{Connection, FleetBackend, PAUSE_FIRST, PAUSE_MOST, Server, close_all};
use crate::backend::Container;
use crate::error::{BackendError, BackendErrorKind, IsolationError};
use crate::interrupt::Interrupt;
use crate::thread::OwnedThread;
use crate::wire::native::FEATURE;
use crate::workers::guarded;

/// How long what is under way may take to end when a start is given up.
const GIVE_UP: Duration = Duration::from_millis(400);
/// How many servers are asked at a time.
const ASKED_AT_ONCE: usize = 32;
/// How many reasons to wait may be on their way.
const REASONS: usize = 256;
/// How long after a server was asked by the other scheme it is not asked so again.
const BETWEEN_SCHEMES: Duration = Duration::from_secs(5);

/// A server and its slots.
type Met = (Server, Container);

/// What it takes to ask a server what it is, on a thread of its own.
struct Meeting {
    number: usize,
    connection: Connection,
    direct: Arc<Direct>,
    requests: Arc<StockRequests>,
    /// See [`FleetConfig::unreachable_timeout`](crate::config::FleetConfig::unreachable_timeout).
    bound: Duration,
    deadline: Instant,
    /// Of this start: when it is interrupted, or another server cannot be used.
    interrupt: Interrupt,
}

impl Meeting {
    /// Asks until the server answers, the deadline, or the interrupt; `tell` gets each new reason
    /// to wait, and says whether it took it.
    fn connect(&self, tell: impl Fn(String) -> bool) -> Result<Met, BackendError> {
        let Self { number, connection, bound, deadline, .. } = self;
        let url = &connection.url;
        let unusable = |why: String| {
            BackendError::new(format!("the sandbox server {url} cannot be used: {why}"))
        };
        let mut pause = PAUSE_FIRST;
        // One name for all tries: an answer that was lost began it all the same.
        let session = native::new_session();
        let mut told = String::new();
        let mut other_scheme_at = Instant::now();
        loop {
            let met = connection.health().and_then(|features| {
                if features.iter().any(|feature| feature == FEATURE) {
                    let (connection, direct) = (connection.clone(), self.direct.clone());
                    let (server, slots) =
                        NativeServer::connect(*number, connection, *bound, direct, &session)?;
                    Ok((Server::Native(server), slots))
                } else {
                    let (connection, requests) = (connection.clone(), &self.requests);
                    let (server, slots) =
                        ReferenceServer::connect(*number, connection, *bound, requests)?;
                    Ok((Server::Reference(server), slots))
                }
            });
            match met {
                Ok((server, slots)) => {
                    return Ok((server, Container { addr: url.clone(), slots }));
                }
                // What failed may have failed because of it.
                Err(_) if self.interrupt.is_interrupted() => {
                    return Err(BackendError::interrupted());
                }
                Err(_) if connection.is_barred() => {
                    let reason =
                        format!("the sandbox server {url} runs commands without isolation");
                    let remedy = "make bubblewrap work there (apt-get install bubblewrap) and start it \
                                  again";
                    return Err(BackendError::not_isolated(IsolationError::new(reason, remedy)));
                }
                Err(failure) => {
                    let now = Instant::now();
                    if failure.may_be_the_scheme() && now >= other_scheme_at {
                        if let Some(why) = connection.other_scheme() {
                            return Err(unusable(why));
                        }
                        other_scheme_at = Instant::now() + BETWEEN_SCHEMES;
                    }
                    if failure.is_permanent() || now + pause >= *deadline {
                        return Err(unusable(failure.text()));
                    }
                    let why = failure.text();
                    if told != why && tell(why.clone()) {
                        told = why;
                    }
                    self.interrupt.wait_timeout(pause);
                }
            }
            pause = (pause * 2).min(PAUSE_MOST);
        }
    }
}

/// Meets these servers side by side, in their order. The first that cannot be used ends it for
/// all, and so does `interrupt`; the sessions that were begun are ended then. Warns of those that
/// are waited for.
fn meet_all(
    meetings: Vec<Meeting>,
    stop: &Interrupt,
    interrupt: &Interrupt,
    report: &mut WaitReport,
) -> Result<Vec<Met>, BackendError> {
    // One message from each; and reasons to wait, which are left out where they come too fast.
    let (tell, told) = bounded(meetings.len());
    let (tell_why, told_why) = bounded(REASONS);
    let mut met: Vec<Option<Met>> = Vec::new();
    let mut connections = Vec::new();
    let mut threads = Vec::new();
    let mut failure = None;
    for (place, meeting) in meetings.into_iter().enumerate() {
        met.push(None);
        connections.push(meeting.connection.clone());
        report.waits(place, &meeting.connection.url, "no answer yet".to_owned(), Instant::now());
        let (tell, tell_why) = (tell.clone(), tell_why.clone());
        let ask = move || {
            let met = guarded(|| meeting.connect(|why| tell_why.try_send((place, why)).is_ok()));
            // Refused only after the start was given up.
            drop(tell.send((place, met)));
        };
        match OwnedThread::spawn(format!("tool-connect-{place}"), ask) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                let error = BackendError::with_source("cannot start a thread", error);
                failure = Some(error.with_kind(BackendErrorKind::Shortage));
                break;
            }
        }
    }
    drop(tell);
    while failure.is_none() {
        if let Some(text) = report.take(Instant::now()) {
            log::warn!("{text}");
        }
        let due = report.due().map_or_else(never, at);
        select! {
            recv(told) -> told => match told {
                Ok((place, Ok(Ok(server)))) => {
                    report.is_met(place);
                    met[place] = Some(server);
                }
                Ok((_, Ok(Err(error)))) => failure = Some(error),
                Ok((_, Err(panic))) => {
                    failure = Some(BackendError::new(format!("asking a server panicked: {panic}")));
                }
                // All have told.
                Err(_) => break,
            },
            // But not a reason from before it answered.
            recv(told_why) -> why => if let Ok((place, why)) = why && met[place].is_none() {
                report.waits(place, &connections[place].url, why, Instant::now());
            },
            recv(interrupt.fired()) -> _ => failure = Some(BackendError::interrupted()),
            // There is something to say.
            recv(due) -> _ => {}
        }
    }
    let deadline = Instant::now() + GIVE_UP;
    if failure.is_some() {
        stop.interrupt();
        // But for those that are to be told that their session is over.
        let unmet = connections.iter().zip(&met).filter(|(_, met)| met.is_none());
        unmet.for_each(|(connection, _)| connection.interrupt());
    }
    // One that is just connecting cannot be stopped, and is left behind.
    threads.into_iter().for_each(|thread| thread.join_or_leave(deadline));
    let Some(failure) = failure else { return Ok(met.into_iter().flatten().collect()) };
    for (place, server) in told.try_iter() {
        met[place] = server.ok().and_then(Result::ok);
    }
    let servers: Vec<_> = met.into_iter().flatten().map(|(server, _)| server).collect();
    close_all(&servers, Instant::now() + GIVE_UP);
    Err(failure)
}

impl FleetBackend {
    /// Meets all servers.
    ///
    /// # Errors
    /// One cannot be used, or the start was interrupted. No session is left then.
    pub(super) fn meet_servers(
        &self,
        interrupt: &Interrupt,
    ) -> Result<Vec<Container>, BackendError> {
        let began = Instant::now();
        let deadline = began + self.config.start_timeout;
        let mut report = WaitReport::new(began, self.config.start_timeout);
        let stop = Interrupt::new();
        let mut meetings: Vec<_> = self
            .connections
            .iter()
            .enumerate()
            .map(|(number, connection)| Meeting {
                number,
                connection: connection.clone(),
                direct: self.direct.clone(),
                requests: self.requests.clone(),
                bound: self.config.unreachable_timeout,
                deadline,
                interrupt: stop.clone(),
            })
            .collect();
        let mut servers = Vec::new();
        let mut containers = Vec::new();
        while !meetings.is_empty() {
            let some = meetings.drain(..meetings.len().min(ASKED_AT_ONCE)).collect();
            match meet_all(some, &stop, interrupt, &mut report) {
                Ok(met) => {
                    let (met, of_them): (Vec<_>, Vec<_>) = met.into_iter().unzip();
                    servers.extend(met);
                    containers.extend(of_them);
                }
                Err(error) => {
                    close_all(&servers, Instant::now() + GIVE_UP);
                    return Err(error);
                }
            }
        }
        for connection in &self.connections {
            if connection.advertised.lock().isolates.is_none() {
                let url = &connection.url;
                log::warn!(
                    "the sandbox server {url} does not say whether commands are isolated there"
                );
            }
        }
        *self.servers.lock() = servers;
        Ok(containers)
    }
}
