"""tool-executor for Python: the C ABI by ctypes, in one file, for Python 3.8 and later.

For those who cannot install the package `tool_executor` (docs/python.md), which has types, asyncio,
tools of plain functions, and waits that Ctrl-C ends.

    with ToolExecutor({"local": {"slots": 8}}) as executor:
        print(executor.execute("agent-1", "bash", {"command": "echo hello"}).output)

        for agent in range(100):
            executor.submit(f"agent-{agent}", "bash", {"command": "pwd"}, tag=agent)
        for result in executor.completions():
            print(result.tag, result.outcome)

Other Python threads run while one waits here. The library is looked for in TOOL_EXECUTOR_LIBRARY, else
where the system looks for libtool_executor.so. After os.fork() a child cannot use an executor of its
parent's: use multiprocessing's "spawn".
"""

import ctypes
import json
import os
import threading
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int32, c_size_t, c_uint8, c_uint64
from ctypes import c_void_p
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple, Union

__all__ = ["Error", "Reply", "Result", "ToolCall", "ToolExecutor", "parse_calls", "version"]

OK, TIMEOUT, CLOSED, QUEUE_FULL, COMPLETIONS_FULL = 0, 1, 2, 3, 4
_ABI = 1
_FOREVER = float("inf")


class _Buffer(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("len", c_size_t)]


class _Result(ctypes.Structure):
    _fields_ = [
        ("reserved", c_uint64), ("tag", c_uint64), ("outcome", c_int32), ("success", c_uint8),
        ("may_have_executed", c_uint8), ("model_attributable", c_uint8),
        ("trajectory", c_void_p), ("trajectory_len", c_size_t),
        ("uniq_id", c_void_p), ("uniq_id_len", c_size_t),
        ("output", c_void_p), ("output_len", c_size_t),
        ("error", c_void_p), ("error_len", c_size_t),
        ("queue_s", c_double), ("slot_s", c_double), ("exec_s", c_double),
    ]


class _Call(ctypes.Structure):
    _fields_ = [
        ("name", c_void_p), ("name_len", c_size_t),
        ("trajectory", c_void_p), ("trajectory_len", c_size_t),
        ("uniq_id", c_void_p), ("uniq_id_len", c_size_t),
        ("arguments", c_void_p), ("arguments_len", c_size_t),
        ("remaining_s", c_double),
    ]


_TOOL = ctypes.CFUNCTYPE(c_int32, c_void_p, POINTER(_Call), c_void_p)
_FREE = ctypes.CFUNCTYPE(None, c_void_p)
_TEXT = [c_char_p, c_size_t]
_RESULT = POINTER(_Result)

