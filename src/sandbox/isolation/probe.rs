//! Making jails once, to see whether that works here: bounded in time, interruptible, and leaving
//! no process behind.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll;

use super::remedy::are_namespaces_forbidden;
use super::{Contents, Failure, Jails, open_null};
use crate::interrupt::Interrupt;
use crate::sandbox::init::{Run, RunEvent};
use crate::sandbox::jail::{
    Bounds, Entry, Hold, Jail, Machine, News, Overlay, Phase, SetupError, Tree, UPPER,
};
use crate::sandbox::limits::Limits;
use crate::sandbox::shell;
use crate::sandbox::stream::Watch;
use crate::sandbox::user::{self, CommandUser, IdMap};
use crate::sandbox::workspace::{DataDir, Workspace};

/// How long all probes of one start may take together: the usual ones take some 50 milliseconds.
const LIMIT: Duration = Duration::from_secs(15);
/// How long a wait may last before the interrupt is looked at again.
const SLICE: Duration = Duration::from_millis(20);
/// How long the end of a killed jail is awaited.
const KILL_LIMIT: Duration = Duration::from_millis(500);

/// Where layers are tried: in the data directory, and inside.
const LAYERS: &str = "layers";
const LAYERS_PLACE: &str = "/mnt";
/// What is done there. A directory that is made anew hides what was in the old one.
const USE_LAYERS: &str = "cd /mnt && rm -r full && mkdir full && [ -z \"$(ls full)\" ]";

/// The time that the probes of one start have, all together.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    limit: Duration,
    deadline: Instant,
    interrupt: Interrupt,
}

impl Budget {
    /// The usual time, from now on; `interrupt` ends it at once.
    pub(crate) fn new(interrupt: &Interrupt) -> Self {
        Self::of(LIMIT, interrupt)
    }

    /// So much time, from now on.
    pub(crate) fn of(limit: Duration, interrupt: &Interrupt) -> Self {
        Self { limit, deadline: Instant::now() + limit, interrupt: interrupt.clone() }
    }

    /// Whether there is time left.
    ///
    /// # Errors
    /// There is not, or the start was interrupted.
    pub(in crate::sandbox) fn check(&self) -> Result<(), Failure> {
        if self.interrupt.is_interrupted() {
            return Err(Failure::Interrupted);
        }
        if Instant::now() >= self.deadline {
            return Err(Failure::TimedOut(self.limit));
        }
        Ok(())
    }
}

#[cfg(test)]
impl Default for Budget {
    fn default() -> Self {
        Self::new(&Interrupt::new())
    }
}

impl Jails {
    /// Makes a jail that founds a machine, has `true` run in it and ends it again, and does the
    /// same with one that joins the machine; on a thread of its own: a jail dies with the thread
    /// that has made it. Blocks until that is done, or `budget` is used up, or the start is
    /// interrupted.
    ///
    /// # Errors
    /// What failed.
    pub(super) fn try_out(
        &self,
        workspace: &Arc<Workspace>,
        budget: &Budget,
    ) -> Result<(), Failure> {
        budget.check()?;
        user::on_own_thread(|| Ok(self.try_here(workspace, budget)))
            .unwrap_or_else(|error| Err(Failure::of_error(&error)))
    }

    fn try_here(&self, workspace: &Arc<Workspace>, budget: &Budget) -> Result<(), Failure> {
        let machine = self.try_jail(None, workspace, None, budget)?;
        self.try_jail(machine, workspace, None, budget).map(|_| ())
    }

    /// As [`try_out`](Self::try_out), with an overlay in which files are removed and made; if `own`
    /// says so, of layers that belong to the sandbox's user and are found by their paths.
    pub(super) fn try_layers(
        &self,
        data_dir: &DataDir,
        own: bool,
        budget: &Budget,
    ) -> Result<(), Failure> {
        let workspace = &data_dir.workspaces()[0];
        let failed = |error: std::io::Error| Failure::of_error(&error);
        let place = data_dir.make_dir(LAYERS).map_err(failed)?;
        let overlay = make_overlay(&place, workspace.owner(), own);
        let tried = overlay.map_err(failed).and_then(|overlay| {
            budget.check()?;
            let try_it = || Ok(self.try_jail(None, workspace, Some(overlay), budget).map(|_| ()));
            user::on_own_thread(try_it).unwrap_or_else(|error| Err(Failure::of_error(&error)))
        });
        // What resists goes with the data directory.
        if let Err(error) = data_dir.remove_dir(LAYERS) {
            log::debug!("cannot remove what was tried: {error}");
        }
        tried
    }

