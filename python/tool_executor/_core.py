"""What both executors share: the library's handle, its life, and all that does not depend on how
one waits."""

from __future__ import annotations

import atexit
import base64
import ctypes
import io
import os
import time
import warnings
import weakref
from ctypes import byref, c_int, c_int32, c_uint64, c_void_p
from pathlib import Path
from typing import IO, Any, BinaryIO, Callable, Dict, List, Mapping, Optional, Tuple, Union, cast

from . import _native
from ._errors import (
    BeginError,
    ClosedError,
    ConfigError,
    ForkedError,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    SpecError,
)
from ._native import Buffer, check, quick, slow
from ._tools import Toolbox, ToolsLike, describe_tools
from ._types import Archive, ArchiveInfo, Artifact, ArtifactEntry, ArtifactList, CloseReport
from ._types import OUTCOMES, PutSummary, ToolCall, mapping_of

Content = Union[bytes, bytearray, memoryview, "os.PathLike[str]", BinaryIO]
"""What is put: bytes, a file of this host by its path, or a file that is open for reading."""

_DEFAULT_TOOL_THREADS = 16
_DEFAULT_QUEUE_TIMEOUT_S = 3600.0
_MOST_PLACES = 1 << 24


def merged(config: Any, settings: Mapping[str, Any]) -> Dict[str, Any]:
    """A configuration of a dict and keyword arguments, which must not contradict each other."""
    if config is None:
        whole: Dict[str, Any] = {}
    elif isinstance(config, Mapping):
        whole = dict(config)  # pyright: ignore[reportUnknownArgumentType]
    else:
        kind = type(config).__name__
        raise ConfigError(
            f"the configuration must be a dict such as {{'local': {{'slots': 8}}}}, and is of type {kind}"
        )
    for key, value in settings.items():
        if key in whole:
            raise ConfigError(f"{key!r} is given twice: in the configuration and as a keyword argument")
        whole[key] = value
    return whole


