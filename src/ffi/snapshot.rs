//! Snapshots, forks and grades.

use std::ffi::c_char;

use serde::Serialize;

use super::artifact::request;
use super::executor::te_executor;
use super::handle::hold;
use super::status::te_status::TE_INVALID_JSON;
use super::status::{Fault, guard, te_status};
use super::text::{Out, te_buffer, text};
use crate::grade::GradeSpec;
use crate::snapshot::{ForkOptions, ForkRequest, SnapshotId, SnapshotOptions};

/// What is given, as JSON.
fn put(out: &Out<te_buffer>, value: &impl Serialize) -> Result<(), Fault> {
    let value = serde_json::to_value(value).map_err(|error| Fault::of(TE_INVALID_JSON, &error))?;
    out.json(&value);
    Ok(())
}

/// Keeps the files of a trajectory as they are, for others to begin from, after the trajectory's
/// earlier calls and before its later ones. Blocks for its turn and some milliseconds. Nothing is
/// copied, and the trajectory goes on with its files. What is in memory – /dev/shm, and in a
/// machine on the host's files what is beside the workspace, /tmp and the home directory – is not
/// kept, and gone.
///
/// `options` is a JSON object: {"end_processes": false}; it may be left out (a length of 0). A
/// trajectory that keeps shells, terminals or background processes is TE_KEEPS_PROCESSES unless it
/// is true.
///
/// On success `*snapshot` is a JSON object {"id", "container", "parent", "age_s", "layers",
/// "bytes", "ended_processes"}, the caller's, to be freed by te_buffer_free(). The snapshot is kept
/// until te_snapshot_drop() or the executor's end. "bytes" is null: te_snapshots() counts it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_snapshot(
    executor: *const te_executor,
    trajectory: *const c_char,
    trajectory_len: usize,
    options: *const c_char,
    options_len: usize,
    snapshot: *mut te_buffer,
) -> te_status {
    guard(|| {
        let out = Out::buffer(snapshot, "snapshot")?;
        let trajectory = text(trajectory, trajectory_len, "trajectory")?;
        let options: SnapshotOptions = request(options, options_len)?;
        let executor = hold(executor)?;
        put(&out, &executor.executor.snapshot(trajectory, &options)?)
    })
}

/// Gives a snapshot up, by its "id". What began from it goes on. TE_NOT_FOUND if there is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_snapshot_drop(
    executor: *const te_executor,
    id: *const c_char,
    id_len: usize,
) -> te_status {
    guard(|| {
        let id = SnapshotId::new(text(id, id_len, "id")?);
        Ok(hold(executor)?.executor.drop_snapshot(&id)?)
    })
}

/// The snapshots that are kept, the oldest first: a JSON array of what te_snapshot() gives.
///
/// On success `*snapshots` is the caller's, to be freed by te_buffer_free().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_snapshots(
    executor: *const te_executor,
    snapshots: *mut te_buffer,
) -> te_status {
    guard(|| {
        let out = Out::buffer(snapshots, "snapshots")?;
        put(&out, &hold(executor)?.executor.snapshots()?)
    })
}

/// Begins trajectories with the files that another has now, and blocks until each of them has its
/// slot or cannot have one; in order as te_snapshot().
///
/// `request` is a JSON object: {"to": ["id", ...], "end_processes": false, "spec": {}}; only "to"
/// is needed. "spec" is what else each begins with, without "image" and "snapshot".
///
/// On success `*forks` is a JSON array with an object for each of "to", in their order:
/// {"trajectory_id", "begun", "outcome", "error"}, where "begun" is whether it has begun, "error"
/// says why not, and "outcome" how its calls end then, if they do. It is the caller's, to be freed
/// by te_buffer_free(). Any other status: nothing has begun.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_fork(
    executor: *const te_executor,
    trajectory: *const c_char,
    trajectory_len: usize,
    request: *const c_char,
    request_len: usize,
    forks: *mut te_buffer,
) -> te_status {
    guard(|| {
        let out = Out::buffer(forks, "forks")?;
        let trajectory = text(trajectory, trajectory_len, "trajectory")?;
        let ForkRequest { to, end_processes, spec } = self::request(request, request_len)?;
        let executor = hold(executor)?;
        let to: Vec<_> = to.iter().map(String::as_str).collect();
        let options = ForkOptions { end_processes, spec };
        put(&out, &executor.executor.fork(trajectory, &to, &options)?)
    })
}

/// Runs a command that judges what a trajectory has left, in the trajectory's slot, in a machine in
/// which nothing of the trajectory runs; in order as te_snapshot(). Blocks until it has ended. The
/// shells, terminals and background processes of the trajectory are ended for that; its files are
/// as they were afterwards. What a grader has to heed is in docs/grading.md.
///
/// `spec` is a JSON object:
///
/// ```text
///     {"command": "exec python3 -I grader.py", "files": [{"path": "grader.py", "content": "...",
///      "base64": "...", "mode": "0755"}, ...], "files_at": "/grade", "stdin": "...",
///      "env": {"NAME": "value"}, "user": null, "judged_paths": ["/app"], "timeout_s": 60}
/// ```
///
/// of which only "command" is needed. A command that fails is TE_OK too: on success `*grade` is a
/// JSON object {"result", "stdout", "stderr", "verdict", "ended_processes"}, where "result" is that
/// of a call (te_result_json()), and "verdict" the text that the command wrote to the descriptor
/// whose number is in TOOL_EXECUTOR_VERDICT_FD, or null. It is the caller's, to be freed by
/// te_buffer_free().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_grade(
    executor: *const te_executor,
    trajectory: *const c_char,
    trajectory_len: usize,
    spec: *const c_char,
    spec_len: usize,
    grade: *mut te_buffer,
) -> te_status {
    guard(|| {
        let out = Out::buffer(grade, "grade")?;
        let trajectory = text(trajectory, trajectory_len, "trajectory")?;
        let spec: GradeSpec = request(spec, spec_len)?;
        let executor = hold(executor)?;
        put(&out, &executor.executor.grade(trajectory, &spec)?)
    })
}
