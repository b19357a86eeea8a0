//! Workspaces above layers: the directories of a slot as they were at one moment, which do not
//! change any more, and what the slot changes above them.
//!
//! A [`Base`] is what can be beneath a slot's three directories. Where it has layers for one, that
//! directory on the host is the writable part of an overlay, which the first process of the slot's
//! machine mounts; the whole is seen through the root directory of that machine
//! ([`Workspace::on_founded`]). Where it has none the directory is bound as it is.

use std::any::Any;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::super::image::Layer;
use super::super::jail::{UPPER, WORK};
use super::super::paths::Root;
use super::super::user::CommandUser;
use super::{Directory, Remains, Workspace, WorkspaceError, make_private_dir};
use crate::spec::SpecFile;

/// What is dropped with a layer: it removes the layer's files, say.
pub(crate) type Keeper = Box<dyn Any + Send + Sync>;

/// What is beneath a slot's three directories. By default nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Base {
    /// The workspace's, `/tmp`'s and the home directory's.
    pub(super) trees: [Beneath; 3],
}

/// What is beneath one directory.
#[derive(Debug, Clone, Default)]
pub(super) struct Beneath {
    /// The lowest first.
    layers: Vec<Arc<Layer>>,
    /// The permissions of the directory itself, if they are not those of a new one.
    mode: Option<Mode>,
}

/// What a grader finds beside the files that it judges.
#[derive(Debug)]
pub(crate) struct Grading {
    /// Its own files, on the host.
    pub(crate) files: PathBuf,
    /// Where they are inside.
    pub(crate) files_at: PathBuf,
}

/// The three directories of a workspace as its commands see them, through a machine; and through
/// the next one of the slot, if that machine could not be used any more.
#[derive(Debug)]
pub(super) struct Founded {
    roots: [Root; 3],
    next: OnceLock<Box<Self>>,
}

impl Base {
    /// The layers of all three together.
    pub(crate) fn layers(&self) -> usize {
        self.trees.iter().map(|beneath| beneath.layers.len()).sum()
    }
}

impl Beneath {
    /// Makes the directory that is above it, for `owner`, or for ourselves.
    pub(super) fn make(
        &self,
        path: PathBuf,
        owner: Option<CommandUser>,
    ) -> Result<Directory, WorkspaceError> {
        let directory = make_private_dir(path, owner)?;
        let mut top = directory.path.clone();
        if !self.layers.is_empty() {
            for name in [UPPER, WORK] {
                make_private_dir(directory.path.join(name), owner)?;
            }
            top.push(UPPER);
        }
        if let Some(mode) = self.mode {
            rustix::fs::chmod(&top, mode)
                .map_err(|errno| WorkspaceError::io("set the mode of", &top, errno))?;
        }
        Ok(directory)
    }
}

impl Founded {
    /// The directories as the latest machine shows them.
    pub(super) fn latest(&self) -> [&Root; 3] {
        let mut latest = self;
        while let Some(next) = latest.next.get() {
            latest = next;
        }
        latest.roots.each_ref()
    }
}

impl Workspace {
    /// What is beneath its directories, the lowest first: the workspace's, `/tmp`'s and the home
    /// directory's.
    pub(in crate::sandbox) fn layers(&self) -> [&[Arc<Layer>]; 3] {
        self.beneath.each_ref().map(|beneath| &*beneath.layers)
    }

    /// What else a grader finds, if it is one's.
    pub(in crate::sandbox) fn grading(&self) -> Option<&Grading> {
        self.grading.as_deref()
    }

    /// Whether all of its files can be seen only when a machine was founded for it.
    pub(crate) fn needs_machine(&self) -> bool {
        self.is_layered() && self.founded.get().is_none()
    }

    /// The most layers that are beneath one of its directories.
    pub(crate) fn depth(&self) -> usize {
        self.layers().map(<[_]>::len).into_iter().max().unwrap_or(0)
    }

    fn is_layered(&self) -> bool {
        self.beneath.iter().any(|beneath| !beneath.layers.is_empty())
    }

    /// A machine with these files has been founded, whose root directory this is: the files are
    /// seen through it from now on.
    ///
    /// # Errors
    /// The directories cannot be opened there.
    pub(in crate::sandbox) fn on_founded(&self, root: BorrowedFd<'_>) -> io::Result<()> {
        if !self.is_layered() {
            return Ok(());
        }
        let inside = self.inside();
        let places = [inside.workspace, inside.temporary, inside.home];
        let mut roots = Vec::with_capacity(places.len());
        for ((place, beneath), path) in
            places.into_iter().zip(&self.beneath).zip(self.directories())
        {
            roots.push(match beneath.layers.is_empty() {
                true => Root::open(path)?,
                false => Root::held(beneath_root(root, place)?),
            });
        }
        let Ok(roots) = roots.try_into() else { return Ok(()) };
        let mut founded = Box::new(Founded { roots, next: OnceLock::new() });
        let mut place = &self.founded;
        while let Err(again) = place.set(founded) {
            let Some(there) = place.get() else { return Ok(()) };
            (founded, place) = (again, &there.next);
        }
        Ok(())
    }

