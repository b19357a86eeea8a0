//! The start of the embedded sandbox: what must hold before a slot is promised to anybody.
//!
//! In this order: the configuration makes sense; there are descriptors for all slots; this process
//! may do what it has to for the user of commands; the workspaces are there; a sandbox can be
//! made, or isolation is not required; the threads run. Whatever fails, or is interrupted, nothing
//! is left of the start.

use std::collections::BTreeMap;
use std::io;

use rustix::io::Errno;

use super::{network, *};
use crate::config::UserIds;
use crate::error::{BackendErrorKind, IsolationError};
use crate::interrupt::Interrupt;
use crate::sandbox::descriptors::{self, Need};
use crate::sandbox::image::ImageErrorKind;
use crate::sandbox::isolation::{self, Budget, Facts, Failure, NotProvided, proxy};
use crate::sandbox::limits::TooFewProcesses;
use crate::sandbox::user::{NoIds, SlotUsers, WeakRoot};
use crate::sandbox::workspace::{MachineSpec, WorkspaceError};

/// Finds out how commands in a workspace are isolated.
pub(super) type Probe = fn(&Arc<Workspace>, &Budget) -> Result<Engine, Failure>;

/// How many trajectories with specs begin at a time.
const BEGIN_THREADS: usize = 4;

/// What a root has to be, that may not be another user.
const STRONG_ROOT: &str = "run it as an ordinary user, or as root with the capabilities CHOWN, \
                           DAC_OVERRIDE, FOWNER, KILL, SETGID and SETUID";

/// The directories, and how commands are isolated in them.
struct Place {
    /// That of the first slot.
    user: Option<CommandUser>,
    data_dir: DataDir,
    isolation: Engine,
}

pub(super) fn start(
    config: &LocalConfig,
    tmux: Option<Tmux>,
    probe: Probe,
    interrupt: &Interrupt,
) -> Result<LocalBackend, BackendError> {
    config.check()?;
    let need = Need::new(config.slots, descriptors::open_now());
    let need = if config.network == NetworkMode::Proxy { need.with_proxies() } else { need };
    let open_files = descriptors::raise_limit(need.total());
    need.check(descriptors::limit()).map_err(|too_few| {
        BackendError::new(too_few.to_string()).with_kind(BackendErrorKind::Shortage)
    })?;
    let more_sessions = descriptors::more_sessions(need, descriptors::limit());
    if config.adopt_orphans {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|error| BackendError::with_source("cannot adopt orphans", error))?;
    }
    let Place { user, mut data_dir, isolation } = find_place(config, probe, interrupt)?;
    let images = Images::new(config, &data_dir, &isolation);
    if images.shared.is_some() && !data_dir.hands_over() {
        data_dir.open_up_slots().map_err(workspaces)?;
    }
    let image = default_image(config, &images, &data_dir, &isolation, interrupt)?;
    let (isolation, network, egress) = network::connect(config, isolation)?;
    let one_user = data_dir.users().one_user_because();
    let thread = |error| system("cannot start threads", error);
    let share_users = data_dir.users().are_counted_together() || images.shared.is_some();
    let limits = Limits::detect(config.slots, &config.limits, user, share_users, open_files)
        .map(Arc::new)
        .map_err(no_limits)?;
    let spool = Spool::start().map_err(thread)?;
    let supervisor = Supervisor::start(isolation.clone(), user, limits.clone(), spool.clone())
        .map(Arc::new)
        .map_err(|error| system("cannot start the supervisor", error))?;
    let terminals = Terminals::start(terminal::Setup {
        isolation,
        user,
        limits: limits.clone(),
        more_sessions,
        supervisor: supervisor.clone(),
        output_limit_chars: config.max_output_chars,
        output_file_bytes: config.max_output_file_bytes,
        spool,
        tmux,
    })
    .map_err(|error| system("cannot start the terminals", error))?;
    let resets = Resets::start(data_dir.workspaces().len()).map_err(thread)?;
    let workspaces = match &image {
        None => data_dir.take_workspaces(),
        Some(image) => with_image(data_dir.take_workspaces(), image).map_err(workspaces)?,
    };
    let slots = workspaces
        .into_iter()
        .map(|workspace| Slot {
            workspace: Mutex::new(workspace),
            has_network: AtomicBool::new(network != NetworkMode::None),
            began_from: Mutex::default(),
            ended: EndedBetween::default(),
            image_wait: ImageWait::default(),
            haunted: Arc::new(AtomicBool::new(false)),
            begins: Arc::default(),
            resets: Arc::default(),
        })
        .collect();
    let backend = LocalBackend(Arc::new(Inner {
        one_user,
        image,
        images,
        supervisor,
        limits,
        terminals,
        slots,
        running: Mutex::new(HashMap::new()),
        network,
        egress,
        max_output_chars: config.max_output_chars,
        max_output_file_bytes: config.max_output_file_bytes,
        max_file_bytes: config.max_file_bytes,
        data_dir: Mutex::new(Some(data_dir)),
        resets: Mutex::new(Some(resets)),
        snapshots: KeptSnapshots::default(),
        begins: Mutex::new(Some(Workers::start("tool-begin", BEGIN_THREADS).map_err(thread)?)),
    }));
    let (level, weakened_because) = backend.level();
    let is_ordinary = config.user_ids == UserIds::Auto && !rustix::process::geteuid().is_root();
    let grade = match level {
        // What an ordinary user lacks is said with what would give it.
        IsolationLevel::OneUser if is_ordinary => log::Level::Warn,
        IsolationLevel::Full | IsolationLevel::OneUser => log::Level::Info,
        IsolationLevel::SharedProc => log::Level::Warn,
        // That was said with the reason.
        _ => log::Level::Debug,
    };
    log::log!(grade, "isolation {level}: {}", weakened_because.join("; "));
    Ok(backend)
}

