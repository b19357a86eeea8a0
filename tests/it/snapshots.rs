//! Snapshots and grades: made in the order of the trajectory's calls, under a lease that comes back
//! whatever happens.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use parking_lot::Mutex;
use tool_executor::backend::{
    Backend, Container, ContainerChange, Execution, ResetReply, SlotRef, Snapshots, Watcher,
};
use tool_executor::grade::{GradeResult, GradeSpec};
use tool_executor::snapshot::{SnapshotError, SnapshotId, SnapshotInfo, SnapshotOptions};
use tool_executor::{BackendError, Interrupt, ToolExecutor, ToolResult};

use crate::fakes::{Echoes, PATIENCE, bash, one_container};

/// Answers calls at once, and keeps snapshots by their names. A grader of `held` says so and waits
/// for the test; one of `panics` panics.
struct Keeps {
    kept: Mutex<Vec<SnapshotInfo>>,
    grading: Sender<Sender<()>>,
    watcher: Mutex<Option<Watcher>>,
}

fn keeps() -> (Arc<Keeps>, Receiver<Sender<()>>) {
    let (grading, told) = unbounded();
    let (kept, watcher) = (Mutex::default(), Mutex::default());
    (Arc::new(Keeps { kept, grading, watcher }), told)
}

impl Backend for Keeps {
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

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }
}

impl Snapshots for Keeps {
    fn snapshot(
        &self,
        slot: &SlotRef,
        options: &SnapshotOptions,
    ) -> Result<SnapshotInfo, SnapshotError> {
        if !options.end_processes {
            return Err(SnapshotError::KeepsProcesses(vec!["bash".to_owned(), "tmux".to_owned()]));
        }
        let mut kept = self.kept.lock();
        let id = SnapshotId::new(format!("s-{}", kept.len()));
        let info = SnapshotInfo::new(id, slot.addr.clone());
        kept.push(info.clone());
        Ok(info)
    }

