//! How far commands are isolated from the machine and from other slots: the words for it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How far commands are isolated from the machine and from other slots. Serialised as its name in
/// `snake_case`.
// From the strongest to the weakest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum IsolationLevel {
    /// Nothing is shared but the kernel, the processors, and what was given to all slots.
    Full,
    /// All slots are one user to the kernel: one of them can use up what it counts by user, as the
    /// pages of pipes, inotify instances and descriptors in flight, for the others and for this
    /// process.
    OneUser,
    /// Commands see the processes of the machine, or of the container, by its `/proc`: their names
    /// and command lines. They cannot signal or trace them. What holds of
    /// [`OneUser`](Self::OneUser) may hold here, too.
    SharedProc,
    /// They are not isolated. Read also for what a later version says.
    #[serde(other)]
    None,
}

impl IsolationLevel {
    /// Its name: `full`, `one_user`, `shared_proc` or `none`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::OneUser => "one_user",
            Self::SharedProc => "shared_proc",
            Self::None => "none",
        }
    }
}

impl fmt::Display for IsolationLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which user ids machines from images have, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ImageIds {
    /// Each slot has all ids of an image, as a range of its own.
    OwnRange,
    /// All slots have the same range: files have their owners, and to the kernel one machine's
    /// users are the other's. So where root may not show files with other owners: in a container,
    /// and in the user namespace of an ordinary user whom /etc/subuid gives ids.
    SharedRange,
    /// One id, which stands for all: root's `chown` and its kin are answered without effect.
    One,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_told_by_name_and_what_is_unknown_is_the_weakest() {
        let levels = [
            IsolationLevel::Full,
            IsolationLevel::OneUser,
            IsolationLevel::SharedProc,
            IsolationLevel::None,
        ];
        assert!(levels.is_sorted());
        for level in levels {
            let json = serde_json::to_string(&level).unwrap();
            assert_eq!(json, format!("\"{level}\""));
            assert_eq!(serde_json::from_str::<IsolationLevel>(&json).unwrap(), level);
        }
        let later: IsolationLevel = serde_json::from_str("\"half\"").unwrap();
        assert_eq!(later, IsolationLevel::None);
    }
}
