//! Makes the jail out of the namespaces that this process was born in, step by step as the engine
//! has planned it. Nothing else runs in them yet.
//!
//! The process has the capabilities that its steps need, in its own namespaces, until
//! [`DROP_RIGHTS`](step::DROP_RIGHTS). A step that fails ends it: the engine is told which, and
//! why.

use crate::arch;
use crate::message::SOCKET_FD;
use crate::message::step::{self, Head};
use crate::system::*;

const EINVAL: i32 = 22;
const ENOENT: isize = -2;
const EACCES: isize = -13;
const ELOOP: isize = -40;

const CLONE_NEWCGROUP: usize = 0x0200_0000;
const MS_REC: usize = 0x4000;
const MS_PRIVATE: usize = 0x4_0000;
const MS_NOSUID: usize = 2;
const MS_NODEV: usize = 4;
const MNT_DETACH: usize = 2;

const OPEN_TREE_CLONE: usize = 1;
const AT_RECURSIVE: usize = 0x8000;
const AT_EMPTY_PATH: usize = 0x1000;
const AT_REMOVEDIR: usize = 0x200;
const MOVE_MOUNT_F_EMPTY_PATH: usize = 4;
const MOVE_MOUNT_T_EMPTY_PATH: usize = 0x40;

const RESOLVE_NO_SYMLINKS: u64 = 4;
const RESOLVE_IN_ROOT: u64 = 0x10;
/// The longest path that is looked for beneath another root.
const LONGEST_PLACE: usize = 1024;

const PR_CAPBSET_DROP: usize = 24;
const PR_SET_SECCOMP: usize = 22;
const SECCOMP_MODE_FILTER: usize = 2;
const PR_SET_NO_NEW_PRIVS: usize = 38;
const PR_CAP_AMBIENT: usize = 47;
const PR_CAP_AMBIENT_CLEAR_ALL: usize = 4;

/// The kernel's `struct mount_attr`.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// The kernel's `struct open_how`.
#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// The trees that were taken hold of.
struct Sources {
    fds: [i32; step::MOST_SOURCES],
    count: usize,
}

/// The user that programs are to be.
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: [u32; step::MOST_GROUPS],
    pub(crate) count: usize,
}

/// What the steps leave behind.
pub(crate) struct Made {
    /// The listening socket of the proxy, or [`NO_FD`].
    pub(crate) proxy: i32,
    /// Whom programs are to be, if not what this process is.
    pub(crate) user: Option<User>,
}

/// Carries all steps out. The first sources are those that the engine has `given`.
///
/// # Errors
/// The first step that failed, and the error's number.
pub(crate) fn set_up(
    steps: &[u8],
    count: usize,
    given: &[i32; MOST_FDS],
) -> Result<Made, (u32, i32)> {
    let mut sources = Sources { fds: [NO_FD; step::MOST_SOURCES], count: 0 };
    sources.fds[..MOST_FDS].copy_from_slice(given);
    sources.count = given.iter().filter(|fd| **fd != NO_FD).count();
    let mut made = Made { proxy: NO_FD, user: None };
    let mut rest = steps;
    for number in 0..count {
        let failed = |errno: i32| (number as u32, errno);
        let (head, text, more) = Head::split_first(rest).ok_or(failed(EINVAL))?;
        rest = more;
        match head.kind {
            step::LISTEN => made.proxy = listen(head.number as u16).map_err(failed)?,
            step::ENTER => enter(text, head.flag, made.user.as_ref()).map_err(failed)?,
            step::USER => made.user = Some(user(head.number, text).ok_or(failed(EINVAL))?),
            _ => carry_out(head, text, &mut sources).map_err(failed)?,
        }
    }
    Ok(made)
}

fn user(ids: u64, text: &[u8]) -> Option<User> {
    let mut user =
        User { uid: ids as u32, gid: (ids >> 32) as u32, groups: [0; step::MOST_GROUPS], count: 0 };
    for group in text.chunks_exact(4) {
        *user.groups.get_mut(user.count)? = u32::from_ne_bytes(group.try_into().ok()?);
        user.count += 1;
    }
    Some(user)
}

