//! The copy of a directory of settings: bounded, without secrets, and such that its symbolic links
//! lead where they led.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use super::{BOUND, make_directory, secrets, set_mode};

/// No file is larger: those that are, are caches of a service.
const LARGEST_FILE: u64 = 4 << 20;
/// All files together are not larger, and not more.
const LARGEST_COPY: u64 = 64 << 20;
const MOST_ENTRIES: usize = 20_000;
/// Directories within directories, and links to directories within them.
const DEEPEST: usize = 16;

/// What every sandbox has at the same place as the host, so that links may lead there.
const SAME_PLACES: [&str; 11] = [
    "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/proc", "/dev",
];

/// One copy under way.
pub(super) struct Copier<'a> {
    from: &'a Path,
    to: &'a Path,
    bytes: u64,
    entries: usize,
    left_out: usize,
}

impl<'a> Copier<'a> {
    /// A copy of `from` in the empty directory `to`.
    pub(super) fn of(from: &'a Path, to: &'a Path) -> Self {
        Self { from, to, bytes: 0, entries: 0, left_out: 0 }
    }

    /// Makes it. What cannot be read is left out; so is what is too much, which is logged.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub(super) fn copy(mut self) -> io::Result<()> {
        let (from, to) = (self.from, self.to);
        self.directory(from, to, DEEPEST)?;
        if self.left_out > 0 {
            let (from, left_out) = (from.display(), self.left_out);
            log::warn!("{left_out} large files of {from} are not shown to commands");
        }
        Ok(())
    }

    fn directory(&mut self, from: &Path, to: &Path, deepest: usize) -> io::Result<()> {
        let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
        for entry in entries.flatten() {
            self.entry(&entry.path(), &to.join(entry.file_name()), deepest)?;
        }
        Ok(())
    }

    fn entry(&mut self, from: &Path, to: &Path, deepest: usize) -> io::Result<()> {
        let inside = self.inside(to);
        if BOUND.iter().any(|bound| inside == Path::new(bound)) {
            return Ok(());
        }
        let Ok(metadata) = from.symlink_metadata() else { return Ok(()) };
        if metadata.is_symlink() {
            let Ok(target) = from.read_link() else { return Ok(()) };
            let above = inside.parent().unwrap_or(&inside);
            if is_at_the_same_place(&above.join(&target)) {
                return std::os::unix::fs::symlink(target, to);
            }
        }
        // What a link leads to, where a sandbox has nothing, is copied in its place.
        let Ok(metadata) = from.metadata() else { return Ok(()) };
        self.entries += 1;
        if self.entries > MOST_ENTRIES {
            self.left_out += 1;
            return Ok(());
        }
        let is_secret = self.is_secret(to);
        if metadata.is_dir() {
            make_directory(to)?;
            let readable = metadata.mode() & 0o005 == 0o005;
            match readable && !is_secret && deepest > 0 {
                true => self.directory(from, to, deepest - 1),
                // Links that lead here do not dangle.
                false => Ok(()),
            }
        } else if metadata.is_file() && !is_secret && metadata.mode() & 0o004 != 0 {
            self.file(from, to, &metadata)
        } else {
            Ok(())
        }
    }

    fn file(&mut self, from: &Path, to: &Path, metadata: &fs::Metadata) -> io::Result<()> {
        let size = metadata.len();
        if size > LARGEST_FILE || self.bytes + size > LARGEST_COPY {
            self.left_out += 1;
            return Ok(());
        }
        let mut content = Vec::new();
        let read =
            File::open(from).and_then(|file| file.take(LARGEST_FILE).read_to_end(&mut content));
        let is_example = to.strip_prefix(self.to).is_ok_and(secrets::is_example);
        if read.is_err() || (!is_example && secrets::holds_secret(&content)) {
            return Ok(());
        }
        self.bytes += content.len() as u64;
        fs::write(to, &content)?;
        // Programs among them stay programs, and nothing is set-user-id.
        set_mode(to, 0o644 | (metadata.permissions().mode() & 0o111))
    }

    /// Where a sandbox has an entry of the copy.
    fn inside(&self, to: &Path) -> PathBuf {
        self.from.join(to.strip_prefix(self.to).unwrap_or(to))
    }

    fn is_secret(&self, to: &Path) -> bool {
        to.strip_prefix(self.to).is_ok_and(secrets::is_secret)
    }
}

/// Whether a sandbox has at this path what the host has there. Pure.
fn is_at_the_same_place(path: &Path) -> bool {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    SAME_PLACES.iter().any(|place| plain.starts_with(place))
        && !plain.starts_with("/proc/self/root")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn all_is_copied_but_what_is_secret_or_leads_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let put = |name: &str, content: &str, mode| {
            let path = from.join(name);
            make_directory(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            set_mode(&path, mode).unwrap();
        };
        put("tool/settings", "a", 0o640 | 0o004);
        put("tool/program", "#!", 0o4755);
        put("private", "a", 0o640);
        put("npmrc", "//r/:_authToken=x", 0o644);
        put("shadow", "a", 0o644);
        put("ssl/private/key", "a", 0o644);
        put("closed/file", "a", 0o644);
        set_mode(&from.join("closed"), 0o750).unwrap();
        put("elsewhere/file", "b", 0o644);
        let elsewhere = dir.path().join("elsewhere");
        make_directory(&elsewhere).unwrap();
        fs::write(elsewhere.join("file"), "c").unwrap();
        set_mode(&elsewhere.join("file"), 0o644).unwrap();
        symlink(dir.path().join("elsewhere"), from.join("link")).unwrap();
        symlink("/usr/share/zoneinfo/UTC", from.join("localtime")).unwrap();
        symlink(&from, from.join("loop")).unwrap();
        make_directory(&to).unwrap();
        Copier::of(&from, &to).copy().unwrap();
        let mode = |name: &str| fs::metadata(to.join(name)).unwrap().mode() & 0o7777;
        assert_eq!((mode("tool/settings"), mode("tool/program")), (0o644, 0o755));
        for missing in ["private", "npmrc", "shadow", "ssl/private/key", "closed/file"] {
            assert!(!to.join(missing).exists(), "{missing}");
        }
        assert!(to.join("ssl/private").is_dir() && to.join("closed").is_dir());
        // A link to where a sandbox has nothing (or something else) is what it led to.
        assert!(to.join("link").symlink_metadata().unwrap().is_dir());
        assert_eq!(fs::read_to_string(to.join("link/file")).unwrap(), "c");
        let localtime = fs::read_link(to.join("localtime")).unwrap();
        assert_eq!(localtime, Path::new("/usr/share/zoneinfo/UTC"));
    }

    #[test]
    fn links_lead_to_the_same_places_or_are_not_kept() {
        for (path, expected) in [
            ("/etc/../usr/lib/os-release", true),
            ("/etc/x/../../proc/mounts", true),
            ("/dev/null", true),
            ("/run/systemd/resolve/stub-resolv.conf", false),
            ("/etc/../run/x", false),
            ("/usr/../data", false),
            ("/etcetera", false),
        ] {
            assert_eq!(is_at_the_same_place(Path::new(path)), expected, "{path}");
        }
    }
}
