//! The reference's protocol: from a request to its answer.
//!
//! Everything here runs on the server's runtime and does not block: what happens in slots happens
//! on the threads of [`Slots`](super::slots::Slots), and large texts are read and written on the
//! runtime's threads for what blocks. The shapes and texts are
//! [`wire::sandbox`](crate::wire::sandbox)'s.
//!
//! A client that goes away cancels nothing, as with the reference.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{Semaphore, oneshot};

use super::native::PlainUse;
use super::slots::{FileWork, SlotCall, SlotJob, TOOLS};
use super::{
    Method, Request, Response, Service, StatusCode, TEXT, not_found, response, wrong_method,
};
use crate::artifact::ArtifactError;
use crate::backend::{Backend, SlotRef};
use crate::server::http::BodyError;
use crate::tool::{JsonObject, Outcome, ToolResult};
use crate::wire::native::{FEATURE, OLDER};
use crate::wire::sandbox::{
    self as wire, ArchiveRequest, CallRequest, Limit, ListRequest, Raised, ReadRequest, Refused,
    Unfit, Unreadable,
};

/// The one route that needs no token.
pub(super) const HEALTH: &str = "/health";

/// A text up to this size is read and written where it comes along: handing it to a thread would
/// take longer.
const SMALL: usize = 64 * 1024;

const JSON: &str = "application/json; charset=utf-8";

/// What this protocol needs besides the slots.
pub(super) struct Plain {
    /// How many large texts may be worked on at once.
    texts: Arc<Semaphore>,
}

impl Default for Plain {
    fn default() -> Self {
        Self { texts: Arc::new(Semaphore::new(4)) }
    }
}

/// A path that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Health,
    Slots,
    Images,
    Execute,
    Batch,
    Reset,
    ReadArtifact,
    ListArtifacts,
    ArchiveArtifacts,
}

impl Route {
    fn of(path: &str) -> Option<Self> {
        Some(match path {
            HEALTH => Self::Health,
            "/slots" => Self::Slots,
            "/images" => Self::Images,
            "/execute" => Self::Execute,
            "/batch" => Self::Batch,
            "/reset" => Self::Reset,
            "/artifacts/read" => Self::ReadArtifact,
            "/artifacts/list" => Self::ListArtifacts,
            "/artifacts/archive" => Self::ArchiveArtifacts,
            _ => return None,
        })
    }

    fn is_read(self) -> bool {
        matches!(self, Self::Health | Self::Slots | Self::Images)
    }

    /// Whether its failures are told as text.
    fn fails_in_text(self) -> bool {
        matches!(self, Self::ReadArtifact | Self::ListArtifacts | Self::ArchiveArtifacts)
    }

    /// The answer where the reference's program fails.
    fn raised(self, raised: &Raised) -> Response {
        if self.fails_in_text() {
            let text = "500 Internal Server Error\n\nServer got itself in trouble";
            return response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, text);
        }
        answer(StatusCode::INTERNAL_SERVER_ERROR, &wire::error(&raised.0))
    }

    /// The answer to a body that could not be had.
    fn unread(self, error: BodyError) -> Response {
        match error {
            BodyError::TooLarge(max) if self.fails_in_text() => {
                let text = format!("Maximum request body size {max} exceeded.");
                response(StatusCode::PAYLOAD_TOO_LARGE, TEXT, text)
            }
            BodyError::TooLarge(_) => {
                refused(StatusCode::PAYLOAD_TOO_LARGE, "Request Entity Too Large")
            }
            BodyError::TooSlow => refused(StatusCode::REQUEST_TIMEOUT, "Request Timeout"),
            BodyError::Broken => refused(StatusCode::BAD_REQUEST, "Invalid JSON"),
        }
    }
}

/// Answers a request of a client that may use the server.
pub(super) async fn serve(service: &Arc<Service>, request: Request) -> Response {
    let Some(route) = Route::of(request.path()) else { return not_found() };
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    if route.is_read() != is_read || !(is_read || *request.method() == Method::POST) {
        return wrong_method(if route.is_read() { "GET,HEAD" } else { "POST" });
    }
    match service.answer(route, request).await {
        Ok(answer) | Err(answer) => answer,
    }
}

