//! The client of a ToolServer.
//!
//! Blocking; the executor calls it from threads of its own (`tool-server-N`), as many as the
//! ToolServer may have calls at once, so that one that hangs delays its own callers only.
//! What is said on the wire is in `wire::tool_server`.
//!
//! A request is never sent twice: an external tool may have effects, and the protocol has no way
//! to ask whether the first one arrived. So each has a connection of its own: on one that was idle
//! it could meet a server that is just closing it, and what became of the call could not be told.

use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, select};
use ureq::Agent;
use ureq::http::Uri;

use super::ExternalCall;
use crate::client::{self, AgentConfig, Authorization, Failure, Names};
use crate::config::ToolServerConfig;
use crate::error::ToolServerError;
use crate::interrupt::Interrupt;
use crate::thread::OwnedThread;
use crate::tool::python_json::float_text;
use crate::tool::{Outcome, ToolResult, ToolSchema};
use crate::wire::tool_server::{ExecuteRequest, ExecuteResponse, Tool, ToolsResponse};

/// How long a request may take to end when a start is given up.
const GIVE_UP: Duration = Duration::from_millis(400);
/// How long `GET /tools` may take.
const TOOLS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to find out whether the URL's scheme is wrong.
const SCHEME_TIMEOUT: Duration = Duration::from_secs(5);

/// A client of one ToolServer.
pub(crate) struct ToolServer {
    agent: Agent,
    names: Names,
    execute: Uri,
    tools: Uri,
    authorization: Option<Authorization>,
    concurrency: usize,
}

impl ToolServer {
    /// A client; connects to nothing yet.
    ///
    /// # Errors
    /// The URL, token or concurrency makes no sense.
    pub(crate) fn new(config: &ToolServerConfig) -> Result<Self, ToolServerError> {
        let invalid = ToolServerError::new;
        config.check().map_err(|error| invalid(error.to_string()))?;
        let endpoint = |path| client::endpoint("ToolServer", &config.url, path);
        let authorization =
            config.token.as_ref().map(|token| Authorization::bearer(token.expose())).transpose();
        let names = Names::new();
        let agent = client::agent(AgentConfig {
            idle_connections: 0,
            read_timeout: None,
            ca_pem: config.ca_pem.as_deref(),
            names: &names,
        });
        Ok(Self {
            agent: agent.map_err(invalid)?,
            names,
            execute: endpoint("/execute").map_err(invalid)?,
            tools: endpoint("/tools").map_err(invalid)?,
            authorization: authorization.map_err(invalid)?,
            concurrency: config.concurrency,
        })
    }

    /// How many calls it may have at once.
    pub(crate) fn concurrency(&self) -> usize {
        self.concurrency
    }

    /// Ends the requests that are under way: their callers need no answer any more.
    pub(crate) fn interrupt(&self) {
        self.agent.clone().shutdown();
        self.names.give_up();
    }

    /// The tools it offers. Blocks for up to 30 s, or until `interrupt` is triggered: `None`.
    ///
    /// # Errors
    /// It does not answer, or not with a list of tools.
    pub(crate) fn tools(
        &self,
        interrupt: &Interrupt,
    ) -> Result<Option<Vec<ToolSchema>>, ToolServerError> {
        let failed = |error: String| {
            ToolServerError::new(format!("the ToolServer does not say what it offers: {error}"))
        };
        let request = self.agent.get(self.tools.clone());
        let request = client::authorize(request, self.authorization.as_ref());
        let request = request.config().timeout_global(Some(TOOLS_TIMEOUT)).build();
        let (tell, told) = bounded(1);
        let (agent, uri) = (self.agent.clone(), self.tools.clone());
        // On a thread of its own, since connecting cannot be stopped.
        let ask = move || {
            let answer = request.call().map_err(Failure::from);
            let answer = answer.and_then(client::read_json::<ToolsResponse>);
            let answer = answer.map_err(|failure| {
                let may_be = failure.may_be_the_scheme();
                let other = may_be.then(|| client::other_scheme(&agent, &uri, SCHEME_TIMEOUT));
                other.flatten().map_or(failure, Failure::NoTls)
            });
            // Refused only after the start was given up.
            drop(tell.send(answer));
        };
        let thread = OwnedThread::spawn("tool-connect", ask)
            .map_err(|error| ToolServerError::with_source("cannot start a thread", error))?;
        let answer = select! {
            recv(told) -> answer => Some(answer),
            recv(interrupt.fired()) -> _ => None,
        };
        if answer.is_none() {
            self.interrupt();
        }
        thread.join_or_leave(Instant::now() + GIVE_UP);
        let Some(answer) = answer else { return Ok(None) };
        let answer = answer.unwrap_or_else(|_| Err(Failure::Broken("asking it panicked".into())));
        let tools = answer.map_err(|error| failed(error.text()))?;
        Ok(Some(tools.into_schemas().collect()))
    }

    /// Runs a call and gives its result; blocks for the call's timeout at most.
    pub(crate) fn execute(&self, call: &ExternalCall<'_>) -> ToolResult {
        let timeout = call.timeout;
        match self.post(call) {
            Ok(response) => {
                let mut result = if response.success {
                    ToolResult::ok("")
                } else {
                    ToolResult::failure(Outcome::ToolError, response.error)
                };
                result.output = response.output;
                result.metadata = response.metadata;
                result
            }
            Err(Failure::Timeout) => ToolResult::failure(
                Outcome::Timeout,
                format!("External tool timed out after {}s", float_text(timeout.as_secs_f64())),
            ),
            Err(failure) => {
                let may_have_executed = failure.may_have_executed();
                let error = format!("External tool failed: {}", failure.text());
                let mut result = ToolResult::failure(Outcome::ExternalFailed, error);
                result.may_have_executed = may_have_executed;
                result
            }
        }
    }

    fn post(&self, call: &ExternalCall<'_>) -> Result<ExecuteResponse, Failure> {
        let body = serde_json::to_vec(&ExecuteRequest {
            trajectory_id: call.trajectory_id,
            tool: Tool { name: call.name, arguments: call.arguments, uniq_id: call.uniq_id },
            timeout_s: call.timeout.as_secs_f64(),
            slot_id: call.slot_id,
            container_addr: call.container_addr,
        })
        .map_err(|error| Failure::NotSent(error.to_string()))?;
        let request =
            self.agent.post(self.execute.clone()).header("Content-Type", "application/json");
        let request = client::authorize(request, self.authorization.as_ref());
        let request = request.config().timeout_global(Some(call.timeout)).build();
        client::read_json(request.send(&body[..])?)
    }
}
