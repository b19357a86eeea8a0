//! What the model sees of a `bash` call: texts, metadata and outcomes.
//!
//! Pure functions from the end of a command to a [`ToolResult`], and from the policy of a call to
//! its refusal. The engine calls them; running the command is the business of the
//! [`supervisor`](super::supervisor). Texts are those of the reference protocol, which formats
//! numbers and strips white space as Python does.

use serde_json::Value;

use super::spool::Kept;
use super::supervisor::{End, Finished};
use crate::tool::python_json::{float_text, is_truthy};
use crate::tool::{JsonObject, OUTPUT_ORDER, Outcome, OutputOrder, ToolResult};

/// What a call demands of its sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IsolationPolicy {
    /// Whether the command may use the network. Defaults to `true`.
    pub allow_network: bool,
    /// Whether it must not run without a sandbox. Defaults to `false`.
    pub require_sandbox: bool,
}

impl IsolationPolicy {
    /// The policy in a call's arguments, `allow_network` and `require_sandbox`, true as Python
    /// takes JSON values for true.
    pub(crate) fn from_arguments(arguments: &JsonObject) -> Self {
        Self {
            allow_network: arguments.get("allow_network").is_none_or(is_truthy),
            require_sandbox: arguments.get("require_sandbox").is_some_and(is_truthy),
        }
    }

    /// The answer to a call that demands what this machine cannot give. `None` if the call may run.
    pub(crate) fn refusal(self, sandboxed: bool, can_cut_network: bool) -> Option<ToolResult> {
        let demand = if self.require_sandbox && !sandboxed {
            "Sandboxing required"
        } else if !self.allow_network && !can_cut_network {
            "Network isolation requested"
        } else {
            return None;
        };
        let error = format!("{demand} but bubblewrap is unavailable in this environment");
        let mut result = ToolResult::failure(Outcome::IsolationUnavailable, error);
        put(&mut result.metadata, "sandboxed", sandboxed);
        put(&mut result.metadata, "network_isolated", false);
        put(&mut result.metadata, "requires_bwrap", true);
        Some(result)
    }
}

/// The result of a command that is over. `timeout_s` is the limit it ran under, for the text of a
/// time-out.
pub(crate) fn bash_result(finished: Finished, timeout_s: f64) -> ToolResult {
    let sandboxed = finished.sandboxed;
    let (result, exit_code) = match &finished.end {
        End::Exited(0) => (ToolResult::ok(""), 0),
        End::Exited(code) => (exit_failure(*code), *code),
        End::Signaled(signal) => (exit_failure(-signal), -signal),
        End::TimedOut => {
            let error = format!("Command timed out after {}s", float_text(timeout_s));
            (ToolResult::failure(Outcome::Timeout, error), -1)
        }
        End::Cancelled => (ToolResult::failure(Outcome::Cancelled, "Command was cancelled"), -1),
        End::Exceeded(exceeded) => {
            let error = format!("Command {}", exceeded.what());
            (ToolResult::failure(exceeded.outcome(), error), -1)
        }
        End::Lost(text) => {
            let error = format!("Command was lost: {text}");
            (ToolResult::failure(Outcome::BackendFailed, error), -1)
        }
        End::SetupFailed(text) => return setup_failure(text, sandboxed),
        End::Refused(why) => return not_started(why, sandboxed),
    };

    let mut metadata = JsonObject::new();
    put(&mut metadata, "exit_code", exit_code);
    match finished.end {
        End::Signaled(signal) => put(&mut metadata, "signal", signal),
        End::TimedOut => put(&mut metadata, "timeout", true),
        End::Cancelled => put(&mut metadata, "cancelled", true),
        End::Exceeded(exceeded) => put(&mut metadata, "limit", exceeded.name()),
        End::Exited(_) | End::Lost(_) | End::SetupFailed(_) | End::Refused(_) => {}
    }
    put(&mut metadata, "sandboxed", sandboxed);
    put(&mut metadata, "network_isolated", finished.network_isolated);
    put(&mut metadata, "wall_s", finished.wall.as_micros() as f64 / 1e6);
    put(&mut metadata, "stdout_bytes", finished.stdout.bytes);
    put(&mut metadata, "stderr_bytes", finished.stderr.bytes);
    let omitted = finished.stdout.omitted_bytes + finished.stderr.omitted_bytes;
    if omitted > 0 {
        put(&mut metadata, "omitted_bytes", omitted);
    }
    put_kept(&mut metadata, "output_file", finished.stdout.kept);
    put_kept(&mut metadata, "stderr_file", finished.stderr.kept);
    if !finished.all_dead {
        put(&mut metadata, "processes_left", true);
    }
    let mut output = merge_output(&finished.stdout.text, &finished.stderr.text);
    if !finished.limits_reached.is_empty() {
        put(&mut metadata, "limits_reached", finished.limits_reached);
    }
    for (key, value) in finished.background.metadata() {
        put(&mut metadata, key, value);
    }
    // After what it printed was cut to size, so that the model always reads them.
    for note in finished.background.notes() {
        output.push_str(if output.is_empty() { "" } else { "\n" });
        output.push_str(&note);
    }
    ToolResult { output, metadata, ..result }
}

