//! What a sandbox shows as `/etc`, and as `/usr/local/etc`: a copy of the host's without what is
//! secret. What says who and where a command is comes from its `identity`.
//!
//! Everything is copied but what `secrets` says, and what others than its owner and group may not
//! read on the host: the host's packaged tools find their settings, as they do outside.
//!
//! A copy, made once per engine, because binding the entries one by one costs as much as all the
//! rest of a sandbox: each mount costs. The copy lives in the engine's data directory and goes with
//! it. The name servers are the exception, since they may change while an engine runs for days, and
//! two directories of hundreds of symlinks, which some file systems make slowly: `isolation` binds
//! the host's own over the copy.

mod copy;
mod secrets;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use self::copy::Copier;
use super::identity::{self, HOST_NAME, Identity};
use super::shell::Shell;

/// The directories that the host's own are bound over.
pub(super) const BOUND: [&str; 2] = ["/etc/alternatives", "/etc/ssl/certs"];
/// The file that the host's own is bound over.
pub(super) const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Settings of what is installed in `/usr/local`.
pub(super) const LOCAL: &str = "/usr/local/etc";

/// The copy that all sandboxes of an engine see.
#[derive(Debug, Clone)]
pub(crate) struct EtcCopy {
    path: PathBuf,
    local: Option<PathBuf>,
}

impl EtcCopy {
    /// Makes the copy in the empty directory `dest`; commands are `identity` in it. Blocks for some
    /// milliseconds.
    ///
    /// What cannot be read is left out: tools do without it, as they do on another machine.
    ///
    /// # Errors
    /// Where `dest` cannot be written.
    pub(crate) fn make(dest: &Path, identity: &Identity) -> io::Result<Self> {
        set_mode(dest, 0o755)?;
        let path = dest.join("system");
        make_directory(&path)?;
        Copier::of(Path::new("/etc"), &path).copy()?;
        make_own(&path, identity)?;
        let local = dest.join("local");
        let local = match Path::new(LOCAL).is_dir() {
            true => {
                make_directory(&local)?;
                Copier::of(Path::new(LOCAL), &local).copy()?;
                Some(local)
            }
            false => None,
        };
        Ok(Self { path, local })
    }

    /// Puts a file of this content in.
    ///
    /// # Errors
    /// The copy cannot be written; or a link of the host's is in the way, which may lead out of it.
    pub(crate) fn add(&self, name: &str, content: &str) -> io::Result<()> {
        let way = Path::new(name).ancestors().filter(|part| !part.as_os_str().is_empty());
        for part in way {
            if self.path.join(part).is_symlink() {
                let text = format!("/etc/{} is a symbolic link", part.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
        }
        put(&self.path, Path::new(name), content)
    }

    /// Has a name of this machine be that of the loopback interface in the copy. Blocks on two file
    /// system calls.
    ///
    /// # Errors
    /// The copy cannot be read or written.
    pub(super) fn add_host(&self, name: &str) -> io::Result<()> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || !name.chars().all(is_plain) {
            return Ok(());
        }
        let hosts = fs::read_to_string(self.path.join("hosts"))?;
        put(&self.path, Path::new("hosts"), &identity::with_host(&hosts, name))
    }

    /// What is shown as `/etc`.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is shown as `/usr/local/etc`, if the host has it.
    pub(super) fn local(&self) -> Option<&Path> {
        self.local.as_deref()
    }

    /// Makes places to bind something at: each an empty directory, or an empty file, unless there
    /// is something already. Whether it is a directory is said of each.
    ///
    /// # Errors
    /// The copy cannot be written, or has something of another kind there.
    pub(super) fn make_places<'a>(
        &self,
        places: impl Iterator<Item = (&'a Path, bool)>,
    ) -> io::Result<()> {
        for (place, is_directory) in places {
            let path = self.path.join(place);
            match path.symlink_metadata() {
                Ok(metadata) if metadata.is_dir() && is_directory => continue,
                Ok(metadata) if metadata.is_file() && !is_directory => continue,
                Ok(_) => {
                    let kind = if is_directory { "no directory" } else { "no file" };
                    let text = format!("/etc/{} is {kind}", place.display());
                    return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
                }
                Err(_) => {}
            }
            if is_directory {
                make_directory(&path)?;
            } else {
                put(&self.path, place, "")?;
            }
        }
        Ok(())
    }
}

/// Puts in what is not the host's, and what the host's own is bound over.
fn make_own(dest: &Path, identity: &Identity) -> io::Result<()> {
    let hosts = |name| fs::read_to_string(Path::new("/etc").join(name)).unwrap_or_default();
    let put = |name: &str, content: &str| put(dest, Path::new(name), content);
    let shell = Shell::detect().path();
    put("passwd", &identity.passwd(&hosts("passwd"), shell))?;
    put("group", &identity.group(&hosts("group")))?;
    put("hosts", &identity::hosts(&hosts("hosts")))?;
    put("hostname", &format!("{HOST_NAME}\n"))?;
    if !dest.join("nsswitch.conf").exists() {
        // Some C libraries ask name servers alone.
        put("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")?;
    }
    if Path::new("/etc/environment").exists() {
        // Packages have links to it.
        put("environment", "")?;
    }
    if dest.join("mtab").symlink_metadata().is_err() {
        std::os::unix::fs::symlink("../proc/self/mounts", dest.join("mtab"))?;
    }
    for bound in BOUND {
        make_directory(&dest.join(bound.trim_start_matches("/etc/")))?;
    }
    put("resolv.conf", "")
}

/// Makes a directory, and those above it that are missing, for all to read.
fn make_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent() {
        make_directory(above)?;
    }
    fs::create_dir(path)?;
    set_mode(path, 0o755)
}