_FUNCTIONS: Dict[str, Tuple[Any, List[Any]]] = {
    "te_version": (c_char_p, []),
    "te_abi_version": (ctypes.c_uint32, []),
    "te_last_error": (c_char_p, []),
    "te_status_name": (c_char_p, [c_int32]),
    "te_outcome_name": (c_char_p, [c_int32]),
    "te_buffer_free": (None, [POINTER(_Buffer)]),
    "te_tools_new": (c_int32, [POINTER(c_void_p)]),
    "te_tools_add": (c_int32, [c_void_p, *_TEXT, _TOOL, c_void_p, c_void_p]),
    "te_tools_free": (None, [c_void_p]),
    "te_tool_reply_ok": (c_int32, [c_void_p, *_TEXT]),
    "te_tool_reply_error": (c_int32, [c_void_p, *_TEXT]),
    "te_tool_reply_wanted": (c_int32, [c_void_p, POINTER(c_int32)]),
    "te_tool_reply_free": (None, [c_void_p]),
    "te_executor_new": (c_int32, [*_TEXT, c_void_p, POINTER(c_void_p)]),
    "te_executor_close": (c_int32, [c_void_p, c_double, POINTER(c_uint64), POINTER(c_int32)]),
    "te_executor_free": (None, [c_void_p]),
    "te_describe": (c_int32, [c_void_p, POINTER(_Buffer)]),
    "te_stats": (c_int32, [c_void_p, POINTER(_Buffer)]),
    "te_execute": (c_int32, [c_void_p, *_TEXT, *_TEXT, POINTER(_RESULT)]),
    "te_submit": (c_int32, [c_void_p, *_TEXT, *_TEXT, c_uint64, c_void_p]),
    "te_cancel_trajectory": (c_int32, [c_void_p, *_TEXT]),
    "te_release": (c_int32, [c_void_p, *_TEXT, c_int32]),
    "te_submit_release": (c_int32, [c_void_p, *_TEXT, c_int32]),
    "te_parse_calls": (c_int32, [*_TEXT, POINTER(_Buffer)]),
    "te_parse_text": (c_int32, [c_void_p, *_TEXT, *_TEXT, POINTER(_Buffer)]),
    "te_parse_message": (c_int32, [c_void_p, *_TEXT, *_TEXT, POINTER(_Buffer)]),
    "te_queue_new": (c_int32, [c_void_p, c_size_t, POINTER(c_void_p)]),
    "te_queue_next": (c_int32, [c_void_p, c_double, POINTER(_RESULT)]),
    "te_queue_fd": (c_int32, [c_void_p, POINTER(c_int)]),
    "te_queue_outstanding": (c_int32, [c_void_p, POINTER(c_size_t)]),
    "te_queue_free": (None, [c_void_p]),
    "te_result_metadata": (c_int32, [_RESULT, POINTER(c_void_p), POINTER(c_size_t)]),
    "te_result_xml": (c_int32, [_RESULT, POINTER(c_void_p), POINTER(c_size_t)]),
    "te_result_message": (c_int32, [_RESULT, *_TEXT, POINTER(_Buffer)]),
    "te_result_free": (None, [_RESULT]),
    "te_artifact_read": (c_int32, [c_void_p, *_TEXT, *_TEXT, POINTER(_Buffer), POINTER(_Buffer)]),
    "te_artifact_list": (c_int32, [c_void_p, *_TEXT, *_TEXT, POINTER(_Buffer)]),
    "te_artifact_archive": (c_int32, [c_void_p, *_TEXT, *_TEXT, POINTER(_Buffer), POINTER(_Buffer)]),
}


def _load() -> ctypes.CDLL:
    name = os.environ.get("TOOL_EXECUTOR_LIBRARY") or "libtool_executor.so"
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        raise ImportError(
            f"the library of tool-executor cannot be loaded: {error}. Set TOOL_EXECUTOR_LIBRARY to "
            "libtool_executor.so, which `cargo build --release` leaves in target/release, or install "
            "it by packaging/install-c"
        ) from error
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    if library.te_abi_version() != _ABI:
        raise ImportError(f"the library's ABI is {library.te_abi_version()}, this module's {_ABI}")
    return library


_lib = _load()


class Error(Exception):
    """What a function says that did not do what it was asked to do."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.name: str = _lib.te_status_name(status).decode()
        super().__init__(f"{self.name}: {_lib.te_last_error().decode(errors='replace')}")


def _check(status: int) -> None:
    if status != OK:
        raise Error(status)


def _text(text: Union[str, bytes]) -> Tuple[bytes, int]:
    data = text.encode() if isinstance(text, str) else text
    return data, len(data)


def _json(value: Any) -> Tuple[bytes, int]:
    return _text(json.dumps(value))


def _take(buffer: _Buffer) -> bytes:
    try:
        return ctypes.string_at(buffer.data, buffer.len) if buffer.len else b""
    finally:
        _lib.te_buffer_free(byref(buffer))


def version() -> str:
    """The library's version."""
    return _lib.te_version().decode()


def parse_calls(model_text: str) -> List[Dict[str, Any]]:
    """The Hermes and GLM calls in what a model wrote; `ToolExecutor.parse` reads all formats."""
    buffer = _Buffer()
    _check(_lib.te_parse_calls(*_text(model_text), byref(buffer)))
    return json.loads(_take(buffer))


