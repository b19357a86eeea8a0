//! A trajectory on its way: which of its calls comes next. Pure; the loop around it submits.

use tool_executor::ToolResult;

use super::step::Step;
use super::trajectory::Trajectory;

/// A trajectory and how far it has come. At most one of its calls is at the executor at a time.
#[derive(Debug)]
pub(crate) struct TrajectoryCursor {
    trajectory: Trajectory,
    next: usize,
    began_after_setup: bool,
}

/// How a trajectory goes on after a result.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// With its next call.
    Call,
    /// It was the last call.
    End,
    /// A setup call failed: the calls left have no workspace to run in.
    SetupFailed,
}

impl TrajectoryCursor {
    /// A trajectory at its start.
    pub(crate) fn new(trajectory: Trajectory) -> Self {
        Self { trajectory, next: 0, began_after_setup: false }
    }

    /// The same after its setup, which was made by another.
    pub(crate) fn after_setup(trajectory: Trajectory) -> Self {
        let next = trajectory.steps.iter().take_while(|step| step.setup).count();
        Self { trajectory, next, began_after_setup: true }
    }

    /// Whether its setup was made by another.
    pub(crate) fn began_after_setup(&self) -> bool {
        self.began_after_setup
    }

    /// The trajectory.
    pub(crate) fn trajectory(&self) -> &Trajectory {
        &self.trajectory
    }

    /// The call that is running or comes next. `None` once all have ended.
    pub(crate) fn current(&self) -> Option<&Step> {
        self.trajectory.steps.get(self.next)
    }

    /// Takes the current call's result, and goes on to the next one.
    pub(crate) fn advance(&mut self, result: &ToolResult) -> Next {
        let setup_failed = self.current().is_some_and(|step| step.setup) && !result.success;
        self.next += 1;
        if setup_failed {
            Next::SetupFailed
        } else if self.current().is_some() {
            Next::Call
        } else {
            Next::End
        }
    }

    /// The calls that have not ended, from the current one on.
    pub(crate) fn remaining(&self) -> &[Step] {
        self.trajectory.steps.get(self.next..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use tool_executor::{Outcome, ToolCall};

    use super::*;
    use crate::replay::step::Recorded;

    fn cursor(setup: usize, calls: usize) -> TrajectoryCursor {
        let step = |setup, index| Step {
            call: ToolCall::bash("true"),
            put: None,
            index,
            setup,
            recorded: Recorded::default(),
        };
        let steps =
            (0..setup).map(|i| step(true, i)).chain((0..calls).map(|i| step(false, i))).collect();
        TrajectoryCursor::new(Trajectory { steps, ..Trajectory::for_test("t") })
    }

    #[test]
    fn calls_come_one_after_the_other_and_a_failing_one_stops_nothing() {
        let mut cursor = cursor(1, 2);
        let failure = ToolResult::failure(Outcome::NonZeroExit, "Exit code: 1");
        assert!(cursor.current().unwrap().setup);
        assert_eq!(cursor.advance(&ToolResult::ok("")), Next::Call);
        assert_eq!(cursor.current().unwrap().index, 0);
        assert_eq!(cursor.advance(&failure), Next::Call);
        assert_eq!(cursor.current().unwrap().index, 1);
        assert_eq!(cursor.advance(&failure), Next::End);
        assert_eq!(cursor.current(), None);
        assert!(cursor.remaining().is_empty());
    }

    #[test]
    fn a_failed_setup_call_leaves_all_that_follow() {
        let mut cursor = cursor(2, 2);
        let failure = ToolResult::failure(Outcome::NonZeroExit, "Exit code: 1");
        assert_eq!(cursor.advance(&failure), Next::SetupFailed);
        let rest: Vec<_> = cursor.remaining().iter().map(|step| (step.setup, step.index)).collect();
        assert_eq!(rest, [(true, 1), (false, 0), (false, 1)]);
    }

    #[test]
    fn a_trajectory_without_calls_has_ended_at_its_start() {
        assert_eq!(cursor(0, 0).current(), None);
    }
}
