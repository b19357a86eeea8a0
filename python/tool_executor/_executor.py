"""The executor for threads."""

from __future__ import annotations

import itertools
import os
import select
import threading
import time
import uuid
from ctypes import byref, c_void_p
from typing import (
    TYPE_CHECKING,
    Any,
    BinaryIO,
    Dict,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Type,
    Union,
)

from . import _native
from ._config import Config, Settings, TrajectorySpec
from ._core import BATCH, PLACES, CallHandle, Content, Core, Queue, merged, request_of
from ._core import trajectory_of, whole_number
from ._errors import ClosedError, InvalidArgumentError, ToolExecutorError, WaitTimeoutError
from ._native import check, quick
from ._snapshots import Fork, Grade, Snapshot, Snapshots
from ._types import (
    Archive,
    Artifact,
    ArtifactList,
    CallLike,
    CloseReport,
    PutSummary,
    ToolCall,
    ToolResult,
    call_json,
    new_call_json,
    result_of,
)
from ._workers import interruptibly

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self, Unpack

    from ._tools import ToolsLike

__all__ = ["PendingCall", "ToolExecutor", "Trajectory"]

# How long one waits in the library, where a wait is cheapest, before one waits by the descriptor,
# where a signal ends it.
_FIRST_S = 0.03
_LOOK_MS = 250


class PendingCall(CallHandle):
    """A call that was submitted. Its result comes by `next_completion` or `completions`."""

    __slots__ = ("tag",)

    def __init__(self, handle: c_void_p, tag: Any) -> None:
        super().__init__(handle)
        self.tag = tag


