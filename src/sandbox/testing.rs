//! What tests of several modules need: racing threads, a disk that does not answer, and a file
//! system that is soon full.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};

use parking_lot::Mutex;
use rustix::fs::{CWD, RenameFlags};

use super::spool::{Spool, THREADS};

/// Tells the test in the other process where the small file system is.
const SMALL_VARIABLE: &str = "TOOL_EXECUTOR_TEST_SMALL";

/// Runs a test's body in a process of its own, where no other test's processes, threads and files
/// are. `test` is its name with all modules: `concat!(module_path!(), "::…")`.
pub(super) fn alone(test: &str, body: impl FnOnce()) {
    const VARIABLE: &str = "TOOL_EXECUTOR_TEST_ALONE";
    if std::env::var_os(VARIABLE).is_some() {
        return body();
    }
    let (_crate, test) = test.split_once("::").unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "--test-threads=1", test])
        .env(VARIABLE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{errors}");
}

/// Makes this process one whose caller has left it nothing as it usually is: signals are ignored
/// and blocked, the umask lets nothing through. Only in a process of the test's [own](alone).
pub(super) fn be_a_hostile_host() {
    // SIGKILL and SIGSTOP cannot be ignored, and the standard library's handlers for SIGSEGV and
    // SIGBUS stay.
    for signal in (1..32).filter(|signal| ![7, 9, 11, 19].contains(signal)) {
        // SAFETY: sets a disposition; this process is the test's own.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // SAFETY: a signal set is made, and this thread's mask set; its threads inherit it.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
    }
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
}

/// Prints the sets of blocked and ignored signals and the umask, as a command gets them.
pub(super) const INHERITED: &str = "grep -E 'Sig(Blk|Ign)' /proc/self/status | cut -f2; umask";

/// Checks what [`INHERITED`] has printed: nothing of the host's.
pub(super) fn assert_nothing_inherited(printed: &str) {
    let [blocked, ignored, umask] = *printed.lines().collect::<Vec<_>>() else {
        panic!("{printed:?}");
    };
    for set in [blocked, ignored] {
        // 32 and 33 belong to the C library, which keeps everybody's hands off them.
        let set = u64::from_str_radix(set, 16).unwrap() & !(0b11 << 31);
        assert_eq!(set, 0, "{printed}");
    }
    assert_eq!(umask, "0022");
}

/// Ends a racing thread, also when a test fails.
pub(super) struct SetOnDrop<'a>(pub(super) &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Does `work` so many times while another thread swaps the entries `a` and `b`.
pub(super) fn while_swapping(a: &Path, b: &Path, times: usize, work: impl FnMut(usize)) {
    let over = AtomicBool::new(false);
    let swapped = std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut swapped = 0_u64;
            while !over.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).unwrap();
                swapped += 1;
            }
            swapped
        });
        {
            let _end = SetOnDrop(&over);
            (0..times).for_each(work);
        }
        swapper.join().unwrap()
    });
    assert!(swapped > 1_000, "only {swapped} swaps: nothing was raced");
}

/// Has the test of this name run once more, in a process that sees a file system of `bytes` bytes.
pub(super) fn with_small_file_system(bytes: u64, test: &str) {
    let outer = tempfile::tempdir().unwrap();
    let mount = format!("mount -t tmpfs -o size={bytes},mode=0755 tmpfs \"$0\"");
    let status = with_mounts(&mount, outer.path(), test, SMALL_VARIABLE);
    assert!(status.success());
}

/// Runs the test of this name once more, in a process with mounts of its own, which this script
/// makes: it finds `outer` as its `$0`, and the process in this variable.
pub(super) fn with_mounts(script: &str, outer: &Path, test: &str, variable: &str) -> ExitStatus {
    let mut command = Command::new("unshare");
    command.arg("--mount");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-current-user", "--keep-caps"]);
    }
    command
        .args(["sh", "-c", &format!("{script} && exec \"$@\"")])
        .arg(outer)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(variable, outer);
    command.status().expect("util-linux is installed")
}

/// Where the small file system is, in the process that sees one.
pub(super) fn small_file_system() -> Option<PathBuf> {
    std::env::var_os(SMALL_VARIABLE).map(PathBuf::from)
}

/// Lets a spool's threads go when it is dropped.
pub(super) struct Held(#[expect(dead_code, reason = "dropped")] Sender<()>);

/// Keeps the threads from writing, as a disk does that does not answer.
pub(super) fn hold(spool: &Spool) -> Held {
    let (held, wait) = channel::<()>();
    let wait = Arc::new(Mutex::new(wait));
    let (tell, told) = channel();
    for _ in 0..THREADS {
        let (wait, tell) = (wait.clone(), tell.clone());
        spool.occupy(move || {
            tell.send(()).unwrap();
            let _ = wait.lock().recv();
        });
    }
    // Both threads are at it; one waits for the lock, the other for the test.
    (0..THREADS).for_each(|_| told.recv().unwrap());
    Held(held)
}