/// The image that slots have the files of, if the operator wants one.
///
/// # Errors
/// It cannot be had or used, or slots cannot have images.
fn default_image(
    config: &LocalConfig,
    images: &Images,
    data_dir: &DataDir,
    isolation: &Engine,
    interrupt: &Interrupt,
) -> Result<Option<Arc<ImageFiles>>, BackendError> {
    let Some(name) = &config.image else { return Ok(None) };
    can_have_images(isolation).map_err(BackendError::new)?;
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        BackendError::with_source("cannot use the image that slots are to have", error)
    };
    let image = images.find(name, interrupt).map_err(|error| match error.kind() {
        ImageErrorKind::Interrupted => BackendError::interrupted(),
        _ => failed(error.into()),
    })?;
    let env = BTreeMap::new();
    let spec = MachineSpec { image, frozen: Vec::new(), user: None, workdir: None, env };
    let of_slot = data_dir.users().of_slot(0);
    let files = ImageFiles::find(spec, of_slot, images.shared, &images.toolbox);
    Ok(Some(Arc::new(files.map_err(|error| failed(error.into()))?)))
}

/// The same slots' workspaces with the files of an image.
fn with_image(
    workspaces: Vec<Arc<Workspace>>,
    image: &Arc<ImageFiles>,
) -> Result<Vec<Arc<Workspace>>, WorkspaceError> {
    let with_image = |workspace: Arc<Workspace>| {
        let renewed = workspace.renew_with(Some(image.clone())).map(Arc::new)?;
        workspace.remains().remove()?;
        Ok(renewed)
    };
    workspaces.into_iter().map(with_image).collect()
}