    /// Gives the jail's machine.
    fn try_jail(
        &self,
        machine: Option<Arc<Machine>>,
        workspace: &Arc<Workspace>,
        overlay: Option<Overlay>,
        budget: &Budget,
    ) -> Result<Option<Arc<Machine>>, Failure> {
        let script = if overlay.is_some() { USE_LAYERS } else { "true" };
        let failed = |error: std::io::Error| Failure::of_error(&error);
        let shell = self.layout.shell;
        let contents = Contents {
            workspace,
            network: !self.can_cut_network,
            program: Path::new(shell.path()),
            environment: self.provided.added_to(shell::environment(
                &workspace.inside(),
                Path::new(shell.path()),
                self.layout.identity.name(),
            )),
            open_files: None,
            cgroups: Vec::new(),
        };
        let null = open_null().map_err(failed)?;
        let flags = epoll::CreateFlags::CLOEXEC;
        let epoll = epoll::create(flags).map_err(|errno| failed(errno.into()))?;
        let watch = Watch { epoll: &epoll, id: 0 };
        let limits = Arc::new(Limits::none());
        let bounds = Bounds { limits, workspace: workspace.clone(), is_session: false };
        let not_made = |error: &SetupError| Failure::of_setup(error, are_namespaces_forbidden());
        let origin = self.origin(&null, workspace);
        let mut plan = self.plan(contents);
        plan.root.extend(overlay.map(Entry::Layered));
        let mut jail = Jail::start(&plan, machine, &origin, bounds, &watch)
            .map_err(|error| not_made(&error))?;
        let (mut tried, mut machine) = (None, None);
        // When it is given up on, because it should have ended by then.
        let mut end_by = None;
        while jail.phase() != Phase::Gone {
            let now = Instant::now();
            if end_by.is_none()
                && let Err(failure) = budget.check()
            {
                tried.get_or_insert(Err(failure));
                jail.end(&watch, now);
            }
            if jail.phase() == Phase::Ending && now >= *end_by.get_or_insert(now + KILL_LIMIT) {
                log::warn!("a sandbox that was tried does not end");
                break;
            }
            if jail.deadline().is_some_and(|due| now >= due) {
                jail.on_deadline(&watch, now);
            }
            for news in wait(&epoll, &mut jail, &watch) {
                let done = match news {
                    News::Opened => {
                        machine = jail.machine().cloned();
                        let argv = ["sh", "-c", script].map(OsString::from);
                        let null = null.as_fd();
                        let run = Run {
                            argv: &argv,
                            stdin: None,
                            stdout: null,
                            stderr: null,
                            script: None,
                            verdict: None,
                            may_keep: false,
                        };
                        jail.run(&run, Arc::new(|_| {})).err().map(|error| Err(failed(error)))
                    }
                    News::Run(RunEvent::Ended { .. } | RunEvent::Rest { .. }) => None,
                    News::Run(RunEvent::Done { end, .. }) => Some(outcome(end)),
                };
                if let Some(done) = done {
                    tried.get_or_insert(done);
                    jail.end(&watch, Instant::now());
                }
            }
        }
        tried.unwrap_or_else(|| Err(not_made(&jail.failure()))).map(|()| machine)
    }
}

/// The layers that are tried, in a directory of their own. Blocks for a few file system calls.
fn make_overlay(
    place: &Path,
    owner: Option<CommandUser>,
    all_own: bool,
) -> std::io::Result<Overlay> {
    let [lower, writable] = ["lower", "writable"].map(|name| place.join(name));
    let (full, upper) = (lower.join("full"), writable.join(UPPER));
    let file = full.join("file");
    for directory in [&lower, &full, &writable, &upper] {
        std::fs::create_dir(directory)?;
    }
    std::fs::write(&file, "")?;
    std::fs::set_permissions(&full, std::fs::Permissions::from_mode(0o777))?;
    if let Some(user) = owner {
        let below = [&lower, &full, &file].into_iter().filter(|_| all_own);
        for own in [&writable, &upper].into_iter().chain(below) {
            chown(own, Some(user.uid().as_raw()), Some(user.gid().as_raw()))?;
        }
    }
    if owner.is_some() && all_own {
        std::fs::set_permissions(place, std::fs::Permissions::from_mode(0o711))?;
    }
    // What root has made is another's in the sandbox.
    let map = |user: CommandUser| Some(IdMap { inside: 0, ..user.map() });
    let [below, above] = match owner {
        Some(user) if !all_own => [Hold::HandedOver(map(user)), Hold::HandedOver(None)],
        _ => [Hold::ByPath; 2],
    };
    Ok(Overlay {
        place: LAYERS_PLACE.into(),
        lower: vec![Tree { host: lower, hold: below }],
        writable: Tree { host: writable, hold: above },
        work: "work".to_owned(),
    })
}

