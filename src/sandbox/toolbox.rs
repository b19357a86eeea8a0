//! The host's own bash and tmux, brought along for images that have none.
//!
//! A program of the host does not run among the files of an image: its loader and its libraries are
//! not there, or are others. So each is copied together with them into one directory, once an
//! engine, which is shown read-only as [`PLACE`] in machines from images:
//!
//! ```text
//! bin/bash, bin/tmux     the host's loader under the program's name, so that this is what `ps` shows
//! program/bash, …        the programs
//! lib/                   their libraries, by the names that they are asked for
//! locale/                the characters of UTF-8, without which tmux does not start
//! ```
//!
//! The loader is run, not the program, and is told where both are. Nothing of it depends on the
//! image, and no variable has to be set that the image's own programs would get, too.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

use super::shell;

/// Where it is in a machine.
pub(super) const PLACE: &str = "/run/toolbox";

/// Where the host has the characters of UTF-8.
const CHARACTERS: [&str; 2] =
    ["/usr/lib/locale/C.utf8/LC_CTYPE", "/usr/lib/locale/C.UTF-8/LC_CTYPE"];
/// The variable that says where they are in a machine, and what it says. It is not for the programs
/// of an image, whose C library may be another.
pub(super) const LOCALES: (&str, &str) = ("LOCPATH", "/run/toolbox/locale");

/// What is brought along.
const PROGRAMS: [&str; 2] = [BASH, TMUX];
/// The names of these programs.
pub(super) const BASH: &str = "bash";
pub(super) const TMUX: &str = "tmux";

/// A directory with programs of the host that run anywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Toolbox {
    path: PathBuf,
    programs: Vec<String>,
}

/// A toolbox that is made when it is needed first.
#[derive(Debug)]
pub(crate) struct LazyToolbox {
    path: PathBuf,
    made: OnceLock<Option<Arc<Toolbox>>>,
}

impl LazyToolbox {
    /// One that is to be made at `path`, which must not exist.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, made: OnceLock::new() }
    }

    /// The toolbox; `None` where it cannot be made, which is logged. Blocks the first time: for the
    /// copying of some megabytes, and for a process for each program.
    pub(super) fn get(&self) -> Option<Arc<Toolbox>> {
        let make = || {
            let find = |name: &&str| {
                let mut places = shell::PATH.split(':').map(|place| Path::new(place).join(name));
                places.find(|program| program.is_file())
            };
            let programs: Vec<_> = PROGRAMS.iter().filter_map(find).collect();
            let programs: Vec<_> = programs.iter().map(PathBuf::as_path).collect();
            let made = Toolbox::make(self.path.clone(), &programs);
            let made = made.inspect_err(|error| {
                log::warn!("nothing can be brought along for images without bash or tmux: {error}");
            });
            made.ok().map(Arc::new)
        };
        self.made.get_or_init(make).clone()
    }
}

/// What a program needs to run, on the host.
#[derive(Debug, PartialEq, Eq)]
struct Needed {
    loader: PathBuf,
    /// The libraries, by the names that they are asked for.
    libraries: Vec<(String, PathBuf)>,
}

impl Toolbox {
    /// Makes it at `path`, which must not exist, with these programs of the host; one that is not
    /// there, or cannot be brought along, is left out, which is logged. Blocks for the copying of
    /// some megabytes, and for a process for each program.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub(crate) fn make(path: PathBuf, programs: &[&Path]) -> io::Result<Self> {
        for directory in ["", "bin", "program", "lib", "locale", "locale/C.utf8"] {
            make_directory(&path.join(directory))?;
        }
        let mut toolbox = Self { path, programs: Vec::new() };
        for program in programs {
            match toolbox.add(program) {
                Ok(name) => toolbox.programs.push(name),
                Err(error) => {
                    let program = program.display();
                    log::info!(
                        "images that lack {program} have none: it cannot be brought along: {error}"
                    );
                }
            }
        }
        // Not every C library has a file for it.
        if let Some(characters) = CHARACTERS.iter().map(Path::new).find(|file| file.is_file()) {
            copy(characters, &toolbox.path.join("locale/C.utf8/LC_CTYPE"), 0o644)?;
        }
        Ok(toolbox)
    }

    fn add(&self, program: &Path) -> io::Result<String> {
        let name = program.file_name().and_then(|name| name.to_str());
        let name = name.ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let needed = needed(program)?;
        for (library, file) in &needed.libraries {
            let place = self.path.join("lib").join(library);
            // Another program's is the same.
            if !place.exists() {
                copy(file, &place, 0o755)?;
            }
        }
        copy(program, &self.path.join("program").join(&name), 0o755)?;
        // Last: with it the program is there.
        copy(&needed.loader, &self.path.join("bin").join(&name), 0o755)?;
        Ok(name)
    }

    /// Where it is on the host.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is to be executed in a machine to run a program, if it was brought along.
    pub(super) fn program(&self, name: &str) -> Option<PathBuf> {
        let is_there = self.programs.iter().any(|program| program == name);
        is_there.then(|| Path::new(PLACE).join("bin").join(name))
    }

    /// The arguments with which that runs the program, of which these are the program's own, its
    /// `$0` first.
    pub(super) fn arguments(name: &str, own: &[OsString]) -> Vec<OsString> {
        let (argv0, rest) = match own {
            [argv0, rest @ ..] => (argv0.clone(), rest),
            [] => (name.into(), own),
        };
        let mut arguments =
            vec![argv0.clone(), "--library-path".into(), format!("{PLACE}/lib").into()];
        arguments.extend(["--argv0".into(), argv0, format!("{PLACE}/program/{name}").into()]);
        arguments.extend(rest.iter().cloned());
        arguments
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    std::fs::create_dir(path)?;
    // Whatever the umask says.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
}