class Result(NamedTuple):
    """What a call gave."""

    tag: int
    trajectory_id: str
    uniq_id: str
    outcome: str
    success: bool
    output: str
    error: str
    metadata: Dict[str, Any]
    may_have_executed: bool
    model_attributable: bool
    queue_s: float
    slot_s: float
    exec_s: float
    xml: str
    message: Optional[Dict[str, Any]] = None


def _result(pointer: Any, form: Optional[str]) -> Result:
    try:
        r = pointer.contents
        text, size = c_void_p(), c_size_t()
        _check(_lib.te_result_metadata(pointer, byref(text), byref(size)))
        metadata = json.loads(ctypes.string_at(text, size.value))
        _check(_lib.te_result_xml(pointer, byref(text), byref(size)))
        message = None
        if form is not None:
            buffer = _Buffer()
            _check(_lib.te_result_message(pointer, *_text(form), byref(buffer)))
            message = json.loads(_take(buffer))
        return Result(
            tag=r.tag,
            trajectory_id=ctypes.string_at(r.trajectory, r.trajectory_len).decode(),
            uniq_id=ctypes.string_at(r.uniq_id, r.uniq_id_len).decode(),
            outcome=_lib.te_outcome_name(r.outcome).decode(),
            success=bool(r.success),
            output=ctypes.string_at(r.output, r.output_len).decode(),
            error=ctypes.string_at(r.error, r.error_len).decode(),
            metadata=metadata,
            may_have_executed=bool(r.may_have_executed),
            model_attributable=bool(r.model_attributable),
            queue_s=r.queue_s,
            slot_s=r.slot_s,
            exec_s=r.exec_s,
            xml=ctypes.string_at(text, size.value).decode(),
            message=message,
        )
    finally:
        _lib.te_result_free(pointer)


class ToolCall(NamedTuple):
    """A call of a tool of the program's own."""

    name: str
    trajectory_id: str
    uniq_id: str
    arguments: Dict[str, Any]
    remaining_s: float