/// Makes the workspaces and finds out how commands are isolated there, and as whom they run.
fn find_place(
    config: &LocalConfig,
    probe: Probe,
    interrupt: &Interrupt,
) -> Result<Place, BackendError> {
    let user = match CommandUser::find() {
        Ok(user) => user,
        Err(found) => weak_root(config, found)?,
    };
    let mut users = match user {
        Some(user) => SlotUsers::find(config.user_ids, config.slots, user).map_err(no_ids)?,
        None => own_user(config)?,
    };
    let data_dir = match make_data_dir(config, &users, interrupt) {
        Err(WorkspaceError::WeakRoot(found)) => {
            // A file system may have no other users' files, as some of a network.
            let why = format!("all slots are one user, this process's own: {found}");
            users = weak_root(config, found)?.map_or(SlotUsers::Own(why), |user| Some(user).into());
            make_data_dir(config, &users, interrupt)
        }
        made => made,
    };
    let data_dir = data_dir.map_err(workspaces)?;
    // The one time of all probes, which begins after what may have taken minutes.
    let budget = Budget::new(interrupt);
    let first = match isolate(config, &data_dir, probe, &budget)? {
        Ok(isolation) => return Ok(Place { user: users.of_slot(0), data_dir, isolation }),
        Err(failure) => failure,
    };
    // Some systems let only root make sandboxes, and one of root's is better than none. Only a
    // refusal says so: a shortage says nothing of whom the machine trusts.
    if users.of_slot(0).is_some() && matches!(first, Failure::Refused(_)) {
        let own = SlotUsers::own();
        let of_root = make_data_dir(config, &own, interrupt).map_err(workspaces)?;
        if let Ok(isolation) = isolate(config, &of_root, probe, &budget)? {
            log::warn!("only root can make sandboxes here: commands run in them as root");
            return Ok(Place { user: None, data_dir: of_root, isolation });
        }
    }
    if !config.allow_unisolated {
        let remedy = isolation::advice(&first, &Facts::read());
        let cause = IsolationError::new(first.to_string(), remedy);
        return Err(BackendError::not_isolated(cause));
    }
    log::warn!("commands run without isolation, as was allowed: {first}");
    let provided = Provided::without_sandbox(config).map(Arc::new);
    let provided = provided.map_err(|error| not_provided(error.into()))?;
    // The users of slots have a name in their sandboxes only.
    let user = users.of_slot(0).and(user);
    drop(data_dir);
    let data_dir = make_data_dir(config, &user.into(), interrupt).map_err(workspaces)?;
    let isolation = Engine::None { reason: first.to_string(), provided };
    Ok(Place { user, data_dir, isolation })
}

/// The user of all slots where that is this process's own.
///
/// # Errors
/// Others were asked for.
fn own_user(config: &LocalConfig) -> Result<SlotUsers, BackendError> {
    match config.user_ids {
        UserIds::Auto => Ok(SlotUsers::own()),
        UserIds::Shared => Ok(SlotUsers::own_as_asked()),
        UserIds::Span { .. } => {
            let text = "only root can give the slots user ids that are named (user_ids); let it be \
                        `auto`, which uses those of /etc/subuid, or run it as root with the \
                        capabilities SETUID and SETGID";
            Err(BackendError::new(text))
        }
    }
}

/// The user ids that were asked for cannot be had.
fn no_ids(error: NoIds) -> BackendError {
    let kind = match &error {
        NoIds::Refused(_) => BackendErrorKind::Other,
        NoIds::System(error) => kind_of(error),
    };
    BackendError::with_source("cannot give the slots users of their own", error).with_kind(kind)
}

/// Whom commands run as where this process is a root that may not do what it must for another
/// user: as this root, where that does no harm, or where less isolation is allowed.
fn weak_root(config: &LocalConfig, weak: WeakRoot) -> Result<Option<CommandUser>, BackendError> {
    if weak.is_shortage() {
        let error = BackendError::with_source("cannot find out what this process may do", weak);
        return Err(error.with_kind(BackendErrorKind::Shortage));
    }
    if weak.is_harmless() {
        log::info!("commands run as the root of this user namespace: {weak}");
        return Ok(None);
    }
    if config.allow_unisolated {
        log::warn!("commands run as root, as was allowed: {weak}");
        return Ok(None);
    }
    let reason = format!("{weak}: commands would run as root");
    Err(BackendError::not_isolated(IsolationError::new(reason, STRONG_ROOT)))
}

fn make_data_dir(
    config: &LocalConfig,
    users: &SlotUsers,
    interrupt: &Interrupt,
) -> Result<DataDir, WorkspaceError> {
    DataDir::create_unless(interrupt, config.data_dir.as_deref(), config.slots, users.clone())
}

