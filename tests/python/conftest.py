"""What the tests share. They run against the installed package: `tests/python/run` sees to that."""

import faulthandler
import os
import signal
import threading
import time
from typing import Any, Callable, Iterator, List

import pytest

from tool_executor import ToolContext, ToolExecutor

LIMIT_S = 120

# A caller may have it ignored, as a script does that runs this behind; Python then has no Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_test_hangs() -> Iterator[None]:
    """Ends the run with the stacks of all threads where a test takes too long."""
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


class Gate:
    """A tool whose calls wait until the test lets them go on."""

    def __init__(self) -> None:
        self.started = threading.Semaphore(0)
        self.go_on = threading.Event()

    def wait(self, context: ToolContext) -> str:
        """Waits."""
        self.started.release()
        while not self.go_on.wait(0.05):
            if context.cancelled:
                return "cancelled"
        return "went on"

    def has_started(self, calls: int = 1) -> None:
        for _ in range(calls):
            assert self.started.acquire(timeout=60)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.go_on.set()


def echo(text: Any = "") -> str:
    """Says its argument."""
    return str(text)


@pytest.fixture
def executor(gate: Gate) -> Iterator[ToolExecutor]:
    with ToolExecutor(local={"slots": 4}, tools=[echo, gate.wait]) as executor:
        yield executor


@pytest.fixture
def door(gate: Gate) -> Iterator[ToolExecutor]:
    """An executor without a sandbox."""
    with ToolExecutor(tools=[echo, gate.wait], close_timeout_s=1) as executor:
        yield executor


def interrupted(wait: Callable[[], Any]) -> float:
    """Has Ctrl-C come during a wait of the main thread; how long after it the wait has ended."""
    at: List[float] = []

    def interrupt() -> None:
        at.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.1, interrupt)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            wait()
        return time.monotonic() - at[0]
    finally:
        timer.join()
