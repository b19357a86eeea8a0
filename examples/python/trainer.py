"""A trainer's rollouts with asyncio: 256 trajectories at a time, on 16 slots, without a thread each.

    pip install .
    python examples/python/trainer.py
"""

import asyncio
import sys
import time
from typing import Any, Dict, List

from tool_executor import AsyncToolExecutor, ToolResult

TRAJECTORIES, SLOTS, STEPS = 256, 16, 3


async def model(messages: List[Dict[str, Any]]) -> Dict[str, Any]:
    """What an inference server would answer, in the form of OpenAI's chat API."""
    await asyncio.sleep(0.01)
    step = sum(message["role"] == "tool" for message in messages)
    if step == STEPS:
        return {"role": "assistant", "content": f"It is {messages[-1]['content']}."}
    arguments = '{"command": "echo x >> log; wc -l < log"}'
    function = {"name": "bash", "arguments": arguments}
    calls = [{"id": f"call-{step}", "type": "function", "function": function}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


async def rollout(executor: AsyncToolExecutor, number: int) -> float:
    """One trajectory, from the question to the reward."""
    messages: List[Dict[str, Any]] = [{"role": "user", "content": "How many lines are there?"}]
    async with executor.trajectory(f"trajectory-{number}") as trajectory:
        while True:
            answer = await model(messages)
            messages.append(answer)
            calls = executor.parse_message(answer)
            if not calls:
                return float(str(STEPS) in answer["content"])
            for call in calls:
                result: ToolResult = await trajectory.execute_call(call)
                if not result.model_attributable:
                    raise RuntimeError(f"to be masked: {result.error}")
                messages.append(result.message("openai"))


async def main() -> int:
    began = time.monotonic()
    async with AsyncToolExecutor(local={"slots": SLOTS}) as executor:
        rollouts = (rollout(executor, number) for number in range(TRAJECTORIES))
        rewards = await asyncio.gather(*rollouts, return_exceptions=True)
        masked = [reward for reward in rewards if isinstance(reward, BaseException)]
        total = sum(reward for reward in rewards if not isinstance(reward, BaseException))
    seconds = time.monotonic() - began
    print(f"{TRAJECTORIES} trajectories in {seconds:.1f} s, reward {total:.0f}, {len(masked)} masked")
    return 0 if total == TRAJECTORIES else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