class Reply:
    """The answer that a tool owes: given at once, or later from any thread, once."""

    def __init__(self, handle: int) -> None:
        self._handle: Optional[int] = handle
        self._lock = threading.Lock()

    def _answer(self, function: Any, text: str) -> None:
        with self._lock:
            if self._handle is None:
                raise RuntimeError("this call was answered before")
            _check(function(self._handle, *_text(text)))
            handle, self._handle = self._handle, None
        _lib.te_tool_reply_free(handle)

    def ok(self, output: str) -> None:
        """Answers with the output of a success."""
        self._answer(_lib.te_tool_reply_ok, output)

    def error(self, error: str) -> None:
        """Answers with one line that says why the tool failed."""
        self._answer(_lib.te_tool_reply_error, error)

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits for the answer."""
        with self._lock:
            wanted = c_int32()
            if self._handle is not None:
                _check(_lib.te_tool_reply_wanted(self._handle, byref(wanted)))
            return bool(wanted.value)

    def __del__(self) -> None:
        handle, self._handle = getattr(self, "_handle", None), None
        if handle is not None:
            _lib.te_tool_reply_free(handle)


Tool = Callable[[ToolCall, Reply], Optional[str]]


def _tool_function(tool: Tool) -> Any:
    def run(_user: Any, pointer: Any, handle: int) -> int:
        reply = Reply(handle)
        try:
            c = pointer.contents
            call = ToolCall(
                ctypes.string_at(c.name, c.name_len).decode(),
                ctypes.string_at(c.trajectory, c.trajectory_len).decode(),
                ctypes.string_at(c.uniq_id, c.uniq_id_len).decode(),
                json.loads(ctypes.string_at(c.arguments, c.arguments_len)),
                c.remaining_s,
            )
            output = tool(call, reply)
            if output is not None:
                reply.ok(output)
        except Exception as error:  # the tool's, whatever it is, is its call's end
            try:
                reply.error(f"{type(error).__name__}: {error}")
            except (Error, RuntimeError):
                pass
        return 0

    return _TOOL(run)


class ToolExecutor:
    """The executor. To be closed, best by `with`. Any number of threads may use it.

    `config` is that of te_executor_new. `tools` maps a tool's name, or its schema as JSON, to a function,
    which returns its output, or None to answer later by its `Reply`. `capacity` bounds the calls that were
    submitted and not fetched. With a `message_form` – "openai", "openai-responses", "anthropic",
    "openai-function-call", "sharegpt" – each result has its `message` in that form, with the call's id.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        tools: Optional[Mapping[str, Tool]] = None,
        capacity: int = 65536,
        message_form: Optional[str] = None,
    ) -> None:
        self._message_form = message_form
        self._executor, self._queue = c_void_p(), c_void_p()
        self._functions: List[Any] = []  # as long as the executor may call them
        handle = c_void_p()
        _check(_lib.te_tools_new(byref(handle)))
        try:
            for schema, tool in (tools or {}).items():
                if not schema.lstrip().startswith("{"):
                    schema = json.dumps({"name": schema})
                function = _tool_function(tool)
                self._functions.append(function)
                _check(_lib.te_tools_add(handle, *_text(schema), function, None, None))
            _check(_lib.te_executor_new(*_json(config), handle, byref(self._executor)))
        finally:
            _lib.te_tools_free(handle)
        try:
            _check(_lib.te_queue_new(self._executor, capacity, byref(self._queue)))
        except Error:
            _lib.te_executor_free(self._executor)
            raise

    def __enter__(self) -> "ToolExecutor":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        # Handles are freed when nobody can be inside a function with them.
        executor, queue = getattr(self, "_executor", None), getattr(self, "_queue", None)
        if queue:
            _lib.te_queue_free(queue)
        if executor:
            _lib.te_executor_free(executor)

    @staticmethod
    def _call(name: str, arguments: Any, timeout_s: Optional[float]) -> Dict[str, Any]:
        call = {"name": name, "arguments": {} if arguments is None else arguments}
        return call if timeout_s is None else {**call, "timeout_s": timeout_s}

    def execute(
        self, trajectory_id: str, name: str, arguments: Any = None, timeout_s: Optional[float] = None
    ) -> Result:
        """Runs a call and waits for its result. A tool that fails is a result."""
        return self.execute_call(trajectory_id, self._call(name, arguments, timeout_s))

    def execute_call(self, trajectory_id: str, call: Mapping[str, Any]) -> Result:
        """The same with a call as `parse` or `parse_message` gives it, or OpenAI's or Anthropic's API."""
        result = _RESULT()
        _check(_lib.te_execute(self._executor, *_text(trajectory_id), *_json(call), byref(result)))
        return _result(result, self._message_form)

    def parse(self, model_text: str, format: str = "auto") -> List[Dict[str, Any]]:
        """The tool calls in a whole text that a model wrote, in their order.

        Each may be given to `execute_call` and `submit_call`; one that cannot be read is answered
        "invalid_call", with the place and the reason. te_parse_text names the formats.
        """
        return self._parse(_lib.te_parse_text, _text(model_text), format)

    def parse_message(self, message: Mapping[str, Any], format: str = "auto") -> List[Dict[str, Any]]:
        """The same of a message of OpenAI's (chat, Responses), Anthropic's or ShareGPT's."""
        return self._parse(_lib.te_parse_message, _json(message), format)

    def _parse(self, function: Any, what: Tuple[bytes, int], format: str) -> List[Dict[str, Any]]:
        buffer = _Buffer()
        _check(function(self._executor, *what, *_text(format), byref(buffer)))
        return json.loads(_take(buffer))

    def submit(
        self,
        trajectory_id: str,
        name: str,
        arguments: Any = None,
        tag: int = 0,
        timeout_s: Optional[float] = None,
    ) -> None:
        """Submits a call; its result comes by `next` or `completions`. Does not wait."""
        self.submit_call(trajectory_id, self._call(name, arguments, timeout_s), tag)

    def submit_call(self, trajectory_id: str, call: Mapping[str, Any], tag: int = 0) -> None:
        """The same with a call as `parse` gives it, or OpenAI's or Anthropic's API."""
        _check(_lib.te_submit(self._queue, *_text(trajectory_id), *_json(call), tag, None))

    def next(self, timeout_s: float = _FOREVER) -> Optional[Result]:
        """The next completion; None if none comes in time, or none will come."""
        result = _RESULT()
        status = _lib.te_queue_next(self._queue, timeout_s, byref(result))
        if status in (TIMEOUT, CLOSED):
            return None
        _check(status)
        return _result(result, self._message_form)

    def completions(self, timeout_s: float = _FOREVER) -> Iterator[Result]:
        """Completions until nothing is outstanding; TimeoutError if none comes for `timeout_s`."""
        while self.outstanding > 0:
            result = self.next(timeout_s)
            if result is None:
                if self.outstanding > 0:
                    raise TimeoutError(f"no completion for {timeout_s} s")
                return
            yield result

    @property
    def outstanding(self) -> int:
        """How many calls were submitted and not fetched."""
        outstanding = c_size_t()
        _check(_lib.te_queue_outstanding(self._queue, byref(outstanding)))
        return outstanding.value

    def fileno(self) -> int:
        """Readable as long as completions wait: for select and asyncio's add_reader."""
        fd = c_int()
        _check(_lib.te_queue_fd(self._queue, byref(fd)))
        return fd.value

    def cancel(self, trajectory_id: str) -> None:
        """Cancels everything of a trajectory that has not ended."""
        _check(_lib.te_cancel_trajectory(self._executor, *_text(trajectory_id)))

    def release(self, trajectory_id: str, reset: bool = True, wait: bool = True) -> None:
        """Gives up a trajectory's slot, after its earlier calls."""
        release = _lib.te_release if wait else _lib.te_submit_release
        _check(release(self._executor, *_text(trajectory_id), reset))

    def read(self, trajectory_id: str, path: str, **request: Any) -> bytes:
        """A file of a trajectory's workspace, up to 5,000,000 bytes."""
        content, request = _Buffer(), {"path": path, **request}
        trajectory = _text(trajectory_id)
        _check(_lib.te_artifact_read(
            self._executor, *trajectory, *_json(request), byref(content), None))
        return _take(content)

    def list(self, trajectory_id: str, **request: Any) -> Dict[str, Any]:
        """A listing of a trajectory's workspace."""
        listing = _Buffer()
        _check(_lib.te_artifact_list(
            self._executor, *_text(trajectory_id), *_json(request), byref(listing)))
        return json.loads(_take(listing))

    def archive(self, trajectory_id: str, **request: Any) -> bytes:
        """A .tar.gz of a trajectory's workspace."""
        archive = _Buffer()
        _check(_lib.te_artifact_archive(
            self._executor, *_text(trajectory_id), *_json(request), byref(archive), None))
        return _take(archive)

    def stats(self) -> Dict[str, Any]:
        """Counters and measurements."""
        stats = _Buffer()
        _check(_lib.te_stats(self._executor, byref(stats)))
        return json.loads(_take(stats))

    def describe(self) -> Dict[str, Any]:
        """What the executor is: its backend, its tools, and how a model is told of them."""
        description = _Buffer()
        _check(_lib.te_describe(self._executor, byref(description)))
        return json.loads(_take(description))

    def close(self, timeout_s: float = -1.0) -> int:
        """Ends the executor; how many calls were cancelled. Negative: the configured time."""
        cancelled = c_uint64()
        _check(_lib.te_executor_close(self._executor, timeout_s, byref(cancelled), None))
        return cancelled.value
