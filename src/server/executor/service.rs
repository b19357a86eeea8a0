//! The routes: from a request to its answer.
//!
//! Everything here runs on the runtime and does not block. What does – artifacts, releases,
//! statistics, the reading of large bodies – goes to the runtime's threads for such things, so
//! many of each kind at once.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{ALLOW, HeaderName, HeaderValue, LOCATION};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot};

use super::answer::{self, Lent, ResultAnswer, to_json};
use super::calls::{Calls, lost};
use super::snapshots::{self, Answered, ForkBody, GradeRequest, SnapshotRequest};
use super::validate::{self, BeginRequest, CallRequest, Problems, Rejection, ReplyForm, Written};
use super::{batch, metrics};
use crate::artifact::ArtifactError;
use crate::error::BeginError;
use crate::executor::{CallHandle, ToolExecutor, no_turn};
use crate::server::auth::Refusal;
use crate::server::http::{BodyError, HttpLimits, Method, Request, Response, StatusCode, response};
use crate::tool::{Outcome, ToolResult};

/// A body up to this size is parsed where it is read: handing it to a thread would take longer.
const SMALL_BODY: usize = 64 * 1024;

const JSON: &str = "application/json";

/// What the server is made of, shared by all its requests.
pub(super) struct Service {
    pub(super) executor: Arc<ToolExecutor>,
    calls: Arc<Calls>,
    max_body: usize,
    /// How long a client may leave unread what it is sent.
    pub(super) patience: Duration,
    pub(super) artifacts: Arc<Semaphore>,
    pub(super) releases: Arc<Semaphore>,
    statistics: Arc<Semaphore>,
    parsing: Arc<Semaphore>,
    snapshots: Arc<Semaphore>,
}

/// A path that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Root,
    Health,
    Status,
    Metrics,
    Execute,
    ExecuteBatch,
    Parse,
    Begin,
    Cancel,
    Release,
    Sandboxes,
    ReadArtifact,
    ListArtifacts,
    ArchiveArtifacts,
    PutFiles,
    CopyFile,
    Snapshot,
    Snapshots,
    DropSnapshot,
    Fork,
    Grade,
}

impl Route {
    fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/" => Self::Root,
            "/health" => Self::Health,
            "/status" => Self::Status,
            "/metrics" => Self::Metrics,
            "/execute" => Self::Execute,
            "/execute_batch" => Self::ExecuteBatch,
            "/parse" => Self::Parse,
            "/begin" => Self::Begin,
            "/cancel" => Self::Cancel,
            "/release" => Self::Release,
            "/sandboxes" => Self::Sandboxes,
            "/artifacts/read" => Self::ReadArtifact,
            "/artifacts/list" => Self::ListArtifacts,
            "/artifacts/archive" => Self::ArchiveArtifacts,
            "/artifacts/put" => Self::PutFiles,
            "/artifacts/copy" => Self::CopyFile,
            "/snapshot" => Self::Snapshot,
            "/snapshots" => Self::Snapshots,
            "/snapshots/drop" => Self::DropSnapshot,
            "/fork" => Self::Fork,
            "/grade" => Self::Grade,
            _ => return None,
        })
    }

    fn method(self) -> Method {
        match self {
            Self::Root | Self::Health | Self::Status | Self::Metrics | Self::Snapshots => {
                Method::GET
            }
            _ => Method::POST,
        }
    }
}

impl Service {
    /// The routes before `executor`.
    pub(super) fn new(executor: Arc<ToolExecutor>, limits: HttpLimits) -> Self {
        let places = |number| Arc::new(Semaphore::new(number));
        Self {
            calls: Calls::new(executor.clone()),
            executor,
            max_body: limits.max_body,
            patience: limits.write_timeout,
            // Together below the 512 threads that the runtime has for blocking.
            artifacts: places(16),
            releases: places(256),
            statistics: places(4),
            parsing: places(4),
            snapshots: places(128),
        }
    }

