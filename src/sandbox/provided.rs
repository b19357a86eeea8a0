//! What the operator gives to commands, beside what every sandbox has: variables, directories of
//! programs, files and devices of the host. Found out once, when the engine starts; whatever cannot
//! be had ends the start, with what would be right.
//!
//! Where a bind can be is a pure decision ([`point`]): it neither hides nor enters what is the
//! slot's own, and what it covers has to be there.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD};
use rustix::io::Errno;
use thiserror::Error;

use super::jail::{Access, Entry};
use super::shell::Places;
use super::user::{self, CommandUser, Purpose};
use crate::config::{Bind, LocalConfig};

/// What is given to the commands of an engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Provided {
    /// Names and values.
    variables: Vec<(String, OsString)>,
    /// Directories of programs that come before the usual ones.
    path: Vec<PathBuf>,
    /// Binds, what is above others before them.
    binds: Vec<Mount>,
    /// Devices, by their paths.
    devices: Vec<PathBuf>,
}

/// A bind that can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    source: PathBuf,
    place: PathBuf,
    access: Access,
    point: Point,
}

/// What something is bound at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Point {
    /// A directory that is made for it.
    Directory,
    /// A file that is made for it.
    File,
    /// What is there already.
    Existing,
}

/// What of the host a sandbox shows by itself, as far as binds have to know it.
pub(super) struct Shown<'a> {
    /// Directories: where they are inside, and on the host.
    pub(super) directories: Vec<(PathBuf, PathBuf)>,
    /// Symbolic links of the root directory, and what they say.
    pub(super) links: &'a [(PathBuf, PathBuf)],
    /// The slot's own directories.
    pub(super) own: Places<'a>,
}

/// Why something cannot be given to commands.
#[derive(Debug, Error)]
pub(crate) enum ProvidedError {
    /// A variable without a value.
    #[error("the variable {0} is to be passed on, and is not set here; set it, or give it a value")]
    NotSet(String),
    /// A source or device that cannot be looked at.
    #[error("cannot give commands {path}")]
    Missing {
        /// Where it should be.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A source or device that commands' user may not use.
    #[error(
        "the user that commands run as (uid {uid}) may not {what} {path}; give it permission, \
         there and on the way there"
    )]
    Barred {
        /// Where it is.
        path: PathBuf,
        /// What it may not do.
        what: &'static str,
        /// Who.
        uid: u32,
    },
    /// A source that is a device.
    #[error("{0} is a device; give it as a device (--device), not as a bind")]
    IsDevice(PathBuf),
    /// A device that is none.
    #[error("{0} is no device; give files and directories as binds (--bind)")]
    IsNoDevice(PathBuf),
    /// A device that every sandbox has.
    #[error("every sandbox has {0} already; leave it out")]
    HasDevice(PathBuf),
    /// A place for two.
    #[error("two binds have the place {0}; give one of them another place")]
    Twice(PathBuf),
    /// A source that shows the workspaces.
    #[error(
        "{bind} would show commands the files of all slots, which are in {data_dir}; bind \
         something else, or put the data directory elsewhere (--data-dir)"
    )]
    ShowsWorkspaces {
        /// The source.
        bind: PathBuf,
        /// The data directory.
        data_dir: PathBuf,
    },
    /// A place where nothing can be bound.
    #[error("nothing can be bound at {place}: {why}")]
    Place {
        /// The place.
        place: PathBuf,
        /// Why, and what would be right.
        why: String,
    },
    /// Binds without a sandbox that could have them.
    #[error(
        "without isolation commands see the host's files where they are, so that {0} cannot be \
         had; leave its place out"
    )]
    NotIsolated(String),
}

impl Provided {
    /// Finds out what of the configuration can be given to commands of `user`, or of this process,
    /// in sandboxes that show so much by themselves; those files of slots are in `data_dir`. Blocks
    /// on a few file system calls for each bind and device.
    ///
    /// # Errors
    /// The first that cannot be given.
    pub(super) fn find(
        config: &LocalConfig,
        shown: &Shown<'_>,
        user: Option<CommandUser>,
        data_dir: &Path,
    ) -> Result<Self, ProvidedError> {
        let mut provided = Self::outside(config)?;
        for device in &config.devices {
            check_device(device, user)?;
        }
        provided.devices.clone_from(&config.devices);
        let mut binds: Vec<_> =
            config.binds.iter().map(absolute).collect::<Result<_, ProvidedError>>()?;
        // What is above another one is bound before it.
        binds.sort_by_key(|(bind, ..)| bind.place().components().count());
        for (bind, source) in binds {
            let data_dir = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
            if data_dir.starts_with(&source) || source.starts_with(&data_dir) {
                return Err(ProvidedError::ShowsWorkspaces { bind: source, data_dir });
            }
            let is_directory = check_source(&bind, &source, user)?;
            let point = point(&bind, is_directory, shown, &provided.binds)?;
            let access = if bind.writable { Access::Writable } else { Access::ReadOnly };
            let place = bind.place().to_owned();
            provided.binds.push(Mount { source, place, access, point });
        }
        Ok(provided)
    }