fn copy(from: &Path, to: &Path, mode: u32) -> io::Result<()> {
    std::fs::copy(from, to)?;
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(mode))
}

/// Asks the host's `ldd`, which runs the loader of the program.
fn needed(program: &Path) -> io::Result<Needed> {
    #[expect(
        clippy::disallowed_methods,
        reason = "no command of a model's: a program of the host, which looks at one of the host's"
    )]
    let mut ldd = Command::new("ldd");
    ldd.arg(program).env_clear().env("PATH", shell::PATH);
    let listed = ldd.stdin(Stdio::null()).stderr(Stdio::null()).output()?;
    if !listed.status.success() {
        return Err(io::Error::other("ldd knows no libraries of it"));
    }
    parse(&String::from_utf8_lossy(&listed.stdout))
        .ok_or_else(|| io::Error::other("what ldd says of it is not understood"))
}

/// Lines as `libc.so.6 => /lib/libc.so.6 (0x…)`, and one as `/lib64/ld-linux.so.2 (0x…)` or
/// `libc.musl.so.1 => /lib/ld-musl.so.1 (0x…)`. What the kernel gives (`linux-vdso.so.1`) has no
/// path.
fn parse(listed: &str) -> Option<Needed> {
    let mut loader = None;
    let mut libraries = Vec::new();
    for line in listed.lines() {
        let line = line.trim();
        let without_address = line.rsplit_once(" (0x").map_or(line, |(text, _)| text);
        match without_address.split_once(" => ") {
            Some((name, path)) if path.starts_with('/') => {
                if is_loader(path) {
                    loader = Some(PathBuf::from(path));
                }
                libraries.push((name.rsplit('/').next()?.to_owned(), PathBuf::from(path)));
            }
            // Not found.
            Some(_) => return None,
            None if without_address.starts_with('/') && is_loader(without_address) => {
                loader = Some(PathBuf::from(without_address));
            }
            None => {}
        }
    }
    Some(Needed { loader: loader?, libraries })
}

fn is_loader(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| name.starts_with("ld-") || name.starts_with("ld."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_needs_is_read_from_what_ldd_says() {
        let glibc = "\tlinux-vdso.so.1 (0x00007fff)\n\tlibtinfo.so.6 => /lib/x/libtinfo.so.6 (0x1)\n\
                     \tlibc.so.6 => /lib/x/libc.so.6 (0x2)\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        let library = |name: &str, path: &str| (name.to_owned(), PathBuf::from(path));
        let expected = Needed {
            loader: "/lib64/ld-linux-x86-64.so.2".into(),
            libraries: vec![
                library("libtinfo.so.6", "/lib/x/libtinfo.so.6"),
                library("libc.so.6", "/lib/x/libc.so.6"),
            ],
        };
        assert_eq!(parse(glibc), Some(expected));
        let musl = "\t/lib/ld-musl-x86_64.so.1 (0x1)\n\tlibc.musl-x86_64.so.1 => /lib/ld-musl-x86_64.so.1 (0x1)\n";
        assert_eq!(parse(musl).unwrap().loader, Path::new("/lib/ld-musl-x86_64.so.1"));
        assert_eq!(parse("\tlibx.so => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n"), None);
        assert_eq!(parse("\tstatically linked\n"), None);
    }

    #[test]
    fn a_program_runs_by_what_was_brought_along_alone() {
        let dir = tempfile::tempdir().unwrap();
        let bash = Path::new("/bin/bash");
        let path = dir.path().join("toolbox");
        let toolbox = Toolbox::make(path.clone(), &[bash, Path::new("/nonexistent/x")]).unwrap();
        assert_eq!(toolbox.program("bash"), Some(Path::new(PLACE).join("bin/bash")));
        assert_eq!(toolbox.program("x"), None);
        // Where it is on the host, since no machine is there to show it.
        let own = [
            "sh",
            "-c",
            "echo $0 $BASH_VERSION; cat /proc/$$/comm; grep -c toolbox/lib /proc/$$/maps; :",
        ];
        let own = own.map(OsString::from);
        let here = |argument: OsString| {
            let text = argument.into_string().unwrap();
            text.replace(PLACE, path.to_str().unwrap())
        };
        let arguments = Toolbox::arguments("bash", &own).into_iter().map(here).skip(1);
        let run = Command::new(path.join("bin/bash")).args(arguments).output().unwrap();
        let printed = String::from_utf8(run.stdout).unwrap();
        let lines: Vec<_> = printed.lines().collect();
        assert!(lines[0].starts_with("sh ") && lines[0].len() > 4, "{lines:?} {:?}", run.stderr);
        assert_eq!(lines[1], "bash");
        assert!(lines[2].parse::<u32>().unwrap() > 3, "{lines:?}");
    }
}
