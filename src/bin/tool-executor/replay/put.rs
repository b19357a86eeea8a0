//! A step that puts files of this host into the trajectory's machine, in the place of a call: how
//! it is written, and what it does.
//!
//! A recording may come from others, so it names only what is beneath its own directory: no
//! absolute path, no `..`, and no symlink that leads out.

use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Instant;

use serde::Deserialize;
use serde_json::Value;
use tool_executor::artifact::{ArtifactError, PutFiles, PutSummary};
use tool_executor::{Outcome, ToolExecutor, ToolResult};

use crate::setup::chain;

/// What is to be put, and where.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Put {
    /// A file, or a directory of which all that is in it is put; relative to the recording.
    from: PathBuf,
    /// The file, or the directory, as commands would name it.
    to: String,
    /// Whether the file is an archive (tar, plain or gzip) that is unpacked into the directory.
    #[serde(default)]
    unpack: bool,
    /// A file's permissions, in octal digits. Defaults to those that it has here.
    #[serde(default)]
    mode: Option<String>,
    /// Whose the file, or what is in the archive, is to be.
    #[serde(default)]
    owner: Option<String>,
}

impl Put {
    /// Reads it from its JSON.
    ///
    /// # Errors
    /// What is wrong with it, in words for people.
    pub(super) fn parse(value: &Value) -> Result<Self, String> {
        let put = Self::deserialize(value).map_err(|error| error.to_string())?;
        put.problem().map_or(Ok(put), Err)
    }

    fn problem(&self) -> Option<String> {
        let is_plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        if self.from.as_os_str().is_empty() || !self.from.components().all(is_plain) {
            let from = self.from.display();
            return Some(format!(
                "\"from\" is \"{from}\"; it must be a path beneath the recording's directory, relative \
                 to it and without \"..\""
            ));
        }
        if self.to.is_empty() {
            return Some("\"to\" is empty; it must be a path of the machine".to_owned());
        }
        if self.unpack && self.mode.is_some() {
            return Some("\"mode\" is given, and an archive has the modes of its files".to_owned());
        }
        self.octal_mode().err()
    }

    fn octal_mode(&self) -> Result<Option<u32>, String> {
        let Some(digits) = &self.mode else { return Ok(None) };
        let mode = u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o777);
        match mode.filter(|_| !digits.starts_with('+')) {
            Some(mode) => Ok(Some(mode)),
            None => Err(format!("\"mode\" is {digits:?}; it must be octal, as \"0755\"")),
        }
    }

    /// Does it, for a recording in this directory. Blocks until the trajectory has a slot and all
    /// is there.
    pub(super) fn run(
        &self,
        executor: &ToolExecutor,
        trajectory_id: &str,
        directory: &Path,
    ) -> ToolResult {
        let begun = Instant::now();
        let mut result = match self.put(executor, trajectory_id, directory) {
            Ok(summary) => {
                let PutSummary { path, bytes, entry_count, skipped, .. } = summary;
                let mut result =
                    ToolResult::ok(format!("{entry_count} entries, {bytes} bytes in {path}"));
                let facts = [("entries", entry_count), ("bytes", bytes), ("skipped", skipped)];
                for (name, count) in facts {
                    result.metadata.insert(name.to_owned(), count.into());
                }
                result
            }
            Err(error) => ToolResult::failure(outcome_of(&error), chain(&error)),
        };
        result.timing.exec = begun.elapsed();
        result
    }

    fn put(
        &self,
        executor: &ToolExecutor,
        trajectory_id: &str,
        directory: &Path,
    ) -> Result<PutSummary, ArtifactError> {
        let from = self.find(directory)?;
        let failed = |error| ArtifactError::Io(format!("cannot read {}", from.display()), error);
        let invalid = |text: String| Err(ArtifactError::Invalid(text));
        if from.is_dir() {
            if self.unpack || self.mode.is_some() || self.owner.is_some() {
                return invalid(format!(
                    "{} is a directory; \"unpack\", \"mode\" and \"owner\" are for files",
                    from.display()
                ));
            }
            return executor.put_tree(trajectory_id, &from, &self.to);
        }
        let is_plain = self.mode.is_none() && self.owner.is_none();
        if !self.unpack && is_plain {
            return executor.put_file(trajectory_id, &from, &self.to);
        }
        // Opening what is no file may block for ever.
        if !from.metadata().map_err(failed)?.is_file() {
            return Err(ArtifactError::NotAFile(from.display().to_string()));
        }
        let mut file = File::open(&from).map_err(failed)?;
        let mut request = match self.unpack {
            true => PutFiles::tar(&*self.to),
            false => PutFiles::file(&*self.to)
                .with_mode(self.octal_mode().map_err(ArtifactError::Invalid)?),
        };
        if let Some(owner) = &self.owner {
            request = request.with_owner(owner);
        }
        executor.put(trajectory_id, &request, &mut file)
    }

    /// Where it is on this host.
    fn find(&self, directory: &Path) -> Result<PathBuf, ArtifactError> {
        let path = directory.join(&self.from);
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => ArtifactError::NotFound(path.display().to_string()),
            _ => ArtifactError::Io(format!("cannot read {}", path.display()), error),
        };
        let beneath = directory.canonicalize().map_err(failed)?;
        let found = path.canonicalize().map_err(failed)?;
        match found.starts_with(&beneath) {
            true => Ok(found),
            false => Err(ArtifactError::Refused(format!(
                "{} leads out of the recording's directory",
                path.display()
            ))),
        }
    }
}

