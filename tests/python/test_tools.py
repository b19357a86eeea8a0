"""Tools that are functions."""

import asyncio
import threading
import time
from typing import Annotated, Any, Callable, Dict, List, Literal, Optional, Union

import pytest
from conftest import Gate

from tool_executor import (
    InvalidToolError,
    Outcome,
    Tool,
    ToolContext,
    ToolError,
    ToolExecutor,
    tool,
)


def schema(function: Any) -> Dict[str, Any]:
    with ToolExecutor({"tools": {"builtin": False}}, tools=[function]) as executor:
        described: Dict[str, Any] = executor.describe()["tools"][0]["function"]
        return described


def test_a_signature_is_a_schema() -> None:
    def find(
        word: Annotated[str, "What is sought."],
        most: int = 3,
        exact: bool = False,
        weights: Optional[List[float]] = None,
        how: Literal["fast", "slow"] = "fast",
        where: Union[str, int] = "",
        more: Any = None,
        context: Optional[ToolContext] = None,
    ) -> str:
        """Finds a word."""
        return word

    described = schema(find)
    assert (described["name"], described["description"]) == ("find", "Finds a word.")
    properties = described["parameters"]["properties"]
    assert properties["word"] == {"type": "string", "description": "What is sought."}
    assert properties["most"]["type"] == "integer" and properties["exact"]["type"] == "boolean"
    assert properties["weights"] == {"type": "array", "items": {"type": "number"}}
    assert properties["how"] == {"enum": ["fast", "slow"], "type": "string"}
    assert properties["where"] == {"type": ["string", "integer"]}
    assert described["parameters"]["required"] == ["word"]


def test_what_is_said_of_a_tool_wins() -> None:
    @tool(name="add", description="Adds.", parameters={"a": {"type": "number"}}, required=["a"])
    def plus(**arguments: float) -> float:
        return sum(arguments.values())

    assert isinstance(plus, Tool) and plus(a=1, b=2) == 3
    described = schema(plus)
    assert (described["name"], described["description"]) == ("add", "Adds.")
    assert described["parameters"]["required"] == ["a"]
    with ToolExecutor(tools={"sum": plus}) as executor:
        assert executor.execute("t", "sum", {"a": 1.5, "b": 2}).output == "3.5"
        assert executor.execute("t", "sum").outcome is Outcome.INVALID_CALL


class Callable_:
    def __call__(self, x: int) -> int:
        return x + 1

    async def later(self, x: int) -> int:
        await asyncio.sleep(0)
        return x + 2


def test_methods_and_objects_are_tools_too() -> None:
    of = Callable_()
    tools: Dict[str, Callable[..., Any]] = {"object": of, "method": of.later}
    with ToolExecutor(tools=tools) as executor:
        assert executor.execute("t", "object", {"x": 1}).output == "2"
        assert executor.execute("t", "method", {"x": 1}).output == "3"


def returning(value: Any) -> Callable[[], Any]:
    return lambda: value


def test_what_a_tool_returns_is_text_or_json() -> None:
    values: Dict[str, Any] = {
        "text": ("é", "é"),
        "nothing": (None, ""),
        "json": ({"é": [1, None]}, '{"é": [1, null]}'),
        "half": ("a\ud800b", "a\ufffdb"),
    }
    functions = {name: returning(value) for name, (value, _) in values.items()}
    nonsense: Dict[str, Any] = {"bytes": b"x", "object": object(), "nan": float("nan"), "deep": []}
    nonsense["deep"].append(nonsense["deep"])
    functions.update({name: returning(value) for name, value in nonsense.items()})
    with ToolExecutor(tools=functions) as executor:
        for name, (_, output) in values.items():
            result = executor.execute("t", name)
            assert (result.outcome, result.output) == (Outcome.OK, output), result
        for name in nonsense:
            result = executor.execute("t", name)
            assert result.outcome is Outcome.EXTERNAL_FAILED, result
            assert "neither text nor JSON" in result.error and not result.model_attributable


