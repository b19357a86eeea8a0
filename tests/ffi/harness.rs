//! Compiles and runs the programs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What a program is written in.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Language {
    C,
    Cpp,
}

/// Which library it is linked with.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Linked {
    Shared,
    Static,
    /// None: it loads the shared one itself.
    Loads,
}

/// What watches it.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Under {
    Nothing,
    Sanitizers,
    Valgrind,
}

/// A program to be compiled.
#[derive(Clone)]
pub(crate) struct Program {
    pub(crate) source: PathBuf,
    pub(crate) language: Language,
    pub(crate) linked: Linked,
}

/// Longer than the programs' own watchdogs.
const LIMIT: Duration = Duration::from_secs(300);

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where the libraries are that were built along with this test: beside its own program.
fn built() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.parent().unwrap().to_owned()
}

/// A directory with the libraries as they are installed: without what only a debugger reads, of
/// which a debug build has so much that valgrind spends a minute on it.
pub(crate) fn libraries() -> &'static Path {
    static LIBRARIES: OnceLock<PathBuf> = OnceLock::new();
    LIBRARIES.get_or_init(|| {
        // A build without the feature may have put another one in its place, which cargo does not
        // notice.
        let library = built().join("libtool_executor.so");
        let has_functions = std::fs::read(&library)
            .is_ok_and(|bytes| bytes.windows(15).any(|text| text == b"te_executor_new"));
        assert!(
            has_functions,
            "the test's own build has left no {} with the C ABI in it: cargo clean -p tool-executor",
            library.display()
        );
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("ffi-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for name in ["libtool_executor.so", "libtool_executor.a"] {
            let stripped = Command::new("strip")
                .arg("--strip-debug")
                .arg("-o")
                .args([dir.join(name), built().join(name)])
                .status()
                .expect("strip, of binutils");
            assert!(stripped.success());
        }
        remove_others(&dir);
        dir
    })
}

/// Removes what earlier runs of this test have left, whose processes are not there any more.
fn remove_others(ours: &Path) {
    for entry in std::fs::read_dir(ours.parent().unwrap()).unwrap().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix("ffi-")) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// The names that the shared library exports.
pub(crate) fn exported() -> Vec<String> {
    let output = Command::new("nm")
        .args(["--dynamic", "--defined-only", "--format=posix"])
        .arg(libraries().join("libtool_executor.so"))
        .output()
        .expect("nm, of binutils");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

/// Says that something could not be run; in CI, where that is not read, it is an error.
pub(crate) fn not_run(what: &str) {
    assert!(std::env::var_os("CI").is_none(), "NOT RUN: {what}");
    eprintln!("NOT RUN: {what}");
}

fn compiler(language: Language) -> Command {
    let (variable, default) = match language {
        Language::C => ("CC", "cc"),
        Language::Cpp => ("CXX", "c++"),
    };
    Command::new(std::env::var_os(variable).unwrap_or(default.into()))
}

/// Whether programs under AddressSanitizer, with a search for leaks, run here.
fn sanitizers_work() -> bool {
    static WORK: OnceLock<bool> = OnceLock::new();
    *WORK.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let (source, program) = (dir.path().join("x.c"), dir.path().join("x"));
        std::fs::write(&source, "int main(void) { return 0; }\n").unwrap();
        let compiled = compiler(Language::C)
            .args(["-fsanitize=address,undefined", "-o"])
            .args([&program, &source])
            .status();
        let works = compiled.is_ok_and(|status| status.success())
            && Command::new(&program).status().is_ok_and(|status| status.success());
        if !works {
            not_run("AddressSanitizer: the compiler or this machine does not have it");
        }
        works
    })
}

fn valgrind_works() -> bool {
    static WORK: OnceLock<bool> = OnceLock::new();
    *WORK.get_or_init(|| {
        let works = Command::new("valgrind")
            .args(["-q", "true"])
            .status()
            .is_ok_and(|status| status.success());
        if !works {
            not_run("valgrind: not installed, or does not work here");
        }
        works
    })
}

impl Program {
    /// A C program of this directory, with the shared library.
    pub(crate) fn c(name: &str) -> Self {
        let source = root().join("tests/ffi").join(name).with_extension("c");
        Self { source, language: Language::C, linked: Linked::Shared }
    }

