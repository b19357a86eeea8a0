//! Results: a struct that C reads, and behind it what it points to.

use std::borrow::Cow;
use std::ffi::c_char;
use std::ptr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::status::te_status::{TE_INVALID_ARGUMENT, TE_INVALID_HANDLE, TE_INVALID_JSON, TE_NULL};
use super::status::{Fault, guard, te_status};
use super::text::{Out, object, on_a_stack, te_buffer, text};
use crate::tool::format::{MessageForm, UnknownName};
use crate::tool::{JsonObject, Outcome, ToolResult};

/// How a call ended. Numbers never change; new ones may be added.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum te_outcome {
    /// The tool did what it was asked to do.
    TE_OUTCOME_OK = 0,
    /// The command ran to its end and its exit code is not 0, or a signal ended it.
    TE_OUTCOME_NON_ZERO_EXIT = 1,
    /// The tool ran and refused or failed: file not found, access denied, ....
    TE_OUTCOME_TOOL_ERROR = 2,
    /// The call's time was up. What it had printed is in the output; all its processes are dead.
    TE_OUTCOME_TIMEOUT = 3,
    /// The slot's memory limit ended it.
    TE_OUTCOME_OUT_OF_MEMORY = 4,
    /// It was cancelled.
    TE_OUTCOME_CANCELLED = 5,
    /// The call itself is wrong: its arguments do not fit. It was never queued.
    TE_OUTCOME_INVALID_CALL = 6,
    /// No tool has this name. It was never queued.
    TE_OUTCOME_UNKNOWN_TOOL = 7,
    /// The policy demands an isolation that this sandbox cannot give. Nothing ran.
    TE_OUTCOME_ISOLATION_UNAVAILABLE = 8,
    /// The sandbox that held the trajectory's workspace is gone, or did not answer in time.
    TE_OUTCOME_SANDBOX_LOST = 9,
    /// The sandbox failed, or could not start the command.
    TE_OUTCOME_BACKEND_FAILED = 10,
    /// An external tool could not be run: no ToolServer, no usable answer; or a tool of the host's
    /// freed its reply without an answer.
    TE_OUTCOME_EXTERNAL_FAILED = 11,
    /// The call was accepted and never started: no slot in time, or the executor was closed.
    TE_OUTCOME_NEVER_RAN = 12,
    /// The slot's limit of workspace bytes ended it.
    TE_OUTCOME_DISK_FULL = 13,
    /// The image that the trajectory asked for cannot be had. Nothing ran.
    TE_OUTCOME_IMAGE_UNAVAILABLE = 14,
    /// Commands cannot be run in the image that the trajectory asked for. Nothing ran.
    TE_OUTCOME_IMAGE_UNUSABLE = 15,
    /// The trajectory asked for what this sandbox cannot give, or its operator does not allow.
    /// Nothing ran.
    TE_OUTCOME_SPEC_UNSUPPORTED = 16,
    /// The time that the trajectory may hold its slot was up: max_wall_s or max_idle_s of its spec.
    TE_OUTCOME_TRAJECTORY_EXPIRED = 17,
}

impl From<Outcome> for te_outcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Ok => te_outcome::TE_OUTCOME_OK,
            Outcome::NonZeroExit => te_outcome::TE_OUTCOME_NON_ZERO_EXIT,
            Outcome::ToolError => te_outcome::TE_OUTCOME_TOOL_ERROR,
            Outcome::Timeout => te_outcome::TE_OUTCOME_TIMEOUT,
            Outcome::OutOfMemory => te_outcome::TE_OUTCOME_OUT_OF_MEMORY,
            Outcome::DiskFull => te_outcome::TE_OUTCOME_DISK_FULL,
            Outcome::Cancelled => te_outcome::TE_OUTCOME_CANCELLED,
            Outcome::InvalidCall => te_outcome::TE_OUTCOME_INVALID_CALL,
            Outcome::UnknownTool => te_outcome::TE_OUTCOME_UNKNOWN_TOOL,
            Outcome::IsolationUnavailable => te_outcome::TE_OUTCOME_ISOLATION_UNAVAILABLE,
            Outcome::SandboxLost => te_outcome::TE_OUTCOME_SANDBOX_LOST,
            Outcome::BackendFailed => te_outcome::TE_OUTCOME_BACKEND_FAILED,
            Outcome::ExternalFailed => te_outcome::TE_OUTCOME_EXTERNAL_FAILED,
            Outcome::NeverRan => te_outcome::TE_OUTCOME_NEVER_RAN,
            Outcome::ImageUnavailable => te_outcome::TE_OUTCOME_IMAGE_UNAVAILABLE,
            Outcome::ImageUnusable => te_outcome::TE_OUTCOME_IMAGE_UNUSABLE,
            Outcome::SpecUnsupported => te_outcome::TE_OUTCOME_SPEC_UNSUPPORTED,
            Outcome::TrajectoryExpired => te_outcome::TE_OUTCOME_TRAJECTORY_EXPIRED,
        }
    }
}

