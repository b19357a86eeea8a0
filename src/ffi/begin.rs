//! Trajectories that begin with a spec.

use std::ffi::c_char;

use super::executor::te_executor;
use super::handle::hold;
use super::result::te_outcome;
use super::status::te_status::{TE_INVALID_JSON, TE_INVALID_SPEC};
use super::status::{Fault, guard, te_status};
use super::text::{Out, object, on_a_stack, text};
use crate::error::BeginError;
use crate::spec::TrajectorySpec;

/// Begins a trajectory with what it asks for beyond the executor's configuration, before its first
/// call, and blocks until it has a slot that is so. The spec is a JSON object; all keys may be left
/// out, others are TE_INVALID_SPEC, with the names of those that there are:
///
/// ```text
///     "image": "...", "snapshot": "...",          (not both)
///     "user": "NAME or NUMBER, perhaps :GROUP", "workdir": "/...", "env": {"NAME": "value", ...},
///     "limits": {"processes": ..., "memory_bytes": ..., "cpu": ..., "open_files": ...,
///                "file_bytes": ..., "workspace_bytes": ..., "files": ...},
///     "network": "none", "proxy" or "host", "allow_hosts": ["*.packages.example:443", ...],
///     "background": "end" or "keep", "max_wall_s": ..., "max_idle_s": ...,
///     "files": [{"path": "...", "content": "..." (or "base64": "..."), "mode": "0644"}, ...]
/// ```
///
/// What they mean is in the Rust documentation, under the same names: `TrajectorySpec`. What the
/// sandbox cannot give, or its operator does not allow, is TE_NOT_BEGUN, before anything ran;
/// `*outcome` is then a te_outcome, as which the trajectory's calls end until it is released, else
/// TE_OUTCOME_OK. It may be NULL. A trajectory that has begun already, or made a call, is
/// TE_ALREADY_BEGUN, and has not changed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_begin(
    executor: *const te_executor,
    trajectory: *const c_char,
    trajectory_len: usize,
    spec: *const c_char,
    spec_len: usize,
    outcome: *mut i32,
) -> te_status {
    guard(|| {
        let outcome = Out::optional(outcome, te_outcome::TE_OUTCOME_OK as i32);
        let trajectory = text(trajectory, trajectory_len, "trajectory")?;
        let spec = read(text(spec, spec_len, "spec")?)?;
        let begun = hold(executor)?.executor.begin(trajectory, spec);
        if let (Err(BeginError::Failed(failure)), Some(outcome)) = (&begun, outcome) {
            outcome.put(te_outcome::from(failure.outcome()) as i32);
        }
        Ok(begun?)
    })
}

/// Like te_begin(), but does not wait for the slot, only for room in the queue. Where it fails
/// later, the trajectory's calls end as te_begin()'s outcome would say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_submit_begin(
    executor: *const te_executor,
    trajectory: *const c_char,
    trajectory_len: usize,
    spec: *const c_char,
    spec_len: usize,
) -> te_status {
    guard(|| {
        let trajectory = text(trajectory, trajectory_len, "trajectory")?;
        let spec = read(text(spec, spec_len, "spec")?)?;
        Ok(hold(executor)?.executor.submit_begin(trajectory, spec)?)
    })
}

fn read(json: &str) -> Result<TrajectorySpec, Fault> {
    on_a_stack(json, || {
        object(json).map_err(|error| {
            let status = if error.is_data() { TE_INVALID_SPEC } else { TE_INVALID_JSON };
            Fault::new(status, format!("the spec: {error}"))
        })
    })
}