/// # Errors
/// The number of the error.
fn carry_out(head: Head, text: &[u8], sources: &mut Sources) -> Result<(), i32> {
    let number = head.number as usize;
    match head.kind {
        step::WRITE => {
            let [path, value] = strings(text)?;
            let file = done(call!(arch::OPENAT, AT_FDCWD, path, O_WRONLY | O_CLOEXEC))?;
            // SAFETY: a string of the message, with its NUL.
            let length = unsafe { core::ffi::CStr::from_ptr(value.cast()) }.to_bytes().len();
            let written = done(call!(arch::WRITE, file, value, length));
            call!(arch::CLOSE, file);
            written.map(|_| ())
        }
        step::JOIN_CGROUP => {
            let tasks = *sources.fds.get(number).ok_or(EINVAL)?;
            // This process: the kernel does not wait for all others then, as it does when another
            // one is moved.
            let joined = done(call!(arch::WRITE, tasks, c"0".as_ptr(), 1));
            call!(arch::CLOSE, tasks);
            if head.flag & step::OPTIONAL != 0 { Ok(()) } else { joined.map(|_| ()) }
        }
        step::OWN_CGROUPS => check(call!(arch::UNSHARE, CLONE_NEWCGROUP)),
        step::MAKE_PRIVATE => {
            let root = c"/".as_ptr();
            check(call!(arch::MOUNT, 0, root, 0, MS_REC | MS_PRIVATE, 0))
        }
        step::SOURCE => {
            let [path] = strings(text)?;
            sources.take(path, head.number, head.flag & step::OPTIONAL != 0)
        }
        step::ROOT => {
            let [place, options] = strings(text)?;
            let kind = c"tmpfs".as_ptr();
            check(call!(arch::MOUNT, kind, place, kind, MS_NOSUID | MS_NODEV, options))?;
            check(call!(arch::CHDIR, place))?;
            let here = c".".as_ptr();
            check(call!(arch::PIVOT_ROOT, here, here))
        }
        step::DIRECTORY => {
            let [path] = strings(text)?;
            check(call!(arch::MKDIRAT, AT_FDCWD, path, number))
        }
        step::FILE => {
            let [path] = strings(text)?;
            let flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC;
            let file = done(call!(arch::OPENAT, AT_FDCWD, path, flags, number))?;
            call!(arch::CLOSE, file);
            Ok(())
        }
        step::LINK => {
            let [target, place] = strings(text)?;
            check(call!(arch::SYMLINKAT, target, AT_FDCWD, place))
        }
        step::ATTACH => {
            let [path] = strings(text)?;
            let tree = *sources.fds.get(number).ok_or(EINVAL)?;
            if tree == NO_FD {
                return Ok(());
            }
            let nothing = c"".as_ptr();
            let moved =
                call!(MOVE_MOUNT, tree, nothing, AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH);
            call!(arch::CLOSE, tree);
            check(moved)
        }
        step::MOUNT => {
            let [kind, place, options] = strings(text)?;
            check(call!(arch::MOUNT, kind, place, kind, number, options))
        }
        step::ATTRIBUTES => {
            let [path] = strings(text)?;
            set_attributes(AT_FDCWD, path, 0, head.number)
        }
        step::HOST_NAME => {
            check(call!(arch::SETHOSTNAME, text.as_ptr(), text.len().saturating_sub(1)))
        }
        step::LOOPBACK => bring_loopback_up(),
        step::FORGET_HOST => check(call!(arch::UMOUNT2, c".".as_ptr(), MNT_DETACH)),
        step::CLEAR => {
            let [path] = strings(text)?;
            check(call!(arch::UMOUNT2, path, MNT_DETACH))?;
            check(call!(arch::UNLINKAT, AT_FDCWD, path, AT_REMOVEDIR))
        }
        step::MOVE => {
            let [root, place] = strings(text)?;
            move_beneath(root, place, head.flag)
        }
        step::CHANGE_ROOT => {
            let [path] = strings(text)?;
            check(call!(arch::CHDIR, path))?;
            let here = c".".as_ptr();
            check(call!(arch::PIVOT_ROOT, here, here))?;
            check(call!(arch::UMOUNT2, here, MNT_DETACH))?;
            check(call!(arch::CHDIR, c"/".as_ptr()))
        }
        step::GROUP => {
            // It tells which it was, and never fails.
            call!(arch::SETFSGID, number);
            Ok(())
        }
        step::DROP_RIGHTS => drop_rights(head.number),
        step::FILTER => {
            // The kernel's `struct sock_fprog`: how many instructions of 8 bytes, and where.
            let program = [text.len() / 8, text.as_ptr() as usize];
            check(call!(arch::PRCTL, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program.as_ptr()))
        }
        _ => Err(EINVAL),
    }
}

impl Sources {
    /// A copy of the tree at `path`, which is nowhere yet. Symbolic links are followed, as the host
    /// sees them.
    fn take(&mut self, path: *const u8, attributes: u64, is_optional: bool) -> Result<(), i32> {
        let place = self.fds.get_mut(self.count).ok_or(EINVAL)?;
        self.count += 1;
        let flags = OPEN_TREE_CLONE | O_CLOEXEC | AT_RECURSIVE;
        let tree = call!(OPEN_TREE, AT_FDCWD, path, flags);
        if matches!(tree, ENOENT | EACCES) && is_optional {
            return Ok(());
        }
        *place = done(tree)? as i32;
        let nothing = c"".as_ptr().cast();
        set_attributes(*place as isize, nothing, AT_EMPTY_PATH | AT_RECURSIVE, attributes)
    }
}

