//! Workspaces above layers: the directories of a slot as they were at one moment, which do not
//! change any more, and what the slot changes above them.
//!
//! A [`Base`] is what can be beneath a slot's files: layers above an image, or layers of each of
//! the three directories of a machine on the host's files. Where there are some, the directory on
//! the host is the writable part of an overlay, which the first process of the slot's machine
//! mounts. The three are seen through the root directory of that machine
//! ([`Workspace::on_founded`]). One that has nothing beneath it is bound as it is.

use std::any::Any;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::super::image::Layer;
use super::super::jail::{Access, Entry, MOST_TREES, Overlay, Tree, UPPER};
use super::super::paths::Root;
use super::super::settings::Settings;
use super::super::user::CommandUser;
use super::merged::Merged;
use super::{
    Directory, ImageFiles, NoMachine, Remains, Workspace, WorkspaceError, make_private_dir,
    make_shown_dir,
};
use crate::spec::SpecFile;

/// What is dropped with a layer: it removes the layer's files, say.
pub(crate) type Keeper = Box<dyn Any + Send + Sync>;

/// What is beneath a slot's files. By default nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Base {
    /// An image, and what is above it.
    pub(super) image: Option<Arc<ImageFiles>>,
    /// Without an image: the workspace's, `/tmp`'s and the home directory's.
    pub(super) trees: [Beneath; 3],
    /// Whose the files of these are, if not ours: who goes on above them is that user, whichever
    /// slot it is in, unless mounts can show them as another user's.
    pub(super) owner: Option<CommandUser>,
}

/// What is beneath one directory.
#[derive(Debug, Clone, Default)]
pub(super) struct Beneath {
    /// The lowest first.
    layers: Vec<Arc<Layer>>,
    /// The permissions of the directory itself, if they are not those of a new one.
    mode: Option<Mode>,
}

// What keeps a layer there is dropped with it, and otherwise never used.
impl std::panic::RefUnwindSafe for Beneath {}

/// What a grader finds beside the files that it judges.
#[derive(Debug)]
pub(crate) struct Grading {
    /// Its own files, on the host.
    pub(crate) files: PathBuf,
    /// Its home and temporary directory, on the host.
    pub(crate) home: PathBuf,
    /// Where they are inside.
    pub(crate) files_at: PathBuf,
    /// Where all but some directories is the image's own: those.
    pub(super) judged: Vec<Judged>,
}

/// A directory of a trajectory that is judged in a machine in which all else is the image's own.
#[derive(Debug)]
pub(super) struct Judged {
    /// Where it is inside.
    place: PathBuf,
    /// What it is in each layer that shows through, the lowest first; nothing where it is missing.
    lower: Vec<Tree>,
    /// What the grader changes, on the host.
    writable: PathBuf,
}

/// What is judged, and by what files.
pub(crate) struct ToGrade<'a> {
    /// The grader's own files.
    pub(crate) files: &'a [SpecFile],
    /// Where they are inside.
    pub(crate) files_at: &'a Path,
    /// Whom it runs as, if not as the trajectory's user.
    pub(crate) user: Option<&'a str>,
    /// The directories that are judged, where all else is to be the image's own.
    pub(crate) paths: Option<&'a [String]>,
}

/// The three directories of a workspace as its commands see them, through a machine; and through
/// the next one of the slot, if that machine could not be used any more.
#[derive(Debug)]
pub(super) struct Seen {
    roots: [Root; 3],
    next: OnceLock<Box<Self>>,
}

impl Base {
    /// The same for another trajectory, whose commands are this user's, if one is given, in a slot
    /// whose ids are `owner`'s.
    ///
    /// # Errors
    /// There is no such user.
    pub(crate) fn for_trajectory(
        &self,
        user: Option<&str>,
        owner: Option<CommandUser>,
    ) -> Result<Self, NoMachine> {
        let image = match (&self.image, user) {
            (Some(image), Some(user)) => Some(Arc::new(image.with_user(user, owner)?)),
            (None, Some(user)) => {
                return Err(NoMachine::Unsupported(format!(
                    "user is {user:?}, and the snapshot is of a machine on the host's files, whose \
                     commands are the one user that slots have; leave user out"
                )));
            }
            (image, None) => image.clone(),
        };
        Ok(Self { image, trees: self.trees.clone(), owner: self.owner })
    }

    /// The same for a slot of another user, as whose mounts show its files.
    pub(crate) fn of_any_slot(self) -> Self {
        Self { owner: None, ..self }
    }

    /// How many layers it has in all.
    pub(crate) fn layers(&self) -> usize {
        let of_image = self.image.as_ref().map_or(0, |image| image.layers().count());
        of_image + self.trees.iter().map(|beneath| beneath.layers.len()).sum::<usize>()
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
            top.push(UPPER);
            make_private_dir(top.clone(), owner)?;
        }
        if let Some(mode) = self.mode {
            rustix::fs::chmod(&top, mode)
                .map_err(|errno| WorkspaceError::io("set the mode of", &top, errno))?;
        }
        Ok(directory)
    }
}

impl Seen {
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

