"""Calls by asyncio."""

import asyncio
import gc
import io
import sys
import threading
import time
from pathlib import Path
from typing import Any, Awaitable, Callable, Dict, List, Union

import pytest
from conftest import Gate, echo

from tool_executor import (
    ArtifactNotFoundError,
    AsyncToolExecutor,
    ClosedError,
    ConfigError,
    Outcome,
    ToolCall,
    ToolContext,
    ToolExecutor,
)


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    async def limited() -> Any:
        return await asyncio.wait_for(main(), 100)

    return asyncio.run(limited())


async def later(text: Any, context: ToolContext) -> str:
    """Says its argument, after others had their turn."""
    await asyncio.sleep(0)
    return f"{text} of {context.trajectory_id} by {threading.current_thread().name}"


class Meeting:
    """A tool whose calls go on when all of them are there."""

    def __init__(self, size: int) -> None:
        self.size, self.there = size, 0
        self.all_there: List[asyncio.Event] = []

    async def meet(self) -> str:
        if not self.all_there:
            self.all_there.append(asyncio.Event())
        self.there += 1
        if self.there == self.size:
            self.all_there[0].set()
        await self.all_there[0].wait()
        return "met"


def test_calls_files_and_messages() -> None:
    async def main() -> None:
        async with AsyncToolExecutor(local={"slots": 2}, tools=[later]) as executor:
            async with executor.trajectory("t") as trajectory:
                await trajectory.execute("bash", {"command": "echo x > f"})
                assert await trajectory.read_artifact("f") == b"x\n"
                assert (await trajectory.put("/srv/g", b"put")).bytes == 3
                out = io.BytesIO()
                assert await trajectory.get("/srv/g", out) == 3 and out.getvalue() == b"put"
                assert [entry.path for entry in (await trajectory.list_artifacts()).entries] == ["f"]
                with pytest.raises(ArtifactNotFoundError):
                    await trajectory.read_artifact("g")
            assert (await executor.execute("t", "bash", {"command": "ls"})).output == ""
            await executor.release("t")
            call: Dict[str, Any] = {"id": "c", "type": "function", "function": {"name": "later", "arguments": '{"text": 1}'}}
            message: Dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [call]}
            calls: List[Union[ToolCall, Dict[str, Any]]] = [call, *executor.parse_message(message)]
            for one in calls:
                result = await executor.execute_call("t", one)
                assert result.message("openai")["tool_call_id"] == "c"
                assert result.output == "1 of t by MainThread"
            assert (await executor.stats())["total_requests"] == 4
            assert (await executor.describe())["backend"] == "local"

    run(main)


def test_a_thousand_waits_add_at_most_two_threads() -> None:
    meeting = Meeting(1000)

    async def main() -> None:
        async with AsyncToolExecutor(tools=[meeting.meet]) as executor:
            await executor.execute("first", "nothing")
            before = len(list(Path("/proc/self/task").iterdir()))
            calls = [
                asyncio.ensure_future(executor.execute(f"t{number}", "meet")) for number in range(1000)
            ]
            while meeting.there < 999:
                await asyncio.sleep(0.01)
            assert len(list(Path("/proc/self/task").iterdir())) <= before + 2
            assert {result.output for result in await asyncio.gather(*calls)} == {"met"}

    run(main)


def processes_with(text: str) -> List[str]:
    """The command lines of processes that have this text in them."""
    found: List[str] = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if text in line:
                found.append(line)
    return found


def test_a_task_that_is_cancelled_ends_when_its_processes_have_ended() -> None:
    async def main() -> None:
        async with AsyncToolExecutor(local={"slots": 1}) as executor:
            task = asyncio.ensure_future(
                executor.execute("t", "bash", {"command": "sleep 98765.4321 & sleep 98765.4321"})
            )
            while len(processes_with("sleep 98765.4321")) < 2:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert processes_with("sleep 98765.4321") == []
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(executor.execute("t", "bash", {"command": "sleep 98765"}), 0.3)
            assert (await executor.execute("t", "bash", {"command": "echo on"})).output == "on"

    run(main)


