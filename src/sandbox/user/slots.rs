//! Whom the commands of each slot run as.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::ids::{self, IdSpan};
use super::leases::Leases;
use super::{CommandUser, namespace};
use crate::config::UserIds;

const SHARED_AS_ASKED: &str = "all slots are one user, as was asked for";

/// Whom the commands of each slot run as.
#[derive(Debug, Clone)]
pub(crate) enum SlotUsers {
    /// All as this process; why, as one line.
    Own(String),
    /// All as one other user; why, as one line.
    Shared(CommandUser, &'static str),
    /// Each as a user of its own.
    Apart(Arc<Apart>),
}

/// Users of which each slot has one.
#[derive(Debug)]
pub(crate) struct Apart {
    user: CommandUser,
    of_slots: Vec<IdSpan>,
    /// Held for as long as a process or a file of theirs may be there.
    _leases: Leases,
}

/// There are no ids for the slots.
#[derive(Debug)]
pub(crate) enum NoIds {
    /// Those that were asked for cannot be had: why, as one line.
    Refused(String),
    /// The system gave none: why.
    System(io::Error),
}

impl SlotUsers {
    /// All as this process, an ordinary user: why not each as its own is found out. Blocks for some
    /// milliseconds, or as long as it takes to look the user up.
    pub(crate) fn own() -> Self {
        let why = namespace::why_not_apart();
        Self::Own(format!("all slots are one user, this process's own: {why}"))
    }

    /// All as this process, as was asked for.
    pub(crate) fn own_as_asked() -> Self {
        Self::Own(SHARED_AS_ASKED.to_owned())
    }

    /// Ids for so many slots of a root that may be another user, `user`; that user for all, where
    /// there are not enough, unless others were asked for. Blocks on a few file system calls.
    ///
    /// # Errors
    /// What was asked for cannot be had.
    pub(crate) fn find(wish: UserIds, slots: usize, user: CommandUser) -> Result<Self, NoIds> {
        let (text, space) = (super::text_of, super::own_ids());
        let zones = ids::zones(wish, slots, &space).map_err(NoIds::Refused)?;
        if zones.is_empty() {
            let because = match wish {
                UserIds::Shared => SHARED_AS_ASKED,
                _ => "all slots are one user, since this process can use too few user ids",
            };
            return Ok(Self::Shared(user, because));
        }
        let mut avoid = Vec::new();
        if wish == UserIds::Auto {
            for file in ["/etc/subuid", "/etc/subgid"] {
                avoid.extend(ids::delegated(&text(file)));
            }
            for file in ["/etc/passwd", "/etc/group"] {
                avoid.extend(ids::named(&text(file)));
            }
        }
        let start = uuid::Uuid::new_v4().as_u64_pair().0 as u32;
        let take = || -> io::Result<Option<Self>> {
            for zone in zones {
                // Those of the last one are let go of.
                let leases = Leases::open()?;
                let take = |ids| leases.take(ids);
                if let Some(of_slots) = ids::choose(zone, slots, start, &avoid, take)? {
                    return Ok(Some(Self::Apart(Arc::new(Apart {
                        user,
                        of_slots,
                        _leases: leases,
                    }))));
                }
            }
            Ok(None)
        };
        match take() {
            Ok(Some(apart)) => Ok(apart),
            Ok(None) if wish == UserIds::Auto => Ok(Self::Shared(
                user,
                "all slots are one user, since others have the user ids for more",
            )),
            Ok(None) => {
                Err(NoIds::Refused(format!("other engines use the user ids {wish} just now")))
            }
            Err(error) if wish == UserIds::Auto => {
                log::warn!("user ids cannot be locked: {error}");
                let because = "all slots are one user, since user ids cannot be locked (neither in /run \
                               nor in the temporary directory)";
                Ok(Self::Shared(user, because))
            }
            Err(error) => Err(NoIds::System(error)),
        }
    }

    /// Why all slots are one user, as one line; `None` where each has its own.
    pub(crate) fn one_user_because(&self) -> Option<String> {
        match self {
            Self::Own(because) => Some(because.clone()),
            Self::Shared(_, because) => Some((*because).to_owned()),
            Self::Apart(_) => None,
        }
    }

    /// Whether the kernel counts their processes, signals and inotify instances together: in a user
    /// namespace it counts them for the user who has made that, too.
    pub(crate) fn are_counted_together(&self) -> bool {
        match self {
            Self::Own(_) | Self::Shared(..) => true,
            Self::Apart(apart) => !apart.user.is_of_machine(),
        }
    }

    /// Whom the commands of a slot run as; `None` is this process's own user.
    pub(crate) fn of_slot(&self, slot: usize) -> Option<CommandUser> {
        match self {
            Self::Own(_) => None,
            Self::Shared(user, _) => Some(*user),
            // A slot that there is not has the user of none.
            Self::Apart(apart) => {
                let ids = apart.of_slots.get(slot);
                Some(ids.map_or(apart.user, |ids| apart.user.with_ids(*ids)))
            }
        }
    }
}

impl From<Option<CommandUser>> for SlotUsers {
    fn from(user: Option<CommandUser>) -> Self {
        user.map_or_else(Self::own_as_asked, |user| Self::Shared(user, SHARED_AS_ASKED))
    }
}

impl fmt::Display for NoIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(why) => f.write_str(why),
            Self::System(error) => write!(f, "user ids cannot be locked: {error}"),
        }
    }
}

impl std::error::Error for NoIds {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // Its text is in this one's.
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::ids::WHOLE;
    use super::*;

    #[test]
    fn slots_and_engines_have_users_apart() {
        let Some(user) = CommandUser::detect() else { return };
        let find = |wish, slots| SlotUsers::find(wish, slots, user);
        let (one, other) = (find(UserIds::Auto, 3).unwrap(), find(UserIds::Auto, 3).unwrap());
        // In a user namespace it is one id.
        let count = if user.is_of_machine() { WHOLE } else { 1 };
        let mut first: Vec<_> = [&one, &other]
            .iter()
            .flat_map(|users| (0..3).map(|slot| users.of_slot(slot).unwrap()))
            .inspect(|user| assert_eq!(user.map().count, count, "{user:?}"))
            .map(|user| user.map().outside)
            .collect();
        first.sort_unstable();
        assert!(first.windows(2).all(|pair| pair[0] + count <= pair[1]), "{first:?}");
        assert_eq!(one.one_user_because(), None);
        assert_eq!(one.are_counted_together(), !user.is_of_machine());
        if !user.is_of_machine() {
            return;
        }

        assert_eq!(find(UserIds::Shared, 3).unwrap().of_slot(2), Some(user));
        let few = UserIds::Span { first: 1_999_000_000, count: 4 };
        let one = find(few, 3).unwrap();
        assert_eq!(one.of_slot(0).unwrap().map().count, 1);
        let taken = find(few, 3).unwrap_err();
        assert!(
            taken.to_string().contains("other engines use the user ids 1999000000:4"),
            "{taken}"
        );
        drop(one);
        find(few, 3).unwrap();
    }
}
