"""Tools that are functions of the program: how they are described, and how they are run."""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import itertools
import json
import threading
import time
import types
import typing
from ctypes import byref, c_int32, c_void_p
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Tuple, Union, cast, overload

from . import _native
from ._errors import InternalError, InvalidToolError, ToolExecutorError
from ._native import quick
from ._workers import Workers

__all__ = ["Tool", "ToolContext", "ToolError", "tool"]


class ToolError(ToolExecutorError):
    """Raised by a tool that has something against its call; the model is shown the text.

    The result is `Outcome.TOOL_ERROR`, which is the model's doing. Any other exception means that
    the tool is broken: `Outcome.EXTERNAL_FAILED`, which is not.
    """


@dataclass(frozen=True)
class ToolContext:
    """What a tool may know of its call: it is given to a parameter with this annotation."""

    name: str
    """The tool's name."""
    trajectory_id: str
    """Whose call it is."""
    uniq_id: str
    """The call's id."""
    deadline: float
    """When the call's time is up, on the clock of `time.monotonic()`."""
    _reply: Any = field(repr=False, compare=False, default=None)

    @property
    def remaining_s(self) -> float:
        """Seconds until the call's time is up."""
        return max(0.0, self.deadline - time.monotonic())

    @property
    def cancelled(self) -> bool:
        """Whether nothing waits for the answer any more: a tool that takes long looks now and then."""
        return self._reply is not None and not self._reply.wanted


@dataclass(frozen=True)
class Tool:
    """A function that models may call, with what they are told of it.

    What is not given is taken from the function: its name, its docstring, the annotations of its
    parameters. It is called with the arguments by name, and returns text, or what is JSON.
    """

    function: Callable[..., Any]
    name: str = ""
    description: str = ""
    parameters: Optional[Mapping[str, Mapping[str, Any]]] = None
    """JSON Schema of each parameter, such as `{"a": {"type": "number"}}`."""
    required: Optional[Iterable[str]] = None
    """The names of the parameters that every call must give."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        return self.function(*args, **kwargs)


@overload
def tool(function: Callable[..., Any]) -> Tool: ...
@overload
def tool(
    *,
    name: str = "",
    description: str = "",
    parameters: Optional[Mapping[str, Mapping[str, Any]]] = None,
    required: Optional[Iterable[str]] = None,
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Optional[Callable[..., Any]] = None,
    *,
    name: str = "",
    description: str = "",
    parameters: Optional[Mapping[str, Mapping[str, Any]]] = None,
    required: Optional[Iterable[str]] = None,
) -> Any:
    """Makes a `Tool` of a function: `@tool`, or `@tool(name="search")`."""

    def make(function: Callable[..., Any]) -> Tool:
        return Tool(function, name, description, parameters, required)

    return make if function is None else make(function)


ToolLike = Union[Tool, Callable[..., Any]]
ToolsLike = Union[Mapping[str, ToolLike], Iterable[ToolLike]]
"""Functions and `Tool`s; or a dict of them by name."""


_UNIONS = (Union, getattr(types, "UnionType", Union))
_PLAIN: Dict[Any, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    dict: "object",
    list: "array",
    tuple: "array",
}


def _schema_of(annotation: Any) -> Dict[str, Any]:
    """JSON Schema of an annotation, as far as there is one; `{}` takes everything. A text in
    `Annotated[...]` is the parameter's description."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        said = [one for one in arguments[1:] if isinstance(one, str)]
        return {**_schema_of(arguments[0]), **({"description": said[0]} if said else {})}
    if origin in _UNIONS:
        some = [one for one in arguments if one is not type(None)]
        if len(some) == 1:
            return _schema_of(some[0])
        plain = [kind for kind in (_schema_of(one).get("type") for one in some) if kind]
        return {"type": plain} if len(plain) == len(some) else {}
    if origin is typing.Literal:
        kinds = {_PLAIN.get(type(one)) for one in arguments}
        only = kinds.pop() if len(kinds) == 1 else None
        return {"enum": list(arguments), **({"type": only} if only else {})}
    kind = _PLAIN.get(origin or annotation)
    if kind is None:
        return {}
    if kind == "array" and len(arguments) >= 1 and origin is list:
        return {"type": "array", "items": _schema_of(arguments[0])}
    return {"type": kind}


