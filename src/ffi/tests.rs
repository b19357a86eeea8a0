//! Foreign bytes at every function that reads JSON: whatever they are, the answer is a status, the
//! places are set, and nothing panics.

use std::ffi::{c_char, c_void};
use std::ptr::{null, null_mut};

use proptest::prelude::*;

use super::te_status::{TE_INVALID_UTF8, TE_OK, TE_PANIC};
use super::*;

const ROUNDS: u32 = 512;

/// What users write, to be spoilt.
const GOOD: [&str; 15] = [
    r#"{"name": "echo", "arguments": {"x": [1, "é", null]}, "uniq_id": "u", "timeout_s": 2.5}"#,
    r#"{"name": "bash", "arguments": {"command": "ls"}, "raw_text": "x"}"#,
    r#"{"path": "a/b", "offset": 3, "max_bytes": 10, "sha256": true, "file_sha256": false}"#,
    r#"{"path": ".", "recursive": true, "max_entries": 7}"#,
    r#"{"name": "t", "description": "d", "parameters": {"a": {"type": "string"}}, "required": ["a"]}"#,
    r#"{"policy": {"allow_network": false}, "batch_policy": "window", "batch_window_s": 0.5}"#,
    r#"{"queue_capacity": 4, "on_lost_workspace": "refuse", "io_threads": 1, "handler_threads": 1}"#,
    r#"{"tools": {"builtin": false, "external": [{"name": "x"}]}, "close_timeout_s": 0}"#,
    r#"{"fleet": {"urls": [], "token": "t", "ca_pem": "x"}, "max_batch_size": 0}"#,
    r#"{"tool_server": {"url": "http://", "token": "t", "concurrency": 0}}"#,
    r#"<tool_call>{"name": "bash", "arguments": {"command": "ls"}}</tool_call>"#,
    r#"{"id": "c", "type": "function", "function": {"name": "echo", "arguments": "{\"x\": 1}"}}"#,
    r#"{"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "echo", "input": {}}]}"#,
    r#"{"trajectory_id": "t", "outcome": "ok", "output": "o", "error": "", "metadata": {}, "may_have_executed": true, "exec_s": 1}"#,
    r#"x <tool_call>bash<arg_key>command</arg_key><arg_value>ls</arg_value></tool_call> y"#,
];

