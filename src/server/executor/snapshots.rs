//! The routes of snapshots, forks and grades: what their bodies are, and their answers.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::answer::{Lent, to_json};
use super::validate::Problems;
use crate::executor::ToolExecutor;
use crate::grade::GradeSpec;
use crate::server::http::StatusCode;
use crate::snapshot::{ForkOptions, SnapshotError, SnapshotId, SnapshotOptions};
use crate::spec::TrajectorySpec;

/// The body of `/snapshot`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SnapshotRequest {
    pub(super) trajectory_id: String,
    #[serde(default)]
    end_processes: bool,
}

/// The body of `/snapshots/drop`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DropRequest {
    id: SnapshotId,
}

/// The body of `/fork`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ForkBody {
    pub(super) trajectory_id: String,
    to: Vec<String>,
    #[serde(default)]
    end_processes: bool,
    #[serde(default)]
    spec: TrajectorySpec,
}

/// The body of `/grade`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GradeRequest {
    pub(super) trajectory_id: String,
    spec: GradeSpec,
}

/// A status and a body.
pub(super) type Answered = (StatusCode, Vec<u8>);

/// A body as one of these.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read<T: DeserializeOwned>(body: Value) -> Result<T, Problems> {
    serde_json::from_value(body).map_err(|error| {
        vec![json!({"type": "value_error", "loc": ["body"], "msg": error.to_string()})]
    })
}

/// Makes a snapshot.
pub(super) fn snapshot(executor: &ToolExecutor, lent: Lent, request: &SnapshotRequest) -> Answered {
    let options = SnapshotOptions { end_processes: request.end_processes };
    let made = lent.map_err(SnapshotError::from);
    answered(made.and_then(|lease| executor.snapshot_leased(&lease, &options)))
}

/// Gives one up.
pub(super) fn drop_snapshot(executor: &ToolExecutor, request: &DropRequest) -> Answered {
    answered(executor.drop_snapshot(&request.id).map(|()| json!({"status": "ok"})))
}

/// Those that are kept.
pub(super) fn list(executor: &ToolExecutor) -> Answered {
    answered(executor.snapshots().map(|kept| json!({"snapshots": kept})))
}

/// Forks a trajectory.
pub(super) fn fork(executor: &ToolExecutor, lent: Lent, request: &ForkBody) -> Answered {
    let to: Vec<_> = request.to.iter().map(String::as_str).collect();
    let (end_processes, spec) = (request.end_processes, request.spec.clone());
    let options = ForkOptions { end_processes, spec };
    let forks = crate::executor::check_fork(&options)
        .and_then(|()| executor.fork_leased(lent?, &to, &options));
    answered(forks.map(|forks| json!({"forks": forks})))
}

/// Grades one.
pub(super) fn grade(executor: &ToolExecutor, lent: Lent, request: &GradeRequest) -> Answered {
    let spec = &request.spec;
    let checked = spec.check().map_err(SnapshotError::Invalid);
    answered(checked.and_then(|()| executor.grade_leased(&lent?, spec)))
}

fn answered(done: Result<impl serde::Serialize, SnapshotError>) -> Answered {
    match done {
        Ok(done) => (StatusCode::OK, to_json(&done)),
        Err(error) => {
            let (status, kind) = status_of(&error);
            (status, to_json(&json!({"detail": error.to_string(), "error": kind})))
        }
    }
}

/// The status of an answer, and a word for programs.
fn status_of(error: &SnapshotError) -> (StatusCode, &'static str) {
    match error {
        SnapshotError::NoSlot => (StatusCode::CONFLICT, "no_slot"),
        SnapshotError::KeepsProcesses(_) => (StatusCode::CONFLICT, "keeps_processes"),
        SnapshotError::TooMany(_) | SnapshotError::TooDeep(_) => {
            (StatusCode::CONFLICT, "too_many_snapshots")
        }
        SnapshotError::NotFound(_) => (StatusCode::NOT_FOUND, "not_found"),
        SnapshotError::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
        SnapshotError::SandboxLost(_) => (StatusCode::CONFLICT, "sandbox_lost"),
        SnapshotError::Closed => (StatusCode::SERVICE_UNAVAILABLE, "closed"),
        SnapshotError::Unsupported(_) => (StatusCode::NOT_IMPLEMENTED, "unsupported"),
        SnapshotError::Io(..) => (StatusCode::INTERNAL_SERVER_ERROR, "failed"),
    }
}
