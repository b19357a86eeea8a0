//! The sandbox engine.

mod isolation;
mod output;
mod reaper;
mod running;
mod spawn;
mod supervisor;
