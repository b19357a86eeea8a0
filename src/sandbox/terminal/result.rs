//! What the model sees of a `bash_stateful` call: texts, metadata and outcomes. Pure.
//!
//! As of `bash` (see [`bash`]), with more metadata: `stateful`; `session_name`, of one that is not
//! the default; `session`, which is `started`, `kept` or `ended`; `session_lost`, where it was
//! started in place of one that had ended between two calls; and `background_output`, what was
//! printed between the session's latest call and this one, of which nothing is kept in a file, and
//! `background_bytes`, its length.

use serde_json::Value;

use super::shell::{Session, ShellEnded};
use crate::sandbox::bash::{self, IsolationPolicy, bash_result, merge_output};
use crate::sandbox::limits::Exceeded;
use crate::sandbox::supervisor::End;
use crate::tool::python_json::is_truthy;
use crate::tool::{DEFAULT_SESSION, JsonObject, Outcome, ToolResult};

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
    let ShellEnded { finished, session, replaces_a_lost_one, background } = ended;
    if let End::SetupFailed(why) = &finished.end {
        return not_started(Outcome::BackendFailed, why, false);
    }
    if let End::Refused(why) = &finished.end {
        return not_started(Outcome::InvalidCall, why, false);
    }
    let end = (session == Session::Ended).then(|| how_it_ended(&finished.end));
    let mut result = bash_result(finished, timeout_s);
    // For the model: it would look for what is gone.
    if replaces_a_lost_one {
        let note = format!("[{BEGAN_ANEW}: {GONE}; files remain.]\n");
        result.output.insert_str(0, &note);
        put(&mut result.metadata, "session_lost", true);
    }
    if let Some(end) = end {
        let line = if result.output.is_empty() { "" } else { "\n" };
        let note = format!("{line}[{end} {NEXT}: {GONE}; files remain.]");
        result.output.push_str(&note);
    }
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

/// Says in a result of which session it is.
pub(crate) fn of_session(mut result: ToolResult, name: &str) -> ToolResult {
    if name != DEFAULT_SESSION {
        put(&mut result.metadata, "session_name", name);
    }
    result
}

const BEGAN_ANEW: &str =
    "The shell of this session had ended since the last call; this is a new one in /workspace";
const NEXT: &str = "The next call begins a new session in /workspace";
const GONE: &str = "the working directory, variables, functions and background jobs are gone";

/// What ended the session, as a sentence for the model.
fn how_it_ended(end: &End) -> String {
    let how = match end {
        End::Exited(0) => "has exited, as by exit".to_owned(),
        End::Exited(code) => format!(
            "has exited with code {code}, as by exit, or by a command that fails while set -e is on"
        ),
        End::Signaled(signal) => format!("was ended by signal {signal}"),
        End::TimedOut => "did not stop when its time was up, and was killed".to_owned(),
        End::Cancelled => "did not stop when it was cancelled, and was killed".to_owned(),
        End::Exceeded(Exceeded::Memory) => "was killed for want of memory".to_owned(),
        End::Exceeded(Exceeded::Workspace | Exceeded::Files) => {
            "was killed with a full workspace".to_owned()
        }
        End::SetupFailed(_) | End::Refused(_) | End::Lost(_) => "was lost".to_owned(),
    };
    format!("The shell of this session {how}.")
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sandbox::output::Captured;
    use crate::sandbox::supervisor::Finished;

    fn ended(end: End, session: Session, printed: &str, replaces_a_lost_one: bool) -> ToolResult {
        let stdout = Captured { text: printed.to_owned(), ..Captured::default() };
        let finished = Finished {
            end,
            stdout,
            stderr: Captured::default(),
            wall: Duration::ZERO,
            sandboxed: true,
            network_isolated: false,
            all_dead: true,
            background: Default::default(),
            limits_reached: Vec::new(),
        };
        let background = Default::default();
        stateful_result(ShellEnded { finished, session, replaces_a_lost_one, background }, 1.0)
    }

    #[test]
    fn a_session_that_ends_says_so_to_the_model_and_one_that_goes_on_does_not() {
        let kept = ended(End::Exited(1), Session::Kept, "out\n", false);
        assert_eq!(kept.output, "out");
        for (end, how) in [
            (End::Exited(0), "has exited, as by exit."),
            (End::Exited(1), "by a command that fails while set -e is on."),
            (End::Signaled(9), "was ended by signal 9."),
            (End::TimedOut, "did not stop when its time was up, and was killed."),
            (End::Cancelled, "did not stop when it was cancelled, and was killed."),
            (End::Exceeded(Exceeded::Memory), "was killed for want of memory."),
            (End::Lost("x".to_owned()), "was lost."),
        ] {
            for (printed, begin) in [("out\n", "out\n[The shell of"), ("", "[The shell of")] {
                let result = ended(end.clone(), Session::Ended, printed, false);
                assert!(result.output.starts_with(begin), "{result:?}");
                assert!(result.output.contains(how), "{result:?}");
                let lost = "begins a new session in /workspace: the working directory, variables, \
                            functions and background jobs are gone; files remain.]";
                assert!(result.output.ends_with(lost), "{result:?}");
                assert_eq!(result.metadata["session"], "ended");
            }
        }
        let began = ended(End::Exited(0), Session::Started, "out\n", true);
        assert!(
            began.output.starts_with("[The shell of this session had ended since the last call")
        );
        assert!(began.output.ends_with("files remain.]\nout"), "{began:?}");
        assert_eq!((&began.metadata["session_lost"], began.success), (&Value::Bool(true), true));
        let nothing = ended(End::SetupFailed("x".to_owned()), Session::Ended, "", true);
        assert!(nothing.output.is_empty(), "{nothing:?}");
    }
}