impl Service {
    /// The answer, `Err` being one that came about early.
    async fn answer(&self, route: Route, request: Request) -> Result<Response, Response> {
        match route {
            Route::Health => Ok(self.health()),
            Route::Slots => Ok(self.list_slots()),
            Route::Images => Ok(self.list_images()),
            Route::Execute => {
                let body = self.body(route, request).await?;
                self.execute(body).await.map_err(|raised| route.raised(&raised))
            }
            Route::Batch => self.batch(route, request).await,
            Route::Reset => {
                let body = self.body(route, request).await?;
                self.reset(body).await.map_err(|raised| route.raised(&raised))
            }
            Route::ReadArtifact | Route::ListArtifacts | Route::ArchiveArtifacts => {
                let body = self.body(route, request).await?;
                self.artifacts(route, body).await.map_err(|raised| route.raised(&raised))
            }
        }
    }

    fn health(&self) -> Response {
        let slots = self.slots.len();
        let capabilities = self.slots.capabilities();
        let health = wire::Health {
            slots,
            executing: (0..slots).filter(|slot| self.slots.is_executing(*slot)).count(),
            isolated: capabilities.isolation.not_isolated_because().is_none(),
            features: &[FEATURE, OLDER[0].0, OLDER[1].0],
            instance: &self.instance,
            url: &self.url,
            level: capabilities.isolation_level,
            weakened_because: &capabilities.weakened_because,
            limits: capabilities.limits,
            warm_slots: capabilities.warm_slots,
            network: capabilities.network,
            draining: self.native.draining().0,
            spec: &capabilities.spec,
            image_ids: capabilities.image_ids,
            no_images_because: capabilities.no_images_because.as_deref(),
        };
        ok(&health.answer())
    }

    fn list_slots(&self) -> Response {
        let slot = |slot| wire::slot(self.slots.name(slot), self.slots.current(slot).as_deref());
        let slots: Vec<Value> = (0..self.slots.len()).map(slot).collect();
        ok(&serde_json::json!({"slots": slots}))
    }

    /// Which images there are, by the names that they may be asked for by.
    fn list_images(&self) -> Response {
        match self.slots.images() {
            Some(held) => ok(&serde_json::json!({
                "images": held.names,
                "more": held.more,
                "pulling": held.pulling,
                "free_bytes": held.free_bytes,
                "reserve_bytes": held.reserve_bytes,
                "disk_full": held.is_full(),
            })),
            None => refused(StatusCode::NOT_FOUND, "slots cannot have the files of images here"),
        }
    }

    /// The request's body.
    async fn body(&self, route: Route, request: Request) -> Result<Value, Response> {
        let content_type = request.content_type().map(str::to_owned);
        let bytes = match request.read_body(self.max_body).await {
            Ok(bytes) => bytes,
            Err(error) => return Err(route.unread(error)),
        };
        let size = bytes.len();
        let parse = move || wire::body(&bytes, content_type.as_deref());
        match self.on_text(size, parse).await? {
            Ok(body) => Ok(body),
            Err(Unreadable::NotJson) => Err(refused(StatusCode::BAD_REQUEST, "Invalid JSON")),
            Err(Unreadable::Raised(raised)) => Err(route.raised(&raised)),
        }
    }