def test_a_task_that_is_cancelled_twice_does_not_wait(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncToolExecutor(tools=[gate.wait, echo], close_timeout_s=0) as executor:
            # Behind another one; both can be cancelled at once.
            tasks = [asyncio.ensure_future(executor.execute("t", "wait")) for _ in range(3)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)
            assert (await executor.execute("t", "echo", {"text": 1})).output == "1"

    run(main)


def test_several_loops_and_threads_use_one_executor() -> None:
    async def use(executor: AsyncToolExecutor, loop: int) -> None:
        calls = (executor.execute(f"{loop}/{number}", "echo", {"text": number}) for number in range(50))
        results = await asyncio.gather(*calls)
        assert [result.output for result in results] == [str(number) for number in range(50)]
        assert [result.trajectory_id for result in results] == [f"{loop}/{n}" for n in range(50)]

    async def main() -> None:
        async with AsyncToolExecutor(tools=[echo, later]) as executor:
            wrong: List[BaseException] = []

            def other(loop: int) -> None:
                try:
                    for _ in range(3):  # each has a loop of its own
                        asyncio.run(use(executor, loop))
                except BaseException as error:
                    wrong.append(error)

            threads = [threading.Thread(target=other, args=[loop]) for loop in range(8)]
            for thread in threads:
                thread.start()
            await use(executor, 100)
            while any(thread.is_alive() for thread in threads):
                await asyncio.sleep(0.01)
            assert not wrong

    run(main)


def test_a_loop_that_is_closed_loses_its_calls_and_nothing_else(gate: Gate) -> None:
    executor = AsyncToolExecutor(tools=[echo, gate.wait, later], close_timeout_s=0)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(executor.start())
    task = loop.create_task(executor.execute("t", "wait"))
    loop.run_until_complete(asyncio.sleep(0))
    gate.has_started()
    task.cancel()
    loop.close()
    del task
    gc.collect()

    async def main() -> None:
        assert (await executor.execute("u", "echo", {"text": 1})).output == "1"
        # The loop on which its async tools ran is gone.
        result = await executor.execute("u", "later", {"text": 1})
        assert result.outcome is Outcome.EXTERNAL_FAILED and "event loop" in result.error
        await executor.close()

    run(main)


def test_closing_ends_what_is_waited_for(gate: Gate) -> None:
    async def main() -> None:
        executor = AsyncToolExecutor(tools=[gate.wait])
        with pytest.raises(ClosedError, match="not started"):
            await executor.execute("t", "wait")
        await asyncio.gather(*(executor.start() for _ in range(5)))
        await executor.start()
        tasks = [asyncio.ensure_future(executor.execute("t", "wait")) for _ in range(3)]
        await asyncio.get_running_loop().run_in_executor(None, gate.has_started)
        report = await executor.close(timeout=0)
        assert report.cancelled == 3
        outcomes = {result.outcome for result in await asyncio.gather(*tasks)}
        assert outcomes <= {Outcome.CANCELLED, Outcome.NEVER_RAN}
        with pytest.raises(ClosedError):
            await executor.execute("t", "wait")
        with pytest.raises(ClosedError):
            await executor.start()
        assert await executor.close() == report

    run(main)


def test_a_start_that_fails_says_why_to_all_who_wait_for_it() -> None:
    async def main() -> None:
        executor = AsyncToolExecutor(local={"slots": 0})
        first, second = await asyncio.gather(
            executor.start(), executor.start(), return_exceptions=True
        )
        assert isinstance(first, ConfigError) and "slots" in str(first)
        assert isinstance(second, ClosedError) and "slots" in str(second)
        with pytest.raises(ClosedError):
            await executor.execute("t", "echo")

    run(main)


def test_more_calls_than_there_is_room_for_wait_for_it() -> None:
    meeting = Meeting(4)

    async def main() -> None:
        async with AsyncToolExecutor(tools=[meeting.meet, echo], queue_capacity=2) as executor:
            first = [asyncio.ensure_future(executor.execute(f"m{n}", "meet")) for n in range(3)]
            while meeting.there < 3:
                await asyncio.sleep(0.01)
            behind = [asyncio.ensure_future(executor.execute("m0", "echo", {"text": n})) for n in range(9)]
            ended: List[str] = []
            for task in behind:
                task.add_done_callback(lambda task: ended.append(task.result().output))
            await asyncio.sleep(0.1)
            assert not ended
            meeting.all_there[0].set()
            assert {result.output for result in await asyncio.gather(*first)} == {"met"}
            await asyncio.gather(*behind)
            assert ended == [str(n) for n in range(9)]

    run(main)


def test_an_artifact_that_is_not_waited_for_any_more_blocks_nothing(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncToolExecutor(local={"slots": 1}, tools=[gate.wait]) as executor:
            await executor.execute("t", "bash", {"command": "echo x > f"})
            call = asyncio.ensure_future(executor.execute("t", "wait"))
            await asyncio.get_running_loop().run_in_executor(None, gate.has_started)
            began = time.monotonic()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(executor.read_artifact("t", "f"), 0.05)
            assert time.monotonic() - began < 5
            gate.go_on.set()
            await call
            assert (await executor.read_artifact("t", "f")).content == b"x\n"

    run(main)


def test_uvloop_if_it_is_installed(gate: Gate) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async with AsyncToolExecutor(local={"slots": 2}, tools=[later]) as executor:
            assert "uvloop" in type(asyncio.get_running_loop()).__module__
            calls = (executor.execute(f"t{n}", "later", {"text": n}) for n in range(100))
            assert len(await asyncio.gather(*calls)) == 100
            task = asyncio.ensure_future(executor.execute("t", "bash", {"command": "sleep 100"}))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def test_both_executors_in_one_program(executor: ToolExecutor) -> None:
    async def main() -> None:
        async with AsyncToolExecutor(tools=[later]) as other:
            assert (await other.execute("t", "later", {"text": 1})).success
            assert executor.execute("t", "echo", {"text": 1}).success

    run(main)


if sys.version_info >= (3, 11):

    def test_a_task_group_cancels_what_is_beside_a_failure(gate: Gate) -> None:
        async def main() -> None:
            async with AsyncToolExecutor(tools=[gate.wait]) as executor:

                async def fails() -> None:
                    await asyncio.get_running_loop().run_in_executor(None, gate.has_started)
                    raise KeyError

                with pytest.raises(ExceptionGroup):
                    async with asyncio.TaskGroup() as group:
                        group.create_task(executor.execute("t", "wait"))
                        group.create_task(fails())
                assert (await executor.stats())["total_requests"] == 1

        run(main)