/// The outcome's name in JSON, such as "non_zero_exit"; "unknown" for a number that is none.
/// Static text, with a NUL at its end.
#[unsafe(no_mangle)]
pub extern "C" fn te_outcome_name(outcome: i32) -> *const c_char {
    let name = match Outcome::ALL.into_iter().find(|one| te_outcome::from(*one) as i32 == outcome) {
        None => c"unknown",
        Some(Outcome::Ok) => c"ok",
        Some(Outcome::NonZeroExit) => c"non_zero_exit",
        Some(Outcome::ToolError) => c"tool_error",
        Some(Outcome::Timeout) => c"timeout",
        Some(Outcome::OutOfMemory) => c"out_of_memory",
        Some(Outcome::DiskFull) => c"disk_full",
        Some(Outcome::Cancelled) => c"cancelled",
        Some(Outcome::InvalidCall) => c"invalid_call",
        Some(Outcome::UnknownTool) => c"unknown_tool",
        Some(Outcome::IsolationUnavailable) => c"isolation_unavailable",
        Some(Outcome::SandboxLost) => c"sandbox_lost",
        Some(Outcome::BackendFailed) => c"backend_failed",
        Some(Outcome::ExternalFailed) => c"external_failed",
        Some(Outcome::NeverRan) => c"never_ran",
        Some(Outcome::ImageUnavailable) => c"image_unavailable",
        Some(Outcome::ImageUnusable) => c"image_unusable",
        Some(Outcome::SpecUnsupported) => c"spec_unsupported",
        Some(Outcome::TrajectoryExpired) => c"trajectory_expired",
    };
    name.as_ptr()
}

/// What a call gave. Allocated by the library, read by the caller, freed by te_result_free(); what
/// its pointers lead to lives as long as it does. Never NULL, UTF-8, and without a NUL at the end.
///
/// Later versions may add fields at the end: use it by the pointers that the library gives, and do
/// not copy it or make one. Any number of threads may read it at the same time. It does not need
/// the executor, and works in a forked process.
#[repr(C)]
#[derive(Debug)]
pub struct te_result {
    /// The library's own.
    pub reserved: u64,
    /// What te_submit() was given; 0 from te_execute().
    pub tag: u64,
    /// How the call ended, for programs.
    pub outcome: te_outcome,
    /// 1 if the tool did what it was asked to do, which is TE_OUTCOME_OK; else 0.
    pub success: u8,
    /// 1 if any part of the call may have had an effect; 0 only where it is certain that nothing
    /// ran.
    pub may_have_executed: u8,
    /// The training mask: 1 if the model's own doing ended the call this way, 0 if it was the
    /// infrastructure. A trainer should leave out the trajectory then.
    pub model_attributable: u8,
    /// Whose call it was.
    pub trajectory: *const c_char,
    /// The length of `trajectory`.
    pub trajectory_len: usize,
    /// The call's "uniq_id".
    pub uniq_id: *const c_char,
    /// The length of `uniq_id`.
    pub uniq_id_len: usize,
    /// What the tool printed or read, not copied. There for failures too, as far as it came.
    pub output: *const c_char,
    /// The length of `output`.
    pub output_len: usize,
    /// Empty on success, else one line that says what went wrong.
    pub error: *const c_char,
    /// The length of `error`.
    pub error_len: usize,
    /// Seconds from its acceptance to its hand-over to the sandbox, without the wait for a slot.
    pub queue_s: f64,
    /// Seconds of waiting for a slot.
    pub slot_s: f64,
    /// Seconds from the hand-over until the result was there.
    pub exec_s: f64,
}

/// A result as the library has it: what C sees comes first.
#[repr(C)]
struct Full {
    seen: te_result,
    trajectory: Arc<str>,
    result: ToolResult,
    metadata: OnceLock<String>,
    json: OnceLock<String>,
    xml: OnceLock<String>,
}

const KIND: u64 = 0x7465_2d72_6573_756c;

