//! What runs have started in Slurm, and which of these runs are over.
//!
//! The name of each job and step is its run's *label* ([`RunLabel`]): the host, its boot, and the
//! process there that started it. So who is on that host can tell whether the run is over; on
//! another one that is not known.
//!
//! Nothing is left, usually: each `srun` dies with its process, and a server that is not used ends.
//! What is left by a host that has crashed – a job that still waits in the queue, say – is found
//! here.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::str::FromStr;

use serde::Serialize;

use super::commands;
use super::program::ask;
use crate::error::BackendError;
use crate::interrupt::Interrupt;

/// How many jobs are named to `scancel` at a time.
const AT_ONCE: usize = 500;

/// Whether a run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RunState {
    /// Its process is there.
    Running,
    /// Its process has ended, or its host was booted since.
    Over,
    /// It was started on another host, or in another container of this one: who is there can tell.
    Unknown,
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Over => "over",
            Self::Unknown => "unknown",
        })
    }
}

/// A sandbox server that a run has Slurm run, or keep in its queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StartedServer {
    /// Its job, or its step of an allocation: `17`, `17.2`.
    pub id: String,
    /// What Slurm says of the job, such as `PENDING`; `STEP` for a step.
    pub job_state: String,
    /// Where it runs; empty while it waits.
    pub node: String,
    /// For how long it has run, as Slurm says it.
    pub time: String,
    /// The run, as its servers are named.
    pub run: String,
    /// The host that it was started on.
    pub host: String,
    /// Its process there.
    pub pid: u32,
    /// Whether the run goes on.
    pub run_state: RunState,
}

/// What servers are named by: the run that has started them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RunLabel {
    host: String,
    /// Names this boot of the host.
    boot: String,
    /// Names its space of process ids: a container has one of its own.
    space: u64,
    pid: u32,
    /// When the process began, in ticks since the boot: its id may be another's later.
    began: u64,
}

impl RunLabel {
    /// This process's.
    pub(super) fn own() -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let pid = std::process::id();
        Self {
            host: word(&host),
            boot: boot(),
            space: space(),
            pid,
            began: began(pid).unwrap_or(0),
        }
    }

    /// Whether the run goes on, as far as `here` – this process's own label – can tell. `began`
    /// says when a process of this space began.
    fn state(&self, here: &Self, began: impl Fn(u32) -> Option<u64>) -> RunState {
        if self.host != here.host {
            RunState::Unknown
        } else if self.boot != here.boot {
            RunState::Over
        } else if self.space != here.space {
            RunState::Unknown
        } else if began(self.pid) == Some(self.began) {
            RunState::Running
        } else {
            RunState::Over
        }
    }
}

impl fmt::Display for RunLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, boot, space, pid, began } = self;
        write!(f, "{}:{host}:{boot}:{space}:{pid}:{began}", commands::JOB_NAME)
    }
}

impl FromStr for RunLabel {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split(':');
        let mut next = || parts.next().filter(|part| !part.is_empty()).ok_or(());
        if next()? != commands::JOB_NAME {
            return Err(());
        }
        let (host, boot) = (next()?.to_owned(), next()?.to_owned());
        let mut number = || next()?.parse::<u64>().map_err(|_| ());
        let (space, pid, began) = (number()?, number()?, number()?);
        let pid = u32::try_from(pid).map_err(|_| ())?;
        let label = Self { host, boot, space, pid, began };
        // What is written as it is read, and nothing else.
        if label.to_string() == text { Ok(label) } else { Err(()) }
    }
}

