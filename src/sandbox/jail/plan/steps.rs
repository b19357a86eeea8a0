//! The steps by which a first process makes what a plan says, one after the other. Pure.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{
    Access, NEW_ROOT, NO_DEVICES, NO_SET_USER_ID, Overlay, PROC_FLAGS, READ_ONLY, STAGE,
    STAGE_OF_ROOT, Tree, UPPER,
};
use crate::sandbox::init::message::step;

/// One step of the first process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sandbox::jail) struct Step {
    pub(super) kind: u8,
    pub(super) flag: u8,
    pub(super) number: u64,
    pub(super) text: Vec<u8>,
    /// What it does, as a verb and its object; with paths of the inside only.
    pub(in crate::sandbox::jail) what: String,
}

/// Steps, and what of the root they have made.
#[derive(Default)]
pub(super) struct Steps {
    pub(super) list: Vec<Step>,
    made: HashSet<PathBuf>,
    pub(super) sources: u64,
}

impl Steps {
    /// None yet, where so many sources are handed over before them.
    pub(super) fn after(sources: u64) -> Self {
        Self { sources, ..Self::default() }
    }

    pub(super) fn add<S: AsRef<OsStr>>(
        &mut self,
        kind: u8,
        flag: u8,
        number: u64,
        strings: &[S],
        what: &str,
    ) {
        let mut text = Vec::new();
        for string in strings {
            text.extend_from_slice(string.as_ref().as_bytes());
            text.push(0);
        }
        self.list.push(Step { kind, flag, number, text, what: what.to_owned() });
    }

    /// A step that needs nothing.
    pub(super) fn act(&mut self, kind: u8, what: &str) {
        self.add::<&str>(kind, 0, 0, &[], what);
    }

    /// Joins the cgroups of the slot: of so many that are handed over, the first with this number,
    /// all but the last. Gives the number of that.
    pub(super) fn join_cgroups(&mut self, first: usize, count: usize) -> Option<usize> {
        let own = first + count.checked_sub(1)?;
        for number in first..own {
            let what = "put itself under the limits of its slot";
            self.add::<&str>(step::JOIN_CGROUP, 0, number as u64, &[], what);
        }
        Some(own)
    }

    /// Sees no cgroup above those that it has joined, and joins the jail's `own`, if there is one.
    pub(super) fn own_cgroups(&mut self, own: Option<usize>) {
        self.act(step::OWN_CGROUPS, "have a cgroup namespace of its own");
        if let Some(own) = own {
            // The limits are the slot's, whose it has joined already.
            let what = "have a cgroup of its own";
            self.add::<&str>(step::JOIN_CGROUP, step::OPTIONAL, own as u64, &[], what);
        }
    }

    /// Where the host runs out of memory, sandboxes are what it should end.
    pub(super) fn be_ended_first(&mut self) {
        self.write("/proc/self/oom_score_adj", "1000", "be ended first for want of memory");
    }

    pub(super) fn write(&mut self, file: &str, value: &str, what: &str) {
        self.add(step::WRITE, 0, 0, &[file, value], what);
    }

    pub(super) fn source(&mut self, host: &Path, place: &Path, access: Access, flag: u8) {
        self.sources += 1;
        let what = format!("show {}", place.display());
        self.add(step::SOURCE, flag, access.attributes(), &[host], &what);
    }

    pub(super) fn attach(&mut self, source: &mut u64, place: &Path) {
        self.add(step::ATTACH, 0, *source, &[place], &format!("show {}", place.display()));
        *source += 1;
    }

