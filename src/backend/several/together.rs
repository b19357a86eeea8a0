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
        // The weakest.
        image_ids: each().filter_map(|one| one.image_ids).max(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::level::IsolationLevel;
    use crate::spec::SpecField;

    fn tier(name: &str, capabilities: Capabilities) -> Tier {
        Tier::new(name, capabilities)
    }

    #[test]
    fn what_is_told_of_all_holds_wherever_a_call_runs() {
        let here = Capabilities::default()
            .with_isolation(Isolation::Isolated)
            .with_isolation_level(IsolationLevel::Full)
            .with_inline_tools(&["bash"])
            .with_warm_slots(true)
            .with_spec(vec![SpecField::Env])
            .with_no_images_because("no overlays");
        let there = Capabilities::default()
            .with_isolation(Isolation::Isolated)
            .with_isolation_level(IsolationLevel::OneUser)
            .with_weakened_because(vec!["one id".to_owned()])
            .with_default_timeout(Duration::from_secs(60))
            .with_starts_dirty(true)
            .with_may_grow(true)
            .with_warm_slots(true)
            .with_spec(vec![SpecField::Env, SpecField::Image]);
        let all = together(&[tier("here", here.clone()), tier("there", there.clone())]);
        assert_eq!(all.isolation, Isolation::Isolated);
        assert_eq!(all.isolation_level, Some(IsolationLevel::OneUser));
        assert_eq!(all.weakened_because, ["there: one id"]);
        assert_eq!((all.may_grow, all.warm_slots), (true, Some(true)));
        assert_eq!(all.default_timeout, Duration::from_secs(60), "none is cut shorter");
        // Each tier says these for itself.
        assert!(all.inline_tools.is_empty() && !all.starts_dirty);
        assert_eq!(all.spec, [SpecField::Env, SpecField::Image], "one of them can give it");
        assert_eq!(all.no_images_because, None, "one of them has images");

        let open = there.with_isolation(Isolation::NotIsolated("no namespaces".to_owned()));
        let all = together(&[tier("here", here.clone()), tier("open", open)]);
        assert_eq!(all.isolation.not_isolated_because(), Some("open: no namespaces"));
        let silent = Capabilities { isolation_level: None, ..here.clone() };
        let silent = silent.with_isolation(Isolation::Unknown);
        let all = together(&[tier("here", here), tier("silent", silent)]);
        assert_eq!((all.isolation, all.isolation_level), (Isolation::Unknown, None));
        assert_eq!(all.no_images_because.as_deref(), Some("here: no overlays"));
    }
}
