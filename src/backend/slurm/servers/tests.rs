//! What becomes of servers, case by case and over random histories.

use super::*;
use crate::backend::ContainerUse;
use proptest::prelude::*;
use std::collections::BTreeSet;

const TIMEOUT: Duration = Duration::from_secs(60);

fn nodes(most: usize) -> Servers {
    Servers::on_nodes(vec!["n1".into(), "n2".into(), "n3".into()], most, TIMEOUT)
}

fn demand(waiting: usize, free: usize) -> Demand {
    Demand { waiting, free, ..Demand::default() }
}

fn starts(steps: &[Step]) -> Vec<(u64, Option<&str>)> {
    let starts = steps.iter().filter_map(|step| match step {
        Step::Start(number, node) => Some((*number, node.as_deref())),
        _ => None,
    });
    starts.collect()
}

#[test]
fn a_server_whose_srun_was_killed_is_drained_and_its_job_cancelled() {
    let now = Instant::now();
    let bounds = Bounds { least: 1, most: 2, idle: TIMEOUT };
    let mut servers = Servers::of_jobs(bounds, TIMEOUT, None);
    assert_eq!(starts(&servers.steps(&demand(0, 0), |_| true, now)), [(1, None)]);
    servers.runs(1, "17.0".to_owned(), now);
    servers.listens(1, "http://n1:1".to_owned(), 10, now);
    assert_eq!(servers.srun_killed(1, "killed".to_owned(), now), []);
    assert!(servers.urls().is_empty(), "its trajectories finish there");
    // Another one is started, after a pause that does not grow: the place has not failed.
    assert_eq!(servers.steps(&demand(0, 0), |_| true, now), []);
    let later = now + PAUSE_FIRST;
    assert_eq!(starts(&servers.steps(&demand(0, 0), |_| true, later)), [(2, None)]);
    let steps = servers.steps(&demand(0, 0), |_| false, later);
    assert_eq!(steps, [Step::Cancel("17".to_owned())]);
    assert_eq!(servers.numbers(), [2]);
    // One that has not listened yet is of no use.
    servers.runs(2, "18.0".to_owned(), later);
    let steps = servers.srun_killed(2, "killed".to_owned(), later);
    assert_eq!(steps, [Step::Cancel("18".to_owned())]);
    assert!(servers.is_empty());
    // Of an allocation only the step is ours; closing does not wait for its `srun`.
    let mut servers = nodes(1);
    servers.steps(&demand(0, 0), |_| true, now);
    servers.runs(1, "19.3".to_owned(), now);
    servers.listens(1, "http://n1:1".to_owned(), 10, now);
    servers.srun_killed(1, "killed".to_owned(), now);
    assert_eq!(servers.stop_all(now), [Step::Cancel("19.3".to_owned())]);
    assert!(servers.is_empty());
}

#[test]
fn while_the_controller_is_away_it_is_asked_as_often_however_long_that_lasts() {
    let mut now = Instant::now();
    let bounds = Bounds { least: 1, most: 1, idle: TIMEOUT };
    let mut servers = Servers::of_jobs(bounds, TIMEOUT, None);
    let away = "srun: error: Unable to contact slurm controller (connect failure)";
    for number in 1..50 {
        let steps = servers.steps(&demand(0, 0), |_| true, now);
        assert_eq!(starts(&steps), [(number, None)]);
        assert!(servers.ended(number, away.to_owned(), now));
        assert_eq!(servers.due(), Some(now + PAUSE_AWAY));
        assert_eq!(servers.steps(&demand(0, 0), |_| true, now), []);
        now += PAUSE_AWAY;
    }
    // What fails by itself is left alone for a second first: nothing has failed before.
    servers.steps(&demand(0, 0), |_| true, now);
    assert!(servers.ended(50, "srun: error: Invalid account".to_owned(), now));
    assert_eq!(servers.due(), Some(now + PAUSE_FIRST));
}

