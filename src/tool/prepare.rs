//! The rules at the executor's door: which calls are refused before anything of them is queued,
//! and what becomes of the others on their way to where they run.
//!
//! The executor calls [`prepare`] once for each call, on the caller's thread. Everything here is a
//! pure function; nothing here waits, and nothing knows whether a slot is free.

use std::time::Duration;

use serde_json::Value;

use super::arguments::{self, BACKGROUND, OUTPUT_ORDER};
use super::format::give_types;
use super::schema::{kind_of, not_an_object};
use super::suggest::suggest;
use super::{
    BackgroundProcesses, Handler, JsonObject, Outcome, OutputOrder, Policy, RegisteredTool,
    ToolCall, ToolKind, ToolRegistry, ToolResult, UnknownArguments, python_json,
};

/// The shortest time that a call may be given.
pub const MIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest time that a call may be given, where the operator does not say otherwise.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(600);

/// The longest time that an operator may allow: a day.
pub(crate) const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// The time limits of an executor's calls.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallTimes {
    /// That of a call that names none.
    pub(crate) default: Duration,
    /// The longest that a call may name.
    pub(crate) most: Duration,
}

/// A call that may be queued.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    /// The call's id, which its result carries.
    pub(crate) uniq_id: String,
    /// The tool's name, as the model called it.
    pub(crate) name: String,
    /// How long it may run.
    pub(crate) timeout: Duration,
    /// What its result's metadata say of the call itself. Most calls have nothing of the kind.
    pub(crate) notes: Option<Box<JsonObject>>,
    /// Where it runs, and with what.
    pub(crate) work: Work,
}

/// Where a call runs, and with what.
#[derive(Debug, Clone)]
pub(crate) enum Work {
    /// In the sandbox of its trajectory.
    Sandbox {
        /// The sandbox's name for the tool.
        tool: &'static str,
        /// The model's arguments, with the policy in place of what they said about it.
        arguments: JsonObject,
    },
    /// On the ToolServer.
    ToolServer {
        /// The model's arguments, untouched.
        arguments: JsonObject,
    },
    /// In this process.
    InProcess {
        /// The user's closure.
        handler: Handler,
        /// The model's arguments, untouched.
        arguments: JsonObject,
    },
}

/// Lets a call in, or answers it at once.
///
/// `tool_server` says whether there is one. The call's time is its `timeout`, else its argument
/// `timeout`, both held between [`MIN_TIMEOUT`] and `times.most`; else `times.default`, as it is.
/// Where that is another time than was asked for, the call's notes say both.
///
/// # Errors
/// The answer to a call that goes no further: one that could not be read, an unknown tool, an
/// external one without a ToolServer, arguments that do not fit the tool's schema, or that a
/// built-in tool does not have, or a background process asked of it. Nothing of it ran, and the
/// answer carries the call's id.
pub(crate) fn prepare(
    registry: &ToolRegistry,
    policy: &Policy,
    tool_server: bool,
    call: ToolCall,
    times: CallTimes,
) -> Result<Prepared, Box<ToolResult>> {
    if let Some(answer) = answer_to_unreadable(&call) {
        return Err(Box::new(answer));
    }
    let mut call = call;
    if let Some(tool) = registry.get(&call.name) {
        give_types(&mut call, &tool.schema);
    }
    let ToolCall { name, arguments, uniq_id, timeout, .. } = call;
    match decide(registry, policy, tool_server, &name, arguments) {
        Ok((asked, work)) => {
            let limit = TimeLimit::of(timeout, asked, times);
            Ok(Prepared { uniq_id, name, timeout: limit.in_force, notes: limit.notes(), work })
        }
        Err(refusal) => {
            let mut result = ToolResult::failure(refusal.outcome, refusal.error);
            result.uniq_id = Some(uniq_id);
            result.may_have_executed = false;
            if !refusal.meant.is_empty() {
                result.metadata.insert("did_you_mean".to_owned(), refusal.meant.into());
            }
            Err(Box::new(result))
        }
    }
}

/// Why a call goes no further.
struct Refusal<'a> {
    outcome: Outcome,
    error: String,
    /// The names that may have been meant, of tools or of arguments.
    meant: Vec<&'a str>,
}

