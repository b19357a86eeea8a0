//! A fleet of 1,000 servers and 2,000 trajectories over 50 images, with placement and without it.
//! The figures are in docs/images.md: `cargo test --lib placement_saves -- --nocapture` prints
//! them.

use std::collections::{BTreeMap, HashSet};

use super::*;

/// What is simulated.
#[derive(Clone, Copy)]
struct Fleet {
    servers: usize,
    slots: usize,
    trajectories: usize,
    images: u64,
    /// How often all trajectories come, one after the other as slots are free.
    rounds: usize,
}

/// What came of it.
#[derive(Debug, Default)]
struct Figures {
    /// Images that a server pulled.
    pulls: usize,
    /// Trajectories whose image was there.
    hits: usize,
    /// Those that waited for a pull that was under way.
    joins: usize,
    /// How long trajectories with a free slot somewhere waited for one, altogether.
    held_s: f64,
    /// How long they waited from their arrival to their begin's end: mean and longest.
    mean_s: f64,
    longest_s: f64,
    /// When the last one had ended.
    end_s: f64,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    Begun(SlotIx),
    Ends(SlotIx),
    Emptied(SlotIx),
}

/// A stream of numbers that is the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % most
    }
}

struct Simulation {
    fleet: Fleet,
    places: bool,
    pool: Pool,
    random: Random,
    start: Instant,
    /// What happens when, in seconds; the number tells those of one moment apart.
    agenda: BTreeMap<(Duration, usize), Happens>,
    events: usize,
    image_of: HashMap<String, u64>,
    arrived: HashMap<String, Duration>,
    /// Which server has which image, and until when it pulls it.
    pulled: HashMap<(usize, u64), Duration>,
    figures: Figures,
    waits: Vec<Duration>,
}

impl Simulation {
    fn new(fleet: Fleet, places: bool) -> Self {
        Self {
            fleet,
            places,
            pool: pool(&vec![fleet.slots; fleet.servers]),
            random: Random(17),
            start: Instant::now(),
            agenda: BTreeMap::new(),
            events: 0,
            image_of: HashMap::new(),
            arrived: HashMap::new(),
            pulled: HashMap::new(),
            figures: Figures::default(),
            waits: Vec::new(),
        }
    }

    fn later(&mut self, at: Duration, happens: Happens) {
        self.events += 1;
        self.agenda.insert((at, self.events), happens);
    }

    fn arrive(&mut self, round: usize, now: Duration) {
        for number in 0..self.fleet.trajectories {
            let name = format!("{round}/{number}");
            let image = self.random.below(self.fleet.images);
            self.image_of.insert(name.clone(), image);
            self.arrived.insert(name.clone(), now);
            let image = self.places.then(|| key(image));
            self.pool.wait_in(name.into(), Wanted { image, ..Wanted::default() }, self.start + now);
        }
    }

    fn assign(&mut self, now: Duration) {
        while let Some(assignment) = self.pool.assign(self.start + now) {
            match assignment {
                Assignment::Slot(who, slot) => self.begin(&who, slot, now),
                Assignment::Reset(slot) => {
                    self.later(now + Duration::from_millis(50), Happens::Emptied(slot));
                }
                Assignment::Refused(who, why) => panic!("{who} was refused: {why}"),
            }
        }
    }

    /// The image is unpacked in 10 to 60 s, or there; the trajectory runs for 1 to 10 min.
    fn begin(&mut self, who: &str, slot: SlotIx, now: Duration) {
        let image = self.image_of[who];
        let container = self.pool.container(slot);
        let takes = Duration::from_secs(10 + image % 51);
        let ready = match self.pulled.get(&(container, image)) {
            Some(ready) if *ready <= now => {
                self.figures.hits += 1;
                now
            }
            Some(ready) => {
                self.figures.joins += 1;
                *ready
            }
            None => {
                self.figures.pulls += 1;
                self.pulled.insert((container, image), now + takes);
                now + takes
            }
        };
        let begun = ready + Duration::from_millis(200);
        self.waits.push(begun - self.arrived[who]);
        self.later(begun, Happens::Begun(slot));
        let runs = Duration::from_secs(60 + self.random.below(540));
        self.later(begun + runs, Happens::Ends(slot));
    }