def test_what_a_tool_raises_says_whose_doing_it_was() -> None:
    def refuses() -> str:
        raise ToolError("there is no such thing")

    def breaks() -> str:
        raise ConnectionError("no database\nat all")

    def exits() -> str:
        raise SystemExit(3)

    async def refuses_later() -> str:
        await asyncio.sleep(0)
        raise ToolError("no")

    async def breaks_later() -> str:
        await asyncio.sleep(0)
        raise KeyError("x")

    async def is_cancelled() -> str:
        raise asyncio.CancelledError

    tools = [refuses, breaks, exits, refuses_later, breaks_later, is_cancelled]
    with ToolExecutor(tools=tools) as executor:
        for name, outcome, text in [
            ("refuses", Outcome.TOOL_ERROR, "there is no such thing"),
            ("refuses_later", Outcome.TOOL_ERROR, "no"),
            ("breaks", Outcome.EXTERNAL_FAILED, "ConnectionError: no database"),
            ("breaks_later", Outcome.EXTERNAL_FAILED, "KeyError: 'x'"),
            ("exits", Outcome.EXTERNAL_FAILED, "SystemExit: 3"),
            ("is_cancelled", Outcome.EXTERNAL_FAILED, "cancelled"),
        ]:
            result = executor.execute("t", name)
            assert result.outcome is outcome and text in result.error, result
            assert result.model_attributable is (outcome is Outcome.TOOL_ERROR)
        # Nothing of it is left.
        assert executor.execute("t", "refuses").outcome is Outcome.TOOL_ERROR


def test_an_argument_that_a_function_does_not_have_is_refused() -> None:
    def add(a: int, b: int = 0) -> int:
        return a + b

    with ToolExecutor(tools=[add]) as executor:
        assert executor.execute("t", "add", {"a": 1, "b": 2}).output == "3"
        result = executor.execute("t", "add", {"a": 1, "c": 2})
        assert result.outcome is Outcome.TOOL_ERROR and "'c'; it has: a, b" in result.error
        assert executor.execute("t", "add", {"a": "1"}).outcome is Outcome.INVALID_CALL
        assert executor.execute("t", "add").outcome is Outcome.INVALID_CALL


def test_a_tool_knows_its_call(gate: Gate) -> None:
    def who(context: ToolContext) -> Dict[str, Any]:
        assert 0 < context.remaining_s <= 5 and not context.cancelled
        return {"trajectory": context.trajectory_id, "id": context.uniq_id, "name": context.name}

    with ToolExecutor(tools=[who]) as executor:
        result = executor.execute("t", "who", timeout=5, uniq_id="u")
        assert result.output == '{"trajectory": "t", "id": "u", "name": "who"}'


def test_a_tool_that_never_returns_takes_only_its_own_call() -> None:
    stuck, done = threading.Event(), threading.Event()

    def never(context: ToolContext) -> str:
        stuck.wait()
        done.set()
        return "much too late"

    async def never_ends() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            done.set()
        return ""

    def quick() -> str:
        return "quick"

    with ToolExecutor(tools=[never, never_ends, quick], close_timeout_s=0) as executor:
        for name in ("never", "never_ends"):
            result = executor.execute("t", name, timeout=1)
            assert result.outcome is Outcome.TIMEOUT and executor.execute("t", "quick").success
        # A task is cancelled, a thread cannot be.
        assert done.wait(30)
        done.clear()
        began = time.monotonic()
    assert time.monotonic() - began < 10
    stuck.set()
    assert done.wait(30)


def test_a_tool_may_make_calls_of_other_trajectories() -> None:
    executors: List[ToolExecutor] = []

    def outer(depth: int) -> str:
        if depth == 0:
            return "inner"
        return executors[0].execute(f"t{depth}", "outer", {"depth": depth - 1}).output

    with ToolExecutor(tools=[outer]) as executor:
        executors.append(executor)
        assert executor.execute("t", "outer", {"depth": 5}).output == "inner"


def test_async_tools_of_a_sync_executor_run_beside_each_other() -> None:
    all_there = 200
    there = 0

    async def meets() -> str:
        nonlocal there
        there += 1
        while there < all_there:
            await asyncio.sleep(0.01)
        return threading.current_thread().name

    with ToolExecutor(tools=[meets]) as executor:
        for number in range(all_there):
            executor.submit(f"t{number}", "meets")
        results = list(executor.completions(timeout=60))
    assert {result.output for result in results} == {"tool-executor-asyncio"}


def test_what_cannot_be_a_tool_is_refused() -> None:
    def by_position(a: int, /) -> int:
        return a

    def unnamed() -> Any:
        return lambda: ""

    bad: List[Any] = [
        [3],
        "add",
        7,
        {"": len},
        {"a b": unnamed},
        {3: unnamed},
        [unnamed()],
        [by_position],
        [unnamed, unnamed],
        {"bash": unnamed},
        [Tool(unnamed, parameters={"a": object()})],  # type: ignore[dict-item]
        [Tool(unnamed, required=["missing"])],
    ]
    for tools in bad:
        with pytest.raises(InvalidToolError):
            ToolExecutor(local={}, tools=tools).close()
