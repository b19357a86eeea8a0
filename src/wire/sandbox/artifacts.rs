//! What is asked of a workspace's files, and answered.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::python::no_attribute;
use super::{Raised, error};
use crate::artifact::{
    ArchiveArtifacts, ArchiveSummary, Artifact, ArtifactError, ArtifactList, ListArtifacts,
    MAX_ARTIFACT_BYTES, MAX_ARTIFACT_ENTRIES, ReadArtifact,
};
use crate::tool::JsonObject;
use crate::tool::python_json::is_truthy;

/// Why there is no artifact: a status and an answer.
#[derive(Debug, PartialEq)]
pub(crate) struct Refused {
    pub(crate) status: u16,
    pub(crate) answer: Value,
}

impl Refused {
    fn new(status: u16, text: &str) -> Self {
        Self { status, answer: error(text) }
    }

    /// There is no such slot.
    pub(crate) fn unknown_slot(name: &str) -> Self {
        Self::new(404, &format!("Unknown slot: {name}"))
    }

    /// Nothing was done, since too many wait already or the server closes.
    pub(crate) fn not_done() -> Self {
        Self::new(503, "too many wait for this slot, or the server closes")
    }
}

/// The status of an answer without an artifact.
pub(crate) fn status_of(error: &ArtifactError) -> u16 {
    match error {
        ArtifactError::Outside | ArtifactError::Refused(_) => 403,
        ArtifactError::NotFound(_) | ArtifactError::NoSlot => 404,
        ArtifactError::NotAFile(_) | ArtifactError::UnsupportedType(_) => 400,
        ArtifactError::TooLarge { .. } => 413,
        ArtifactError::Unsupported => 501,
        ArtifactError::SandboxLost(_) | ArtifactError::Closed => 503,
        ArtifactError::Invalid(_) | ArtifactError::BadArchive(_) => 400,
        ArtifactError::DiskFull { .. } => 507,
        ArtifactError::Partial { source, .. } => status_of(source),
        ArtifactError::Io(..) => 500,
    }
}

impl From<ArtifactError> for Refused {
    fn from(error: ArtifactError) -> Self {
        let status = status_of(&error);
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        let mut refused = Self::new(status, &text);
        if let ArtifactError::TooLarge { bytes, .. } = error {
            refused.answer["bytes"] = bytes.into();
        }
        refused
    }
}

/// The body of `/artifacts/read`.
#[derive(Debug, PartialEq)]
pub(crate) struct ReadRequest {
    what: Result<ReadArtifact, Outside>,
    encoding: String,
}

/// A path that is no string.
#[derive(Debug, PartialEq)]
struct Outside;

impl ReadRequest {
    /// What is to be read.
    ///
    /// # Errors
    /// The reference's program would fail.
    pub(crate) fn of(request: &JsonObject) -> Result<Self, Raised> {
        let encoding = word(request, "encoding", "text")?;
        let what = path(request, "").map(|path| {
            let is_set = |name| request.get(name).is_some_and(is_truthy);
            ReadArtifact {
                path,
                offset: integer(request, "offset").unwrap_or(0).max(0).unsigned_abs(),
                max_bytes: limit(request, "max_bytes", MAX_ARTIFACT_BYTES),
                sha256: is_set("include_sha256"),
                file_sha256: is_set("include_file_sha256"),
            }
        });
        Ok(Self { what, encoding })
    }

    /// Reads with `read`, and gives the answer.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn answer(
        &self,
        read: impl FnOnce(&ReadArtifact) -> Result<Artifact, ArtifactError>,
    ) -> Result<Value, Refused> {
        let what = self.what.as_ref().map_err(|Outside| ArtifactError::Outside)?;
        let is_known = ["text", "base64"].contains(&&*self.encoding);
        if !is_known {
            // What is wrong with the path is told first.
            let path = what.path.clone();
            read(&ReadArtifact { max_bytes: 1, ..ReadArtifact::new(path) })?;
            return Err(Refused::new(400, &format!("Unsupported encoding: {}", self.encoding)));
        }
        let artifact = read(what)?;
        let bytes = artifact.content.len();
        let content = if self.encoding == "base64" {
            STANDARD.encode(&artifact.content)
        } else {
            String::from_utf8_lossy(&artifact.content).into_owned()
        };
        let mut answer = json!({
            "success": true,
            "content": null,
            "encoding": self.encoding,
            "truncated": artifact.truncated,
            "bytes": bytes,
            "file_size": artifact.file_size,
            "path": artifact.path,
            "mime": artifact.mime,
            "sha256": artifact.sha256,
            "offset": artifact.offset,
            "file_sha256": artifact.file_sha256,
        });
        // Moved, where `json!` would copy.
        answer["content"] = content.into();
        Ok(answer)
    }
}

/// The body of `/artifacts/list`.
#[derive(Debug, PartialEq)]
pub(crate) struct ListRequest(Result<ListArtifacts, Outside>);