impl<'a> Refusal<'a> {
    fn new(outcome: Outcome, error: String) -> Self {
        Self { outcome, error, meant: Vec::new() }
    }

    /// Of a call of the tool `name` whose arguments are wrong.
    fn invalid(name: &str, why: &str) -> Self {
        Self::new(Outcome::InvalidCall, format!("Invalid arguments for {name}: {why}"))
    }
}

/// How long a call may run, and what was asked for.
#[derive(Debug, PartialEq)]
struct TimeLimit {
    in_force: Duration,
    /// In seconds, if anything was.
    asked: Option<f64>,
}

impl TimeLimit {
    /// The caller's, else the one that the model asked for in seconds, else the default.
    fn of(caller: Option<Duration>, model: Option<f64>, times: CallTimes) -> Self {
        let in_force = match (caller, model) {
            (Some(time), _) => time.clamp(MIN_TIMEOUT, times.most),
            (None, Some(seconds)) => clamped_timeout(seconds, times.most),
            (None, None) => times.default,
        };
        Self { in_force, asked: model.or(caller.map(|time| time.as_secs_f64())) }
    }

    /// What the result says of it: both times, where they are not the same.
    fn notes(&self) -> Option<Box<JsonObject>> {
        let in_force = self.in_force.as_secs_f64();
        let asked = self.asked.filter(|asked| *asked != in_force)?;
        let times = [("timeout_s", in_force), ("timeout_asked", asked)];
        let notes = times.map(|(name, seconds)| (name.to_owned(), Value::from(seconds)));
        Some(Box::new(JsonObject::from_iter(notes)))
    }
}

/// The answer to a call that could not be read from the model's text: why, and where in the text.
fn answer_to_unreadable(call: &ToolCall) -> Option<ToolResult> {
    let origin = call.origin.as_ref()?;
    let mut result = ToolResult::failure(Outcome::InvalidCall, origin.error()?);
    result.uniq_id = Some(call.uniq_id.clone());
    let mut facts = JsonObject::new();
    facts.insert("form".to_owned(), origin.form.as_str().into());
    if let Some(place) = origin.place {
        let numbers = [
            ("line", place.line),
            ("column", place.column),
            ("start", place.start),
            ("end", place.end),
        ];
        facts.extend(numbers.map(|(key, number)| (key.to_owned(), number.into())));
    }
    result.metadata.insert("unreadable_call".to_owned(), Value::Object(facts));
    Some(result)
}

/// [`prepare`] without the id: the time that the arguments ask for, in seconds, and the work.
fn decide<'a>(
    registry: &'a ToolRegistry,
    policy: &Policy,
    tool_server: bool,
    name: &str,
    arguments: Value,
) -> Result<(Option<f64>, Work), Refusal<'a>> {
    let Some(tool) = registry.get(name) else {
        let mut refusal = Refusal::new(Outcome::UnknownTool, format!("Unknown tool: {name}"));
        refusal.meant = suggest(name, &registry.names().collect::<Vec<_>>());
        return Err(refusal);
    };
    let Value::Object(arguments) = arguments else {
        return Err(Refusal::invalid(name, &not_an_object(&arguments)));
    };
    if let ToolKind::Sandbox { sent_as } = tool.kind {
        let (asked, arguments) = for_sandbox(tool, sent_as, policy, name, arguments)?;
        return Ok((asked, Work::Sandbox { tool: sent_as, arguments }));
    }
    let asked = arguments.get("timeout").and_then(Value::as_f64);
    let checked = tool.schema.validate_object(&arguments);
    checked.map_err(|why| Refusal::invalid(name, &why))?;
    let work = match &tool.kind {
        ToolKind::InProcess(handler) => Work::InProcess { handler: handler.clone(), arguments },
        ToolKind::ToolServer if tool_server => Work::ToolServer { arguments },
        _ => {
            let error = format!("External tool not available (ToolServer not configured): {name}");
            return Err(Refusal::new(Outcome::ExternalFailed, error));
        }
    };
    Ok((asked, work))
}