    /// Works on a text of about this size.
    async fn on_text<T: Send + 'static>(
        &self,
        size: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Response> {
        if size <= SMALL {
            return Ok(work());
        }
        // The semaphore is never closed.
        let place = self.plain.texts.clone().acquire_owned().await;
        let done = tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        });
        done.await.map_err(|error| {
            log::error!("a request's text could not be worked on: {error}");
            refused(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error")
        })
    }

    async fn execute(&self, body: Value) -> Result<Response, Raised> {
        let item = self.item(wire::object(body)?)?;
        if let Item::Taken(why, _) = item {
            return Ok(refused(StatusCode::CONFLICT, why));
        }
        let mut waiting = self.start(vec![item]);
        let done = match waiting.pop() {
            Some(waiting) => waiting.done().await,
            None => return Err(Raised("no execution".to_owned())),
        };
        Ok(ok(&done))
    }

    async fn batch(&self, route: Route, request: Request) -> Result<Response, Response> {
        let items = match self.body(route, request).await? {
            Value::Array(items) => items,
            _ => return Err(refused(StatusCode::BAD_REQUEST, "Expected array of requests")),
        };
        // One that is no object fails all, before any begins.
        let objects: Result<Vec<_>, Raised> = items.into_iter().map(wire::object).collect();
        let objects = objects.map_err(|raised| route.raised(&raised))?;
        let item = |object| {
            self.item(object).unwrap_or_else(|raised| Item::Answered(wire::raised_item(&raised)))
        };
        let waiting = self.start(objects.into_iter().map(item).collect());
        let mut results = Vec::with_capacity(waiting.len());
        let mut size = 0;
        for waiting in waiting {
            let done = waiting.done().await;
            size += done["output"].as_str().map_or(0, str::len);
            results.push(done);
        }
        let text = self.on_text(size, move || wire::to_text(&Value::Array(results))).await?;
        Ok(response(StatusCode::OK, JSON, text))
    }

    /// What is to happen with an execution object.
    fn item(&self, request: JsonObject) -> Result<Item, Raised> {
        let name = wire::slot_id(&request)?;
        let Some(slot) = self.slots.find(&name) else {
            // The executor's mistake, not the model's.
            let error = format!("Unknown slot: {name}");
            let mut result = ToolResult::failure(Outcome::BackendFailed, error);
            result.may_have_executed = false;
            let execution_id = request.get("execution_id").cloned().unwrap_or_default();
            return Ok(Item::Answered(wire::result(result, execution_id)));
        };
        match wire::call(request, &TOOLS) {
            Ok(call) => Ok(match self.native.use_plainly(slot) {
                Ok(used) => Item::Call(slot, call, used),
                Err(why) => Item::Taken(why, call.execution_id),
            }),
            Err(Unfit::Raised(raised)) => Err(raised),
            Err(Unfit::InTool(why, execution_id)) => {
                let result = wire::not_started(&why, self.slots.isolates());
                Ok(Item::Answered(wire::result(result, execution_id)))
            }
        }
    }

    /// Starts what is to be started; gives what waits for each item.
    fn start(&self, items: Vec<Item>) -> Vec<Waiting> {
        let mut calls = Vec::new();
        let waiting = items.into_iter().map(|item| match item {
            Item::Answered(answer) => Waiting::Answered(answer),
            Item::Taken(why, execution_id) => {
                let mut result = ToolResult::failure(Outcome::BackendFailed, why);
                result.may_have_executed = false;
                Waiting::Answered(wire::result(result, execution_id))
            }
            Item::Call(slot, CallRequest { tool, arguments, execution_id, limit }, used) => {
                let (tell, done) = oneshot::channel();
                let id = match &execution_id {
                    Value::Null => String::new(),
                    id => wire::shown(id),
                };
                calls.push(SlotCall {
                    slot,
                    trajectory_id: id.into(),
                    tool,
                    arguments,
                    timeout: limit.timeout,
                    // Refused only when the client has gone.
                    on_done: Box::new(move |result| {
                        drop(used);
                        drop(tell.send(result));
                    }),
                });
                Waiting::Running { done, limit, execution_id }
            }
        });
        let waiting = waiting.collect();
        if !calls.is_empty() {
            self.slots.execute(calls, Box::new(|| {}));
        }
        waiting
    }

    async fn reset(&self, body: Value) -> Result<Response, Raised> {
        let name = wire::slot_id(&wire::object(body)?)?;
        let result = match self.slots.find(&name) {
            None => ToolResult::failure(Outcome::ToolError, format!("Unknown slot: {name}")),
            Some(slot) => {
                let used = match self.native.use_plainly(slot) {
                    Ok(used) => used,
                    Err(why) => return Ok(refused(StatusCode::CONFLICT, why)),
                };
                let (tell, done) = oneshot::channel();
                let on_done = move |reset| {
                    drop(used);
                    drop(tell.send(reset));
                };
                self.slots.reset(slot, Box::new(on_done));
                match done.await.unwrap_or_else(|_| Err("the server closes".to_owned())) {
                    Ok(()) => ToolResult::ok(format!("Reset workspace for {name}")),
                    Err(why) => {
                        let error = format!("Failed to reset workspace: {why}");
                        ToolResult::failure(Outcome::ToolError, error)
                    }
                }
            }
        };
        Ok(ok(&wire::reset_result(result)))
    }

    async fn artifacts(&self, route: Route, body: Value) -> Result<Response, Raised> {
        let request = wire::object(body)?;
        let name = wire::slot_id(&request)?;
        let Some(slot) = self.slots.find(&name) else {
            return Ok(artifact(Err(Refused::unknown_slot(&name))));
        };
        type Work = Box<dyn FnOnce(&dyn Backend, &SlotRef) -> Result<Value, Refused> + Send>;
        let work: Work = match route {
            Route::ReadArtifact => {
                let read = ReadRequest::of(&request)?;
                Box::new(move |backend, slot| {
                    read.answer(|what| {
                        backend.artifacts().ok_or(ArtifactError::Unsupported)?.read(slot, what)
                    })
                })
            }
            Route::ListArtifacts => {
                let list = ListRequest::of(&request);
                Box::new(move |backend, slot| {
                    list.answer(|what| {
                        backend.artifacts().ok_or(ArtifactError::Unsupported)?.list(slot, what)
                    })
                })
            }
            _ => {
                let archive = ArchiveRequest::of(&request)?;
                Box::new(move |backend, slot| {
                    archive.answer(|what, into| {
                        backend
                            .artifacts()
                            .ok_or(ArtifactError::Unsupported)?
                            .archive(slot, what, into)
                    })
                })
            }
        };
        let threads = match route {
            Route::ArchiveArtifacts => FileWork::Archive,
            _ => FileWork::Read,
        };
        let (tell, done) = oneshot::channel();
        // Refused only when the client has gone. The text is written there, too: it may be long.
        let job = move |backend: &dyn Backend, slot: &SlotRef| {
            drop(tell.send(artifact(work(backend, slot))));
        };
        // An executor that has the slot reads by this route, too, and says by which lease.
        let entered = match wire::lease(&request) {
            Some((session, epoch)) => {
                let entered =
                    self.native.with_leased_slot(session, (slot, epoch), threads, Box::new(job));
                entered.map_err(|_| "the slot is not leased to this session under this epoch")
            }
            None => self.native.use_plainly(slot).map(|used| {
                let job: SlotJob = Box::new(move |backend, slot| {
                    job(backend, slot);
                    drop(used);
                });
                self.slots.with_slot(slot, threads, job);
            }),
        };
        if let Err(why) = entered {
            return Ok(refused(StatusCode::CONFLICT, why));
        }
        Ok(done.await.unwrap_or_else(|_| artifact(Err(Refused::not_done()))))
    }
}

