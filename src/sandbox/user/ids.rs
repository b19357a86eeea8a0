//! Ids of users and groups that the slots of an engine may have on this machine. Pure.
//!
//! Two sizes are of use. With [`WHOLE`] ids a slot has a user for every id that an image uses. With
//! one id it has a user of its own, which is all that it takes for the kernel to count apart what
//! slots use.
//!
//! In a user namespace no mount gives the files of a layer other owners than they have on disk. So
//! all machines from images have the same range of ids there, which the files of layers belong to,
//! and each slot has one id, in a gap of that range.

use std::fmt;

use crate::config::UserIds;

/// As many ids as an image has users: `root` is 0, `nobody` 65,534.
pub(crate) const WHOLE: u32 = 65_536;

/// Where slots have their ids by default: above what systemd gives to containers, /etc/subuid to
/// users, and sssd to the users of a domain; below the numbers that some programs take for
/// negative.
const FAR_FROM_USERS: IdSpan = IdSpan::new(0x7800_0000, 2046 * WHOLE);
/// The same in a user namespace, which has as many ids as an image: in the gap of [`OF_IMAGES`].
const IN_GAP: IdSpan = IdSpan::new(1 + GAP.first, GAP.count);
/// The same in one that has fewer, or for more slots: above the users that are added one by one,
/// and below those of systemd.
const IN_CONTAINER: IdSpan = IdSpan::new(30_000, 30_000);

/// What all machines from images have together where layers cannot be shown with the owners of a
/// slot: a whole range that no slot has; or in a user namespace all ids from an image's root to its
/// `nobody`, beside the namespace's root, without those that slots have.
const OF_IMAGES: [IdMap; 2] = [
    IdMap::whole(0x7800_0000 + 2046 * WHOLE),
    IdMap { inside: 0, outside: 1, count: WHOLE - 1, has_gap: true },
];
/// Which ids of an image these are: those that systemd gives to services for as long as they run,
/// so that no file of an image belongs to one.
const GAP: IdSpan = IdSpan::new(61_184, 4_336);

/// Ids that follow each other, at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IdSpan {
    /// The first.
    pub(crate) first: u32,
    /// How many.
    pub(crate) count: u32,
}

impl IdSpan {
    /// So many ids from `first` on.
    pub(crate) const fn new(first: u32, count: u32) -> Self {
        Self { first, count }
    }

    /// What follows the last.
    pub(super) fn end(self) -> u64 {
        u64::from(self.first) + u64::from(self.count)
    }

    pub(super) fn overlaps(self, other: Self) -> bool {
        u64::from(self.first) < other.end() && u64::from(other.first) < self.end()
    }

    fn is_within(self, space: &[Self]) -> bool {
        space.iter().any(|span| span.first <= self.first && self.end() <= span.end())
    }
}

/// Ids inside a sandbox, and which of this machine they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IdMap {
    /// The first one inside.
    pub(crate) inside: u32,
    /// What that is on this machine.
    pub(crate) outside: u32,
    /// How many follow each other.
    pub(crate) count: u32,
    /// Whether those that slots have are not among them.
    pub(crate) has_gap: bool,
}

impl IdMap {
    /// One id.
    pub(crate) const fn single(inside: u32, outside: u32) -> Self {
        Self { inside, outside, count: 1, has_gap: false }
    }

    /// All ids of an image, as ids from `outside` on.
    pub(crate) const fn whole(outside: u32) -> Self {
        Self { inside: 0, outside, count: WHOLE, has_gap: false }
    }

    /// What an id of the inside is on this machine, if it is one.
    pub(crate) fn outside_of(self, inside: u32) -> Option<u32> {
        let is_slots = self.has_gap && IdSpan::new(inside, 1).is_within(&[GAP]);
        let offset = inside.checked_sub(self.inside).filter(|_| !is_slots)?;
        (offset < self.count).then(|| self.outside + offset)
    }

    /// Whether a process may map it by itself, in the namespace that it has made.
    pub(crate) fn is_single(self) -> bool {
        self.count == 1
    }
}

/// As the kernel reads it: a line for each part.
impl fmt::Display for IdMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inside, outside, count, has_gap } = *self;
        if !has_gap {
            return write!(f, "{inside} {outside} {count}");
        }
        let (before, after) = (GAP.first, GAP.first + GAP.count);
        writeln!(f, "{inside} {outside} {before}")?;
        write!(f, "{after} {} {}", outside + after, count - after)
    }
}

