//! Which user ids the slots of an embedded sandbox have.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// Which user ids of this machine the slots have, where this process is root: the machine's, or
/// that of a user namespace with the ids of `/etc/subuid` ([`enter`](crate::user_range::enter),
/// which the program does by itself). In JSON and on the command line `auto`, `shared` or
/// `FIRST:COUNT`.
///
/// Slots with users of their own share nothing that the kernel counts by user: the pages of pipes,
/// descriptors in flight, inotify instances, queued signals. With 65,536 ids for each slot all
/// users of an image are there inside; with one id each slot has just the one of its commands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
#[non_exhaustive]
pub enum UserIds {
    /// A range of 65,536 ids for each slot, from 2,013,265,920 on; in a user namespace, as in a
    /// container, that has fewer ids, one id for each slot, from 61,185 on, which no machine from
    /// an image has; or from 30,000 on where there are fewer still. What /etc/subuid gives to
    /// users, and other engines have, is left out. Where there are not enough all slots share one
    /// user.
    #[default]
    Auto,
    /// All slots are one user: 65,534, or this process's own where that is not root. The program
    /// enters no user namespace then.
    Shared,
    /// So many ids from the first on, for the slots of all engines that are given them: 65,536 for
    /// each slot, or one where they do not suffice for that. A start for which there are too few
    /// fails.
    Span {
        /// The first id. Not 0.
        first: u32,
        /// How many.
        count: u32,
    },
}

impl FromStr for UserIds {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number > 0);
        let span = |text: &str| {
            let (first, count) = text.split_once(':')?;
            let (first, count) = (number(first)?, number(count)?);
            // The last number means "no id" to the kernel.
            (u64::from(first) + u64::from(count) <= u64::from(u32::MAX))
                .then_some(Self::Span { first, count })
        };
        match text {
            "auto" => Ok(Self::Auto),
            "shared" => Ok(Self::Shared),
            _ => span(text).ok_or_else(|| {
                let text = format!(
                    "user_ids is {text:?}; it must be auto, shared, or FIRST:COUNT, as \
                     2000000000:655360, of ids from 1 to 4294967294"
                );
                ConfigError::new(text)
            }),
        }
    }
}

impl fmt::Display for UserIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Shared => f.write_str("shared"),
            Self::Span { first, count } => write!(f, "{first}:{count}"),
        }
    }
}

impl From<UserIds> for String {
    fn from(ids: UserIds) -> Self {
        ids.to_string()
    }
}

impl TryFrom<String> for UserIds {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        for ids in
            [UserIds::Auto, UserIds::Shared, UserIds::Span { first: 7, count: 4_294_967_288 }]
        {
            assert_eq!(ids.to_string().parse(), Ok(ids));
            let json = serde_json::to_string(&ids).unwrap();
            assert_eq!(serde_json::from_str::<UserIds>(&json).unwrap(), ids);
        }
        for wrong in ["", "off", "5", "0:9", "5:0", "5:", "-1:9", "7:4294967289", "5:9:3"] {
            let error = wrong.parse::<UserIds>().unwrap_err().to_string();
            assert!(
                error.contains("FIRST:COUNT") && error.contains(&format!("{wrong:?}")),
                "{error}"
            );
        }
    }
}
