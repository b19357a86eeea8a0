//! What the model sees of a `bash_stateful` call: texts, metadata and outcomes. Pure.
//!
//! As of `bash` (see [`bash`]), with more metadata: `stateful`; `session`, which is
//! `started`, `kept` or `ended`; and `background_output`, what was printed between the session's
//! latest call and this one, of which nothing is kept in a file, and `background_bytes`, its
//! length.

use serde_json::Value;

use super::shell::{Session, ShellEnded};
use crate::sandbox::bash::{self, IsolationPolicy, bash_result, merge_output};
use crate::sandbox::supervisor::End;
use crate::tool::python_json::is_truthy;
use crate::tool::{JsonObject, Outcome, ToolResult};

/// The policy in a call's arguments: `allow_network`, and `require_stateful_sandbox` or else
/// `require_sandbox`.
pub(crate) fn policy(arguments: &JsonObject) -> IsolationPolicy {
    let plain = IsolationPolicy::from_arguments(arguments);
    let stateful = arguments.get("require_stateful_sandbox");
    let require_sandbox = stateful.map_or(plain.require_sandbox, is_truthy);
    IsolationPolicy { require_sandbox, ..plain }
}

/// The answer to a call that demands what this machine cannot give. `None` if the call may run.
pub(crate) fn refusal(
    policy: IsolationPolicy,
    sandboxed: bool,
    can_cut_network: bool,
) -> Option<ToolResult> {
    let why = lacking(policy, sandboxed, can_cut_network)?;
    Some(not_started(Outcome::IsolationUnavailable, &why, true))
}

/// What a call demands that this machine cannot give, as the reference puts it.
pub(crate) fn lacking(
    policy: IsolationPolicy,
    sandboxed: bool,
    can_cut_network: bool,
) -> Option<String> {
    let demand = if policy.require_sandbox && !sandboxed {
        "Stateful sandboxing required"
    } else if !policy.allow_network && !can_cut_network {
        "Network isolation requested"
    } else {
        return None;
    };
    Some(format!("{demand} but bubblewrap is unavailable in this environment"))
}

/// The result of a call that is over. `timeout_s` is the limit it ran under.
pub(crate) fn stateful_result(ended: ShellEnded, timeout_s: f64) -> ToolResult {
    let ShellEnded { finished, session, background } = ended;
    if let End::SetupFailed(why) = &finished.end {
        return not_started(Outcome::BackendFailed, why, false);
    }
    let mut result = bash_result(finished, timeout_s);
    let session = match session {
        Session::Started => "started",
        Session::Kept => "kept",
        Session::Ended => "ended",
    };
    put(&mut result.metadata, "stateful", true);
    put(&mut result.metadata, "session", session);
    let [stdout, stderr] = background;
    if stdout.bytes + stderr.bytes > 0 {
        let output = merge_output(&stdout.text, &stderr.text);
        put(&mut result.metadata, "background_output", output);
        put(&mut result.metadata, "background_bytes", stdout.bytes + stderr.bytes);
    }
    result
}

/// The command of a call.
///
/// # Errors
/// The answer to a call that has none, or not a possible one.
pub(crate) fn command(arguments: &JsonObject, sandboxed: bool) -> Result<&str, Box<ToolResult>> {
    let refused = |result| Err(Box::new(result));
    match arguments.get("command") {
        Some(Value::String(command)) if command.contains('\0') => {
            refused(bash::not_started("'command' must be a string without NULs", sandboxed))
        }
        Some(Value::String(command)) if !command.trim().is_empty() => Ok(command),
        Some(Value::String(_)) | None => {
            refused(ToolResult::failure(Outcome::InvalidCall, "Missing command"))
        }
        Some(_) => refused(bash::not_started("'command' must be a string without NULs", sandboxed)),
    }
}

fn not_started(outcome: Outcome, why: &str, requires_bwrap: bool) -> ToolResult {
    let error = format!("Failed to start stateful session: {why}");
    let mut result = ToolResult::failure(outcome, error);
    result.may_have_executed = false;
    put(&mut result.metadata, "stateful", true);
    put(&mut result.metadata, "requires_bwrap", requires_bwrap);
    result
}

fn put(metadata: &mut JsonObject, key: &str, value: impl Into<Value>) {
    metadata.insert(key.to_owned(), value.into());
}
