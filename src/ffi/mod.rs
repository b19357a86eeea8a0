//! The C ABI: the whole executor for programs that are not written in Rust. For Rust programs
//! there is nothing here; users of other languages read `include/tool_executor.h`, which is made
//! of these modules' documentation by a test (`tests/header.rs`), and begins with the rules for
//! pointers, threads, errors and forks.
//!
//! | module | what |
//! |---|---|
//! | `status` | status codes, the guard around every function, the message of the last error |
//! | `handle` | what is behind an opaque pointer, and how it is checked |
//! | `text` | bytes that come in, and buffers that go out |
//! | `config` | the configuration in JSON |
//! | `executor`, `call`, `queue`, `result`, `artifact`, `snapshot`, `tool`, `log`, `version` | the functions |
//! | `signals` | the library's threads take no signals of the host's |
//!
//! Each function is one `guard`: nothing foreign is trusted before it was checked, and no panic
//! leaves. A handle is an `Arc` whose clones are held by the threads inside a call, so that
//! freeing it takes nothing from under another thread that is in one.

#![allow(non_camel_case_types, reason = "the names are C's")]
#![allow(clippy::missing_safety_doc, reason = "said once for all, in the header's preamble")]

mod artifact;
mod begin;
mod call;
mod config;
mod executor;
mod handle;
mod log;
mod put;
mod queue;
mod result;
mod signals;
mod snapshot;
mod status;
#[cfg(test)]
mod tests;
mod text;
mod tool;
mod version;

pub use self::artifact::{
    te_archive_copy, te_artifact_archive, te_artifact_copy, te_artifact_list, te_artifact_read,
};
pub use self::begin::{te_begin, te_submit_begin};
pub use self::call::{
    te_call, te_call_cancel, te_call_free, te_cancel_trajectory, te_execute, te_parse_calls,
    te_parse_message, te_parse_text, te_release, te_submit, te_submit_release,
};
pub use self::executor::{
    te_describe, te_executor, te_executor_close, te_executor_free, te_executor_new, te_stats,
};
pub use self::log::{te_log_fn, te_log_level, te_log_set};
pub use self::put::{
    te_artifact_copy_to, te_files_put, te_files_put_fd, te_read_fn, te_tree_put, te_write_fn,
};
pub use self::queue::{
    te_queue, te_queue_fd, te_queue_free, te_queue_new, te_queue_next, te_queue_next_json,
    te_queue_next_many, te_queue_outstanding,
};
pub use self::result::{
    te_outcome, te_outcome_name, te_result, te_result_free, te_result_json, te_result_message,
    te_result_metadata, te_result_read, te_result_xml,
};
pub use self::snapshot::{te_fork, te_grade, te_snapshot, te_snapshot_drop, te_snapshots};
pub use self::status::{te_last_error, te_status, te_status_name};
pub use self::text::{te_buffer, te_buffer_free};
pub use self::tool::{
    te_free_fn, te_tool_call, te_tool_fn, te_tool_reply, te_tool_reply_error, te_tool_reply_fail,
    te_tool_reply_free, te_tool_reply_ok, te_tool_reply_wanted, te_tools, te_tools_add,
    te_tools_free, te_tools_new,
};
pub use self::version::{TE_ABI_VERSION, te_abi_version, te_version};