class Described:
    """A tool as the library is told of it, and how its function takes its arguments."""

    def __init__(self, of: Any, name: Optional[str]) -> None:
        described = of if isinstance(of, Tool) else Tool(of)
        function = described.function
        if not callable(function):
            kind = type(function).__name__
            text = f"a tool must be a function or a Tool, and is of type {kind}: {function!r:.80}"
            raise InvalidToolError(text)
        self.function = function
        self.name: Any = name or described.name or getattr(function, "__name__", "")
        if type(self.name) is not str or not self.name or self.name == "<lambda>":
            text = f"{function!r:.80} has no name: Tool(function, name=...) gives it one"
            raise InvalidToolError(text)
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)
        )
        self.context, known, required, self.takes_all = self._signature(function)
        parameters = known if described.parameters is None else dict(described.parameters)
        self.known = set(parameters) | set(known)
        must = required if described.required is None else list(described.required)
        # That of an object would be its class's.
        own = inspect.getdoc(function) if inspect.isroutine(function) else None
        schema: Dict[str, Any] = {
            "name": self.name,
            "description": described.description or own or "",
            "parameters": parameters,
            "required": must,
        }
        try:
            self.schema = _native.json_of(schema, f"the schema of the tool {self.name!r}")
        except ToolExecutorError as error:
            raise InvalidToolError(str(error)) from error

    def _signature(
        self, function: Callable[..., Any]
    ) -> Tuple[Optional[str], Dict[str, Dict[str, Any]], List[str], bool]:
        """Which parameter takes the context; the others; those that must be given; whether it
        takes any others."""
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            return None, {}, [], True
        try:
            hints = typing.get_type_hints(function, include_extras=True)
        except Exception:  # of names that are not there at run time
            hints = {}
        context: Optional[str] = None
        known: Dict[str, Dict[str, Any]] = {}
        required: List[str] = []
        takes_all = False
        for parameter in signature.parameters.values():
            annotation: Any = hints.get(parameter.name, parameter.annotation)
            if parameter.kind is parameter.VAR_KEYWORD:
                takes_all = True
            elif parameter.kind is parameter.VAR_POSITIONAL:
                continue
            elif parameter.kind is parameter.POSITIONAL_ONLY:
                raise InvalidToolError(
                    f"the tool {self.name!r} has the parameter {parameter.name!r} by position only, "
                    "and arguments have names"
                )
            elif annotation is ToolContext or annotation == "ToolContext":
                context = parameter.name
            else:
                known[parameter.name] = _schema_of(annotation)
                if parameter.default is parameter.empty:
                    required.append(parameter.name)
        return context, known, required, takes_all

    def arguments(self, given: Dict[str, Any], context: ToolContext) -> Dict[str, Any]:
        """How the function is to be called."""
        if not self.takes_all:
            unknown = [name for name in given if name not in self.known]
            if unknown:
                has = ", ".join(sorted(self.known)) or "none"
                raise ToolError(f"{self.name} has no argument {unknown[0]!r}; it has: {has}")
        if self.context is None:
            return given
        return {**given, self.context: context}


def describe_tools(tools: Optional[ToolsLike]) -> List[Described]:
    """Tools as they are given, described."""
    if tools is None:
        return []
    given: Any = tools
    if isinstance(given, Mapping):
        by_name = cast("Mapping[str, Any]", given)
        return [Described(function, name) for name, function in by_name.items()]
    if isinstance(given, (str, bytes, Tool)) or not isinstance(given, Iterable):
        kind = type(given).__name__
        raise InvalidToolError(f"tools must be a list of functions or a dict of them, not a {kind}")
    return [Described(function, None) for function in tools]


class Reply:
    """The answer that a tool owes: given once, from any thread."""

    def __init__(self, handle: int) -> None:
        self._handle: Optional[int] = handle
        self._lock = threading.Lock()

    def _answer(self, function: Any, text: str) -> None:
        try:
            data = text.encode()
        except UnicodeEncodeError:
            # Halves of surrogate pairs, which are no text for a model.
            data = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
        with self._lock:
            handle, self._handle = self._handle, None
        if handle is None:
            return
        # What comes too late is thrown away by the library.
        function(handle, data, len(data))
        quick.te_tool_reply_free(handle)

    def ok(self, output: str) -> None:
        """Answers with the output of a success."""
        self._answer(quick.te_tool_reply_ok, output)

    def error(self, text: str) -> None:
        """Says what the tool has against the call."""
        self._answer(quick.te_tool_reply_error, text or "ToolError")

    def fail(self, text: str) -> None:
        """Says that the tool is broken."""
        self._answer(quick.te_tool_reply_fail, text)

    def value(self, value: Any, name: str) -> None:
        """Answers with what a function has returned."""
        if isinstance(value, str):
            self.ok(value)
        elif value is None:
            self.ok("")
        else:
            try:
                text = json.dumps(value, ensure_ascii=False, allow_nan=False)
            except (TypeError, ValueError, RecursionError) as error:
                kind = type(value).__name__
                self.fail(f"the tool {name} returned neither text nor JSON, but a {kind}: {error}")
            else:
                self.ok(text)

    def raised(self, error: BaseException) -> None:
        """Answers with what a function has raised."""
        if isinstance(error, ToolError):
            self.error(str(error))
        else:
            self.fail(f"{type(error).__name__}: {error}")

    @property
    def wanted(self) -> bool:
        """Whether the answer is still waited for."""
        with self._lock:
            wanted = c_int32()
            if self._handle is not None:
                quick.te_tool_reply_wanted(self._handle, byref(wanted))
            return bool(wanted.value)

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None:
            quick.te_tool_reply_free(handle)


