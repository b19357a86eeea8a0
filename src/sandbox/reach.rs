//! How the engine's own threads reach the files of a slot.
//!
//! What is in the slot's directories needs nothing but these. What is elsewhere in its machine is
//! looked for beneath the root directory that the machine's founder has handed over: so a path
//! means what it means to the slot's commands, and no process of theirs is needed for it.

use std::sync::Arc;

use super::paths::{FindRoot, Root, View};
use super::user::CommandUser;
use super::workspace::Workspace;

/// A slot's files.
#[derive(Clone, Copy)]
pub(crate) struct Reach<'a> {
    workspace: &'a Arc<Workspace>,
    find_root: FindRoot<'a>,
}

impl<'a> Reach<'a> {
    /// Of a slot with these directories, and with the root of its machine around them.
    pub(crate) fn new(workspace: &'a Arc<Workspace>, find_root: FindRoot<'a>) -> Self {
        Self { workspace, find_root }
    }

    /// The slot's directories.
    pub(super) fn workspace(self) -> &'a Arc<Workspace> {
        self.workspace
    }

    /// What paths mean.
    pub(super) fn view(self) -> View<'a> {
        let view = self.workspace.view(self.find_root);
        let is_roots = |user: CommandUser| user.is_root_of_many();
        match self.workspace.image().is_some() && self.workspace.owner().is_some_and(is_roots) {
            true => view.of_root(),
            false => view,
        }
    }

    /// What paths mean that lead out of the slot's directories nowhere.
    pub(super) fn view_of_directories(self) -> View<'a> {
        self.workspace.view(&no_root)
    }
}

/// Only the slot's directories are reached.
impl<'a> From<&'a Arc<Workspace>> for Reach<'a> {
    fn from(workspace: &'a Arc<Workspace>) -> Self {
        Self::new(workspace, &no_root)
    }
}

fn no_root() -> Result<Option<Root>, String> {
    Ok(None)
}
