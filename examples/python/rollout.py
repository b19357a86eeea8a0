"""Rollouts for a trainer with groups, as in GRPO: each problem is tried several times, the reward is
compared within its group, and what the infrastructure ended is masked.

    pip install .
    python examples/python/rollout.py

One thread drives all trajectories by the completion queue.
"""

import random
import statistics
import sys
from dataclasses import dataclass, field
from typing import Dict, List

from tool_executor import ToolExecutor, ToolResult

PROBLEMS = [(17, 25), (41, 59), (123, 456), (7, 8)]
GROUP, MOST_STEPS = 8, 3


@dataclass
class Rollout:
    """One try at a problem."""

    problem: int
    number: int
    results: List[ToolResult] = field(default_factory=lambda: [])
    reward: float = 0.0

    @property
    def id(self) -> str:
        return f"problem-{self.problem}/{self.number}"

    @property
    def is_masked(self) -> bool:
        """Whether it says nothing of the model: it is left out, not punished."""
        return not all(result.model_attributable for result in self.results)


def policy(rollout: Rollout) -> str:
    """What a model would write. This one errs at times."""
    a, b = PROBLEMS[rollout.problem]
    rng = random.Random(rollout.id)
    if not rollout.results:
        command = f"echo $(({a} + {b + rng.choice([0, 0, 1])})) > answer"
    elif len(rollout.results) == 1:
        command = "cat answer"
    else:
        return "I am done."
    return f'<tool_call>{{"name": "bash", "arguments": {{"command": "{command}"}}}}</tool_call>'


def step(executor: ToolExecutor, rollout: Rollout) -> bool:
    """Has the policy write, and submits its call; False if the rollout is over."""
    calls = executor.parse(policy(rollout))
    if not calls or len(rollout.results) >= MOST_STEPS:
        return False
    executor.submit_call(rollout.id, calls[0], tag=rollout)
    return True


def main() -> int:
    rollouts = [Rollout(problem, number) for problem in range(len(PROBLEMS)) for number in range(GROUP)]
    with ToolExecutor(local={"slots": 8}) as executor:
        for rollout in rollouts:
            step(executor, rollout)
        for result in executor.completions(timeout=120):
            of: Rollout = result.tag
            of.results.append(result)
            if result.model_attributable and step(executor, of):
                continue
            executor.release(of.id, wait=False)
            of.reward = float(result.output.strip() == str(sum(PROBLEMS[of.problem])))
        groups: Dict[int, List[Rollout]] = {}
        for rollout in rollouts:
            if not rollout.is_masked:
                groups.setdefault(rollout.problem, []).append(rollout)
        for problem, group in sorted(groups.items()):
            rewards = [rollout.reward for rollout in group]
            spread = statistics.pstdev(rewards) or 1.0
            advantages = [(reward - statistics.mean(rewards)) / spread for reward in rewards]
            print(f"problem {problem}: {len(group)} of {GROUP} count, mean reward "
                  f"{statistics.mean(rewards):.2f}, advantages {min(advantages):+.2f} to {max(advantages):+.2f}")
        masked = sum(rollout.is_masked for rollout in rollouts)
        print(f"{len(rollouts)} rollouts, {masked} masked")
    return 0 if len(groups) == len(PROBLEMS) and masked == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
