//! What the dispatch tells of itself in numbers.

use std::time::Instant;

use super::Dispatch;
use crate::backend::Demand;
use crate::executor::stats::{BackendStats, LaneStats, Stats};
use crate::pool::{Occupancy, PlaceImages};
use crate::tool::Outcome;

impl Dispatch {
    /// Everything counted and measured.
    pub(crate) fn stats(&self, now: Instant) -> Stats {
        let mut outcomes = self.recorder.outcomes;
        let mut tools = self.recorder.tools.clone();
        self.rejections.add_to(&mut outcomes, &mut tools);
        let [batch_size, queue_ms, slot_ms, exec_ms, total_ms] = self.recorder.summaries();
        let total_requests = outcomes.total();
        Stats {
            total_requests,
            total_errors: total_requests - outcomes.get(Outcome::Ok),
            outcomes,
            begins: self.recorder.begins,
            queue_size: self.gate.inside(),
            running: self.running,
            trajectories: self.trajectories.len(),
            waiting_for_slot: self.waiting_for_slot,
            idle_slots: self.idle.len(),
            idle_holders: self.idle_holders(now),
            stalled_s: self.stall.lasts(now).map(|lasts| lasts.as_secs_f64()),
            slots: self.pool.counts(),
            batch_size,
            queue_ms,
            slot_ms,
            exec_ms,
            total_ms,
            tools,
            containers: self.pool.container_counts(),
            lanes: self.lane_stats(),
            backends: self.backend_stats(now),
            isolation_level: None,
            image_ids: None,
            weakened_because: Vec::new(),
            limits: None,
            warm_slots: None,
            network: None,
            network_totals: None,
            bad_containers: Vec::new(),
            containers_found_bad: 0,
            retired_sandboxes: 0,
            images: self.pool.image_counts(),
        }
    }

    /// What is known here of each tier; its name and capabilities the backend adds.
    fn backend_stats(&self, now: Instant) -> Vec<BackendStats> {
        let told = |demand: Demand| BackendStats {
            containers: demand.containers.len(),
            slots: demand.containers.iter().map(|container| container.slots).sum(),
            free: demand.free,
            waiting: demand.waiting,
            ..BackendStats::default()
        };
        self.wanted(now).tiers.into_iter().map(told).collect()
    }

    fn lane_stats(&self) -> Vec<LaneStats> {
        let lanes = self.lanes.iter().zip(self.pool.occupancy()).zip(&self.sent_to);
        lanes
            .filter(|((_, container), _)| container.state != "gone")
            .map(|((lane, container), &running)| {
                let Occupancy { addr, state, slots, held, images, .. } = container;
                let PlaceImages { images, pulls, free_bytes, is_full } = images;
                LaneStats {
                    addr: addr.to_string(),
                    state,
                    waiting: lane.len(),
                    unacknowledged: lane.unacknowledged(),
                    running,
                    slots,
                    held,
                    images,
                    image_pulls: pulls,
                    image_bytes_free: free_bytes,
                    image_disk_full: is_full,
                }
            })
            .collect()
    }
}
