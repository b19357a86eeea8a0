//! What is behind an opaque pointer: a head that is checked before anything else, and the value.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use super::status::te_status::{TE_FORKED, TE_INVALID_HANDLE, TE_NULL};
use super::status::{Fault, guard};

/// An opaque C type and what is behind it.
pub(super) trait Opaque {
    type Value;
    /// Tells the kinds apart.
    const KIND: u64;
    /// The type's name, for messages.
    const NAME: &'static str;
}

/// What a handle points to.
#[repr(C)]
struct Shell<T> {
    /// The kind, or `FREED`. All kinds have it at the same place.
    kind: AtomicU64,
    /// Who made it.
    pid: u32,
    value: T,
}

const FREED: u64 = 0x7465_2d66_7265_6564;

/// A value that is in use by a function: it lives at least as long as this does.
pub(super) struct Held<T>(Arc<Shell<T>>);

impl<T> std::ops::Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

/// Makes a handle, with one owner.
pub(super) fn into_handle<O: Opaque>(value: O::Value) -> *mut O {
    let shell = Shell { kind: AtomicU64::new(O::KIND), pid: process::id(), value };
    Arc::into_raw(Arc::new(shell)).cast_mut().cast()
}

/// The shell of a handle, if it is one of this kind.
fn check<O: Opaque>(handle: *const O) -> Result<*const Shell<O::Value>, Fault> {
    if handle.is_null() {
        return Err(Fault::new(TE_NULL, format!("the {} is NULL", O::NAME)));
    }
    let wrong =
        || Fault::new(TE_INVALID_HANDLE, format!("this is no {}, or one that was freed", O::NAME));
    let head = handle.cast::<AtomicU64>();
    if !head.is_aligned() {
        return Err(wrong());
    }
    // SAFETY: the caller's promise: a pointer that we have given and that was not freed. All of
    // those begin with their kind.
    if unsafe { &*head }.load(Ordering::Acquire) != O::KIND {
        return Err(wrong());
    }
    Ok(handle.cast())
}

/// Whether the process is not the one that made the handle.
fn is_forked<T>(shell: *const Shell<T>) -> bool {
    // SAFETY: `check` has found it to be a living shell of this type; `pid` never changes.
    let pid = unsafe { (*shell).pid };
    pid != process::id()
}

/// What a forked process is told.
pub(super) fn forked() -> Fault {
    let text = "this process was forked after the handle was made, and has none of the executor's \
                threads: make an executor after the fork, in a process that had none before it";
    Fault::new(TE_FORKED, text)
}

/// Takes hold of a handle's value.
pub(super) fn hold<O: Opaque>(handle: *const O) -> Result<Held<O::Value>, Fault> {
    let shell = check(handle)?;
    if is_forked(shell) {
        return Err(forked());
    }
    // SAFETY: `check` has found it to be a living shell of this type, which `into_handle` has made
    // of an `Arc`; that `Arc` is ours to clone until the handle is freed.
    Ok(Held(unsafe {
        Arc::increment_strong_count(shell);
        Arc::from_raw(shell)
    }))
}

/// Frees a handle, after `last` has been done with its value. NULL is nothing to free. In a forked
/// process the value is left alone: to drop it could wait for threads that are not there.
pub(super) fn free<O: Opaque>(handle: *mut O, last: impl FnOnce(&O::Value)) {
    if handle.is_null() {
        return;
    }
    guard(|| {
        let shell = check(handle)?;
        // SAFETY: as in `hold`; `kind` is atomic.
        let was = unsafe { &(*shell).kind }.swap(FREED, Ordering::AcqRel);
        if was != O::KIND {
            let text = format!("this {} is being freed by another thread", O::NAME);
            return Err(Fault::new(TE_INVALID_HANDLE, text));
        }
        if is_forked(shell) {
            keep(shell.cast_mut().cast());
            return Ok(());
        }
        // SAFETY: the owner's `Arc`, given up here, once: the swap above saw to that.
        let shell = unsafe { Arc::from_raw(shell) };
        last(&shell.value);
        Ok(())
    });
}

/// Remembers what a forked process must neither use nor drop, so that it counts as reachable.
fn keep(what: *mut ()) {
    struct Kept {
        _what: *mut (),
        _next: *mut Kept,
    }
    static KEPT: AtomicPtr<Kept> = AtomicPtr::new(std::ptr::null_mut());
    let kept = Box::into_raw(Box::new(Kept { _what: what, _next: std::ptr::null_mut() }));
    let mut next = KEPT.load(Ordering::Acquire);
    loop {
        // SAFETY: just made, and not shared before the exchange below succeeds.
        unsafe { (*kept)._next = next };
        match KEPT.compare_exchange(next, kept, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return,
            Err(other) => next = other,
        }
    }
}
