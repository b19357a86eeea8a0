"""Ctrl-C, and Jupyter's interrupt, which is the same signal."""

from typing import Any, Callable, List

from conftest import Gate, echo, interrupted

from tool_executor import Outcome, ToolExecutor

# Of several tries one is not to be held up by what else runs on the machine.
TRIES, AT_MOST_S = 5, 0.1


def soonest(wait: Callable[[], Any]) -> float:
    times: List[float] = []
    while len(times) < TRIES and not (times and min(times) < AT_MOST_S):
        times.append(interrupted(wait))
    return min(times)


def test_a_call_that_is_waited_for_is_cancelled(executor: ToolExecutor) -> None:
    def wait() -> None:
        executor.execute("t", "bash", {"command": "sleep 1000"}, timeout=600)

    assert soonest(wait) < AT_MOST_S
    # Its slot would not be free for ten minutes else.
    assert executor.execute("t", "bash", {"command": "echo on"}).output == "on"


def test_every_wait_of_the_main_thread_ends(executor: ToolExecutor, gate: Gate) -> None:
    executor.execute("t", "bash", {"command": "true"})
    executor.submit("t", "wait", tag="waits")
    gate.has_started()
    waits: List[Callable[[], Any]] = [
        executor.next_completion,
        lambda: list(executor.completions()),
        lambda: executor.execute("t", "echo"),
        lambda: executor.release("t"),
        lambda: executor.read_artifact("t", "f"),
        lambda: executor.list_artifacts("t"),
    ]
    for wait in waits:
        assert soonest(wait) < AT_MOST_S
    # Nothing was lost, and it may be used further.
    gate.go_on.set()
    (result,) = executor.completions(timeout=60)
    assert (result.tag, result.output) == ("waits", "went on")
    assert executor.execute("t", "echo", {"text": "on"}).output == "on"


def test_a_wait_for_room_ends(gate: Gate) -> None:
    with ToolExecutor(tools=[gate.wait, echo], queue_capacity=1, close_timeout_s=0) as executor:
        executor.submit("t", "wait")
        gate.has_started()
        executor.submit("t", "wait")
        assert soonest(lambda: executor.execute("u", "echo")) < AT_MOST_S


def test_closing_ends_and_goes_on_in_the_background(gate: Gate) -> None:
    executor = ToolExecutor(tools=[gate.wait], close_timeout_s=1000)
    executor.submit("t", "wait")
    gate.has_started()
    assert soonest(executor.close) < AT_MOST_S
    gate.go_on.set()
    assert executor.close().cancelled == 0
    assert [result.outcome for result in executor.completions(timeout=60)] == [Outcome.OK]


def test_a_start_that_takes_long_ends() -> None:
    # Nothing answers there: it would be tried for a minute.
    def start() -> None:
        ToolExecutor(fleet={"urls": ["http://192.0.2.1:9"], "start_timeout_s": 5})

    assert soonest(start) < AT_MOST_S
