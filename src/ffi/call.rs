//! Calls: executed, submitted, cancelled; and releases.

use super::executor::{Executor, te_executor};
use super::handle::{Opaque, free, hold, into_handle};
use super::queue::te_queue;
use super::result::{into_result, te_result};
use super::status::te_status::{TE_CLOSED, TE_INVALID_ARGUMENT, TE_INVALID_JSON};
use super::status::{Fault, guard, te_status};
use super::text::{Out, object, on_a_stack, on_a_stack_for_text, te_buffer, text};
use crate::executor::CallHandle;
use crate::tool::format::{CallParser, Format, MessageForm, UnknownName};
use crate::tool::{MIN_TIMEOUT, ToolCall};
use serde_json::Value;
use std::ffi::c_char;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

/// A submitted call, to cancel it. Made by te_submit() for those who ask for it, freed by
/// te_call_free(). Any number of threads may use it at the same time.
pub struct te_call {
    _opaque: (),
}

impl Opaque for te_call {
    /// The executor too: its channels are to be there as long as the call.
    type Value = (CallHandle, Arc<Executor>);
    const KIND: u64 = 0x7465_2d63_616c_6c73;
    const NAME: &'static str = "te_call";
}

/// # Errors
/// It is not the JSON of a [`ToolCall`], nor a call of OpenAI's or Anthropic's, or its time limit
/// is none.
fn parse(json: &str, most: Duration) -> Result<ToolCall, Fault> {
    let wrong = |error: &dyn Display| Fault::new(TE_INVALID_JSON, format!("the call: {error}"));
    let call = match object::<ToolCall>(json) {
        // Text is how OpenAI's `function_call` has its arguments.
        Ok(call) if call.arguments.is_string() => {
            let value = serde_json::to_value(&call).map_err(|error| wrong(&error))?;
            ToolCall::from_json(&value).map_err(|error| wrong(&error))?
        }
        Ok(call) => call,
        Err(error) => match serde_json::from_str::<Value>(json) {
            Ok(value) if MessageForm::of_call(&value).is_some() => {
                ToolCall::from_json(&value).map_err(|error| wrong(&error))?
            }
            _ => return Err(wrong(&error)),
        },
    };
    match call.timeout {
        Some(timeout) if !(MIN_TIMEOUT..=most).contains(&timeout) => {
            let (least, most) = (MIN_TIMEOUT.as_secs(), most.as_secs_f64());
            let seconds = timeout.as_secs_f64();
            let text =
                format!("the call: timeout_s is {seconds}; it must be from {least} to {most}");
            Err(Fault::new(TE_INVALID_ARGUMENT, text))
        }
        _ => Ok(call),
    }
}

/// Runs a call and blocks until its result is there.
///
/// `call` is a JSON object: {"name": "bash", "arguments": {"command": "ls"}, "uniq_id": "...",
/// "timeout_s": 30}. Only "name" is needed. "uniq_id" is the caller's id of the call, which the
/// result carries; a fresh one unless given. "timeout_s", from 1 to "max_timeout_s", limits the
/// run; else a number "timeout" in the arguments does, else the sandbox's 30 seconds. Other keys
/// are refused, but for "raw_text" and "origin", which the te_parse functions give.
///
/// A call of OpenAI's (chat, Responses) or Anthropic's is taken as it is, with its id:
/// {"id", "type": "function", "function": {"name", "arguments": "{...}"}}, {"type":
/// "function_call", "call_id", "name", "arguments": "{...}"}, {"type": "tool_use", "id", "name",
/// "input": {...}}. te_result_message() gives its result in the same form.
///
/// A trajectory's calls run one after the other, in the order in which they were submitted, in one
/// workspace, which it keeps until te_release(). Its id has 1 to 512 bytes.
///
/// A tool that fails is a result, and so are a tool that does not exist, arguments that do not
/// fit, a sandbox that is lost: the status is TE_OK, and the result's outcome says how the call
/// ended. To end it early, call te_cancel_trajectory() on another thread.
///
/// On success `*result` is the caller's, to be freed by te_result_free(); after an error it is
/// NULL, and nothing ran.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_execute(
    executor: *const te_executor,
    trajectory: *const c_char,
    trajectory_len: usize,
    call: *const c_char,
    call_len: usize,
    result: *mut *mut te_result,
) -> te_status {
    guard(|| {
        let out = Out::new(result, "result", std::ptr::null_mut())?;
        let trajectory = text(trajectory, trajectory_len, "trajectory")?;
        let call = text(call, call_len, "call")?;
        let executor = hold(executor)?;
        let pending = on_a_stack(call, || {
            let call = parse(call, executor.executor.max_timeout())?;
            Ok(executor.executor.submit(trajectory, call)?)
        });
        let result = pending?.wait();
        out.put(into_result(0, trajectory.into(), result));
        Ok(())
    })
}