    /// What commands get without a sandbox: the variables and directories of programs.
    ///
    /// # Errors
    /// A variable that is not set here; a bind at another place than its own.
    pub(crate) fn without_sandbox(config: &LocalConfig) -> Result<Self, ProvidedError> {
        let moved = |bind: &&Bind| bind.place.as_ref().is_some_and(|place| *place != bind.source);
        match config.binds.iter().find(moved) {
            Some(bind) => Err(ProvidedError::NotIsolated(bind.to_string())),
            None => Self::outside(config),
        }
    }

    /// All but binds and devices.
    fn outside(config: &LocalConfig) -> Result<Self, ProvidedError> {
        let variables = config.env.iter().map(|(name, value)| {
            let value = match value {
                Some(value) => OsString::from(value),
                None => std::env::var_os(name).ok_or(ProvidedError::NotSet(name.clone()))?,
            };
            Ok((name.clone(), value))
        });
        let variables = variables.collect::<Result<_, _>>()?;
        let path = config.path_prepend.clone();
        Ok(Self { variables, path, ..Self::default() })
    }

    /// Whether there is something that a sandbox has to show.
    pub(super) fn shows_something(&self) -> bool {
        !self.binds.is_empty() || !self.devices.is_empty()
    }

    /// The devices, by their paths.
    pub(super) fn devices(&self) -> &[PathBuf] {
        &self.devices
    }

    /// The binds as entries of a sandbox's root directory, to be made last.
    pub(super) fn entries(&self) -> impl Iterator<Item = Entry> {
        let over = |host, place, access| Entry::Over { host, place, access, is_optional: false };
        self.binds.iter().flat_map(move |Mount { source, place, access, point }| {
            let (host, place, access) = (source.clone(), place.clone(), *access);
            match point {
                Point::Directory => [Some(Entry::Shown { host, place, access }), None],
                Point::File => {
                    let file = Entry::File { place: place.clone() };
                    [Some(file), Some(over(host, place, access))]
                }
                Point::Existing => [Some(over(host, place, access)), None],
            }
            .into_iter()
            .flatten()
        })
    }

    /// The same where nothing of `/etc` is made beforehand. Blocks on a file system call for some.
    pub(super) fn entries_of_image(&self) -> impl Iterator<Item = Entry> {
        self.binds.iter().flat_map(|Mount { source, place, access, point }| {
            let (host, place, access) = (source.clone(), place.clone(), *access);
            let is_directory = match point {
                Point::Directory => true,
                Point::File => false,
                Point::Existing => source.is_dir(),
            };
            match is_directory {
                true => [Some(Entry::Shown { host, place, access }), None],
                false => {
                    let file = Entry::File { place: place.clone() };
                    [Some(file), Some(Entry::Over { host, place, access, is_optional: false })]
                }
            }
            .into_iter()
            .flatten()
        })
    }

    /// The places beneath the directory `above` that have to exist for binds: whether each is a
    /// directory.
    pub(super) fn places_beneath(&self, above: &Path) -> impl Iterator<Item = (&Path, bool)> {
        self.binds.iter().filter_map(move |mount| {
            let rest = mount.place.strip_prefix(above).ok()?;
            Some((rest, mount.source.is_dir()))
        })
    }

    /// An environment with these variables in it, and with these directories in its `PATH`.
    pub(super) fn added_to(&self, environment: Vec<OsString>) -> Vec<OsString> {
        let with_path = environment.into_iter().map(|entry| match is_named(&entry, "PATH") {
            true => self.with_path(&entry),
            false => entry,
        });
        with_variables(with_path.collect(), &self.variables)
    }

    /// The entry `PATH` of an environment, with these directories before the others.
    fn with_path(&self, entry: &OsStr) -> OsString {
        let others = entry.as_bytes().strip_prefix(b"PATH=").unwrap_or_default();
        let mut path = OsString::new();
        for directory in &self.path {
            path.push(directory);
            path.push(":");
        }
        path.push(OsStr::from_bytes(others));
        variable("PATH", &path)
    }
}