/// How commands are isolated in these workspaces; or why they are not, where that is certain.
fn isolate(
    config: &LocalConfig,
    data_dir: &DataDir,
    probe: Probe,
    budget: &Budget,
) -> Result<Result<Engine, Failure>, BackendError> {
    let etc = data_dir
        .make_dir("etc")
        .and_then(|path| EtcCopy::make(&path, data_dir.identity()))
        .and_then(|etc| network::add_files(config, &etc).map(|()| etc))
        .and_then(|etc| {
            if ImageFiles::has_one_id(data_dir.users().of_slot(0)) {
                etc.add(proxy::APT_USER, &proxy::apt_user_file())?;
            }
            Ok(etc)
        })
        .map_err(|error| system("cannot copy /etc for sandboxes", error))?;
    let workspace = &data_dir.workspaces()[0];
    let isolation = probe(workspace, budget).map(|isolation| isolation.with_etc(etc));
    let isolation = match isolation {
        Ok(found) => Ok(found.with_provided(config, data_dir, budget).map_err(not_provided)?),
        Err(failure) => Err(failure),
    };
    let isolation = match isolation {
        Ok(found) => Ok(found
            .with_name_of_machine()
            .map_err(|error| system("cannot copy /etc for sandboxes", error))?),
        Err(failure) => Err(failure),
    };
    let found = || {
        let mut isolation = isolation?.with_terminals_for(config.slots);
        if data_dir.users().are_counted_together() {
            isolation = isolation.with_inotify_for(config.slots);
        }
        if config.seccomp {
            isolation = isolation.with_filter(Filter::all(), workspace, budget)?;
        }
        if let Some(bytes) = config.limits.memory_bytes {
            isolation = isolation.with_shared_memory(bytes / 2);
        }
        Ok(isolation.with_layers(data_dir, budget)?.with_warm_slots(config.warm_slots))
    };
    match found() {
        Err(Failure::Interrupted) => Err(BackendError::interrupted()),
        Err(failure) if failure.is_inconclusive() => {
            let advice = isolation::advice(&failure, &Facts::read());
            let text = format!("cannot find out how commands are isolated: {failure}; {advice}");
            Err(BackendError::new(text).with_kind(BackendErrorKind::Shortage))
        }
        found => Ok(found),
    }
}

/// What the operator wants commands to have and they cannot.
fn not_provided(error: NotProvided) -> BackendError {
    match &error {
        NotProvided::Jail(Failure::Interrupted) => BackendError::interrupted(),
        NotProvided::Jail(failure) if failure.is_inconclusive() => {
            let text = "cannot find out whether sandboxes can have what commands are to be given";
            BackendError::with_source(text, error).with_kind(BackendErrorKind::Shortage)
        }
        _ => BackendError::with_source("commands cannot have what they are to be given", error),
    }
}

/// What kept the workspaces from being made.
fn workspaces(error: WorkspaceError) -> BackendError {
    let kind = match &error {
        WorkspaceError::Interrupted => return BackendError::interrupted(),
        WorkspaceError::Io { source, .. } => kind_of(source),
        _ => BackendErrorKind::Other,
    };
    BackendError::with_source("cannot make the workspaces", error).with_kind(kind)
}

/// The slots cannot be put under limits.
fn no_limits(error: io::Error) -> BackendError {
    match error.get_ref().is_some_and(|cause| cause.is::<TooFewProcesses>()) {
        true => BackendError::new(error.to_string()).with_kind(BackendErrorKind::Shortage),
        false => system("cannot watch the limits", error),
    }
}

/// What the system refused.
pub(super) fn system(what: &str, error: io::Error) -> BackendError {
    let kind = kind_of(&error);
    BackendError::with_source(what, error).with_kind(kind)
}

fn kind_of(error: &io::Error) -> BackendErrorKind {
    match Errno::from_io_error(error).is_some_and(isolation::is_shortage) {
        true => BackendErrorKind::Shortage,
        false => BackendErrorKind::Other,
    }
}