#[test]
fn each_node_of_an_allocation_has_a_server_which_is_replaced_when_it_ends() {
    let mut now = Instant::now();
    let mut servers = nodes(2);
    let none = demand(0, 0);
    let steps = servers.steps(&none, |_| true, now);
    assert_eq!(starts(&steps), [(1, Some("n1")), (2, Some("n2"))], "no more than may be");
    servers.runs(1, "7.0".into(), now);
    servers.listens(1, "http://a".into(), 4, now);
    assert_eq!(servers.urls(), ["http://a"]);
    // A node that fails is left alone for a while, and another is taken.
    assert!(servers.ended(2, "node failure".into(), now));
    assert_eq!(servers.last_failure(), Some("node failure"));
    assert!(!servers.has_failed());
    assert_eq!(starts(&servers.steps(&none, |_| true, now)), [(3, Some("n3"))]);
    assert!(servers.ended(3, "no".into(), now));
    assert!(servers.steps(&none, |_| true, now).is_empty());
    now = servers.due().unwrap();
    assert_eq!(starts(&servers.steps(&none, |_| true, now)), [(4, Some("n2"))]);
    // One that never says where it listens is ended.
    servers.runs(4, "8.0".into(), now);
    now += TIMEOUT;
    let steps = servers.steps(&none, |_| true, now);
    assert_eq!(steps, [Step::Stop(4)]);
    assert_eq!(starts(&servers.steps(&none, |_| true, now)), [(5, Some("n3"))]);
    now += STOP_LIMIT;
    assert_eq!(servers.steps(&none, |_| true, now), [Step::Kill(4)]);
    assert!(!servers.ended(4, String::new(), now), "as it was told");
}

#[test]
fn a_server_of_no_use_is_drained_and_replaced_after_a_pause_that_grows() {
    let mut now = Instant::now();
    let none = demand(0, 0);
    let bounds = Bounds { least: 1, most: 4, idle: TIMEOUT };
    let mut servers = Servers::of_jobs(bounds, TIMEOUT, None);
    let mut pauses = Vec::new();
    for number in 1..=3 {
        assert_eq!(starts(&servers.steps(&none, |_| true, now)), [(number, None)]);
        let url = format!("http://{number}");
        servers.listens(number, url.clone(), 10, now);
        // Longer than what it takes to be proven: it ran, and was of no use.
        now += PROVEN * 2;
        assert!(servers.is_bad(&url, now) && !servers.is_bad(&url, now));
        assert!(servers.urls().is_empty());
        let steps = servers.steps(&none, |_| false, now);
        assert_eq!(steps, [Step::Stop(number)], "nothing is left on it");
        assert!(!servers.ended(number, String::new(), now));
        let due = servers.due().unwrap();
        pauses.push(due - now);
        now = due;
    }
    assert_eq!(pauses, [PAUSE_FIRST, PAUSE_FIRST * 2, PAUSE_FIRST * 4]);
    assert!(!servers.is_bad("http://elsewhere", now));
    // On nodes: another one is taken at once.
    let mut servers = nodes(2);
    servers.steps(&none, |_| true, now);
    servers.listens(1, "http://a".into(), 4, now);
    assert!(servers.is_bad("http://a", now));
    assert_eq!(starts(&servers.steps(&none, |_| true, now)), [(3, Some("n3"))]);
}

