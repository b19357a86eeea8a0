//! How a command ended.

use std::time::Duration;

use super::output::Captured;

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself, with this exit code.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
    /// Killed because its time was up.
    TimedOut,
    /// Killed because somebody cancelled it.
    Cancelled,
    /// It never started; why.
    SetupFailed(String),
}

/// A command that is over.
#[derive(Debug)]
pub(crate) struct Finished {
    /// How it ended.
    pub end: End,
    /// What it printed on its standard output.
    pub stdout: Captured,
    /// What it printed on its standard error.
    pub stderr: Captured,
    /// From its start to its end.
    pub wall: Duration,
    /// Whether it ran in a sandbox.
    pub sandboxed: bool,
    /// Whether it ran without a network.
    pub network_isolated: bool,
}
