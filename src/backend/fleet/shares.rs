//! How many slots an executor that wants a number of them asks of each of its servers.
//!
//! It asks for as many of each, as far as they have them. What one of them does not give, because
//! others use it or because it is out of reach, the rest are asked for too, until it gives it
//! again.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// What is asked of the servers of a fleet.
pub(super) struct Shares {
    /// How many slots are wanted; without a number, all.
    total: Option<usize>,
    /// Where what cannot be divided begins, so that not all executors choose the same servers.
    offset: usize,
    /// By their numbers, which are not used again.
    servers: Mutex<BTreeMap<usize, Share>>,
}

/// What a server is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    /// How many slots; without a number, all.
    pub(super) want: Option<usize>,
    /// How many slots the others give.
    pub(super) elsewhere: usize,
}

/// What is known of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    /// Not even how many slots it has.
    Unmet,
    /// How many slots it has, and how many of them are ours.
    Met { slots: usize, held: usize },
    /// It gives nothing.
    Lost,
    /// It is to go, with the slots of it that are still ours.
    Draining { slots: usize, held: usize },
}

impl Shares {
    /// What an executor asks that wants `total` slots, or all, of servers numbered from 0 to below
    /// `servers`, and of those that are expected later.
    pub(super) fn new(total: Option<usize>, servers: usize, offset: usize) -> Self {
        let unmet = (0..servers).map(|server| (server, Share::Unmet)).collect();
        Self { total, offset, servers: Mutex::new(unmet) }
    }

    /// Another server is about to be met.
    pub(super) fn expect(&self, server: usize) {
        self.servers.lock().insert(server, Share::Unmet);
    }

    /// A server has so many slots, `held` of them ours.
    pub(super) fn met(&self, server: usize, slots: usize, held: usize) {
        self.set(server, |known| match known {
            Share::Draining { .. } => Share::Draining { slots, held },
            _ => Share::Met { slots, held },
        });
    }

    /// A server is given up.
    pub(super) fn lost(&self, server: usize) {
        self.set(server, |known| match known {
            Share::Draining { slots, .. } => Share::Draining { slots, held: 0 },
            _ => Share::Lost,
        });
    }

    /// A server is to go, or to stay after all.
    pub(super) fn drain(&self, server: usize, drains: bool) {
        self.set(server, |known| match (drains, known) {
            (true, Share::Met { slots, held }) => Share::Draining { slots, held },
            (true, Share::Unmet | Share::Lost) => Share::Draining { slots: 0, held: 0 },
            (false, Share::Draining { slots, held }) => Share::Met { slots, held },
            (_, known) => known,
        });
    }

    /// A server is there no more.
    pub(super) fn forget(&self, server: usize) {
        self.servers.lock().remove(&server);
    }

    fn set(&self, server: usize, change: impl FnOnce(Share) -> Share) {
        if let Some(known) = self.servers.lock().get_mut(&server) {
            *known = change(*known);
        }
    }

    /// What this server is asked for.
    pub(super) fn asked(&self, server: usize) -> Asked {
        let servers = self.servers.lock();
        let others = servers.iter().filter(|(number, _)| **number != server);
        let held = others.map(|(_, share)| match share {
            Share::Met { held, .. } | Share::Draining { held, .. } => *held,
            Share::Unmet | Share::Lost => 0,
        });
        let elsewhere = held.sum();
        if let Some(Share::Draining { .. }) = servers.get(&server) {
            return Asked { want: Some(0), elsewhere };
        }
        let want = self.total.and_then(|total| {
            let place = servers.keys().position(|number| *number == server)?;
            let shares: Vec<_> = servers.values().copied().collect();
            wanted(total, &shares, self.offset).get(place).copied()
        });
        Asked { want, elsewhere }
    }
}

/// How many slots each server is asked for.
fn wanted(total: usize, servers: &[Share], offset: usize) -> Vec<usize> {
    let slots: Vec<_> = servers
        .iter()
        .map(|share| match *share {
            Share::Unmet => usize::MAX,
            Share::Met { slots, .. } => slots,
            Share::Lost | Share::Draining { .. } => 0,
        })
        .collect();
    let even = spread(total, &slots, offset);
    let mut missing = 0;
    let more: Vec<_> = servers
        .iter()
        .zip(&even)
        .map(|(share, even)| match *share {
            Share::Met { slots, held } if held >= *even => slots - even,
            Share::Met { held, .. } => {
                missing += even - held;
                0
            }
            Share::Unmet | Share::Lost | Share::Draining { .. } => 0,
        })
        .collect();
    let more = spread(missing, &more, offset);
    even.into_iter().zip(more).map(|(even, more)| even + more).collect()
}

