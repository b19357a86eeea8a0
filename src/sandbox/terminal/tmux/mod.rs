//! The tool `tmux`: a terminal for programs that need a keyboard and a screen, kept between calls.
//!
//! Each slot that asks for one has a tmux server of its own in a jail of its own, and one
//! client of it, in *control mode*: commands go in by its standard input, and replies and
//! everything that the terminal's program prints come out of its standard output, as lines.
//!
//! - `arguments` is what a call asks for, `keys` what it wants typed.
//! - `control` understands what tmux writes, `asciicast` keeps the recording.
//! - `look` sees from outside what tmux does not tell: whether keys were read, whether the shell
//!   waits.
//! - `driver` puts all of that together: what is said to tmux, and what becomes of a call.
//! - `session` is the processes and pipes.
//!
//! All but `look` and `session` are pure. Whatever comes from the sandbox is the model's: it may
//! stop, replace and talk to its tmux, write what it likes to the pipe, and so have its terminal
//! ended or be told nonsense; no more.

mod arguments;
mod asciicast;
mod control;
mod driver;
mod keys;
mod look;
mod session;

pub(crate) use arguments::{Act, Request};
pub(crate) use driver::stop_result;
pub(crate) use session::Tmux;
pub(super) use session::{Terminal, TmuxCall};

#[cfg(test)]
mod tests;
pub(crate) use session::{TmuxEnded, not_ensured};
