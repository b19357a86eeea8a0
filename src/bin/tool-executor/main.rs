//! The `tool-executor` program: a command line over the library's public API, nothing more.
//!
//! Standard output belongs to results, standard error to progress and warnings.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "that is what a program does")]
#![cfg_attr(
    not(test),
    warn(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)
)]

mod args;
mod exit_code;
mod replay;
mod serving;
mod setup;
mod signals;

use clap::Parser;

use args::{Cli, Command};
use exit_code::ExitCode;

fn main() -> std::process::ExitCode {
    match Cli::try_parse() {
        Ok(Cli { command: Command::Replay(args) }) => replay::run(&args),
        Ok(Cli { command: Command::Sandbox(args) }) => serving::sandbox(&args),
        Ok(Cli { command: Command::Serve(args) }) => serving::serve(&args),
        Err(error) => {
            // Also how `--help` and `--version` come. Nobody to tell if nobody reads it.
            let _ = error.print();
            if error.use_stderr() { ExitCode::Usage } else { ExitCode::Ok }
        }
    }
    .into()
}
