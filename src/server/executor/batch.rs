//! `/execute_batch`: many calls in one request, each answered the moment it ends.
//!
//! The reference answers a batch when the slowest call has ended. Here every call has a line of
//! its own (NDJSON), in order of completion, and the head of the response is sent at once. A
//! client that goes away cancels what has not ended.
//!
//! # Bounds
//! A batch holds `MAX_BATCH_CALLS` (`validate`) calls at most, so that is what can wait for a
//! client that reads slowly. One that does not read at all is cut off by the server's limit for
//! writing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::mpsc;

use super::answer::ResultAnswer;
use super::calls::{Calls, InFlight, lost};
use super::validate::{CallRequest, ReplyForm};
use crate::server::http::{Response, StatusCode, streaming};
use crate::tool::ToolResult;
use crate::wire::OutcomeFields;

/// How many lines may be on their way to the connection.
const LINES_AHEAD: usize = 16;

/// Submits the calls and gives the response that will tell of them. Called on the runtime. A
/// client that takes no line for `patience` is taken for gone.
pub(super) fn run(calls: Arc<Calls>, requests: Vec<CallRequest>, patience: Duration) -> Response {
    let (lines, pieces) = mpsc::channel(LINES_AHEAD);
    tokio::spawn(feed(calls, requests, lines, patience));
    streaming(StatusCode::OK, "application/x-ndjson", pieces)
}

async fn feed(
    calls: Arc<Calls>,
    requests: Vec<CallRequest>,
    lines: mpsc::Sender<Bytes>,
    patience: Duration,
) {
    #[expect(
        clippy::disallowed_methods,
        reason = "bounded by the calls; whoever has a result must not wait"
    )]
    let (tell_done, mut done) = mpsc::unbounded_channel();
    let mut under_way = BTreeMap::new();
    for (index, request) in requests.into_iter().enumerate() {
        let trajectory_id: Arc<str> = request.trajectory_id.as_str().into();
        let uniq_id = request.call.uniq_id.clone();
        let reply = request.reply.clone();
        let tell = tell_done.clone();
        // Refused only when the client has gone, and `feed` with it.
        let submitted = calls.submit(request, move |done| drop(tell.send((index, done.result))));
        let in_flight = match submitted {
            Ok(in_flight) => Some(in_flight),
            Err(refusal) => {
                let _ = tell_done.send((index, *refusal));
                None
            }
        };
        under_way.insert(index, Item { trajectory_id, uniq_id, reply, in_flight });
    }
    // So that `done` ends, should a callback ever be dropped uncalled.
    drop(tell_done);
    while !under_way.is_empty() {
        let next = tokio::select! {
            biased;
            // Returning drops what is under way, which cancels it.
            () = lines.closed() => return,
            next = done.recv() => next,
        };
        let next = next.or_else(|| {
            let (&index, item) = under_way.first_key_value()?;
            Some((index, ToolResult { uniq_id: Some(item.uniq_id.clone()), ..lost() }))
        });
        let Some((index, result)) = next else { return };
        let Some(item) = under_way.remove(&index) else { continue };
        if let Some(in_flight) = item.in_flight {
            in_flight.ended();
        }
        let line = line(index, &item.trajectory_id, &result, item.reply.as_ref());
        let sent = tokio::time::timeout(patience, lines.send(line)).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}

/// What is remembered of a call until it ends.
struct Item {
    trajectory_id: Arc<str>,
    uniq_id: String,
    reply: Option<ReplyForm>,
    in_flight: Option<InFlight>,
}

#[derive(Serialize)]
struct Line<'a> {
    index: usize,
    trajectory_id: &'a str,
    result: ResultAnswer<'a>,
    #[serde(flatten)]
    outcome: OutcomeFields,
    timing_ms: TimingMs,
}

#[derive(Serialize)]
struct TimingMs {
    queue: f64,
    slot: f64,
    exec: f64,
}

fn line(
    index: usize,
    trajectory_id: &str,
    result: &ToolResult,
    reply: Option<&ReplyForm>,
) -> Bytes {
    let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
    let timing = &result.timing;
    let line = Line {
        index,
        trajectory_id,
        result: ResultAnswer::of(result, reply),
        outcome: result.into(),
        timing_ms: TimingMs {
            queue: ms(timing.queue),
            slot: ms(timing.slot),
            exec: ms(timing.exec),
        },
    };
    let mut text = super::answer::to_json(&line);
    text.push(b'\n');
    text.into()
}
