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

/// How many user ids the slots of this machine have. Serialised as its name in `snake_case`.
// From the most to the fewest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SlotIds {
    /// Each slot has all users of an image, as ids of its own.
    Range,
    /// Machines of images have all users of an image, as ids that all slots share; commands on the
    /// host's files have one id of their slot's own.
    Shared,
    /// A slot has one id, in a machine of an image, too: there all users are one, and giving files
    /// to others seems to work and does nothing. Read also for what a later version says.
    #[serde(other)]
    One,
}

impl SlotIds {
    /// Its name: `range`, `shared` or `one`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Range => "range",
            Self::Shared => "shared",
            Self::One => "one",
        }
    }
}

impl fmt::Display for SlotIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
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
        for ids in [SlotIds::Range, SlotIds::Shared, SlotIds::One] {
            let json = serde_json::to_string(&ids).unwrap();
            assert_eq!(json, format!("\"{ids}\""));
            assert_eq!(serde_json::from_str::<SlotIds>(&json).unwrap(), ids);
        }
        let later: IsolationLevel = serde_json::from_str("\"half\"").unwrap();
        assert_eq!(later, IsolationLevel::None);
    }
}
