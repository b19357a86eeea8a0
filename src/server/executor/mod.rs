//! An executor behind a port: [`ExecutorServer`], for clients in other processes and languages.
//!
//! It speaks the protocol of the reference's ToolExecutor server; a client of that one need not
//! change. `service` has the routes, `validate` what is wrong with a body, `answer` the answers,
//! `calls` what is under way, `batch` the streaming route, `metrics` the text for Prometheus. The
//! rules of the calls themselves are the executor's: nothing here decides about one.
//!
//! # Routes
//! | route | token | |
//! |---|---|---|
//! | `GET /`, `/health`, `/status` | no | that it is there, that it is well, its queue and slots; idle holders of slots, by name for those with the token |
//! | `POST /execute` | yes | `{"trajectory_id", "tool": {"name", "arguments", "uniq_id"}, "timeout_s"}`, answered with the tool's result |
//! | | | or `{"trajectory_id", "call": {…}, "timeout_s"}` with a call of OpenAI's (chat, Responses) or Anthropic's as it is, or one of `/parse`; a result has it once more as `message` in the form of the call |
//! | `POST /parse` | yes | `{"text" or "message", "format"}`, what a model wrote, as a whole; answered with its `calls` in their order, the `problems` of those that cannot be read, and the `repairs` |
//! | `POST /begin` | yes | `{"trajectory_id", "spec"}`, a [`TrajectorySpec`](crate::TrajectorySpec); answered when the trajectory has a slot that is so, with a result that has `success`, or why not: so its calls end, too, until its release. 409 for one that has begun, 422 with the fields that there are |
//! | `POST /release` | yes | `{"trajectory_id", "reset_workspace"}` |
//! | `GET /sandboxes` | yes | the sandbox servers, each with its `state` (`up`, `draining`, `unknown`, `down`), its slots and how many are held |
//! | `POST /sandboxes` | yes | `{"urls"}`, all sandbox servers that are to be used from now on: new ones are met behind, on those that are not named trajectories finish; 409 where the servers cannot be changed |
//! | `POST /artifacts/read`, `/list`, `/archive` | yes | the files of a trajectory's workspace |
//! | `POST /artifacts/put` | yes | a line with `{"trajectory_id", "path", "kind", "mode", …}` and then the bytes, of any size; see [`PutFiles`](crate::artifact::PutFiles) |
//! | `POST /artifacts/copy` | yes | `{"trajectory_id", "path"}`, answered with all of the file, as long as `Content-Length` says |
//! | `POST /execute_batch` | yes | `{"calls": […]}`, at most 1,024, each as for `/execute`; answered with NDJSON, a line for each call the moment it ends |
//! | `POST /cancel` | yes | `{"trajectory_id", "uniq_id"}`; `null` is all of the trajectory |
//! | `POST /snapshot` | yes | `{"trajectory_id", "end_processes"}`, answered with the snapshot's `id`, …; `GET /snapshots` has them all, `POST /snapshots/drop` with `{"id"}` gives one up |
//! | `POST /fork` | yes | `{"trajectory_id", "to": […], "end_processes", "spec"}`, answered with `forks`, one for each of `to` |
//! | `POST /grade` | yes | `{"trajectory_id", "spec": {"command", "files", …}}`, answered with what the grader gave, see `docs/grading.md` |
//! | `GET /metrics` | yes | Prometheus text |
//!
//! An answer of these routes that is no success has a `detail` for people, and an `error` for
//! programs, such as `no_slot`, `keeps_processes` or `not_found`.
//!
//! `/parse`, `call`, `/begin`, `/sandboxes` and those from `/execute_batch` on are not the
//! reference's. Neither are the headers of an answer to `/execute` that say how the call ended, for
//! programs: `x-tool-outcome` is the
//! [`Outcome`](crate::Outcome)'s name, `x-tool-may-have-executed` and `x-tool-model-attributable` are `true` or `false`. The
//! same is in every body that carries a tool's result, after the reference's keys: `outcome`,
//! `may_have_executed`, `model_attributable`.
//!
//! The pages that the reference's framework adds, `/docs`, `/redoc` and `/openapi.json`, are left
//! out by choice and answered 404.
//!
//! # A client that goes away
//! cancels its calls, whether they wait or run. A release takes place all the same.

mod answer;
mod batch;
mod calls;
mod files;
mod metrics;
mod service;
mod snapshots;
mod validate;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use self::service::Service;
use super::error::ServeError;
use super::front::Front;
use super::http::{self, HttpServer};
use crate::config::ServerConfig;
use crate::executor::ToolExecutor;

/// A running server. Dropped, it ends at once, and cancels the calls that it has under way.
pub struct ExecutorServer {
    http: HttpServer,
    url: String,
}

impl ExecutorServer {
    /// Serves `executor`, which stays the caller's: to be closed after the server. Does not block;
    /// when it returns, clients can connect.
    ///
    /// # Errors
    /// The configuration makes no sense – no token where others can reach the server, most likely –
    /// or the address cannot be listened on.
    pub fn start(config: ServerConfig, executor: Arc<ToolExecutor>) -> Result<Self, ServeError> {
        let Front { listener, serving, url } = Front::open(&config)?;
        if config.token.is_none() && !config.no_auth && executor.shares_network() {
            log::warn!(
                "without a token commands that have the network may reach this server, and with it \
                 other trajectories; give it a token or no_auth, or let the policy forbid the network"
            );
        }
        let service = Arc::new(Service::new(executor, serving.limits));
        let serve = move |request| service.clone().serve(request);
        let http = HttpServer::start(listener, serving, serve).map_err(ServeError::Thread)?;
        Ok(Self { http, url })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.http.addr()
    }

    /// How others reach it: `http` or `https`, and what it advertises
    /// ([`ServerConfig::advertise`]).
    pub fn url(&self) -> &str {
        &self.url
    }

    /// How many connections it has now, idle ones among them.
    pub fn connections(&self) -> usize {
        self.http.connections()
    }

    /// Stops accepting, lets the requests under way end for `grace` at most, and ends the rest,
    /// which cancels their calls. Blocks. The executor is not closed.
    pub fn close(mut self, grace: Duration) {
        self.http.close(http::deadline(grace));
    }
}

impl fmt::Debug for ExecutorServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecutorServer").field("addr", &self.addr()).finish_non_exhaustive()
    }
}