    /// Answers a request. Dropped before it has, it cancels the calls of the request.
    pub(super) async fn serve(self: Arc<Self>, request: Request) -> Response {
        if let Err(refusal) = request.verdict().admitted_without_token() {
            return refused(refusal);
        }
        let Some(route) = Route::of(request.path()) else { return elsewhere(&request) };
        let tells_sandboxes = route == Route::Sandboxes && *request.method() == Method::GET;
        if *request.method() != route.method() && !tells_sandboxes {
            let mut refusal = detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
            let allow = if route.method() == Method::GET { "GET" } else { "POST" };
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
            return refusal;
        }
        match self.answer(route, request).await {
            Ok(answer) | Err(answer) => answer,
        }
    }

    /// The answer, `Err` being one that came about early.
    async fn answer(&self, route: Route, request: Request) -> Result<Response, Response> {
        Ok(match route {
            Route::Root => json_response(r#"{"message":"Atropos-Agent Tool Executor"}"#),
            Route::Health => json_response(r#"{"status":"ok"}"#),
            Route::Status => {
                let names = request.verdict().admitted().is_ok();
                let executor = self.executor.clone();
                let status = move || answer::status(&executor.stats(), names);
                json_response(blocking(&self.statistics, status).await?)
            }
            Route::Metrics => {
                request.verdict().admitted().map_err(refused)?;
                let (executor, connections) = (self.executor.clone(), request.connections());
                let text = move || metrics::text(&executor.stats(), connections);
                let text = blocking(&self.statistics, text).await?;
                response(StatusCode::OK, metrics::CONTENT_TYPE, text)
            }
            Route::Execute => {
                let wrong = validate::query(request.query());
                let call = self.body(request, wrong, validate::call).await?;
                self.execute(call).await
            }
            Route::ExecuteBatch => {
                let calls = self.body(request, None, validate::calls).await?;
                batch::run(self.calls.clone(), calls, self.patience)
            }
            Route::Parse => {
                let parse = self.body(request, None, validate::parse).await?;
                let executor = self.executor.clone();
                let size = match &parse.what {
                    Written::Text(text) => text.len(),
                    // How large it is only a walk would tell.
                    Written::Message(_) => usize::MAX,
                };
                let parse = move || answer::parse(executor.registry(), &parse);
                let parsed = match size <= SMALL_BODY {
                    true => parse(),
                    false => blocking(&self.parsing, parse).await?,
                };
                parsed.map_or_else(wrong_message, json_response)
            }
            Route::Begin => {
                let begin = self.body(request, None, validate::begin).await?;
                self.begin(begin).await?
            }
            Route::Cancel => {
                let meant = self.body(request, None, validate::cancel).await?;
                let cancelled = self.calls.cancel(&meant.trajectory_id, meant.uniq_id.as_deref());
                json_response(to_json(&json!({"status": "ok", "cancelled": cancelled})))
            }
            Route::Release => {
                let release = self.body(request, None, validate::release).await?;
                self.release(release.trajectory_id, release.reset_workspace).await;
                json_response(r#"{"status":"ok"}"#)
            }
            Route::Sandboxes if *request.method() == Method::GET => {
                request.verdict().admitted().map_err(refused)?;
                let executor = self.executor.clone();
                let told = move || answer::sandboxes(&executor.stats());
                json_response(blocking(&self.statistics, told).await?)
            }
            Route::Sandboxes => {
                let urls = self.body(request, None, validate::sandboxes).await?;
                let executor = self.executor.clone();
                let used = move || executor.use_containers(&urls);
                match blocking(&self.statistics, used).await? {
                    Ok(()) => json_response(r#"{"status":"ok"}"#),
                    Err(error) => detail(StatusCode::CONFLICT, &error.to_string()),
                }
            }
            Route::ReadArtifact => {
                let read = self.body(request, None, validate::read_artifact).await?;
                let lent = self.lease(&read.trajectory_id).await;
                self.artifacts(lent, move |executor, lent| answer::read(executor, lent, &read))
                    .await?
            }
            Route::ListArtifacts => {
                let list = self.body(request, None, validate::list_artifacts).await?;
                let lent = self.lease(&list.trajectory_id).await;
                self.artifacts(lent, move |executor, lent| answer::list(executor, lent, &list))
                    .await?
            }
            Route::Snapshot => {
                let read = snapshots::read::<SnapshotRequest>;
                let request = self.body(request, None, read).await?;
                let lent = self.lease(&request.trajectory_id).await;
                self.snapshots(move |executor| snapshots::snapshot(executor, lent, &request))
                    .await?
            }
            Route::Snapshots => {
                request.verdict().admitted().map_err(refused)?;
                self.snapshots(snapshots::list).await?
            }
            Route::DropSnapshot => {
                let request = self.body(request, None, snapshots::read).await?;
                self.snapshots(move |executor| snapshots::drop_snapshot(executor, &request)).await?
            }
            Route::Fork => {
                let request = self.body(request, None, snapshots::read::<ForkBody>).await?;
                let lent = self.lease(&request.trajectory_id).await;
                self.snapshots(move |executor| snapshots::fork(executor, lent, &request)).await?
            }
            Route::Grade => {
                let request = self.body(request, None, snapshots::read::<GradeRequest>).await?;
                let lent = self.lease(&request.trajectory_id).await;
                self.snapshots(move |executor| snapshots::grade(executor, lent, &request)).await?
            }
            Route::ArchiveArtifacts => {
                let archive = self.body(request, None, validate::archive_artifacts).await?;
                let lent = self.lease(&archive.trajectory_id).await;
                self.artifacts(lent, move |executor, lent| {
                    answer::archive(executor, lent, &archive)
                })
                .await?
            }
            Route::PutFiles => {
                request.verdict().admitted().map_err(refused)?;
                self.put_files(request.into_upload()).await?
            }
            Route::CopyFile => {
                request.verdict().admitted().map_err(refused)?;
                let body = request.read_body(self.max_body).await.map_err(unreadable)?;
                self.copy_file(&body).await?
            }
        })
    }

    /// The request's body as `read` reads it, from a client that may use the server; `wrong` is
    /// what is wrong with the request besides.
    ///
    /// The reference tells what is wrong before it refuses a client. Here nothing is read of a body
    /// before the client has shown the token.
    async fn body<T: Send + 'static>(
        &self,
        request: Request,
        wrong: Option<Value>,
        read: fn(Value) -> Result<T, Problems>,
    ) -> Result<T, Response> {
        request.verdict().admitted().map_err(refused)?;
        let content_type = request.content_type().map(str::to_owned);
        let bytes = request.read_body(self.max_body).await.map_err(unreadable)?;
        let small = bytes.len() <= SMALL_BODY;
        let parse = move || {
            let body = validate::body(&bytes, content_type.as_deref())?;
            match (read(body), wrong) {
                (Ok(read), None) => Ok(read),
                (Ok(_), Some(wrong)) => Err(Rejection::Problems(vec![wrong])),
                (Err(problems), wrong) => {
                    Err(Rejection::Problems(wrong.into_iter().chain(problems).collect()))
                }
            }
        };
        let read = if small { parse() } else { blocking(&self.parsing, parse).await? };
        match read {
            Ok(read) => Ok(read),
            Err(Rejection::Problems(problems)) => {
                let body = to_json(&json!({"detail": problems}));
                Err(response(StatusCode::UNPROCESSABLE_ENTITY, JSON, body))
            }
            Err(Rejection::NotText) => {
                Err(detail(StatusCode::BAD_REQUEST, "There was an error parsing the body"))
            }
        }
    }

    async fn execute(&self, request: CallRequest) -> Response {
        let (tell_done, done) = oneshot::channel();
        let uniq_id = request.call.uniq_id.clone();
        let reply = request.reply.clone();
        // Refused only when the client has gone.
        let on_done = move |completion: crate::Completion| drop(tell_done.send(completion.result));
        let in_flight = match self.calls.submit(request, on_done) {
            Ok(in_flight) => in_flight,
            Err(refusal) => return result_response(&refusal, reply.as_ref()),
        };
        let result = done.await;
        in_flight.ended();
        let result = result.unwrap_or_else(|_| ToolResult { uniq_id: Some(uniq_id), ..lost() });
        result_response(&result, reply.as_ref())
    }

    /// Begins a trajectory with its spec, and answers when it has; with a result, as of a call,
    /// that says so. A client that goes away cancels it.
    async fn begin(&self, request: BeginRequest) -> Result<Response, Response> {
        let BeginRequest { trajectory_id, spec } = request;
        let (tell_done, done) = oneshot::channel();
        let executor = self.executor.clone();
        // It takes its turn with the executor's thread; so it is a matter of moments.
        let submitted = blocking(&self.parsing, move || {
            // Refused only when the client has gone.
            let on_done = move |begun| drop(tell_done.send(begun));
            let handle = executor.begin_then(&trajectory_id, spec, on_done)?;
            // Also where the client has gone by now, so that this is dropped.
            Ok(CancelOnDrop(Some(handle)))
        });
        let handle = match submitted.await? {
            Ok(handle) => handle,
            Err(error @ (BeginError::Closed | BeginError::QueueFull)) => {
                let result = ToolResult::failure(Outcome::NeverRan, error.to_string());
                return Ok(result_response(&result, None));
            }
            Err(error @ BeginError::AlreadyBegun) => {
                return Err(detail(StatusCode::CONFLICT, &error.to_string()));
            }
            Err(error) => {
                let problem = validate::wrong_spec(&error.to_string());
                let body = to_json(&json!({"detail": [problem]}));
                return Err(response(StatusCode::UNPROCESSABLE_ENTITY, JSON, body));
            }
        };
        let begun = done.await;
        handle.ended();
        let result = match begun {
            Ok(Ok(())) => ToolResult::ok(""),
            Ok(Err(BeginError::Failed(failure))) => failure.result(),
            Ok(Err(error)) => ToolResult::failure(Outcome::NeverRan, error.to_string()),
            Err(_) => lost(),
        };
        Ok(result_response(&result, None))
    }

    /// Releases a trajectory and waits for that to be done – unless very many wait already: then it
    /// is only on its way. Happens also when the client does not wait for the answer.
    async fn release(&self, trajectory_id: String, reset_workspace: bool) {
        let Ok(place) = self.releases.clone().try_acquire_owned() else {
            if reset_workspace {
                self.executor.submit_release(&trajectory_id);
            } else {
                self.executor.submit_release_keeping_files(&trajectory_id);
            }
            return;
        };
        let executor = self.executor.clone();
        let released = tokio::task::spawn_blocking(move || {
            let _place = place;
            let released = if reset_workspace {
                executor.release(&trajectory_id)
            } else {
                executor.release_keeping_files(&trajectory_id)
            };
            if let Err(error) = released {
                // The slot is kept back until it is empty: nothing for the client to see to.
                log::warn!("the release of trajectory {trajectory_id:?}: {error}");
            }
        });
        // An error is a panic, which was reported, or the server's end.
        let _ = released.await;
    }

    /// Waits for a trajectory's turn and the use of its slot. That takes no place of those who
    /// read, and ends, out of line, with the client that waits.
    pub(super) async fn lease(&self, trajectory_id: &str) -> Lent {
        let (give, lent) = oneshot::channel();
        // What comes when the client has gone is dropped, and thereby given back.
        let reply = move |answer| drop(give.send(answer));
        let request = self.executor.request_lease(trajectory_id, Box::new(reply));
        match tokio::time::timeout(self.executor.queue_timeout(), lent).await {
            Ok(answer) => {
                request.answered();
                answer.unwrap_or(Err(ArtifactError::Closed))
            }
            Err(_) => Err(no_turn()),
        }
    }

    /// Answers what is asked about snapshots, by a trajectory whose turn it is.
    async fn snapshots(
        &self,
        answer: impl FnOnce(&ToolExecutor) -> Answered + Send + 'static,
    ) -> Result<Response, Response> {
        let executor = self.executor.clone();
        let (status, body) = blocking(&self.snapshots, move || answer(&executor)).await?;
        Ok(response(status, JSON, body))
    }

    /// Answers a reader of artifacts whose turn it is.
    async fn artifacts(
        &self,
        lent: Lent,
        answer: impl FnOnce(&ToolExecutor, Lent) -> Vec<u8> + Send + 'static,
    ) -> Result<Response, Response> {
        let executor = self.executor.clone();
        let answer = blocking(&self.artifacts, move || answer(&executor, lent)).await?;
        Ok(json_response(answer))
    }
}

/// Runs what blocks on a thread for it, when there is a place.
pub(super) async fn blocking<T: Send + 'static>(
    places: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Response> {
    let failed = || detail(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error");
    // The semaphores are never closed.
    let place = places.clone().acquire_owned().await.map_err(|_| failed())?;
    let done = tokio::task::spawn_blocking(move || {
        // Taken along: the place is free again when the work has ended, not when its client left.
        let _place = place;
        work()
    });
    done.await.map_err(|error| {
        log::error!("a request's work failed: {error}");
        failed()
    })
}

/// A redirect to the path without, or with, the slash at its end, or 404.
fn elsewhere(request: &Request) -> Response {
    let path = request.path();
    let Some(path) = path.strip_suffix('/').filter(|path| Route::of(path).is_some()) else {
        return detail(StatusCode::NOT_FOUND, "Not Found");
    };
    let location = match request.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut redirect = response(StatusCode::TEMPORARY_REDIRECT, JSON, Bytes::new());
    // What came as a request's target is fit for a header.
    if let Ok(location) = HeaderValue::from_str(&location) {
        redirect.headers_mut().insert(LOCATION, location);
    }
    redirect
}

pub(super) fn json_response(body: impl Into<Bytes>) -> Response {
    response(StatusCode::OK, JSON, body)
}

/// A tool's result. How the call ended is in headers, too.
fn result_response(result: &ToolResult, reply: Option<&ReplyForm>) -> Response {
    let mut answer = json_response(to_json(&ResultAnswer::of(result, reply)));
    let may_have = if result.may_have_executed { "true" } else { "false" };
    let outcome = HeaderName::from_static("x-tool-outcome");
    answer.headers_mut().insert(outcome, HeaderValue::from_static(result.outcome.as_str()));
    let executed = HeaderName::from_static("x-tool-may-have-executed");
    answer.headers_mut().insert(executed, HeaderValue::from_static(may_have));
    let models = if result.model_attributable() { "true" } else { "false" };
    let attributable = HeaderName::from_static("x-tool-model-attributable");
    answer.headers_mut().insert(attributable, HeaderValue::from_static(models));
    answer
}

/// A begin under way. Dropped before it has ended, it cancels it: the client went away.
struct CancelOnDrop(Option<CallHandle>);

impl CancelOnDrop {
    fn ended(mut self) {
        self.0 = None;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(handle) = &self.0 {
            handle.cancel();
        }
    }
}

/// The 422 for a message in which no calls can be looked for.
fn wrong_message(error: String) -> Response {
    let problem = json!({"type": "value_error", "loc": ["body", "message"], "msg": error});
    let body = to_json(&json!({"detail": [problem]}));
    response(StatusCode::UNPROCESSABLE_ENTITY, JSON, body)
}

pub(super) fn detail(status: StatusCode, detail: &str) -> Response {
    response(status, JSON, to_json(&json!({"detail": detail})))
}

fn refused(refusal: Refusal) -> Response {
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::FORBIDDEN);
    detail(status, refusal.detail)
}

pub(super) fn unreadable(error: BodyError) -> Response {
    match error {
        BodyError::TooLarge(max) => {
            let text = format!("The request's body is too large: at most {max} bytes");
            detail(StatusCode::PAYLOAD_TOO_LARGE, &text)
        }
        BodyError::TooSlow => {
            detail(StatusCode::REQUEST_TIMEOUT, "The request's body took too long")
        }
        BodyError::Broken => detail(StatusCode::BAD_REQUEST, "There was an error parsing the body"),
    }
}
