//! Bytes that come in as a pointer and a length, and buffers that go out.

use std::ffi::c_char;
use std::panic::resume_unwind;
use std::ptr;
use std::thread;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::status::te_status::{TE_INVALID_ARGUMENT, TE_INVALID_UTF8, TE_NULL, TE_START_FAILED};
use super::status::{Fault, guard};

/// Bytes that belong to the caller: the functions that give some fill a buffer of the caller's,
/// and te_buffer_free() frees what is in it. What it held before is not looked at. After an error
/// it is empty.
#[repr(C)]
#[derive(Debug)]
pub struct te_buffer {
    /// The bytes: UTF-8 where they are JSON. No NUL at the end. NULL if there are none.
    pub data: *mut c_char,
    /// How many.
    pub len: usize,
}

impl te_buffer {
    const EMPTY: te_buffer = te_buffer { data: ptr::null_mut(), len: 0 };

    pub(super) fn of(bytes: Vec<u8>) -> Self {
        if bytes.is_empty() {
            return Self::EMPTY;
        }
        let bytes = Box::leak(bytes.into_boxed_slice());
        Self { data: bytes.as_mut_ptr().cast(), len: bytes.len() }
    }
}

/// Frees what is in a buffer and leaves it empty, so that a second time does nothing. NULL does
/// nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_buffer_free(buffer: *mut te_buffer) {
    if buffer.is_null() {
        return;
    }
    guard(|| {
        // SAFETY: not NULL, hence the caller's promise: it points to a buffer.
        let te_buffer { data, len } = unsafe { buffer.replace(te_buffer::EMPTY) };
        if !data.is_null() {
            // SAFETY: a buffer that is not empty was filled by `te_buffer::of` and nothing else.
            drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(data.cast::<u8>(), len)) });
        }
        Ok(())
    });
}

/// A place where a function puts what it gives.
pub(super) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// The place, with `empty` in it, so that an error leaves nothing undefined behind.
    pub(super) fn new(place: *mut T, name: &str, empty: T) -> Result<Self, Fault> {
        if place.is_null() {
            return Err(Fault::new(TE_NULL, format!("{name} is NULL: there is no place for it")));
        }
        let out = Self(place);
        out.put(empty);
        Ok(out)
    }

    /// The same of a place that may be missing.
    pub(super) fn optional(place: *mut T, empty: T) -> Option<Self> {
        Self::new(place, "", empty).ok()
    }

    pub(super) fn put(&self, value: T) {
        // SAFETY: not NULL, hence the caller's promise: it points to a place for a `T`. What was
        // there is the caller's, or `Copy`, and is not dropped.
        unsafe { self.0.write(value) }
    }
}

impl Out<te_buffer> {
    pub(super) fn buffer(place: *mut te_buffer, name: &str) -> Result<Self, Fault> {
        Self::new(place, name, te_buffer::EMPTY)
    }

    pub(super) fn json(&self, value: &serde_json::Value) {
        self.put(te_buffer::of(value.to_string().into_bytes()));
    }
}

/// The bytes at `data`. NULL with a length of 0 is none.
pub(super) fn bytes<'a>(data: *const c_char, len: usize, name: &str) -> Result<&'a [u8], Fault> {
    if len == 0 {
        return Ok(&[]);
    }
    if data.is_null() {
        return Err(Fault::new(TE_NULL, format!("{name} is NULL, and its length {len}")));
    }
    if len > isize::MAX as usize {
        let text = format!("the length of {name}, {len}, is no length: a negative number?");
        return Err(Fault::new(TE_INVALID_ARGUMENT, text));
    }
    // SAFETY: the caller's promise: so many bytes are there, and they do not change while the
    // function runs.
    Ok(unsafe { std::slice::from_raw_parts(data.cast(), len) })
}

/// The text at `data`. NULL with a length of 0 is empty.
pub(super) fn text<'a>(data: *const c_char, len: usize, name: &str) -> Result<&'a str, Fault> {
    let bytes = bytes(data, len, name)?;
    std::str::from_utf8(bytes).map_err(|error| {
        let text = format!("{name} is not UTF-8: {error}");
        Fault::new(TE_INVALID_UTF8, text)
    })
}

/// What may be nested so deeply is read on the caller's stack.
const SHALLOW: usize = 16;

/// Runs what reads `json`, or frees what was read of it, and is recursive therefore. Where it is
/// nested deeply it gets a stack of ours: the caller's may be small, and how deep a model nests is
/// not known.
pub(super) fn on_a_stack<T: Send>(
    json: &str,
    read: impl FnOnce() -> Result<T, Fault> + Send,
) -> Result<T, Fault> {
    if nesting(json) <= SHALLOW { read() } else { on_our_stack(read) }
}

/// The same for what a model wrote, in which quotation marks say nothing of where a string is: its
/// opening brackets bound how deeply it is nested.
pub(super) fn on_a_stack_for_text<T: Send>(
    text: &str,
    read: impl FnOnce() -> Result<T, Fault> + Send,
) -> Result<T, Fault> {
    let brackets = text.bytes().filter(|byte| matches!(byte, b'[' | b'{' | b'('));
    if brackets.take(SHALLOW + 1).count() <= SHALLOW { read() } else { on_our_stack(read) }
}

fn on_our_stack<T: Send>(read: impl FnOnce() -> Result<T, Fault> + Send) -> Result<T, Fault> {
    thread::scope(|scope| {
        #[expect(clippy::disallowed_methods, reason = "it lives in this scope")]
        let deep = thread::Builder::new().name("tool-parse".to_owned());
        let deep = super::signals::blocked(|| deep.spawn_scoped(scope, read))
            .map_err(|error| Fault::new(TE_START_FAILED, format!("no thread: {error}")))?;
        deep.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// How deep arrays and objects are nested in JSON, at most. Of what is no JSON it says something.
fn nesting(json: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Reads a JSON object. Not an array, which would be taken for the fields in their order.
pub(super) fn object<T: DeserializeOwned>(json: &str) -> serde_json::Result<T> {
    let is_array = json.trim_start().starts_with('[');
    if is_array {
        // What is no JSON at all is to be told so.
        let value: serde_json::Value = serde_json::from_str(json)?;
        return from_object(value);
    }
    serde_json::from_str(json)
}

/// The same of a value.
pub(super) fn from_object<T: DeserializeOwned>(value: serde_json::Value) -> serde_json::Result<T> {
    if value.is_array() {
        let text = "invalid type: an array, expected an object";
        return Err(serde::de::Error::custom(text));
    }
    serde_json::from_value(value)
}

/// The longest wait that is told apart: a year.
const LONGEST: f64 = 365.0 * 24.0 * 60.0 * 60.0;

/// A timeout in seconds, as the functions take it. Infinity is a year.
pub(super) fn seconds(seconds: f64, name: &str) -> Result<Duration, Fault> {
    if seconds >= 0.0 {
        return Ok(Duration::from_secs_f64(seconds.min(LONGEST)));
    }
    let text = format!("{name} is {seconds}; it must be a number of seconds, from 0");
    Err(Fault::new(TE_INVALID_ARGUMENT, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nesting_is_counted_outside_of_strings() {
        for (json, depth) in [
            ("", 0),
            ("1", 0),
            ("[]", 1),
            (r#"{"a": [1, [2]], "b": {}}"#, 3),
            (r#"["[[[", "\\", "\"[["]"#, 1),
            ("]]][", 1),
            ("[[[", 3),
        ] {
            assert_eq!(nesting(json), depth, "{json}");
        }
    }
}
