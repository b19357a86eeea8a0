//! When something is said about idle slots: pure decisions, with the clock passed in.

use std::time::{Duration, Instant};

/// How long a stall lasts before anything is said of it, and how long after that it is said again;
/// the time doubles with each time, up to the longest.
const FIRST: Duration = Duration::from_secs(10);
const MOST: Duration = Duration::from_secs(600);

/// Watches for stalls: trajectories wait for slots, and no holder of a slot does anything with it.
#[derive(Debug)]
pub(in crate::executor::dispatch) struct StallWatch {
    /// Since when the present stall has lasted.
    since: Option<Instant>,
    /// Whether anything was said of the present stall.
    said: bool,
    /// When something was last said of any stall, and how long nothing more is said after that.
    /// Stalls that come and go are said as seldom as one that lasts.
    last: Option<(Instant, Duration)>,
}

/// What is to be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::executor::dispatch) enum Say {
    /// There is a stall, which has lasted for so long.
    Stalled(Duration),
    /// The stall of which something was said is over; it has lasted for so long.
    Over(Duration),
}

impl StallWatch {
    /// No stall.
    pub(in crate::executor::dispatch) fn new() -> Self {
        Self { since: None, said: false, last: None }
    }

    /// Takes in whether there is a stall now, and decides what is to be said.
    pub(in crate::executor::dispatch) fn observe(
        &mut self,
        stalled: bool,
        now: Instant,
    ) -> Option<Say> {
        if !stalled {
            let since = self.since.take()?;
            return std::mem::take(&mut self.said).then(|| Say::Over(now - since));
        }
        let since = *self.since.get_or_insert(now);
        if now < self.due()? {
            return None;
        }
        let pause = match self.last {
            // After a long time without a stall it begins anew.
            Some((last, pause)) if since.saturating_duration_since(last) < MOST => pause * 2,
            _ => FIRST,
        };
        self.last = Some((now, pause.min(MOST)));
        self.said = true;
        Some(Say::Stalled(now - since))
    }

    /// When there is something to say, if the stall lasts until then.
    pub(in crate::executor::dispatch) fn due(&self) -> Option<Instant> {
        let first = self.since? + FIRST;
        Some(self.last.map_or(first, |(last, pause)| first.max(last + pause)))
    }

    /// How long the present stall has lasted.
    pub(in crate::executor::dispatch) fn lasts(&self, now: Instant) -> Option<Duration> {
        self.since.map(|since| now.saturating_duration_since(since))
    }
}

/// How many names a report has at most.
pub(in crate::executor::dispatch) const NAMES: usize = 8;
/// How long after a report the next one may come.
const BETWEEN: Duration = Duration::from_secs(1);

/// Collects the names of trajectories whose slots were taken back, so that a thousand are one
/// line.
#[derive(Debug, Default)]
pub(in crate::executor::dispatch) struct EndReport {
    /// The first of them.
    names: Vec<String>,
    count: usize,
    /// Since when there is something to tell.
    since: Option<Instant>,
    last: Option<Instant>,
}

impl EndReport {
    /// One more was taken back.
    pub(in crate::executor::dispatch) fn add(&mut self, now: Instant, name: &str) {
        self.since.get_or_insert(now);
        if self.names.len() < NAMES {
            self.names.push(name.to_owned());
        }
        self.count += 1;
    }

    /// The first names and the number of all, if it is time to tell of them.
    pub(in crate::executor::dispatch) fn take(
        &mut self,
        now: Instant,
    ) -> Option<(Vec<String>, usize)> {
        if self.due()? > now {
            return None;
        }
        (self.since, self.last) = (None, Some(now));
        Some((std::mem::take(&mut self.names), std::mem::take(&mut self.count)))
    }

    /// When it is time to tell of them, if there are any.
    pub(in crate::executor::dispatch) fn due(&self) -> Option<Instant> {
        let since = self.since?;
        Some(self.last.map_or(since, |last| since.max(last + BETWEEN)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// At which seconds something is said, where `stalled` says at which there is a stall.
    fn said(until: u64, stalled: impl Fn(u64) -> bool) -> Vec<(u64, Say)> {
        let (mut watch, start) = (StallWatch::new(), Instant::now());
        let observe = |second| watch.observe(stalled(second), start + seconds(second));
        (0..until).map(observe).zip(0..).filter_map(|(say, at)| Some((at, say?))).collect()
    }

    #[test]
    fn a_stall_is_said_after_10_s_again_and_again_more_seldom_and_its_end_once() {
        let said = said(3_000, |second| (100..2_500).contains(&second));
        let times = [110, 120, 140, 180, 260, 420, 740, 1_340, 1_940];
        let mut expected: Vec<_> =
            times.map(|at| (at, Say::Stalled(seconds(at - 100)))).into_iter().collect();
        expected.push((2_500, Say::Over(seconds(2_400))));
        assert_eq!(said, expected);
    }

    #[test]
    fn a_short_stall_is_never_said_and_neither_is_its_end() {
        assert_eq!(said(1_000, |second| second % 11 != 0), []);
    }

    #[test]
    fn stalls_that_come_and_go_are_said_more_and_more_seldom() {
        // One that lasts 11 s in every 20.
        let said = said(2_000, |second| second % 20 < 11);
        let stalls: Vec<_> = said
            .iter()
            .filter(|(_, say)| matches!(say, Say::Stalled(_)))
            .map(|(at, _)| *at)
            .collect();
        assert_eq!(stalls, [10, 30, 50, 90, 170, 330, 650, 1_250, 1_850]);
        assert_eq!(said.len(), 2 * stalls.len(), "each of them ends once");
        // After a long time without one it begins anew.
        let said = self::said(4_000, |second| !(300..=3_000).contains(&second));
        let after: Vec<_> = said.iter().filter(|(at, _)| *at > 3_000).map(|(at, _)| *at).collect();
        assert_eq!(after[..3], [3_011, 3_021, 3_041]);
    }

    #[test]
    fn a_stall_is_said_exactly_when_it_is_due() {
        let (mut watch, start) = (StallWatch::new(), Instant::now());
        assert_eq!((watch.due(), watch.lasts(start)), (None, None));
        assert_eq!(watch.observe(true, start), None);
        let due = watch.due().unwrap();
        assert_eq!(watch.observe(true, due - Duration::from_nanos(1)), None);
        assert_eq!(watch.observe(true, due), Some(Say::Stalled(FIRST)));
        assert_eq!(watch.lasts(due), Some(FIRST));
        assert_eq!(watch.due(), Some(due + FIRST));
        assert_eq!(watch.observe(false, due), Some(Say::Over(FIRST)));
        assert_eq!(watch.due(), None);
    }

    #[test]
    fn the_first_end_is_told_at_once_and_those_of_the_next_second_together() {
        let (mut report, start) = (EndReport::default(), Instant::now());
        assert_eq!((report.due(), report.take(start)), (None, None));
        report.add(start, "a");
        assert_eq!(report.take(start), Some((vec!["a".to_owned()], 1)));
        for number in 0..20 {
            report.add(start + Duration::from_millis(number), &number.to_string());
        }
        assert_eq!(report.due(), Some(start + BETWEEN));
        assert_eq!(report.take(start + BETWEEN / 2), None);
        let (names, count) = report.take(start + BETWEEN).unwrap();
        assert_eq!((names.len(), names[0].as_str(), count), (NAMES, "0", 20));
        assert_eq!(report.due(), None);
    }
}