impl ListRequest {
    /// What is to be listed.
    pub(crate) fn of(request: &JsonObject) -> Self {
        Self(path(request, ".").map(|path| ListArtifacts {
            path,
            recursive: request.get("recursive").is_some_and(is_truthy),
            max_entries: max_entries(request),
        }))
    }

    /// Lists with `list`, and gives the answer.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn answer(
        &self,
        list: impl FnOnce(&ListArtifacts) -> Result<ArtifactList, ArtifactError>,
    ) -> Result<Value, Refused> {
        let what = self.0.as_ref().map_err(|Outside| ArtifactError::Outside)?;
        let ArtifactList { entries, truncated } = list(what)?;
        let entries = entries.into_iter().map(|entry| {
            json!({
                "path": entry.path,
                "is_dir": entry.is_dir,
                "size": entry.size,
                "mtime": entry.mtime,
            })
        });
        let entries: Vec<Value> = entries.collect();
        Ok(json!({"success": true, "entries": entries, "truncated": truncated}))
    }
}

/// The body of `/artifacts/archive`.
#[derive(Debug, PartialEq)]
pub(crate) struct ArchiveRequest {
    what: Result<ArchiveArtifacts, Outside>,
    format: String,
}

impl ArchiveRequest {
    /// What is to be archived.
    ///
    /// # Errors
    /// The reference's program would fail.
    pub(crate) fn of(request: &JsonObject) -> Result<Self, Raised> {
        let format = word(request, "format", "tar.gz")?;
        let what = path(request, ".").map(|path| ArchiveArtifacts {
            path,
            max_bytes: limit(request, "max_bytes", MAX_ARTIFACT_BYTES),
            max_entries: max_entries(request),
            ..ArchiveArtifacts::default()
        });
        Ok(Self { what, format })
    }

    /// Archives with `archive`, which writes to the buffer, and gives the answer.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn answer(
        &self,
        archive: impl FnOnce(&ArchiveArtifacts, &mut Vec<u8>) -> Result<ArchiveSummary, ArtifactError>,
    ) -> Result<Value, Refused> {
        if !["tar.gz", "tgz"].contains(&&*self.format) {
            let text = format!("Unsupported archive format: {}", self.format);
            return Err(Refused::new(400, &text));
        }
        let what = self.what.as_ref().map_err(|Outside| ArtifactError::Outside)?;
        let mut bytes = Vec::new();
        let summary = archive(what, &mut bytes)?;
        let mut answer = json!({
            "success": true,
            "content": null,
            "encoding": "base64",
            "format": "tar.gz",
            "bytes": bytes.len(),
            "entry_count": summary.entry_count,
        });
        answer["content"] = STANDARD.encode(&bytes).into();
        Ok(answer)
    }
}

fn path(request: &JsonObject, default: &str) -> Result<String, Outside> {
    match request.get("path") {
        None => Ok(default.to_owned()),
        Some(Value::String(path)) => Ok(path.clone()),
        Some(_) => Err(Outside),
    }
}

/// A word, trimmed and in lower case; whatever is false is the default.
fn word(request: &JsonObject, name: &str, default: &str) -> Result<String, Raised> {
    match request.get(name) {
        Some(Value::String(word)) if !word.is_empty() => Ok(word.trim().to_lowercase()),
        Some(other) if is_truthy(other) => Err(no_attribute(other, "strip")),
        _ => Ok(default.to_owned()),
    }
}

/// What Python's `int` makes of a field.
fn integer(request: &JsonObject, name: &str) -> Option<i64> {
    match request.get(name)? {
        Value::Bool(truth) => Some(i64::from(*truth)),
        Value::String(digits) => digits.trim().parse().ok(),
        // A float that is too large becomes the largest.
        Value::Number(number) => number.as_i64().or_else(|| Some(number.as_f64()? as i64)),
        _ => None,
    }
}

fn limit(request: &JsonObject, name: &str, max: u64) -> u64 {
    integer(request, name).map_or(max, |limit| limit.max(1).unsigned_abs().min(max))
}

fn max_entries(request: &JsonObject) -> usize {
    let most = limit(request, "max_entries", MAX_ARTIFACT_ENTRIES as u64);
    usize::try_from(most).unwrap_or(MAX_ARTIFACT_ENTRIES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_integer_like_and_clamped() {
        for (value, most) in [
            (json!(null), 5000),
            (json!("many"), 5000),
            (json!("4.5"), 5000),
            (json!(" 4 "), 4),
            (json!(4.7), 4),
            (json!(true), 1),
            (json!(0), 1),
            (json!(-7), 1),
            (json!(1e300), 5000),
            (json!([1]), 5000),
        ] {
            let request = JsonObject::from_iter([("max_entries".to_owned(), value.clone())]);
            assert_eq!(max_entries(&request), most, "{value}");
        }
    }
}