/// The servers that Slurm runs or is to run for this user's runs. Blocks for a moment, for a minute
/// at most. Linux only.
///
/// # Errors
/// There is no Slurm, it does not answer, or it was interrupted.
pub fn started_servers(interrupt: &Interrupt) -> Result<Vec<StartedServer>, BackendError> {
    let jobs = ask("squeue", &commands::all_jobs(), interrupt)?;
    let steps = ask("squeue", &commands::all_steps(), interrupt)?;
    let here = RunLabel::own();
    let mut servers = Vec::new();
    for listed in commands::listed(&jobs).into_iter().chain(commands::listed(&steps)) {
        let Ok(label) = listed.name.parse::<RunLabel>() else { continue };
        // The step of a job that is a server's own goes with it.
        let job = listed.id.split_once('.').map(|(job, _)| job);
        let is_known = |server: &StartedServer| Some(&*server.id) == job;
        if servers.iter().any(is_known) {
            continue;
        }
        servers.push(StartedServer {
            id: listed.id,
            job_state: listed.state,
            node: listed.node,
            time: listed.time,
            run_state: label.state(&here, began),
            run: listed.name,
            host: label.host,
            pid: label.pid,
        });
    }
    Ok(servers)
}

/// Has Slurm end these servers, and take out of its queue those that wait. Blocks for a moment.
/// Linux only.
///
/// # Errors
/// Slurm refuses, does not answer, or it was interrupted. Some may have been ended then.
pub fn remove_servers(
    servers: &[StartedServer],
    interrupt: &Interrupt,
) -> Result<(), BackendError> {
    for some in servers.chunks(AT_ONCE) {
        let ids = some.iter().map(|server| OsString::from(&server.id));
        let argv: Vec<_> = [OsString::from("--quiet")].into_iter().chain(ids).collect();
        ask("scancel", &argv, interrupt)?;
    }
    Ok(())
}

/// A host's name, as one word of a label.
fn word(text: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-' || c == '_';
    let word: String = text.chars().filter(|c| fits(*c)).take(64).collect();
    if word.is_empty() { "unnamed".to_owned() } else { word }
}

fn boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    word(&id.trim().chars().filter(|c| *c != '-').take(12).collect::<String>())
}

/// The number of this process's space of process ids.
fn space() -> u64 {
    let link = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let digits = link.to_string_lossy().chars().filter(char::is_ascii_digit).collect::<String>();
    digits.parse().unwrap_or(0)
}

/// When a process began, in ticks since the boot.
fn began(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name, which is anything, is in parentheses; then 19 more fields come first.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn label() -> RunLabel {
        RunLabel { host: "h1".into(), boot: "b".into(), space: 7, pid: 42, began: 1000 }
    }

    #[test]
    fn whether_a_run_goes_on_is_known_on_its_own_host_only() {
        let here = RunLabel { pid: 1, began: 1, ..label() };
        let began = |pid| (pid == 42).then_some(1000);
        assert_eq!(label().state(&here, began), RunState::Running);
        for (other, expected) in [
            (RunLabel { pid: 43, ..label() }, RunState::Over),
            // The process id is another's now.
            (RunLabel { began: 999, ..label() }, RunState::Over),
            (RunLabel { boot: "before".into(), ..label() }, RunState::Over),
            (RunLabel { space: 8, ..label() }, RunState::Unknown),
            (RunLabel { host: "h2".into(), ..label() }, RunState::Unknown),
            (RunLabel { host: "h2".into(), boot: "c".into(), ..label() }, RunState::Unknown),
        ] {
            assert_eq!(other.state(&here, began), expected, "{other}");
        }
    }

    #[test]
    fn this_process_is_a_run_that_goes_on() {
        let own = RunLabel::own();
        assert!(own.began > 0 && own.space > 0 && own.boot.len() == 12, "{own}");
        assert_eq!(own.to_string().parse(), Ok(own.clone()));
        assert_eq!(own.state(&RunLabel::own(), began), RunState::Running);
        assert_eq!(began(u32::MAX), None);
    }

    proptest! {
        #[test]
        fn a_label_is_read_as_it_is_written_and_nothing_else_is_one(
            host in ".{0,80}", space: u64, pid: u32, began: u64, text in "(tool-executor:)?.{0,40}",
        ) {
            let label = RunLabel { host: word(&host), boot: "0af".into(), space, pid, began };
            prop_assert_eq!(label.to_string().parse(), Ok(label));
            if let Ok(label) = text.parse::<RunLabel>() {
                prop_assert_eq!(label.to_string(), text);
            }
        }
    }
}
