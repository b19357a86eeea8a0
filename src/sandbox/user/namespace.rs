//! A user namespace with a range of ids, for a process of an ordinary user.
//!
//! `/etc/subuid` and `/etc/subgid` give users ids of their own, and `newuidmap` and `newgidmap`
//! (package `uidmap`) put them into a user namespace. Who enters one is root there, outside is the
//! user as before, and may act as any of these ids: then all of this engine works as it does for
//! root, but for what mounts cannot do.
//!
//! **Why the whole process enters.** The files of slots belong to those ids, and only a process in
//! such a namespace can read, write or remove them; the kernel lets no process enter one that has
//! threads. So the program enters before it has any. A library cannot: its host is started by
//! `tool-executor unshare`. The other design – the namespace of each machine mapped from outside –
//! costs two programs a machine, and all work with files would have to be done by a helper.
//!
//! **What is mapped.** Root is the user itself, 1 to 65,536 are the ids that the user was given,
//! and nothing else: not even those that `newuidmap` would allow besides. A line that gives ids of
//! another is not used. What was mapped is read back before it is entered.
//!
//! Nothing of this is known by a flag in this process: where there is no such namespace, the start
//! of the engine makes one as a trial, to say why ([`why_not_apart`]).

use std::ffi::CStr;
use std::fmt;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags};

use super::ids::{self, IdSpan, WHOLE};
use crate::sandbox::jail::Holder;

/// How long each of the two programs may take: they look users up, which may be a network away.
const MAP_LIMIT: Duration = Duration::from_secs(10);
/// What is shown of what one of them says.
const SHOWN_BYTES: u64 = 100;
/// From which id on one would give ranges to users, as `useradd` does.
const FIRST_GIVEN: u64 = 100_000;

/// Why a process has no range of user ids, and what would give it one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoUserRange {
    why: String,
    remedy: String,
}

impl NoUserRange {
    fn new(why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { why: why.into(), remedy: remedy.into() }
    }

    /// What would give it one, as one line; empty where nothing is known.
    pub fn remedy(&self) -> &str {
        &self.remedy
    }
}

impl fmt::Display for NoUserRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}

impl std::error::Error for NoUserRange {}

/// Has this process, of an ordinary user, enter a user namespace with the ids that `/etc/subuid`
/// and `/etc/subgid` give the user: it is root there, and outside the user as before. It gets a
/// mount namespace, too. For `main`, before there are threads. Blocks for some milliseconds, or as
/// long as it takes to look the user up.
///
/// Nothing happens where this process is root already.
///
/// # Errors
/// There are no such ids, or they cannot be had. The process is as it was.
pub fn enter() -> Result<(), NoUserRange> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let threads = std::fs::read_dir("/proc/self/task").map(Iterator::count).unwrap_or(0);
    if threads > 1 {
        return Err(has_threads(&format!("this process has {threads} threads")));
    }
    let holder = make()?;
    let failed = |error: io::Error| {
        NoUserRange::new(format!("the user namespace cannot be entered: {error}"), "")
    };
    let directory = std::env::current_dir();
    let both = libc::CLONE_NEWUSER | libc::CLONE_NEWNS;
    // SAFETY: the descriptor is open; both numbers are what the kernel takes.
    if unsafe { libc::setns(holder.as_fd().as_raw_fd(), both) } != 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    // With the mounts came their root directory. One that is gone had no name before either.
    if let Ok(directory) = directory {
        let _ = rustix::process::chdir(&directory);
    }
    Ok(())
}

/// What a process can be for whose user there are ids, if only it were started so.
fn has_threads(why: &str) -> NoUserRange {
    let remedy = "start the program by `tool-executor unshare PROGRAM …`, which gives it the \
                  user ids of /etc/subuid";
    NoUserRange::new(why, remedy)
}

/// Why this process cannot give each slot an id of its own, as one line: what is missing is tried.
/// Blocks as [`enter`] does.
pub(crate) fn why_not_apart() -> String {
    if rustix::process::geteuid().is_root() {
        return "only a root that can change users can give each slot one of its own".to_owned();
    }
    match make() {
        Ok(_) => has_threads("it is not in a user namespace with the ids that it could have"),
        Err(why) => why,
    }
    .to_string()
}

/// This process's user as the namespace around its own counts: the same number for a program that
/// has entered one and for one that has not.
pub(crate) fn number_outside() -> u32 {
    let uid = rustix::process::geteuid().as_raw();
    Maps::of_this_process().around(uid).map_or(uid, |[uid, _]| uid)
}

/// What an id is in the namespace around this process's own, as a user and as a group.
pub(crate) fn numbers_outside(id: u32) -> Option<[u32; 2]> {
    Maps::of_this_process().around(id)
}

/// What `/proc/self` says of the ids of a namespace.
struct Maps([String; 2]);

