"""Whatever is given, the answer is an exception of ours that says what is wrong, and nothing runs."""

import math
from typing import Any, Callable, Dict, List, Tuple, get_type_hints

import pytest

import tool_executor
from tool_executor import (
    BackendConfig,
    Bind,
    Config,
    ConfigError,
    FleetConfig,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    ImagesConfig,
    LocalConfig,
    Outcome,
    PolicyConfig,
    SlotLimits,
    SlurmConfig,
    SlurmJobs,
    ToolCall,
    ToolExecutor,
    ToolExecutorError,
    ToolsConfig,
    ToolServerConfig,
)



def nested(depth: int) -> Any:
    """Arrays in arrays."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


CYCLE: Dict[str, Any] = {}
CYCLE["self"] = CYCLE

CALLS: List[Tuple[Any, ...]] = [
    (None, "echo"),
    (3, "echo"),
    (b"t", "echo"),
    ("\ud800", "echo"),
    ("t", None),
    ("t", 3),
    ("t", "\udfff"),
    ("t", "echo", [1]),
    ("t", "echo", "text"),
    ("t", "echo", 3),
    ("t", "echo", {1: 2}),
    ("t", "echo", {"x": math.nan}),
    ("t", "echo", {"x": [math.inf]}),
    ("t", "echo", {"x": 2**64}),
    ("t", "echo", {"x": [{"y": -(2**63) - 1}]}),
    ("t", "echo", {"x": 10**400}),
    ("t", "echo", {"x": object()}),
    ("t", "echo", {"x": b"bytes"}),
    ("t", "echo", {"x": {1, 2}}),
    ("t", "echo", {"x": "\ud800"}),
    ("t", "echo", {"\udc00": 1}),
    ("t", "echo", {"x": nested(100_000)}),
    ("t", "echo", CYCLE),
    ("t", "echo", {}, "5"),
    ("t", "echo", {}, True),
    ("t", "echo", {}, math.nan),
    ("t", "echo", {}, math.inf),
    ("t", "echo", {}, -1),
    ("t", "echo", {}, 0.5),
    ("t", "echo", {}, 601),
    ("t", "echo", {}, 10**400),
]


@pytest.mark.parametrize("call", CALLS, ids=[f"{number}" for number in range(len(CALLS))])
def test_a_call_that_makes_no_sense_is_refused(door: ToolExecutor, call: Tuple[Any, ...]) -> None:
    functions: List[Callable[..., Any]] = [door.execute, door.submit]
    for function in functions:
        with pytest.raises(InvalidArgumentError) as refused:
            function(*call)
        assert str(refused.value)
    assert door.outstanding == 0 and door.stats()["total_requests"] == 0
    assert door.execute("t", "echo", {"text": "still works"}).success


def test_types_are_named(door: ToolExecutor) -> None:
    cases: List[Tuple[Tuple[Any, ...], str]] = [
        ((3, "echo"), "trajectory_id must be a str, and is of type int"),
        (("t", 3), "the tool's name must be a str"),
        (("t", "echo", [1]), "arguments must be a dict, and is of type list"),
        (("t", "echo", {1: 2}), "must be text, and 1 is of type int"),
        (("t", "echo", {"x": b""}), "bytes"),
        (("t", "echo", {}, "5"), "timeout must be a number of seconds, and is of type str"),
    ]
    for arguments, words in cases:
        function: Callable[..., Any] = door.execute
        with pytest.raises(InvalidArgumentTypeError) as refused:
            function(*arguments)
        assert words in str(refused.value)
        assert isinstance(refused.value, (TypeError, ValueError, ToolExecutorError))


def test_numbers_of_64_bits_arrive(door: ToolExecutor) -> None:
    for number in (2**64 - 1, -(2**63), 2**63, 123456789012345678901234567890 % 2**64):
        assert door.execute("t", "echo", {"text": number}).output == str(number)
    text = "9" * 400
    assert door.execute("t", "echo", {"text": text}).output == text


def test_calls_as_they_come_from_elsewhere_are_refused(door: ToolExecutor) -> None:
    calls: List[Any] = [None, 3, "text", [], {}, {"nonsense": 1}, {"name": 3}, object()]
    calls.append({"name": "echo", "extra": 1})
    for call in calls:
        function: Callable[..., Any] = door.execute_call
        with pytest.raises(InvalidArgumentError):
            function("t", call)
    # What only the model can have done is a result.
    result = door.execute_call("t", ToolCall("echo", ["no", "dict"]))
    assert result.outcome is Outcome.INVALID_CALL
    messages: List[Any] = [None, [], "text", 7]
    for message in messages:
        with pytest.raises(InvalidArgumentError):
            door.parse_message(message)
    texts: List[Any] = [None, b"x", "\ud800"]
    for text in texts:
        with pytest.raises(InvalidArgumentError):
            door.parse(text)


def test_ids_that_are_too_long_or_empty_are_results(door: ToolExecutor) -> None:
    for trajectory_id in ("", "x" * 513):
        assert door.execute(trajectory_id, "echo").outcome is Outcome.INVALID_CALL


def test_other_arguments_are_checked(door: ToolExecutor) -> None:
    read: Callable[..., Any] = door.read_artifact
    wrong: List[Callable[[], Any]] = [
        lambda: read("t", 3),
        lambda: read("t", "f", offset=-1),
        lambda: read("t", "f", max_bytes="3"),
        lambda: read("t", "f", offset=2**70),
        lambda: read(None, "f"),
        lambda: door.next_completion(math.nan),
        lambda: door.next_completion("1"),  # type: ignore[arg-type]
        lambda: door.close(math.nan),
        lambda: door.close(-1),
        lambda: door.release(7),  # type: ignore[arg-type]
        lambda: door.cancel("\ud800"),
        lambda: door.trajectory(7),  # type: ignore[arg-type]
        lambda: ToolExecutor(completions_capacity=0),
        lambda: ToolExecutor(completions_capacity=2**30),
        lambda: ToolExecutor(completions_capacity="1"),  # type: ignore[arg-type]
    ]
    for use in wrong:
        with pytest.raises(InvalidArgumentError):
            use()


def refused(*arguments: Any, **settings: Any) -> str:
    function: Callable[..., Any] = ToolExecutor
    with pytest.raises(ConfigError) as error:
        function(*arguments, **settings)
    assert isinstance(error.value, ValueError)
    return str(error.value)


def test_a_typo_in_the_configuration_is_told_with_the_keys_that_there_are() -> None:
    said = refused({"local": {"slot": 3}})
    assert "`slot`" in said and "`slots`" in said and '"local"' in said
    assert "`queue_capacity`" in refused(queue_capacty=3)
    assert 'in "local": invalid type: string "3"' in refused(local={"slots": "3"})
    configs: List[Any] = [3, "x", [], [("local", {})]]
    for config in configs:
        assert "must be a dict" in refused(config)
    for local in [3, {"slots": math.nan}, {"slots": -1}, {"slots": 2**70}, {"slots": object()}]:
        assert refused(local=local)
    assert "given twice" in refused({"local": {}}, local={})
    assert "give one of" in refused(local={}, fleet={"urls": ["http://x"]})
    assert refused({1: 2})
    assert "hex escape" in refused({"\ud800": 2})


SECTIONS: List[Tuple[Any, Callable[[Any], Any]]] = [
    (Config, lambda wrong: wrong),
    (LocalConfig, lambda wrong: {"local": wrong}),
    (Bind, lambda wrong: {"local": {"binds": [{"source": "/usr", **wrong}]}}),
    (SlotLimits, lambda wrong: {"local": {"limits": wrong}}),
    (ImagesConfig, lambda wrong: {"local": {"images": wrong}}),
    (FleetConfig, lambda wrong: {"fleet": {"urls": ["http://x"], **wrong}}),
    (SlurmConfig, lambda wrong: {"slurm": wrong}),
    (BackendConfig, lambda wrong: {"backends": [{"local": {"slots": 1}, **wrong}]}),
    (SlurmJobs, lambda wrong: {"slurm": {"jobs": wrong}}),
    (ToolServerConfig, lambda wrong: {"tool_server": {"url": "http://x", **wrong}}),
    (PolicyConfig, lambda wrong: {"policy": wrong}),
    (ToolsConfig, lambda wrong: {"tools": wrong}),
]


@pytest.mark.parametrize("typed, place", SECTIONS, ids=[typed.__name__ for typed, _ in SECTIONS])
def test_the_types_of_the_settings_are_those_of_the_library(typed: Any, place: Callable[[Any], Any]) -> None:
    """Whoever adds a setting to the library adds it to python/tool_executor/_config.py, too."""
    said = refused(place({"nonsense": 1}))
    known = set(said.partition("expected")[2].split("`")[1::2])
    assert known == set(get_type_hints(typed)), said


def test_exceptions_are_of_one_family() -> None:
    for name in tool_executor.__all__:
        one = getattr(tool_executor, name)
        if isinstance(one, type) and issubclass(one, BaseException):
            assert issubclass(one, ToolExecutorError) and one.__doc__
