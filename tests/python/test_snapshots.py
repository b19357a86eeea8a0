"""Snapshots, forks and grades."""

import asyncio
from typing import Any

import pytest

import tool_executor as te


def run(executor: te.ToolExecutor, trajectory: str, command: str) -> str:
    result = executor.execute(trajectory, "bash", {"command": command})
    assert result.success, result
    return result.output


def test_forks_have_the_files_and_a_grade_is_the_graders_word() -> None:
    with te.ToolExecutor(local={"slots": 3}, policy={"allow_network": False}) as executor:
        run(executor, "setup", "echo 41 > answer")
        forks = executor.fork("setup", ["a", "b"], spec={"env": {}})
        assert [(fork.trajectory_id, fork.begun) for fork in forks] == [("a", True), ("b", True)]
        run(executor, "a", "echo 42 > answer")
        command = "grep -qx 42 /workspace/answer && cat f >&$TOOL_EXECUTOR_VERDICT_FD; cat; exit 3"
        grades = [
            executor.grade(name, command, files={"f": b'{"ok": true}'}, stdin="in", timeout=30)
            for name in ("a", "b")
        ]
        assert [grade.verdict_json for grade in grades] == [{"ok": True}, None]
        assert [(grade.stdout, grade.exit_code) for grade in grades] == [("in", 3)] * 2
        assert grades[0].outcome == "non_zero_exit"
        assert run(executor, "setup", "cat answer") == "41"


def test_a_snapshot_is_kept_until_it_is_dropped() -> None:
    with te.ToolExecutor(local={"slots": 2}, policy={"allow_network": False}) as executor:
        with executor.trajectory("t") as t:
            t.execute("terminal_stateful", {"command": "echo x > f"})
            with pytest.raises(te.SnapshotError, match="terminal_stateful") as refused:
                t.snapshot()
            assert refused.value.status == "TE_KEEPS_PROCESSES"
            made = t.snapshot(end_processes=True)
            assert made.ended_processes == ["the shell of terminal_stateful"]
            assert [one.id for one in executor.snapshots()] == [made.id]
        executor.drop_snapshot(made)
        assert executor.snapshots() == []
        with pytest.raises(te.SnapshotError) as gone:
            executor.drop_snapshot(made.id)
        assert gone.value.status == "TE_NOT_FOUND"


def test_bad_input_says_what_would_be_right() -> None:
    with te.ToolExecutor(local={"slots": 1}) as executor:
        with pytest.raises(te.SnapshotError) as none:
            executor.grade("t", "true")
        assert none.value.status == "TE_NO_SLOT"
        with pytest.raises(te.InvalidArgumentError, match="one text"):
            executor.fork("t", "abc")
        with pytest.raises(te.InvalidArgumentError, match="str or bytes"):
            number: Any = 1
            executor.grade("t", "true", files={"f": number})
        with pytest.raises(te.InvalidArgumentError, match="files_at"):
            executor.grade("t", "true", files_at="/usr")
        with pytest.raises(te.InvalidArgumentError, match="absolute path"):
            executor.grade("t", "true", judged_paths=["app"])
        with pytest.raises(te.InvalidArgumentError, match="one text"):
            executor.grade("t", "true", judged_paths="/app")
        with pytest.raises(te.InvalidArgumentError, match="imgae"):
            executor.fork("t", ["a"], spec={"imgae": "x"})


def test_the_same_with_asyncio() -> None:
    async def main() -> None:
        config = {"local": {"slots": 2}, "policy": {"allow_network": False}}
        async with te.AsyncToolExecutor(config) as executor:
            async with executor.trajectory("t") as t:
                await t.execute("bash", {"command": "echo x > f"})
                snapshot = await t.snapshot()
                forks = await t.fork(["a"])
                assert forks[0].begun
                grade = await t.grade("cat /workspace/f >&6")
                assert grade.verdict == "x\n"
                await executor.drop_snapshot(snapshot)
                assert await executor.snapshots() == []

    asyncio.run(asyncio.wait_for(main(), 100))