    fn grade(&self, _slot: &SlotRef, spec: &GradeSpec) -> Result<GradeResult, SnapshotError> {
        if spec.command == "panics" {
            panic!("expected by this test");
        }
        if spec.command == "held" {
            let (go_on, wait) = bounded(1);
            self.grading.send(go_on).unwrap();
            let _ = wait.recv_timeout(PATIENCE);
        }
        let result = ToolResult::ok(&*spec.command);
        Ok(GradeResult::new(result).with_verdict(r#"{"score": 0.5}"#.to_owned()))
    }

    fn drop_snapshot(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        let mut kept = self.kept.lock();
        let place = kept.iter().position(|info| info.id == *id);
        kept.remove(place.ok_or_else(|| SnapshotError::NotFound(id.clone()))?);
        Ok(())
    }

    fn list(&self) -> Result<Vec<SnapshotInfo>, SnapshotError> {
        Ok(self.kept.lock().clone())
    }
}

fn start(backend: Arc<Keeps>) -> ToolExecutor {
    ToolExecutor::builder().shared_backend(backend).start().unwrap()
}

#[test]
fn a_grade_comes_after_earlier_calls_and_before_later_ones_and_the_release() {
    let (backend, told) = keeps();
    let executor = start(backend);
    assert!(executor.execute("t", bash("x")).success);
    std::thread::scope(|scope| {
        let grade = scope.spawn(|| executor.grade("t", &GradeSpec::new("held")));
        let go_on = told.recv_timeout(PATIENCE).unwrap();
        let later = executor.submit("t", bash("later")).unwrap();
        let release = scope.spawn(|| executor.release("t"));
        // The batcher has seen the call by now, and has not sent it.
        let stats = executor.stats();
        assert_eq!((stats.queue_size, stats.running), (1, 0));
        go_on.send(()).unwrap();
        let grade = grade.join().unwrap().unwrap();
        assert_eq!(grade.verdict_json().unwrap()["score"], 0.5);
        assert!(later.wait_timeout(PATIENCE).unwrap().success);
        release.join().unwrap().unwrap();
    });
    let none = executor.grade("t", &GradeSpec::new("x")).unwrap_err();
    assert!(matches!(none, SnapshotError::NoSlot), "{none}");
}

#[test]
fn a_snapshot_is_kept_until_it_is_dropped_and_what_is_refused_is_told() {
    let (backend, _told) = keeps();
    let executor = start(backend);
    let ends = SnapshotOptions::default().with_end_processes(true);
    let none = executor.snapshot("t", &ends).unwrap_err();
    assert!(matches!(none, SnapshotError::NoSlot), "{none}");
    executor.execute("t", bash("x"));
    let refused = executor.snapshot("t", &SnapshotOptions::default()).unwrap_err();
    assert!(refused.to_string().contains("bash, tmux"), "{refused}");
    let made = executor.snapshot("t", &ends).unwrap();
    assert_eq!(&*made.container, "fake");
    assert_eq!(executor.snapshots().unwrap(), std::slice::from_ref(&made));
    executor.drop_snapshot(&made.id).unwrap();
    let gone = executor.drop_snapshot(&made.id).unwrap_err();
    assert!(matches!(gone, SnapshotError::NotFound(id) if id == made.id));
    for wrong in ["", "a/b", "a b", &"x".repeat(1000)] {
        let error = executor.drop_snapshot(&SnapshotId::new(wrong)).unwrap_err();
        assert!(matches!(error, SnapshotError::Invalid(_)), "{error}");
    }
}

#[test]
fn a_grader_that_makes_no_sense_waits_for_nothing() {
    let (backend, _told) = keeps();
    let spec = GradeSpec::new("true").with_files_at("/usr".to_owned());
    let error = start(backend).grade("never-ran", &spec).unwrap_err();
    assert!(matches!(&error, SnapshotError::Invalid(why) if why.contains("files_at")), "{error}");
}

#[test]
fn a_backend_that_panics_or_has_no_snapshots_or_is_closed_is_an_error_and_the_slot_comes_back() {
    let (backend, _told) = keeps();
    let executor = start(backend);
    executor.execute("t", bash("x"));
    let error = executor.grade("t", &GradeSpec::new("panics")).unwrap_err();
    assert!(error.to_string().contains("panicked"), "{error}");
    assert!(executor.execute("t", bash("x")).success);
    executor.close();
    for error in [
        executor.grade("t", &GradeSpec::new("x")).unwrap_err(),
        executor.snapshot("t", &SnapshotOptions::default()).unwrap_err(),
        executor.snapshots().unwrap_err(),
        executor.drop_snapshot(&SnapshotId::new("s-0")).unwrap_err(),
    ] {
        assert!(matches!(error, SnapshotError::Closed), "{error}");
    }
    let without = ToolExecutor::builder().backend(Echoes(1)).start().unwrap();
    without.execute("t", bash("x"));
    let error = without.snapshot("t", &SnapshotOptions::default()).unwrap_err();
    assert!(matches!(error, SnapshotError::Unsupported(_)), "{error}");
}

#[test]
fn what_is_graded_while_its_container_begins_anew_is_thrown_away() {
    let (backend, told) = keeps();
    let executor = start(backend.clone());
    executor.execute("t", bash("x"));
    std::thread::scope(|scope| {
        let grade = scope.spawn(|| executor.grade("t", &GradeSpec::new("held")));
        let go_on = told.recv_timeout(PATIENCE).unwrap();
        backend.watcher.lock().as_ref().unwrap().notify("fake", ContainerChange::Restarted);
        // The batcher has heard of it by then.
        assert!(executor.slot_of("t").is_none());
        go_on.send(()).unwrap();
        let lost = grade.join().unwrap().unwrap_err();
        assert!(matches!(lost, SnapshotError::SandboxLost(_)), "{lost}");
    });
}