impl Maps {
    fn of_this_process() -> Self {
        let text = |file| std::fs::read_to_string(file).unwrap_or_default();
        Self(["/proc/self/uid_map", "/proc/self/gid_map"].map(text))
    }

    /// What an id is in the namespace around, as a user and as a group.
    fn around(&self, id: u32) -> Option<[u32; 2]> {
        let [users, groups] = &self.0;
        Some([ids::around(users, id)?, ids::around(groups, id)?])
    }
}

/// Makes such a namespace, and one of mounts in it, which last as long as the result.
fn make() -> Result<Holder, NoUserRange> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let text = |file| std::fs::read_to_string(file).unwrap_or_default();
    let given = Given {
        user: &name_of(uid).unwrap_or_else(|| uid.to_string()),
        uid,
        files: ["/etc/subuid", "/etc/subgid"].map(|file| (file, text(file))),
        named: ["/etc/passwd", "/etc/group"].map(|file| ids::named(&text(file))),
    };
    let ranges = given.ranges()?;
    let holder = Holder::new(libc::CLONE_NEWUSER | libc::CLONE_NEWNS).map_err(|error| {
        NoUserRange::new(format!("the system makes no user namespace: {error}"), "")
    })?;
    for (program, own, range) in [("newuidmap", uid, ranges[0]), ("newgidmap", gid, ranges[1])] {
        map(program, holder.pid(), own, range)?;
    }
    Ok(holder)
}

/// The name of a user, as the system looks it up.
fn name_of(uid: u32) -> Option<String> {
    let mut buffer = vec![0u8; 16 * 1024];
    // SAFETY: all zeroes is a value of this structure, which is written before it is read.
    let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
    let mut found = std::ptr::null_mut();
    // SAFETY: the structure and the buffer outlive the call, which is told the buffer's length.
    let failed = unsafe {
        libc::getpwuid_r(uid, &mut entry, buffer.as_mut_ptr().cast(), buffer.len(), &mut found)
    };
    if failed != 0 || found.is_null() {
        return None;
    }
    // SAFETY: the call has set it to a string with a NUL in the buffer.
    let name = unsafe { CStr::from_ptr(entry.pw_name) };
    name.to_str().ok().map(str::to_owned)
}

/// What the system says of who has which ids.
struct Given<'a> {
    user: &'a str,
    uid: u32,
    /// Their names, and what they say.
    files: [(&'static str, String); 2],
    /// The ids of users and of groups that have a name.
    named: [Vec<IdSpan>; 2],
}

impl Given<'_> {
    /// The range of users and the range of groups that the user is given.
    ///
    /// # Errors
    /// There is none, it is too small, or it is another's.
    fn ranges(&self) -> Result<[IdSpan; 2], NoUserRange> {
        Ok([self.range(0)?, self.range(1)?])
    }

    fn range(&self, which: usize) -> Result<IdSpan, NoUserRange> {
        let (file, text) = &self.files[which];
        let user = self.user;
        let (mut own, mut others): (Vec<IdSpan>, Vec<IdSpan>) = Default::default();
        for (owner, span) in ids::delegations(text) {
            match owner == user || owner.parse() == Ok(self.uid) {
                true => own.push(span),
                false => others.push(span),
            }
        }
        let line = self.line();
        if own.is_empty() {
            let why = format!("{file} gives {user} no user ids");
            return Err(NoUserRange::new(why, format!("add {line}")));
        }
        let large: Vec<_> = own.iter().filter(|span| span.count >= WHOLE).collect();
        if large.is_empty() {
            let most = own.iter().map(|span| span.count).max().unwrap_or(0);
            let why = format!("{file} gives {user} {most} ids, and it takes {WHOLE} in one line");
            return Err(NoUserRange::new(why, format!("add {line}")));
        }
        let ours = IdSpan::new(self.uid, 1);
        let first = large.into_iter().map(|span| IdSpan::new(span.first, WHOLE));
        let is_free = |span: &IdSpan| {
            let taken = others.iter().chain(&self.named[which]).chain([&ours]);
            span.first > 0 && !taken.into_iter().any(|other| other.overlaps(*span))
        };
        let mut all = first.peekable();
        let shown = all.peek().copied();
        all.find(is_free).ok_or_else(|| {
            let IdSpan { first, count } = shown.unwrap_or(ours);
            let why =
                format!("of the ids {first}:{count} that {file} gives {user} others have some");
            NoUserRange::new(why, format!("put in its place {line}"))
        })
    }

    /// The line that would give the user ids that no one has.
    fn line(&self) -> String {
        let all = self.files.iter().flat_map(|(_, text)| ids::delegations(text));
        let ends = all.map(|(_, span)| span.end());
        let next = ends.max().unwrap_or(0).max(FIRST_GIVEN).next_multiple_of(u64::from(WHOLE));
        let free = next.max(FIRST_GIVEN);
        format!("the line {}:{free}:{WHOLE} to /etc/subuid and to /etc/subgid", self.user)
    }
}

