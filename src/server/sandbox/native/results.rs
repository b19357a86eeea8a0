//! The stream of results.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::session::{Tell, TellResult, What};
use super::{Native, Refusal, unknown_session, write_line};
use crate::server::http::{self, Response, StatusCode};
use crate::wire::native::{ResultLine, ResultsRequest};

/// How often a stream says that the server is there.
const BEAT: Duration = Duration::from_secs(2);

impl Native {
    pub(super) fn results(self: &Arc<Self>, request: ResultsRequest) -> Result<Response, Refusal> {
        let ResultsRequest { session: id, waiting } = request;
        let (lines, pieces) = mpsc::channel(16);
        let (number, first) = {
            let mut current = self.session.lock();
            let Some(session) = current.as_mut().filter(|session| session.id == id) else {
                return Err(unknown_session());
            };
            session.stream += 1;
            session.streaming = true;
            session.heard = Instant::now();
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
            (session.stream, told)
        };
        // The stream before this one ends.
        self.news.notify_waiters();
        let native = self.clone();
        tokio::spawn(async move {
            native.tell_results(&id, number, first, &lines).await;
            if let Some(session) = native.session.lock().as_mut()
                && session.id == id
                && session.stream == number
            {
                session.streaming = false;
                session.heard = Instant::now();
            }
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
        let mut results = first;
        loop {
            // Registered before the look: what comes in between wakes it.
            let news = self.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            {
                let mut current = self.session.lock();
                let session = current.as_mut().filter(|session| session.id == id);
                let Some(session) = session.filter(|session| session.stream == number) else {
                    return;
                };
                while let Some(key) = session.untold.pop_front() {
                    results.extend(session.look_up(key));
                }
            }
            let mut text = Vec::new();
            for result in results.drain(..) {
                write_line(&mut text, &result);
            }
            if text.is_empty() && self.closing.load(Ordering::Acquire) && self.is_idle() {
                return;
            }
            if text.is_empty() {
                write_line(&mut text, &ResultLine::Beat { beat });
                beat += 1;
            }
            // Waits for a client that reads slowly; one that does not read is cut off.
            if lines.send(text.into()).await.is_err() {
                return;
            }
            tokio::select! {
                () = news => {}
                () = lines.closed() => return,
                () = tokio::time::sleep(BEAT) => {}
            }
        }
    }

    /// Whether nothing of the session runs.
    fn is_idle(&self) -> bool {
        let current = self.session.lock();
        let mut ops = current.iter().flat_map(|session| &session.ops);
        !ops.any(|ops| matches!(ops.what, What::Running(_)))
    }
}
