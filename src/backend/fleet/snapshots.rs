//! Snapshots and grades in the slots of sandbox servers. Only native servers have them.
//!
//! Nothing of it is asked twice: what a server has done when its connection breaks is not known,
//! and the error says so. The snapshots of a session go with it.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::{Connection, FleetBackend, Server};
use crate::artifact::ArtifactError;
use crate::backend::{SlotRef, Snapshots};
use crate::client::{self, Failure};
use crate::grade::{GradeResult, GradeSpec};
use crate::snapshot::{SnapshotError, SnapshotId, SnapshotInfo, SnapshotOptions};
use crate::wire::native::{MAX_LINE, SNAPSHOTS, SnapshotsAsk, SnapshotsLine, SnapshotsRequest};

/// The snapshots that the servers keep for this executor.
#[derive(Default)]
pub(super) struct FleetSnapshots(Mutex<HashMap<SnapshotId, (u64, Instant, SnapshotInfo)>>);

impl FleetSnapshots {
    fn insert(&self, info: &SnapshotInfo) {
        let mut kept = self.0.lock();
        let number = kept.values().map(|(number, ..)| number + 1).max().unwrap_or(0);
        let known = SnapshotInfo { ended_processes: Vec::new(), ..info.clone() };
        kept.insert(info.id.clone(), (number, Instant::now(), known));
    }

    fn remove(&self, id: &SnapshotId) -> Option<Arc<str>> {
        self.0.lock().remove(id).map(|(_, _, info)| info.container)
    }

    /// Of those servers that are still there, the oldest first.
    fn list(&self, is_there: impl Fn(&str) -> bool) -> Vec<SnapshotInfo> {
        let mut kept = self.0.lock();
        kept.retain(|_, (_, _, info)| is_there(&info.container));
        let mut all: Vec<_> = kept.values().collect();
        all.sort_by_key(|(number, ..)| *number);
        let aged = |(_, made, info): &(u64, Instant, SnapshotInfo)| SnapshotInfo {
            age: made.elapsed(),
            ..info.clone()
        };
        all.into_iter().map(aged).collect()
    }
}

impl FleetBackend {
    fn ask_snapshots(
        &self,
        slot: &SlotRef,
        ask: impl FnOnce(u64) -> SnapshotsAsk,
    ) -> Result<SnapshotsLine, SnapshotError> {
        let lost = |text: &str| SnapshotError::SandboxLost(text.to_owned());
        let member = self.members.get(&slot.addr);
        let member = member.ok_or_else(|| lost("there is no such server"))?;
        let Server::Native(server) = &member.server else {
            return Err(SnapshotError::Unsupported(format!(
                "{} is no sandbox server of ours: it has no snapshots",
                slot.addr
            )));
        };
        let leased = server.lease_of(slot.index);
        let (session, epoch) = leased.ok_or_else(|| lost("the slot is the executor's no more"))?;
        member.connection.ask_snapshots(SnapshotsRequest { session, ask: ask(epoch) })
    }
}

impl Snapshots for FleetBackend {
    fn snapshot(
        &self,
        slot: &SlotRef,
        options: &SnapshotOptions,
    ) -> Result<SnapshotInfo, SnapshotError> {
        let (index, options) = (slot.index, options.clone());
        let ask = |epoch| SnapshotsAsk::Snapshot { slot: index, epoch, options };
        match self.ask_snapshots(slot, ask)? {
            SnapshotsLine::Made(info) => {
                // A server does not know what it is called by others.
                let info = SnapshotInfo { container: slot.addr.clone(), ..info };
                self.snapshots.insert(&info);
                Ok(info)
            }
            other => Err(other.into_error()),
        }
    }

    fn grade(&self, slot: &SlotRef, spec: &GradeSpec) -> Result<GradeResult, SnapshotError> {
        let (index, spec) = (slot.index, Box::new(spec.clone()));
        match self.ask_snapshots(slot, |epoch| SnapshotsAsk::Grade { slot: index, epoch, spec })? {
            SnapshotsLine::Graded(result) => Ok(*result),
            other => Err(other.into_error()),
        }
    }

    fn drop_snapshot(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        let gone = || SnapshotError::NotFound(id.clone());
        let addr = self.snapshots.remove(id).ok_or_else(gone)?;
        let member = self.members.get(&addr).ok_or_else(gone)?;
        let Server::Native(server) = &member.server else { return Err(gone()) };
        let ask = SnapshotsAsk::Drop { id: id.clone() };
        let request = SnapshotsRequest { session: server.session(), ask };
        match member.connection.ask_snapshots(request)? {
            SnapshotsLine::Dropped => Ok(()),
            other => Err(other.into_error()),
        }
    }

    fn list(&self) -> Result<Vec<SnapshotInfo>, SnapshotError> {
        Ok(self.snapshots.list(|addr| self.members.get(addr).is_some()))
    }
}

impl Connection {
    /// Asks a native server, and waits for as long as it works.
    fn ask_snapshots(&self, request: SnapshotsRequest) -> Result<SnapshotsLine, SnapshotError> {
        let body = serde_json::to_vec(&request).map_err(|error| garbage(&error.to_string()))?;
        let response = self.post_patiently(SNAPSHOTS, &body, None).map_err(broken)?;
        if !response.status().is_success() {
            let refused = client::read_json::<serde_json::Value>(response);
            return Err(refused.map_or_else(broken, |_| garbage("an empty answer")));
        }
        let body = response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut reader = BufReader::new(body);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = reader.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut line);
            match read {
                Ok(1) if line == b"\n" => {}
                Ok(_) if line.last() == Some(&b'\n') => {
                    return serde_json::from_slice(&line)
                        .map_err(|error| garbage(&error.to_string()));
                }
                Ok(_) => return Err(broken(Failure::Broken("it ends too early".to_owned()))),
                Err(error) => return Err(broken(Failure::Broken(error.to_string()))),
            }
        }
    }
}

/// Nothing came, or a refusal.
fn broken(failure: Failure) -> SnapshotError {
    match failure {
        Failure::Refused(404, _) => SnapshotError::Unsupported(
            "this sandbox server has no snapshots: use the same version of tool-executor on both \
             sides"
                .to_owned(),
        ),
        Failure::Refused(_, text) | Failure::NotSent(text) => {
            SnapshotError::from(ArtifactError::SandboxLost(text))
        }
        other => {
            let text = format!(
                "the connection to the sandbox server broke ({}); whether it was done is not known",
                other.text()
            );
            SnapshotError::Io(text, io::ErrorKind::ConnectionAborted.into())
        }
    }
}

fn garbage(text: &str) -> SnapshotError {
    let error = io::Error::other(text.to_owned());
    SnapshotError::Io(format!("the sandbox server's answer is of no use: {text}"), error)
}