/// Submits a call, whose result goes to `queue`, under `tag`. Never blocks: TE_QUEUE_FULL and
/// TE_COMPLETIONS_FULL say to fetch completions first.
///
/// `call` is as in te_execute(). What is accepted ends exactly once, by a completion in the queue.
/// A call that is wrong in itself is accepted, and its completion is there at once.
///
/// `handle` may be NULL. Else `*handle` is the caller's, to be freed by te_call_free(), which
/// does not end the call; after an error it is NULL, and nothing was submitted.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_submit(
    queue: *const te_queue,
    trajectory: *const c_char,
    trajectory_len: usize,
    call: *const c_char,
    call_len: usize,
    tag: u64,
    handle: *mut *mut te_call,
) -> te_status {
    guard(|| {
        let out = Out::optional(handle, std::ptr::null_mut());
        let trajectory = text(trajectory, trajectory_len, "trajectory")?;
        let call = text(call, call_len, "call")?;
        let queue = hold(queue)?;
        let executor = &queue.executor;
        let submitted = on_a_stack(call, || {
            let call = parse(call, executor.executor.max_timeout())?;
            let destination = queue.queue.tagged(tag);
            Ok(executor.executor.try_submit_to(trajectory, call, destination)?)
        })?;
        if let Some(out) = out {
            out.put(into_handle::<te_call>((submitted, executor.clone())));
        }
        Ok(())
    })
}

/// Asks for the end of a call. Does not block. One that has not started ends as
/// TE_OUTCOME_CANCELLED at once; a running one is killed, and its completion comes when the last
/// of its processes is gone. For one that has ended it does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_call_cancel(call: *const te_call) -> te_status {
    guard(|| {
        hold(call)?.0.cancel();
        Ok(())
    })
}

/// Frees the handle; the call goes on. NULL does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_call_free(call: *mut te_call) {
    free(call, |_| ());
}

/// Cancels everything of a trajectory that has not ended, see te_call_cancel(). Does not block;
/// every call still gets its result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_cancel_trajectory(
    executor: *const te_executor,
    trajectory: *const c_char,
    trajectory_len: usize,
) -> te_status {
    guard(|| {
        let trajectory = text(trajectory, trajectory_len, "trajectory")?;
        hold(executor)?.executor.cancel_trajectory(trajectory);
        Ok(())
    })
}

/// Ends a trajectory's use of its slot, after its earlier calls; empties the workspace first if
/// `reset_workspace` is not 0. Blocks until that is done. Without a reset the files stay until
/// another trajectory needs the slot. A trajectory without a slot, or unknown, is released
/// already.
///
/// TE_RESET_FAILED says that the workspace could not be emptied: no trajectory gets the slot
/// before it is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_release(
    executor: *const te_executor,
    trajectory: *const c_char,
    trajectory_len: usize,
    reset_workspace: i32,
) -> te_status {
    guard(|| {
        let trajectory = text(trajectory, trajectory_len, "trajectory")?;
        let executor = hold(executor)?;
        let executor = &executor.executor;
        let released = match reset_workspace {
            0 => executor.release_keeping_files(trajectory),
            _ => executor.release(trajectory),
        };
        Ok(released?)
    })
}

/// Like te_release(), but does not wait for it to be done.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_submit_release(
    executor: *const te_executor,
    trajectory: *const c_char,
    trajectory_len: usize,
    reset_workspace: i32,
) -> te_status {
    guard(|| {
        let trajectory = text(trajectory, trajectory_len, "trajectory")?;
        let executor = hold(executor)?;
        if executor.is_closed() {
            return Err(Fault::new(TE_CLOSED, "the executor is closed; it has released all slots"));
        }
        match reset_workspace {
            0 => executor.executor.submit_release_keeping_files(trajectory),
            _ => executor.executor.submit_release(trajectory),
        }
        Ok(())
    })
}