/// An execution object that was looked at.
enum Item {
    /// It runs nothing.
    Answered(Value),
    /// A call for the slot of this index.
    Call(usize, CallRequest, PlainUse),
    /// Its slot cannot be used now: why, and its execution id.
    Taken(&'static str, Value),
}

/// An item's answer to be.
enum Waiting {
    Answered(Value),
    Running { done: oneshot::Receiver<ToolResult>, limit: Limit, execution_id: Value },
}

impl Waiting {
    async fn done(self) -> Value {
        match self {
            Self::Answered(answer) => answer,
            Self::Running { done, limit, execution_id } => {
                let lost = |_| ToolResult::failure(Outcome::BackendFailed, "the result was lost");
                let result = done.await.unwrap_or_else(lost);
                wire::result(limit.told_in(result), execution_id)
            }
        }
    }
}

fn ok(value: &Value) -> Response {
    answer(StatusCode::OK, value)
}

fn answer(status: StatusCode, value: &Value) -> Response {
    response(status, JSON, Bytes::from(wire::to_text(value)))
}

fn artifact(result: Result<Value, Refused>) -> Response {
    match result {
        Ok(value) => ok(&value),
        Err(Refused { status, answer: value }) => {
            let failed = StatusCode::INTERNAL_SERVER_ERROR;
            answer(StatusCode::from_u16(status).unwrap_or(failed), &value)
        }
    }
}

/// The answer that something failed.
pub(super) fn refused(status: StatusCode, text: &str) -> Response {
    answer(status, &wire::error(text))
}