/// Moves what is mounted at `place` to the same place in what will be the root. What is there was
/// made by others: links on the way lead to places in that root only.
fn move_beneath(root: *const u8, place: *const u8, flag: u8) -> Result<(), i32> {
    let directory = O_PATH | arch::O_DIRECTORY | O_CLOEXEC;
    let source = call!(arch::OPENAT, AT_FDCWD, place, directory);
    let is_directory = source >= 0;
    if is_directory {
        call!(arch::CLOSE, source);
    }
    let root = done(call!(arch::OPENAT, AT_FDCWD, root, directory))?;
    let target = place_beneath(root, place, is_directory, flag & step::NO_LINKS != 0);
    call!(arch::CLOSE, root);
    let target = target?;
    let nothing = c"".as_ptr();
    let moved =
        call!(MOVE_MOUNT, AT_FDCWD, place, target, nothing, MOVE_MOUNT_T_EMPTY_PATH);
    call!(arch::CLOSE, target);
    match moved == -(EINVAL as isize) && flag & step::OPTIONAL != 0 {
        true => Ok(()),
        false => check(moved),
    }
}

/// Opens the absolute path `place` beneath `root`, and makes what is missing of it. In the place of
/// a file a link that leads to none gives way.
fn place_beneath(
    root: isize,
    place: *const u8,
    is_directory: bool,
    no_links: bool,
) -> Result<isize, i32> {
    // SAFETY: a string of the message, with its NUL.
    let place = unsafe { core::ffi::CStr::from_ptr(place.cast()) }.to_bytes_with_nul();
    let mut path = [0u8; LONGEST_PLACE];
    let resolve = if no_links { RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS } else { RESOLVE_IN_ROOT };
    let open = |path: &[u8], flags: usize| {
        let flags = (O_PATH | O_CLOEXEC | flags) as u64;
        let how = OpenHow { flags, mode: 0, resolve };
        call!(OPENAT2, root, path.as_ptr(), &raw const how, size_of::<OpenHow>())
    };
    // Behind the slash that it begins with; each slash after that, and the NUL, ends an entry's
    // path.
    let place = place.get(1..).filter(|place| place.len() < LONGEST_PLACE).ok_or(EINVAL)?;
    let (mut above, mut start) = (NO_FD as isize, 0);
    for (end, byte) in place.iter().enumerate() {
        if *byte != b'/' && *byte != 0 {
            continue;
        }
        path[..end].copy_from_slice(&place[..end]);
        path[end] = 0;
        let is_last = *byte == 0;
        let as_directory = !is_last || is_directory;
        let flags = if as_directory { arch::O_DIRECTORY } else { 0 };
        let mut found = open(&path, flags);
        if found == ENOENT || (!as_directory && found == ELOOP) {
            let dir = if above == NO_FD as isize { root } else { above };
            let mut name = [0u8; LONGEST_PLACE];
            name[..end - start].copy_from_slice(&place[start..end]);
            make(dir, name.as_ptr(), as_directory)?;
            found = open(&path, flags);
        }
        if above != NO_FD as isize {
            call!(arch::CLOSE, above);
        }
        above = done(found)?;
        start = end + 1;
    }
    Ok(above)
}

/// Makes an empty directory or file. A link that leads nowhere gives way to a file.
fn make(dir: isize, name: *const u8, is_directory: bool) -> Result<(), i32> {
    if is_directory {
        return check(call!(arch::MKDIRAT, dir, name, 0o755));
    }
    let removed = call!(arch::UNLINKAT, dir, name, 0);
    if removed != ENOENT {
        check(removed)?;
    }
    let flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC;
    let file = done(call!(arch::OPENAT, dir, name, flags, 0o644))?;
    call!(arch::CLOSE, file);
    Ok(())
}

fn set_attributes(dir: isize, path: *const u8, flags: usize, set: u64) -> Result<(), i32> {
    let attributes = MountAttributes { set, clear: 0, propagation: 0, user_namespace: 0 };
    let size = size_of::<MountAttributes>();
    check(call!(MOUNT_SETATTR, dir, path, flags, &raw const attributes, size))
}

