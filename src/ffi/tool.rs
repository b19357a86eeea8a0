//! In-process tools: functions of the host's that answer calls, at once or later.

use std::ffi::{c_char, c_void};
use std::ptr;
use std::sync::Arc;

use parking_lot::Mutex;

use super::handle::{Opaque, free, hold, into_handle};
use super::status::te_status::{
    TE_ALREADY_ANSWERED, TE_INVALID_ARGUMENT, TE_INVALID_JSON, TE_INVALID_TOOL, TE_NULL,
};
use super::status::{Fault, guard, te_status};
use super::text::{Out, object, on_a_stack, text};
use crate::tool::{
    JsonObject, Outcome, RegisterError, ToolContext, ToolRegistry, ToolReply, ToolResult,
    ToolSchema,
};

/// Tools of the host's own, for te_executor_new(). Made by te_tools_new(), freed by
/// te_tools_free(). Any number of threads may use them at the same time.
pub struct te_tools {
    _opaque: (),
}

impl Opaque for te_tools {
    type Value = Mutex<Vec<(ToolSchema, Arc<Function>)>>;
    const KIND: u64 = 0x7465_2d74_6f6f_6c73;
    const NAME: &'static str = "te_tools";
}

/// The answer that a call of a tool waits for. Given to a te_tool_fn, freed by
/// te_tool_reply_free(). Any number of threads may use it at the same time.
pub struct te_tool_reply {
    _opaque: (),
}

impl Opaque for te_tool_reply {
    type Value = (Mutex<Option<ToolReply>>, ToolContext);
    const KIND: u64 = 0x7465_2d72_6570_6c79;
    const NAME: &'static str = "te_tool_reply";
}

/// A call of a tool of the host's. The library's; valid until the te_tool_fn returns. Later
/// versions may add fields at the end. The texts are UTF-8 without a NUL at the end, and never
/// NULL.
#[repr(C)]
#[derive(Debug)]
pub struct te_tool_call {
    /// The tool's name.
    pub name: *const c_char,
    /// The length of `name`.
    pub name_len: usize,
    /// Whose call it is.
    pub trajectory: *const c_char,
    /// The length of `trajectory`.
    pub trajectory_len: usize,
    /// The call's "uniq_id".
    pub uniq_id: *const c_char,
    /// The length of `uniq_id`.
    pub uniq_id_len: usize,
    /// The arguments: a JSON object that fits the tool's schema.
    pub arguments: *const c_char,
    /// The length of `arguments`.
    pub arguments_len: usize,
    /// Seconds until the call's time is up.
    pub remaining_s: f64,
}

/// A tool of the host's. `reply` is the function's from now on: it, or what it passes it to,
/// answers by te_tool_reply_ok(), te_tool_reply_error() or te_tool_reply_fail() once, and frees it
/// by te_tool_reply_free() – before it returns, or later on any thread. It must not block for what
/// it can wait for elsewhere: there are "handler_threads" threads for all tools.
///
/// Called on threads of the library ("tool-fn-N", with a stack of 2 MiB and all signals blocked),
/// for several trajectories at the same time. It may submit calls, but must not wait for a call of
/// its own trajectory. It must neither throw an exception nor longjmp.
///
/// It returns 0. Any other number ends the call as TE_OUTCOME_EXTERNAL_FAILED, if it has no
/// answer; the reply has to be freed all the same.
pub type te_tool_fn = Option<
    unsafe extern "C" fn(
        user: *mut c_void,
        call: *const te_tool_call,
        reply: *mut te_tool_reply,
    ) -> i32,
>;

/// Frees what a host has given the library along with a function.
pub type te_free_fn = Option<unsafe extern "C" fn(user: *mut c_void)>;

/// A function of the host's and what belongs to it.
pub(super) struct Function {
    function: unsafe extern "C" fn(*mut c_void, *const te_tool_call, *mut te_tool_reply) -> i32,
    user: *mut c_void,
    free: te_free_fn,
}

