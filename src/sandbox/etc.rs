//! What a sandbox shows as `/etc`: a copy of the entries that tools need and that hold no secrets.
//! What says who and where a command is comes from its `identity`.
//!
//! A copy, made once per engine, because binding the entries one by one costs as much as all the
//! rest of a sandbox: each mount costs. The copy lives in the engine's data
//! directory and goes with it. The name servers are the exception, since they may change while an
//! engine runs for days, and two directories of hundreds of symlinks, which some file systems make
//! slowly: `isolation` binds the host's own over the copy.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::identity::{self, Identity};
use super::shell::Shell;
use super::tree;

/// Entries of `/etc` that tools need and that hold no secrets. A `*` at the end is a prefix match.
///
/// Not the whole directory: it holds password hashes, host keys, private TLS keys, tokens.
const ENTRIES: [&str; 41] = [
    "bash.bashrc",
    "ca-certificates*",
    "crypto-policies",
    "debian_version",
    "dpkg/origins",
    "emacs",
    "ethertypes",
    "fonts",
    "host.conf",
    "inputrc",
    "java*",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "login.defs",
    "magic",
    "magic.mime",
    "mailcap",
    "manpath.config",
    "mime.types",
    "nanorc",
    "networks",
    "nsswitch.conf",
    "os-release",
    "papersize",
    "perl",
    "pki/ca-trust",
    "pki/tls/certs",
    "profile",
    "protocols",
    "python3*",
    "rpc",
    "services",
    "shells",
    "skel",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
    "vim",
    "xattr.conf",
];

/// The directories that the host's own are bound over.
pub(super) const BOUND: [&str; 2] = ["/etc/alternatives", "/etc/ssl/certs"];
/// The file that the host's own is bound over.
pub(super) const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Fills the empty directory `dest` with what sandboxes see as `/etc`, in which commands are
/// `identity`. Blocks for some milliseconds.
///
/// An entry that cannot be read is left out: tools do without it, as they do on another machine.
///
/// # Errors
/// Where `dest` cannot be written.
pub(crate) fn copy_to(dest: &Path, identity: &Identity) -> io::Result<()> {
    let etc = Path::new("/etc");
    let names: Vec<_> = fs::read_dir(etc)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .collect();
    for pattern in ENTRIES {
        match pattern.strip_suffix('*') {
            Some(prefix) => {
                let matching =
                    names.iter().filter(|name| name.as_bytes().starts_with(prefix.as_bytes()));
                for name in matching {
                    copy_entry(etc, dest, name)?;
                }
            }
            None => copy_entry(etc, dest, OsStr::new(pattern))?,
        }
    }
    let hosts = |name| fs::read_to_string(etc.join(name)).unwrap_or_default();
    let shell = Shell::detect().path();
    put(dest, "passwd", &identity.passwd(&hosts("passwd"), shell))?;
    put(dest, "group", &identity.group(&hosts("group")))?;
    put(dest, "hosts", &identity::hosts(&hosts("hosts")))?;
    if !dest.join("nsswitch.conf").exists() {
        // Some C libraries ask name servers alone.
        put(dest, "nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")?;
    }
    // Something for the host's own to be bound over.
    for bound in BOUND {
        let place = dest.join(bound.trim_start_matches("/etc/"));
        fs::create_dir_all(&place)?;
        for made in place.ancestors().take_while(|made| *made != dest) {
            set_mode(made, 0o755)?;
        }
    }
    put(dest, "resolv.conf", "")?;
    set_mode(dest, 0o755)
}

fn copy_entry(etc: &Path, dest: &Path, name: &OsStr) -> io::Result<()> {
    let (from, to) = (etc.join(name), dest.join(name));
    // Symlinks are followed here: many entries of `/etc` point to where a sandbox has nothing.
    let Ok(metadata) = fs::metadata(&from) else { return Ok(()) };
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
        for made in parent.ancestors().take_while(|made| *made != dest) {
            set_mode(made, 0o755)?;
        }
    }
    if metadata.is_dir() {
        fs::create_dir(&to)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(from_dir) = rustix::fs::open(&from, flags, Mode::empty()) else { return Ok(()) };
        set_mode(&to, 0o755)?;
        let to_dir = rustix::fs::open(&to, flags, Mode::empty())?;
        if let Err(error) = tree::copy(from_dir.as_fd(), to_dir.as_fd()) {
            log::debug!("{} is not shared entirely: {error:?}", from.display());
        }
    } else if metadata.is_file()
        && let Ok(content) = fs::read(&from)
    {
        fs::write(&to, content)?;
        set_mode(&to, 0o644)?;
    }
    Ok(())
}

/// Makes places to bind something at in `dest`, which [`copy_to`] has filled: each an empty
/// directory, or an empty file, unless there is something already.
///
/// # Errors
/// Where `dest` cannot be written, or there is something of another kind.
pub(super) fn make_places<'a>(
    dest: &Path,
    places: impl Iterator<Item = (&'a Path, bool)>,
) -> io::Result<()> {
    for (place, is_directory) in places {
        let path = dest.join(place);
        match path.metadata() {
            Ok(metadata) if metadata.is_dir() == is_directory => continue,
            Ok(_) => {
                let kind = if is_directory { "no directory" } else { "a directory" };
                let text = format!("/etc/{} is {kind}", place.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
            Err(_) => {}
        }
        let made = if is_directory { Some(&*path) } else { path.parent() };
        for directory in made.into_iter().chain(path.ancestors().skip(1)) {
            if directory != dest && directory.starts_with(dest) {
                fs::create_dir_all(directory)?;
                set_mode(directory, 0o755)?;
            }
        }
        if !is_directory {
            fs::write(&path, "")?;
            set_mode(&path, 0o644)?;
        }
    }
    Ok(())
}

/// Makes a file of this content.
/// Has a name of this machine be that of the loopback interface in the copy at `etc`. Blocks on two
/// file system calls.
///
/// # Errors
/// The copy cannot be read or written.
pub(super) fn add_host(etc: &Path, name: &str) -> io::Result<()> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || !name.chars().all(is_name) {
        return Ok(());
    }
    let hosts = fs::read_to_string(etc.join("hosts"))?;
    put(etc, "hosts", &identity::with_host(&hosts, name))
}

fn put(dest: &Path, name: &str, content: &str) -> io::Result<()> {
    let path = dest.join(name);
    fs::write(&path, content)?;
    set_mode(&path, 0o644)
}

/// Whatever the host's umask took away: a command may run as another user.
fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tools_need_is_there_and_no_known_secret_is() {
        let dir = tempfile::tempdir().unwrap();
        copy_to(dir.path(), &Identity::detect(None)).unwrap();
        for needed in ["passwd", "group", "hosts", "nsswitch.conf", "resolv.conf"] {
            assert!(dir.path().join(needed).is_file(), "{needed}");
        }
        let secrets =
            ["shadow", "gshadow", "sudoers", "ssh", "ssl/private", "krb5.keytab", "machine-id"];
        for secret in secrets {
            assert!(!dir.path().join(secret).exists(), "{secret}");
        }
    }
}
