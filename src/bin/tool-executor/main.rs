//! The `tool-executor` program: a command line over the library's public API, nothing more.
//!
//! Standard output belongs to results, standard error to progress and warnings.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod exit_code;
mod replay;

use clap::Parser;

use args::{Cli, Command};

fn main() -> std::process::ExitCode {
    let Cli { command } = Cli::parse();
    match command {
        Command::Replay(args) => replay::run(&args).into(),
    }
}