// SAFETY: the host's promise in `te_tools_add`: function and data may be used by any thread.
unsafe impl Send for Function {}
// SAFETY: as above, by several at the same time.
unsafe impl Sync for Function {}

impl Drop for Function {
    fn drop(&mut self) {
        if let Some(free) = self.free {
            // SAFETY: the host's promise; called once, when nothing can call the function any more.
            unsafe { free(self.user) };
        }
    }
}

impl Function {
    fn call(&self, name: &str, context: &ToolContext, arguments: &JsonObject, reply: ToolReply) {
        let reply = into_handle::<te_tool_reply>((Mutex::new(Some(reply)), context.clone()));
        // The host may free its handle at once; this one is to see whether it has answered.
        let Ok(ours) = hold(reply.cast_const()) else { return };
        let arguments = serde_json::Value::Object(arguments.clone()).to_string();
        let parts = |text: &str| match text.len() {
            0 => (c"".as_ptr(), 0),
            len => (text.as_ptr().cast::<c_char>(), len),
        };
        let (name, name_len) = parts(name);
        let (trajectory, trajectory_len) = parts(context.trajectory_id());
        let (uniq_id, uniq_id_len) = parts(context.uniq_id());
        let (arguments, arguments_len) = parts(&arguments);
        let call = te_tool_call {
            name,
            name_len,
            trajectory,
            trajectory_len,
            uniq_id,
            uniq_id_len,
            arguments,
            arguments_len,
            remaining_s: context.remaining().as_secs_f64(),
        };
        // SAFETY: the host's promise: a function of this type, that takes this data. `call` and
        // what it points to outlive the call; `reply` is the host's from here.
        let status = unsafe { (self.function)(self.user, &call, reply) };
        if status != 0
            && let Some(unanswered) = ours.0.lock().take()
        {
            let error = format!("Tool execution error: the tool returned {status}");
            unanswered.send_result(ToolResult::failure(Outcome::ExternalFailed, error));
        }
    }
}

/// Makes an empty set of tools. On success `*tools` is the caller's, to be freed by
/// te_tools_free().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_tools_new(tools: *mut *mut te_tools) -> te_status {
    guard(|| {
        let out = Out::new(tools, "tools", ptr::null_mut())?;
        out.put(into_handle::<te_tools>(Mutex::default()));
        Ok(())
    })
}

/// Adds a tool. Executors that were started before do not have it.
///
/// `schema` is a JSON object: {"name": "add", "description": "Adds.", "parameters": {"a": {"type":
/// "number", "description": "..."}}, "required": ["a"]}; only "name" is needed. Calls whose
/// arguments do not fit are answered by the library, and never get to the function.
///
/// `user` is passed to the function, and to `user_free`, if that is not NULL, once: when these
/// tools and every executor, queue and call that was made with them are freed, on whatever thread
/// frees the last. After an error it is not called, and `user` stays the caller's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_tools_add(
    tools: *const te_tools,
    schema: *const c_char,
    schema_len: usize,
    function: te_tool_fn,
    user: *mut c_void,
    user_free: te_free_fn,
) -> te_status {
    guard(|| {
        let tools = hold(tools)?;
        let schema = text(schema, schema_len, "schema")?;
        let schema: ToolSchema = on_a_stack(schema, || {
            object(schema)
                .map_err(|error| Fault::new(TE_INVALID_JSON, format!("the schema: {error}")))
        })?;
        schema.check().map_err(|error| Fault::of(TE_INVALID_TOOL, &error))?;
        let Some(function) = function else {
            return Err(Fault::new(TE_NULL, "the tool's function is NULL"));
        };
        let mut tools = tools.lock();
        // Whether it goes with the others is known now, not when an executor starts.
        let mut registry = ToolRegistry::empty();
        for schema in tools.iter().map(|(schema, _)| schema).chain([&schema]) {
            registry.register_external(schema.clone()).map_err(no_tool)?;
        }
        let function = Function { function, user, free: user_free };
        tools.push((schema, Arc::new(function)));
        Ok(())
    })
}

