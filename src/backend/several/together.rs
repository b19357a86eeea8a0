//! What holds wherever a call may run, when there are several places for it. Pure.

use crate::backend::{BadContainer, Capabilities, Isolation, Tier};

/// What holds in the slots of all of them.
pub(super) fn together(tiers: &[Tier]) -> Capabilities {
    let each = || tiers.iter().map(|tier| &tier.capabilities);
    let not_isolated = tiers.iter().find_map(|tier| {
        let why = tier.capabilities.isolation.not_isolated_because()?;
        Some(format!("{}: {why}", tier.name))
    });
    let all_isolate = each().all(|one| one.isolation == Isolation::Isolated);
    let named = |told: fn(&Capabilities) -> Vec<&String>| -> Vec<String> {
        let lines = tiers.iter().map(|tier| (&tier.name, told(&tier.capabilities)));
        lines
            .flat_map(|(name, told)| told.into_iter().map(move |line| format!("{name}: {line}")))
            .collect()
    };
    let bad = tiers.iter().flat_map(|tier| {
        tier.capabilities.bad_containers.iter().map(|bad| {
            let addr = format!("{}/{}", tier.name, bad.addr);
            BadContainer { addr, ..bad.clone() }
        })
    });
    let first = |told: fn(&Capabilities) -> &Option<String>| {
        tiers.iter().find_map(|tier| {
            told(&tier.capabilities).as_ref().map(|why| format!("{}: {why}", tier.name))
        })
    };
    let fields = each().flat_map(|one| &one.spec);
    let mut spec = Vec::new();
    for field in fields {
        if !spec.contains(field) {
            spec.push(*field);
        }
    }
    Capabilities {
        // A call's limit is known before its place is: none is cut shorter than where it runs.
        default_timeout: each().map(|one| one.default_timeout).max().unwrap_or_default(),
        // Each tier says so for itself.
        inline_tools: &[],
        starts_dirty: false,
        may_grow: each().any(|one| one.may_grow),
        isolation: match not_isolated {
            Some(why) => Isolation::NotIsolated(why),
            None if all_isolate => Isolation::Isolated,
            None => Isolation::Unknown,
        },
        isolation_level: each()
            .map(|one| one.isolation_level)
            .reduce(|a, b| Some(a?.max(b?)))
            .flatten(),
        weakened_because: named(|one| one.weakened_because.iter().collect()),
        limits: each().map(|one| one.limits).reduce(|a, b| Some(a?.weaker(b?))).flatten(),
        warm_slots: each().map(|one| one.warm_slots).reduce(|a, b| Some(a? && b?)).flatten(),
        retired_sandboxes: each().map(|one| one.retired_sandboxes).sum(),
        network: each().map(|one| one.network).reduce(|a, b| Some(a?.wider(b?))).flatten(),
        // What one of them counts is not all.
        network_totals: None,
        not_filtered_because: first(|one| &one.not_filtered_because),
        bad_containers: bad.collect(),
        containers_found_bad: each().map(|one| one.containers_found_bad).sum(),
        // What one of them can give can be had.
        spec,
        no_images_because: match each().all(|one| one.no_images_because.is_some()) {
            true => first(|one| &one.no_images_because),
            false => None,
        },
        image_ids: each().filter_map(|one| one.image_ids).max(),
    }
}
