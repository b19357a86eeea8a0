//! Standard output and standard error, either of which may be gone: a closed pipe, a full disk.
//!
//! `print!` and its kin panic there; nothing of the program uses them.

use std::io::{self, Write};

use crate::exit_code::ExitCode;

/// Writes to standard output, at once.
///
/// # Errors
/// The text was lost: the disk is full, the reader is gone, ….
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Whether something printed was lost, of which it then tells. A reader that has seen enough, such
/// as `head`, has lost nothing.
pub(crate) fn is_lost(printed: io::Result<()>) -> bool {
    match printed {
        Ok(()) => false,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => false,
        Err(error) => {
            fail(ExitCode::Io, &format!("standard output: {error}"));
            true
        }
    }
}

/// The exit code of a command that only prints.
pub(crate) fn end_of_printing(printed: io::Result<()>) -> ExitCode {
    if is_lost(printed) { ExitCode::Io } else { ExitCode::Ok }
}

/// Writes a line to standard error.
pub(crate) fn warn_line(text: &str) {
    // Without a reader there is no other place to say it.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Says why the program ends, and gives the exit code back.
pub(crate) fn fail(code: ExitCode, problem: &str) -> ExitCode {
    warn_line(&format!("tool-executor: error: {problem}"));
    code
}

/// What is logged by itself: warnings, and that an image is being pulled, which others wait for.
const DEFAULT_FILTER: &str = "warn,tool_executor::images=info";

/// Logs to `target`: by `filter`, else by `RUST_LOG`, else warnings.
pub(crate) fn init_log(
    filter: Option<&str>,
    log_egress: bool,
    target: impl Write + Send + 'static,
) {
    let mut builder = match filter {
        Some(filter) => {
            let mut builder = env_logger::Builder::new();
            builder.parse_filters(filter);
            builder
        }
        None => {
            let environment = env_logger::Env::default().default_filter_or(DEFAULT_FILTER);
            env_logger::Builder::from_env(environment)
        }
    };
    if log_egress {
        builder.filter_module("tool_executor::egress", log::LevelFilter::Info);
    }
    // Fails only where a logger is installed already, which is as good.
    let _ = builder.target(env_logger::Target::Pipe(Box::new(target))).try_init();
}
