//! `tool-executor replay`: recorded trajectories through the executor and the embedded sandbox.
//!
//! ```text
//! input ─► decompress; trajectory, messages ─► step     a thread makes trajectories of lines
//!   │
//!   ▼
//! run: one thread; cursor says which call is next, driver submits it
//!   │
//!   ▼
//! report ─► output, compare, summary, line_file, progress
//! ```
//!
//! A call is submitted when the trajectory's former one has its result; at most `--concurrency`
//! trajectories are on their way. Every call that was submitted gets exactly one line in the
//! results, also when the run is interrupted; so does every call that could not run because of its
//! trajectory's setup.

mod compare;
mod cursor;
mod decompress;
#[cfg(test)]
mod documented;
mod driver;
mod input;
mod interrupt;
mod line_file;
mod messages;
mod output;
mod progress;
mod put;
mod reading;
mod report;
mod run;
mod shared_setup;
mod step;
mod summary;
mod trajectory;
mod transfers;

pub(crate) use self::input::open as open_input;

use std::io::{self, BufRead, Read as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use tool_executor::JsonObject;

use crate::args::ReplayArgs;
use crate::console::{fail, init_log, warn_line};
use crate::exit_code::ExitCode;
use crate::signals::Signals;
use crate::starting::start;

use self::driver::Driver;
use self::input::Selection;
use self::line_file::LineFile;
use self::progress::Progress;
use self::reading::CallReading;
use self::report::{Files, Named, Report};
use self::run::Run;

/// Runs the command: from the arguments to the exit code. Blocks until the run has ended.
pub(crate) fn run(args: ReplayArgs, warnings: &[String]) -> ExitCode {
    let started = Instant::now();
    let progress = Progress::new(args.quiet, started);
    init_log(args.run.log.as_deref(), args.network.log_egress, progress.writer());
    warnings.iter().for_each(|warning| log::warn!("{warning}"));

    let spec = match args.spec.as_deref().map(default_spec).transpose() {
        Ok(spec) => spec.unwrap_or_default(),
        Err((code, problem)) => return fail(code, &problem),
    };
    let (reader, files) = match open_files(&args) {
        Ok(files) => files,
        Err(problem) => return fail(ExitCode::Io, &problem),
    };
    // Before anything is made that a signal would leave behind; after the files, whose opening may
    // block for ever (a FIFO), so that a signal ends it.
    let signals = match Signals::install() {
        Ok(signals) => signals,
        Err(error) => return fail(ExitCode::NotStarted, &format!("no signal handler: {error}")),
    };
    let for_start = args.clone();
    let driver =
        match start(signals.arrivals(), move |interrupt| Driver::start(&for_start, interrupt)) {
            Ok(driver) => driver,
            Err(code) => return code,
        };

    // The tools are known now, also those of the ToolServer: they decide what a call is.
    let reading = CallReading {
        format: args.format,
        unreadable: args.unreadable_calls,
        registry: driver.registry().clone(),
        spec,
    };
    let selection = Selection { limit: args.limit, repeat: args.repeat };
    let input = match input::read_in_background(reader, selection, reading) {
        Ok(input) => input,
        Err(error) => {
            driver.close();
            return fail(ExitCode::Io, &format!("could not start a thread: {error}"));
        }
    };
    let total = progress.is_shown().then(|| input::count_lines(&args.file)).flatten();
    let report = Report::new(progress, files, &args, total);
    let transfers = driver.transfers(directory_of(&args.file));
    let mut run = Run::new(&args, &driver, &signals, input, report, transfers);
    let io_result = run.run();
    let interrupted = run.was_interrupted();
    let wall = started.elapsed();
    run.cancel_all();
    let mut report = run.into_report();
    report.begins(driver.begins());
    if !driver.close() {
        warn_line("warning: some threads of the executor did not end in time");
    }
    report.finish(io_result, wall, interrupted)
}

/// Where what a recording puts is looked for: its own directory, and for standard input the present
/// one.
fn directory_of(recording: &Path) -> PathBuf {
    let parent = recording.parent().filter(|_| recording != Path::new("-"));
    match parent {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// The longest file with a spec: files in it are in base64.
const MOST_SPEC_BYTES: u64 = 32 << 20;

/// What trajectories begin with, where their lines say nothing else.
///
/// # Errors
/// The file cannot be read, or has no spec; with the exit code for it.
fn default_spec(path: &Path) -> Result<JsonObject, (ExitCode, String)> {
    let wrong = |why: String| (ExitCode::Usage, format!("--spec {}: {why}", path.display()));
    let file = std::fs::File::open(path);
    let mut text = String::new();
    file.and_then(|file| file.take(MOST_SPEC_BYTES + 1).read_to_string(&mut text))
        .map_err(|error| (ExitCode::Io, format!("--spec {}: {error}", path.display())))?;
    if text.len() as u64 > MOST_SPEC_BYTES {
        return Err(wrong(format!("it has more than {MOST_SPEC_BYTES} bytes")));
    }
    let spec: JsonObject = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    trajectory::read_spec(spec.clone()).map_err(wrong)?;
    Ok(spec)
}

/// Opens the input and what is to be written.
///
/// # Errors
/// What is wrong with one of them, as one line.
fn open_files(args: &ReplayArgs) -> Result<(Box<dyn BufRead + Send>, Files), String> {
    let named = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
    let reader = input::open(&args.file).map_err(|error| named(&args.file, error))?;
    if let Some(directory) = &args.keep_workspaces {
        std::fs::create_dir_all(directory).map_err(|error| named(directory, error))?;
    }
    // Last of what may fail here: it empties the files.
    let create = |flag: &str, path: &Path| -> Result<Named, String> {
        if is_same_file(&args.file, path) {
            let path = path.display();
            return Err(format!("{path}: is the input; {flag} would overwrite it"));
        }
        let file = LineFile::create(path).map_err(|error| named(path, error))?;
        Ok((path.to_owned(), file))
    };
    let results = args.out.as_deref().map(|path| create("--out", path)).transpose()?;
    if let (Some(out), Some(summary)) = (&args.out, &args.summary_json)
        && is_same_file(out, summary)
    {
        let out = out.display();
        return Err(format!("{out}: --summary-json would overwrite the results of --out"));
    }
    let summary = args.summary_json.as_deref();
    let summary = summary.map(|path| create("--summary-json", path)).transpose()?;
    Ok((reader, Files { results, summary }))
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b && a.is_file(),
        _ => false,
    }
}
