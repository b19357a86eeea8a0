//! Progress and warnings on standard error: a bar on a terminal, else a plain line now and then.
//!
//! Whatever goes to standard error during a run goes through here, so that it never tears the bar.
//! A standard error that is gone (a closed pipe) is no reason to stop the run: its errors are
//! ignored.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::console::warn_line;

/// How often the bar is brought up to date.
const BAR_INTERVAL: Duration = Duration::from_millis(100);

/// How often a plain line is written.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// The bar where the number of trajectories is known.
const BOUNDED: &str = "{bar:10} {pos}/{len} trajectories, {wide_msg}";

/// The bar where it is not.
const UNBOUNDED: &str = "{spinner} {pos} trajectories, {wide_msg}";

/// The numbers that are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Counts {
    /// Trajectories that ended.
    pub(crate) trajectories: u64,
    /// Of how many, where that is known.
    pub(crate) total: Option<u64>,
    /// Calls that ended.
    pub(crate) calls: u64,
    /// Trajectories on their way.
    pub(crate) running: usize,
    /// Calls whose tool failed.
    pub(crate) failed: u64,
    /// Those of them that got no result of their tool at all.
    pub(crate) without_result: u64,
}

/// The display of a run's progress.
pub(crate) struct Progress {
    display: Display,
    started: Instant,
    due: Instant,
}

enum Display {
    None,
    Lines,
    Bar(ProgressBar),
}

impl Progress {
    /// A bar if standard error is a terminal, plain lines if not, nothing if `quiet`.
    pub(crate) fn new(quiet: bool, now: Instant) -> Self {
        let display = if quiet {
            Display::None
        } else if io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(style(false));
            // A terminal that cannot move its cursor gets lines.
            if bar.is_hidden() { Display::Lines } else { Display::Bar(bar) }
        } else {
            Display::Lines
        };
        let interval = if matches!(display, Display::Lines) { LINE_INTERVAL } else { BAR_INTERVAL };
        Self { display, started: now, due: now + interval }
    }

    /// Whether anything is shown at all.
    pub(crate) fn is_shown(&self) -> bool {
        !matches!(self.display, Display::None)
    }

    /// Whether [`show`](Self::show) would show anything now.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.is_shown() && now >= self.due
    }

    /// Shows the numbers.
    pub(crate) fn show(&mut self, counts: &Counts, now: Instant) {
        let elapsed = now.saturating_duration_since(self.started);
        match &self.display {
            Display::None => {}
            Display::Lines => {
                self.due = now + LINE_INTERVAL;
                warn_line(&line(counts, elapsed));
            }
            Display::Bar(bar) => {
                self.due = now + BAR_INTERVAL;
                if bar.length() != counts.total {
                    bar.set_style(style(counts.total.is_some()));
                    match counts.total {
                        Some(total) => bar.set_length(total),
                        None => bar.unset_length(),
                    }
                }
                bar.set_position(counts.trajectories);
                bar.set_message(details(counts, elapsed));
                bar.tick();
            }
        }
    }

    /// Writes a line for people, above the bar. Blocks as standard error does.
    pub(crate) fn say(&self, text: &str) {
        self.writer().line(&printable(text));
    }

    /// Takes the bar away. Later lines are plain.
    pub(crate) fn finish(&mut self) {
        if let Display::Bar(bar) = &self.display {
            bar.finish_and_clear();
            self.display = Display::None;
        }
    }

    /// A way for others, such as the log, to write above the bar.
    pub(crate) fn writer(&self) -> AboveBar {
        AboveBar(match &self.display {
            Display::Bar(bar) => Some(bar.clone()),
            _ => None,
        })
    }
}

/// Writes to standard error without tearing the bar.
pub(crate) struct AboveBar(Option<ProgressBar>);

impl AboveBar {
    fn line(&self, text: &str) {
        match &self.0 {
            Some(bar) => bar.suspend(|| warn_line(text)),
            None => warn_line(text),
        }
    }
}

impl Write for AboveBar {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.0 {
            Some(bar) => bar.suspend(|| io::stderr().write_all(bytes))?,
            None => io::stderr().write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// The text with its control characters escaped: one line, which does nothing to a terminal. For
/// what stood in the input: ids, paths.
pub(crate) fn printable(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            _ if c.is_control() => line.extend(c.escape_default()),
            _ => line.push(c),
        }
    }
    line
}

fn style(bounded: bool) -> ProgressStyle {
    let template = if bounded { BOUNDED } else { UNBOUNDED };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn line(counts: &Counts, elapsed: Duration) -> String {
    let total = counts.total.map_or(String::new(), |total| format!("/{total}"));
    let details = details(counts, elapsed);
    format!("{:>4} s  {}{total} trajectories, {details}", elapsed.as_secs(), counts.trajectories)
}

fn details(counts: &Counts, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    let rate = if seconds > 0.0 { counts.calls as f64 / seconds } else { 0.0 };
    let Counts { calls, running, failed, without_result, .. } = counts;
    let mut text = format!("{calls} calls, {rate:.0}/s, {running} running, {failed} failed");
    if *without_result > 0 {
        text.push_str(&format!(" ({without_result} without result)"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_line_tells_everything() {
        let mut counts = Counts {
            trajectories: 12,
            total: Some(59),
            calls: 120,
            running: 8,
            failed: 3,
            without_result: 1,
        };
        let after = Duration::from_secs(4);
        let details = "120 calls, 30/s, 8 running, 3 failed (1 without result)";
        assert_eq!(line(&counts, after), format!("   4 s  12/59 trajectories, {details}"));
        (counts.total, counts.without_result) = (None, 0);
        let details = "120 calls, 30/s, 8 running, 3 failed";
        assert_eq!(line(&counts, after), format!("   4 s  12 trajectories, {details}"));
    }

    #[test]
    fn control_characters_are_escaped_and_nothing_else_is() {
        assert_eq!(printable("a\nb\u{1b}[31m\u{9b}"), "a\\nb\\u{1b}[31m\\u{9b}");
        let harmless = "it's \"fine\" \\ \u{65e5}\u{672c} \u{1f389} \u{2026}";
        assert_eq!(printable(harmless), harmless);
    }

    #[test]
    fn a_quiet_run_is_never_due() {
        let now = Instant::now();
        let progress = Progress::new(true, now);
        assert!(!progress.is_due(now + Duration::from_secs(3600)));
    }

    #[test]
    fn both_templates_are_valid() {
        for template in [BOUNDED, UNBOUNDED] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }
}
