//! What a slot may use of the machine, and which system calls it may make.
//!
//! - `seccomp` is the filter of system calls.

mod seccomp;

pub(crate) use seccomp::Filter;
