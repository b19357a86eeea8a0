//! The sandbox engine: runs tools in slots on this machine.
//!
//! Each slot has a *workspace*, a directory that commands see as `/workspace`. What the engine is
//! made of, from the tools down to the kernel:
//!
//! - `bash` shapes what a command gave into the tool's result, `background` what it left running;
//!   `files` is the tools `read_file` and `write_file`; `artifacts` reads, lists and archives a
//!   workspace for those outside.
//! - `supervisor` runs any number of commands with one thread. A `command` has `entered` the jail
//!   of its slot (`jails`), or is `running` without one under a `reaper`, which `reports`; `host`
//!   is what every start needs. `outputs` is what a command prints: `stream` its pipes, `recording`
//!   what becomes of each, `output` what is shown of it, `spool` the files that have all of it.
//! - `terminal` keeps programs running between a slot's calls, with one thread for all of them:
//!   the shell of `bash_stateful`, and the terminals of `tmux`. Both threads wait by `events`.
//! - `jail` is a program's processes from birth to death, the first of which is ours (`init`), and
//!   the machine that they are in, of which a slot has one for all its tools (`machines`).
//! - `shell` is how a command reaches its shell, `identity` who it is there, `isolation` what it
//!   may see, `etc` what of `/etc`, `provided` what the operator adds, `reaper` how all its
//!   processes are found where there is no jail, `spawn` the start of a process, `user` whom all of
//!   this runs as where the host is root.
//! - `limits` is what of the machine and of the kernel a slot may use, `descriptors` how many of
//!   this process's own all slots need.
//! - `image` keeps images on disk; what a machine has of one, and who its commands are there, is in
//!   `workspace`, which mounts nothing: `jail` does.
//! - `workspace` owns the directories, `reach` adds the rest of the slot's machine, `paths` finds
//!   places in both, `tree` empties and copies directories.
//!
//! It knows no trajectories, no queues and no HTTP: `backend::local` puts it behind the executor.
//! It trusts nothing that a model controls: commands, paths, file contents, output, timing.

pub(crate) mod artifacts;
mod background;
pub(crate) mod bash;
mod command;
pub(crate) mod descriptors;
mod entered;
pub(crate) mod etc;
mod events;
pub(crate) mod files;
pub(crate) mod grader;
mod host;
mod identity;
pub(crate) mod image;
mod init;
pub(crate) mod isolation;
mod jail;
mod jails;
pub(crate) mod limits;
mod machines;
mod output;
mod outputs;
mod paths;
pub(crate) mod provided;
pub(crate) mod reach;
mod reaper;
mod recording;
mod reports;
mod running;
pub(crate) mod settings;
pub(crate) mod shell;
mod spawn;
pub(crate) mod spool;
mod stream;
pub(crate) mod supervisor;
pub(crate) mod terminal;
#[cfg(test)]
mod testing;
pub(crate) mod toolbox;
mod tree;
pub(crate) mod user;
pub(crate) mod workspace;