/// Where slots may have ids, and how many each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Zone {
    /// The ids to choose from.
    pub(super) span: IdSpan,
    /// How many a slot gets.
    pub(super) per_slot: u32,
}

/// Where so many slots may have ids, the best first. `space` is the ids that this process can use.
///
/// # Errors
/// What was asked for cannot be had: why, as one line.
pub(super) fn zones(wish: UserIds, slots: usize, space: &[IdSpan]) -> Result<Vec<Zone>, String> {
    let slots = u64::try_from(slots).unwrap_or(u64::MAX);
    let of_slots = |span: IdSpan, per_slot: u32| {
        let fits = slots * u64::from(per_slot) <= u64::from(span.count);
        fits.then_some(Zone { span, per_slot })
    };
    match wish {
        UserIds::Shared => Ok(Vec::new()),
        UserIds::Span { first, count } => {
            let span = IdSpan::new(first, count);
            if !span.is_within(space) {
                return Err(format!("the user ids {wish} are not all there: {}", listed(space)));
            }
            let best = of_slots(span, WHOLE).or_else(|| of_slots(span, 1));
            best.map(|zone| vec![zone]).ok_or_else(|| {
                format!(
                    "the user ids {wish} are fewer than the {slots} slots, each of which needs one"
                )
            })
        }
        UserIds::Auto if FAR_FROM_USERS.is_within(space) => {
            let zones = [of_slots(FAR_FROM_USERS, WHOLE), of_slots(FAR_FROM_USERS, 1)];
            Ok(zones.into_iter().flatten().collect())
        }
        UserIds::Auto => {
            let spans = [IN_GAP, IN_CONTAINER].into_iter().filter(|span| span.is_within(space));
            Ok(spans.filter_map(|span| of_slots(span, 1)).collect())
        }
    }
}

/// Those of [`OF_IMAGES`] that are in `space`, if some are.
pub(super) fn of_images(space: &[IdSpan]) -> Option<IdMap> {
    let is_there = |map: &IdMap| IdSpan::new(map.outside, map.count).is_within(space);
    OF_IMAGES.into_iter().find(is_there)
}

/// Those of [`OF_IMAGES`] whose first id this is, or a whole range from there on.
pub(crate) fn of_images_from(first: u32) -> IdMap {
    let from_there = OF_IMAGES.into_iter().find(|map| map.outside == first);
    from_there.unwrap_or(IdMap::whole(first))
}

/// The ids as a user may give them.
fn listed(space: &[IdSpan]) -> String {
    let spans: Vec<_> = space.iter().map(|span| format!("{}:{}", span.first, span.count)).collect();
    match spans.is_empty() {
        true => "this process can use none".to_owned(),
        false => format!("this process can use {}", spans.join(", ")),
    }
}

/// Ids for so many slots of a zone: those that `take` takes, which is asked for one slot's ids at a
/// time, never for any that are in `avoid`. It begins with the slot's place `start` in the zone,
/// and goes around. `None` where they are not enough.
///
/// # Errors
/// Those of `take`.
pub(super) fn choose<E>(
    zone: Zone,
    slots: usize,
    start: u32,
    avoid: &[IdSpan],
    mut take: impl FnMut(IdSpan) -> Result<bool, E>,
) -> Result<Option<Vec<IdSpan>>, E> {
    let places = zone.span.count / zone.per_slot;
    let mut taken = Vec::with_capacity(slots);
    for step in 0..places {
        if taken.len() == slots {
            break;
        }
        let place = (u64::from(start) + u64::from(step)) % u64::from(places);
        let first = u64::from(zone.span.first) + place * u64::from(zone.per_slot);
        let Ok(first) = u32::try_from(first) else { continue };
        let ids = IdSpan::new(first, zone.per_slot);
        if !avoid.iter().any(|other| other.overlaps(ids)) && take(ids)? {
            taken.push(ids);
        }
    }
    Ok((taken.len() == slots).then_some(taken))
}

