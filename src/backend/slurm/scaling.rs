//! How many servers there should be: a pure function of what is wanted, what there is, and the
//! clock.
//!
//! Up at once, by what is missing. Down by what was not needed at any moment of the idle time: the
//! fewest slots that were free in it. So a load that comes and goes within the idle time starts and
//! ends no servers.

use std::time::{Duration, Instant};

/// The bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    /// The fewest servers.
    pub(super) least: usize,
    /// The most servers.
    pub(super) most: usize,
    /// How long capacity has to be unused before it goes.
    pub(super) idle: Duration,
}

/// What is wanted and what there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct View {
    /// Trajectories that wait for a slot.
    pub(super) waiting: usize,
    /// Slots that are free, on servers that stay.
    pub(super) free: usize,
    /// Servers that stay and have slots.
    pub(super) up: usize,
    /// Servers that are being started.
    pub(super) starting: usize,
    /// How many slots a server has, or is expected to have.
    pub(super) slots_each: usize,
}

/// Decides how many servers there should be.
#[derive(Debug)]
pub(super) struct Scaler {
    bounds: Bounds,
    /// Since when no capacity was missing or let go, and the fewest slots that were free since.
    unused: Option<(Instant, usize)>,
}

impl Scaler {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, unused: None }
    }

    /// How many servers there should be, those that are being started among them.
    pub(super) fn target(&mut self, view: &View, now: Instant) -> usize {
        let Bounds { least, most, idle } = self.bounds;
        let each = view.slots_each.max(1);
        let have = view.up + view.starting;
        let coming = view.free + view.starting * each;
        if have < least || have > most || view.waiting > coming {
            self.unused = None;
            let missing = view.waiting.saturating_sub(coming).div_ceil(each);
            return (have + missing).clamp(least, most);
        }
        let free = if view.waiting == 0 { view.free } else { 0 };
        let (since, fewest) = self.unused.get_or_insert((now, free));
        *fewest = (*fewest).min(free);
        if now.saturating_duration_since(*since) < idle {
            return have;
        }
        let unused = *fewest / each;
        self.unused = None;
        // What is being started is not up, and nothing of it was free.
        have.saturating_sub(unused.min(view.up)).max(least)
    }

    /// When [`target`](Self::target) may say something else though nothing changes.
    pub(super) fn due(&self) -> Option<Instant> {
        self.unused.map(|(since, _)| since + self.bounds.idle)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BinaryHeap;

    use proptest::prelude::*;

    use super::*;

    const IDLE: Duration = Duration::from_secs(300);

    fn scaler(least: usize, most: usize) -> Scaler {
        Scaler::new(Bounds { least, most, idle: IDLE })
    }

    fn view(waiting: usize, free: usize, up: usize, starting: usize) -> View {
        View { waiting, free, up, starting, slots_each: 10 }
    }

    #[test]
    fn what_is_missing_is_started_at_once() {
        let now = Instant::now();
        let mut scaler = scaler(1, 20);
        assert_eq!(scaler.target(&view(0, 0, 0, 0), now), 1, "the fewest");
        assert_eq!(scaler.target(&view(35, 0, 1, 0), now), 5);
        assert_eq!(scaler.target(&view(35, 0, 1, 4), now), 5, "they are coming");
        assert_eq!(scaler.target(&view(36, 0, 1, 4), now), 5);
        assert_eq!(scaler.target(&view(41, 0, 1, 4), now), 6);
        assert_eq!(scaler.target(&view(1000, 0, 5, 0), now), 20, "the most");
    }

    #[test]
    fn what_was_never_needed_in_the_idle_time_goes() {
        let start = Instant::now();
        let mut scaler = scaler(1, 20);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(scaler.target(&view(0, 45, 5, 0), at(0)), 5);
        assert_eq!(scaler.due(), Some(at(300)));
        assert_eq!(scaler.target(&view(0, 22, 5, 0), at(150)), 5);
        assert_eq!(scaler.target(&view(0, 50, 5, 0), at(299)), 5);
        assert_eq!(scaler.target(&view(0, 50, 5, 0), at(300)), 3, "22 were always free");
        assert_eq!(scaler.target(&view(0, 30, 3, 0), at(301)), 3, "a new time begins");
        // What waits starts it anew.
        assert_eq!(scaler.target(&view(31, 30, 3, 0), at(400)), 4);
        assert_eq!(scaler.target(&view(0, 40, 4, 0), at(401)), 4);
        assert_eq!(scaler.target(&view(0, 40, 4, 0), at(700)), 4);
        assert_eq!(scaler.target(&view(0, 40, 4, 0), at(701)), 1);
    }

    proptest! {
        #[test]
        fn the_target_is_within_its_bounds_and_what_was_just_needed_stays(
            least in 0..4usize,
            more in 0..10usize,
            steps in proptest::collection::vec((0..200usize, 0..100usize, 0..12usize, 0..6usize, 0..200u64), 1..60),
        ) {
            let most = (least + more).max(1);
            let mut scaler = scaler(least, most);
            let mut now = Instant::now();
            let mut needed_at = now;
            for (waiting, free, up, starting, pause) in steps {
                now += Duration::from_secs(pause);
                let view = view(waiting, free, up, starting);
                let have = up + starting;
                let target = scaler.target(&view, now);
                prop_assert!((least..=most).contains(&target));
                if waiting > free + starting * 10 {
                    needed_at = now;
                    prop_assert!(target >= have.clamp(least, most));
                }
                if target < have.min(most) {
                    prop_assert!(waiting == 0 && now - needed_at >= IDLE);
                    prop_assert!(target >= starting.clamp(least, most));
                }
                if have < most && waiting > free + starting * 10 {
                    prop_assert!(target > have, "it must grow");
                }
            }
        }

        #[test]
        fn a_steady_load_ends_in_a_steady_number(load in 0..150usize, begin in 0..20usize) {
            // Each server has ten slots; servers are there at once.
            let mut scaler = scaler(0, 20);
            let mut now = Instant::now();
            let mut up = begin;
            let mut changes = 0;
            for _ in 0..100 {
                now += Duration::from_secs(30);
                let held = load.min(up * 10);
                let target = scaler.target(&view(load - held, up * 10 - held, up, 0), now);
                changes += usize::from(target != up);
                up = target;
            }
            prop_assert!(up * 10 >= load && up * 10 < load + 10 + 10, "{} for {}", up, load);
            prop_assert!(changes <= 2, "{} changes", changes);
        }
    }

    /// What a simulated day costs.
    #[derive(Debug, Default)]
    struct Cost {
        starts: usize,
        most_up: usize,
        slot_seconds: f64,
        idle_seconds: f64,
        waited: Vec<f64>,
    }

    /// Trajectories arrive, hold a slot for a while, and go; a server takes `start` seconds to be
    /// there. The pool is a count: which server has what does not matter to the scaler.
    fn simulate(arrivals: &[(f64, f64)], bounds: Bounds, each: usize, start: f64) -> Cost {
        #[derive(PartialEq)]
        struct At(f64, Event);
        #[derive(PartialEq, Clone, Copy)]
        enum Event {
            Arrives(f64),
            Ends,
            Listens,
            Looks,
        }
        impl Eq for At {}
        impl PartialOrd for At {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }
        impl Ord for At {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                other.0.total_cmp(&self.0)
            }
        }
        let zero = Instant::now();
        let mut scaler = Scaler::new(bounds);
        let mut events: BinaryHeap<At> =
            arrivals.iter().map(|&(at, lasts)| At(at, Event::Arrives(lasts))).collect();
        let mut cost = Cost::default();
        let mut waiting: std::collections::VecDeque<(f64, f64)> = Default::default();
        let (mut up, mut starting, mut held) = (0usize, 0usize, 0usize);
        let (mut last, mut left) = (0.0, arrivals.len());
        events.push(At(0.0, Event::Looks));
        while let Some(At(at, event)) = events.pop() {
            cost.slot_seconds += (up * each) as f64 * (at - last);
            cost.idle_seconds += (up * each).saturating_sub(held) as f64 * (at - last);
            last = at;
            match event {
                Event::Arrives(lasts) => waiting.push_back((at, lasts)),
                Event::Ends => {
                    held -= 1;
                    left -= 1;
                }
                Event::Listens => {
                    starting -= 1;
                    up += 1;
                }
                Event::Looks if left > 0 => events.push(At(at + 1.0, Event::Looks)),
                Event::Looks => {}
            }
            while held < up * each
                && let Some((since, lasts)) = waiting.pop_front()
            {
                held += 1;
                cost.waited.push(at - since);
                events.push(At(at + lasts, Event::Ends));
            }
            let free = (up * each).saturating_sub(held);
            let view = View { waiting: waiting.len(), free, up, starting, slots_each: each };
            let target = scaler.target(&view, zero + Duration::from_secs_f64(at));
            for _ in up + starting..target {
                starting += 1;
                cost.starts += 1;
                events.push(At(at + start, Event::Listens));
            }
            // Only servers' worth of slots that are free go at once.
            let goes = (up + starting).saturating_sub(target).min(free / each);
            up -= goes;
            cost.most_up = cost.most_up.max(up);
            assert!(up + starting <= bounds.most);
        }
        cost
    }

    /// A thousand servers of 32 slots and a hundred thousand trajectories, in four waves.
    #[test]
    fn a_day_of_a_hundred_thousand_trajectories() {
        let mut arrivals = Vec::new();
        let mut random = 1u64;
        let mut next = || {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (random >> 11) as f64 / (1u64 << 53) as f64
        };
        for wave in 0..4 {
            let begin = f64::from(wave) * 3600.0;
            for _ in 0..25_000 {
                arrivals.push((begin + next() * 120.0, 30.0 + next() * 600.0));
            }
        }
        let bounds = Bounds { least: 0, most: 1000, idle: IDLE };
        let mut cost = simulate(&arrivals, bounds, 32, 20.0);
        assert_eq!(cost.waited.len(), arrivals.len(), "every trajectory got a slot");
        cost.waited.sort_by(f64::total_cmp);
        let at = |part: f64| cost.waited[(part * (cost.waited.len() - 1) as f64) as usize];
        let used = 1.0 - cost.idle_seconds / cost.slot_seconds;
        let figures = format!(
            "starts {}, most servers {}, used {used:.2}, waited p50 {:.1} s, p99 {:.1} s, most {:.1} s",
            cost.starts,
            cost.most_up,
            at(0.5),
            at(0.99),
            at(1.0)
        );
        #[expect(clippy::print_stdout, reason = "the figures, for who runs it with --nocapture")]
        {
            println!("{figures}");
        }
        assert!(cost.most_up <= 1000);
        assert!(at(1.0) <= 25.0, "no longer than a server takes to start");
        // Four waves, each of which needs its servers once.
        assert!(cost.starts <= 4 * cost.most_up, "{}", cost.starts);
        assert!(used > 0.3, "{used}");
    }
}