    /// Compiles it to a program in `dir`.
    pub(crate) fn compile(&self, dir: &Path, under: Under) -> PathBuf {
        let program = dir.join("program");
        let mut command = compiler(self.language);
        match self.language {
            Language::C => command.args(["-std=c99", "-D_POSIX_C_SOURCE=200809L"]),
            Language::Cpp => command.args(["-std=c++17", "-fno-exceptions", "-x", "c++"]),
        };
        command.args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g", "-O1", "-pthread"]);
        if under == Under::Sanitizers {
            command.args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]);
            command.arg("-fno-omit-frame-pointer");
        }
        for include in ["include", "tests/ffi", "examples/cpp"] {
            command.arg("-I").arg(root().join(include));
        }
        command.arg(&self.source).args(["-x", "none", "-o"]).arg(&program);
        let libraries = libraries();
        match self.linked {
            Linked::Shared => {
                command.arg("-L").arg(libraries).arg("-ltool_executor");
                command.arg(format!("-Wl,-rpath,{}", libraries.display()));
            }
            Linked::Static => {
                command.arg(libraries.join("libtool_executor.a"));
                command.args(["-lgcc_s", "-lutil", "-lrt", "-lpthread", "-lm", "-ldl"]);
            }
            Linked::Loads => {
                command.arg("-ldl");
            }
        }
        let output = command.output().expect("a C compiler; tests/install-tools installs one");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {errors}", self.source.display());
        program
    }

    /// Compiles and runs it, in a directory of its own; its standard output.
    pub(crate) fn run(&self, under: Under, args: &[&str]) -> String {
        let works = match under {
            Under::Nothing => true,
            Under::Sanitizers => sanitizers_work(),
            Under::Valgrind => valgrind_works(),
        };
        if !works {
            return String::new();
        }
        let dir = workplace();
        let program = self.compile(dir.path(), under);
        let mut command = match under {
            Under::Valgrind => {
                let mut command = Command::new("valgrind");
                command.args([
                    "-q",
                    "--error-exitcode=99",
                    "--leak-check=full",
                    "--fair-sched=yes",
                ]);
                command.args(["--errors-for-leak-kinds=definite,indirect", "--num-callers=30"]);
                command.arg("--show-leak-kinds=definite,indirect");
                command.arg(format!(
                    "--suppressions={}",
                    root().join("tests/ffi/valgrind.supp").display()
                ));
                command.arg(&program);
                command.env("TE_TEST_FEW", "1");
                command
            }
            _ => Command::new(&program),
        };
        let strict = "abort_on_error=1:detect_leaks=1:detect_stack_use_after_return=1";
        command.env("ASAN_OPTIONS", strict).env("UBSAN_OPTIONS", "print_stacktrace=1");
        // Cargo's points to the libraries that are not stripped.
        command.env("LD_LIBRARY_PATH", libraries());
        command.env("TE_LIBRARY", libraries().join("libtool_executor.so"));
        command.args(args);
        let name = self.source.file_name().unwrap();
        run(command, dir.path(), name)
    }
}

/// A directory for one program, which commands of root's, who run as nobody, may pass through.
pub(crate) fn workplace() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::Builder::new().prefix("te-ffi-").tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// Runs a program to its end, which must be a success, and come in time.
pub(crate) fn run(mut command: Command, dir: &Path, name: &OsStr) -> String {
    let (out, err) = (dir.join("stdout"), dir.join("stderr"));
    let file = |path| Stdio::from(std::fs::File::create(path).unwrap());
    command.current_dir(dir).env("TMPDIR", dir);
    let mut child =
        command.stdin(Stdio::null()).stdout(file(&out)).stderr(file(&err)).spawn().unwrap();
    let until = Instant::now() + LIMIT;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if Instant::now() > until => {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let read = |path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
    let (out, err) = (read(&out), read(&err));
    let ended = status.map_or("it hangs".to_owned(), |status| status.to_string());
    assert!(
        status.is_some_and(|status| status.success()),
        "{}: {command:?}: {ended}\n--- stdout\n{out}\n--- stderr\n{err}",
        name.display()
    );
    // Also of a child's, whose exit code is not seen.
    for error in ["== Invalid", "uninitialised", "AddressSanitizer"] {
        assert!(!err.contains(error), "{}: {err}", name.display());
    }
    if !err.is_empty() {
        eprintln!("{}: {err}", name.display());
    }
    out
}
