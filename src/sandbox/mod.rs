//! The sandbox engine.

mod isolation;
mod output;
mod reaper;
mod running;
mod shell;
mod spawn;
mod stream;
mod supervisor;
