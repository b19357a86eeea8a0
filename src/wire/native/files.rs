//! Files in and out of a slot: what is said besides their bytes.
//!
//! A put is a line of JSON and then the bytes, as the body ends; a copy's answer is pieces, each
//! with its length before it, and after an empty one a line of JSON that says how it ended. So
//! bytes go as they are, and what broke off is told from what is whole.
//!
//! A put has a name. What came of a slot's latest one is kept until the next, so that a client
//! whose connection broke – also because it still sent what was not wanted any more – is told by
//! [`PUT_RESULT`].

use std::io;

use serde::{Deserialize, Serialize};

use crate::artifact::{ArtifactError, PutFiles, PutSummary};

/// See [`SESSION`](super::SESSION).
pub(crate) const PUT: &str = "/v3/put";
/// See [`SESSION`](super::SESSION).
pub(crate) const PUT_RESULT: &str = "/v3/put_result";
/// See [`SESSION`](super::SESSION).
pub(crate) const COPY: &str = "/v3/copy";

/// The longest first line of a put.
#[cfg(feature = "server")]
pub(crate) const MAX_PUT_LINE: usize = 64 * 1024;
/// The most bytes of a copy in one piece.
pub(crate) const PIECE: usize = 192 * 1024;

/// The first line of a put.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PutRequest {
    pub(crate) session: String,
    pub(crate) epoch: u64,
    pub(crate) slot: usize,
    /// Its name, which no other has.
    pub(crate) id: String,
    pub(crate) put: PutFiles,
}

/// Which put's result is wanted.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PutResultRequest {
    pub(crate) session: String,
    pub(crate) epoch: u64,
    pub(crate) slot: usize,
    pub(crate) id: String,
}

/// What came of a put.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PutAnswer {
    Done(PutSummary),
    Failed(Failed),
    /// It is still under way.
    Running,
    /// It never came.
    Unknown,
}

/// What to copy.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CopyRequest {
    pub(crate) session: String,
    pub(crate) epoch: u64,
    pub(crate) slot: usize,
    pub(crate) path: String,
}

/// How a copy ended.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CopyEnd {
    Done { bytes: u64 },
    Failed(Failed),
}

/// An artifact error, so that the other side has the same one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failed {
    /// Which one.
    pub(crate) code: String,
    /// What it says, or what it is about.
    pub(crate) text: String,
    /// Which path, where it names one besides.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) path: String,
    /// How many entries are in place in spite of it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) put: Option<u64>,
}

impl From<&ArtifactError> for Failed {
    fn from(error: &ArtifactError) -> Self {
        let of = |code: &str, text: String| Self {
            code: code.to_owned(),
            text,
            path: String::new(),
            put: None,
        };
        match error {
            ArtifactError::NoSlot => of("no_slot", String::new()),
            ArtifactError::Outside => of("outside", String::new()),
            ArtifactError::Refused(text) => of("refused", text.clone()),
            ArtifactError::NotFound(path) => of("not_found", path.clone()),
            ArtifactError::NotAFile(path) => of("not_a_file", path.clone()),
            ArtifactError::UnsupportedType(path) => of("unsupported_type", path.clone()),
            ArtifactError::Invalid(text) => of("invalid", text.clone()),
            ArtifactError::BadArchive(text) => of("bad_archive", text.clone()),
            ArtifactError::DiskFull { path, why } => {
                Self { path: path.clone(), ..of("disk_full", why.clone()) }
            }
            ArtifactError::Partial { put, source } => {
                Self { put: Some(*put), ..Self::from(&**source) }
            }
            ArtifactError::SandboxLost(text) => of("sandbox_lost", text.clone()),
            ArtifactError::Closed => of("closed", String::new()),
            ArtifactError::Unsupported => of("unsupported", String::new()),
            ArtifactError::TooLarge { .. } => of("failed", error.to_string()),
            ArtifactError::Io(text, cause) => of("failed", format!("{text}: {cause}")),
        }
    }
}

impl From<Failed> for ArtifactError {
    fn from(failed: Failed) -> Self {
        let Failed { code, text, path, put } = failed;
        let error = match code.as_str() {
            "no_slot" => Self::NoSlot,
            "outside" => Self::Outside,
            "refused" => Self::Refused(text),
            "not_found" => Self::NotFound(text),
            "not_a_file" => Self::NotAFile(text),
            "unsupported_type" => Self::UnsupportedType(text),
            "invalid" => Self::Invalid(text),
            "bad_archive" => Self::BadArchive(text),
            "disk_full" => Self::DiskFull { path, why: text },
            "sandbox_lost" => Self::SandboxLost(text),
            "closed" => Self::SandboxLost("the sandbox server closes".to_owned()),
            "unsupported" => Self::Unsupported,
            _ => Self::Io("the sandbox server could not do it".to_owned(), io::Error::other(text)),
        };
        match put {
            Some(put) => Self::Partial { put, source: Box::new(error) },
            None => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_the_same_on_both_sides() {
        let full = || ArtifactError::DiskFull { path: "a".to_owned(), why: "no".to_owned() };
        for error in [
            ArtifactError::NoSlot,
            ArtifactError::Outside,
            ArtifactError::Refused("r".to_owned()),
            ArtifactError::NotFound("n".to_owned()),
            ArtifactError::NotAFile("n".to_owned()),
            ArtifactError::UnsupportedType("u".to_owned()),
            ArtifactError::Invalid("i".to_owned()),
            ArtifactError::BadArchive("b".to_owned()),
            full(),
            ArtifactError::Partial { put: 7, source: Box::new(full()) },
            ArtifactError::SandboxLost("l".to_owned()),
            ArtifactError::Unsupported,
        ] {
            let failed = Failed::from(&error);
            let line = serde_json::to_string(&failed).unwrap();
            let back = ArtifactError::from(serde_json::from_str::<Failed>(&line).unwrap());
            assert_eq!(back.to_string(), error.to_string());
            assert_eq!(Failed::from(&back), failed);
        }
    }
}