/// Waits for events of the jail, for a slice at most, and has it deal with them.
fn wait(epoll: &std::os::fd::OwnedFd, jail: &mut Jail, watch: &Watch<'_>) -> Vec<News> {
    let mut events = Vec::with_capacity(8);
    let slice = SLICE.try_into().ok();
    // An interrupted wait is taken up again.
    let _ = epoll::wait(epoll, rustix::buffer::spare_capacity(&mut events), slice.as_ref());
    let sources = events.iter().filter_map(|event| Watch::decode(event.data.u64())?.1.of_jail());
    sources.flat_map(|source| jail.on_event(source, watch, Instant::now())).collect()
}

/// What it means how `true` ended.
fn outcome(end: Result<i32, i32>) -> Result<(), Failure> {
    match end {
        Ok(0) => Ok(()),
        Ok(status) if libc::WIFSIGNALED(status) => Err(Failure::of_signal(libc::WTERMSIG(status))),
        Ok(status) => {
            let code = libc::WEXITSTATUS(status);
            Err(Failure::Broken(format!("what was tried ended with status {code}")))
        }
        Err(errno) => Err(Failure::of_error(&std::io::Error::from_raw_os_error(errno))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    struct Fake {
        _base: tempfile::TempDir,
        data: DataDir,
        jails: Jails,
    }

    /// Jails whose first process is this program, which knows nothing of being one.
    fn fake(program: &str) -> Fake {
        let user = CommandUser::detect();
        let base = tempfile::tempdir().unwrap();
        std::fs::set_permissions(base.path(), PermissionsExt::from_mode(0o711)).unwrap();
        let data = DataDir::create(Some(&base.path().join("data")), 1, user).unwrap();
        let workspace = &data.workspaces()[0];
        let mut jails = Jails::find(workspace, &Budget::default()).unwrap();
        jails.program = Arc::new(OwnedFd::from(std::fs::File::open(program).unwrap()));
        Fake { _base: base, data, jails }
    }

    impl Fake {
        fn try_out(&self, budget: &Budget) -> Result<(), Failure> {
            self.jails.try_out(&self.data.workspaces()[0], budget)
        }
    }

    /// How many children of this process are a `yes` that takes itself for a first process.
    fn hanging() -> usize {
        let children = std::fs::read_dir("/proc/self/task").unwrap().flatten().flat_map(|task| {
            let list = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            list.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>()
        });
        let is_yes = |pid: &String| {
            let read = |file| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            read("cmdline").starts_with(b"tool-init\0") && read("status").starts_with(b"Name:\tyes")
        };
        children.filter(is_yes).count()
    }

    #[test]
    fn layers_are_tried_and_nothing_is_left_of_that() {
        let fake = fake("/usr/bin/true");
        let workspace = &fake.data.workspaces()[0];
        let jails = Jails::find(workspace, &Budget::default()).unwrap();
        for own in [false, true] {
            assert_eq!(jails.try_layers(&fake.data, own, &Budget::default()), Ok(()));
        }
        assert!(!fake.data.path().join(LAYERS).exists());
        // A first process that is none can mount nothing.
        let failure = fake.jails.try_layers(&fake.data, false, &Budget::default()).unwrap_err();
        assert!(matches!(failure, Failure::Broken(_)), "{failure}");
        assert!(!fake.data.path().join(LAYERS).exists());
    }

    #[test]
    fn a_first_process_that_ends_at_once_is_no_sandbox() {
        let failure = fake("/usr/bin/true").try_out(&Budget::default()).unwrap_err();
        assert!(matches!(&failure, Failure::Broken(text) if text.contains("ended early")));
        let mut text = fake("/etc/passwd").try_out(&Budget::default()).unwrap_err().to_string();
        text.make_ascii_lowercase();
        assert!(text.contains("cannot execute the first process"), "{text}");
    }

    #[test]
    fn a_sandbox_that_hangs_is_ended_when_its_time_is_up_or_the_start_is_interrupted() {
        let hangs = fake("/usr/bin/yes");
        let budget = Budget::of(Duration::from_millis(300), &Interrupt::new());
        let failure = hangs.try_out(&budget).unwrap_err();
        assert_eq!(failure, Failure::TimedOut(Duration::from_millis(300)));
        assert_eq!(hanging(), 0);
        // The time is that of all probes.
        assert_eq!(hangs.try_out(&budget), Err(failure));

        let interrupt = Interrupt::new();
        let budget = Budget::of(Duration::from_secs(600), &interrupt);
        std::thread::scope(|scope| {
            let try_out = scope.spawn(|| hangs.try_out(&budget));
            let deadline = Instant::now() + Duration::from_secs(60);
            while hanging() == 0 && Instant::now() < deadline {
                std::thread::yield_now();
            }
            let interrupted = Instant::now();
            interrupt.interrupt();
            assert_eq!(try_out.join().unwrap(), Err(Failure::Interrupted));
            assert!(interrupted.elapsed() < Duration::from_secs(5));
        });
        assert_eq!(hanging(), 0);
    }
}
