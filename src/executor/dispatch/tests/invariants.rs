//! What must hold after every event.

use super::*;

impl World {
    /// A call starts once, after those of its trajectory that were submitted before – or ended
    /// without having been started – and with none of them still under way.
    pub(super) fn started(
        &mut self,
        trajectory: &Arc<str>,
        id: ExecutionId,
    ) -> Result<(), TestCaseError> {
        let waiting = self.to_start.get_mut(trajectory).unwrap();
        let place = waiting.iter().position(|other| *other == id);
        prop_assert!(place.is_some(), "{} started twice, or after a later one", id);
        for skipped in waiting.drain(..=place.unwrap()) {
            let ended = self.submitted[skipped.0 as usize].is_done();
            prop_assert!(ended || skipped == id, "{} overtook {}", id, skipped);
        }
        Ok(())
    }

    /// No call whose caller still waits runs in this slot.
    pub(super) fn nothing_runs_in(&self, slot: (usize, usize)) -> Result<(), TestCaseError> {
        for other in self.running.iter().filter(|running| running.slot == Some(slot)) {
            let ended = self.is_answered(other.id);
            prop_assert!(ended, "{:?} is given away while {} runs there", slot, other.id);
        }
        for (_, lost, _) in self.lent.iter().filter(|(lent, ..)| *lent == slot) {
            let lost = lost.load(std::sync::atomic::Ordering::Acquire);
            prop_assert!(lost, "{:?} is given away while somebody reads there", slot);
        }
        Ok(())
    }

    /// Who has which slot, under which generation.
    pub(super) fn held(&self) -> HashSet<(Arc<str>, SlotRef)> {
        let trajectories = self.dispatch.trajectories.iter();
        let slots =
            trajectories.filter_map(|(id, trajectory)| Some((id.clone(), trajectory.slot?)));
        slots.map(|(id, slot)| (id, self.dispatch.pool.slot_ref(slot))).collect()
    }

    /// Nobody who had not been there `before` is in a container that takes no trajectory.
    pub(super) fn only_open_containers_since(
        &self,
        before: &HashSet<(Arc<str>, SlotRef)>,
    ) -> Result<(), TestCaseError> {
        for (id, slot) in self.held().difference(before) {
            let container = number(&slot.addr);
            let closed = &self.closed_to_new;
            prop_assert!(!closed.contains(&container), "{} is put where one drains", id);
            prop_assert!(!self.down.contains(&container), "{} is put where nothing is", id);
        }
        Ok(())
    }