class _Waiter:
    """One thread's wait for one call."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._queue = core.queue(1)
        self._call = c_void_p()
        self._call_place = byref(self._call)
        self._poll: Optional[Any] = None

    def run(self, trajectory: bytes, call: bytes) -> ToolResult:
        queue = self._queue
        try:
            status = queue.submit(trajectory, call, 0, self._call_place)
            if status == _native.QUEUE_FULL:
                since = time.monotonic()
                while status == _native.QUEUE_FULL:
                    time.sleep(self._core.wait_for_room(since))
                    status = queue.submit(trajectory, call, 0, self._call_place)
            check(status)
            status = _native.slow.te_queue_next_json(queue.handle, 1, _FIRST_S, queue.into)
            while status == _native.TIMEOUT:
                self._wait()
                status = quick.te_queue_next_json(queue.handle, 1, 0.0, queue.into)
            check(status)
        except BaseException:
            if self._call:
                quick.te_call_cancel(self._call)
            raise
        finally:
            quick.te_call_free(self._call)
            self._call.value = None
        data = _native.json_in(queue.buffer)[0]
        quick.te_buffer_free(queue.into)
        return result_of(data)

    def _wait(self) -> None:
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._queue.fd, select.POLLIN)
        # Every accepted call has a completion; the time is for what cannot be.
        self._poll.poll(60_000)


class ToolExecutor:
    """Executes tool calls of many trajectories, for programs with threads.

        with ToolExecutor(local={"slots": 8}) as executor:
            print(executor.execute("agent-1", "bash", {"command": "echo hello"}).output)

    Any number of threads may use it. Ctrl-C ends every wait of the main thread within a tenth of a
    second: the call that was waited for is cancelled, and the executor may be used further.

    `config` and keyword arguments are the settings, see `Config`. `tools` are functions that models
    may call, see `tool`. `completions_capacity` bounds the calls that were submitted by `submit` and
    not fetched. To be closed, best by `with`.

    Raises `ConfigError`, `InvalidToolError`, `StartError`, `ForkedError`.
    """

    def __init__(
        self,
        config: Optional[Union[Config, Mapping[str, Any]]] = None,
        *,
        tools: Optional[ToolsLike] = None,
        completions_capacity: int = 65536,
        **settings: Unpack[Settings],
    ) -> None:
        capacity = whole_number(completions_capacity, "completions_capacity", *PLACES)
        core = Core(merged(config, settings), tools)
        try:
            interruptibly(core.start)
        except BaseException:
            core.close(0.0)  # where it is still starting, the last thing that its start does
            raise
        self._core = core
        self._waiters: List[_Waiter] = []
        self._completions = _Completions(core.queue(capacity))

    def execute(
        self,
        trajectory_id: str,
        name: str,
        arguments: Optional[Mapping[str, Any]] = None,
        timeout: Optional[float] = None,
        *,
        uniq_id: Optional[str] = None,
    ) -> ToolResult:
        """Runs a call and waits for its result. A tool that fails is a result.

        The calls of a trajectory run one after the other, in one workspace, which it keeps until it
        is released. `timeout` is in seconds, from 1 to `max_timeout_s` (600); without one the sandbox's 30 seconds.
        """
        return self._run(trajectory_id, new_call_json(name, arguments, timeout, uniq_id))

    def execute_call(self, trajectory_id: str, call: CallLike) -> ToolResult:
        """The same with a call as `parse` or `parse_message` gives it, or OpenAI's or Anthropic's API."""
        return self._run(trajectory_id, call_json(call))

    def _run(self, trajectory_id: str, call: bytes) -> ToolResult:
        core = self._core
        core.handle  # noqa: B018 -- says what is wrong in a forked process
        trajectory = trajectory_of(trajectory_id)
        try:
            waiter = self._waiters.pop()
        except IndexError:
            waiter = _Waiter(core)
        # One whose wait was interrupted is thrown away, with the queue that the result goes to.
        result = waiter.run(trajectory, call)
        self._waiters.append(waiter)
        return result

    def submit(
        self,
        trajectory_id: str,
        name: str,
        arguments: Optional[Mapping[str, Any]] = None,
        timeout: Optional[float] = None,
        *,
        tag: Any = None,
        uniq_id: Optional[str] = None,
    ) -> PendingCall:
        """Submits a call; its result, with `tag`, comes by `next_completion` or `completions`.

        Does not wait: raises `QueueFullError` where there is no room.
        """
        call = new_call_json(name, arguments, timeout, uniq_id)
        return self._submit(trajectory_id, call, tag)

    def submit_call(self, trajectory_id: str, call: CallLike, *, tag: Any = None) -> PendingCall:
        """The same with a call as `execute_call` takes it."""
        return self._submit(trajectory_id, call_json(call), tag)

    def _submit(self, trajectory_id: str, call: bytes, tag: Any) -> PendingCall:
        self._core.handle  # noqa: B018 -- says what is wrong in a forked process
        return self._completions.submit(trajectory_of(trajectory_id), call, tag)

    def next_completion(self, timeout: Optional[float] = None) -> Optional[ToolResult]:
        """The next result of those that were submitted; None if no call is outstanding.

        Raises `WaitTimeoutError` if none comes for `timeout` seconds.
        """
        self._core.handle  # noqa: B018 -- says what is wrong in a forked process
        return self._completions.next(timeout)

    def completions(self, timeout: Optional[float] = None) -> Iterator[ToolResult]:
        """Results until no call is outstanding; more may be submitted meanwhile.

        Raises `WaitTimeoutError` if none comes for `timeout` seconds.
        """
        while True:
            result = self.next_completion(timeout)
            if result is None:
                return
            yield result

    @property
    def outstanding(self) -> int:
        """How many calls were submitted and not fetched."""
        return self._completions.outstanding

    def fileno(self) -> int:
        """A descriptor that is readable while completions wait, for `select` and the like."""
        return self._completions.fileno()

    def parse(self, text: str, format: str = "auto") -> List[ToolCall]:
        """The tool calls in a whole text that a model wrote, in their order.

        One that cannot be read is among them, and its result is `Outcome.INVALID_CALL`, with the
        place and the reason.
        """
        return self._core.parse(text, format)

    def parse_message(self, message: Any, format: str = "auto") -> List[ToolCall]:
        """The same of a message of OpenAI's (chat, Responses), Anthropic's or ShareGPT's.

        A dict, or an object of OpenAI's or Anthropic's client.
        """
        return self._core.parse_message(message, format)

    def trajectory(
        self,
        trajectory_id: Optional[str] = None,
        spec: Optional[Union[TrajectorySpec, Mapping[str, Any]]] = None,
        *,
        reset: bool = True,
    ) -> Trajectory:
        """A trajectory, to be released at the end of a `with`. Without an id it gets a fresh one.

        With a `spec` it begins with that, as by `begin` with `wait=False`.
        """
        trajectory = Trajectory(self, trajectory_id or str(uuid.uuid4()), reset)
        if spec is not None:
            self.begin(trajectory.id, spec, wait=False)
        return trajectory

    def begin(
        self,
        trajectory_id: str,
        spec: Union[TrajectorySpec, Mapping[str, Any]],
        *,
        wait: bool = True,
    ) -> None:
        """Begins a trajectory, before its first call, with what it asks for beyond the settings.

        With `wait` it has a slot that is so when this returns, and `BeginError` says by its
        `outcome` and text why it cannot; without, that is how the trajectory's calls end until it
        is released. Raises `SpecError`.
        """
        if not wait:
            self._core.submit_begin(trajectory_id, spec)
            return
        begin, give_up = self._core.begin(trajectory_id, spec)
        try:
            interruptibly(begin)
        except ToolExecutorError:
            raise
        except BaseException:
            give_up()
            raise

    def cancel(self, trajectory_id: str) -> None:
        """Cancels everything of a trajectory that has not ended; every call gets its result."""
        self._core.cancel(trajectory_id)

    def release(self, trajectory_id: str, *, reset: bool = True, wait: bool = True) -> None:
        """Gives up a trajectory's slot after its earlier calls, and empties its workspace.

        Without `reset` the files stay until another trajectory needs the slot. With `wait` it is
        done when this returns, and `ReleaseError` says that the workspace could not be emptied.
        """
        if wait:
            interruptibly(self._core.release(trajectory_id, reset))
        else:
            self._core.submit_release(trajectory_id, reset)

    def read_artifact(
        self,
        trajectory_id: str,
        path: str,
        *,
        offset: Optional[int] = None,
        max_bytes: Optional[int] = None,
        sha256: Optional[bool] = None,
        file_sha256: Optional[bool] = None,
    ) -> Artifact:
        """Reads a file of a trajectory's workspace, 5,000,000 bytes at most, in its turn."""
        request = request_of(
            offset=offset, max_bytes=max_bytes, sha256=sha256, file_sha256=file_sha256
        )
        return interruptibly(self._core.read_artifact(trajectory_id, path, request))

    def list_artifacts(
        self,
        trajectory_id: str,
        path: str = ".",
        *,
        recursive: bool = False,
        max_entries: Optional[int] = None,
    ) -> ArtifactList:
        """Lists files of a trajectory's workspace, 5,000 at most, in its turn."""
        request = request_of(path=path, recursive=recursive, max_entries=max_entries)
        return interruptibly(self._core.list_artifacts(trajectory_id, request))

    def archive_artifacts(
        self,
        trajectory_id: str,
        path: str = ".",
        *,
        max_bytes: Optional[int] = None,
        max_entries: Optional[int] = None,
    ) -> Archive:
        """A .tar.gz of a trajectory's workspace, or of a part of it, in its turn."""
        request = request_of(path=path, max_bytes=max_bytes, max_entries=max_entries)
        return interruptibly(self._core.archive_artifacts(trajectory_id, request))

    def copy_artifact(self, trajectory_id: str, path: str, to: Union[str, os.PathLike[str]]) -> int:
        """Copies a whole file of a trajectory's workspace to a file here; how many bytes it has."""
        return interruptibly(self._core.copy_artifact(trajectory_id, path, to))

    def put(
        self,
        trajectory_id: str,
        path: str,
        content: Content,
        *,
        mode: Optional[int] = None,
        owner: Optional[str] = None,
    ) -> PutSummary:
        """Puts a file into a trajectory's machine, in its turn: `content` is bytes, a `pathlib.Path` of
        this host, or a binary file. A trajectory without a slot begins with it. Nothing half is left
        after an error."""
        request = request_of(mode=mode, owner=owner)
        return interruptibly(self._core.put(trajectory_id, path, content, request))

    def put_tar(
        self,
        trajectory_id: str,
        directory: str,
        content: Content,
        *,
        owner: Optional[str] = None,
        keep_owners: Optional[bool] = None,
    ) -> PutSummary:
        """Puts what a tar stream has, plain or compressed by gzip, into a directory of a trajectory's
        machine."""
        request = request_of(kind="tar", owner=owner, keep_owners=keep_owners)
        return interruptibly(self._core.put(trajectory_id, directory, content, request))

    def put_tree(
        self, trajectory_id: str, directory: str, source: Union[str, os.PathLike[str]]
    ) -> PutSummary:
        """Puts what is in a directory of this host into one of a trajectory's machine."""
        return interruptibly(self._core.put_tree(trajectory_id, directory, source))

    def get(
        self, trajectory_id: str, path: str, to: Union[str, os.PathLike[str], BinaryIO]
    ) -> int:
        """Copies a whole file of a trajectory's machine, of any size, to a file here, or to a binary file
        that is open; how many bytes it has."""
        if isinstance(to, (str, os.PathLike)):
            return self.copy_artifact(trajectory_id, path, to)
        return interruptibly(self._core.get(trajectory_id, path, to))

    def snapshot(self, trajectory_id: str, *, end_processes: bool = False) -> Snapshot:
        """Keeps the files of a trajectory as they are, for others to begin from, in its turn. Nothing
        is copied, and it goes on with them.

        A trajectory that keeps shells, terminals or background processes is refused unless they
        may be ended."""
        return interruptibly(Snapshots(self._core).snapshot(trajectory_id, end_processes))

    def drop_snapshot(self, snapshot: Union[Snapshot, str]) -> None:
        """Gives a snapshot up. What began from it goes on."""
        interruptibly(Snapshots(self._core).drop(snapshot))

    def snapshots(self) -> List[Snapshot]:
        """The snapshots that are kept, the oldest first."""
        return interruptibly(Snapshots(self._core).all())

    def fork(
        self,
        trajectory_id: str,
        to: Sequence[str],
        *,
        end_processes: bool = False,
        spec: Optional[Mapping[str, Any]] = None,
    ) -> List[Fork]:
        """Begins trajectories with the files that another has now; waits until each has its slot,
        or cannot have one. `spec` is what else they begin with."""
        return interruptibly(Snapshots(self._core).fork(trajectory_id, to, end_processes, spec))

    def grade(
        self,
        trajectory_id: str,
        command: str,
        *,
        files: Optional[Mapping[str, Union[str, bytes]]] = None,
        stdin: str = "",
        env: Optional[Mapping[str, str]] = None,
        timeout: Optional[float] = None,
        files_at: Optional[str] = None,
        judged_paths: Optional[Sequence[str]] = None,
    ) -> Grade:
        """Runs a command that judges what a trajectory has left, in a machine in which nothing of
        the trajectory runs. It begins in `files_at`, `/grade`, where its `files` are; its verdict is
        what it writes to the descriptor `$TOOL_EXECUTOR_VERDICT_FD`. See docs/grading.md."""
        grade = Snapshots(self._core).grade
        return interruptibly(
            grade(trajectory_id, command, files, stdin, env, timeout, files_at, judged_paths)
        )

    def stats(self) -> Dict[str, Any]:
        """Counters and measurements up to now, or up to its end."""
        return self._core.stats()

    def describe(self) -> Dict[str, Any]:
        """What the executor is: `backend`, `isolated`, its `tools` as OpenAI's API takes them, the
        `prompt` that tells a model of them."""
        return self._core.describe()

    def close(self, timeout: Optional[float] = None) -> CloseReport:
        """Ends the executor: waits for calls, for `timeout` seconds at most (the setting
        `close_timeout_s`), and cancels what is left. What was submitted can still be fetched."""
        if timeout is not None:
            timeout = _native.seconds_of(timeout, "timeout")
            if timeout < 0:
                raise InvalidArgumentError(f"timeout is {timeout}; it must be a number from 0")
        return interruptibly(lambda: self._core.close(timeout))

    @property
    def closed(self) -> bool:
        """Whether it is closed, or closing."""
        return self._core.is_closed

    def __enter__(self) -> Self:
        if self._core.is_closed:
            raise ClosedError("the executor is closed")
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        # What failed is not waited for.
        self.close(None if kind is None else 0.0)

    def __reduce__(self) -> Any:
        raise TypeError("an executor cannot be pickled: make one in each process")


