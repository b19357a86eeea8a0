//! The start of a fleet: asks every server what it is, and waits for those that are not there yet.
//!
//! What waiting cannot mend – a wrong token, scheme or certificate – ends it at once. What it
//! waits for is said by warnings (`waiting`), and it can be interrupted. Servers whose slots are
//! all with other executors are waited for, too, until one slot at least is there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{at, bounded, never, select};

use super::native::{self, NativeServer};
use super::reference::ReferenceServer;
use super::waiting::WaitReport;
use super::{Connection, FleetBackend, Making, PAUSE_FIRST, PAUSE_MOST, Server, close_all};
use crate::backend::Container;
use crate::error::{BackendError, BackendErrorKind, IsolationError};
use crate::interrupt::Interrupt;
use crate::thread::OwnedThread;
use crate::wire::native::{FEATURE, FEATURES};
use crate::workers::guarded;

/// How long what is under way may take to end when a start is given up.
pub(super) const GIVE_UP: Duration = Duration::from_millis(400);
/// How many servers are asked at a time.
pub(super) const ASKED_AT_ONCE: usize = 32;
/// How many reasons to wait may be on their way.
const REASONS: usize = 256;
/// How long after a server was asked by the other scheme it is not asked so again.
const BETWEEN_SCHEMES: Duration = Duration::from_secs(5);
/// How often it is looked whether a slot is there.
const LOOK_FOR_SLOTS: Duration = Duration::from_millis(50);

/// A server and its slots.
pub(super) type Met = (Server, Container);

/// What it takes to ask a server what it is, on a thread of its own.
pub(super) struct Meeting {
    pub(super) number: usize,
    pub(super) connection: Connection,
    pub(super) making: Arc<Making>,
    pub(super) deadline: Instant,
    /// Of a start: when that is interrupted, or another server cannot be used.
    pub(super) interrupt: Interrupt,
}

impl Meeting {
    /// Asks until the server answers, the deadline, or the interrupt; `tell` gets each new reason
    /// to wait, and says whether it took it.
    pub(super) fn connect(&self, tell: impl Fn(String) -> bool) -> Result<Met, BackendError> {
        let Self { number, connection, making, deadline, .. } = self;
        let bound = making.config.unreachable_timeout;
        let url = &connection.url;
        let unusable = |why: String| {
            BackendError::new(format!("the sandbox server {url} cannot be used: {why}"))
        };
        let mut pause = PAUSE_FIRST;
        // One name for all tries: an answer that was lost began it all the same.
        let session = native::new_session();
        let mut may_have_begun = false;
        let mut told = String::new();
        let mut other_scheme_at = Instant::now();
        loop {
            let features = connection.health();
            if let Ok(features) = &features
                && let Some(why) = other_version(features)
            {
                return Err(unusable(why));
            }
            let met = features.and_then(|features| {
                if features.iter().any(|feature| feature == FEATURE) {
                    may_have_begun = true;
                    let (connection, direct) = (connection.clone(), making.direct.clone());
                    let shares = making.shares.clone();
                    let (server, slots) = NativeServer::connect(
                        *number, connection, bound, direct, shares, &session,
                    )?;
                    Ok((Server::Native(server), slots))
                } else {
                    let (connection, requests) = (connection.clone(), &making.requests);
                    let (server, slots) =
                        ReferenceServer::connect(*number, connection, bound, requests)?;
                    // All of them, as far as is known.
                    making.shares.met(*number, slots.len(), slots.len());
                    Ok((Server::Reference(server), slots))
                }
            });
            match met {
                Ok((server, slots)) => {
                    return Ok((server, Container { addr: url.clone(), slots }));
                }
                // What failed may have failed because of it.
                Err(_) if self.interrupt.is_interrupted() => {
                    // Its answer may be on its way only.
                    if may_have_begun {
                        native::end_session_anew(connection, &session);
                    }
                    return Err(BackendError::interrupted());
                }
                Err(_) if connection.is_barred() => {
                    let reason =
                        format!("the sandbox server {url} runs commands without isolation");
                    let remedy = "the log of its start says what isolation needs there; mend that and \
                                  start it again";
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

/// Why a server with these features cannot be spoken to, if it speaks another version of the native
/// protocol.
fn other_version(features: &[String]) -> Option<String> {
    let mut native = features.iter().filter(|feature| feature.starts_with(FEATURES));
    if native.clone().any(|feature| feature == FEATURE) {
        return None;
    }
    let other = native.next()?;
    Some(format!(
        "it speaks {other}, and this executor speaks {FEATURE}: use the same version of \
         tool-executor on both sides"
    ))
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
            // Refused only after the start was given up: then its session ends here.
            if let Err(refused) = tell.send((place, met))
                && let (_, Ok(Ok((server, _)))) = refused.into_inner()
            {
                server.close(Instant::now() + GIVE_UP);
            }
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
        let limit = self.making.config.start_timeout;
        let deadline = began + limit;
        let mut report = WaitReport::new(began, limit);
        let stop = Interrupt::new();
        let mut meetings: Vec<_> = self
            .connections
            .iter()
            .enumerate()
            .map(|(number, connection)| Meeting {
                number,
                connection: connection.clone(),
                making: self.making.clone(),
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
        if let Err(error) = self.wait_for_a_slot(&servers, deadline, interrupt, &mut report) {
            close_all(&servers, Instant::now() + GIVE_UP);
            return Err(error);
        }
        for connection in &self.connections {
            if connection.advertised.lock().isolates.is_none() {
                let url = &connection.url;
                log::warn!(
                    "the sandbox server {url} does not say whether commands are isolated there"
                );
            }
        }
        self.members.begin_with(self.connections.iter().cloned().zip(servers).collect());
        Ok(containers)
    }

    /// Waits until one slot at least is the executor's, while the servers' sessions live.
    ///
    /// # Errors
    /// There is none until the deadline, or the interrupt.
    fn wait_for_a_slot(
        &self,
        servers: &[Server],
        deadline: Instant,
        interrupt: &Interrupt,
        report: &mut WaitReport,
    ) -> Result<(), BackendError> {
        loop {
            let now = Instant::now();
            let mut others = None;
            for (place, (server, connection)) in servers.iter().zip(&self.connections).enumerate() {
                let Server::Native(server) = server else { return Ok(()) };
                let (slots, held, executors) = server.share();
                if held > 0 || slots == 0 {
                    return Ok(());
                }
                let why = format!("all {slots} slots are with {executors} other executors");
                others.get_or_insert_with(|| format!("{}: {why}", connection.url));
                report.waits(place, &connection.url, why, now);
            }
            let Some(others) = others else { return Ok(()) };
            if now >= deadline {
                return Err(BackendError::new(format!(
                    "no sandbox server has a slot for this executor ({others})"
                )));
            }
            if let Some(text) = report.take(now) {
                log::warn!("{text}");
            }
            if interrupt.wait_timeout(LOOK_FOR_SLOTS) {
                return Err(BackendError::interrupted());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_of_another_version_is_refused_by_name() {
        let version = |features: &[&str]| {
            other_version(&features.iter().map(|&feature| feature.to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(version(&[]), None, "the reference's");
        assert_eq!(version(&["native-1", FEATURE]), None);
        let why = version(&["slots", "native-1"]).unwrap();
        assert!(why.contains("native-1") && why.contains(FEATURE), "{why}");
        assert!(version(&["native-4"]).unwrap().contains("native-4"));
    }
}
