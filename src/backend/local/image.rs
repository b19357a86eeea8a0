//! Machines with the files of an image: for one trajectory, or for all.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use parking_lot::Mutex;

use super::held::Held;
use super::pulls::Pulls;
use super::{Inner, LocalBackend, Slot};
use crate::backend::{HeldImages, SlotRef};
use crate::config::{ImagesConfig, LocalConfig};
use crate::error::BeginFailure;
use crate::interrupt::Interrupt;
use crate::sandbox::image::{
    Image, ImageError, ImageErrorKind, ImageSource, ImageStore, ImportStep, StoredIds, store_room,
};
use crate::sandbox::isolation::{Isolation as Engine, Layers};
use crate::sandbox::settings::Settings;
use crate::sandbox::supervisor::{CommandSpec, End, Finished};
use crate::sandbox::toolbox::LazyToolbox;
use crate::sandbox::user::CommandUser;
use crate::sandbox::workspace::{DataDir, ImageFiles, MachineSpec, NoMachine, ShellId, Workspace};
use crate::spec::TrajectoryLimits;
use crate::thread::OwnedThread;
use crate::tool::OutputOrder;

/// How long an image's shell may take to do nothing.
const FIRST_COMMAND: Duration = Duration::from_secs(20);
/// How long the end of its machine is awaited. Giving up has a deadline of its own; this is for the
/// unforeseen.
const END_LIMIT: Duration = Duration::from_secs(30);
/// How many shells are remembered that have run.
const MOST_SHELLS: usize = 1024;
/// What is shown of what it says where it fails.
const SHOWN_CHARS: usize = 500;
/// Where what is said of pulls goes: programs show it though it is no warning.
const LOG_TARGET: &str = "tool_executor::images";

impl LocalBackend {
    /// Finds an image by its name. Blocks, where it has to be brought for as long as that takes.
    ///
    /// # Errors
    /// It cannot be had.
    pub(super) fn find_image(&self, name: &str) -> Result<Arc<Image>, BeginFailure> {
        let images = &self.0.images;
        images.find(name, &images.interrupt).map_err(|error| {
            let text = error.to_string();
            match error.kind() {
                ImageErrorKind::Unusable => BeginFailure::image_unusable(text),
                ImageErrorKind::Interrupted => BeginFailure::failed("the sandbox is closed"),
                _ => BeginFailure::image_unavailable(text),
            }
        })
    }

    /// Gives a clean slot a machine with the files of an image, and with these settings, whose
    /// shell has been seen to run, in this machine or in another one. Blocks for some milliseconds
    /// as a rule.
    ///
    /// # Errors
    /// Slots cannot have one here, or not this one. The slot is as it was.
    pub(super) fn bind_image(
        &self,
        slot: &SlotRef,
        spec: MachineSpec,
        settings: Settings,
    ) -> Result<(), BeginFailure> {
        let inner = &self.0;
        let Some(place) = inner.slots.get(slot.index) else {
            return Err(BeginFailure::failed(format!("there is no slot {}", slot.name)));
        };
        can_have_images(inner.supervisor.isolation()).map_err(BeginFailure::unsupported)?;
        let (before, images) = (place.workspace(), &inner.images);
        let files = ImageFiles::find(spec, before.user_of_slot(), images.shared, &images.toolbox)
            .map_err(not_found)?;
        let shell = (files.shell_id().clone(), settings.limits.clone());
        let bound = before
            .renew_with(Some(Arc::new(files)))
            .map(Arc::new)
            .map_err(|error| BeginFailure::failed(error.to_string()))?;
        bound.set(settings);
        let tried = match inner.images.shells.has(&shell) {
            true => found(inner, place, &bound),
            false => try_shell(inner, place, &bound).inspect(|()| inner.images.shells.add(shell)),
        };
        let left = match tried {
            Ok(()) => std::mem::replace(&mut *place.workspace.lock(), bound),
            Err(_) => {
                end_machine(inner, slot.index);
                bound
            }
        };
        if let Some(resets) = &*inner.resets.lock() {
            resets.remove(left.remains());
        }
        tried
    }
}

/// Where the images of slots are from.
pub(super) struct Images {
    store: Arc<LazyStore>,
    held: Arc<Held>,
    /// The one that looks what is held, if that was asked for.
    looks: Mutex<Option<OwnedThread>>,
    /// Whose ids machines from images have, in every slot, where layers can be had by paths only.
    pub(super) shared: Option<CommandUser>,
    /// What is brought along for those that have no bash or no tmux.
    pub(super) toolbox: LazyToolbox,
    /// Who waits for what is being pulled.
    pub(super) pulls: Pulls,
    shells: Shells,
    /// Triggered when the backend closes.
    interrupt: Interrupt,
}

/// The store, opened for the first image that is no directory.
struct LazyStore {
    data_dir: Option<PathBuf>,
    ids: StoredIds,
    config: ImagesConfig,
    opened: Mutex<Option<ImageStore>>,
}

