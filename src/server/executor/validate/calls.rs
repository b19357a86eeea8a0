//! The bodies that hold calls, or what a model wrote: `/execute`, `/execute_batch`, `/parse`.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::fields::{Fields, Flaw, dictionary, float, nullable, string};
use super::{Problems, read};
use crate::tool::ToolCall;
use crate::tool::format::{CallForm, CallOrigin, Format, MessageForm, UnknownName};

/// The most calls in one `/execute_batch`. It bounds what the results of a client that does not
/// read them can occupy.
pub(in crate::server::executor) const MAX_BATCH_CALLS: usize = 1_024;

/// The body of `/execute`, and an item of `/execute_batch`.
#[derive(Debug, PartialEq)]
pub(in crate::server::executor) struct CallRequest {
    pub(in crate::server::executor) trajectory_id: String,
    pub(in crate::server::executor) call: ToolCall,
    /// How its result is to be answered besides.
    pub(in crate::server::executor) reply: Option<ReplyForm>,
}

/// The form of a `call` that was given as a model's API has it; the answer has a message of it.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::server::executor) struct ReplyForm {
    pub(in crate::server::executor) form: MessageForm,
    /// The tool's name, which the message of a `function_call` has in place of an id.
    pub(in crate::server::executor) name: String,
}

/// The body of `/parse`.
#[derive(Debug, PartialEq)]
pub(in crate::server::executor) struct ParseRequest {
    pub(in crate::server::executor) what: Written,
    pub(in crate::server::executor) format: Format,
}

/// What a model wrote.
#[derive(Debug, PartialEq)]
pub(in crate::server::executor) enum Written {
    Text(String),
    Message(Value),
}

/// A call, from the body of `/execute`.
///
/// # Errors
/// All that is wrong with it.
pub(in crate::server::executor) fn call(mut body: Value) -> Result<CallRequest, Problems> {
    let mut problems = Vec::new();
    let head = call_head(&body, vec![json!("body")], &mut problems);
    match (head, problems.is_empty()) {
        (Some(head), true) => Ok(head.with_arguments_of(&mut body)),
        _ => Err(problems),
    }
}

/// The calls in the body of `/execute_batch`.
///
/// # Errors
/// All that is wrong with it: one call that is, and none of them runs.
pub(in crate::server::executor) fn calls(mut body: Value) -> Result<Vec<CallRequest>, Problems> {
    let mut problems = Vec::new();
    let Some(mut fields) = Fields::of(&body, vec![json!("body")], &mut problems) else {
        return Err(problems);
    };
    let Some(items) = fields.required("calls", list) else { return Err(problems) };
    let mut heads = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let place = vec![json!("body"), json!("calls"), json!(index)];
        heads.extend(call_head(item, place, &mut problems));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let items = body.get_mut("calls").and_then(Value::as_array_mut).into_iter().flatten();
    Ok(heads.into_iter().zip(items).map(|(head, item)| head.with_arguments_of(item)).collect())
}

/// All of a call but its arguments, which may be large and are moved, not copied, when all is
/// well.
struct CallHead {
    trajectory_id: String,
    what: Head,
    timeout: Option<Duration>,
}

enum Head {
    /// `tool`, as the reference has it, and how it was read (`origin`), which `/parse` says.
    Tool { name: String, uniq_id: String, origin: Option<Box<CallOrigin>> },
    /// `call`, in any form.
    Call(Box<ToolCall>, Option<ReplyForm>),
}

impl CallHead {
    fn with_arguments_of(self, body: &mut Value) -> CallRequest {
        let Self { trajectory_id, what, timeout } = self;
        match what {
            Head::Tool { name, uniq_id, origin } => {
                let arguments = body.get_mut("tool").and_then(|tool| tool.get_mut("arguments"));
                let arguments = arguments.map_or_else(|| json!({}), Value::take);
                let mut call = ToolCall::new(name, arguments).with_uniq_id(uniq_id);
                (call.timeout, call.origin) = (timeout, origin);
                CallRequest { trajectory_id, call, reply: None }
            }
            Head::Call(mut call, reply) => {
                call.timeout = timeout.or(call.timeout);
                CallRequest { trajectory_id, call: *call, reply }
            }
        }
    }
}