class Trajectory:
    """A trajectory of an executor: the same functions without its id. Released by `with`."""

    def __init__(self, executor: ToolExecutor, id: str, reset: bool) -> None:
        trajectory_of(id)
        self.id = id
        self._executor = executor
        self._reset = reset

    def execute(
        self,
        name: str,
        arguments: Optional[Mapping[str, Any]] = None,
        timeout: Optional[float] = None,
        *,
        uniq_id: Optional[str] = None,
    ) -> ToolResult:
        """`ToolExecutor.execute` of this trajectory."""
        return self._executor.execute(self.id, name, arguments, timeout, uniq_id=uniq_id)

    def execute_call(self, call: CallLike) -> ToolResult:
        """`ToolExecutor.execute_call` of this trajectory."""
        return self._executor.execute_call(self.id, call)

    def submit_call(self, call: CallLike, *, tag: Any = None) -> PendingCall:
        """`ToolExecutor.submit_call` of this trajectory."""
        return self._executor.submit_call(self.id, call, tag=tag)

    def read_artifact(self, path: str) -> bytes:
        """The content of a file of the workspace, 5,000,000 bytes at most."""
        return self._executor.read_artifact(self.id, path).content

    def list_artifacts(self, path: str = ".", *, recursive: bool = False) -> ArtifactList:
        """`ToolExecutor.list_artifacts` of this trajectory."""
        return self._executor.list_artifacts(self.id, path, recursive=recursive)

    def put(self, path: str, content: Content, *, mode: Optional[int] = None) -> PutSummary:
        """`ToolExecutor.put` of this trajectory."""
        return self._executor.put(self.id, path, content, mode=mode)

    def put_tree(self, directory: str, source: Union[str, os.PathLike[str]]) -> PutSummary:
        """`ToolExecutor.put_tree` of this trajectory."""
        return self._executor.put_tree(self.id, directory, source)

    def get(self, path: str, to: Union[str, os.PathLike[str], BinaryIO]) -> int:
        """`ToolExecutor.get` of this trajectory."""
        return self._executor.get(self.id, path, to)

    def snapshot(self, *, end_processes: bool = False) -> Snapshot:
        """`ToolExecutor.snapshot` of this trajectory."""
        return self._executor.snapshot(self.id, end_processes=end_processes)

    def fork(self, to: Sequence[str], *, end_processes: bool = False) -> List[Fork]:
        """`ToolExecutor.fork` of this trajectory."""
        return self._executor.fork(self.id, to, end_processes=end_processes)

    def grade(
        self,
        command: str,
        *,
        files: Optional[Mapping[str, Union[str, bytes]]] = None,
        stdin: str = "",
        timeout: Optional[float] = None,
    ) -> Grade:
        """`ToolExecutor.grade` of this trajectory."""
        return self._executor.grade(
            self.id, command, files=files, stdin=stdin, timeout=timeout
        )

    def cancel(self) -> None:
        """`ToolExecutor.cancel` of this trajectory."""
        self._executor.cancel(self.id)

    def release(self) -> None:
        """Releases it now, and waits for that."""
        self._executor.release(self.id, reset=self._reset)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        try:
            if kind is not None:
                self._executor.cancel(self.id)
            self._executor.release(self.id, reset=self._reset, wait=False)
        except ClosedError:
            pass  # closing has released it


