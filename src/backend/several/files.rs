//! Files, snapshots and grades: each with the backend that the slot is of.

use std::io::{Read, Write};

use super::{Member, Several};
use crate::artifact::{
    ArchiveArtifacts, ArchiveSummary, Artifact, ArtifactError, ArtifactList, ListArtifacts,
    PutFiles, PutSummary, ReadArtifact,
};
use crate::backend::{Artifacts, SlotRef, Snapshots};
use crate::grade::{GradeResult, GradeSpec};
use crate::snapshot::{SnapshotError, SnapshotInfo, SnapshotOptions};
use crate::spec::SnapshotId;

impl Several {
    /// What reads a slot's files, and what the slot is there.
    fn files_of(&self, slot: &SlotRef) -> Result<(&dyn Artifacts, SlotRef), ArtifactError> {
        let (member, slot) = self.of(slot).ok_or(ArtifactError::NoSlot)?;
        Ok((member.backend.artifacts().ok_or(ArtifactError::Unsupported)?, slot))
    }

    /// What keeps snapshots of a slot, the name of its backend, and what the slot is there.
    fn snapshots_of(
        &self,
        slot: &SlotRef,
    ) -> Result<(&dyn Snapshots, &Member, SlotRef), SnapshotError> {
        let (member, slot) = self.of(slot).ok_or_else(SnapshotError::unsupported)?;
        let snapshots = member.backend.snapshots().ok_or_else(SnapshotError::unsupported)?;
        Ok((snapshots, member, slot))
    }
}

impl Artifacts for Several {
    fn read(&self, slot: &SlotRef, request: &ReadArtifact) -> Result<Artifact, ArtifactError> {
        let (files, slot) = self.files_of(slot)?;
        files.read(&slot, request)
    }

    fn list(&self, slot: &SlotRef, request: &ListArtifacts) -> Result<ArtifactList, ArtifactError> {
        let (files, slot) = self.files_of(slot)?;
        files.list(&slot, request)
    }

    fn archive(
        &self,
        slot: &SlotRef,
        request: &ArchiveArtifacts,
        into: &mut (dyn Write + Send),
    ) -> Result<ArchiveSummary, ArtifactError> {
        let (files, slot) = self.files_of(slot)?;
        files.archive(&slot, request, into)
    }

    fn copy(
        &self,
        slot: &SlotRef,
        path: &str,
        into: &mut (dyn Write + Send),
    ) -> Result<u64, ArtifactError> {
        let (files, slot) = self.files_of(slot)?;
        files.copy(&slot, path, into)
    }

    fn put(
        &self,
        slot: &SlotRef,
        request: &PutFiles,
        from: &mut (dyn Read + Send),
    ) -> Result<PutSummary, ArtifactError> {
        let (files, slot) = self.files_of(slot)?;
        files.put(&slot, request, from)
    }
}

impl Snapshots for Several {
    fn snapshot(
        &self,
        slot: &SlotRef,
        options: &SnapshotOptions,
    ) -> Result<SnapshotInfo, SnapshotError> {
        let (snapshots, member, slot) = self.snapshots_of(slot)?;
        Ok(outside(member, snapshots.snapshot(&slot, options)?))
    }

    fn grade(&self, slot: &SlotRef, spec: &GradeSpec) -> Result<GradeResult, SnapshotError> {
        let (snapshots, _, slot) = self.snapshots_of(slot)?;
        snapshots.grade(&slot, spec)
    }

    fn drop_snapshot(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        for snapshots in self.members.iter().filter_map(|member| member.backend.snapshots()) {
            match snapshots.drop_snapshot(id) {
                Err(SnapshotError::NotFound(_)) => {}
                dropped => return dropped,
            }
        }
        Err(SnapshotError::NotFound(id.clone()))
    }

    /// The oldest first, of all of them.
    fn list(&self) -> Result<Vec<SnapshotInfo>, SnapshotError> {
        let mut all = Vec::new();
        for member in &self.members {
            if let Some(snapshots) = member.backend.snapshots() {
                all.extend(snapshots.list()?.into_iter().map(|info| outside(member, info)));
            }
        }
        all.sort_by_key(|info| std::cmp::Reverse(info.age));
        Ok(all)
    }
}

fn outside(member: &Member, info: SnapshotInfo) -> SnapshotInfo {
    SnapshotInfo { container: member.outside(&info.container).into(), ..info }
}
