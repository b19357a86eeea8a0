//! Artifacts: read in the order of the trajectory's calls, by a lease that comes back whatever
//! happens. And containers that come and go, as far as a caller sees them.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use parking_lot::Mutex;
use tool_executor::artifact::{
    ArchiveArtifacts, ArchiveSummary, Artifact, ArtifactError, ArtifactList, ListArtifacts,
    MAX_ARTIFACT_BYTES, MAX_ARTIFACT_ENTRIES, ReadArtifact,
};
use tool_executor::backend::{
    Artifacts, Backend, Container, ContainerChange, Execution, ResetReply, SlotRef, Watcher,
};
use tool_executor::config::{ExecutorConfig, LostWorkspace};
use tool_executor::{BackendError, Destination, Interrupt, Outcome, ToolExecutor, ToolResult};

use crate::fakes::{Echoes, HandsOver, PATIENCE, bash, next, one_container};

/// What the workspace of every slot of a [`Files`] holds: one file.
fn content() -> Vec<u8> {
    (0..2_500_000u32).map(|n| (n % 251) as u8).collect()
}

/// Answers calls at once, and has artifacts. A reader of `held` says so and waits for the test;
/// one of `panics` panics.
struct Files {
    content: Vec<u8>,
    reading: Sender<Sender<()>>,
    /// How much each read asked for.
    asked: Mutex<Vec<u64>>,
    watcher: Mutex<Option<Watcher>>,
}

fn files() -> (Arc<Files>, Receiver<Sender<()>>) {
    let (reading, told) = unbounded();
    let (asked, watcher) = (Mutex::default(), Mutex::default());
    (Arc::new(Files { content: content(), reading, asked, watcher }), told)
}

impl Backend for Files {
    fn start(&self, _interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
        Ok(one_container(1))
    }

    fn execute(&self, addr: &str, batch: Vec<Execution>) {
        Echoes(1).execute(addr, batch);
    }

    fn reset(&self, _slot: &SlotRef, reply: ResetReply) {
        reply.send(Ok(()));
    }

    fn watch(&self, watcher: Watcher) {
        *self.watcher.lock() = Some(watcher);
    }

    fn artifacts(&self) -> Option<&dyn Artifacts> {
        Some(self)
    }
}

impl Artifacts for Files {
    fn read(&self, _slot: &SlotRef, request: &ReadArtifact) -> Result<Artifact, ArtifactError> {
        if request.path == "panics" {
            panic!("expected by this test");
        }
        if request.path == "held" {
            let (go_on, wait) = bounded(1);
            self.reading.send(go_on).unwrap();
            let _ = wait.recv_timeout(PATIENCE);
        }
        self.asked.lock().push(request.max_bytes);
        let size = self.content.len();
        let from = size.min(request.offset as usize);
        let to = size.min(from + request.max_bytes as usize);
        let content = self.content[from..to].to_vec();
        Ok(Artifact::new(&request.path, request.offset, content)
            .with_file_size(size as u64)
            .with_truncated(to < size))
    }

    fn list(
        &self,
        _slot: &SlotRef,
        request: &ListArtifacts,
    ) -> Result<ArtifactList, ArtifactError> {
        self.asked.lock().push(request.max_entries as u64);
        Ok(ArtifactList::default())
    }

    fn archive(
        &self,
        _slot: &SlotRef,
        request: &ArchiveArtifacts,
        into: &mut (dyn Write + Send),
    ) -> Result<ArchiveSummary, ArtifactError> {
        self.asked.lock().push(request.max_bytes);
        into.write_all(b"tar").map_err(|error| ArtifactError::Io("writing".to_owned(), error))?;
        Ok(ArchiveSummary::new(3, 0, false))
    }
}