/// Has one of the programs give a process's namespace its ids, and looks whether these are there.
fn map(program: &str, pid: i32, own: u32, range: IdSpan) -> Result<(), NoUserRange> {
    let IdSpan { first, count } = range;
    let numbers = [0, own, 1, 1, first, count].map(|number| number.to_string());
    #[expect(
        clippy::disallowed_methods,
        reason = "no command of a model's: the system's program, which looks users up"
    )]
    let mut command = Command::new(program);
    command.arg(pid.to_string()).args(&numbers);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => NoUserRange::new(
            format!("{program} is not installed"),
            "install it (package uidmap on Debian and Ubuntu, shadow-utils on Fedora)",
        ),
        _ => NoUserRange::new(format!("{program} cannot be started: {error}"), ""),
    })?;
    let said = end_of(&mut child);
    // What counts is what is there: a host may reap every child, and its status with it.
    let file = if program == "newuidmap" { "uid_map" } else { "gid_map" };
    let mapped = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let words =
        |text: &str| -> Vec<String> { text.split_ascii_whitespace().map(str::to_owned).collect() };
    if words(&mapped) == numbers {
        return Ok(());
    }
    let why = match said {
        Ok(said) if said.is_empty() => format!("{program} has mapped nothing"),
        Ok(said) => format!("{program} says: {said}"),
        Err(error) => format!("{program} did not end in {MAP_LIMIT:?}: {error}"),
    };
    let remedy = format!(
        "{program} must be set-user-ID root or have the capability, on a file system without \
         nosuid, and be started without no_new_privs"
    );
    Err(NoUserRange::new(why, remedy))
}

/// Waits for the end of a program, and gives what it has said, as one line.
fn end_of(child: &mut Child) -> io::Result<String> {
    let deadline = Instant::now() + MAP_LIMIT;
    let pid = Pid::from_child(child);
    let ended = rustix::process::pidfd_open(pid, PidfdFlags::empty());
    if let Ok(pidfd) = ended {
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = left.try_into().map_err(io::Error::other)?;
            match rustix::event::poll(&mut fds, Some(&left)) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(0) => {
                    child.kill()?;
                    let _ = child.wait();
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Ok(_) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    // The host may have reaped it.
    let _ = child.wait();
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(SHOWN_BYTES).read_to_end(&mut said)?;
    }
    let said = String::from_utf8_lossy(&said).replace(|c: char| c.is_control(), " ");
    Ok(said.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(subuid: &str, subgid: &str) -> Result<[IdSpan; 2], String> {
        let given = Given {
            user: "me",
            uid: 1000,
            files: [("/etc/subuid", subuid.to_owned()), ("/etc/subgid", subgid.to_owned())],
            named: [ids::named("x:x:300000:7::\n"), ids::named("y:x:400000:\n")],
        };
        given.ranges().map_err(|error| error.to_string())
    }

    #[test]
    fn the_ids_of_the_user_are_found_by_name_or_number() {
        let both = |first| Ok([IdSpan::new(first, WHOLE); 2]);
        let mine = "you:100000:65536\nme:165536:65536\n";
        assert_eq!(given(mine, mine), both(165_536));
        let by_number = "1000:231072:1000000\n";
        assert_eq!(given(by_number, by_number), both(231_072));
        // The first line that will do.
        let several = "me:500000:10\nme:600000:65536\nme:700000:65536\n";
        assert_eq!(given(several, several), both(600_000));
        let apart = given("me:500000:65536\n", "me:600000:65536\n").unwrap();
        assert_eq!(apart.map(|span| span.first), [500_000, 600_000]);
    }

    #[test]
    fn who_has_no_ids_is_told_the_line_that_would_give_some_that_are_free() {
        let line = "the line me:196608:65536 to /etc/subuid and to /etc/subgid";
        let none = given("you:100000:65536\n", "").unwrap_err();
        assert_eq!(none, format!("/etc/subuid gives me no user ids; add {line}"));
        let none = given("", "").unwrap_err();
        assert!(none.ends_with("add the line me:131072:65536 to /etc/subuid and to /etc/subgid"));
        let few = given("me:100000:1000\n", "").unwrap_err();
        assert!(few.contains("gives me 1000 ids, and it takes 65536 in one line; add"), "{few}");
        let groups = given("me:100000:65536\n", "").unwrap_err();
        assert!(groups.starts_with("/etc/subgid gives me no"), "{groups}");
    }

    #[test]
    fn ids_of_others_are_never_used() {
        for others in [
            "you:165535:10\nme:100000:65536\n",
            "me:250000:65536\n",
            "me:0:65536\n",
            "me:900:65536\n",
        ] {
            let refused = given(others, others).unwrap_err();
            assert!(
                refused.contains("others have some; put in its place the line me:"),
                "{refused}"
            );
        }
        // Another line will do.
        let other = "me:250000:65536\nme:500000:65536\n";
        assert_eq!(given(other, other).unwrap()[0].first, 500_000);
    }
}