/// Texts of users with some bytes put in, taken out or repeated; nested ones; and any bytes.
fn foreign() -> impl Strategy<Value = Vec<u8>> {
    let spoil = (0..GOOD.len(), prop::collection::vec((any::<u16>(), 0..4_u8, any::<u8>()), 0..6));
    let spoilt = spoil.prop_map(|(which, changes)| {
        let mut bytes = GOOD[which].as_bytes().to_vec();
        for (place, kind, byte) in changes {
            let place = usize::from(place) % (bytes.len() + 1);
            match kind {
                0 => bytes.insert(place, byte),
                1 => bytes.truncate(place),
                2 => bytes.extend_from_within(..place),
                _ if place < bytes.len() => bytes[place] = byte,
                _ => {}
            }
        }
        bytes
    });
    let signs = prop::sample::select(b"{}[]\":,\\0e-.tfnu \xc3\xa9\xff".to_vec());
    prop_oneof![
        4 => spoilt,
        2 => prop::collection::vec(signs, 0..80),
        1 => prop::collection::vec(any::<u8>(), 0..80),
        1 => (0..400_usize, any::<bool>()).prop_map(|(depth, closed)| {
            let end = if closed { "]".repeat(depth) } else { String::new() };
            let text = "[".repeat(depth);
            format!(r#"{{"name": "echo", "arguments": {{"a": {text}{end}}}}}"#).into_bytes()
        }),
    ]
}

unsafe extern "C" fn echo(
    _user: *mut c_void,
    call: *const te_tool_call,
    reply: *mut te_tool_reply,
) -> i32 {
    // SAFETY: valid for as long as this function runs; the reply is ours.
    unsafe {
        te_tool_reply_ok(reply, (*call).arguments, (*call).arguments_len);
        te_tool_reply_free(reply);
    }
    0
}

/// An executor with a tool and a queue.
struct Bench {
    executor: *mut te_executor,
    queue: *mut te_queue,
}

impl Bench {
    fn start() -> Self {
        let (mut tools, mut executor, mut queue) = (null_mut(), null_mut(), null_mut());
        let schema = r#"{"name": "echo"}"#;
        // SAFETY: all places and texts are valid.
        unsafe {
            assert_eq!(te_tools_new(&mut tools), TE_OK);
            let (text, len) = (schema.as_ptr().cast(), schema.len());
            assert_eq!(te_tools_add(tools, text, len, Some(echo), null_mut(), None), TE_OK);
            assert_eq!(te_executor_new(c"{}".as_ptr(), 2, tools, &mut executor), TE_OK);
            te_tools_free(tools);
            assert_eq!(te_queue_new(executor, 1000, &mut queue), TE_OK);
        }
        Self { executor, queue }
    }

    /// Gives the bytes to every function that reads some.
    fn feed(&self, data: *const c_char, len: usize) -> Result<(), TestCaseError> {
        let mut buffer = te_buffer { data: null_mut(), len: 7 };
        let mut info = te_buffer { data: null_mut(), len: 7 };
        let (mut result, mut call, mut tools) = (null_mut(), null_mut(), null_mut());
        let t = c"t".as_ptr();
        // SAFETY: all handles and places are valid, and `len` bytes are at `data`.
        unsafe {
            let status = te_execute(self.executor, t, 1, data, len, &mut result);
            prop_assert_ne!(status, TE_PANIC);
            prop_assert_eq!(status == TE_OK, !result.is_null());
            let (mut text, mut text_len) = (null(), 0);
            if status == TE_OK {
                for get in [te_result_json, te_result_metadata, te_result_xml] {
                    prop_assert_eq!(get(result, &mut text, &mut text_len), TE_OK);
                }
            }
            te_result_free(result);

            let status = te_result_read(data, len, &mut result);
            prop_assert_ne!(status, TE_PANIC);
            prop_assert_eq!(status == TE_OK, !result.is_null());
            te_result_free(result);

            let status = te_submit(self.queue, data, len, data, len, 3, &mut call);
            prop_assert_ne!(status, TE_PANIC);
            prop_assert_eq!(status == TE_OK, !call.is_null());
            if status == TE_OK {
                prop_assert_eq!(te_queue_next(self.queue, 60.0, &mut result), TE_OK);
                te_result_free(result);
            }
            te_call_free(call);

            let status = te_parse_calls(data, len, &mut buffer);
            prop_assert!(matches!(status, TE_OK | TE_INVALID_UTF8));
            prop_assert_eq!(status == TE_OK, !buffer.data.is_null());
            te_buffer_free(&mut buffer);
            let executor = self.executor;
            let status = te_parse_text(executor, data, len, null(), 0, &mut buffer);
            prop_assert!(matches!(status, TE_OK | TE_INVALID_UTF8));
            prop_assert_eq!(status == TE_OK, !buffer.data.is_null());
            te_buffer_free(&mut buffer);
            let status = te_parse_message(executor, data, len, null(), 0, &mut buffer);
            prop_assert_ne!(status, TE_PANIC);
            te_buffer_free(&mut buffer);

            for status in [
                te_artifact_read(executor, t, 1, data, len, &mut buffer, &mut info),
                te_artifact_list(executor, t, 1, data, len, &mut buffer),
                te_artifact_archive(executor, t, 1, data, len, &mut buffer, &mut info),
                te_archive_copy(executor, t, 1, data, len, 1, &mut info),
                te_artifact_copy(executor, data, len, data, len, 1, null_mut()),
            ] {
                prop_assert!(!matches!(status, TE_OK | TE_PANIC));
                prop_assert_eq!((buffer.len, info.len), (0, 0));
            }
            for status in [
                te_cancel_trajectory(executor, data, len),
                te_release(executor, data, len, 1),
                te_submit_release(executor, data, len, 1),
            ] {
                prop_assert!(matches!(status, TE_OK | TE_INVALID_UTF8));
            }

            prop_assert_eq!(te_tools_new(&mut tools), TE_OK);
            let status = te_tools_add(tools, data, len, Some(echo), null_mut(), None);
            prop_assert_ne!(status, TE_PANIC);
            let mut another = null_mut();
            let status = te_executor_new(data, len, tools, &mut another);
            prop_assert_ne!(status, TE_PANIC);
            prop_assert_eq!(status == TE_OK, !another.is_null());
            te_executor_free(another);
            te_tools_free(tools);
        }
        Ok(())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // SAFETY: ours, and not in use.
        unsafe {
            te_queue_free(self.queue);
            te_executor_free(self.executor);
        }
    }
}

#[test]
fn whatever_bytes_come_in_the_answer_is_a_status() {
    let bench = Bench::start();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: ROUNDS,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let run = runner.run(&foreign(), |bytes| bench.feed(bytes.as_ptr().cast(), bytes.len()));
    run.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn in_a_rust_host_with_a_logger_the_log_is_refused_or_ours() {
    unsafe extern "C" fn nothing(_: *mut c_void, _: i32, _: *const c_char, _: usize) {}
    // SAFETY: a function that takes any data.
    let first = unsafe { te_log_set(Some(nothing), null_mut(), 2) };
    // SAFETY: as above.
    let second = unsafe { te_log_set(None, null_mut(), 0) };
    assert!(matches!(first, TE_OK | te_status::TE_LOGGER_TAKEN));
    assert_eq!(first, second);
}