/// An environment with these variables in it, in place of those of the same names.
pub(super) fn with_variables(
    environment: Vec<OsString>,
    variables: &[(String, OsString)],
) -> Vec<OsString> {
    let is_replaced = |entry: &OsString| variables.iter().any(|(name, _)| is_named(entry, name));
    let kept = environment.into_iter().filter(|entry| !is_replaced(entry));
    kept.chain(variables.iter().map(|(name, value)| variable(name, value))).collect()
}

/// Whether an entry of an environment is the variable of this name.
fn is_named(entry: &OsString, name: &str) -> bool {
    let rest = entry.as_bytes().strip_prefix(name.as_bytes());
    rest.is_some_and(|rest| rest.starts_with(b"="))
}

fn variable(name: &str, value: &OsStr) -> OsString {
    let mut entry = OsString::from(name);
    entry.push("=");
    entry.push(value);
    entry
}

/// A bind with an absolute place, and the source that it really has.
fn absolute(bind: &Bind) -> Result<(Bind, PathBuf), ProvidedError> {
    let missing = |source| ProvidedError::Missing { path: bind.source.clone(), source };
    let source = bind.source.canonicalize().map_err(missing)?;
    let place = match &bind.place {
        Some(place) => place.clone(),
        None => std::path::absolute(&bind.source).map_err(missing)?,
    };
    // Without a slash at its end, or two within.
    let place: PathBuf = place.components().collect();
    Ok((bind.clone().with_place(place), source))
}

/// Whether a source is a directory, and can be bound for that user.
fn check_source(
    bind: &Bind,
    source: &Path,
    user: Option<CommandUser>,
) -> Result<bool, ProvidedError> {
    let path = || source.to_owned();
    let metadata = source
        .symlink_metadata()
        .map_err(|source| ProvidedError::Missing { path: path(), source })?;
    let kind = metadata.file_type();
    if kind.is_char_device() || kind.is_block_device() {
        return Err(ProvidedError::IsDevice(path()));
    }
    let mut needed = rustix::fs::Access::READ_OK;
    let mut what = if kind.is_dir() { "look into" } else { "read" };
    if kind.is_dir() {
        needed |= rustix::fs::Access::EXEC_OK;
    }
    check_access(source, needed, what, user)?;
    if bind.writable {
        what = "write to";
        check_access(source, rustix::fs::Access::WRITE_OK, what, user)?;
    }
    Ok(kind.is_dir())
}

fn check_device(path: &Path, user: Option<CommandUser>) -> Result<(), ProvidedError> {
    let missing = |source| ProvidedError::Missing { path: path.to_owned(), source };
    let kind = path.metadata().map_err(missing)?.file_type();
    if !kind.is_char_device() && !kind.is_block_device() {
        return Err(ProvidedError::IsNoDevice(path.to_owned()));
    }
    if super::jail::has_device(path) {
        return Err(ProvidedError::HasDevice(path.to_owned()));
    }
    check_access(path, rustix::fs::Access::READ_OK, "read", user)
}

/// Whether that user, or this process, may do something with a file.
fn check_access(
    path: &Path,
    needed: rustix::fs::Access,
    what: &'static str,
    user: Option<CommandUser>,
) -> Result<(), ProvidedError> {
    // By the effective user: the thread that enters another one keeps its real one.
    let look = || Ok(rustix::fs::accessat(CWD, path, needed, AtFlags::EACCESS));
    let looked = match user {
        None => look(),
        Some(user) => user::on_own_thread(|| {
            let _entered = user.enter(Purpose::Files)?;
            look()
        }),
    };
    let path = path.to_owned();
    match looked {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Errno::ACCESS | Errno::PERM | Errno::ROFS)) => {
            let uid = user.map_or_else(rustix::process::geteuid, CommandUser::uid).as_raw();
            Err(ProvidedError::Barred { path, what, uid })
        }
        Ok(Err(errno)) => Err(ProvidedError::Missing { path, source: errno.into() }),
        Err(source) => Err(ProvidedError::Missing { path, source }),
    }
}