#[test]
fn a_reader_comes_after_earlier_calls_and_before_later_ones_and_the_release() {
    let (backend, told) = files();
    let executor = ToolExecutor::builder().shared_backend(backend).start().unwrap();
    assert!(executor.execute("t", bash("x")).success);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| executor.read_artifact("t", &ReadArtifact::new("held")));
        let go_on = told.recv_timeout(PATIENCE).unwrap();
        let later = executor.submit("t", bash("later")).unwrap();
        let release = scope.spawn(|| executor.release("t"));
        // The batcher has seen the call by now, and has not sent it.
        let stats = executor.stats();
        assert_eq!((stats.queue_size, stats.running), (1, 0));
        assert!(executor.slot_of("t").is_some());
        go_on.send(()).unwrap();
        assert_eq!(reader.join().unwrap().unwrap().file_size, 2_500_000);
        assert!(later.wait_timeout(PATIENCE).unwrap().success);
        release.join().unwrap().unwrap();
    });
    let none = executor.read_artifact("t", &ReadArtifact::new("x")).unwrap_err();
    assert!(matches!(none, ArtifactError::NoSlot), "{none}");
}

#[test]
fn a_reader_waits_for_the_call_before_it_and_gives_up_after_the_queue_time() {
    let (backend, told) = HandsOver::new(1);
    // Long enough for the calls that are to run, on a machine that is busy.
    let short = Duration::from_secs(2);
    let executor = ToolExecutor::builder()
        .backend(backend)
        .config(ExecutorConfig::default().with_queue_timeout(short))
        .start()
        .unwrap();
    let call = executor.submit("t", bash("x")).unwrap();
    let execution = next(&told).execution();
    let gave_up = executor.read_artifact("t", &ReadArtifact::new("x")).unwrap_err();
    let ArtifactError::Io(_, cause) = gave_up else { panic!("{gave_up}") };
    assert_eq!(cause.kind(), std::io::ErrorKind::TimedOut);
    execution.reply.send(ToolResult::ok(""));
    assert!(call.wait_timeout(PATIENCE).unwrap().success);
    // The slot that was not wanted any more came back.
    let after = executor.submit("t", bash("y")).unwrap();
    next(&told).execution().reply.send(ToolResult::ok(""));
    assert!(after.wait_timeout(PATIENCE).unwrap().success);
    let none = executor.read_artifact("t", &ReadArtifact::new("x")).unwrap_err();
    assert!(matches!(none, ArtifactError::Unsupported), "{none}");
}

#[test]
fn a_backend_that_panics_while_it_reads_is_an_error_and_the_slot_comes_back() {
    let (backend, _told) = files();
    let executor = ToolExecutor::builder().shared_backend(backend).start().unwrap();
    executor.execute("t", bash("x"));
    let error = executor.read_artifact("t", &ReadArtifact::new("panics")).unwrap_err();
    assert!(error.to_string().contains("panicked"), "{error}");
    assert!(executor.execute("t", bash("x")).success);
}

#[test]
fn a_file_is_copied_whole_in_parts_of_a_mebibyte_and_limits_are_clamped() {
    let (backend, _told) = files();
    let executor = ToolExecutor::builder().shared_backend(backend.clone()).start().unwrap();
    executor.execute("t", bash("x"));
    let mut copy = Vec::new();
    assert_eq!(executor.copy_artifact("t", "file", &mut copy).unwrap(), 2_500_000);
    assert!(copy == content());
    assert_eq!(std::mem::take(&mut *backend.asked.lock()), [1 << 20; 3]);

    let all = ReadArtifact::new("x").with_max_bytes(u64::MAX);
    executor.read_artifact("t", &all).unwrap();
    let list = ListArtifacts::default().with_max_entries(usize::MAX);
    executor.list_artifacts("t", &list).unwrap();
    let archive = ArchiveArtifacts::default().with_max_bytes(u64::MAX);
    assert_eq!(executor.archive_artifacts("t", &archive).unwrap().0, b"tar");
    executor.copy_archive("t", &archive, &mut Vec::new()).unwrap();
    let clamped = [MAX_ARTIFACT_BYTES, MAX_ARTIFACT_ENTRIES as u64, MAX_ARTIFACT_BYTES, u64::MAX];
    assert_eq!(*backend.asked.lock(), clamped);
}

#[test]
fn closing_waits_for_a_reader_and_then_there_are_no_artifacts() {
    let (backend, told) = files();
    let executor = ToolExecutor::builder().shared_backend(backend).start().unwrap();
    executor.execute("t", bash("x"));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| executor.read_artifact("t", &ReadArtifact::new("held")));
        let go_on = told.recv_timeout(PATIENCE).unwrap();
        let closing = scope.spawn(|| executor.close());
        while executor.try_submit("late", bash("x")).is_ok() {}
        assert!(!closing.is_finished());
        go_on.send(()).unwrap();
        assert!(reader.join().unwrap().is_ok());
        assert!(closing.join().unwrap().all_threads_ended);
    });
    let closed = executor.read_artifact("t", &ReadArtifact::new("x")).unwrap_err();
    assert!(matches!(closed, ArtifactError::Closed), "{closed}");
}

