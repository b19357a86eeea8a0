//! What is put into a slot's files.

use serde::{Deserialize, Serialize};

/// What the bytes are that are put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PutKind {
    /// A file's content.
    #[default]
    File,
    /// A tar stream, plain or compressed by gzip, of what goes into a directory.
    Tar,
}

/// Files to put into a trajectory's machine, whose bytes come by a reader.
///
/// A *file* is written under another name and then gets its own, so that there is all of it or
/// nothing; what was there before is replaced, and its other names (hard links) keep what they
/// had. A *tar stream* is unpacked into a directory. One that does not exist is there when all of
/// it is, or not at all; into one that exists its entries are merged, each whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct PutFiles {
    /// The file, or the directory that a tar stream goes into. As commands would name it; missing
    /// directories on the way are made.
    pub path: String,
    /// What the bytes are. Defaults to a file's content.
    pub kind: PutKind,
    /// A file's permissions, up to 0o777. Defaults to those that it has, and to 0o644 for a new
    /// one. The entries of a tar stream have their own, without set-user-id and its kin.
    pub mode: Option<u32>,
    /// Whose everything is to be, where a slot has several ids: a name or a number, and after a
    /// colon the group's. Names are those of the machine's `/etc/passwd` and `/etc/group`. Defaults
    /// to the user that commands run as.
    pub owner: Option<String>,
    /// Whether a tar stream says by its numbers whose each entry is to be. Defaults to `false`.
    pub keep_owners: bool,
    /// Whether the trajectory's commands may use the network: which of its machines is meant
    /// depends on it, where nothing has run yet. The executor sets it by its policy. Defaults to
    /// `true`.
    pub allow_network: bool,
    /// How many bytes a file has, where that is known: one for which there is no room is refused
    /// before any is read.
    pub size: Option<u64>,
}

impl Default for PutFiles {
    fn default() -> Self {
        Self {
            path: String::new(),
            kind: PutKind::File,
            mode: None,
            owner: None,
            keep_owners: false,
            allow_network: true,
            size: None,
        }
    }
}

impl PutFiles {
    /// A file.
    pub fn file(path: impl Into<String>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    /// A tar stream that goes into a directory.
    pub fn tar(directory: impl Into<String>) -> Self {
        Self { path: directory.into(), kind: PutKind::Tar, ..Self::default() }
    }

    /// What is wrong with it by itself, if something is.
    pub(crate) fn problem(&self) -> Option<String> {
        let is_tar = self.kind == PutKind::Tar;
        match self.mode {
            Some(_) if is_tar => {
                return Some("a tar stream's entries have modes of their own: no mode".to_owned());
            }
            Some(mode @ 0o1000..) => {
                return Some(format!("the mode is 0o{mode:o}; at most 0o777"));
            }
            _ => {}
        }
        if self.keep_owners && !is_tar {
            return Some("only a tar stream says whose its entries are: no keep_owners".to_owned());
        }
        if self.keep_owners && self.owner.is_some() {
            return Some("either an owner or keep_owners, not both".to_owned());
        }
        if is_tar && self.size.is_some() {
            return Some("only a file's size can be said beforehand".to_owned());
        }
        if !is_tar && (self.path.is_empty() || self.path.ends_with('/')) {
            let text = "the path must name the file, and not a directory";
            return Some(format!("{text}: '{}'", self.path));
        }
        None
    }
}

setters! {
    PutFiles {
        with_mode: mode = Option<u32>,
        with_owner: owner = some String,
        with_keep_owners: keep_owners = bool,
        with_size: size = Option<u64>,
    }
}

/// What was put.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PutSummary {
    /// Where it is, as commands see it, symlinks resolved.
    pub path: String,
    /// The bytes of all files.
    pub bytes: u64,
    /// How many files, directories and links.
    pub entry_count: u64,
    /// How many entries of a tar stream, or of a tree, were left out since they are devices or
    /// sockets.
    pub skipped: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        assert_eq!(PutFiles::file("a").with_mode(Some(0o777)).with_size(Some(3)).problem(), None);
        assert_eq!(PutFiles::tar("").with_keep_owners(true).problem(), None);
        for (request, word) in [
            (PutFiles::file("a").with_mode(Some(0o4755)), "0o777"),
            (PutFiles::tar("a").with_mode(Some(0o755)), "no mode"),
            (PutFiles::tar("a").with_size(Some(5)), "size"),
            (PutFiles::file("a/"), "must name the file"),
            (PutFiles::file(""), "must name the file"),
            (PutFiles::file("a").with_keep_owners(true), "keep_owners"),
            (PutFiles::tar("a").with_keep_owners(true).with_owner("root"), "either"),
        ] {
            let problem = request.problem().unwrap();
            assert!(problem.contains(word), "{problem}");
        }
        assert!(serde_json::from_str::<PutFiles>(r#"{"path": "a", "mood": 1}"#).is_err());
    }
}
