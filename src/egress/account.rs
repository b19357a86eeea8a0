//! What a machine's commands have asked of the network since they were last asked.

use parking_lot::Mutex;

use super::NetworkTotals;
use super::rules::Rules;

/// The most names of hosts that were refused.
const MOST_NAMES: usize = 10;

/// What was used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    /// Requests, whatever became of them.
    pub(crate) requests: u64,
    /// Those that were refused, because of their host.
    pub(crate) refused: u64,
    /// Those that failed.
    pub(crate) failed: u64,
    /// Bytes that were sent.
    pub(crate) bytes_sent: u64,
    /// Bytes that were received.
    pub(crate) bytes_received: u64,
    /// Hosts that were refused, each once, the first of them.
    pub(crate) refused_hosts: Vec<String>,
}

/// What a machine's commands have used, and whom they may reach by their trajectory's wish. The
/// relay writes it, whoever answers a call takes it.
#[derive(Debug, Default)]
pub(crate) struct Account {
    usage: Mutex<Usage>,
    /// None: whom the operator allows.
    rules: Option<Rules>,
}

impl Account {
    /// That of a slot whose machines may reach nothing that these rules do not allow, too.
    pub(super) fn narrowed(rules: Rules) -> Self {
        Self { usage: Mutex::default(), rules: Some(rules) }
    }

    /// Whom its machines may reach, of those that the operator allows.
    pub(super) fn rules(&self) -> Option<&Rules> {
        self.rules.as_ref()
    }

    /// What was used since it was last taken.
    pub(crate) fn take(&self) -> Usage {
        std::mem::take(&mut self.usage.lock())
    }
}

/// An event that is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Counted {
    Request,
    /// With the host.
    Refused(String),
    Failed,
    Sent(usize),
    Received(usize),
}

impl Account {
    pub(super) fn count(&self, counted: &Counted) {
        let mut usage = self.usage.lock();
        match counted {
            Counted::Request => usage.requests += 1,
            Counted::Refused(host) => {
                usage.refused += 1;
                if usage.refused_hosts.len() < MOST_NAMES && !usage.refused_hosts.contains(host) {
                    usage.refused_hosts.push(host.clone());
                }
            }
            Counted::Failed => usage.failed += 1,
            Counted::Sent(bytes) => usage.bytes_sent += *bytes as u64,
            Counted::Received(bytes) => usage.bytes_received += *bytes as u64,
        }
    }
}

impl NetworkTotals {
    pub(super) fn count(&mut self, counted: &Counted) {
        match counted {
            Counted::Request => self.requests += 1,
            Counted::Refused(_) => self.refused += 1,
            Counted::Failed => self.failed += 1,
            Counted::Sent(bytes) => self.bytes_sent += *bytes as u64,
            Counted::Received(bytes) => self.bytes_received += *bytes as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_few_and_each_is_there_once() {
        let account = Account::default();
        for host in 0..30 {
            account.count(&Counted::Request);
            account.count(&Counted::Refused(format!("h{}", host / 2)));
        }
        let usage = account.take();
        assert_eq!((usage.requests, usage.refused, usage.refused_hosts.len()), (30, 30, 10));
        assert_eq!(usage.refused_hosts[..2], ["h0", "h1"]);
        assert_eq!(account.take(), Usage::default());
    }
}