    fn run(mut self) -> Figures {
        let mut now = Duration::ZERO;
        for round in 0..self.fleet.rounds {
            self.arrive(round, now);
            self.assign(now);
            loop {
                let held = self.pool.held_until().map(|until| until - self.start);
                let next = self.agenda.first_key_value().map(|((at, _), _)| *at);
                let Some(at) = next.into_iter().chain(held).min() else { break };
                now = at;
                while let Some(entry) = self.agenda.first_entry()
                    && entry.key().0 <= now
                {
                    let at = self.start + now;
                    match entry.remove() {
                        Happens::Begun(slot) => self.pool.has_begun(slot, at),
                        Happens::Ends(slot) => self.pool.release_unknown(slot),
                        Happens::Emptied(slot) => {
                            let generation = self.pool.generation(slot);
                            let granted = self.pool.reset_done(slot, generation, Ok(()), at);
                            let Some(ResetFor::Granted(who, slot)) = granted else {
                                panic!("for no one")
                            };
                            self.begin(&who, slot, now);
                        }
                    }
                }
                self.assign(now);
            }
        }
        let all = self.fleet.trajectories * self.fleet.rounds;
        assert_eq!(self.waits.len(), all, "each has begun");
        let total: Duration = self.waits.iter().sum();
        Figures {
            held_s: self.pool.image_counts().waited_s,
            mean_s: total.as_secs_f64() / all as f64,
            longest_s: self.waits.iter().max().map_or(0.0, Duration::as_secs_f64),
            end_s: now.as_secs_f64(),
            ..self.figures
        }
    }
}

fn both(fleet: Fleet) -> (Figures, Figures) {
    let began = Instant::now();
    let with = Simulation::new(fleet, true).run();
    let took = began.elapsed();
    let without = Simulation::new(fleet, false).run();
    let Fleet { servers, slots, trajectories, images, rounds } = fleet;
    println!(
        "{servers} servers of {slots}, {rounds} × {trajectories} trajectories, {images} images \
         (simulated in {took:.1?})\n  with placement: {with:?}\n  without:        {without:?}"
    );
    (with, without)
}

#[test]
fn placement_saves_nearly_all_pulls_where_slots_are_plenty() {
    let fleet = Fleet { servers: 1000, slots: 16, trajectories: 2000, images: 50, rounds: 1 };
    let (with, without) = both(fleet);
    assert!(with.pulls <= 200, "40 trajectories an image need 3 servers of 16 slots: {with:?}");
    assert!(without.pulls >= 1900, "{without:?}");
    // No one waits long for what it saves.
    assert!(with.mean_s <= without.mean_s + 2.0 * HOLD_MOST.as_secs_f64(), "{with:?} {without:?}");
    assert!(with.longest_s <= without.longest_s + PROVEN_AFTER.as_secs_f64() + 1.0);
}

#[test]
fn placement_saves_pulls_where_each_server_has_few_slots_and_all_are_wanted() {
    let fleet = Fleet { servers: 1000, slots: 1, trajectories: 2000, images: 50, rounds: 1 };
    let (with, without) = both(fleet);
    assert!(with.pulls < without.pulls * 3 / 4, "{with:?} {without:?}");
    assert!(with.end_s <= without.end_s * 1.05, "{with:?} {without:?}");
    assert!(with.held_s > 0.0);
}

#[test]
fn placement_finds_the_images_of_earlier_rounds() {
    let fleet = Fleet { servers: 100, slots: 8, trajectories: 800, images: 50, rounds: 5 };
    let (with, without) = both(fleet);
    assert!(with.pulls < without.pulls / 4, "{with:?} {without:?}");
    assert!(with.end_s <= without.end_s * 1.05, "{with:?} {without:?}");
    let images: HashSet<_> = (0..50).collect();
    assert!(with.pulls >= images.len());
}