/// How a step ends that put nothing, or not all. It says nothing of a model.
fn outcome_of(error: &ArtifactError) -> Outcome {
    match error {
        ArtifactError::DiskFull { .. } => Outcome::DiskFull,
        ArtifactError::Partial { source, .. } => outcome_of(source),
        ArtifactError::SandboxLost(_) => Outcome::SandboxLost,
        ArtifactError::NoSlot | ArtifactError::Closed => Outcome::NeverRan,
        _ => Outcome::BackendFailed,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_with_what_would_be_right() {
        let all = json!({"from": "a/./b", "to": "/app", "mode": "0755", "owner": "agent"});
        assert_eq!(Put::parse(&all).unwrap().octal_mode(), Ok(Some(0o755)));
        for (value, words) in [
            (json!({"to": "/a"}), "missing field `from`"),
            (json!({"from": "a", "to": "b", "into": 1}), "unknown field `into`"),
            (json!({"from": "/etc/passwd", "to": "b"}), "beneath the recording's directory"),
            (json!({"from": "a/../../b", "to": "b"}), "without \"..\""),
            (json!({"from": "", "to": "b"}), "\"from\" is \"\""),
            (json!({"from": "a", "to": ""}), "\"to\" is empty"),
            (json!({"from": "a", "to": "b", "mode": "4755"}), "octal, as \"0755\""),
            (json!({"from": "a", "to": "b", "mode": "rwx"}), "octal"),
            (json!({"from": "a", "to": "b", "mode": "0755", "unpack": true}), "modes of its files"),
            (json!("a"), "expected struct"),
        ] {
            let error = Put::parse(&value).unwrap_err();
            assert!(error.contains(words), "{value}: {error}");
        }
    }

    #[test]
    fn nothing_outside_of_the_recordings_directory_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        std::fs::create_dir_all(inside.join("deep")).unwrap();
        std::fs::write(&outside, "secret").unwrap();
        std::fs::write(inside.join("file"), "text").unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("leads-out")).unwrap();
        std::os::unix::fs::symlink("../file", inside.join("deep/leads-in")).unwrap();
        let find =
            |from: &str| Put::parse(&json!({"from": from, "to": "x"})).unwrap().find(&inside);
        assert!(find("file").is_ok() && find("deep/leads-in").is_ok() && find(".").is_ok());
        assert!(matches!(find("leads-out"), Err(ArtifactError::Refused(_))));
        assert!(matches!(find("none"), Err(ArtifactError::NotFound(_))));
    }
}