class _Completions:
    """The results of the calls that were submitted. Any number of threads fetch them."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._tags: Dict[int, Any] = {}
        # Fetched and not given out, the next one last.
        self._batch: List[Dict[str, Any]] = []
        self._at_once = BATCH

    @property
    def outstanding(self) -> int:
        return len(self._tags)

    def fileno(self) -> int:
        # The descriptor knows nothing of a batch.
        self._at_once = 1
        return self._queue.fd

    def submit(self, trajectory: bytes, call: bytes, tag: Any) -> PendingCall:
        number, handle = next(self._ids), c_void_p()
        self._tags[number] = tag
        status = self._queue.submit(trajectory, call, number, byref(handle))
        if status != _native.OK:
            del self._tags[number]
            check(status)
        return PendingCall(handle, tag)

    def next(self, timeout: Optional[float]) -> Optional[ToolResult]:
        until = None
        if timeout is not None:
            until = time.monotonic() + _native.seconds_of(timeout, "timeout")
        poll: Optional[Any] = None
        while True:
            with self._lock:
                result = self._take()
            if result is not None:
                return result
            if not self._tags:
                return None
            left_ms = _LOOK_MS
            if until is not None:
                left = until - time.monotonic()
                if left <= 0:
                    raise WaitTimeoutError(f"no completion came for {timeout} s")
                left_ms = min(_LOOK_MS, max(1, int(left * 1000)))
            if poll is None:
                poll = select.poll()
                poll.register(self._queue.fd, select.POLLIN)
            # Another thread may fetch the last one meanwhile, hence the limit.
            poll.poll(left_ms)

    def _take(self) -> Optional[ToolResult]:
        # An interrupt may come between any two lines: what was fetched is in the buffer until it is
        # in the batch, and may be in both.
        queue = self._queue
        while True:
            if not self._batch:
                if not queue.buffer.data and not queue.fetch(self._at_once):
                    return None
                self._batch = _native.json_in(queue.buffer)[::-1]
                quick.te_buffer_free(queue.into)
            data = self._batch.pop()
            if data["tag"] in self._tags:
                return result_of(data, self._tags.pop(data["tag"]))