class _Borrowed:
    """A file that stays open."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __enter__(self) -> Any:
        return self._file

    def __exit__(self, *_: object) -> None:
        pass


def _opener(content: Any) -> Callable[[], Any]:
    """What opens the content of a put."""
    if isinstance(content, (bytes, bytearray, memoryview)):
        whole = bytes(content)  # pyright: ignore[reportUnknownArgumentType]
        return lambda: io.BytesIO(whole)
    if isinstance(content, os.PathLike):
        path: Any = content  # pyright: ignore[reportUnknownVariableType]

        def opened() -> IO[bytes]:
            return open(path, "rb")

        return opened
    if hasattr(content, "read"):
        return lambda: _Borrowed(content)
    kind = type(content).__name__
    raise InvalidArgumentTypeError(
        f"content must be bytes, a pathlib.Path or a binary file, and is of type {kind}; "
        "text is put as text.encode()"
    )


def _spec_of(spec: Any) -> bytes:
    """A spec in JSON. Of a file the content may be bytes."""
    if not isinstance(spec, Mapping):
        kind = type(spec).__name__
        raise SpecError(f"the spec must be a dict such as {{'env': {{'CI': '1'}}}}, and is of type {kind}")
    given = cast("Mapping[str, Any]", spec)
    whole: Dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if isinstance(whole.get("files"), (list, tuple)):
        whole["files"] = [_file_of(file) for file in whole["files"]]
    return _native.json_of(whole, "the spec")


def _file_of(file: Any) -> Any:
    if not isinstance(file, Mapping):
        return file
    plain = dict(cast("Mapping[str, Any]", file))
    if isinstance(plain.get("content"), (bytes, bytearray)):
        plain["base64"] = base64.b64encode(plain.pop("content")).decode()
    return plain


class Core:
    """One executor of the library's. Its handle is freed when nothing can be inside it any more."""

    def __init__(self, config: Mapping[str, Any], tools: Optional[ToolsLike]) -> None:
        self._handle = c_void_p()
        self._pid = os.getpid()
        self._closed = False
        self._config = _native.config_json(config)
        self._queue_timeout_s = _DEFAULT_QUEUE_TIMEOUT_S
        queue_timeout = config.get("queue_timeout_s")
        if isinstance(queue_timeout, (int, float)):
            self._queue_timeout_s = float(queue_timeout)
        threads = config.get("handler_threads")
        if not isinstance(threads, int) or threads < 1:
            threads = _DEFAULT_TOOL_THREADS
        self.toolbox = Toolbox(describe_tools(tools), threads)

    def start(self) -> None:
        """Starts it. Waits for its sandboxes."""
        tools, executor = c_void_p(), c_void_p()
        check(quick.te_tools_new(byref(tools)))
        try:
            self.toolbox.add_to(tools)
            config = self._config
            check(slow.te_executor_new(config, len(config), tools, byref(executor)))
        except InvalidArgumentError as error:
            # There is nothing else that it could be about.
            raise (error if type(error) is not InvalidArgumentError else ConfigError(str(error)))
        finally:
            quick.te_tools_free(tools)
        if self._closed:  # while it started
            slow.te_executor_free(executor)
            return
        self._handle = executor
        _living.add(self)

    @property
    def handle(self) -> c_void_p:
        """The library's handle."""
        if self._pid != os.getpid():
            raise ForkedError(
                f"this executor was made by the process {self._pid}, of which this one, {os.getpid()}, "
                "is a fork: it has none of the executor's threads. Make an executor in each process, "
                'and processes by multiprocessing\'s "spawn"'
            )
        if not self._handle:
            if self._closed:
                raise ClosedError("the executor is closed")
            raise ClosedError("the executor is not started: `async with executor:` starts it")
        return self._handle

    @property
    def is_closed(self) -> bool:
        """Whether it is closed, or closing."""
        return self._closed

    def is_ours(self) -> bool:
        """Whether this process has made it."""
        return self._pid == os.getpid()

    def close(self, timeout: Optional[float]) -> CloseReport:
        """Closes it, as te_executor_close()."""
        self._closed = True
        if not self._handle:
            return CloseReport(0, True)
        cancelled, ended = c_uint64(), c_int32()
        within = -1.0 if timeout is None else timeout
        check(slow.te_executor_close(self.handle, within, byref(cancelled), byref(ended)))
        return CloseReport(cancelled.value, bool(ended.value))

    def queue(self, capacity: int) -> "Queue":
        """A completion queue."""
        return Queue(self.handle, capacity)

    def wait_for_room(self, since: float) -> float:
        """How long to wait before a call is submitted again for which there was no room."""
        waited = time.monotonic() - since
        if waited > self._queue_timeout_s:
            check(_native.QUEUE_FULL)
        return min(0.05, max(0.001, waited / 4))

    # What does not wait for anything.

    def parse(self, text: str, format: str) -> List[ToolCall]:
        """The calls in a text."""
        what, form = _native.text_of(text, "the model's text"), _native.text_of(format, "format")
        buffer = Buffer()
        check(
            slow.te_parse_text(self.handle, what, len(what), form, len(form), byref(buffer))
        )
        return [ToolCall(**call) for call in _native.take_json(buffer)]

    def parse_message(self, message: Any, format: str) -> List[ToolCall]:
        """The calls in a message."""
        what = _native.json_of(dict(mapping_of(message, "the message")), "the message")
        form = _native.text_of(format, "format")
        buffer = Buffer()
        check(
            slow.te_parse_message(self.handle, what, len(what), form, len(form), byref(buffer))
        )
        return [ToolCall(**call) for call in _native.take_json(buffer)]

    def cancel(self, trajectory_id: str) -> None:
        """Cancels all of a trajectory."""
        text = trajectory_of(trajectory_id)
        check(slow.te_cancel_trajectory(self.handle, text, len(text)))

    def submit_begin(self, trajectory_id: str, spec: Mapping[str, Any]) -> None:
        """Begins a trajectory with a spec, without waiting for its slot."""
        text, what = trajectory_of(trajectory_id), _spec_of(spec)
        check(slow.te_submit_begin(self.handle, text, len(text), what, len(what)))

    def submit_release(self, trajectory_id: str, reset: bool) -> None:
        """Releases a trajectory in its turn."""
        text = trajectory_of(trajectory_id)
        check(slow.te_submit_release(self.handle, text, len(text), int(bool(reset))))

    def stats(self) -> Dict[str, Any]:
        """The counters."""
        buffer = Buffer()
        check(slow.te_stats(self.handle, byref(buffer)))
        stats: Dict[str, Any] = _native.take_json(buffer)
        return stats

    def describe(self) -> Dict[str, Any]:
        """What the executor is."""
        buffer = Buffer()
        check(slow.te_describe(self.handle, byref(buffer)))
        description: Dict[str, Any] = _native.take_json(buffer)
        return description

    # What waits: each gives a function for a thread that may. It holds the executor meanwhile.

    def _checked(self, trajectory_id: str) -> bytes:
        self.handle  # noqa: B018 -- says what is wrong here, not on that thread
        return trajectory_of(trajectory_id)

    def begin(
        self, trajectory_id: str, spec: Mapping[str, Any]
    ) -> Tuple[Callable[[], None], Callable[[], None]]:
        """Begins a trajectory with a spec, and waits for its slot; and what gives that up."""
        text, what = self._checked(trajectory_id), _spec_of(spec)
        given_up: List[bool] = []

        def give_up() -> None:
            # It may overtake the begin, which takes place all the same then.
            given_up.append(True)
            check(slow.te_cancel_trajectory(self._handle, text, len(text)))

        def run() -> None:
            if given_up:
                return
            outcome = c_int32()
            status = slow.te_begin(
                self._handle, text, len(text), what, len(what), byref(outcome)
            )
            try:
                check(status)
            except BeginError as error:
                if outcome.value != _native.OK:
                    name = _native.quick.te_outcome_name(outcome.value).decode()
                    error.outcome = OUTCOMES.get(name)
                raise
            finally:
                if given_up:
                    slow.te_submit_release(self._handle, text, len(text), 1)

        return run, give_up

    def release(self, trajectory_id: str, reset: bool) -> Callable[[], None]:
        """Releases a trajectory, and waits for that."""
        text = self._checked(trajectory_id)

        def run() -> None:
            check(slow.te_release(self._handle, text, len(text), int(bool(reset))))

        return run

    def read_artifact(
        self, trajectory_id: str, path: str, request: Mapping[str, Any]
    ) -> Callable[[], Artifact]:
        """Reads a file."""
        _native.text_of(path, "path")
        text = self._checked(trajectory_id)
        json, size = _native.optional_json({"path": path, **request})

        def run() -> Artifact:
            content, info = Buffer(), Buffer()
            check(
                slow.te_artifact_read(
                    self._handle, text, len(text), json, size, byref(content), byref(info)
                )
            )
            return Artifact(content=_native.take(content), **_native.take_json(info))

        return run

    def list_artifacts(
        self, trajectory_id: str, request: Mapping[str, Any]
    ) -> Callable[[], ArtifactList]:
        """Lists files."""
        text = self._checked(trajectory_id)
        json, size = _native.optional_json(request)

        def run() -> ArtifactList:
            listing = Buffer()
            check(slow.te_artifact_list(self._handle, text, len(text), json, size, byref(listing)))
            whole = _native.take_json(listing)
            entries = [ArtifactEntry(**entry) for entry in whole["entries"]]
            return ArtifactList(entries, whole["truncated"])

        return run

    def archive_artifacts(
        self, trajectory_id: str, request: Mapping[str, Any]
    ) -> Callable[[], Archive]:
        """Packs files."""
        text = self._checked(trajectory_id)
        json, size = _native.optional_json(request)

        def run() -> Archive:
            archive, info = Buffer(), Buffer()
            check(
                slow.te_artifact_archive(
                    self._handle, text, len(text), json, size, byref(archive), byref(info)
                )
            )
            return Archive(_native.take(archive), ArchiveInfo(**_native.take_json(info)))

        return run

    def copy_artifact(
        self, trajectory_id: str, path: str, to: "os.PathLike[str] | str"
    ) -> Callable[[], int]:
        """Copies a whole file to one of ours."""
        text, what = self._checked(trajectory_id), _native.text_of(path, "path")
        target = Path(to)

        def run() -> int:
            size = c_uint64()
            with target.open("wb") as file:
                check(
                    slow.te_artifact_copy(
                        self._handle, text, len(text), what, len(what), file.fileno(), byref(size)
                    )
                )
            return size.value

        return run

    def put(
        self, trajectory_id: str, path: str, content: Content, request: Mapping[str, Any]
    ) -> Callable[[], PutSummary]:
        """Puts a file, or what a tar stream has."""
        _native.text_of(path, "path")
        text = self._checked(trajectory_id)
        given = dict(request)
        opened = _opener(content)
        if isinstance(content, os.PathLike) and given.get("kind") != "tar" and given.get("mode") is None:
            given["mode"] = os.stat(content).st_mode & 0o777
        json, size = _native.optional_json({"path": path, **given})

        def run() -> PutSummary:
            info = Buffer()
            failed: List[BaseException] = []
            with opened() as source:

                def read(_user: Optional[int], place: int, most: int) -> int:
                    try:
                        piece = source.read(most)
                        if not isinstance(piece, bytes):
                            kind = type(piece).__name__
                            raise InvalidArgumentTypeError(
                                f"the file that is put must give bytes, and gives {kind}"
                            )
                        ctypes.memmove(place, piece, len(piece))
                        return len(piece)
                    except BaseException as error:
                        failed.append(error)
                        return -1

                status = slow.te_files_put(
                    self._handle,
                    text,
                    len(text),
                    json,
                    size,
                    _native.READ_FUNCTION(read),
                    None,
                    byref(info),
                )
            if failed:
                raise failed[0]
            check(status)
            return PutSummary(**_native.take_json(info))

        return run

    def put_tree(
        self, trajectory_id: str, directory: str, source: "os.PathLike[str] | str"
    ) -> Callable[[], PutSummary]:
        """Puts what is in a directory of this host."""
        text = self._checked(trajectory_id)
        target = _native.text_of(directory, "directory")
        # As the system names it.
        start = os.fsencode(source)

        def run() -> PutSummary:
            info = Buffer()
            check(
                slow.te_tree_put(
                    self._handle,
                    text,
                    len(text),
                    start,
                    len(start),
                    target,
                    len(target),
                    byref(info),
                )
            )
            return PutSummary(**_native.take_json(info))

        return run

    def get(self, trajectory_id: str, path: str, to: BinaryIO) -> Callable[[], int]:
        """Writes a whole file to one that is open."""
        text, what = self._checked(trajectory_id), _native.text_of(path, "path")
        if not hasattr(to, "write"):
            kind = type(to).__name__
            raise InvalidArgumentTypeError(f"to must be a path or a binary file, and is of type {kind}")

        def run() -> int:
            size = c_uint64()
            failed: List[BaseException] = []

            def write(_user: Optional[int], place: int, length: int) -> int:
                try:
                    piece = memoryview(ctypes.string_at(place, length))
                    while piece:
                        written = to.write(piece)
                        piece = piece[written:]
                    return 0
                except BaseException as error:
                    failed.append(error)
                    return 1

            status = slow.te_artifact_copy_to(
                self._handle,
                text,
                len(text),
                what,
                len(what),
                _native.WRITE_FUNCTION(write),
                None,
                byref(size),
            )
            if failed:
                raise failed[0]
            check(status)
            return size.value

        return run

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if not handle or not self.is_ours():
            return
        if not self._closed:
            warnings.warn("an executor was not closed", ResourceWarning, source=self)
            slow.te_executor_close(handle, 0.0, None, None)
        slow.te_executor_free(handle)
        self.toolbox.forget()


