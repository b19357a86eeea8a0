//! The user ids that /etc/subuid gives: whether a command needs them, and `tool-executor unshare`.

use std::os::unix::process::CommandExt;
use std::process::Command as Process;

use tool_executor::config::UserIds;
use tool_executor::image::StoredIds;
use tool_executor::user_range::enter;

use crate::args::{Command, SlotArgs, UnshareArgs};
use crate::console::fail;
use crate::exit_code::ExitCode;

/// Gives this process the user ids that its user has, if the command is to use them. It must not
/// have threads yet.
///
/// Where it cannot have them is no failure: slots are one user then, and the start of the engine
/// finds out why, and says so.
pub(crate) fn enter_for(command: &Command) {
    let wants_ids = match command {
        Command::Sandbox(args) => is_auto(&args.slots),
        Command::Serve(args) => !args.fleet.is_given() && is_auto(&args.slots),
        Command::Replay(args) => !args.fleet.is_given() && is_auto(&args.slots),
        Command::Image(args) => is_moved_or_default(args.command.store().ids),
        Command::Reap(_)
        | Command::Unshare(_)
        | Command::Completions { .. }
        | Command::Man { .. } => false,
    };
    if wants_ids {
        let _ = enter();
    }
}

/// Whether files with these owners belong to such ids.
fn is_moved_or_default(ids: Option<StoredIds>) -> bool {
    !matches!(ids, Some(StoredIds::Kept | StoredIds::One))
}

fn is_auto(slots: &SlotArgs) -> bool {
    slots.user_ids.unwrap_or_default() == UserIds::Auto
}

/// Becomes another program, as root of the user namespace.
pub(crate) fn unshare(args: &UnshareArgs) -> ExitCode {
    if let Err(why) = enter() {
        return fail(ExitCode::NotStarted, &why.to_string());
    }
    let [program, arguments @ ..] = &*args.command else {
        return fail(ExitCode::Usage, "which program is to be started?");
    };
    #[expect(clippy::disallowed_methods, reason = "this process becomes it")]
    let mut process = Process::new(program);
    let error = process.args(arguments).exec();
    fail(ExitCode::NotStarted, &format!("{}: {error}", program.to_string_lossy()))
}
