//! Grades: a command that judges what a trajectory has left, in a machine of its own over the
//! trajectory's files, in which nothing of the trajectory's runs.
//!
//! What is asked and what is answered, as plain types. Users call
//! [`ToolExecutor::grade`](crate::ToolExecutor::grade).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::tool::{MAX_TIMEOUT, MIN_TIMEOUT, ToolResult};

/// The variable that tells a grader's command the number of the descriptor for its verdict.
pub const VERDICT_FD_VARIABLE: &str = "TOOL_EXECUTOR_VERDICT_FD";
/// Where a grader finds its files, unless it says otherwise.
pub const GRADE_FILES_AT: &str = "/grade";
/// The longest verdict, in bytes: what a pipe holds.
pub const MAX_VERDICT: usize = 64 * 1024;
/// How many bytes the files of a grader may have, their names counted too.
pub const MAX_GRADE_FILES: usize = 16 * 1024 * 1024;

/// How a trajectory's files are judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct GradeSpec {
    /// A script for the shell. It begins in the directory of `files`.
    pub command: String,
    /// Files that only the grader has, by their paths beneath `files_at`: a text each, or bytes as
    /// `{"base64": "…"}`. They can be read and executed, and not written to. Defaults to none.
    #[serde(default)]
    pub files: BTreeMap<String, GradeFile>,
    /// Where it finds them: a directory of its own. Defaults to [`GRADE_FILES_AT`].
    #[serde(default = "files_at")]
    pub files_at: String,
    /// Variables of its environment, in which nothing is of the trajectory's. Defaults to none.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Whom it runs as, where a machine has several users. Defaults to whom commands run as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// How long it may run; clamped to 1…600 s. Defaults to 60 s.
    #[serde(default = "timeout", rename = "timeout_s", with = "crate::seconds")]
    pub timeout: Duration,
}

/// A file that only the grader has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum GradeFile {
    /// A text.
    Text(String),
    /// Bytes, as base64.
    Bytes {
        /// The bytes.
        #[serde(with = "base64_text")]
        base64: Vec<u8>,
    },
}

impl GradeFile {
    /// What is in it.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Bytes { base64 } => base64,
        }
    }
}

impl From<&str> for GradeFile {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<Vec<u8>> for GradeFile {
    fn from(base64: Vec<u8>) -> Self {
        Self::Bytes { base64 }
    }
}

fn files_at() -> String {
    GRADE_FILES_AT.to_owned()
}

fn timeout() -> Duration {
    Duration::from_secs(60)
}

impl GradeSpec {
    /// A grader that runs this command, without files.
    pub fn new(command: impl Into<String>) -> Self {
        Self {
            command: command.into(),
            files: BTreeMap::new(),
            files_at: files_at(),
            env: BTreeMap::new(),
            user: None,
            timeout: timeout(),
        }
    }

    /// Gives it a file more.
    #[must_use]
    pub fn with_file(mut self, path: impl Into<String>, content: impl Into<GradeFile>) -> Self {
        self.files.insert(path.into(), content.into());
        self
    }

    /// How long it may run.
    pub(crate) fn time_limit(&self) -> Duration {
        self.timeout.clamp(MIN_TIMEOUT, MAX_TIMEOUT)
    }

    /// Says what makes no sense of it.
    ///
    /// # Errors
    /// What, and what would be right.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.command.contains('\0') {
            return Err("the command has a NUL in it".to_owned());
        }
        let is_plain = |path: &str| {
            !path.is_empty()
                && !path.contains('\0')
                && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
        };
        let at = self.files_at.strip_prefix('/').filter(|at| is_plain(at));
        let taken = ["dev", "proc", "sys", "usr", "etc", "run", "workspace", "tmp", "home"];
        match at.and_then(|at| at.split('/').next()) {
            None => {
                let at = &self.files_at;
                return Err(format!(
                    "files_at: {at:?} is not the absolute path of a directory, as \"/grade\""
                ));
            }
            Some(first) if taken.contains(&first) || first.starts_with("lib") => {
                let text = "choose a place that nothing else has, as \"/grade\"";
                return Err(format!("files_at: sandboxes have /{first} of their own; {text}"));
            }
            Some(_) => {}
        }
        if let Some(path) = self.files.keys().find(|path| !is_plain(path)) {
            return Err(format!(
                "files: {path:?} is not a path beneath files_at, as \"tests/test_it.py\""
            ));
        }
        let bytes: usize =
            self.files.iter().map(|(path, file)| path.len() + file.bytes().len()).sum();
        if bytes > MAX_GRADE_FILES {
            return Err(format!("files: they have {bytes} bytes; at most {MAX_GRADE_FILES} pass"));
        }
        for (name, value) in &self.env {
            let is_name = !name.is_empty()
                && !name.starts_with(|c: char| c.is_ascii_digit())
                && name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric());
            if !is_name {
                return Err(format!("env: {name:?} is no name of a variable"));
            }
            if value.contains('\0') {
                return Err(format!("env: the value of {name} has a NUL in it"));
            }
            if name == VERDICT_FD_VARIABLE {
                return Err(format!("env: {name} is set by the executor"));
            }
        }
        Ok(())
    }
}