    /// The invariants of the module's header.
    pub(super) fn check(&self) -> Result<(), TestCaseError> {
        let dispatch = &self.dispatch;
        let mut placed = HashSet::new();
        let mut slots = HashSet::new();
        let mut requests = 0;
        for trajectory in dispatch.trajectories.values() {
            for item in trajectory.queue.iter() {
                requests += usize::from(matches!(item, Item::Lease(..)));
                let (Item::Call(id) | Item::Begin(id)) = item else { continue };
                if matches!(item, Item::Begin(_)) && !dispatch.calls.contains_key(id) {
                    // It ended before its turn.
                    continue;
                }
                let queued = matches!(dispatch.calls[id].stage, Stage::Queued { .. });
                prop_assert!(queued);
                prop_assert!(placed.insert(*id));
            }
            match &trajectory.current {
                Current::Call(id) => {
                    let queued = matches!(dispatch.calls[id].stage, Stage::Queued { .. });
                    prop_assert!(!queued);
                    prop_assert!(placed.insert(*id));
                }
                Current::Leased(_) => {
                    prop_assert!(trajectory.slot.is_some() || trajectory.lost.is_some())
                }
                Current::Releasing(_) => prop_assert!(trajectory.slot.is_none()),
                Current::Nothing => {
                    prop_assert_eq!(trajectory.queue.iter().count(), 0, "stuck in its queue");
                    let is_kept = trajectory.slot.is_some() || trajectory.lost.is_some();
                    prop_assert!(is_kept, "not forgotten");
                }
            }
            let is_idle = trajectory.slot.and_then(|slot| dispatch.idle.since(slot)).is_some();
            let nothing = matches!(trajectory.current, Current::Nothing);
            prop_assert_eq!(is_idle, nothing && trajectory.slot.is_some());
            let is_remembered = trajectory.remembered.is_some();
            prop_assert_eq!(is_remembered, nothing && trajectory.slot.is_none());
            if let Some(slot) = trajectory.slot {
                prop_assert!(slots.insert(slot), "two trajectories hold {:?}", slot);
            }
        }
        prop_assert_eq!(dispatch.lease_requests.len(), requests);
        for (when, id) in &dispatch.expiries {
            let begun = dispatch.trajectories[id].begun.as_ref();
            prop_assert_eq!(begun.and_then(|begun| begun.expires), Some(*when));
        }
        for container in &self.down {
            let number = dispatch.pool.container_at(&addr(*container));
            let held = number.map(|number| dispatch.pool.lost_by(number, &ContainerChange::Lost));
            prop_assert!(held.unwrap_or_default().is_empty(), "held in a dead container");
        }
        let idle: Vec<_> = dispatch.idle.iter().collect();
        prop_assert!(idle.is_sorted_by_key(|(_, since)| *since));
        prop_assert!(idle.iter().all(|(slot, _)| slots.contains(slot)), "idle without a holder");
        let remembered = dispatch.trajectories.values().filter(|t| t.remembered.is_some());
        prop_assert_eq!(dispatch.remembered.len(), remembered.count());
        let sent_to: usize = dispatch.sent_to.iter().sum();
        let in_slots = dispatch.calls.values();
        let in_slots = in_slots.filter(|call| matches!(call.stage, Stage::InSlot { .. })).count();
        prop_assert_eq!(sent_to, in_slots);
        prop_assert_eq!(placed.len(), dispatch.calls.len(), "a call without a place");
        prop_assert_eq!(slots.len(), dispatch.pool.counts().held, "a slot without a holder");

        let stages = || dispatch.calls.values().map(|call| &call.stage);
        let sent = |stage: &&Stage| matches!(stage, Stage::InSlot { .. } | Stage::OnThread { .. });
        let running = stages().filter(sent).count();
        prop_assert_eq!(dispatch.running, running);
        let begins = dispatch.calls.values().filter(|call| call.begins.is_some()).count();
        let undelivered = self.submitted.len() as u64 - dispatch.recorder.outcomes.total();
        let undelivered = undelivered as usize - (dispatch.calls.len() - begins);
        let undelivered =
            undelivered + self.begins.iter().filter(|(_, accepted)| accepted.is_empty()).count();
        let unsent = dispatch.calls.len() - running;
        prop_assert_eq!(self.gate.inside(), unsent + undelivered, "the gate's count");
        let waiting = |stage: &&Stage| matches!(stage, Stage::WaitingForThread { .. });
        prop_assert_eq!(
            dispatch.external[0].waiting.iter().count(),
            stages().filter(waiting).count()
        );
        let waiting = |stage: &&Stage| matches!(stage, Stage::WaitingForSlot { .. });
        prop_assert_eq!(dispatch.waiting_for_slot, stages().filter(waiting).count());
        prop_assert!(dispatch.external[0].busy <= HANDLERS);

        for &(when, id) in &dispatch.timers {
            prop_assert_eq!(dispatch.calls.get(&id).map(|call| call.timer), Some(when));
        }
        for (id, call) in &dispatch.calls {
            let answered = self.is_answered(*id);
            prop_assert!(answered || dispatch.timers.contains(&(call.timer, *id)), "no timer");
        }
        Ok(())
    }

    /// After a tick no trajectory goes on whose time is up.
    pub(super) fn times_are_kept(&self) -> Result<(), TestCaseError> {
        for (id, trajectory) in &self.dispatch.trajectories {
            let (Some(begun), None) = (&trajectory.begun, &trajectory.lost) else { continue };
            let wall = begun.since.zip(begun.spec.max_wall).map(|(since, limit)| since + limit);
            let idle = trajectory.slot.and_then(|slot| self.dispatch.idle.since(slot));
            let idle = idle.zip(begun.spec.max_idle).map(|(since, limit)| since + limit);
            for end in wall.into_iter().chain(idle) {
                prop_assert!(self.now < end, "{} goes on beyond its time", id);
                let next = self.dispatch.next_deadline();
                prop_assert!(next.is_some_and(|next| next <= end), "{} is not watched", id);
            }
        }
        Ok(())
    }

    /// No trajectory loses its slot before the idle limit is over, and none keeps it beyond it.
    pub(super) fn idle_ends_are_in_time(&self) -> Result<(), TestCaseError> {
        let dispatch = &self.dispatch;
        let Some(limit) = dispatch.limits.idle_limit else { return Ok(()) };
        for trajectory in dispatch.trajectories.values() {
            if let Some(Lost::Idle(lasted)) = trajectory.lost {
                prop_assert!(lasted >= limit, "taken back after {lasted:?}");
            }
        }
        if dispatch.closing.is_none()
            && let Some((_, since)) = dispatch.idle.first()
        {
            prop_assert!(self.now < since + limit, "kept for too long");
            prop_assert!(dispatch.next_deadline().is_some_and(|next| next <= since + limit));
        }
        Ok(())
    }
}