/// What a bind is bound at, beside those before it.
///
/// # Errors
/// Nothing can be bound there.
fn point(
    bind: &Bind,
    is_directory: bool,
    shown: &Shown<'_>,
    before: &[Mount],
) -> Result<Point, ProvidedError> {
    let place = bind.place();
    let refuse = |why: String| {
        let place = place.to_owned();
        Err(ProvidedError::Place { place, why })
    };
    if before.iter().any(|mount| mount.place == place) {
        return Err(ProvidedError::Twice(place.to_owned()));
    }
    let own = [shown.own.workspace, shown.own.temporary, shown.own.home];
    let fixed = ["/var/tmp", "/proc", "/sys", "/dev"].map(Path::new);
    for ours in own.into_iter().chain(fixed) {
        if ours.starts_with(place) || place.starts_with(ours) {
            let ours = ours.display();
            return refuse(format!("sandboxes have {ours} of their own; choose another place"));
        }
    }
    for (link, target) in shown.links {
        if let Ok(rest) = place.strip_prefix(link) {
            let target = Path::new("/").join(target).join(rest);
            let (link, target) = (link.display(), target.display());
            return refuse(format!("{link} is a symbolic link; write it as {target}"));
        }
    }
    for (directory, _) in &shown.directories {
        if directory.starts_with(place) && is_of_the_system(directory) {
            let directory = directory.display();
            return refuse(format!("it would cover {directory}; choose another place"));
        }
    }
    // The innermost directory that is shown and has the place beneath it.
    let binds = before.iter().map(|mount| (&mount.place, &mount.source));
    let all = shown.directories.iter().map(|(place, host)| (place, host)).chain(binds);
    let above = all.filter(|(above, _)| place.starts_with(above));
    match above.max_by_key(|(above, _)| above.components().count()) {
        // Of `/etc` there is a copy, in which the place is made.
        Some((above, _)) if above == Path::new("/etc") => Ok(Point::Existing),
        Some((above, host)) => {
            let rest = place.strip_prefix(above).unwrap_or(place);
            let there = host.join(rest);
            if there.is_dir() == is_directory && there.exists() {
                return Ok(Point::Existing);
            }
            let kind = if is_directory { "directory" } else { "file" };
            let above = above.display();
            refuse(format!(
                "it is beneath {above}, which has no such {kind}; make it there, or choose a place \
                 that is beneath nothing of the host's, as /extra"
            ))
        }
        None if is_directory => Ok(Point::Directory),
        None => Ok(Point::File),
    }
}