fn no_tool(error: RegisterError) -> Fault {
    Fault::of(TE_INVALID_TOOL, &error)
}

/// Adds these tools to a registry. NULL is none.
pub(super) fn add_to(registry: &mut ToolRegistry, tools: *const te_tools) -> Result<(), Fault> {
    if tools.is_null() {
        return Ok(());
    }
    for (schema, function) in hold(tools)?.lock().iter() {
        let (name, function) = (schema.name.clone(), function.clone());
        let run = move |context: &ToolContext, arguments: &JsonObject, reply: ToolReply| {
            function.call(&name, context, arguments, reply);
        };
        registry.register_deferred(schema.clone(), run).map_err(no_tool)?;
    }
    Ok(())
}

/// Frees a set of tools. NULL does nothing. Executors that were started with them keep them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_tools_free(tools: *mut te_tools) {
    free(tools, |_| ());
}

/// Takes what a call waits for, and has it answered.
fn answer(reply: *const te_tool_reply, send: impl FnOnce(ToolReply)) -> Result<(), Fault> {
    let held = hold(reply)?;
    // Not under the lock: the answer goes a long way.
    let unanswered = held.0.lock().take();
    let Some(unanswered) = unanswered else {
        return Err(Fault::new(TE_ALREADY_ANSWERED, "this call was answered before"));
    };
    send(unanswered);
    Ok(())
}

/// The line that says why a tool failed.
fn reason(error: *const c_char, error_len: usize) -> Result<String, Fault> {
    match text(error, error_len, "error")? {
        "" => Err(Fault::new(TE_INVALID_ARGUMENT, "the error is empty: it must say why")),
        error => Ok(error.to_owned()),
    }
}

/// Answers a call with the output of a success. Does not block. A second answer is
/// TE_ALREADY_ANSWERED; one that comes too late, to a call that has ended otherwise, is thrown
/// away. After any other error the call still waits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_tool_reply_ok(
    reply: *const te_tool_reply,
    output: *const c_char,
    output_len: usize,
) -> te_status {
    guard(|| {
        let output = text(output, output_len, "output")?.to_owned();
        answer(reply, |reply| reply.send(Ok(output)))
    })
}

/// Answers a call with an error, TE_OUTCOME_TOOL_ERROR: one line that says why the tool failed,
/// which the model is shown. Else as te_tool_reply_ok().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_tool_reply_error(
    reply: *const te_tool_reply,
    error: *const c_char,
    error_len: usize,
) -> te_status {
    guard(|| {
        let error = reason(error, error_len)?;
        answer(reply, |reply| reply.send(Err(error)))
    })
}

/// Answers a call with TE_OUTCOME_EXTERNAL_FAILED: the tool itself is broken, or cannot reach what
/// it needs, which is not the model's doing and not to be trained on. Else as
/// te_tool_reply_error(), for what the tool has against the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_tool_reply_fail(
    reply: *const te_tool_reply,
    error: *const c_char,
    error_len: usize,
) -> te_status {
    guard(|| {
        let failure = ToolResult::failure(Outcome::ExternalFailed, reason(error, error_len)?);
        answer(reply, |reply| reply.send_result(failure))
    })
}

/// Whether anybody still waits for the answer: `*wanted` is 0 once the call was answered or
/// cancelled, or its time is up. A tool that takes long looks now and then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_tool_reply_wanted(
    reply: *const te_tool_reply,
    wanted: *mut i32,
) -> te_status {
    guard(|| {
        let out = Out::new(wanted, "wanted", 0)?;
        let held = hold(reply)?;
        let (unanswered, context) = &*held;
        let over = context.is_cancelled() || context.remaining().is_zero();
        out.put((!over && unanswered.lock().is_some()).into());
        Ok(())
    })
}

/// Frees a reply. NULL does nothing. A call that has no answer ends as TE_OUTCOME_EXTERNAL_FAILED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_tool_reply_free(reply: *mut te_tool_reply) {
    free(reply, |(unanswered, _)| drop(unanswered.lock().take()));
}