    /// Mounts an overlay. Its trees are to be seen only while that is done. `source` and `given`
    /// are the next of those by path and of those that are handed over, as `is_given` says.
    pub(super) fn overlay(
        &mut self,
        overlay: &Overlay,
        is_given: impl Fn(&Tree) -> bool,
        source: &mut u64,
        given: &mut u64,
    ) {
        let stage = Path::new(if overlay.is_root() { STAGE_OF_ROOT } else { STAGE });
        self.add(step::DIRECTORY, 0, 0o700, &[stage], "make a place for layers");
        self.mount("tmpfs", stage, NO_SET_USER_ID | NO_DEVICES, "mode=0700");
        let writable = overlay.lower.len();
        for (number, tree) in overlay.trees().enumerate() {
            let place = stage.join(number.to_string());
            let what = format!("use layer {number} of {}", overlay.place.display());
            self.add(step::DIRECTORY, 0, 0o700, &[&place], &what);
            let next = if is_given(tree) { &mut *given } else { &mut *source };
            self.add(step::ATTACH, 0, *next, &[&place], &what);
            *next += 1;
        }
        let work = stage.join(writable.to_string()).join(&overlay.work);
        let what = format!("make a place to change {} in", overlay.place.display());
        self.add(step::DIRECTORY, 0, 0o700, &[&work], &what);
        // The topmost comes first.
        let shown = stage.display();
        let lower: Vec<_> = (0..writable).rev().map(|number| format!("{shown}/{number}")).collect();
        let options = format!(
            "lowerdir={},upperdir={shown}/{writable}/{UPPER},workdir={},userxattr,volatile",
            lower.join(":"),
            work.display(),
        );
        let place = if overlay.is_root() { Path::new(NEW_ROOT) } else { &overlay.place };
        self.directory(place);
        let what = format!("mount the layers of {}", overlay.place.display());
        let strings = ["overlay".as_ref(), place.as_os_str(), options.as_ref()];
        self.add(step::MOUNT, 0, NO_SET_USER_ID | NO_DEVICES, &strings, &what);
        if !overlay.is_root() {
            self.add(step::CLEAR, 0, 0, &[stage], "let go of the layers' places");
        }
    }

    pub(super) fn attributes(&mut self, place: &Path, attributes: u64) {
        let what = format!("protect {}", place.display());
        self.add(step::ATTRIBUTES, 0, attributes, &[place], &what);
    }

    pub(super) fn mount(&mut self, kind: &str, place: &Path, flags: u64, options: &str) {
        let what = format!("mount {kind} at {}", place.display());
        let strings = [kind.as_ref(), place.as_os_str(), options.as_ref()];
        self.add(step::MOUNT, 0, flags, &strings, &what);
    }

    /// What is to be seen of cgroups.
    pub(super) fn groups(&mut self, place: &Path, shown: &[(PathBuf, PathBuf)], source: &mut u64) {
        let is_one = shown.iter().all(|(_, own)| own == place);
        if !is_one {
            self.mount("tmpfs", place, PROC_FLAGS, "mode=0755,size=4096");
        }
        for (_, own) in shown {
            if !is_one {
                let what = format!("make {}", own.display());
                self.add(step::DIRECTORY, 0, 0o755, &[own], &what);
            }
            self.attach(source, own);
        }
        if !is_one {
            self.attributes(place, READ_ONLY);
        }
    }

    /// A directory and those above it, each once.
    pub(super) fn directory(&mut self, place: &Path) {
        let mut way: Vec<_> = place.ancestors().filter(|above| above.parent().is_some()).collect();
        way.reverse();
        for directory in way {
            if self.made.insert(directory.to_owned()) {
                let what = format!("make {}", directory.display());
                self.add(step::DIRECTORY, 0, 0o755, &[directory], &what);
            }
        }
    }

    pub(super) fn file(&mut self, place: &Path) {
        if let Some(above) = place.parent() {
            self.directory(above);
        }
        self.add(step::FILE, 0, 0o644, &[place], &format!("make {}", place.display()));
    }

    pub(super) fn link(&mut self, target: &Path, place: &Path) {
        if let Some(above) = place.parent() {
            self.directory(above);
        }
        let what = format!("make {}", place.display());
        self.add(step::LINK, 0, 0, &[target, place], &what);
    }
}

/// The steps as the first process takes them.
///
/// # Errors
/// More than fits into a message.
pub(in crate::sandbox::jail) fn encode(steps: &[Step]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(4096);
    for Step { kind, flag, number, text, .. } in steps {
        let length = u16::try_from(text.len()).map_err(|_| rustix::io::Errno::TOOBIG)?;
        let head = step::Head { kind: *kind, flag: *flag, length, number: *number };
        bytes.extend_from_slice(&head.to_bytes());
        bytes.extend_from_slice(text);
    }
    Ok(bytes)
}
