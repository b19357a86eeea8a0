"""Forks, spawns, and ends of interpreters."""

import asyncio
import multiprocessing
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, List

import pytest
from conftest import Gate
from test_asyncio import processes_with

from tool_executor import ForkedError, ToolExecutor, ToolResult


def in_child(function: Any) -> None:
    """Runs something in a fork, which must end well."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


# Which is what is tested.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_is_told_at_once(executor: ToolExecutor) -> None:
    kept = executor.execute("t", "echo", {"text": 1})
    executor.submit("t", "echo")

    def child() -> None:
        for use in (
            lambda: executor.execute("t", "echo"),
            lambda: executor.submit("t", "echo"),
            executor.next_completion,
            lambda: executor.release("t"),
            lambda: executor.read_artifact("t", "f"),
            executor.stats,
            executor.close,
            lambda: ToolExecutor(),
        ):
            with pytest.raises(ForkedError, match="fork"):
                use()
        # What is plain data works.
        assert kept.message()["content"] == "1"

    in_child(child)
    assert executor.execute("t", "echo", {"text": 2}).output == "2"
    assert len(list(executor.completions(timeout=60))) == 1


def work(number: int) -> ToolResult:
    with ToolExecutor(local={"slots": 1}) as executor:
        return executor.execute(f"t{number}", "bash", {"command": f"echo {number}"})


def test_spawned_processes_have_executors_of_their_own(executor: ToolExecutor) -> None:
    executor.execute("t", "echo")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.map(work, range(4))
    assert [result.output for result in results] == ["0", "1", "2", "3"]
    with pytest.raises(TypeError, match="cannot be pickled"):
        multiprocessing.get_context("spawn").Process(target=work, args=[executor]).start()


def ends(script: str, *options: str, code: int = 0, within: float = 20) -> str:
    """Runs a script to its end, as users run theirs and under the checks of the interpreter."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=60,
        text=True,
        env={**os.environ, "PYTHONMALLOC": "debug"},
    )
    assert done.returncode == code, done.stderr
    assert "Fatal" not in done.stderr and "fatal" not in done.stderr, done.stderr
    assert time.monotonic() - began < within
    return done.stdout + done.stderr


MARK = "sleep 87654.321"
BEGIN = """
import sys, threading, time, asyncio
from pathlib import Path
from tool_executor import *
stuck = threading.Event()
def never(): stuck.wait()
def spins():
    while True: pass
def runs():
    for process in Path("/proc").iterdir():
        try:
            if b"87654.321" in (process / "cmdline").read_bytes(): return True
        except OSError: pass
"""


@pytest.mark.parametrize(
    "end",
    [
        "",
        "sys.exit(0)",
        "del executor",
        "threading.Thread(target=lambda: executor.execute('u', 'never'), daemon=True).start()",
        "executor.submit('u', 'never'); executor.submit('v', 'spins')",
        "executor.completions(); globals().clear()",
    ],
)
def test_an_interpreter_ends_without_closing(end: str) -> None:
    script = f"""
    executor = ToolExecutor(local={{"slots": 2}}, tools=[never, spins])
    executor.submit("t", "bash", {{"command": "{MARK}"}}, timeout=600)
    while not runs(): time.sleep(0.01)
    print("runs")
    {end}
    """
    said = ends(BEGIN + textwrap.dedent(script), "-X", "dev")
    assert said.startswith("runs\n")
    # The end of a host ends its commands within a moment.
    until = time.monotonic() + 10
    while processes_with(MARK) and time.monotonic() < until:
        time.sleep(0.01)
    assert processes_with(MARK) == []


def test_an_interpreter_that_fails_ends_too() -> None:
    script = """
    with ToolExecutor(local={"slots": 1}, tools=[never]) as executor:
        executor.submit("t", "never")
        executor.submit("u", "bash", {"command": "sleep 1000"}, timeout=600)
        raise KeyError("on purpose")
    """
    assert "KeyError: 'on purpose'" in ends(BEGIN + textwrap.dedent(script), code=1)


def test_an_event_loop_ends_without_closing() -> None:
    script = """
    async def main():
        executor = AsyncToolExecutor(local={"slots": 1}, tools=[never])
        await executor.start()
        tasks = [asyncio.ensure_future(executor.execute(f"t{n}", "never")) for n in range(3)]
        print((await executor.execute("u", "bash", {"command": "echo done"})).output)
        return executor, tasks
    kept = asyncio.run(main())
    """
    assert ends(BEGIN + textwrap.dedent(script), "-X", "dev").startswith("done\n")


def test_ctrl_c_ends_a_program() -> None:
    script = """
    import os, signal
    executor = ToolExecutor(local={"slots": 1})
    threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
    executor.execute("t", "bash", {"command": "sleep 1000"}, timeout=600)
    """
    assert "KeyboardInterrupt" in ends(BEGIN + textwrap.dedent(script), code=-2)


def test_an_executor_that_is_forgotten_is_ended() -> None:
    script = """
    import gc, warnings
    warnings.simplefilter("error", ResourceWarning)
    for number in range(5):
        executor = ToolExecutor(local={"slots": 1}, tools=[never])
        executor.submit("t", "bash", {"command": "sleep 1000"}, timeout=600)
        executor.close(0)
        del executor
        gc.collect()
    threads = len(list(Path("/proc/self/task").iterdir()))
    warnings.simplefilter("always", ResourceWarning)
    executor = ToolExecutor(local={"slots": 1})
    del executor
    gc.collect()
    print("threads", threads)
    """
    said = ends(BEGIN + textwrap.dedent(script))
    assert "ResourceWarning: an executor was not closed" in said
    # Those of the package itself wait a while for more to do.
    assert int(said.split("threads ")[1].split()[0]) <= 8


def test_many_short_programs(tmp_path: Path) -> None:
    for _ in range(10):
        said = ends(BEGIN + "print(ToolExecutor(tools=[never]).closed)")
        assert said == "False\n"


def test_a_child_of_subprocess_is_no_matter(executor: ToolExecutor, gate: Gate) -> None:
    executor.submit("t", "wait")
    gate.has_started()
    done: List[Any] = [subprocess.run(["true"]), subprocess.run(["sh", "-c", "exit 3"])]
    assert [one.returncode for one in done] == [0, 3]
    gate.go_on.set()
    assert len(list(executor.completions(timeout=60))) == 1
    asyncio.run(asyncio.sleep(0))
