//! The executor as a user of the library sees it, over backends that do what a test needs.
//! (What runs real processes in the real sandbox is in `sandbox.rs`.)

mod close;
mod completion;
mod door;
mod fakes;
mod handlers;
mod once;
mod order;
mod slots;
