//! The `tool-executor` program: a command line over the library's public API, nothing more.
//!
//! Standard output belongs to results, standard error to progress and warnings; both may be gone.
#![cfg_attr(
    not(test),
    warn(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)
)]

mod args;
mod console;
mod exit_code;
mod generate;
mod image;
mod reaping;
mod replay;
mod serving;
mod setup;
mod signals;
mod starting;
mod user_range;

use args::Command;
use exit_code::ExitCode;

fn main() -> std::process::ExitCode {
    run().into()
}

fn run() -> ExitCode {
    let args::Parsed { cli, warnings } = match args::parse() {
        Ok(parsed) => parsed,
        // Help that was asked for comes so, too.
        Err(error) if !error.use_stderr() => return console::end_of_printing(error.print()),
        Err(error) => {
            // Without a reader there is no other place to say it.
            let _ = error.print();
            return ExitCode::Usage;
        }
    };
    user_range::enter_for(&cli.command);
    match cli.command {
        Command::Replay(args) => replay::run(args, &warnings),
        Command::Sandbox(args) => serving::sandbox(args, &warnings),
        Command::Serve(args) => serving::serve(args, &warnings),
        Command::Reap(args) => reaping::reap(&args),
        Command::Image(args) => image::run(args.command, &warnings),
        Command::Unshare(args) => user_range::unshare(&args),
        Command::Completions { shell } => generate::completions(shell),
        Command::Man { dir } => generate::man(dir.as_deref()),
    }
}