/// The tool calls in what a model wrote: a JSON array of {"name", "arguments", "uniq_id",
/// "raw_text"}, each of which te_execute() and te_submit() take as it is. Hermes and GLM formats
/// only, as the reference finds them: what cannot be read is left out. te_parse_text() reads all
/// formats.
///
/// On success `*calls` is the caller's, to be freed by te_buffer_free().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_parse_calls(
    model_text: *const c_char,
    model_text_len: usize,
    calls: *mut te_buffer,
) -> te_status {
    guard(|| {
        let out = Out::buffer(calls, "calls")?;
        let model_text = text(model_text, model_text_len, "model_text")?;
        let found =
            on_a_stack_for_text(model_text, || written(&ToolCall::parse_from_text(model_text)))?;
        out.put(te_buffer::of(found.into_bytes()));
        Ok(())
    })
}

/// The tool calls in a text that a model wrote, in their order: a JSON array of {"name",
/// "arguments", "uniq_id", "raw_text", "origin"}, each of which te_execute() and te_submit() take
/// as it is. The text has to be whole: half a call is one that cannot be read.
///
/// `format` is "auto", which reads every format that has marks of its own, or one of "hermes",
/// "qwen3-coder", "glm", "llama-3", "llama-4", "mistral", "deepseek-v3", "deepseek-v3-1",
/// "deepseek-v3-2", "kimi-k2", "minimax-m1", "minimax-m2", "anthropic-xml", "harmony", "granite",
/// "gemma", "fenced-bash"; empty is "auto". The executor's tools say what a text without marks
/// calls, and which types arguments have.
///
/// What is a call by its marks and cannot be read is among the calls, and its result is
/// TE_OUTCOME_INVALID_CALL, with the place and the reason: its "origin" has "unreadable". Small
/// damage that leaves one reading is mended; "origin" has "repairs" then, and the result the
/// metadata "call_repairs".
///
/// On success `*calls` is the caller's, to be freed by te_buffer_free().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_parse_text(
    executor: *const te_executor,
    model_text: *const c_char,
    model_text_len: usize,
    format: *const c_char,
    format_len: usize,
    calls: *mut te_buffer,
) -> te_status {
    guard(|| {
        let out = Out::buffer(calls, "calls")?;
        let model_text = text(model_text, model_text_len, "model_text")?;
        let format = format_of(format, format_len)?;
        let executor = hold(executor)?;
        let found = on_a_stack_for_text(model_text, || {
            let parser = CallParser::new(format).registry(executor.executor.registry());
            let parsed = parser.parse(model_text);
            let parsed = parsed.map_err(|error| Fault::new(TE_INVALID_JSON, error.to_string()))?;
            written(&parsed.calls)
        })?;
        out.put(te_buffer::of(found.into_bytes()));
        Ok(())
    })
}

/// The tool calls in a message that a model wrote, as te_parse_text() gives them. `message` is a
/// JSON object: an assistant's message of OpenAI's chat ("tool_calls", "function_call") or of
/// Anthropic's ("tool_use" in its content), an item of OpenAI's Responses, a turn of ShareGPT. A
/// message without such calls has those of its text, in `format`. One that no model wrote has none.
///
/// On success `*calls` is the caller's, to be freed by te_buffer_free().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_parse_message(
    executor: *const te_executor,
    message: *const c_char,
    message_len: usize,
    format: *const c_char,
    format_len: usize,
    calls: *mut te_buffer,
) -> te_status {
    guard(|| {
        let out = Out::buffer(calls, "calls")?;
        let message = text(message, message_len, "message")?;
        let format = format_of(format, format_len)?;
        let executor = hold(executor)?;
        let found = on_a_stack_for_text(message, || {
            let wrong =
                |error: &dyn Display| Fault::new(TE_INVALID_JSON, format!("the message: {error}"));
            let message: Value = object(message).map_err(|error| wrong(&error))?;
            let parser = CallParser::new(format).registry(executor.executor.registry());
            written(&parser.parse_message(&message).map_err(|error| wrong(&error))?.calls)
        })?;
        out.put(te_buffer::of(found.into_bytes()));
        Ok(())
    })
}

fn format_of(format: *const c_char, format_len: usize) -> Result<Format, Fault> {
    match text(format, format_len, "format")? {
        "" => Ok(Format::Auto),
        name => name
            .parse()
            .map_err(|error: UnknownName| Fault::new(TE_INVALID_ARGUMENT, error.to_string())),
    }
}

fn written(calls: &[ToolCall]) -> Result<String, Fault> {
    serde_json::to_string(calls).map_err(|error| Fault::of(TE_INVALID_JSON, &error))
}