/// The result of a command whose streams were shown in this order, which it says unless that is
/// the usual one.
pub(crate) fn in_order(order: OutputOrder, mut result: ToolResult) -> ToolResult {
    if order != OutputOrder::default() {
        put(&mut result.metadata, OUTPUT_ORDER, order.as_str());
    }
    result
}

/// What became of the file with a whole stream: `<key>` is its path as commands see it,
/// `<key>_bytes` how many bytes of the stream it has, `<key>_truncated` says that these are not
/// all, and `<key>_error` why something is missing, unless that is the limit's doing.
fn put_kept(metadata: &mut JsonObject, key: &str, kept: Option<Kept>) {
    let Some(kept) = kept else { return };
    if let Some(path) = kept.path {
        put(metadata, key, path);
        put(metadata, &format!("{key}_bytes"), kept.bytes);
    }
    if !kept.complete {
        put(metadata, &format!("{key}_truncated"), true);
    }
    if let Some(error) = kept.error {
        put(metadata, &format!("{key}_error"), error);
    }
}

fn exit_failure(code: i32) -> ToolResult {
    ToolResult::failure(Outcome::NonZeroExit, format!("Exit code: {code}"))
}

fn setup_failure(text: &str, sandboxed: bool) -> ToolResult {
    ToolResult { outcome: Outcome::BackendFailed, ..not_started(text, sandboxed) }
}

/// The result of a call that cannot be run because of what is in it.
pub(crate) fn not_started(why: &str, sandboxed: bool) -> ToolResult {
    let kind = if sandboxed { "sandboxed command" } else { "command" };
    let error = format!("Failed to execute {kind}: {why}");
    let mut result = ToolResult::failure(Outcome::InvalidCall, error);
    put(&mut result.metadata, "sandboxed", sandboxed);
    result
}

/// The two streams of a command as one text, stripped of white space at both ends.
pub(crate) fn merge_output(stdout: &str, stderr: &str) -> String {
    if stderr.is_empty() {
        return python_strip(stdout).to_owned();
    }
    if stdout.is_empty() {
        return python_strip(stderr).to_owned();
    }
    python_strip(&[stdout, "\n[stderr]\n", stderr].concat()).to_owned()
}

/// `str.strip()`: as [`str::trim`], but the four information separators are white space too.
fn python_strip(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c))
}

