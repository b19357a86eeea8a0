"""Rollouts from Python: trajectories that take turns, and a tool that answers later from a thread.

    cargo build --release
    TOOL_EXECUTOR_LIBRARY=target/release/libtool_executor.so python3 examples/python-one-file/rollout.py
"""

import select
import sys
import threading
from typing import Dict, Optional

from tool_executor import Error, Reply, ToolCall, ToolExecutor

TRAJECTORIES, STEPS = 100, 3


def reward(call: ToolCall, reply: Reply) -> Optional[str]:
    """Scores an answer, on a thread of ours: no thread of the executor's waits for it."""
    score = "1.0" if call.arguments.get("answer") == "42" else "0.0"
    threading.Timer(0.01, reply.ok, [score]).start()
    return None


def fails(_call: ToolCall, _reply: Reply) -> Optional[str]:
    raise ValueError("on purpose")


def policy(step: int, seen: str) -> str:
    """What a model would write."""
    if step == 0:
        arguments = '{"command": "echo 41 > n; cat n"}'
        return f'<tool_call>{{"name": "bash", "arguments": {arguments}}}</tool_call>'
    if step == 1:
        arguments = f'{{"command": "echo $(({seen} + 1))"}}'
        return f'<tool_call>{{"name": "bash", "arguments": {arguments}}}</tool_call>'
    return f'<tool_call>{{"name": "reward", "arguments": {{"answer": "{seen}"}}}}</tool_call>'


def main() -> int:
    tools = {"reward": reward, "fails": fails}
    with ToolExecutor({"local": {"slots": 8}}, tools, message_form="openai") as executor:
        assert executor.execute("x", "fails").error == "ValueError: on purpose"
        assert executor.execute("x", "nonsense").outcome == "unknown_tool"
        function = {"name": "fails", "arguments": "{}"}
        message = {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": function}]}
        for call in [*message["tool_calls"], *executor.parse_message(message)]:
            answer = executor.execute_call("x", call).message
            error = "Error: ValueError: on purpose"
            assert answer == {"role": "tool", "tool_call_id": "c1", "content": error}, answer
        (broken,) = executor.parse("<tool_call>{nonsense}</tool_call>")
        assert executor.execute_call("x", broken).outcome == "invalid_call"
        steps: Dict[int, int] = {}
        rewards = 0.0
        for tag in range(TRAJECTORIES):
            steps[tag] = 0
            executor.submit_call(f"agent-{tag}", executor.parse(policy(0, ""))[0], tag)
        assert select.select([executor], [], [], 60)[0], "a completion makes it readable"
        for result in executor.completions(timeout_s=120):
            assert result.model_attributable, result
            steps[result.tag] += 1
            if result.success and steps[result.tag] < STEPS:
                call = executor.parse(policy(steps[result.tag], result.output))[0]
                executor.submit_call(result.trajectory_id, call, result.tag)
                continue
            rewards += float(result.output or 0)
            if result.tag == 0:
                assert executor.read(result.trajectory_id, "n") == b"41\n"
            executor.release(result.trajectory_id, wait=False)
        print(f"{TRAJECTORIES} trajectories, mean reward {rewards / TRAJECTORIES:.2f}")
        calls = executor.stats()["total_requests"]
        assert calls == TRAJECTORIES * STEPS + 5, calls
    try:
        executor.submit("x", "bash", {"command": "true"})
    except Error as error:
        assert error.name == "TE_CLOSED", error
    else:
        raise AssertionError("it is closed")
    try:
        ToolExecutor({"nonsense": 1})
    except Error as error:
        assert "nonsense" in str(error), error
    else:
        raise AssertionError("an unknown key")
    return 0 if rewards == TRAJECTORIES else 1


if __name__ == "__main__":
    sys.exit(main())
