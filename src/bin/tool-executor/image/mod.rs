//! `image`: brings images into the store, and says what is in it.

mod list;
mod text;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tool_executor::Interrupt;
use tool_executor::image::{
    ImageError, ImageErrorKind, ImageSource, ImageStore, ImportStep, Pruned, StoredIds, StoredImage,
};

use crate::args::{ImageCommand, ImportArgs, PullArgs, StoreArgs};
use crate::console::{end_of_printing, fail, init_log, print, warn_line};
use crate::exit_code::ExitCode;
use crate::signals::Signals;
use crate::starting::interruptible;

/// What a command has to say: on standard output, and by its exit code.
struct Report {
    text: String,
    code: ExitCode,
}

/// What went wrong, as the program's end.
struct Failure {
    code: ExitCode,
    problem: String,
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        let code = match error.kind() {
            ImageErrorKind::InUse => ExitCode::CallsWithoutResult,
            ImageErrorKind::Unusable => ExitCode::MalformedInput,
            ImageErrorKind::Interrupted => ExitCode::Interrupted,
            _ => ExitCode::Io,
        };
        Self { code, problem: error.to_string() }
    }
}

/// Does what the command says.
pub(crate) fn run(command: ImageCommand, warnings: &[String]) -> ExitCode {
    init_log(None, false, std::io::stderr());
    warnings.iter().for_each(|warning| warn_line(&format!("tool-executor: warning: {warning}")));
    if let ImageCommand::Import(ImportArgs { sources, name: Some(_), .. }) = &command
        && sources.len() > 1
    {
        return fail(ExitCode::Usage, "--name is for one SOURCE, and there are several");
    }
    let signals = match Signals::install() {
        Ok(signals) => signals,
        Err(error) => return fail(ExitCode::NotStarted, &format!("no signals: {error}")),
    };
    // What fails is reported here, whatever else is done.
    let work = move |interrupt: &Interrupt| Ok(perform(&command, interrupt));
    match interruptible(signals.arrivals(), "working on images", work) {
        Ok(Ok(report)) => match end_of_printing(print(&report.text)) {
            ExitCode::Ok => report.code,
            lost => lost,
        },
        Ok(Err(Failure { code, problem })) => fail(code, &problem),
        Err(code) => code,
    }
}

fn perform(command: &ImageCommand, interrupt: &Interrupt) -> Result<Report, Failure> {
    match command {
        ImageCommand::Import(args) => {
            let store = open(&args.store, interrupt)?;
            let here = std::env::current_dir().unwrap_or_else(|_| Path::new("/").to_owned());
            let parse = |given: &str| ImageSource::parse_in(given, &here);
            let names = args.name.as_slice();
            import(&store, &args.sources, parse, names, (args.quiet, &args.store), interrupt)
        }
        ImageCommand::Pull(args) => {
            let store = open(&args.store, interrupt)?.with_config(args.pulling.config());
            pull(&store, args, interrupt)
        }
        ImageCommand::List { store: args } => {
            let images = open(args, interrupt)?.list(interrupt)?;
            Ok(report(args, &images, |images| text::list(images)))
        }
        ImageCommand::Show(args) => {
            let image = open(&args.store, interrupt)?.show(&args.image, interrupt)?;
            Ok(report(&args.store, &image, text::show))
        }
        ImageCommand::Remove(args) => {
            let store = open(&args.store, interrupt)?;
            let mut sum = Pruned::default();
            let code = each(&args.images, |image| {
                let removed = store.remove(image, interrupt)?;
                sum.images.extend(removed.images);
                sum.layers += removed.layers;
                sum.bytes += removed.bytes;
                Ok(())
            });
            Ok(Report { code, ..report(&args.store, &sum, text::pruned) })
        }
        ImageCommand::Prune(args) => {
            let store = open(&args.store, interrupt)?;
            let mut pruned = store.prune(args.unused_for, interrupt)?;
            if let Some(most) = args.to_size {
                pruned.add(store.shrink(most, interrupt)?);
            }
            Ok(report(&args.store, &pruned, text::pruned))
        }
    }
}

