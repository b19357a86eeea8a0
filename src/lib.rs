//! `tool-executor`
pub mod backend;
pub mod error;
pub mod executor;
#[cfg(target_os = "linux")]
mod sandbox;
pub mod tool;
