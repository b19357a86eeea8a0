//! Trajectories that begin with a spec: what of it this engine gives, and how.
//!
//! It happens on threads of its own, `tool-begin-N`, since an image may have to be unpacked, and a
//! machine be founded. A reset of the slot waits for it. An image that has to be pulled is waited
//! for without a thread (`pulls`).

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::image::can_have_images;
use super::snapshots::begin_failure;
use super::{LocalBackend, Slot};
use crate::artifact::{ArtifactError, PutFiles};
use crate::backend::{Artifacts, BeginReply, SlotRef, gives};
use crate::config::{BackgroundProcesses, NetworkMode};
use crate::error::BeginFailure;
use crate::sandbox::image::Image;
use crate::sandbox::limits::NotNarrowed;
use crate::sandbox::settings::Settings;
use crate::sandbox::workspace::MachineSpec;
use crate::spec::{SpecField, TrajectorySpec};

/// What of a spec can be given.
pub(super) fn given(backend: &LocalBackend) -> Vec<SpecField> {
    let isolation = backend.0.supervisor.isolation();
    let has_images = can_have_images(isolation).is_ok();
    let has_proxy = backend.0.network == NetworkMode::Proxy && backend.0.egress.is_some();
    SpecField::ALL
        .into_iter()
        .filter(|field| match field {
            SpecField::Env | SpecField::Network | SpecField::Files => true,
            SpecField::Image | SpecField::User | SpecField::Snapshot => has_images,
            // Without a sandbox its paths are the host's.
            SpecField::Workdir | SpecField::Background => isolation.is_sandboxed(),
            SpecField::AllowHosts => has_proxy,
            // Without a sandbox none holds.
            SpecField::Limits => isolation.is_sandboxed(),
        })
        .collect()
}

/// Makes a clean slot what a spec asks for. Does not block.
pub(super) fn begin(
    backend: &LocalBackend,
    slot: &SlotRef,
    spec: Arc<TrajectorySpec>,
    reply: BeginReply,
) {
    let Some(place) = backend.0.slots.get(slot.index) else {
        return reply.send(Err(BeginFailure::failed(format!("there is no slot {}", slot.name))));
    };
    if let Err(failure) = gives(&spec, &given(backend)) {
        return reply.send(Err(failure));
    }
    place.image_wait.note(Duration::ZERO);
    let begin = Begin { slot: slot.clone(), spec, reply, under_way: UnderWay::new(&place.begins) };
    spawn(backend, move |backend| match begin.spec.image.clone() {
        Some(name) if backend.0.images.must_pull(&name) => begin.after_pull(backend, &name),
        _ => begin.run(backend, None),
    });
}

/// Has a thread do a part of a begin. Without the threads the backend is closing, and a reply that
/// is dropped says so.
fn spawn(backend: &LocalBackend, work: impl FnOnce(&LocalBackend) + Send + 'static) {
    let weak = Arc::downgrade(&backend.0);
    if let Some(begins) = &*backend.0.begins.lock() {
        begins.spawn(move || {
            if let Some(inner) = weak.upgrade() {
                work(&LocalBackend(inner));
            }
        });
    }
}

/// A trajectory that begins.
struct Begin {
    slot: SlotRef,
    spec: Arc<TrajectorySpec>,
    reply: BeginReply,
    under_way: UnderWay,
}

impl Begin {
    /// Goes on when its image was pulled.
    fn after_pull(self, backend: &LocalBackend, name: &str) {
        let (weak, began) = (Arc::downgrade(&backend.0), Instant::now());
        let waiter = move |brought: Result<Arc<Image>, BeginFailure>| match brought {
            Ok(image) => {
                // Without it, or its threads, the backend is closing.
                let Some(inner) = weak.upgrade() else { return };
                let waited = began.elapsed();
                spawn(&LocalBackend(inner), move |backend| {
                    self.run(backend, Some((image, waited)))
                });
            }
            Err(failure) => self.end(Err(failure)),
        };
        backend.pull(name, Box::new(waiter));
    }

    /// Makes the slot what is asked for. The image that was waited for is held meanwhile.
    fn run(self, backend: &LocalBackend, waited: Option<(Arc<Image>, Duration)>) {
        let made = prepare(backend, &self.slot, &self.spec);
        if let (Ok(()), Some((_, waited)), Some(place)) =
            (&made, &waited, backend.0.slots.get(self.slot.index))
        {
            place.image_wait.note(*waited);
        }
        self.end(made);
    }