impl LazyStore {
    /// The store, if there is one already: who only looks makes none.
    fn find(&self, interrupt: &Interrupt) -> Result<Option<ImageStore>, ImageError> {
        let is_open = self.opened.lock().is_some();
        match is_open || ImageStore::is_there(self.data_dir.as_deref(), self.ids) {
            true => self.open(interrupt).map(Some),
            false => Ok(None),
        }
    }

    fn open(&self, interrupt: &Interrupt) -> Result<ImageStore, ImageError> {
        let mut opened = self.opened.lock();
        match &*opened {
            Some(store) => Ok(store.clone()),
            None => {
                let store = ImageStore::open(self.data_dir.as_deref(), self.ids, interrupt)?;
                Ok(opened.insert(store.with_config(self.config.clone())).clone())
            }
        }
    }
}

impl Images {
    /// Those of a data directory, for the slots of an engine.
    pub(super) fn new(config: &LocalConfig, run: &DataDir, isolation: &Engine) -> Self {
        let of_slot = run.users().of_slot(0);
        let shared = match isolation {
            Engine::Jailed(jails) if matches!(jails.layers(), Ok(Layers::Own)) => {
                let user = of_slot.and_then(CommandUser::of_images);
                user.map(|user| user.with_barred(run.hands_over()))
            }
            _ => None,
        };
        let ids = match shared {
            Some(user) => StoredIds::Moved(user.first_id()),
            None if ImageFiles::has_one_id(of_slot) => StoredIds::One,
            None => StoredIds::Kept,
        };
        let toolbox = LazyToolbox::new(run.path().join("toolbox"));
        Self {
            store: Arc::new(LazyStore {
                data_dir: config.data_dir.clone(),
                ids,
                config: config.images.clone(),
                opened: Mutex::default(),
            }),
            held: Arc::new(Held::new()),
            looks: Mutex::default(),
            shared,
            toolbox,
            shells: Shells::default(),
            pulls: Pulls::new(config.images.parallel),
            interrupt: Interrupt::new(),
        }
    }

    /// Whether an image has to be pulled: then [`find`](Self::find) may block for long.
    pub(super) fn must_pull(&self, name: &str) -> bool {
        // What is wrong with it is said by `find`.
        let source = ImageSource::parse(name);
        source.is_ok_and(|source| match source {
            ImageSource::Directory(_) => false,
            source => self.store.open(&self.interrupt).is_ok_and(|store| store.must_pull(&source)),
        })
    }

    /// Finds an image by its name. Blocks, where it has to be unpacked for as long as that takes.
    ///
    /// # Errors
    /// It cannot be had, or used; or `interrupt` was triggered.
    pub(super) fn find(&self, name: &str, interrupt: &Interrupt) -> Result<Arc<Image>, ImageError> {
        let source = ImageSource::parse(name)?;
        if let ImageSource::Directory(path) = &source {
            return Image::directory(path).map(Arc::new);
        }
        let _pulling = self.held.pulling(name);
        let (store, began) = (self.store.open(interrupt)?, Instant::now());
        let found = store.get(&source, interrupt, &mut |step| tell(name, step));
        if let Err(error @ ImageError::NotPulled { .. }) = &found {
            log::warn!(target: LOG_TARGET, "{error} ({:.1} s)", began.elapsed().as_secs_f64());
        }
        found
    }

    /// What of images is here, from the first question on: at that nothing was seen yet.
    pub(super) fn held(&self) -> Arc<HeldImages> {
        let mut looks = self.looks.lock();
        if looks.is_none() && !self.interrupt.is_interrupted() {
            let (held, store, interrupt) =
                (self.held.clone(), self.store.clone(), self.interrupt.clone());
            let look = move || {
                let room = || store_room(store.data_dir.as_deref());
                held.keep_looking(|| store.find(&interrupt), room, &interrupt);
            };
            match OwnedThread::spawn("tool-images", look) {
                Ok(thread) => *looks = Some(thread),
                // It is tried again at the next question.
                Err(error) => log::warn!("no thread that looks what images there are: {error}"),
            }
        }
        drop(looks);
        self.held.told()
    }

    /// Whose the files of unpacked images are.
    pub(super) fn ids(&self) -> StoredIds {
        self.store.ids
    }

    /// No image is pulled or unpacked any more. What is under way ends soon.
    pub(super) fn interrupt(&self) {
        self.interrupt.interrupt();
    }

    /// The thread that looks has ended, by `deadline`. After [`interrupt`](Self::interrupt).
    pub(super) fn close(&self, deadline: Instant) {
        let looks = self.looks.lock().take();
        if let Some(thread) = looks {
            thread.join_or_leave(deadline);
        }
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        // The thread that looks has what it needs of its own.
        self.interrupt();
    }
}