setters! {
    GradeSpec {
        with_files_at: files_at = String,
        with_env: env = BTreeMap<String, String>,
        with_user: user = some String,
        with_timeout: timeout = Duration,
    }
}

/// What a grader's command gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GradeResult {
    /// How the command ended, as the result of a call of `bash`: `outcome` and
    /// `metadata["exit_code"]` for programs. Nothing of it is the model's doing.
    pub result: ToolResult,
    /// What it wrote to its standard output, cut to size as outputs of calls are.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
    /// What it wrote to the descriptor for its verdict; `None` if that is nothing. At most
    /// [`MAX_VERDICT`] bytes; what is no UTF-8 is U+FFFD.
    pub verdict: Option<String>,
    /// The processes of the trajectory that were ended for it, by name: shells and terminals that
    /// it kept between its calls. Its next call says so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ended_processes: Vec<String>,
}

impl GradeResult {
    /// A grader's command that ended like this, and has not written a verdict.
    pub fn new(result: ToolResult) -> Self {
        Self {
            result,
            stdout: String::new(),
            stderr: String::new(),
            verdict: None,
            ended_processes: Vec::new(),
        }
    }

    /// The exit code of the command, where it ended by itself or by a signal.
    pub fn exit_code(&self) -> Option<i64> {
        self.result.metadata.get("exit_code").and_then(Value::as_i64)
    }

    /// The verdict as JSON; `None` if there is none, or it is no JSON.
    pub fn verdict_json(&self) -> Option<Value> {
        serde_json::from_str(self.verdict.as_deref()?).ok()
    }
}

setters! {
    GradeResult {
        with_stdout: stdout = String,
        with_stderr: stderr = String,
        with_verdict: verdict = some String,
        with_ended_processes: ended_processes = Vec<String>,
    }
}

/// Bytes as the text of their base64.
mod base64_text {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_of_a_grader_is_told_by_name() {
        let spec = || GradeSpec::new("true");
        assert_eq!(spec().with_file("a/b.py", "x").check(), Ok(()));
        for (spec, words) in [
            (GradeSpec::new("a\0b"), "command"),
            (spec().with_files_at("grade".to_owned()), "absolute path"),
            (spec().with_files_at("/a/../b".to_owned()), "absolute path"),
            (spec().with_files_at("/".to_owned()), "absolute path"),
            (spec().with_files_at("/usr/x".to_owned()), "/usr of their own"),
            (spec().with_files_at("/lib64".to_owned()), "/lib64 of their own"),
            (spec().with_file("../x", ""), "\"../x\""),
            (spec().with_file("/x", ""), "\"/x\""),
            (spec().with_file("x", vec![0; MAX_GRADE_FILES]), "at most"),
            (spec().with_env([("1A".to_owned(), String::new())].into()), "\"1A\""),
            (spec().with_env([("A".to_owned(), "\0".to_owned())].into()), "value of A"),
            (spec().with_env([(VERDICT_FD_VARIABLE.to_owned(), "1".into())].into()), "is set by"),
        ] {
            let error = spec.check().unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_grader_is_read_as_it_is_written_and_keys_that_it_does_not_have_are_refused() {
        let text = r#"{"command": "x", "files": {"a": "text", "b": {"base64": "AAE="}}}"#;
        let spec: GradeSpec = serde_json::from_str(text).unwrap();
        assert_eq!((spec.files["a"].bytes(), spec.files["b"].bytes()), (&b"text"[..], &[0, 1][..]));
        assert_eq!((&*spec.files_at, spec.timeout), ("/grade", Duration::from_secs(60)));
        let written = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<GradeSpec>(&written).unwrap(), spec);
        let error = serde_json::from_str::<GradeSpec>(r#"{"command": "x", "file": {}}"#);
        assert!(error.unwrap_err().to_string().contains("`files`"));
    }
}