fn open(args: &StoreArgs, interrupt: &Interrupt) -> Result<ImageStore, ImageError> {
    let data_dir = args.data_dir.as_deref();
    let ids = args.ids.unwrap_or_else(|| StoredIds::for_data_dir(data_dir));
    ImageStore::open(args.data_dir.as_deref(), ids, interrupt)
}

/// Brings images into the store, and says which they are.
fn import(
    store: &ImageStore,
    all: &[String],
    parse: impl Fn(&str) -> Result<ImageSource, ImageError>,
    names: &[String],
    (quiet, args): (bool, &StoreArgs),
    interrupt: &Interrupt,
) -> Result<Report, Failure> {
    let mut images: Vec<StoredImage> = Vec::new();
    let code = each(all, |given| {
        let source = parse(given)?;
        let mut on_step = |step: &ImportStep| {
            if let Some(line) = text::step(step).filter(|_| !quiet) {
                warn_line(&format!("{}: {line}", given.escape_debug()));
            }
        };
        images.push(store.import(&source, names, interrupt, &mut on_step)?);
        Ok(())
    });
    Ok(Report { code, ..report(args, &images, |images| text::imported(images)) })
}

/// Pulls images, several at a time, and says which they are.
fn pull(store: &ImageStore, args: &PullArgs, interrupt: &Interrupt) -> Result<Report, Failure> {
    let mut names = args.names.clone();
    for path in &args.image_list {
        names.extend(list::names(path).map_err(|problem| Failure {
            code: ExitCode::Io,
            problem: format!("{}: {problem}", path.display()),
        })?);
    }
    let mut seen = HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    let parsed: Vec<_> = names.iter().map(|name| list::source(name)).collect();
    let (sources, given): (Vec<_>, Vec<_>) = parsed
        .iter()
        .zip(&names)
        .filter_map(|(source, name)| Some((source.as_ref().ok()?.clone(), name.clone())))
        .unzip();
    let quiet = args.quiet;
    let on_step = move |number: usize, step: &ImportStep| {
        if let Some(line) = text::step(step).filter(|_| !quiet) {
            warn_line(&format!("{}: {line}", given[number].escape_debug()));
        }
    };
    let mut pulled = store.import_all(sources, interrupt, Arc::new(on_step))?.into_iter();
    let mut images: Vec<StoredImage> = Vec::new();
    let mut all = parsed.into_iter();
    let code = each(&names, |_| {
        let image = match all.next() {
            Some(Err(error)) => Err(error),
            _ => pulled.next().unwrap_or(Err(ImageError::Interrupted)),
        }?;
        // Several names may be of one image.
        if !images.iter().any(|known| known.digest == image.digest) {
            images.push(image);
        }
        Ok(())
    });
    Ok(Report { code, ..report(&args.store, &images, |images| text::imported(images)) })
}

/// Tries each of several, and says what went wrong: the code of the first that did.
fn each(all: &[String], mut one: impl FnMut(&str) -> Result<(), ImageError>) -> ExitCode {
    let mut code = ExitCode::Ok;
    for given in all {
        let Err(error) = one(given) else { continue };
        let failure = Failure::from(error);
        fail(failure.code, &failure.problem);
        if code == ExitCode::Ok {
            code = failure.code;
        }
        if failure.code == ExitCode::Interrupted {
            break;
        }
    }
    code
}

fn report<T: serde::Serialize + ?Sized>(
    args: &StoreArgs,
    what: &T,
    text: impl FnOnce(&T) -> String,
) -> Report {
    let text = match args.json {
        true => serde_json::to_value(what).map_or_else(
            |error| format!("{}\n", Value::from(error.to_string())),
            |value| format!("{value:#}\n"),
        ),
        false => text(what),
    };
    Report { text, code: ExitCode::Ok }
}