/// The ids that exist in a user namespace with this `/proc/self/uid_map`, joined where they follow
/// each other.
pub(super) fn mapped(map: &str) -> Vec<IdSpan> {
    let line = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
        let (first, _, count) = (numbers.next()?.ok()?, numbers.next()?, numbers.next()?.ok()?);
        (count > 0).then_some(IdSpan::new(first, count))
    };
    let mut spans: Vec<_> = map.lines().filter_map(line).collect();
    spans.sort_by_key(|span| span.first);
    let mut joined: Vec<IdSpan> = Vec::new();
    for span in spans {
        match joined.last_mut() {
            Some(last) if last.end() == u64::from(span.first) => {
                last.count = last.count.saturating_add(span.count);
            }
            _ => joined.push(span),
        }
    }
    joined
}

/// The ids that are in both.
pub(super) fn in_both(one: &[IdSpan], other: &[IdSpan]) -> Vec<IdSpan> {
    let mut both = Vec::new();
    for a in one {
        for b in other {
            let (first, end) = (a.first.max(b.first), a.end().min(b.end()));
            if let Ok(count @ 1..) = u32::try_from(end.saturating_sub(u64::from(first))) {
                both.push(IdSpan::new(first, count));
            }
        }
    }
    both
}

/// The ids that a file like `/etc/subuid` gives to users, and to whom: a name or a number.
pub(super) fn delegations(subuid: &str) -> impl Iterator<Item = (&str, IdSpan)> {
    subuid.lines().filter_map(|line| {
        let mut fields = line.split(':').map(str::trim);
        let owner = fields.next()?;
        let mut numbers = fields.map(str::parse::<u32>);
        let (first, count) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        (count > 0).then_some((owner, IdSpan::new(first, count)))
    })
}

/// The ids that a file like `/etc/subuid` gives to users.
pub(super) fn delegated(subuid: &str) -> Vec<IdSpan> {
    delegations(subuid).map(|(_, span)| span).collect()
}

/// What an id is in the namespace around the one with this `/proc/self/uid_map`.
pub(super) fn around(map: &str, id: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
        let mut next = || numbers.next()?.ok();
        let (inside, outside, count) = (next()?, next()?, next()?);
        let offset = id.checked_sub(inside)?;
        (offset < count).then(|| outside.checked_add(offset))?
    })
}

