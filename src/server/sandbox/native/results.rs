//! The stream of results.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::session::{Tell, TellResult, What};
use super::{Native, Refusal, unknown_session, write_line};
use crate::server::http::{self, Response, StatusCode};
use crate::tool::{Outcome, ToolResult};
use crate::wire::native::{MAX_LINE, ResultLine, ResultsRequest};

/// The bytes of results that are written at a time.
const PIECE: usize = 256 * 1024;
/// How often a stream says that the server is there.
const HEARTBEAT: Duration = Duration::from_secs(2);

impl Native {
    pub(super) fn results(self: &Arc<Self>, request: ResultsRequest) -> Result<Response, Refusal> {
        let ResultsRequest { session: id, waiting } = request;
        let (lines, pieces) = mpsc::channel(16);
        let (number, first) = {
            let mut state = self.state.lock();
            let Some(session) = state.heard(&id) else { return Err(unknown_session()) };
            session.stream += 1;
            let told = waiting.iter().filter_map(|&key| match session.look_up(key) {
                None if session.is_running(key) => None,
                None => {
                    let (slot, seq) = key;
                    Some(TellResult { slot, seq, what: Tell::Unknown(true) })
                }
                known => known,
            });
            let told: Vec<_> = told.collect();
            session.untold.retain(|key| !waiting.contains(key));
            // The stream before this one ends.
            session.news.notify_waiters();
            (session.stream, told)
        };
        let native = self.clone();
        tokio::spawn(async move {
            native.tell_results(&id, number, first, &lines).await;
        });
        Ok(http::streaming(StatusCode::OK, "application/x-ndjson", pieces))
    }

    /// Sends results as they come, until the client is gone or another stream has taken over.
    async fn tell_results(
        &self,
        id: &str,
        number: u64,
        first: Vec<TellResult>,
        lines: &mpsc::Sender<Bytes>,
    ) {
        let mut beat = 0;
        let mut next_beat = Instant::now();
        let mut results = VecDeque::from(first);
        let mut told_lease = 0;
        let Some(news) = self.state.lock().sessions.get(id).map(|session| session.news.clone())
        else {
            return;
        };
        loop {
            // Registered before the look: what comes in between wakes it.
            let news = news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            let mut text = Vec::new();
            let done = {
                let mut state = self.state.lock();
                let session = state.sessions.get_mut(id);
                let Some(session) = session.filter(|session| session.stream == number) else {
                    return;
                };
                if session.lease.version > told_lease {
                    told_lease = session.lease.version;
                    write_line(&mut text, &ResultLine::Lease { lease: session.lease.clone() });
                }
                let mut size: usize = results.iter().map(TellResult::size).sum();
                while size < PIECE
                    && let Some(key) = session.untold.pop_front()
                {
                    let result = session.look_up(key);
                    size += result.as_ref().map_or(0, TellResult::size);
                    results.extend(result);
                }
                // All of these have been told when what is here is.
                session.untold.is_empty().then(|| session.done())
            };
            while text.len() < PIECE
                && let Some(result) = results.pop_front()
            {
                write_result(&mut text, &result);
            }
            if text.is_empty() && self.closing.load(Ordering::Acquire) && self.is_idle(id) {
                return;
            }
            let done = done.filter(|_| results.is_empty());
            let is_all = done.is_some();
            if Instant::now() >= next_beat
                && let Some(told) = done
            {
                write_line(&mut text, &ResultLine::Beat { beat, told });
                beat += 1;
                next_beat = Instant::now() + HEARTBEAT;
            }
            // One that does not read, or hardly, is cut off.
            if !text.is_empty() {
                let sent = tokio::time::timeout(self.patience, lines.send(text.into()));
                if !matches!(sent.await, Ok(Ok(()))) {
                    return;
                }
            }
            if !is_all {
                continue;
            }
            tokio::select! {
                () = news => {}
                () = lines.closed() => return,
                () = tokio::time::sleep_until(next_beat.into()) => {}
            }
        }
    }

    /// Whether nothing of the session runs.
    fn is_idle(&self, id: &str) -> bool {
        let state = self.state.lock();
        let mut ops = state.sessions.get(id).into_iter().flat_map(|session| &session.ops);
        !ops.any(|ops| matches!(ops.what, What::Running(_)))
    }
}

/// Writes a result's line; of one that is too long, that it is.
fn write_result(text: &mut Vec<u8>, result: &TellResult) {
    let before = text.len();
    write_line(text, result);
    let bytes = text.len() - before;
    if bytes > MAX_LINE {
        text.truncate(before);
        let error = format!("the result takes {bytes} bytes on the wire; {MAX_LINE} is the most");
        let failure = ToolResult::failure(Outcome::BackendFailed, error);
        let TellResult { slot, seq, .. } = *result;
        let what = Tell::Done(Arc::new(failure.into()));
        write_line(text, &TellResult { slot, seq, what });
    }
}