/// Divides `total` evenly, giving none more than it can have; what is left over goes to the first
/// from `offset` on.
fn spread(total: usize, most: &[usize], offset: usize) -> Vec<usize> {
    let mut given = vec![0; most.len()];
    let mut left = total;
    while left > 0 {
        let numbers = (0..most.len()).map(|number| (number + offset % most.len()) % most.len());
        let open: Vec<_> = numbers.filter(|number| given[*number] < most[*number]).collect();
        let Some(each) = left.checked_div(open.len()) else { break };
        for number in open {
            let more = each.max(1).min(most[number] - given[number]).min(left);
            given[number] += more;
            left -= more;
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn met(slots: usize, held: usize) -> Share {
        Share::Met { slots, held }
    }

    #[test]
    fn as_many_are_asked_of_each_server_and_what_one_does_not_give_of_the_others() {
        assert_eq!(wanted(10, &[Share::Unmet; 4], 0), [3, 3, 2, 2]);
        assert_eq!(wanted(10, &[Share::Unmet; 4], 6), [2, 2, 3, 3]);
        assert_eq!(wanted(9, &[met(1, 1), met(16, 4), met(16, 4)], 0), [1, 4, 4]);
        // The first gives one of its four: three are missing.
        assert_eq!(wanted(8, &[met(16, 1), met(16, 4)], 0), [4, 7]);
        assert_eq!(wanted(8, &[met(16, 4), met(16, 7)], 0), [4, 4], "and given back then");
        assert_eq!(wanted(8, &[Share::Lost, met(16, 8), Share::Unmet], 0), [0, 4, 4]);
        assert_eq!(wanted(8, &[met(16, 2), met(16, 2)], 0), [4, 4], "all of them are short");
        assert_eq!(wanted(8, &[Share::Lost], 0), [0]);
    }

    #[test]
    fn without_a_number_all_are_wanted() {
        assert_eq!(Shares::new(None, 2, 0).asked(0), Asked { want: None, elsewhere: 0 });
        let shares = Shares::new(Some(5), 2, 1);
        let asked = |server| (shares.asked(server).want, shares.asked(server).elsewhere);
        shares.met(0, 2, 2);
        assert_eq!((asked(0), asked(1), asked(2)), ((Some(2), 0), (Some(3), 2), (None, 2)));
        shares.lost(0);
        shares.met(1, 9, 3);
        assert_eq!((asked(0), asked(1)), ((Some(0), 3), (Some(5), 0)));
    }

    #[test]
    fn a_server_that_is_to_go_is_asked_for_nothing_and_the_others_for_its_share() {
        let shares = Shares::new(Some(6), 2, 0);
        let asked = |server| (shares.asked(server).want, shares.asked(server).elsewhere);
        shares.met(0, 4, 3);
        shares.met(1, 4, 3);
        shares.expect(5);
        shares.met(5, 8, 0);
        assert_eq!(asked(5), (Some(2), 6));
        shares.drain(0, true);
        shares.met(0, 4, 2);
        assert_eq!((asked(0).0, asked(1), asked(5)), (Some(0), (Some(4), 2), (Some(3), 5)));
        shares.drain(0, false);
        assert_eq!(asked(0), (Some(3), 3), "what the last one does not give yet, too");
        shares.forget(0);
        assert_eq!((asked(1).0, asked(5).0, asked(0).0), (Some(4), Some(3), None));
        let all = Shares::new(None, 1, 0);
        all.drain(0, true);
        assert_eq!(all.asked(0).want, Some(0));
    }

    proptest! {
        #[test]
        fn no_server_is_asked_for_more_than_it_has_and_together_they_are_asked_for_enough(
            total in 1..40usize,
            offset in any::<usize>(),
            servers in prop::collection::vec((0..12usize, 0..12usize), 1..6),
        ) {
            let shares: Vec<_> =
                servers.iter().map(|&(slots, held)| met(slots, held.min(slots))).collect();
            let asked = wanted(total, &shares, offset);
            let all: usize = servers.iter().map(|(slots, _)| slots).sum();
            prop_assert!(asked.iter().sum::<usize>() >= total.min(all));
            for (asked, (slots, _)) in asked.iter().zip(&servers) {
                prop_assert!(asked <= slots);
            }
            // Once all give what they are asked for, nothing beyond `total` is asked for.
            let given: Vec<_> = servers
                .iter()
                .zip(&asked)
                .map(|(&(slots, _), &asked)| met(slots, asked))
                .collect();
            let asked: usize = wanted(total, &given, offset).iter().sum();
            prop_assert_eq!(asked, total.min(all));
        }
    }
}