    /// To be called before a machine is founded: the kernel uses the directory that it works in for
    /// one overlay only.
    ///
    /// # Errors
    /// The first that cannot be made anew.
    pub(in crate::sandbox) fn renew_work(&self) -> Result<(), WorkspaceError> {
        if self.founded.get().is_none() {
            return Ok(());
        }
        for (path, beneath) in self.directories().into_iter().zip(&self.beneath) {
            if !beneath.layers.is_empty() {
                let work = path.join(WORK);
                super::remove(&work)?;
                make_private_dir(work, self.owner())?;
            }
        }
        Ok(())
    }

    /// Its files as they are now, to be beneath others. Nothing may change them from then on, for
    /// as long as that is used. `keeper` is asked for what is to be dropped with the layer whose
    /// files are in this directory. Gives the directories, too, that are no layer since nothing is
    /// in them: they can go when the slot has another workspace.
    pub(crate) fn as_base(
        &self,
        keeper: &mut dyn FnMut(&Path) -> Option<Keeper>,
    ) -> Result<(Base, Remains), WorkspaceError> {
        let (mut base, mut unused) = (Base::default(), Vec::new());
        let owner = match self.owner() {
            Some(user) => user.map().outside,
            None => rustix::process::geteuid().as_raw(),
        };
        let all = base.trees.iter_mut().zip(&self.beneath).zip(self.directories());
        for ((tree, beneath), path) in all {
            let top = match beneath.layers.is_empty() {
                true => path.to_owned(),
                false => path.join(UPPER),
            };
            let metadata =
                top.metadata().map_err(|error| WorkspaceError::io("look at", &top, error))?;
            tree.layers.clone_from(&beneath.layers);
            tree.mode = Some(Mode::from_raw_mode(metadata.mode() & 0o777));
            match std::fs::read_dir(&top).is_ok_and(|mut entries| entries.next().is_none()) {
                true => unused.push(path.to_owned()),
                false => tree.layers.push(Arc::new(Layer::new(top, owner, keeper(path)))),
            }
        }
        Ok((base, Remains::of(unused)))
    }

    /// A workspace for a grader, above this one, which must not change meanwhile. Its files are
    /// written for it.
    ///
    /// # Errors
    /// As of making one.
    pub(crate) fn for_grading(
        &self,
        files: &[SpecFile],
        files_at: &Path,
    ) -> Result<(Self, Remains), WorkspaceError> {
        let (base, _) = self.as_base(&mut |_| None)?;
        let mut made = self.renew_from(&base)?;
        let mut remains: Vec<_> = made.directories().map(Path::to_owned).to_vec();
        let name = made.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let own = self.of_slot().join(format!("grade-of-{name}"));
        remains.push(own.clone());
        let remains = Remains::of(remains);
        if let Err((path, error)) = write_files(&own, files) {
            let error = WorkspaceError::io("write", &path, error);
            if let Err(error) = remains.remove() {
                log::warn!("{error}");
            }
            return Err(error);
        }
        made.grading = Some(Arc::new(Grading { files: own, files_at: files_at.to_owned() }));
        Ok((made, remains))
    }
}

/// The directory at `place` beneath another root directory, in which links lead nowhere else.
fn beneath_root(root: BorrowedFd<'_>, place: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(root, place, flags, Mode::empty(), resolve)?)
}

/// Writes files into a directory that is made for them, which no one else knows. All may read them.
fn write_files(into: &Path, files: &[SpecFile]) -> Result<(), (PathBuf, io::Error)> {
    let dir_mode = PermissionsExt::from_mode(0o755);
    let make_dir = |path: &Path| {
        std::fs::create_dir_all(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::clone(&dir_mode))
    };
    let failed = |path: &Path| {
        let path = path.to_owned();
        |error| (path, error)
    };
    make_dir(into).map_err(failed(into))?;
    for file in files {
        let path = into.join(&file.path);
        // Whatever the umask says, each directory on the way.
        let above: Vec<_> = path.ancestors().skip(1).take_while(|above| *above != into).collect();
        for above in above.into_iter().rev() {
            make_dir(above).map_err(failed(above))?;
        }
        let mode = PermissionsExt::from_mode(file.mode | 0o444);
        std::fs::write(&path, file.content.as_bytes())
            .and_then(|()| std::fs::set_permissions(&path, mode))
            .map_err(failed(&path))?;
    }
    Ok(())
}
