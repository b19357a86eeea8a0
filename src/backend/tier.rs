//! The backends that one is made of, as the executor sees them.

use std::time::Duration;

use serde::Serialize;

use super::Capabilities;

/// One of several backends under an executor, see [`Backend::tiers`](super::Backend::tiers).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Tier {
    /// Its name. The addresses of its containers are `NAME/…`.
    pub name: String,
    /// How long a trajectory that waits for a slot waits for the tiers before this one.
    #[serde(rename = "spill_after_s", with = "crate::seconds")]
    pub spill_after: Duration,
    /// What it can do, and what holds in its slots, as far as is known now.
    pub capabilities: Capabilities,
}

impl Tier {
    /// One that is used as soon as those before it have no free slot.
    pub fn new(name: impl Into<String>, capabilities: Capabilities) -> Self {
        Self { name: name.into(), spill_after: Duration::ZERO, capabilities }
    }
}

setters! {
    Tier {
        with_spill_after: spill_after = Duration,
    }
}

/// The number of the tier that an address is of, and what the address is there. `None`: there are
/// no tiers, or it is of none.
pub(crate) fn split<'a, 'n>(
    mut names: impl Iterator<Item = &'n str>,
    addr: &'a str,
) -> Option<(usize, &'a str)> {
    let (name, there) = addr.split_once('/')?;
    Some((names.position(|tier| tier == name)?, there))
}