/// Makes a result for C.
pub(super) fn into_result(tag: u64, trajectory: Arc<str>, result: ToolResult) -> *mut te_result {
    let timing = result.timing;
    let mut full = Box::new(Full {
        seen: te_result {
            reserved: KIND,
            tag,
            outcome: result.outcome.into(),
            success: result.success.into(),
            may_have_executed: result.may_have_executed.into(),
            model_attributable: result.model_attributable().into(),
            trajectory: ptr::null(),
            trajectory_len: 0,
            uniq_id: ptr::null(),
            uniq_id_len: 0,
            output: ptr::null(),
            output_len: 0,
            error: ptr::null(),
            error_len: 0,
            queue_s: timing.queue.as_secs_f64(),
            slot_s: timing.slot.as_secs_f64(),
            exec_s: timing.exec.as_secs_f64(),
        },
        trajectory,
        result,
        metadata: OnceLock::new(),
        json: OnceLock::new(),
        xml: OnceLock::new(),
    });
    // What they point to is on the heap, and nothing changes it before it is freed.
    let Full { seen, trajectory, result, .. } = &mut *full;
    (seen.trajectory, seen.trajectory_len) = parts(trajectory);
    (seen.uniq_id, seen.uniq_id_len) = parts(result.uniq_id.as_deref().unwrap_or(""));
    (seen.output, seen.output_len) = parts(&result.output);
    (seen.error, seen.error_len) = parts(&result.error);
    Box::into_raw(full).cast()
}

/// A text's place and length. An empty one has a place that may be read, too.
fn parts(text: &str) -> (*const c_char, usize) {
    match text.len() {
        0 => (c"".as_ptr(), 0),
        len => (text.as_ptr().cast(), len),
    }
}

/// A result in JSON: what `te_result_json` documents.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<'a> {
    #[serde(default)]
    tag: u64,
    trajectory_id: Cow<'a, str>,
    #[serde(default)]
    uniq_id: Option<Cow<'a, str>>,
    #[serde(default)]
    success: bool,
    outcome: Outcome,
    output: Cow<'a, str>,
    error: Cow<'a, str>,
    metadata: Cow<'a, JsonObject>,
    may_have_executed: bool,
    #[serde(default)]
    model_attributable: bool,
    #[serde(default)]
    queue_s: f64,
    #[serde(default)]
    slot_s: f64,
    #[serde(default)]
    exec_s: f64,
}

/// Appends a result in JSON.
pub(super) fn write_json(tag: u64, trajectory: &str, result: &ToolResult, into: &mut Vec<u8>) {
    let written = Written {
        tag,
        trajectory_id: trajectory.into(),
        uniq_id: result.uniq_id.as_deref().map(Cow::Borrowed),
        success: result.success,
        outcome: result.outcome,
        output: result.output.as_str().into(),
        error: result.error.as_str().into(),
        metadata: Cow::Borrowed(&result.metadata),
        may_have_executed: result.may_have_executed,
        model_attributable: result.model_attributable(),
        queue_s: result.timing.queue.as_secs_f64(),
        slot_s: result.timing.slot.as_secs_f64(),
        exec_s: result.timing.exec.as_secs_f64(),
    };
    // Cannot fail: memory takes what is written, and all keys are text.
    let _ = serde_json::to_writer(into, &written);
}

fn read_json(json: &str) -> Result<(u64, Arc<str>, ToolResult), Fault> {
    let written: Written<'_> = object(json)
        .map_err(|error| Fault::new(TE_INVALID_JSON, format!("the result: {error}")))?;
    let time = |seconds: f64, name: &str| {
        Duration::try_from_secs_f64(seconds).map_err(|error| {
            let text = format!("the result: {name} is {seconds}: {error}");
            Fault::new(TE_INVALID_ARGUMENT, text)
        })
    };
    let mut result = ToolResult::failure(written.outcome, written.error);
    result.output = written.output.into_owned();
    result.metadata = written.metadata.into_owned();
    result.uniq_id = written.uniq_id.map(Cow::into_owned);
    result.may_have_executed = written.may_have_executed;
    result.timing.queue = time(written.queue_s, "queue_s")?;
    result.timing.slot = time(written.slot_s, "slot_s")?;
    result.timing.exec = time(written.exec_s, "exec_s")?;
    Ok((written.tag, (&*written.trajectory_id).into(), result))
}

fn check(result: *const te_result) -> Result<*const Full, Fault> {
    let wrong = || Fault::new(TE_INVALID_HANDLE, "this is no te_result, or one that was freed");
    if result.is_null() {
        return Err(Fault::new(TE_NULL, "the te_result is NULL"));
    }
    // SAFETY: the caller's promise: a pointer that we have given and that was not freed. All of
    // those begin with their kind.
    if !result.is_aligned() || unsafe { *result.cast::<u64>() } != KIND {
        return Err(wrong());
    }
    Ok(result.cast())
}

