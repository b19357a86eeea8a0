//! Grades: a command that judges what a trajectory has left, in a machine of its own over the
//! trajectory's files, in which nothing of the trajectory's runs.
//!
//! What is asked and what is answered, as plain types. Users call
//! [`ToolExecutor::grade`](crate::ToolExecutor::grade).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::variable_problem;
use crate::spec::{SpecFile, file_problem};
use crate::tool::{MAX_TIMEOUT, MIN_TIMEOUT, ToolResult};

/// The variable that tells a grader's command the number of the descriptor for its verdict.
pub const VERDICT_FD_VARIABLE: &str = "TOOL_EXECUTOR_VERDICT_FD";
/// Where a grader finds its files, unless it says otherwise.
pub const GRADE_FILES_AT: &str = "/grade";
/// The longest verdict, in bytes. What is beyond is left out.
pub const MAX_VERDICT: usize = 64 * 1024;
/// The longest standard input of a grader, in bytes.
pub const MAX_GRADER_STDIN: usize = 8 << 20;

/// How many directories a grader may name that are judged.
pub const MAX_JUDGED_PATHS: usize = 16;

/// What of the root directory is the machine's own, and never the trajectory's.
const MACHINES: [&str; 4] = ["dev", "proc", "run", "sys"];
/// What of the root directory a grader's files cannot cover.
const TAKEN: [&str; 14] = [
    "bin",
    "boot",
    "dev",
    "etc",
    "home",
    "proc",
    "root",
    "run",
    "sbin",
    "sys",
    "tmp",
    "usr",
    "var",
    "workspace",
];

/// How a trajectory's files are judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct GradeSpec {
    /// A script for the shell. It begins in the directory of `files`.
    pub command: String,
    /// Files that only the grader has; their paths are relative to `files_at`. They can be read,
    /// and executed where their mode says so, and not be written to. Defaults to none.
    #[serde(default)]
    pub files: Vec<SpecFile>,
    /// What it reads from its standard input: what no file may tell, since processes that the
    /// grader starts can read its files. Defaults to nothing.
    #[serde(default)]
    pub stdin: String,
    /// Where it finds its files: a directory of its own. Defaults to [`GRADE_FILES_AT`].
    #[serde(default = "files_at")]
    pub files_at: String,
    /// Variables of its environment, in which nothing is of the trajectory's. Defaults to none.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Whom it runs as, where a machine has several users. Defaults to whom commands run as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The directories that are judged, as absolute paths, where the trajectory's machine is from
    /// an image: with what the trajectory has changed there, while all else is the image's own, as
    /// if the trajectory had never run; what a snapshot had changed beside them is not there
    /// either. At most [`MAX_JUDGED_PATHS`]. Defaults to everything, with all that was changed:
    /// what the trajectory installed is there, and what it replaced, `python3` and `sh` among that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judged_paths: Option<Vec<String>>,
    /// How long it may run; clamped to 1…600 s. Defaults to 60 s.
    #[serde(default = "timeout", rename = "timeout_s", with = "crate::seconds")]
    pub timeout: Duration,
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
            files: Vec::new(),
            stdin: String::new(),
            files_at: files_at(),
            env: BTreeMap::new(),
            user: None,
            judged_paths: None,
            timeout: timeout(),
        }
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
        if self.stdin.len() > MAX_GRADER_STDIN {
            let bytes = self.stdin.len();
            return Err(format!("stdin has {bytes} bytes; at most {MAX_GRADER_STDIN}"));
        }
        let at = &self.files_at;
        let Some(inside) = at.strip_prefix('/').filter(|inside| is_plain(inside)) else {
            let text = "must be the absolute path of a directory, as \"/grade\"";
            return Err(format!("files_at is {at:?}; it {text}"));
        };
        let first = inside.split('/').next().unwrap_or(inside);
        if TAKEN.contains(&first) || first.starts_with("lib") || at.contains('\0') {
            let text = "choose one that nothing else has, as \"/grade\"";
            return Err(format!("files_at is {at:?}, a place that sandboxes need; {text}"));
        }
        if let Some(file) = self.files.iter().find(|file| file.path.starts_with('/')) {
            let text = "is relative to files_at, as \"tests/test_it.py\"";
            return Err(format!("the file {:?} has an absolute path; it {text}", file.path));
        }
        if let Some(problem) = file_problem(&self.files) {
            return Err(problem);
        }
        if let Some(problem) = self.judged_paths.as_deref().and_then(|all| self.unjudgeable(all)) {
            return Err(format!("judged_paths {problem}"));
        }
        if self.env.contains_key(VERDICT_FD_VARIABLE) {
            return Err(format!("in env: {VERDICT_FD_VARIABLE} is set by the executor"));
        }
        let problem = self.env.iter().find_map(|(name, value)| variable_problem(name, Some(value)));
        problem.map_or(Ok(()), |problem| Err(format!("in env: {problem}")))
    }

    /// What makes no sense of the directories that are judged.
    fn unjudgeable(&self, paths: &[String]) -> Option<String> {
        if paths.is_empty() || paths.len() > MAX_JUDGED_PATHS {
            let count = paths.len();
            return Some(format!("has {count} paths; name 1 to {MAX_JUDGED_PATHS} directories"));
        }
        let is_within = |path: &str, other: &str| Path::new(path).starts_with(other);
        paths.iter().enumerate().find_map(|(number, path)| {
            let inside = path.strip_prefix('/').filter(|inside| is_plain(inside));
            let first = inside.and_then(|inside| inside.split('/').next());
            let Some(first) = first.filter(|_| !path.contains('\0')) else {
                let text = "must be the absolute path of a directory, as \"/app\"";
                return Some(format!("has {path:?}; each {text}"));
            };
            if MACHINES.contains(&first) {
                return Some(format!("has {path:?}, which is the machine's own; leave it out"));
            }
            let at = &self.files_at;
            if is_within(path, at) || is_within(at, path) {
                return Some(format!("has {path:?}, and files_at is {at:?}; choose another place"));
            }
            let mut others = paths.iter().enumerate().filter(|(other, _)| *other != number);
            let (_, above) = others.find(|(_, other)| is_within(path, other))?;
            Some(format!("has {path:?} and {above:?}; leave one out"))
        })
    }
}