_living: "weakref.WeakSet[Core]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # No thread of the library may come into Python when there is none any more.
    for core in list(_living):
        if core.is_ours() and not core.is_closed:
            core.close(0.0)


def trajectory_of(trajectory_id: Any) -> bytes:
    """A trajectory's id as the library takes it."""
    return _native.text_of(trajectory_id, "trajectory_id")


def whole_number(value: Any, what: str, least: int, most: int) -> int:
    """A whole number between two others."""
    if isinstance(value, bool) or not isinstance(value, int):
        kind = type(value).__name__
        raise InvalidArgumentTypeError(f"{what} must be a whole number, and is of type {kind}")
    if not least <= value <= most:
        raise InvalidArgumentError(f"{what} is {value}; it must be from {least} to {most}")
    return value


BATCH = 64


class Queue:
    """A completion queue of the library's."""

    def __init__(self, executor: c_void_p, capacity: int) -> None:
        self.handle = c_void_p()
        self._pid = os.getpid()
        check(quick.te_queue_new(executor, capacity, byref(self.handle)))
        fd = c_int()
        check(quick.te_queue_fd(self.handle, byref(fd)))
        self.fd = fd.value
        self.buffer = Buffer()
        self.into = byref(self.buffer)

    def submit(self, trajectory: bytes, call: bytes, tag: int, handle: Any) -> int:
        """Submits a call, as te_submit(); its status."""
        status: int = quick.te_submit(
            self.handle, trajectory, len(trajectory), call, len(call), tag, handle
        )
        return status

    def fetch(self, most: int = BATCH) -> bool:
        """Fetches completions that are there into `buffer`; whether there were any."""
        status = quick.te_queue_next_json(self.handle, most, 0.0, self.into)
        if status == _native.OK:
            return True
        if status not in (_native.TIMEOUT, _native.CLOSED):
            check(status)
        return False

    def __del__(self) -> None:
        if self.handle and self._pid == os.getpid():
            quick.te_buffer_free(self.into)
            quick.te_queue_free(self.handle)


class CallHandle:
    """A submitted call, which can be cancelled."""

    __slots__ = ("_handle", "_pid")

    def __init__(self, handle: c_void_p) -> None:
        self._handle = handle
        self._pid = os.getpid()

    def cancel(self) -> None:
        """Asks for its end. Its result comes all the same; of one that has ended it changes nothing."""
        check(quick.te_call_cancel(self._handle))

    def __del__(self) -> None:
        handle: Optional[c_void_p] = getattr(self, "_handle", None)
        if handle and self._pid == os.getpid():
            quick.te_call_free(handle)


def request_of(**request: Any) -> Dict[str, Any]:
    """What is asked of files, checked: the library would not say which argument was wrong."""
    for name in ("offset", "max_bytes", "max_entries"):
        if request.get(name) is not None:
            whole_number(request[name], name, 0, 2**63 - 1)
    if request.get("path") is not None:
        _native.text_of(request["path"], "path")
    return request


PLACES = (1, _MOST_PLACES)