/// Makes a text of a result once, and gives its place and length.
fn give(
    result: *const te_result,
    place: *mut *const c_char,
    len: *mut usize,
    text: impl FnOnce(&Full) -> &String,
) -> te_status {
    guard(|| {
        let place = Out::new(place, "the place for the text", c"".as_ptr())?;
        let len = Out::new(len, "the place for its length", 0)?;
        let full = check(result)?;
        // SAFETY: checked above; nothing but the cells is ever changed.
        let (text, bytes) = parts(text(unsafe { &*full }));
        place.put(text);
        len.put(bytes);
        Ok(())
    })
}

/// Facts about the run, as a JSON object: "exit_code", "signal", "sandboxed", "network_isolated",
/// byte counts, .... Made when it is first asked for; the text is the result's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_result_metadata(
    result: *const te_result,
    metadata: *mut *const c_char,
    metadata_len: *mut usize,
) -> te_status {
    give(result, metadata, metadata_len, |full| {
        full.metadata.get_or_init(|| json!(full.result.metadata).to_string())
    })
}

/// All of the result as a JSON object: "tag", "trajectory_id", "uniq_id", "success", "outcome",
/// "output", "error", "metadata", "may_have_executed", "model_attributable", "queue_s", "slot_s",
/// "exec_s". Made when it is first asked for; the text is the result's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_result_json(
    result: *const te_result,
    json: *mut *const c_char,
    json_len: *mut usize,
) -> te_status {
    give(result, json, json_len, |full| {
        full.json.get_or_init(|| {
            let mut json = Vec::new();
            write_json(full.seen.tag, &full.trajectory, &full.result, &mut json);
            // Always UTF-8: it was written as JSON.
            String::from_utf8(json).unwrap_or_default()
        })
    })
}

/// The result of which this is the JSON, as te_result_json() and te_queue_next_json() give it: for
/// hosts that keep results as JSON, and want one as text or a message after all. "tag",
/// "uniq_id", "success", "model_attributable" and the times may be left out; "success" and
/// "model_attributable" are what the outcome says.
///
/// On success `*result` is the caller's, to be freed by te_result_free(); after an error it is
/// NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_result_read(
    json: *const c_char,
    json_len: usize,
    result: *mut *mut te_result,
) -> te_status {
    guard(|| {
        let out = Out::new(result, "result", ptr::null_mut())?;
        let json = text(json, json_len, "json")?;
        let (tag, trajectory, result) = on_a_stack(json, || read_json(json))?;
        out.put(into_result(tag, trajectory, result));
        Ok(())
    })
}

/// The result as a model is shown it: <tool_response> text. Made when it is first asked for; the
/// text is the result's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_result_xml(
    result: *const te_result,
    xml: *mut *const c_char,
    xml_len: *mut usize,
) -> te_status {
    give(result, xml, xml_len, |full| full.xml.get_or_init(|| full.result.to_xml()))
}

/// The result as the message that answers its call, a JSON object with the call's id, in `form`:
/// "openai" ({"role": "tool", "tool_call_id", "content"}), "openai-responses" ({"type":
/// "function_call_output", "call_id", "output"}), "anthropic" ({"role": "user", "content":
/// [{"type": "tool_result", "tool_use_id", "content"}]}), "openai-function-call" ({"role":
/// "function", "content"}, to which the caller adds the tool's "name") or "sharegpt" ({"from":
/// "tool", "value"}). The message is the caller's, to be freed by te_buffer_free().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_result_message(
    result: *const te_result,
    form: *const c_char,
    form_len: usize,
    message: *mut te_buffer,
) -> te_status {
    guard(|| {
        let out = Out::buffer(message, "message")?;
        let form: MessageForm = text(form, form_len, "form")?
            .parse()
            .map_err(|error: UnknownName| Fault::new(TE_INVALID_ARGUMENT, error.to_string()))?;
        let full = check(result)?;
        // SAFETY: checked above; nothing but the cells is ever changed.
        let full = unsafe { &*full };
        out.json(&full.result.to_message(form));
        Ok(())
    })
}

/// Frees a result and all that it points to. NULL does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_result_free(result: *mut te_result) {
    if result.is_null() {
        return;
    }
    guard(|| {
        let full = check(result)?.cast_mut();
        // SAFETY: checked above; made by `Box::into_raw`, and given up by its owner.
        unsafe {
            (*full).seen.reserved = 0;
            drop(Box::from_raw(full));
        }
        Ok(())
    });
}