/// The call in any of the forms of [`ToolCall::from_json`], and how to answer it.
fn any_call(call: &Value) -> Result<Head, Flaw> {
    let read =
        ToolCall::from_json(call).map_err(|error| Flaw::new("value_error", error.to_string()))?;
    let reply = match read.origin.as_ref().map(|origin| origin.form) {
        Some(CallForm::Message(form)) => Some(ReplyForm { form, name: read.name.clone() }),
        _ => None,
    };
    Ok(Head::Call(Box::new(read), reply))
}

/// How a call was read, as `/parse` says it.
fn origin(value: &Value) -> Result<Option<Box<CallOrigin>>, Flaw> {
    Option::deserialize(value).map_err(|error| Flaw::new("value_error", error.to_string()))
}

fn call_head(body: &Value, place: Vec<Value>, problems: &mut Problems) -> Option<CallHead> {
    let mut fields = Fields::of(body, place.clone(), problems)?;
    let trajectory_id = fields.required("trajectory_id", string);
    let mut place = place;
    place.push(json!("tool"));
    let has = |key: &str| body.get(key).is_some_and(|value| !value.is_null());
    let what = match (has("tool"), has("call")) {
        (false, true) => fields.required("call", any_call),
        (true, true) => fields.required("call", |_| {
            Err(Flaw::new("value_error", "there is a `tool` too: give one of the two"))
        }),
        _ => fields.required("tool", Ok).and_then(|tool| {
            let mut fields = Fields::of(tool, place, fields.problems)?;
            let name = fields.required("name", string);
            fields.or("arguments", (), dictionary);
            let uniq_id = fields.required("uniq_id", string);
            let origin = fields.or("origin", None, origin);
            Some(Head::Tool { name: name?, uniq_id: uniq_id?, origin })
        }),
    };
    let timeout = fields.or("timeout_s", None, nullable(float)).map(duration);
    Some(CallHead { trajectory_id: trajectory_id?, what: what?, timeout })
}

/// So many seconds, as near as a duration comes; zero where it is no number. The executor says what
/// is too short or too long.
fn duration(seconds: f64) -> Duration {
    // `max` gives zero for NaN.
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}

/// The body of `/parse`.
///
/// # Errors
/// All that is wrong with it.
pub(in crate::server::executor) fn parse(mut body: Value) -> Result<ParseRequest, Problems> {
    let (format, text) = read(&body, |fields| {
        let format = fields.or("format", Format::Auto, |name| {
            let name = string(name)?;
            name.parse().map_err(|error: UnknownName| Flaw::new("value_error", error.to_string()))
        });
        let message =
            fields.or("message", None, nullable(|message| dictionary(message).map(|()| message)));
        let text = match message {
            None => Some(fields.required("text", string)?),
            Some(_) => fields.or(
                "text",
                None,
                nullable(|_| {
                    Err(Flaw::new("value_error", "there is a `message` too: give one of the two"))
                }),
            ),
        };
        Some((format, text))
    })?;
    let what = match text {
        Some(text) => Written::Text(text),
        None => Written::Message(body.get_mut("message").map_or(Value::Null, Value::take)),
    };
    Ok(ParseRequest { what, format })
}

fn list(value: &Value) -> Result<&Vec<Value>, Flaw> {
    let items =
        value.as_array().ok_or_else(|| Flaw::new("list_type", "Input should be a valid list"))?;
    if items.len() > MAX_BATCH_CALLS {
        return Err(Flaw::new(
            "too_long",
            format!(
                "List should have at most {MAX_BATCH_CALLS} items after validation, not {}",
                items.len()
            ),
        ));
    }
    Ok(items)
}