/// Whether a directory is one without which no program runs.
fn is_of_the_system(directory: &Path) -> bool {
    let first = directory.components().nth(1).map(|name| name.as_os_str().as_bytes());
    first.is_some_and(|name| {
        matches!(name, b"usr" | b"etc" | b"bin" | b"sbin") || name.starts_with(b"lib")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINKS: &[(&str, &str)] = &[("/bin", "usr/bin")];

    fn with_shown<T>(host: &Path, look: impl FnOnce(&Shown<'_>) -> T) -> T {
        let directory = |place: &str, host: PathBuf| (PathBuf::from(place), host);
        let links: Vec<_> =
            LINKS.iter().map(|(place, target)| (place.into(), target.into())).collect();
        look(&Shown {
            directories: vec![
                directory("/usr", "/usr".into()),
                directory("/etc", "/etc".into()),
                directory("/opt", host.to_owned()),
            ],
            links: &links,
            own: Places {
                workspace: Path::new("/workspace"),
                temporary: Path::new("/tmp"),
                home: Path::new("/home/nobody"),
            },
        })
    }

    fn config(binds: &[Bind]) -> LocalConfig {
        LocalConfig::default().with_binds(binds.to_vec())
    }

    fn find(config: &LocalConfig, host: &Path) -> Result<Provided, ProvidedError> {
        with_shown(host, |shown| Provided::find(config, shown, None, Path::new("/no/data")))
    }

    #[test]
    fn a_place_is_made_where_nothing_is_and_must_be_there_beneath_what_is_shown() {
        let host = tempfile::tempdir().unwrap();
        let (directory, file) = (host.path().join("d"), host.path().join("f"));
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(&file, "").unwrap();
        std::fs::write(directory.join("inner"), "").unwrap();
        for (source, place, expected) in [
            (&directory, "/extra", Point::Directory),
            (&directory, "/a//b/c/", Point::Directory),
            (&file, "/run/file", Point::File),
            (&file, "/etc/no-such-file", Point::Existing),
            (&directory, "/usr/bin", Point::Existing),
            (&directory, "/opt", Point::Existing),
            (&directory, "/opt/d", Point::Existing),
            (&file, "/opt/f", Point::Existing),
        ] {
            let bind = Bind::read_only(source).with_place(place);
            let provided = find(&config(&[bind]), host.path()).unwrap();
            assert_eq!(provided.binds[0].point, expected, "{place}");
        }
        for (source, place, words) in [
            (&directory, "/workspace", "/workspace of their own"),
            (&directory, "/workspace/deps", "/workspace of their own"),
            (&directory, "/tmp/x", "/tmp of their own"),
            (&directory, "/home", "/home/nobody of their own"),
            (&directory, "/var", "/var/tmp of their own"),
            (&directory, "/", "of their own"),
            (&directory, "/dev/x", "/dev of their own"),
            (&directory, "/usr", "cover /usr"),
            (&directory, "/bin/x", "write it as /usr/bin/x"),
            (&directory, "/usr/no-such", "no such directory"),
            (&file, "/usr/bin", "no such file"),
            (&directory, "/opt/f", "no such directory"),
        ] {
            let bind = Bind::read_only(source).with_place(place);
            let error = find(&config(&[bind]), host.path()).unwrap_err().to_string();
            assert!(error.contains(words), "{place}: {error}");
        }
        // One within another, whatever their order.
        let outer = Bind::read_only(host.path()).with_place("/extra");
        let inner = Bind::writable(&directory).with_place("/extra/d");
        let provided = find(&config(&[inner, outer.clone()]), host.path()).unwrap();
        let places: Vec<_> = provided.binds.iter().map(|mount| &mount.place).collect();
        assert_eq!(places, [Path::new("/extra"), Path::new("/extra/d")]);
        assert_eq!(provided.binds[1].point, Point::Existing);
        let within = Bind::read_only(&file).with_place("/extra/missing");
        let error = find(&config(&[outer.clone(), within]), host.path()).unwrap_err();
        assert!(error.to_string().contains("beneath /extra"), "{error}");
        let error = find(&config(&[outer.clone(), outer]), host.path()).unwrap_err();
        assert!(matches!(error, ProvidedError::Twice(_)), "{error}");
    }

    #[test]
    fn a_source_that_cannot_be_used_is_told() {
        let host = tempfile::tempdir().unwrap();
        let missing = host.path().join("missing");
        let error = find(&config(&[Bind::read_only(&missing)]), host.path()).unwrap_err();
        assert!(error.to_string().ends_with("missing"), "{error}");
        let error = find(&config(&[Bind::read_only("/dev/null")]), host.path()).unwrap_err();
        assert!(matches!(error, ProvidedError::IsDevice(_)), "{error}");
        for (device, words) in [
            ("/dev/no-such", "/dev/no-such"),
            ("/dev/null", "every sandbox has /dev/null"),
            ("/dev/shm", "/dev/shm is no device"),
        ] {
            let config = LocalConfig::default().with_devices(vec![device.into()]);
            let error = find(&config, host.path()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let bind = Bind::read_only(host.path()).with_place("/extra");
        let error = with_shown(Path::new("/opt"), |shown| {
            Provided::find(&config(&[bind]), shown, None, &host.path().join("data")).unwrap_err()
        });
        assert!(matches!(error, ProvidedError::ShowsWorkspaces { .. }), "{error}");
        // A user who may not get there.
        if let Some(user) = CommandUser::detect() {
            let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            std::fs::set_permissions(host.path(), private).unwrap();
            let bind = Bind::read_only(host.path()).with_place("/extra");
            let error = with_shown(Path::new("/opt"), |shown| {
                let config = config(&[bind]);
                Provided::find(&config, shown, Some(user), Path::new("/no/data")).unwrap_err()
            });
            assert!(error.to_string().contains("may not look into"), "{error}");
        }
    }

    #[test]
    fn variables_replace_those_of_the_same_name_and_programs_come_first() {
        let env = [
            ("TERM".to_owned(), Some("xterm".to_owned())),
            ("A".to_owned(), Some("b=c".to_owned())),
        ];
        let config = LocalConfig::default()
            .with_env(env.into())
            .with_path_prepend(vec!["/x/bin".into(), "/y".into()]);
        let provided = Provided::without_sandbox(&config).unwrap();
        let before = ["TERM=dumb", "TERMINFO=/t", "PATH=/bin"].map(OsString::from).to_vec();
        let expected = ["TERMINFO=/t", "PATH=/x/bin:/y:/bin", "A=b=c", "TERM=xterm"];
        assert_eq!(provided.added_to(before), expected.map(OsString::from));
        let unset = LocalConfig::default().with_env([("NO_SUCH_VARIABLE".to_owned(), None)].into());
        let error = Provided::without_sandbox(&unset).unwrap_err().to_string();
        assert!(error.contains("NO_SUCH_VARIABLE"), "{error}");
        let moved = self::config(&[Bind::read_only("/opt").with_place("/extra")]);
        let error = Provided::without_sandbox(&moved).unwrap_err().to_string();
        assert!(error.contains("/opt:/extra"), "{error}");
        assert!(Provided::without_sandbox(&self::config(&[Bind::read_only("/opt")])).is_ok());
    }
}