/// Says of a pull that it begins, that it is tried again, and what it has brought.
fn tell(name: &str, step: &ImportStep) {
    let name = name.escape_debug();
    match step {
        ImportStep::Fetching { layers, there, packed_bytes } => {
            let missing = layers - there;
            log::info!(
                target: LOG_TARGET,
                "{name}: pulling {missing} of {layers} layers, {packed_bytes} bytes"
            );
        }
        ImportStep::Retrying { why, after } => {
            log::warn!(target: LOG_TARGET, "{name}: {why}; trying again in {after:?}");
        }
        ImportStep::Arrived { bytes, time } => {
            let seconds = time.as_secs_f64();
            log::info!(target: LOG_TARGET, "{name}: pulled {bytes} bytes in {seconds:.1} s");
        }
        _ => {}
    }
}

/// A shell, and the limits that its slot had beside the operator's.
type TriedShell = (ShellId, TrajectoryLimits);

/// The shells of images that have run here: a start of each is enough. Those of late.
#[derive(Default)]
struct Shells(Mutex<VecDeque<TriedShell>>);

impl Shells {
    fn has(&self, shell: &TriedShell) -> bool {
        self.0.lock().contains(shell)
    }

    fn add(&self, shell: TriedShell) {
        let mut shells = self.0.lock();
        if shells.contains(&shell) {
            return;
        }
        if shells.len() >= MOST_SHELLS {
            shells.pop_front();
        }
        shells.push_back(shell);
    }
}

/// # Errors
/// Slots cannot have the files of images: why, as one line.
pub(super) fn can_have_images(isolation: &Engine) -> Result<(), String> {
    match no_images_because(isolation) {
        Some(why) => Err(format!("image: slots cannot have the files of images here: {why}")),
        None => Ok(()),
    }
}

/// Why slots cannot have the files of images, as one line.
pub(super) fn no_images_because(isolation: &Engine) -> Option<&str> {
    match isolation {
        Engine::Jailed(jails) => jails.layers().err(),
        Engine::None { .. } => Some("commands are not isolated"),
    }
}

fn not_found(error: NoMachine) -> BeginFailure {
    let text = error.to_string();
    match error {
        NoMachine::Unsupported(_) => BeginFailure::unsupported(text),
        NoMachine::Unusable(_) => BeginFailure::image_unusable(text),
        NoMachine::Failed(_) => BeginFailure::failed(text),
    }
}

/// Ends what was founded of a slot's machine.
fn end_machine(inner: &Inner, slot: usize) {
    let (give, gone) = bounded(1);
    // There is room. What comes when it is not waited for any more is dropped.
    inner.supervisor.leave(
        slot,
        Box::new(move |all_dead| {
            let _ = give.try_send(all_dead);
        }),
    );
    if gone.recv_timeout(END_LIMIT) != Ok(true) {
        log::warn!("a sandbox that was tried has not ended");
    }
}

/// Founds the machine.
fn found(inner: &Inner, place: &Slot, workspace: &Arc<Workspace>) -> Result<(), BeginFailure> {
    let network = place.has_network.load(Ordering::Acquire);
    inner.supervisor.root(workspace, network).map(drop).map_err(BeginFailure::failed)
}

/// Founds the machine and has its shell do nothing: an image may be of another processor, or have a
/// shell that is none.
fn try_shell(inner: &Inner, place: &Slot, workspace: &Arc<Workspace>) -> Result<(), BeginFailure> {
    let (give, finished) = bounded(1);
    let spec = CommandSpec {
        workspace: workspace.clone(),
        command: ":".to_owned(),
        network: place.has_network.load(Ordering::Acquire),
        timeout: FIRST_COMMAND,
        output_limit_chars: SHOWN_CHARS,
        output_file_bytes: 0,
        stdin: String::new(),
        output_order: OutputOrder::Interleaved,
        keeps_background: false,
        verdict: None,
    };
    // There is room. What comes when it is not waited for any more is dropped.
    let on_end = Box::new(move |finished: Finished| drop(give.try_send(finished)));
    inner.supervisor.run(spec, on_end);
    let name = workspace.image().map(|image| image.image().name().to_owned()).unwrap_or_default();
    let unusable = |why: &str| {
        BeginFailure::image_unusable(format!("{name}: commands cannot be run in it: {why}"))
    };
    let Ok(finished) = finished.recv_timeout(FIRST_COMMAND * 3) else {
        return Err(BeginFailure::failed("the sandbox was not ready in time"));
    };
    match finished.end {
        End::Exited(0) => Ok(()),
        End::Exited(code) => {
            let said = finished.stdout.text;
            Err(unusable(&format!("its shell ended with {code}: {}", said.trim_end())))
        }
        End::Signaled(signal) => Err(unusable(&format!("signal {signal} ended its shell"))),
        End::TimedOut => Err(unusable("its shell does nothing")),
        End::SetupFailed(why) => Err(unusable(&why)),
        End::Cancelled => Err(BeginFailure::failed("the sandbox is closed")),
        End::Exceeded(limit) if !workspace.limits().is_empty() => {
            let name = limit.name();
            let text = format!("{name}: not even a shell can run under limits as narrow as these");
            Err(BeginFailure::unsupported(text))
        }
        End::Exceeded(_) => Err(unusable("its shell exceeds the limits of a slot")),
        End::Refused(why) | End::Lost(why) => Err(BeginFailure::failed(why)),
    }
}

#[cfg(test)]
mod tests;
