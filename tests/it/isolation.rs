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
use crate::kernel::{self, Answer, Filter};

/// Whether this test runs as root, and so commands as another user.
fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
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
fn where_namespaces_are_forbidden_nothing_starts_unless_that_is_allowed() {
    kernel::with(Filter::of_namespaces(Answer::Error(libc::EPERM)), || {
        let error = failure(false);
        let cause = not_isolated(&error);
        assert!(cause.reason().starts_with("this machine allows no sandboxes: "), "{cause}");
        assert!(cause.reason().contains("cannot make namespaces: Operation not permitted"));
        assert!(!cause.remedy().is_empty(), "{cause}");
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
        let why = isolation.not_isolated_because().unwrap();
        assert!(why.contains("cannot make namespaces"), "{isolation:?}");
        assert_eq!(output, "fine");
    });
}

/// What a step of the making of a sandbox may fail with, and the words for it.
fn steps() -> [(libc::c_long, &'static str); 5] {
    [
        (libc::SYS_open_tree, "cannot show /usr"),
        (libc::SYS_pivot_root, "cannot make a root directory"),
        (libc::SYS_move_mount, "cannot show /usr"),
        (libc::SYS_sethostname, "cannot set the host name"),
        (libc::SYS_capset, "capabilities"),
    ]
}

#[test]
fn a_refusal_is_told_from_a_shortage_and_only_it_can_be_allowed() {
    let refusals = [libc::EPERM, libc::EACCES, libc::ENOSYS];
    let shortages =
        [libc::EAGAIN, libc::ENOMEM, libc::ENOSPC, libc::EMFILE, libc::ENFILE, libc::EDQUOT];
    let of_namespaces = |errno| Filter::of_namespaces(Answer::Error(errno));
    let of = |call, errno| Filter::of(call, Answer::Error(errno));
    let mut refused = vec![
        (of_namespaces(libc::EPERM), "cannot make namespaces"),
        (of_namespaces(libc::EINVAL), "cannot make namespaces"),
        (of(libc::SYS_execveat, libc::EPERM), "cannot execute the first process"),
        (Filter::of(libc::SYS_mount, Answer::Kills), "signal 31"),
        // Nothing of permissions, but it works never.
        (of(libc::SYS_umount2, libc::EIO), "do not work here: cannot let go of"),
    ];
    let mut short: Vec<_> =
        shortages.map(|errno| (of_namespaces(errno), "cannot make namespaces")).to_vec();
    // One error for each step, each in its turn.
    for (number, (call, words)) in steps().into_iter().enumerate() {
        // Without a host name of its own a sandbox is one all the same.
        if call != libc::SYS_sethostname {
            refused.push((of(call, refusals[number % refusals.len()]), words));
        }
        short.push((of(call, shortages[number % shortages.len()]), words));
    }
    for (filter, words) in refused {
        kernel::with(filter, || {
            let error = failure(false);
            let cause = not_isolated(&error);
            assert!(cause.reason().contains(words), "{filter:?}: {cause}");
            assert!(!cause.remedy().is_empty());
            let (isolation, output) = allowed("echo fine");
            assert!(isolation.not_isolated_because().unwrap().contains(words), "{isolation:?}");
            assert_eq!(output, "fine");
        });
    }
    for (filter, words) in short {
        // That less isolation is allowed does not make it known that there is less.
        kernel::with(filter, || {
            for allow in [false, true] {
                let error = failure(allow);
                assert_eq!(error.kind(), BackendErrorKind::Shortage, "{filter:?}: {error}");
                assert!(error.to_string().contains(words), "{filter:?}: {error}");
            }
        });
    }
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

/// The first processes of sandboxes that are children of this process.
fn first_processes() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let children = tasks.map(|task| fs::read_to_string(task.path().join("children")));
    let children = children.map(|list| {
        let is_first = |pid: &&str| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "tool-init\n")
        };
        list.unwrap_or_default().split_ascii_whitespace().filter(is_first).count()
    });
    children.sum()
}

#[test]
fn a_start_that_hangs_in_a_sandbox_is_interrupted() {
    if !alone::is_alone("isolation::a_start_that_hangs_in_a_sandbox_is_interrupted") {
        return;
    }
    let (base, config) = one_slot();
    let interrupt = Interrupt::new();
    let error = std::thread::scope(|scope| {
        let start = scope.spawn(|| {
            kernel::with(Filter::of(libc::SYS_sethostname, Answer::Never), || {
                LocalBackend::start_interruptible(config, &interrupt)
            })
        });
        until(|| first_processes() == 1);
        let interrupted = std::time::Instant::now();
        interrupt.interrupt();
        let error = start.join().unwrap().unwrap_err();
        assert!(interrupted.elapsed().as_secs() < 5, "{:?}", interrupted.elapsed());
        error
    });
    assert_eq!(error.kind(), BackendErrorKind::Interrupted, "{error}");
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    assert_eq!(first_processes(), 0, "the sandbox that hangs is left");
}
