//! A trajectory on its way: which of its calls comes next. Pure; the loop around it submits.

use tool_executor::ToolResult;

use super::trajectory::{Step, Trajectory};

/// A trajectory and how far it has come. At most one of its calls is at the executor at a time.
#[derive(Debug)]
pub(crate) struct Course {
    trajectory: Trajectory,
    next: usize,
}

/// How a trajectory goes on after a result.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// With its next call.
    NextCall,
    /// It was the last call.
    Done,
    /// A setup call failed: the calls left have no workspace to run in.
    SetupFailed,
}

impl Course {
    /// A trajectory at its start.
    pub(crate) fn new(trajectory: Trajectory) -> Self {
        Self { trajectory, next: 0 }
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
    pub(crate) fn ended(&mut self, result: &ToolResult) -> After {
        let setup_failed = self.current().is_some_and(|step| step.setup) && !result.success;
        self.next += 1;
        if setup_failed {
            After::SetupFailed
        } else if self.current().is_some() {
            After::NextCall
        } else {
            After::Done
        }
    }

    /// The calls that have not ended, from the current one on.
    pub(crate) fn rest(&self) -> &[Step] {
        self.trajectory.steps.get(self.next..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use tool_executor::{Outcome, ToolCall};

    use super::*;
    use crate::replay::trajectory::Recorded;

    fn course(setup: usize, calls: usize) -> Course {
        let step = |setup, index| Step {
            call: ToolCall::bash("true"),
            index,
            setup,
            recorded: Recorded::default(),
        };
        let steps =
            (0..setup).map(|i| step(true, i)).chain((0..calls).map(|i| step(false, i))).collect();
        Course::new(Trajectory { id: "t".into(), repetition: 1, steps })
    }

    #[test]
    fn calls_come_one_after_the_other_and_a_failing_one_stops_nothing() {
        let mut course = course(1, 2);
        let failure = ToolResult::failure(Outcome::NonZeroExit, "Exit code: 1");
        assert!(course.current().unwrap().setup);
        assert_eq!(course.ended(&ToolResult::ok("")), After::NextCall);
        assert_eq!(course.current().unwrap().index, 0);
        assert_eq!(course.ended(&failure), After::NextCall);
        assert_eq!(course.current().unwrap().index, 1);
        assert_eq!(course.ended(&failure), After::Done);
        assert_eq!(course.current(), None);
        assert!(course.rest().is_empty());
    }

    #[test]
    fn a_failed_setup_call_leaves_all_that_follow() {
        let mut course = course(2, 2);
        let failure = ToolResult::failure(Outcome::NonZeroExit, "Exit code: 1");
        assert_eq!(course.ended(&failure), After::SetupFailed);
        let rest: Vec<_> = course.rest().iter().map(|step| (step.setup, step.index)).collect();
        assert_eq!(rest, [(true, 1), (false, 0), (false, 1)]);
    }

    #[test]
    fn a_trajectory_without_calls_has_ended_at_its_start() {
        assert_eq!(course(0, 0).current(), None);
    }
}