/// Whether a path without its first slash is that of one place, below the root.
fn is_plain(path: &str) -> bool {
    !path.split('/').any(|part| matches!(part, "" | "." | ".."))
}

setters! {
    GradeSpec {
        with_files: files = Vec<SpecFile>,
        with_stdin: stdin = String,
        with_files_at: files_at = String,
        with_env: env = BTreeMap<String, String>,
        with_user: user = some String,
        with_judged_paths: judged_paths = some Vec<String>,
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
    /// What it wrote to the descriptor for its verdict, which is a socket: no other process can
    /// open it by a path. `None` if that is nothing. At most
    /// [`MAX_VERDICT`] bytes; what is no UTF-8 is U+FFFD.
    pub verdict: Option<String>,
    /// The processes of the trajectory that were ended for it, by name: shells and terminals that
    /// it kept between its calls. Its next call says so.
    #[serde(default)]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_of_a_grader_is_told_by_name() {
        let spec = || GradeSpec::new("true");
        let file = |path: &str| spec().with_files(vec![SpecFile::text(path, "x")]);
        let at = |place: &str| spec().with_files_at(place.to_owned());
        let set = |name: &str, value: &str| spec().with_env([(name.into(), value.into())].into());
        let judged = |paths: &[&str]| {
            spec()
                .with_judged_paths(paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>())
        };
        let apart = judged(&["/app", "/apples", "/usr/local"]);
        for fine in [spec(), apart, file("a/b.py"), at("/srv/grade"), set("A", "b")] {
            assert_eq!(fine.check(), Ok(()));
        }
        for (spec, words) in [
            (GradeSpec::new("a\0b"), "command"),
            (at("grade"), "absolute path"),
            (at("/a/../b"), "absolute path"),
            (at("/"), "absolute path"),
            (at("/usr/x"), "sandboxes need"),
            (at("/lib64"), "sandboxes need"),
            (file("../x"), "\"../x\""),
            (file("/x"), "relative to files_at"),
            (set("1A", ""), "\"1A\""),
            (set("A", "\0"), "the value of A"),
            (set("HOME", "/x"), "HOME"),
            (set(VERDICT_FD_VARIABLE, "1"), "set by the executor"),
            (judged(&[]), "has 0 paths"),
            (judged(&["/x"; MAX_JUDGED_PATHS + 1]), "has 17 paths"),
            (judged(&["app"]), "\"app\"; each must be the absolute path"),
            (judged(&["/"]), "\"/\"; each must be the absolute path"),
            (judged(&["/a/../b"]), "each must be the absolute path"),
            (judged(&["/proc/x"]), "the machine's own"),
            (judged(&["/grade/x"]), "files_at is \"/grade\""),
            (judged(&["/app", "/app/x"]), "\"/app/x\" and \"/app\"; leave one out"),
            (judged(&["/app", "/app"]), "leave one out"),
        ] {
            let error = spec.check().unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_grader_is_read_as_it_is_written_and_keys_that_it_does_not_have_are_refused() {
        let text = r#"{"command": "x", "files": [{"path": "a", "content": "text"}]}"#;
        let spec: GradeSpec = serde_json::from_str(text).unwrap();
        assert_eq!(spec.files[0].content.as_bytes(), b"text");
        assert_eq!((&*spec.files_at, spec.timeout), ("/grade", Duration::from_secs(60)));
        let written = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<GradeSpec>(&written).unwrap(), spec);
        let error = serde_json::from_str::<GradeSpec>(r#"{"command": "x", "file": []}"#);
        assert!(error.unwrap_err().to_string().contains("`files`"));
    }
}