/// An interface that comes up gets its addresses from the kernel. It is given another one besides:
/// the C library takes a machine whose only address is 127.0.0.1 for one without IPv4, and then
/// finds no `localhost` for who asks for usable addresses alone (`AI_ADDRCONFIG`).
fn bring_loopback_up() -> Result<(), i32> {
    const SIOCSIFADDR: usize = 0x8916;
    const SIOCGIFFLAGS: usize = 0x8913;
    const SIOCSIFFLAGS: usize = 0x8914;
    const IFF_UP: u8 = 1;
    // AF_INET, SOCK_DGRAM
    let socket = done(call!(arch::SOCKET, 2, 2 | O_CLOEXEC, 0))?;
    // The kernel's `struct ifreq`: a name of 16 bytes, then the flags.
    let mut request = [0u8; 40];
    request[..2].copy_from_slice(b"lo");
    let set = check(call!(arch::IOCTL, socket, SIOCGIFFLAGS, request.as_mut_ptr())).and_then(|()| {
        request[16] |= IFF_UP;
        check(call!(arch::IOCTL, socket, SIOCSIFFLAGS, request.as_ptr()))
    });
    let set = set.and_then(|()| {
        let mut request = [0u8; 40];
        request[..4].copy_from_slice(b"lo:1");
        // The kernel's `struct sockaddr_in`.
        request[16..18].copy_from_slice(&2u16.to_ne_bytes());
        request[20..24].copy_from_slice(&[127, 0, 1, 1]);
        check(call!(arch::IOCTL, socket, SIOCSIFADDR, request.as_ptr()))
    });
    call!(arch::CLOSE, socket);
    set
}

/// A socket that listens at a port of the loopback interface, which is up. No other can share its
/// port: for that both would have to ask.
fn listen(port: u16) -> Result<i32, i32> {
    const F_DUPFD_CLOEXEC: usize = 1030;
    // AF_INET, SOCK_STREAM
    let socket = done(call!(arch::SOCKET, 2, 1 | O_CLOEXEC, 0))?;
    // The kernel's `struct sockaddr_in`, of 16 bytes.
    let mut address = [0u8; 16];
    address[..2].copy_from_slice(&2u16.to_ne_bytes());
    address[2..4].copy_from_slice(&port.to_be_bytes());
    address[4..8].copy_from_slice(&[127, 0, 0, 1]);
    let listening = check(call!(arch::BIND, socket, address.as_ptr(), address.len()))
        .and_then(|()| check(call!(arch::LISTEN, socket, 1024)))
        // Low numbers are closed later on.
        .and_then(|()| done(call!(arch::FCNTL, socket, F_DUPFD_CLOEXEC, SOCKET_FD + 1)));
    call!(arch::CLOSE, socket);
    listening.map(|socket| socket as i32)
}

fn enter(text: &[u8], flag: u8, user: Option<&User>) -> Result<(), i32> {
    let [path] = strings(text)?;
    let mut entered = call!(arch::CHDIR, path);
    if entered == ENOENT && flag & step::MAKE != 0 {
        let root = done(call!(arch::OPENAT, AT_FDCWD, c"/".as_ptr(), O_PATH | O_CLOEXEC))?;
        let directory = place_beneath(root, path, true, false);
        call!(arch::CLOSE, root);
        let directory = directory?;
        if let Some(user) = user {
            let (uid, gid) = (user.uid, user.gid);
            call!(arch::FCHOWNAT, directory, c"".as_ptr(), uid, gid, AT_EMPTY_PATH);
        }
        entered = call!(arch::FCHDIR, directory);
        call!(arch::CLOSE, directory);
    }
    match entered < 0 && flag & step::OR_ROOT != 0 {
        true => check(call!(arch::CHDIR, c"/".as_ptr())),
        false => check(entered),
    }
}

fn drop_rights(kept: u64) -> Result<(), i32> {
    for capability in 0..64 {
        if kept & 1 << capability != 0 {
            continue;
        }
        // There are no more.
        if call!(arch::PRCTL, PR_CAPBSET_DROP, capability) == -(EINVAL as isize) {
            break;
        }
    }
    check(call!(arch::PRCTL, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL))?;
    // The kernel's header of version 3 for this process; the lower halves of what is effective,
    // permitted and inherited, then the upper ones.
    let header = [0x2008_0522u32, 0];
    let (low, high) = (kept as u32, (kept >> 32) as u32);
    let sets = [low, low, 0, high, high, 0];
    check(call!(arch::CAPSET, header.as_ptr(), sets.as_ptr()))?;
    check(call!(arch::PRCTL, PR_SET_NO_NEW_PRIVS, 1))
}

/// As many strings as are asked for.
fn strings<const COUNT: usize>(text: &[u8]) -> Result<[*const u8; COUNT], i32> {
    let mut strings = [core::ptr::null(); COUNT];
    if split(text, &mut strings) { Ok(strings) } else { Err(EINVAL) }
}

fn done(result: isize) -> Result<isize, i32> {
    if result < 0 { Err(-result as i32) } else { Ok(result) }
}

fn check(result: isize) -> Result<(), i32> {
    done(result).map(|_| ())
}
