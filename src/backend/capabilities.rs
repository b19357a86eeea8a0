//! What a backend can do, and what holds in its slots.

use std::time::Duration;

use serde::Serialize;

use crate::config::NetworkMode;
use crate::egress::NetworkTotals;
use crate::level::{ImageIds, IsolationLevel};
use crate::limits::EnforcedLimits;
use crate::spec::SpecField;

/// The time limit of a call that names none, unless a backend has its own: 30 s.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// What a [`Backend`](super::Backend) can do, and what holds in its slots, as far as is known now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Capabilities {
    /// The time limit of a call that names none. Heeded at the start only. Defaults to
    /// [`DEFAULT_TIMEOUT`].
    #[serde(rename = "default_timeout_s", with = "crate::seconds")]
    pub default_timeout: Duration,
    /// The tools, by their names on the wire, whose calls [`execute`](super::Backend::execute)
    /// takes without blocking – no I/O, no lock that others hold for long – and answers later. It
    /// is called on the executor's own thread for them, which saves a change of threads; whatever
    /// holds it up there holds up all calls. Heeded at the start only. Defaults to none.
    pub inline_tools: &'static [&'static str],
    /// Whether slots may hold files or processes of others when the executor starts, so that each
    /// is reset before it is given out for the first time. Heeded at the start only. Defaults to
    /// `false`.
    pub starts_dirty: bool,
    /// Whether containers may be [added](super::ContainerChange::Added) while it runs: then calls
    /// wait for a slot where there is none. Heeded at the start only. Defaults to `false`.
    pub may_grow: bool,
    /// Whether commands run isolated from the machine and from other slots. Defaults to
    /// [`Isolation::Unknown`].
    pub isolation: Isolation,
    /// How far they are isolated. Defaults to `None`: not known.
    pub isolation_level: Option<IsolationLevel>,
    /// Why they are not isolated further, a line each. Defaults to none.
    pub weakened_because: Vec<String>,
    /// Which limits hold for the commands of a slot, and by what. Defaults to `None`: not known.
    pub limits: Option<EnforcedLimits>,
    /// Whether a slot keeps its sandbox from call to call. Where it does not each command pays for
    /// a sandbox of its own. Defaults to `None`: not known.
    pub warm_slots: Option<bool>,
    /// How many sandboxes were killed, have not ended in time, and are watched until they do: their
    /// slots have others. Defaults to 0.
    pub retired_sandboxes: usize,
    /// What network commands have whose calls may use one. Defaults to `None`: not known.
    pub network: Option<NetworkMode>,
    /// What commands have asked of the network so far. Defaults to `None`: nothing counts it.
    pub network_totals: Option<NetworkTotals>,
    /// Why commands run without a filter of system calls, as one line. Defaults to `None`: they
    /// have one, or it is not known.
    pub not_filtered_because: Option<String>,
    /// Containers that answer and in whose slots nothing can be run: they get no trajectory for a
    /// while. Defaults to none.
    pub bad_containers: Vec<BadContainer>,
    /// How many times a container was found to be so. Defaults to 0.
    pub containers_found_bad: u64,
    /// What of a [`TrajectorySpec`](crate::TrajectorySpec) it can give. Defaults to nothing:
    /// `max_wall` and `max_idle` are the executor's.
    pub spec: Vec<SpecField>,
    /// Why slots cannot have the files of an image, as one line. Defaults to `None`: they can, or
    /// it is not known.
    pub no_images_because: Option<String>,
    /// Which user ids machines from images have. Defaults to `None`: there can be none, or it is
    /// not known.
    pub image_ids: Option<ImageIds>,
}

/// A container that answers and in whose slots nothing can be run. Its trajectories finish there;
/// no other is put there until it is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BadContainer {
    /// Where it is.
    pub addr: String,
    /// Why the last slot could not be used, as one line.
    pub why: String,
    /// How many slots in a row could not be used.
    pub failures: usize,
    /// In how long it is tried again.
    #[serde(rename = "again_in_s", with = "crate::seconds")]
    pub again_in: Duration,
}

/// Whether commands run isolated from the machine and from other slots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Isolation {
    /// They do.
    Isolated,
    /// They do not, for this reason.
    NotIsolated(String),
    /// The backend does not say.
    Unknown,
}

impl Isolation {
    /// Why commands are not isolated; `None` if they are, or if it is not known.
    pub fn not_isolated_because(&self) -> Option<&str> {
        match self {
            Self::NotIsolated(reason) => Some(reason),
            Self::Isolated | Self::Unknown => None,
        }
    }
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            default_timeout: DEFAULT_TIMEOUT,
            inline_tools: &[],
            starts_dirty: false,
            may_grow: false,
            isolation: Isolation::Unknown,
            isolation_level: None,
            weakened_because: Vec::new(),
            limits: None,
            warm_slots: None,
            retired_sandboxes: 0,
            network: None,
            network_totals: None,
            not_filtered_because: None,
            bad_containers: Vec::new(),
            containers_found_bad: 0,
            spec: Vec::new(),
            no_images_because: None,
            image_ids: None,
        }
    }
}

setters! {
    Capabilities {
        with_default_timeout: default_timeout = Duration,
        with_inline_tools: inline_tools = &'static [&'static str],
        with_starts_dirty: starts_dirty = bool,
        with_may_grow: may_grow = bool,
        with_isolation: isolation = Isolation,
        with_isolation_level: isolation_level = some IsolationLevel,
        with_weakened_because: weakened_because = Vec<String>,
        with_limits: limits = some EnforcedLimits,
        with_warm_slots: warm_slots = some bool,
        with_retired_sandboxes: retired_sandboxes = usize,
        with_network: network = some NetworkMode,
        with_network_totals: network_totals = some NetworkTotals,
        with_not_filtered_because: not_filtered_because = some String,
        with_bad_containers: bad_containers = Vec<BadContainer>,
        with_containers_found_bad: containers_found_bad = u64,
        with_spec: spec = Vec<SpecField>,
        with_no_images_because: no_images_because = some String,
        with_image_ids: image_ids = some ImageIds,
    }
}