#[test]
fn closing_does_not_wait_for_a_reader_beyond_its_deadline() {
    let (backend, told) = files();
    let executor = ToolExecutor::builder().shared_backend(backend).start().unwrap();
    executor.execute("t", bash("x"));
    std::thread::scope(|scope| {
        scope.spawn(|| executor.read_artifact("t", &ReadArtifact::new("held")));
        let go_on = told.recv_timeout(PATIENCE).unwrap();
        assert!(executor.close_within(Duration::ZERO).all_threads_ended);
        drop(go_on);
    });
}

#[test]
fn what_is_read_while_its_container_begins_anew_is_thrown_away() {
    let (backend, told) = files();
    let executor = ToolExecutor::builder()
        .shared_backend(backend.clone())
        .config(ExecutorConfig::default().with_on_lost_workspace(LostWorkspace::StartEmpty))
        .start()
        .unwrap();
    executor.execute("t", bash("x"));
    let watcher = backend.watcher.lock().clone().unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| executor.read_artifact("t", &ReadArtifact::new("held")));
        let go_on = told.recv_timeout(PATIENCE).unwrap();
        watcher.notify("fake", ContainerChange::Restarted);
        assert!(executor.slot_of("t").is_none());
        go_on.send(()).unwrap();
        let error = reader.join().unwrap().unwrap_err();
        assert!(matches!(error, ArtifactError::SandboxLost(_)), "{error}");
    });
    let error = executor.list_artifacts("t", &ListArtifacts::default()).unwrap_err();
    assert!(matches!(error, ArtifactError::SandboxLost(_)), "{error}");
    assert!(executor.execute("t", bash("x")).success, "in an empty workspace");
    assert!(executor.list_artifacts("t", &ListArtifacts::default()).is_ok());
}

#[test]
fn by_default_a_trajectory_whose_workspace_was_lost_is_refused_until_it_is_released() {
    let (backend, _told) = files();
    let executor = ToolExecutor::builder().shared_backend(backend.clone()).start().unwrap();
    executor.execute("t", bash("x"));
    let watcher = backend.watcher.lock().clone().unwrap();
    watcher.notify("fake", ContainerChange::Restarted);
    // A container that there is not is nobody's.
    watcher.notify("elsewhere", ContainerChange::Lost);
    let refused = executor.execute("t", bash("x"));
    assert_eq!((refused.outcome, refused.may_have_executed), (Outcome::SandboxLost, false));
    executor.release_keeping_files("t").unwrap();
    assert!(executor.execute("t", bash("x")).success);
}

#[test]
fn a_handle_cancels_its_call_and_tells_when_it_has_ended() {
    let (backend, told) = HandsOver::new(1);
    let executor = ToolExecutor::builder().backend(backend).start().unwrap();
    let running = executor.submit("t", bash("running")).unwrap();
    let execution = next(&told).execution();
    let queue = executor.completion_queue(1);
    let queued = executor.try_submit_to("t", bash("queued"), queue.tagged(7)).unwrap();
    let (tx, rx) = unbounded();
    let then = executor
        .try_submit_to("t", bash("then"), Destination::callback(move |done| tx.send(done).unwrap()))
        .unwrap();
    assert!(!queued.is_done() && !then.is_done());
    queued.clone().cancel();
    then.cancel();
    assert_eq!(queue.next_timeout(PATIENCE).unwrap().result.outcome, Outcome::Cancelled);
    assert_eq!(rx.recv_timeout(PATIENCE).unwrap().result.outcome, Outcome::Cancelled);
    assert!(queued.is_done() && then.is_done());
    execution.reply.send(ToolResult::ok(""));
    assert!(running.wait_timeout(PATIENCE).unwrap().success);
    let stats = executor.stats();
    assert_eq!(stats.tools["bash"].get(Outcome::Cancelled), 2);
    assert_eq!((stats.lanes.len(), stats.lanes[0].held, stats.containers.up), (1, 1, 1));
}