#[test]
fn jobs_come_as_they_are_needed_and_the_least_used_go() {
    let mut now = Instant::now();
    let idle = Duration::from_secs(300);
    let bounds = Bounds { least: 1, most: 4, idle };
    let mut servers = Servers::of_jobs(bounds, TIMEOUT, Some(10));
    assert_eq!(starts(&servers.steps(&demand(0, 0), |_| true, now)), [(1, None)]);
    assert_eq!(starts(&servers.steps(&demand(25, 0), |_| true, now)), [(2, None), (3, None)]);
    for number in 1..=3 {
        servers.listens(number, format!("http://{number}"), 10, now);
    }
    let mut used = demand(0, 22);
    let container =
        |(number, held)| ContainerUse { addr: format!("http://{number}").into(), slots: 10, held };
    used.containers = [(1, 1), (2, 5), (3, 2)].map(container).into();
    assert!(servers.steps(&used, |_| true, now).is_empty());
    now += idle;
    // 22 were never needed: two servers go, those that have least.
    assert!(servers.steps(&used, |_| true, now).is_empty());
    assert_eq!(servers.urls(), ["http://2"]);
    let steps = servers.steps(&used, |url| url != "http://3", now);
    assert_eq!(steps, [Step::Stop(3)], "it has no trajectory any more");
    // One that is about to end is replaced at once.
    assert!(servers.ends("http://2") && !servers.ends("http://2") && !servers.drain(2));
    assert_eq!(starts(&servers.steps(&demand(0, 0), |_| true, now)), [(4, None)]);
    let stopped = servers.stop_all(now);
    assert_eq!(stopped, [Step::Stop(1), Step::Stop(2), Step::Stop(4)]);
}

#[test]
fn where_every_start_fails_that_is_known() {
    let now = Instant::now();
    let bounds = Bounds { least: 1, most: 4, idle: TIMEOUT };
    let mut servers = Servers::of_jobs(bounds, TIMEOUT, None);
    servers.steps(&demand(0, 0), |_| true, now);
    assert!(!servers.has_failed());
    servers.ended(1, "Invalid partition".into(), now);
    assert!(servers.has_failed() && servers.is_empty());
}

proptest! {
    #[test]
    fn there_are_never_more_than_may_be_and_each_start_has_one_end(
        jobs in any::<bool>(),
        events in proptest::collection::vec((0..7u8, 0..8u64, 0..60usize, 0..400u64), 1..80),
    ) {
        let mut now = Instant::now();
        let bounds = Bounds { least: 1, most: 4, idle: TIMEOUT };
        let mut servers = match jobs {
            true => Servers::of_jobs(bounds, TIMEOUT, Some(10)),
            false => nodes(2),
        };
        let most = if jobs { 4 } else { 2 };
        let (mut alive, mut orphans) = (BTreeSet::new(), BTreeSet::new());
        for (what, number, count, seconds) in events {
            now += Duration::from_secs(seconds);
            match what {
                0 => servers.runs(number, "1.0".into(), now),
                1 => servers.listens(number, format!("http://{number}"), 10, now),
                2 if alive.remove(&number) => {
                    servers.ended(number, "x".into(), now);
                }
                5 if alive.remove(&number) => {
                    orphans.insert(number);
                    let steps = servers.srun_killed(number, "x".into(), now);
                    prop_assert!(steps.iter().all(|step| matches!(step, Step::Cancel(_))));
                }
                3 => drop(servers.drain(number)),
                4 => drop(servers.is_bad(&format!("http://{number}"), now)),
                _ => {}
            }
            let used = |url: &str| url.len().is_multiple_of(2);
            for step in servers.steps(&demand(count, 60 - count), used, now) {
                match step {
                    Step::Start(number, node) => {
                        prop_assert!(alive.insert(number));
                        prop_assert_eq!(node.is_none(), jobs);
                    }
                    Step::Stop(number) | Step::Kill(number) => {
                        prop_assert!(alive.contains(&number), "there is an srun to end");
                    }
                    Step::Cancel(id) => prop_assert!(id == "1" || id == "1.0"),
                }
            }
            prop_assert!(servers.lasting().count() <= most);
            let known: BTreeSet<_> = servers.numbers().into_iter().collect();
            prop_assert!(known.is_superset(&alive));
            prop_assert!(known.difference(&alive).all(|number| orphans.contains(number)));
            prop_assert!(servers.due().is_none_or(|due| due + PAUSE_MOST + TIMEOUT > now));
        }
        servers.stop_all(now);
        for number in alive {
            servers.ended(number, String::new(), now);
        }
        prop_assert!(servers.is_empty());
    }
}
