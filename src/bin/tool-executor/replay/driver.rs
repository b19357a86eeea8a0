//! The replay's only contact with the executor and the sandbox.
//!
//! One thread drives all trajectories through a completion queue; nothing here keeps track of
//! which call comes next.

use std::io::{self, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tool_executor::artifact::ArchiveArtifacts;
use tool_executor::backend::local::LocalBackend;
use tool_executor::snapshot::SnapshotOptions;
use tool_executor::stats::OutcomeCounts;
use tool_executor::{
    Completion, CompletionQueue, Interrupt, Outcome, SnapshotId, ToolCall, ToolExecutor,
    ToolRegistry, ToolResult, TrajectorySpec,
};

use super::transfers::Transfers;
use crate::args::ReplayArgs;
use crate::setup::{chain, check_isolation, local_beside, servers, tool_server};

/// How long a call may wait for its slot, and in the executor's queue. With more trajectories than
/// slots a long wait is what was asked for, so only a run that got stuck should ever meet it.
const PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long closing waits for calls that still run. None does, unless the run was given up.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The most trajectories at a time on sandbox servers, unless more are asked for.
const MOST_ON_SERVERS: usize = 16_384;

/// The longest file name that is made of a trajectory id as it is.
const MAX_FILE_NAME: usize = 200;

/// An executor over an embedded sandbox, sandbox servers, or both.
pub(crate) struct Driver {
    executor: Arc<ToolExecutor>,
    queue: CompletionQueue,
    /// The embedded sandbox, if that is what runs all calls.
    embedded: Option<LocalBackend>,
    /// How many trajectories are to run at a time.
    concurrency: usize,
}

impl Driver {
    /// Starts the sandbox and the executor. Blocks for a moment.
    ///
    /// # Errors
    /// What kept them from starting, causes included, as one line.
    pub(crate) fn start(args: &ReplayArgs, interrupt: &Interrupt) -> Result<Self, String> {
        let mut builder = ToolExecutor::builder().interrupt(interrupt.clone());
        let ReplayArgs { slots, limits, network, isolation, fleet, .. } = args;
        let local = local_beside(fleet, slots, limits, network, isolation, interrupt)?;
        let embedded = local.clone().filter(|_| !fleet.is_given());
        builder = match local {
            Some(backend) if !fleet.is_given() => builder.backend(backend),
            local => {
                let mut fleet = fleet.clone();
                fleet.sandbox_slots = fleet.sandbox_slots.or(args.concurrency);
                builder.shared_backend(servers(local, &fleet, isolation)?)
            }
        };
        // How many slots the servers have they say when the executor starts.
        let slots = if embedded.is_none() { MOST_ON_SERVERS } else { args.slots.count() };
        let most = args.concurrency.unwrap_or(slots);
        let mut config = args
            .calls
            .config(&args.network)
            // One call per trajectory is under way, and perhaps its begin, so a submit never meets
            // a full queue.
            .with_queue_capacity(most.saturating_mul(2))
            .with_queue_timeout(PATIENCE)
            .with_acquire_timeout(PATIENCE)
            .with_close_timeout(CLOSE_TIMEOUT);
        config.policy.require_sandbox = args.isolation.require_sandbox;
        config.tool_server = tool_server(&args.tool_server)?;
        let executor = builder.config(config).start().map_err(|error| chain(&error))?;
        // Other executors may have some of them, now or later; a trajectory waits for its slot.
        let slots = executor.stats().slots;
        let slots = slots.total + slots.elsewhere;
        let asked = fleet.sandbox_slots.map(|asked| asked + fleet.local_slots.unwrap_or(0));
        let slots = asked.map_or(slots, |asked| slots.min(asked));
        let slots = match fleet.is_slurm() {
            // Its servers come one after the other, and as many as trajectories wait for.
            true => most,
            false => slots.clamp(1, most),
        };
        let concurrency = args.concurrency.unwrap_or(slots);
        let queue = executor.completion_queue(concurrency);
        check_isolation(&executor, args.calls.allow_network(&args.network), &args.fleet)?;
        Ok(Self { executor: Arc::new(executor), queue, embedded, concurrency })
    }

    /// The tools there are.
    pub(crate) fn registry(&self) -> &ToolRegistry {
        self.executor.registry()
    }

    /// How many trajectories are to run at a time.
    pub(crate) fn concurrency(&self) -> usize {
        self.concurrency
    }

    /// Begins a trajectory as its spec asks; where it cannot be so, its calls say it.
    ///
    /// # Errors
    /// The executor did not take it: none of its calls is to run.
    pub(crate) fn begin(&self, trajectory_id: &str, spec: &TrajectorySpec) -> Result<(), String> {
        self.executor.submit_begin(trajectory_id, spec.clone()).map_err(|error| chain(&error))
    }

    /// The begins so far, by how they ended.
    pub(crate) fn begins(&self) -> OutcomeCounts {
        self.executor.stats().begins
    }

    /// Freezes the files of a trajectory none of whose calls runs, and has it go on above them.
    /// What it keeps running ends. Blocks for some milliseconds.
    ///
    /// # Errors
    /// No snapshot can be made, in words for people.
    pub(crate) fn snapshot(&self, trajectory_id: &str) -> Result<SnapshotId, String> {
        let options = SnapshotOptions::default().with_end_processes(true);
        let made = self.executor.snapshot(trajectory_id, &options);
        made.map(|made| made.id).map_err(|error| chain(&error))
    }

    /// Lets go of a snapshot.
    pub(crate) fn drop_snapshot(&self, id: &SnapshotId) {
        if let Err(error) = self.executor.drop_snapshot(id) {
            log::warn!("a snapshot is kept until the end: {}", chain(&error));
        }
    }

    /// Hands a call over; its completion comes under `tag`.
    ///
    /// # Errors
    /// The executor refused the call; this is the call's result.
    pub(crate) fn submit(
        &self,
        tag: u64,
        trajectory_id: &str,
        call: ToolCall,
    ) -> Result<(), Box<ToolResult>> {
        let submitted = self.executor.submit_to(trajectory_id, call, self.queue.tagged(tag));
        submitted.map(drop).map_err(|error| {
            let mut result = ToolResult::failure(Outcome::NeverRan, error.to_string());
            result.uniq_id = Some(error.into_call().uniq_id);
            Box::new(result)
        })
    }

    /// What makes the steps that put files, which are looked for in this directory.
    pub(super) fn transfers(&self, directory: PathBuf) -> Transfers {
        Transfers::new(self.executor.clone(), directory)
    }

    /// The next completion; blocks for `timeout` at most.
    pub(crate) fn next(&self, timeout: Duration) -> Option<Completion> {
        self.queue.next_timeout(timeout)
    }

    /// Copies the trajectory's workspace to `target`, a directory that is made and may not exist: a
    /// mixture with the files of an earlier run would be the workspace of neither. Blocks while it
    /// copies. To be called between the trajectory's last completion and its release.
    ///
    /// # Errors
    /// Those of reading and writing files.
    pub(crate) fn keep_workspace(&self, trajectory_id: &str, target: &Path) -> io::Result<()> {
        // A trajectory without a slot never ran a command, so there is nothing to keep.
        let Some(slot) = self.executor.slot_of(trajectory_id) else { return Ok(()) };
        std::fs::create_dir(target)?;
        if let Some(backend) = &self.embedded {
            return backend.save_workspace(&slot, target);
        }
        let everything =
            ArchiveArtifacts::default().with_max_bytes(u64::MAX).with_max_entries(usize::MAX);
        let mut archive = tempfile::tempfile()?;
        self.executor
            .copy_archive(trajectory_id, &everything, &mut archive)
            .map_err(|error| io::Error::other(chain(&error)))?;
        archive.rewind()?;
        // Stays beneath the target, whatever names the archive has.
        tar::Archive::new(flate2::read::GzDecoder::new(archive)).unpack(target)
    }

    /// Gives the trajectory's slot back, to be emptied. Does not block.
    pub(crate) fn release(&self, trajectory_id: &str) {
        self.executor.submit_release(trajectory_id);
    }

    /// Ends the trajectory's running call early; its completion still comes. Does not block.
    pub(crate) fn cancel(&self, trajectory_id: &str) {
        self.executor.cancel_trajectory(trajectory_id);
    }

    /// Ends everything. Blocks, for a bounded time. `false` if a thread would not end.
    pub(crate) fn close(self) -> bool {
        self.executor.close().all_threads_ended
    }
}

/// A file name for a trajectory id. Distinct ids have distinct names; one that would be too long
/// is cut and ends in a hash of the whole.
pub(crate) fn file_name_of(trajectory_id: &str) -> String {
    let mut name = String::with_capacity(trajectory_id.len());
    for (place, byte) in trajectory_id.bytes().enumerate() {
        match byte {
            // A name of dots would be a directory that exists; one that starts with a dot is
            // hidden.
            b'.' if place == 0 => name.push_str("%2E"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' => name.push(byte.into()),
            _ => name.push_str(&format!("%{byte:02X}")),
        }
    }
    if name.len() > MAX_FILE_NAME {
        name.truncate(MAX_FILE_NAME);
        // `%%` occurs in no name that was not cut.
        name.push_str(&format!("%%{:016x}", fnv1a(trajectory_id.as_bytes())));
    }
    name
}

/// FNV-1a: the same in every run and every version, unlike the standard library's hashes.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trajectory_id_becomes_a_harmless_file_name() {
        for (id, name) in [
            ("django__12345-a.b", "django__12345-a.b"),
            ("t#2", "t%232"),
            ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
            (".", "%2E"),
            ("..", "%2E."),
            ("\u{e9}", "%C3%A9"),
            ("a\0b", "a%00b"),
        ] {
            assert_eq!(file_name_of(id), name);
        }
    }

    #[test]
    fn long_ids_that_share_their_beginning_have_distinct_names_that_fit() {
        let (a, b) = ("x".repeat(500) + "a", "x".repeat(500) + "b");
        assert_ne!(file_name_of(&a), file_name_of(&b));
        assert!(file_name_of(&a).len() <= 255);
    }
}