/// Makes a file of this content.
fn put(dest: &Path, name: &Path, content: &str) -> io::Result<()> {
    let path = dest.join(name);
    if let Some(above) = path.parent() {
        make_directory(above)?;
    }
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
    fn a_file_is_put_in_and_never_through_a_link() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let copy = EtcCopy::make(dir.path(), &Identity::detect(None)).unwrap();
        copy.add("of-a-test/deep/file", "text").unwrap();
        let text = fs::read_to_string(copy.path().join("of-a-test/deep/file")).unwrap();
        assert_eq!(text, "text");
        std::os::unix::fs::symlink(outside.path(), copy.path().join("link")).unwrap();
        let error = copy.add("link/file", "text").unwrap_err();
        assert_eq!(error.to_string(), "/etc/link is a symbolic link");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_tools_need_is_there_and_no_known_secret_is() {
        let dir = tempfile::tempdir().unwrap();
        let copy = EtcCopy::make(dir.path(), &Identity::detect(None)).unwrap();
        for needed in ["passwd", "group", "hosts", "hostname", "nsswitch.conf", "resolv.conf"] {
            assert!(copy.path().join(needed).is_file(), "{needed}");
        }
        assert!(copy.path().join("mtab").symlink_metadata().unwrap().is_symlink());
        let secrets = ["shadow", "gshadow", "sudoers", "krb5.keytab", "machine-id", "fstab"];
        for secret in secrets {
            assert!(!copy.path().join(secret).exists(), "{secret}");
        }
        let private = copy.path().join("ssl/private");
        assert!(!private.exists() || fs::read_dir(private).unwrap().count() == 0);
        assert_eq!(copy.local().is_some(), Path::new(LOCAL).is_dir());
    }

    #[test]
    fn places_are_made_where_nothing_is() {
        let dir = tempfile::tempdir().unwrap();
        let copy = EtcCopy { path: dir.path().to_owned(), local: None };
        let make = |place: &str, is_directory| {
            copy.make_places([(Path::new(place), is_directory)].into_iter())
        };
        make("a/b/file", false).unwrap();
        make("a/c", true).unwrap();
        make("a/b/file", false).unwrap();
        assert!(dir.path().join("a/b/file").is_file() && dir.path().join("a/c").is_dir());
        assert!(make("a/b", false).unwrap_err().to_string().contains("/etc/a/b is no file"));
        assert!(make("a/b/file", true).is_err());
    }
}