fn put(metadata: &mut JsonObject, key: &str, value: impl Into<Value>) {
    metadata.insert(key.to_owned(), value.into());
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::sandbox::background::{BackgroundReport, Processes};
    use crate::sandbox::limits::Exceeded;
    use crate::sandbox::output::Captured;

    fn stream(text: &str, bytes: u64, omitted_bytes: u64) -> Captured {
        Captured { text: text.to_owned(), bytes, omitted_bytes, kept: None }
    }

    fn finished(end: End) -> Finished {
        Finished {
            end,
            stdout: stream("out\n", 4, 0),
            stderr: stream("err\n", 4, 0),
            wall: Duration::from_millis(1_500),
            sandboxed: true,
            network_isolated: false,
            all_dead: true,
            background: BackgroundReport::default(),
            limits_reached: Vec::new(),
        }
    }

    fn metadata(result: &ToolResult) -> String {
        Value::Object(result.metadata.clone()).to_string()
    }

    #[test]
    fn the_streams_are_merged_and_stripped_as_python_does() {
        for (stdout, stderr, merged) in [
            ("", "", ""),
            ("a\n", "", "a"),
            ("", " e\n", "e"),
            ("out\n", "err\n", "out\n\n[stderr]\nerr"),
            ("\n", "e", "[stderr]\ne"),
            ("\x1c\x1d\x1e\x1f\u{85}\u{a0}\u{2028}\u{3000}a\x1f", "", "a"),
            ("\u{200b}a\u{feff}\0", "", "\u{200b}a\u{feff}\0"),
        ] {
            assert_eq!(merge_output(stdout, stderr), merged, "{stdout:?} {stderr:?}");
        }
    }

    #[test]
    fn exit_zero_is_a_success() {
        let result = bash_result(finished(End::Exited(0)), 30.0);
        assert!(result.success && result.error.is_empty());
        assert_eq!(result.outcome, Outcome::Ok);
        assert_eq!(result.output, "out\n\n[stderr]\nerr");
        assert_eq!(
            metadata(&result),
            r#"{"exit_code":0,"sandboxed":true,"network_isolated":false,"wall_s":1.5,"stdout_bytes":4,"stderr_bytes":4}"#
        );
    }

    #[test]
    fn another_exit_code_is_a_failure_with_its_output() {
        let result = bash_result(finished(End::Exited(137)), 30.0);
        assert_eq!(
            (result.error.as_str(), result.outcome),
            ("Exit code: 137", Outcome::NonZeroExit)
        );
        assert_eq!(result.metadata["exit_code"], 137);
        assert!(!result.metadata.contains_key("signal"));
        assert!(!result.output.is_empty() && !result.success);
    }

    #[test]
    fn a_signal_is_a_negative_exit_code() {
        let result = bash_result(finished(End::Signaled(9)), 30.0);
        assert_eq!(
            (result.error.as_str(), result.outcome),
            ("Exit code: -9", Outcome::NonZeroExit)
        );
        assert_eq!(
            (&result.metadata["exit_code"], &result.metadata["signal"]),
            (&json!(-9), &json!(9))
        );
    }

    #[test]
    fn a_timeout_and_a_cancel_keep_the_partial_output() {
        let result = bash_result(finished(End::TimedOut), 1.0);
        assert_eq!(result.error, "Command timed out after 1.0s");
        assert_eq!(
            (result.outcome, result.output.as_str()),
            (Outcome::Timeout, "out\n\n[stderr]\nerr")
        );
        assert!(metadata(&result).starts_with(
            r#"{"exit_code":-1,"timeout":true,"sandboxed":true,"network_isolated":false,"wall_s""#
        ));

        let result = bash_result(finished(End::Cancelled), 1.0);
        assert_eq!(
            (result.error.as_str(), result.outcome),
            ("Command was cancelled", Outcome::Cancelled)
        );
        assert!(!result.output.is_empty() && result.may_have_executed);
    }

    #[test]
    fn a_limit_that_was_exceeded_is_told_by_name() {
        for (exceeded, outcome, limit) in [
            (Exceeded::Memory, Outcome::OutOfMemory, "memory"),
            (Exceeded::Workspace, Outcome::DiskFull, "workspace"),
            (Exceeded::Files, Outcome::DiskFull, "files"),
        ] {
            let result = bash_result(finished(End::Exceeded(exceeded)), 1.0);
            assert_eq!((result.outcome, result.success), (outcome, false));
            assert_eq!(result.metadata["limit"], limit);
            assert!(!result.output.is_empty() && !result.error.is_empty());
        }
    }

    #[test]
    fn omitted_bytes_are_told_only_if_there_are_any() {
        let mut cut = finished(End::Exited(0));
        cut.stdout = stream("x", 100, 99);
        cut.stderr = stream("y", 10, 9);
        assert_eq!(bash_result(cut, 30.0).metadata["omitted_bytes"], 108);
    }

    #[test]
    fn the_files_with_the_whole_output_are_told_and_what_is_missing_in_them() {
        let kept = |path: Option<&str>, bytes, complete, error: Option<&str>| {
            Some(Kept {
                path: path.map(str::to_owned),
                bytes,
                complete,
                error: error.map(str::to_owned),
            })
        };
        let mut cut = finished(End::Exited(0));
        cut.stdout = Captured { kept: kept(Some("d/1"), 100, true, None), ..stream("x", 100, 99) };
        cut.stderr = Captured { kept: kept(Some("d/2"), 7, false, None), ..stream("y", 10, 9) };
        let text = metadata(&bash_result(cut, 30.0));
        let expected = r#""omitted_bytes":108,"output_file":"d/1","output_file_bytes":100,"stderr_file":"d/2","stderr_file_bytes":7,"stderr_file_truncated":true}"#;
        assert!(text.ends_with(expected), "{text}");

        let mut failed = finished(End::Exited(0));
        let none = kept(None, 0, false, Some("no disk"));
        failed.stdout = Captured { kept: none, ..stream("x", 100, 99) };
        let text = metadata(&bash_result(failed, 30.0));
        let expected = r#""output_file_truncated":true,"output_file_error":"no disk"}"#;
        assert!(text.ends_with(expected) && !text.contains(r#""output_file":"#), "{text}");
    }

    #[test]
    fn what_was_ended_with_a_command_is_told_to_the_model_and_to_programs() {
        let ended = Some(Processes::new(2, b"python3\0"));
        let background = BackgroundReport { ended, ..BackgroundReport::default() };
        let note = background.notes().concat();
        let left = |stdout| Finished {
            stdout,
            stderr: Captured::default(),
            background: background.clone(),
            ..finished(End::Exited(0))
        };
        let result = bash_result(left(stream("begun\n", 6, 0)), 30.0);
        assert_eq!((result.outcome, result.output), (Outcome::Ok, format!("begun\n{note}")));
        let expected = r#""ended_processes":{"count":2,"names":["python3"]}}"#;
        assert!(metadata(&bash_result(left(Captured::default()), 30.0)).ends_with(expected));
        assert_eq!(bash_result(left(Captured::default()), 30.0).output, note);
        // However much it printed.
        let cut = bash_result(left(stream("head\n... (output truncated)\ntail", 99_999, 9)), 30.0);
        assert!(cut.output.ends_with(&format!("tail\n{note}")));
    }

    #[test]
    fn a_command_that_could_not_start_never_executed() {
        let result = bash_result(finished(End::SetupFailed("no bwrap".into())), 30.0);
        assert_eq!(result.error, "Failed to execute sandboxed command: no bwrap");
        assert_eq!((result.outcome, result.may_have_executed), (Outcome::BackendFailed, false));
        assert_eq!(metadata(&result), r#"{"sandboxed":true}"#);

        let bare = Finished { sandboxed: false, ..finished(End::SetupFailed("no sh".into())) };
        assert_eq!(bash_result(bare, 30.0).error, "Failed to execute command: no sh");
    }

    #[test]
    fn a_call_is_refused_only_without_bubblewrap_and_only_if_it_demands_it() {
        let policy =
            |value: Value| IsolationPolicy::from_arguments(value.as_object().expect("an object"));
        let refused = policy(json!({"require_sandbox": true, "allow_network": false}));
        let result = refused.refusal(false, false).expect("a refusal");
        assert_eq!(
            result.error,
            "Sandboxing required but bubblewrap is unavailable in this environment"
        );
        assert_eq!(
            (result.outcome, result.may_have_executed),
            (Outcome::IsolationUnavailable, false)
        );
        assert_eq!(
            metadata(&result),
            r#"{"sandboxed":false,"network_isolated":false,"requires_bwrap":true}"#
        );
        assert_eq!(refused.refusal(true, true), None);

        let result =
            policy(json!({"allow_network": null})).refusal(false, false).expect("a refusal");
        assert_eq!(
            result.error,
            "Network isolation requested but bubblewrap is unavailable in this environment"
        );
        let no_network = policy(json!({"allow_network": false}));
        assert!(no_network.refusal(true, false).is_some(), "a sandbox that cannot cut it");
        assert_eq!(no_network.refusal(true, true), None);
        assert_eq!(policy(json!({})).refusal(false, false), None);
        assert_eq!(
            policy(json!({"allow_network": "no", "require_sandbox": []})).refusal(false, false),
            None
        );
    }
}