# How often it is looked whether an async tool's answer is still wanted.
_LOOK_S = 0.25


class Toolbox:
    """The tools of one executor, and the threads and the loop that run them.

    The library calls them on threads of its own, which only hand over here: a thread of the
    library must not be inside Python when the interpreter ends.
    """

    def __init__(self, tools: List[Described], threads: int) -> None:
        self._tools = tools
        self._workers = Workers("tool-executor-fn", threads)
        self._home: Optional[asyncio.AbstractEventLoop] = None
        self._own_loop: Optional[asyncio.AbstractEventLoop] = None
        self._lock = threading.Lock()
        self._keys: List[int] = []

    def run_async_tools_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Has async tools run on this loop, instead of one of our own."""
        self._home = loop

    def add_to(self, handle: c_void_p) -> None:
        """Adds the tools to a set of the library's."""
        for described in self._tools:
            key = next(_keys)
            _registered[key] = (self, described)
            self._keys.append(key)
            schema = described.schema
            _native.check(
                quick.te_tools_add(handle, schema, len(schema), _TRAMPOLINE, key, None)
            )

    def forget(self) -> None:
        """The library calls none of them any more."""
        for key in self._keys:
            _registered.pop(key, None)
        with self._lock:
            loop, self._own_loop = self._own_loop, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)

    def take(self, described: Described, call: Any, reply: Reply) -> None:
        """A call has come. On a thread of the library's: only hands over."""
        context = ToolContext(
            described.name,
            ctypes.string_at(call.trajectory, call.trajectory_len).decode(),
            ctypes.string_at(call.uniq_id, call.uniq_id_len).decode(),
            time.monotonic() + call.remaining_s,
            reply,
        )
        given = json.loads(ctypes.string_at(call.arguments, call.arguments_len))
        arguments = described.arguments(given, context)
        if described.is_async:
            self._start_task(described, arguments, context, reply)
        else:
            self._workers.submit(lambda: _run(described, arguments, reply))

    def _start_task(
        self, described: Described, arguments: Dict[str, Any], context: ToolContext, reply: Reply
    ) -> None:
        loop = self._home or self._loop()

        def begin() -> None:
            task = loop.create_task(_run_async(described, arguments, context, reply))
            _tasks.add(task)
            task.add_done_callback(_tasks.discard)

        try:
            loop.call_soon_threadsafe(begin)
        except RuntimeError as error:  # it is closed
            reply.fail(f"the event loop that runs the tool {described.name} is gone: {error}")

    def _loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._own_loop is None:
                loop = asyncio.new_event_loop()
                name = "tool-executor-asyncio"
                threading.Thread(target=_run_loop, args=[loop], name=name, daemon=True).start()
                self._own_loop = loop
            return self._own_loop


_keys = itertools.count(1)
_registered: Dict[int, Tuple[Toolbox, Described]] = {}
_tasks: "set[asyncio.Task[None]]" = set()  # a loop itself holds its tasks weakly


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


def _run(described: Described, arguments: Dict[str, Any], reply: Reply) -> None:
    if not reply.wanted:
        return  # it was cancelled, or is out of time, before a thread was free
    try:
        value = described.function(**arguments)
    except BaseException as error:
        reply.raised(error)
    else:
        reply.value(value, described.name)


async def _run_async(
    described: Described, arguments: Dict[str, Any], context: ToolContext, reply: Reply
) -> None:
    try:
        running = asyncio.ensure_future(described.function(**arguments))
        while not running.done():
            await asyncio.wait({running}, timeout=_LOOK_S)
            if not running.done() and not reply.wanted:
                running.cancel()
                await asyncio.wait({running}, timeout=_LOOK_S)
                return
        value = running.result()
    except asyncio.CancelledError:
        reply.fail("the task of the tool was cancelled")
    except BaseException as error:
        reply.raised(error)
        if not isinstance(error, Exception):
            raise
    else:
        reply.value(value, described.name)


def _called(key: Optional[int], call: Any, handle: int) -> int:
    reply = Reply(handle)
    try:
        toolbox, described = _registered[key or 0]
        toolbox.take(described, call.contents, reply)
    except ToolError as error:
        reply.raised(error)
    except BaseException as error:
        failure = InternalError(f"{type(error).__name__}: {error}")
        reply.fail(str(failure))
    return 0


_TRAMPOLINE = _native.TOOL_FUNCTION(_called)
