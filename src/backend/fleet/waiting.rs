//! What the start of a fleet says while it waits for servers, and when: pure decisions, with the
//! clock passed in.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a server is waited for before anything is said of it.
const FIRST: Duration = Duration::from_secs(1);
/// How long nothing more is said then, even if there is something new.
const BETWEEN: Duration = Duration::from_secs(2);
/// How long after that it is said again that the same is still so; the time doubles with each
/// time.
const AGAIN: Duration = Duration::from_secs(10);
/// How many servers are named.
const NAMED: usize = 3;

/// The servers that are waited for, and what was said of them.
pub(super) struct WaitReport {
    began: Instant,
    limit: Duration,
    /// By its number: its URL, why it is waited for, and since when.
    waiting: BTreeMap<usize, Waiting>,
    said: Option<Said>,
}

struct Waiting {
    url: String,
    why: String,
    since: Instant,
    /// Whether `why` was said.
    is_said: bool,
}

struct Said {
    at: Instant,
    /// How long until it is said again, if nothing changes.
    pause: Duration,
}

impl WaitReport {
    /// Nothing is waited for; what will be is waited for until `limit` after `began`.
    pub(super) fn new(began: Instant, limit: Duration) -> Self {
        Self { began, limit, waiting: BTreeMap::new(), said: None }
    }

    /// A server is waited for, for this reason.
    pub(super) fn waits(&mut self, number: usize, url: &str, why: String, now: Instant) {
        let (url, is_said) = (url.to_owned(), false);
        let waiting = || Waiting { url, why: String::new(), since: now, is_said };
        let waiting = self.waiting.entry(number).or_insert_with(waiting);
        if waiting.why != why {
            (waiting.why, waiting.is_said) = (why, false);
        }
    }

    /// A server is waited for no more.
    pub(super) fn is_met(&mut self, number: usize) {
        self.waiting.remove(&number);
    }

    /// When there is something to say, if nothing changes until then.
    pub(super) fn due(&self) -> Option<Instant> {
        // News are said when the oldest of them is old enough.
        let news = self.waiting.values().filter(|waiting| !waiting.is_said);
        let news = news.map(|waiting| waiting.since + FIRST).min();
        let news =
            news.map(|due| self.said.as_ref().map_or(due, |said| due.max(said.at + BETWEEN)));
        let again = self.said.as_ref().map(|said| said.at + said.pause);
        let again = again.filter(|_| !self.waiting.is_empty());
        [news, again].into_iter().flatten().min()
    }

    /// What is to be said now, if anything.
    pub(super) fn take(&mut self, now: Instant) -> Option<String> {
        if self.due()? > now {
            return None;
        }
        let is_news = self.waiting.values().any(|waiting| !waiting.is_said);
        let pause = match &self.said {
            Some(said) if !is_news => said.pause * 2,
            Some(said) => said.pause,
            None => AGAIN,
        };
        let (still, left, more) = match &self.said {
            Some(_) => {
                let left = (self.began + self.limit).saturating_duration_since(now);
                ("still ", left, " more")
            }
            None => ("", self.limit, ""),
        };
        self.said = Some(Said { at: now, pause });
        // Those that are news first.
        let named = self.waiting.values().filter(|waiting| !waiting.is_said);
        let named = named.chain(self.waiting.values().filter(|waiting| waiting.is_said));
        let named = named.take(NAMED).map(|Waiting { url, why, .. }| format!("{url} ({why})"));
        let mut names = named.collect::<Vec<_>>().join(", ");
        if self.waiting.len() > NAMED {
            names.push_str(&format!(" and {} more", self.waiting.len() - NAMED));
        }
        self.waiting.values_mut().for_each(|waiting| waiting.is_said = true);
        Some(format!("{still}waiting for {names}, up to {:.0} s{more}", left.as_secs_f64().ceil()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Lets time pass from one thing to say to the next, until this many seconds after `start`.
    fn said(report: &mut WaitReport, start: Instant, until: u64) -> Vec<(u64, String)> {
        let mut said = Vec::new();
        while let Some(due) = report.due().filter(|due| *due <= start + seconds(until)) {
            assert_eq!(report.take(due - Duration::from_nanos(1)), None);
            said.push(((due - start).as_secs(), report.take(due).unwrap()));
        }
        said
    }

    #[test]
    fn a_server_is_said_after_a_second_and_again_more_and_more_seldom() {
        let start = Instant::now();
        let mut report = WaitReport::new(start, seconds(60));
        assert_eq!(report.due(), None);
        report.waits(0, "http://a:1", "connection refused".to_owned(), start);
        let lines = said(&mut report, start, 60);
        let a = "http://a:1 (connection refused)";
        assert_eq!(
            lines,
            [
                (1, format!("waiting for {a}, up to 60 s")),
                (11, format!("still waiting for {a}, up to 49 s more")),
                (31, format!("still waiting for {a}, up to 29 s more")),
            ]
        );
        report.is_met(0);
        assert_eq!(report.due(), None);
    }

    #[test]
    fn a_server_that_is_there_within_a_second_is_not_said() {
        let start = Instant::now();
        let mut report = WaitReport::new(start, seconds(60));
        report.waits(0, "http://a:1", "connection refused".to_owned(), start);
        report.waits(1, "http://b:1", "connection refused".to_owned(), start);
        report.is_met(0);
        assert_eq!(report.take(start), None);
        report.is_met(1);
        assert_eq!(said(&mut report, start, 60), []);
    }

    #[test]
    fn another_reason_is_said_soon_and_the_same_one_is_not() {
        let start = Instant::now();
        let mut report = WaitReport::new(start, seconds(60));
        let waits = |report: &mut WaitReport, why: &str, at: u64| {
            report.waits(0, "http://a:1", why.to_owned(), start + seconds(at));
            said(report, start, at)
        };
        assert_eq!(waits(&mut report, "connection refused", 0), []);
        assert_eq!(waits(&mut report, "connection refused", 1).len(), 1);
        assert_eq!(waits(&mut report, "connection refused", 2), []);
        assert_eq!(waits(&mut report, "HTTP 503: busy", 2), [], "not so soon");
        let line = "still waiting for http://a:1 (HTTP 503: busy), up to 57 s more".to_owned();
        assert_eq!(waits(&mut report, "HTTP 503: busy", 3), [(3, line)]);
        assert_eq!(waits(&mut report, "HTTP 503: busy", 12), []);
        assert_eq!(waits(&mut report, "HTTP 503: busy", 13).len(), 1);
    }

    #[test]
    fn many_servers_are_three_names_and_a_number_and_news_come_first() {
        let start = Instant::now();
        let mut report = WaitReport::new(start, seconds(60));
        for number in 0..8 {
            let url = format!("http://s{number}:1");
            report.waits(number, &url, "no answer yet".to_owned(), start);
        }
        let names = "http://s0:1 (no answer yet), http://s1:1 (no answer yet), http://s2:1 (no answer \
                     yet) and 5 more";
        let line = format!("waiting for {names}, up to 60 s");
        assert_eq!(said(&mut report, start, 1), [(1, line)]);
        report.waits(6, "http://s6:1", "connection refused".to_owned(), start + seconds(2));
        let names = "http://s6:1 (connection refused), http://s0:1 (no answer yet), http://s1:1 (no \
                     answer yet) and 5 more";
        let line = format!("still waiting for {names}, up to 57 s more");
        assert_eq!(said(&mut report, start, 3), [(3, line)]);
    }
}