    /// Whether its files can be seen only when a machine was founded for it.
    pub(crate) fn needs_machine(&self) -> bool {
        self.has_layers() && self.seen.get().is_none()
    }

    /// How many layers are beneath its files in all.
    pub(crate) fn depth(&self) -> usize {
        let of_image = self.image().map_or(0, |image| image.layers().count());
        of_image + self.layers().map(<[_]>::len).into_iter().sum::<usize>()
    }

    /// Whether one of its three directories has layers beneath it.
    pub(super) fn has_layers(&self) -> bool {
        self.beneath.iter().any(|beneath| !beneath.layers.is_empty())
    }

    /// A machine with these files has been founded, whose root directory this is: the files are
    /// seen through it from now on.
    ///
    /// # Errors
    /// The directories cannot be opened there.
    pub(in crate::sandbox) fn on_founded(&self, root: BorrowedFd<'_>) -> io::Result<()> {
        if !self.has_layers() {
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
        let mut seen = Box::new(Seen { roots, next: OnceLock::new() });
        let mut place = &self.seen;
        while let Err(again) = place.set(seen) {
            let Some(there) = place.get() else { return Ok(()) };
            (seen, place) = (again, &there.next);
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
        // Of a machine, as of a slot, the first process has the same ids as all others.
        let owner = match self.founder() {
            Some(user) => user.map().outside,
            None => rustix::process::geteuid().as_raw(),
        };
        let mut layer = |path: &Path, top: PathBuf| {
            let is_empty =
                std::fs::read_dir(&top).is_ok_and(|mut entries| entries.next().is_none());
            (!is_empty).then(|| Arc::new(Layer::new(top, owner, keeper(path))))
        };
        let mode = |top: &Path| match top.metadata() {
            Ok(metadata) => Ok(metadata.mode() & 0o1777),
            Err(error) => Err(WorkspaceError::io("look at", top, error)),
        };
        let (mut base, mut unused) = (Base::default(), Vec::new());
        if let Some(image) = self.image() {
            let top = self.path().join(UPPER);
            let mode = mode(&top)?;
            let above = layer(self.path(), top);
            if above.is_none() {
                unused.push(self.path().to_owned());
            }
            base.image = Some(Arc::new(image.with_layer(above, mode)));
            unused.extend([self.temporary(), self.home()].map(Path::to_owned));
            return Ok((base, Remains::of(unused)));
        }
        base.owner = self.owner();
        let all = base.trees.iter_mut().zip(&self.beneath).zip(self.directories());
        for ((tree, beneath), path) in all {
            let top = match beneath.layers.is_empty() {
                true => path.to_owned(),
                false => path.join(UPPER),
            };
            tree.layers.clone_from(&beneath.layers);
            tree.mode = Some(Mode::from_raw_mode(mode(&top)?));
            match layer(path, top) {
                Some(layer) => tree.layers.push(layer),
                None => unused.push(path.to_owned()),
            }
        }
        Ok((base, Remains::of(unused)))
    }

    /// Takes over the complete outputs of the calls before it, where these are in no layer.
    pub(crate) fn take_outputs(&self, before: &Self) {
        if self.image().is_some() && before.image().is_some() {
            // In the place of the empty directory. Where it fails the files are missed, no more.
            let (from, to) = (before.outputs_directory(), self.outputs_directory());
            if let Err(error) = std::fs::rename(&from, &to) {
                log::warn!("the complete outputs of earlier calls are lost: {error}");
            }
            let made = before.outputs.load(Ordering::Relaxed);
            self.outputs.store(made, Ordering::Relaxed);
        }
    }

    /// A workspace for a grader above this one, which must not change meanwhile. Its files are
    /// written for it. Gives what is to be removed when it is over.
    ///
    /// # Errors
    /// As of making one; there is no such user, or a path that cannot be judged.
    pub(crate) fn for_grading(&self, spec: &ToGrade<'_>) -> Result<(Self, Remains), NoGrading> {
        let ToGrade { files, files_at, user, paths } = *spec;
        let (mut base, _) = self.as_base(&mut |_| None)?;
        let mut judged = Vec::new();
        if let Some(paths) = paths {
            let Some(image) = &base.image else {
                let text = "judged_paths is given, and the trajectory's machine has no image: what \
                            is not its own is the host's there; leave judged_paths out";
                return Err(NoMachine::Unsupported(text.to_owned()).into());
            };
            judged = self.judged(image, paths)?;
            base.image = Some(Arc::new(image.pristine()));
        }
        if let (Some(user), Some(image)) = (user, &base.image) {
            base.image = Some(Arc::new(image.with_user(user, self.user_of_slot())?));
        }
        let mut made = self.renew_from(&base)?;
        // Of the trajectory's settings just those: nothing of its environment is there.
        made.set(Settings { limits: self.limits().clone(), ..Settings::default() });
        let name = made.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let own = self.directory().join(format!("grade-of-{name}"));
        let mut directories = made.directories().map(Path::to_owned).to_vec();
        directories.push(own.clone());
        let remains = Remains::of(directories);
        let (files_here, home) = (own.join("files"), own.join("home"));
        for (number, judged) in judged.iter_mut().enumerate() {
            judged.0.writable = own.join(format!("judged-{number}"));
        }
        let written = write_files(&own, &files_here, files)
            .map_err(|(path, error)| WorkspaceError::io("write", &path, error))
            .and_then(|()| make_private_dir(home.clone(), made.owner()).map(drop))
            .and_then(|()| {
                let make = |(judged, (mode, owner)): &(Judged, Attributes)| {
                    make_private_dir(judged.writable.clone(), made.founder())?;
                    make_shown_dir(judged.writable.join(UPPER), *mode, *owner)
                };
                judged.iter().try_for_each(make)
            });
        if let Err(error) = written {
            if let Err(error) = remains.remove() {
                log::warn!("{error}");
            }
            return Err(error.into());
        }
        let files_at = files_at.to_owned();
        let judged = judged.into_iter().map(|(judged, _)| judged).collect();
        made.grading = Some(Arc::new(Grading { files: files_here, home, files_at, judged }));
        Ok((made, remains))
    }

    /// What the directories at these paths are in the layers of `image`, which has all that was
    /// changed; and the mode and owner of each.
    fn judged(
        &self,
        image: &ImageFiles,
        paths: &[String],
    ) -> Result<Vec<(Judged, Attributes)>, NoGrading> {
        let owner = self.user_of_slot();
        let layers: Vec<_> = image.layers().collect();
        let failed = |path: &Path, error| WorkspaceError::io("look at", path, error);
        let merged = Merged::open(layers.iter().map(|layer| layer.path()))
            .map_err(|error| failed(Path::new("the layers"), error))?;
        let mut all = Vec::new();
        for path in paths {
            let Some((beneath, found)) = merged.directory(path) else {
                let text = format!("judged_paths has {path:?}, which is no directory there");
                return Err(NoMachine::Unsupported(text).into());
            };
            let found: Vec<_> =
                found.into_iter().map(|number| layers[layers.len() - 1 - number]).collect();
            let user = |uid, gid| image.ids_of(owner).map(|user| user.as_inside(uid, gid));
            let mut attributes = (0o755, user(0, 0));
            if let Some(top) = found.first() {
                let host = top.path().join(&beneath);
                let about = host.symlink_metadata().map_err(|error| failed(&host, error))?;
                let inside = |id: u32| id.saturating_sub(top.owner());
                attributes =
                    (about.mode() & 0o7777, user(inside(about.uid()), inside(about.gid())));
            }
            let tree = |layer: &&Arc<Layer>| image.tree(layer, layer.path().join(&beneath), owner);
            let lower = found.iter().rev().map(tree).collect();
            let (place, writable) = (PathBuf::from(path), PathBuf::new());
            all.push((Judged { place, lower, writable }, attributes));
        }
        let trees: usize = all.iter().map(|(judged, _)| judged.lower.len() + 1).sum();
        let most = MOST_TREES - image.image().layers().len() - 1;
        if trees > most {
            let text = format!(
                "judged_paths are in {trees} directories of layers, and a machine has {most} \
                 beside its image's: name fewer paths, or take fewer snapshots"
            );
            return Err(NoMachine::Unsupported(text).into());
        }
        Ok(all)
    }

    /// The directories that are judged, if only some are, as a jail shows them.
    pub(in crate::sandbox) fn judged_entries(&self) -> Vec<Entry> {
        let (Some(grading), Some(image)) = (self.grading(), self.image()) else {
            return Vec::new();
        };
        let entry = |Judged { place, lower, writable }: &Judged| match lower.is_empty() {
            // There is nothing to be judged.
            true => Entry::Shown {
                host: writable.join(UPPER),
                place: place.clone(),
                access: Access::Writable,
            },
            false => Entry::Layered(Overlay {
                place: place.clone(),
                lower: lower.clone(),
                writable: image.own_tree(writable, self.user_of_slot()),
                work: self.next_work(),
            }),
        };
        grading.judged.iter().map(entry).collect()
    }
}

/// The mode of a directory, and whose it is, if not ours.
type Attributes = (u32, Option<CommandUser>);

/// Why a grader has no workspace.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoGrading {
    /// Its directories cannot be made.
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    /// It cannot run as the user that is asked for, or judge what it is to.
    #[error(transparent)]
    Refused(#[from] NoMachine),
}

/// The directory at `place` beneath another root directory, in which links lead nowhere else.
fn beneath_root(root: BorrowedFd<'_>, place: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(root, place, flags, Mode::empty(), resolve)?)
}

/// Writes files into a directory that is made for them, which no one else knows. All may read them.
fn write_files(above: &Path, into: &Path, files: &[SpecFile]) -> Result<(), (PathBuf, io::Error)> {
    let dir_mode = PermissionsExt::from_mode(0o755);
    let make_dir = |path: &Path| {
        std::fs::create_dir_all(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::clone(&dir_mode))
    };
    let failed = |path: &Path| {
        let path = path.to_owned();
        |error| (path, error)
    };
    make_dir(above).map_err(failed(above))?;
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