/// What the sandbox's tool `sent_as` is sent for a call of `tool`, and the time that was asked for.
/// The one place that says what the arguments of a built-in tool may be.
fn for_sandbox<'a>(
    tool: &'a RegisteredTool,
    sent_as: &str,
    policy: &Policy,
    name: &str,
    mut arguments: JsonObject,
) -> Result<(Option<f64>, JsonObject), Refusal<'a>> {
    let invalid = |why: String| Refusal::invalid(name, &why);
    let refuses = policy.unknown_arguments == UnknownArguments::Refuse;
    let in_background = arguments.get("background").is_some_and(python_json::is_truthy);
    if in_background && (name == "terminal" || (refuses && sent_as != "tmux")) {
        let error = format!("{name} background execution is not supported in sandbox");
        return Err(Refusal::new(Outcome::InvalidCall, error));
    }
    let asked = timeout_of(&arguments).map_err(invalid)?;
    // Before the checks: what is taken out need not fit any schema.
    apply_policy(sent_as, policy, &mut arguments);
    if refuses {
        let also = [NETWORK, SANDBOX, STATEFUL, BACKGROUND];
        arguments::check_names(&tool.schema, &also, &arguments).map_err(|unknown| Refusal {
            meant: unknown.meant,
            ..Refusal::invalid(name, &unknown.error)
        })?;
    }
    tool.schema.validate_object(&arguments).map_err(invalid)?;
    arguments::check(sent_as, &arguments).map_err(invalid)?;
    Ok((asked, arguments))
}

const NETWORK: &str = "allow_network";
const SANDBOX: &str = "require_sandbox";
const STATEFUL: &str = "require_stateful_sandbox";

/// Puts the policy in place of what the model said about it, for the sandbox's tool `sent_as`.
fn apply_policy(sent_as: &str, policy: &Policy, arguments: &mut JsonObject) {
    let required = (SANDBOX, policy.require_sandbox);
    let stateful_required = (STATEFUL, policy.require_stateful_sandbox);
    let (removed, added): (&[&str], _) = match sent_as {
        "bash" => (&["timeout", NETWORK, SANDBOX, BACKGROUND], required),
        "bash_stateful" => (&["timeout", NETWORK, SANDBOX, STATEFUL], stateful_required),
        "tmux" => (&[NETWORK, SANDBOX, STATEFUL], stateful_required),
        "read_file" | "write_file" => {
            arguments.shift_remove(NETWORK);
            // Which machine a file is in that is in no directory of the slot's, where nothing has
            // run yet.
            if !policy.allow_network {
                arguments.insert(NETWORK.to_owned(), Value::Bool(false));
            }
            return;
        }
        _ => return,
    };
    for key in removed {
        // Not `remove`, which would move the last argument into the gap.
        arguments.shift_remove(*key);
    }
    for (key, value) in [(NETWORK, policy.allow_network), added] {
        arguments.insert(key.to_owned(), Value::Bool(value));
    }
    let is_open = arguments.get(OUTPUT_ORDER).is_none_or(Value::is_null);
    if sent_as != "tmux" && is_open && policy.output_order != OutputOrder::default() {
        arguments.insert(OUTPUT_ORDER.to_owned(), policy.output_order.as_str().into());
    }
    if sent_as == "bash" && policy.background != BackgroundProcesses::default() {
        arguments.insert(BACKGROUND.to_owned(), policy.background.as_str().into());
    }
}

/// The time that a model gave its call in the argument `timeout`, in seconds: a number, or the text
/// of one, since many models and templates write all arguments as texts.
fn timeout_of(arguments: &JsonObject) -> Result<Option<f64>, String> {
    let wrong =
        |got: &str| Err(format!("argument 'timeout' must be a number of seconds, got {got}"));
    match arguments.get("timeout") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) => Ok(number.as_f64()),
        Some(Value::String(text)) => match text.trim().parse::<f64>() {
            Ok(seconds) if seconds.is_finite() => Ok(Some(seconds)),
            _ => wrong("a string that is none"),
        },
        Some(other) => wrong(kind_of(other)),
    }
}

/// `seconds` between [`MIN_TIMEOUT`] and `most`; the former where it is not a number.
fn clamped_timeout(seconds: f64, most: Duration) -> Duration {
    let (min, max) = (MIN_TIMEOUT.as_secs_f64(), most.as_secs_f64());
    // `max` gives the bound for NaN, where `clamp` would give NaN.
    Duration::from_secs_f64(seconds.max(min).min(max))
}

#[cfg(test)]
mod tests;
