//! What a start makes of a machine that gives no sandbox: a refusal, a shortage and a root without
//! all rights are told apart, and nothing runs with less isolation than was asked for.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use tool_executor::backend::local::LocalBackend;
use tool_executor::backend::{Backend, Isolation};
use tool_executor::config::{ExecutorConfig, LocalConfig};
use tool_executor::{
    BackendError, BackendErrorKind, Interrupt, IsolationError, StartError, ToolExecutor,
};

use crate::alone;
use crate::fakes::{bash, until};

/// Whether this test runs as root, and so commands as another user.
fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// A directory for bubblewraps that are none, which comes first in the `PATH` of the cases'
/// processes.
struct Fake(TempDir);

impl Fake {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// The real one is the next in the `PATH`.
    fn path_variable(&self) -> String {
        format!("{}:{}", self.path().display(), std::env::var("PATH").unwrap())
    }
}

/// Makes `bwrap`, in the directory that comes first in this process's `PATH`, a shell script.
fn bwrap_is(script: &str) {
    let path = std::env::var("PATH").unwrap();
    let directory = Path::new(path.split(':').next().unwrap());
    assert!(directory.starts_with(std::env::temp_dir()), "a case has its own directory");
    // Another file, so that no process that was forked meanwhile can hold it open for writing.
    let (new, place) = (directory.join("new"), directory.join("bwrap"));
    fs::write(&new, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&new, &place).unwrap();
}

/// A base for data directories, and a configuration with one slot in it.
fn one_slot() -> (TempDir, LocalConfig) {
    let base = tempfile::tempdir().unwrap();
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let config = LocalConfig::new(1).with_data_dir(base.path());
    (base, config)
}

/// What a start fails with, which leaves nothing.
fn failure(allow: bool) -> BackendError {
    let (base, config) = one_slot();
    let error = LocalBackend::start(config.with_allow_unisolated(allow)).unwrap_err();
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0, "{error}");
    error
}

/// The cause of a failure for want of isolation.
fn not_isolated(error: &BackendError) -> &IsolationError {
    assert_eq!(error.kind(), BackendErrorKind::NotIsolated, "{error}");
    let cause = std::error::Error::source(error).expect("a cause");
    cause.downcast_ref().expect("that says what to do")
}

/// Starts where isolation is not required; gives how commands are isolated, and what one prints.
fn allowed(command: &str) -> (Isolation, String) {
    let (_base, config) = one_slot();
    let backend = LocalBackend::start(config.with_allow_unisolated(true)).unwrap();
    let isolation = backend.capabilities().isolation;
    let executor = ToolExecutor::builder().backend(backend).start().unwrap();
    let result = executor.execute("t", bash(command));
    assert!(result.success, "{result:?}");
    // A slot that cannot be emptied is kept back for ever.
    executor.release("t").unwrap();
    (isolation, result.output)
}

#[test]
fn without_bubblewrap_nothing_starts_unless_that_is_allowed() {
    if alone::case().is_none() {
        let name = "isolation::without_bubblewrap_nothing_starts_unless_that_is_allowed";
        return alone::run(name, "missing", &[], |command| {
            command.env("PATH", "/nonexistent");
        });
    }
    let error = failure(false);
    let cause = not_isolated(&error);
    assert_eq!(cause.reason(), "there is no bubblewrap (bwrap) in PATH");
    assert!(cause.remedy().contains("apt-get install bubblewrap"), "{cause}");
    assert!(cause.to_string().ends_with(": allow_unisolated"), "{cause}");
    let line = cause.line("--switch");
    assert!(line.ends_with(": --switch") && !line.contains('\n'), "{line}");

    // The same by the executor's own configuration.
    let (_base, local) = one_slot();
    let config = ExecutorConfig::default().with_local(local);
    let error = ToolExecutor::start(config).unwrap_err();
    let StartError::Backend(error) = error else { panic!("{error:?}") };
    not_isolated(&error);

    let (isolation, output) = allowed("echo fine");
    assert!(isolation.not_isolated_because().unwrap().contains("in PATH"), "{isolation:?}");
    assert_eq!(output, "fine");
}

