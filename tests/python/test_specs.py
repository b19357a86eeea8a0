"""Trajectories that begin with a spec."""

import asyncio
from typing import Any, List, Tuple

import pytest

import tool_executor as te


def run(executor: te.ToolExecutor, trajectory: str, command: str) -> te.ToolResult:
    return executor.execute(trajectory, "bash", {"command": command})


def test_a_trajectory_has_what_its_spec_says_and_begins_once() -> None:
    with te.ToolExecutor(local={"slots": 2}) as executor:
        assert "env" in executor.describe()["spec_fields"]
        spec = {
            "env": {"A": "b"},
            "workdir": "/app",
            "limits": {"open_files": 64},
            "network": None,
            "files": [{"path": "f", "content": b"\x00\xff", "mode": "0600"}],
        }
        executor.begin("t", spec)
        result = run(executor, "t", "echo $A; pwd; od -An -tx1 f; stat -c %a f; ulimit -n")
        assert result.output.split() == ["b", "/app", "00", "ff", "600", "64"], result
        with pytest.raises(te.BeginError, match="release it first") as twice:
            executor.begin("t", spec)
        assert (twice.value.status, twice.value.outcome) == ("TE_ALREADY_BEGUN", None)
        with executor.trajectory(spec={"env": {"A": "c"}}) as t:
            assert t.execute("bash", {"command": "echo $A"}).output == "c"


def test_what_cannot_be_given_is_an_outcome_and_what_makes_no_sense_an_error() -> None:
    with te.ToolExecutor(local={"slots": 1}) as executor:
        with pytest.raises(te.BeginError, match="--path-prepend") as refused:
            executor.begin("t", {"env": {"PATH": "/x"}})
        assert refused.value.outcome == te.Outcome.SPEC_UNSUPPORTED
        executor.release("t")
        with pytest.raises(te.BeginError, match="the operator gives, which is 4096"):
            executor.begin("t", {"limits": {"open_files": 5000}})
        result = run(executor, "t", "true")
        assert result.outcome == te.Outcome.SPEC_UNSUPPORTED
        assert not result.may_have_executed and not result.model_attributable
        executor.release("t")
        wrong: List[Tuple[Any, str]] = [
            ({"imgae": "x"}, "unknown field `imgae`, expected one of `image`"),
            ({"max_wall_s": 0}, "must be above 0"),
            ({"files": [{"path": "a"}]}, "one of `content` and `base64`"),
            ([], "must be a dict"),
        ]
        for spec, words in wrong:
            with pytest.raises(te.SpecError, match=words):
                executor.begin("t", spec)
            with pytest.raises(te.SpecError, match=words):
                executor.trajectory("t", spec)
        assert run(executor, "t", "echo fine").output == "fine"


def test_a_trajectory_expires() -> None:
    with te.ToolExecutor(local={"slots": 1}) as executor:
        executor.begin("t", {"max_wall_s": 0.3}, wait=False)
        result = run(executor, "t", "echo begun; sleep 1000")
        assert (result.outcome, result.output) == (te.Outcome.TRAJECTORY_EXPIRED, "begun")


def test_asyncio() -> None:
    async def main() -> None:
        async with te.AsyncToolExecutor(local={"slots": 1}) as executor:
            await executor.begin("t", {"env": {"A": "b"}})
            assert (await executor.execute("t", "bash", {"command": "echo $A"})).output == "b"
            waits = asyncio.ensure_future(executor.begin("u", {"env": {"A": "b"}}))
            await asyncio.sleep(0)
            waits.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waits
            await executor.release("t")
            async with executor.trajectory("v", {"env": {"A": "c"}}) as v:
                assert (await v.execute("bash", {"command": "echo $A"})).output == "c"

    asyncio.run(main())