/// The ids that have a name in a file like `/etc/passwd` or `/etc/group`.
pub(super) fn named(passwd: &str) -> Vec<IdSpan> {
    let id = |line: &str| line.split(':').nth(2)?.trim().parse().ok();
    passwd.lines().filter_map(id).map(|id| IdSpan::new(id, 1)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOST: [IdSpan; 1] = [IdSpan::new(0, u32::MAX)];
    const CONTAINER: [IdSpan; 1] = [IdSpan::new(0, 65_537)];

    fn auto(slots: usize, space: &[IdSpan]) -> Vec<(u32, u32)> {
        let zones = zones(UserIds::Auto, slots, space).unwrap();
        zones.iter().map(|zone| (zone.span.first, zone.per_slot)).collect()
    }

    #[test]
    fn a_host_has_a_whole_range_for_each_slot_and_a_container_one_id() {
        assert_eq!(auto(32, &HOST), [(0x7800_0000, WHOLE), (0x7800_0000, 1)]);
        // More slots than there are ranges.
        assert_eq!(auto(4096, &HOST), [(0x7800_0000, 1)]);
        assert_eq!(auto(32, &CONTAINER), [(61_185, 1), (30_000, 1)]);
        assert_eq!(auto(32, &[IdSpan::new(0, 60_000)]), [(30_000, 1)]);
        assert_eq!(auto(4_337, &CONTAINER), [(30_000, 1)]);
        assert_eq!(auto(40_000, &CONTAINER), []);
        assert_eq!(auto(1, &[IdSpan::new(0, 1)]), [], "an ordinary user's namespace");
        assert_eq!(zones(UserIds::Shared, 1, &HOST), Ok(Vec::new()));
    }

    #[test]
    fn images_have_ids_beside_those_of_slots_or_all_but_the_first() {
        let found = of_images(&HOST).unwrap();
        assert!(!IdSpan::new(found.outside, found.count).overlaps(FAR_FROM_USERS), "{found:?}");
        assert_eq!(found, IdMap::whole(0x7ffe_0000));
        // Kubernetes gives a pod one less.
        let map = of_images(&CONTAINER).unwrap();
        assert_eq!(of_images(&[IdSpan::new(0, WHOLE)]), Some(map));
        assert_eq!(of_images(&[IdSpan::new(0, 60_000)]), None);
        assert_eq!(map.to_string(), "0 1 61184\n65520 65521 15");
        assert_eq!([0, 61_183].map(|id| map.outside_of(id)), [Some(1), Some(61_184)]);
        assert_eq!([61_184, 65_519, 65_535].map(|id| map.outside_of(id)), [None; 3]);
        assert_eq!([65_520, 65_534].map(|id| map.outside_of(id)), [Some(65_521), Some(65_535)]);
        assert_eq!([of_images_from(1), of_images_from(7)], [map, IdMap::whole(7)]);
    }

    #[test]
    fn what_was_asked_for_is_had_or_refused_with_what_would_be_right() {
        let of = |first, count, slots, space: &[IdSpan]| {
            zones(UserIds::Span { first, count }, slots, space)
                .map(|zones| zones.iter().map(|zone| zone.per_slot).collect::<Vec<_>>())
        };
        assert_eq!(of(200_000, 2 * WHOLE, 2, &HOST), Ok(vec![WHOLE]));
        assert_eq!(of(200_000, 2 * WHOLE, 3, &HOST), Ok(vec![1]));
        let few = of(200_000, 2, 3, &HOST).unwrap_err();
        assert!(few.contains("200000:2 are fewer than the 3 slots"), "{few}");
        let absent = of(200_000, 3, 3, &CONTAINER).unwrap_err();
        assert!(absent.contains("can use 0:65537"), "{absent}");
    }

    #[test]
    fn files_of_the_system_are_read() {
        assert_eq!(mapped("         0          0 4294967295\n"), HOST);
        assert_eq!(mapped("0 1000 1\n1 100000 65536\n"), CONTAINER);
        assert_eq!(mapped("0 1000 1\n5 100000 2\nx"), [IdSpan::new(0, 1), IdSpan::new(5, 2)]);
        assert_eq!(in_both(&HOST, &CONTAINER), CONTAINER);
        assert_eq!(in_both(&[IdSpan::new(0, 1)], &[IdSpan::new(1, 9)]), []);
        let subuid = "me:100000:65536\n# text\nyou:165536:0\n1000:200000:5\n";
        assert_eq!(delegated(subuid), [IdSpan::new(100_000, 65_536), IdSpan::new(200_000, 5)]);
        let map = "0 1000 1\n1 100000 65536\n";
        let outside = [0, 1, 65_536, 65_537].map(|id| around(map, id));
        assert_eq!(outside, [Some(1000), Some(100_000), Some(165_535), None]);
        assert_eq!(
            named("root:x:0:0:::\nbroken\nme:x:1000:7::\n"),
            [0, 1000].map(|id| IdSpan::new(id, 1))
        );
    }

    fn span() -> impl Strategy<Value = IdSpan> {
        (0u32..200, 1u32..40).prop_map(|(first, count)| IdSpan::new(first, count))
    }

    proptest! {
        #[test]
        fn chosen_ids_are_apart_free_and_as_many_as_there_can_be(
            zone in span(),
            per_slot in 1u32..5,
            slots in 1usize..12,
            start in 0u32..300,
            avoid in prop::collection::vec(span(), 0..4),
            locked in prop::collection::vec(span(), 0..4),
        ) {
            let zone = Zone { span: zone, per_slot };
            let is_free = |ids: IdSpan| {
                (ids.first..ids.first + ids.count).all(|id| {
                    let holds = |span: &IdSpan| span.first <= id && u64::from(id) < span.end();
                    !avoid.iter().any(holds) && !locked.iter().any(holds)
                })
            };
            let take = |ids: IdSpan| {
                Ok::<_, ()>(!locked.iter().any(|other| other.overlaps(ids)))
            };
            let chosen = choose(zone, slots, start, &avoid, take).unwrap();
            let places = zone.span.count / per_slot;
            let free = (0..places)
                .map(|place| IdSpan::new(zone.span.first + place * per_slot, per_slot))
                .filter(|ids| is_free(*ids))
                .count();
            prop_assert_eq!(chosen.is_some(), free >= slots);
            for (n, ids) in chosen.iter().flatten().enumerate() {
                prop_assert!(is_free(*ids) && ids.is_within(&[zone.span]));
                prop_assert_eq!(ids.count, per_slot);
                prop_assert!(!chosen.iter().flatten().skip(n + 1).any(|other| other.overlaps(*ids)));
            }
        }
    }
}
