//! How many slots an executor that wants a number of them asks of each of its servers.
//!
//! It asks for as many of each, as far as they have them. What one of them does not give, because
//! others use it or because it is out of reach, the rest are asked for too, until it gives it
//! again.

use parking_lot::Mutex;

/// What is asked of the servers of a fleet.
pub(super) struct Shares {
    /// How many slots are wanted; without a number, all.
    total: Option<usize>,
    /// Where what cannot be divided begins, so that not all executors choose the same servers.
    offset: usize,
    servers: Mutex<Vec<Share>>,
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
}

impl Shares {
    /// What an executor asks of so many servers that wants `total` slots, or all.
    pub(super) fn new(total: Option<usize>, servers: usize, offset: usize) -> Self {
        Self { total, offset, servers: Mutex::new(vec![Share::Unmet; servers]) }
    }

    /// A server has so many slots, `held` of them ours.
    pub(super) fn met(&self, server: usize, slots: usize, held: usize) {
        self.set(server, Share::Met { slots, held });
    }

    /// A server is given up.
    pub(super) fn lost(&self, server: usize) {
        self.set(server, Share::Lost);
    }

    fn set(&self, server: usize, share: Share) {
        if let Some(known) = self.servers.lock().get_mut(server) {
            *known = share;
        }
    }

    /// What this server is asked for.
    pub(super) fn asked(&self, server: usize) -> Asked {
        let servers = self.servers.lock();
        let want =
            self.total.and_then(|total| wanted(total, &servers, self.offset).get(server).copied());
        let others = servers.iter().enumerate().filter(|(number, _)| *number != server);
        let held = others.map(|(_, share)| match share {
            Share::Met { held, .. } => *held,
            Share::Unmet | Share::Lost => 0,
        });
        Asked { want, elsewhere: held.sum() }
    }
}

/// How many slots each server is asked for.
fn wanted(total: usize, servers: &[Share], offset: usize) -> Vec<usize> {
    let slots: Vec<_> = servers
        .iter()
        .map(|share| match *share {
            Share::Unmet => usize::MAX,
            Share::Met { slots, .. } => slots,
            Share::Lost => 0,
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
            Share::Unmet | Share::Lost => 0,
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