#[test]
fn a_refusal_is_told_from_a_shortage_and_only_it_can_be_allowed() {
    if alone::case().is_none() {
        let fake = Fake::new();
        let name = "isolation::a_refusal_is_told_from_a_shortage_and_only_it_can_be_allowed";
        return alone::run(name, "fakes", &[], |command| {
            command.env("PATH", fake.path_variable());
        });
    }
    let says = |text: &str| format!("echo \"bwrap: {text}\" >&2; exit 1");
    for (script, words) in [
        (says("No permissions to create new namespace"), "No permissions"),
        (says("setting up uid map: Permission denied"), "uid map"),
        (
            says(
                "Creating new namespace failed: nesting depth or \
               /proc/sys/user/max_*_namespaces exceeded (ENOSPC)",
            ),
            "max_*_namespaces",
        ),
        (says("Unknown option --json-status-fd"), "Unknown option"),
        ("exit 0".to_owned(), "does not work here"),
    ] {
        bwrap_is(&script);
        let error = failure(false);
        let cause = not_isolated(&error);
        assert!(cause.reason().contains(words), "{cause}");
        assert!(!cause.remedy().is_empty());
        let (isolation, output) = allowed("echo fine");
        assert!(isolation.not_isolated_because().unwrap().contains(words), "{isolation:?}");
        assert_eq!(output, "fine");
    }
    for (script, words) in [
        (says("Creating new namespace failed: Resource temporarily unavailable"), "temporarily"),
        (says("Creating new namespace failed: Cannot allocate memory"), "memory"),
        (says("Can't open /proc: Too many open files in system"), "Too many open files"),
        (says("Can't mkdir /newroot: No space left on device"), "No space"),
        ("kill -9 $$".to_owned(), "signal 9"),
    ] {
        bwrap_is(&script);
        // That less isolation is allowed does not make it known that there is less.
        for allow in [false, true] {
            let error = failure(allow);
            assert_eq!(error.kind(), BackendErrorKind::Shortage, "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}

/// A `bwrap` that says this to everybody but root, for whom it is the real one.
fn but_for_root(text: &str) -> String {
    format!(
        "[ \"$(id -u)\" = 0 ] || {{ echo 'bwrap: {text}' >&2; exit 1; }}\n\
         PATH=${{PATH#*:}} exec bwrap \"$@\""
    )
}

#[test]
fn a_shortage_for_the_user_of_commands_does_not_make_them_run_as_root() {
    if !is_root() {
        return; // The case is root's.
    }
    if alone::case().is_none() {
        let fake = Fake::new();
        let name = "isolation::a_shortage_for_the_user_of_commands_does_not_make_them_run_as_root";
        return alone::run(name, "fakes", &[], |command| {
            command.env("PATH", fake.path_variable());
        });
    }
    bwrap_is(&but_for_root("Creating new namespace failed: Resource temporarily unavailable"));
    assert_eq!(failure(false).kind(), BackendErrorKind::Shortage);
    // But a refusal does.
    bwrap_is(&but_for_root("No permissions to create new namespace"));
    let (isolation, output) = allowed("id -u");
    assert_eq!((isolation, &*output), (Isolation::Isolated, "0"));
}

#[test]
fn a_limit_of_processes_is_a_shortage() {
    if !is_root() {
        return; // An ordinary user's limit counts this test's own threads.
    }
    if alone::case().is_none() {
        let name = "isolation::a_limit_of_processes_is_a_shortage";
        // Root itself is exempt; the user that commands run as is not.
        return alone::run(name, "limited", &["prlimit", "--nproc=1:1"], |_| {});
    }
    for allow in [false, true] {
        let error = failure(allow);
        assert_eq!(error.kind(), BackendErrorKind::Shortage, "{error}");
        let text = format!("{error} {:?}", std::error::Error::source(&error));
        assert!(text.contains("temporarily unavailable"), "{text}");
    }
}

#[test]
fn a_root_without_all_rights_is_refused_with_the_name_of_what_it_lacks() {
    if !is_root() {
        return; // The case is root's.
    }
    let name = "isolation::a_root_without_all_rights_is_refused_with_the_name_of_what_it_lacks";
    let Some(lacks) = alone::case() else {
        for lacks in ["kill", "fowner", "dac_override", "chown", "setuid", "setgid"] {
            let set = format!("-{lacks}");
            alone::run(name, lacks, &["setpriv", "--bounding-set", &set], |_| {});
        }
        return;
    };
    let error = failure(false);
    let cause = not_isolated(&error);
    assert!(cause.reason().contains(&lacks.to_uppercase()), "{cause}");
    assert!(cause.reason().contains("as root"), "{cause}");
    assert!(cause.remedy().contains("ordinary user"), "{cause}");
    // Allowed, it runs as what it is, and its slots can be emptied.
    let (_, output) = allowed("id -u; mkdir a; touch a/b; chmod 000 a");
    assert_eq!(output, "0");
}

/// What a user with no other processes gets of the program, behind a wrapper: its exit code, what
/// it says, and its results.
struct Ordinary {
    directory: TempDir,
    program: PathBuf,
}

impl Ordinary {
    const USER: &str = "61234";

    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let open = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        open(directory.path(), 0o777);
        // Where it can be reached by anybody.
        let program = directory.path().join("tool-executor");
        fs::copy(env!("CARGO_BIN_EXE_tool-executor"), &program).unwrap();
        open(&program, 0o755);
        let call = json!({"name": "bash", "arguments": {"command": "id -u"}});
        let line = json!({"trajectory_id": "t", "calls": [call]}).to_string();
        fs::write(directory.path().join("in.jsonl"), line).unwrap();
        Self { directory, program }
    }

    fn run(&self, wrapper: &[&str]) -> (Option<i32>, String, Vec<Value>) {
        let output = self.directory.path().join("out.jsonl");
        let _ = fs::remove_file(&output);
        let run = Command::new("setpriv")
            .args(["--reuid", Self::USER, "--regid", Self::USER, "--clear-groups"])
            .args(wrapper)
            .arg(&self.program)
            .args(["replay", "--quiet", "--slots", "1", "--out"])
            .args([&output, &self.directory.path().join("in.jsonl")])
            .env("TMPDIR", self.directory.path())
            .current_dir("/")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let lines = fs::read_to_string(&output).unwrap_or_default();
        let results = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (run.status.code(), String::from_utf8(run.stderr).unwrap(), results)
    }
}

#[test]
fn an_ordinary_user_with_few_processes_is_never_without_isolation() {
    if !is_root() {
        return; // It takes another user, whose processes are this test's only.
    }
    let ordinary = Ordinary::new();
    let (mut refused, mut ran) = (0, 0);
    for processes in [1, 2, 3, 4, 5, 6, 8, 12, 256] {
        let limit = format!("--nproc={processes}:{processes}");
        let (code, text, results) = ordinary.run(&["prlimit", &limit]);
        for result in &results {
            let sandboxed = result["metadata"]["sandboxed"] == true;
            assert!(sandboxed || result["may_have_executed"] == false, "{processes}: {result}");
            ran += usize::from(sandboxed);
        }
        assert!(!text.contains("root"), "{processes}: {text}");
        if results.is_empty() {
            // Where not even the threads of the program can be had, it may end otherwise.
            refused += usize::from(code == Some(5));
        }
    }
    assert!(refused >= 2 && ran >= 1, "{refused} refused, {ran} ran");
}

#[test]
fn the_root_of_a_users_own_namespace_is_as_good_as_that_user() {
    if !is_root() {
        return; // It takes another user.
    }
    let (code, text, results) = Ordinary::new().run(&["unshare", "--map-root-user"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(
        (&results[0]["output"], &results[0]["metadata"]["sandboxed"]),
        (&json!("0"), &json!(true))
    );
}

#[test]
fn a_start_that_hangs_in_bubblewrap_is_interrupted() {
    if alone::case().is_none() {
        let fake = Fake::new();
        let name = "isolation::a_start_that_hangs_in_bubblewrap_is_interrupted";
        return alone::run(name, "fakes", &[], |command| {
            command.env("PATH", fake.path_variable());
        });
    }
    let path = std::env::var("PATH").unwrap();
    let started = Path::new(path.split(':').next().unwrap()).join("started");
    fs::write(&started, "").unwrap();
    fs::set_permissions(&started, fs::Permissions::from_mode(0o666)).unwrap();
    // The first probe, and the one of a sandbox that is kept, which is the last.
    let hang = format!("echo $$ > {}; exec sleep 1000", started.display());
    let real = "PATH=${PATH#*:} exec bwrap \"$@\"";
    for script in [
        hang.clone(),
        format!("for word; do [ \"$word\" = --as-pid-1 ] && {{ {hang}; }}; done; {real}"),
    ] {
        bwrap_is(&script);
        fs::write(&started, "").unwrap();
        let (base, config) = one_slot();
        let interrupt = Interrupt::new();
        let error = std::thread::scope(|scope| {
            let start = scope.spawn(|| LocalBackend::start_interruptible(config, &interrupt));
            until(|| !fs::read_to_string(&started).unwrap().is_empty());
            let interrupted = std::time::Instant::now();
            interrupt.interrupt();
            let error = start.join().unwrap().unwrap_err();
            assert!(interrupted.elapsed().as_secs() < 5, "{:?}", interrupted.elapsed());
            error
        });
        assert_eq!(error.kind(), BackendErrorKind::Interrupted, "{error}");
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
        let hanging = fs::read_to_string(&started).unwrap();
        let gone = || !Path::new("/proc").join(hanging.trim()).exists();
        assert!(gone(), "the bubblewrap that hangs is left");
    }
}