    fn end(self, made: Result<(), BeginFailure>) {
        // Before the executor hears of it: it may want a reset at once.
        drop(self.under_way);
        self.reply.send(made);
    }
}

/// A slot in which a trajectory begins; dropped, it does no more.
struct UnderWay(Arc<AtomicBool>);

impl UnderWay {
    fn new(begins: &Arc<AtomicBool>) -> Self {
        begins.store(true, Ordering::Release);
        Self(begins.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

fn prepare(
    backend: &LocalBackend,
    slot: &SlotRef,
    spec: &TrajectorySpec,
) -> Result<(), BeginFailure> {
    let inner = &backend.0;
    let Some(place) = inner.slots.get(slot.index) else {
        return Err(BeginFailure::failed(format!("there is no slot {}", slot.name)));
    };
    let can_cut_network = inner.supervisor.isolation().can_cut_network();
    let cuts_network = cuts_network(spec.network, inner.network, can_cut_network)
        .map_err(BeginFailure::unsupported)?;
    let from = spec.snapshot.as_ref().map(|id| backend.limits_of(id)).transpose();
    let limits = spec.limits.or(&from.map_err(begin_failure)?.unwrap_or_default());
    if !limits.is_empty() {
        inner.limits.narrow(slot.index, &limits).map_err(not_narrowed)?;
    }
    // Before a machine is founded, which has both from its beginning on.
    if cuts_network {
        place.has_network.store(false, Ordering::Release);
    }
    if let (Some(hosts), Some(egress)) = (&spec.allow_hosts, &inner.egress) {
        egress.narrow(slot.index, hosts);
    }
    let keeps_background = spec.background.map(|wish| wish == BackgroundProcesses::Keep);
    let variable = |(name, value): (&String, &String)| (name.clone(), OsString::from(value));
    let variables = spec.env.iter().map(variable).collect();
    let settings = Settings { variables, cuts_network, keeps_background, limits };
    match (image_of(backend, spec)?, &spec.snapshot) {
        (Some(image), _) => {
            let (user, workdir) = (spec.user.clone(), spec.workdir.clone());
            let env = spec.env.clone();
            let machine = MachineSpec { image, frozen: Vec::new(), user, workdir, env };
            backend.bind_image(slot, machine, settings)?;
            return put_files(backend, slot, place, spec);
        }
        (None, Some(id)) => {
            let user = spec.user.as_deref();
            backend.begin_from(slot, id, user, settings).map_err(begin_failure)?;
        }
        (None, None) => place.workspace().set(settings),
    }
    if spec.env.contains_key("PATH") && place.workspace().image().is_none() {
        let text = "the variable PATH cannot be set where commands have the host's programs; the \
                    operator gives directories that are to come first in it (--path-prepend)";
        return Err(BeginFailure::unsupported(text));
    }
    if let Some(workdir) = &spec.workdir {
        make_directory(backend, slot, place, workdir)?;
        place.workspace().begin_in(PathBuf::from(workdir));
    }
    put_files(backend, slot, place, spec)
}

/// The image that a machine is to be made from for this spec; none where the slot is to have what
/// it has by itself.
fn image_of(
    backend: &LocalBackend,
    spec: &TrajectorySpec,
) -> Result<Option<Arc<Image>>, BeginFailure> {
    if let Some(name) = &spec.image {
        return backend.find_image(name).map(Some);
    }
    if spec.snapshot.is_some() {
        return Ok(None);
    }
    let default = backend.0.image.as_ref().map(|files| files.image().clone());
    match (default, &spec.user, &spec.workdir) {
        (Some(image), Some(_), _) | (Some(image), _, Some(_)) => Ok(Some(image)),
        (None, Some(user), _) => Err(BeginFailure::unsupported(format!(
            "user is {user:?}, and without an image commands are the one user that slots have; \
             leave user out, or give an image"
        ))),
        _ => Ok(None),
    }
}

/// Makes a directory of the machine, unless it is there.
pub(super) fn make_directory(
    backend: &LocalBackend,
    slot: &SlotRef,
    place: &Slot,
    path: &str,
) -> Result<(), BeginFailure> {
    // The end of an archive in which nothing is.
    let mut nothing = &[0_u8; 1024][..];
    let mut request = PutFiles::tar(path);
    request.allow_network = place.has_network.load(Ordering::Acquire);
    match backend.put(slot, &request, &mut nothing) {
        Ok(_) => Ok(()),
        Err(error) => Err(not_put("workdir", path, error)),
    }
}

fn put_files(
    backend: &LocalBackend,
    slot: &SlotRef,
    place: &Slot,
    spec: &TrajectorySpec,
) -> Result<(), BeginFailure> {
    for file in &spec.files {
        let mut content = file.content.as_bytes();
        let mut request = PutFiles::file(&*file.path)
            .with_mode(Some(file.mode))
            .with_size(Some(content.len() as u64));
        request.allow_network = place.has_network.load(Ordering::Acquire);
        backend
            .put(slot, &request, &mut content)
            .map_err(|error| not_put("the file", &file.path, error))?;
    }
    Ok(())
}

/// The limits of a spec are none that the slot can have.
fn not_narrowed(error: NotNarrowed) -> BeginFailure {
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
    let text = format!("{error}{}", cause.unwrap_or_default());
    match error {
        NotNarrowed::Unsupported(_) => BeginFailure::unsupported(text),
        NotNarrowed::System(_) => BeginFailure::failed(text),
    }
}

/// Something of a spec could not be put into the slot.
fn not_put(what: &str, path: &str, error: ArtifactError) -> BeginFailure {
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
    let text = format!("{what} {path:?} cannot be made: {error}{}", cause.unwrap_or_default());
    match error {
        ArtifactError::SandboxLost(_) => BeginFailure::lost(text),
        ArtifactError::Io(_, source) if is_of_the_place(source.kind()) => {
            BeginFailure::unsupported(text)
        }
        ArtifactError::Io(..) | ArtifactError::Closed => BeginFailure::failed(text),
        // The limits of the slot, or a place where nothing can be.
        _ => BeginFailure::unsupported(text),
    }
}

/// Whether nothing can be put at a place, and the system is well.
fn is_of_the_place(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ReadOnlyFilesystem
            | ErrorKind::PermissionDenied
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::InvalidInput
    )
}

/// Whether a trajectory that asks for this network has none where the operator gives another.
///
/// # Errors
/// It asks for one that the operator does not give.
fn cuts_network(
    asked: Option<NetworkMode>,
    operators: NetworkMode,
    can_cut_network: bool,
) -> Result<bool, String> {
    match asked {
        None => Ok(false),
        Some(asked) if asked == operators => Ok(false),
        Some(NetworkMode::None) if can_cut_network => Ok(true),
        Some(NetworkMode::None) => {
            let text = "this sandbox cannot give network none: commands here have the network of \
                        the machine; leave network out";
            Err(text.to_owned())
        }
        Some(asked) => Err(format!(
            "this sandbox cannot give network {asked}: its operator gives {operators}; leave network \
             out, or ask for {operators}{}",
            if can_cut_network && operators != NetworkMode::None { " or none" } else { "" }
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trajectory_has_the_operators_network_or_less() {
        use NetworkMode::{Host, None as Cut, Proxy};
        for (asked, operators, can_cut, expected) in [
            (None, Host, true, Ok(false)),
            (Some(Host), Host, true, Ok(false)),
            (Some(Cut), Host, true, Ok(true)),
            (Some(Cut), Proxy, true, Ok(true)),
            (Some(Cut), Cut, true, Ok(false)),
            (Some(Cut), Host, false, Err("leave network out")),
            (Some(Host), Proxy, true, Err("ask for proxy or none")),
            (Some(Proxy), Host, true, Err("its operator gives host")),
            (Some(Proxy), Cut, true, Err("ask for none")),
        ] {
            match (cuts_network(asked, operators, can_cut), expected) {
                (Ok(found), expected) => assert_eq!(Ok(found), expected, "{asked:?}"),
                (Err(error), Err(words)) => assert!(error.contains(words), "{error}"),
                (Err(error), Ok(_)) => panic!("{asked:?}: {error}"),
            }
        }
    }
}
