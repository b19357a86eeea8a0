//! What is generated of the command line's definition: completions for shells, and manual pages.

use std::io;
use std::path::Path;

use clap_complete::Shell;
use clap_mangen::Man;

use crate::args;
use crate::console::{end_of_printing, fail, print};
use crate::exit_code::ExitCode;

/// Prints a shell's completions.
pub(crate) fn completions(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::command(), "tool-executor", &mut script);
    end_of_printing(print(&String::from_utf8_lossy(&script)))
}

/// Prints the manual page of the program, or writes one of each command to a directory.
pub(crate) fn man(directory: Option<&Path>) -> ExitCode {
    let command = plain_command();
    let Some(directory) = directory else {
        return match page(command) {
            Ok(page) => end_of_printing(print(&String::from_utf8_lossy(&page))),
            Err(error) => fail(ExitCode::Io, &format!("the page was not made: {error}")),
        };
    };
    match write_pages(command, directory) {
        Ok(()) => ExitCode::Ok,
        Err(error) => fail(ExitCode::Io, &format!("{}: {error}", directory.display())),
    }
}

/// The definition with the names of the commands as their pages have them, and nothing of this
/// process's variables, whose values do not belong in a manual.
fn plain_command() -> clap::Command {
    let mut command = without_values(args::command());
    command.build();
    command
}

fn without_values(command: clap::Command) -> clap::Command {
    command
        .disable_help_subcommand(true)
        .mut_args(|arg| arg.hide_env_values(true))
        .mut_subcommands(without_values)
}

fn page(command: clap::Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(command).render(&mut page)?;
    Ok(page)
}

fn write_pages(command: clap::Command, directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let mut commands = vec![command];
    while let Some(command) = commands.pop() {
        commands.extend(command.get_subcommands().cloned());
        let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
        std::fs::write(directory.join(format!("{name}.1")), page(command)?)?;
    }
    Ok(())
}
