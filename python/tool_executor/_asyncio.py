"""The executor for asyncio.

Completions come by one descriptor for each event loop, to which the loop listens: no thread waits.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import os
import threading
import time
import uuid
import weakref
from ctypes import byref, c_void_p
from typing import (
    TYPE_CHECKING,
    Any,
    BinaryIO,
    Callable,
    Dict,
    List,
    Mapping,
    Optional,
    Sequence,
    Type,
    TypeVar,
    Union,
)

from . import _native
from ._config import Config, Settings, TrajectorySpec
from ._core import PLACES, Content, Core, merged, request_of, trajectory_of
from ._errors import ClosedError, InvalidArgumentError, ToolExecutorError
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
from ._workers import Job, start

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self, Unpack

    from ._tools import ToolsLike

__all__ = ["AsyncToolExecutor", "AsyncTrajectory"]

T = TypeVar("T")

_FULL = (_native.QUEUE_FULL, _native.COMPLETIONS_FULL)


class _LoopQueue:
    """The completions of the calls that one event loop waits for. Used on its thread alone."""

    def __init__(self, core: Core, loop: asyncio.AbstractEventLoop) -> None:
        self._queue = core.queue(PLACES[1])
        self._ids = itertools.count(1)
        # Those who wait for room.
        self.line = asyncio.Lock()
        self.waiting: Dict[int, "asyncio.Future[Dict[str, Any]]"] = {}
        self._closing = False
        # The loop holds this by its reader; not the other way round.
        self._loop = weakref.ref(loop)
        loop.add_reader(self._queue.fd, self._readable)

    def submit(self, trajectory: bytes, call: bytes, handle: c_void_p) -> "tuple[int, int]":
        """Submits a call; its status and its number."""
        number = next(self._ids)
        return self._queue.submit(trajectory, call, number, byref(handle)), number

    def _readable(self) -> None:
        if self._queue.fetch():
            results = _native.json_in(self._queue.buffer)
            quick.te_buffer_free(self._queue.into)
            for data in results:
                future = self.waiting.pop(data["tag"], None)
                if future is not None and not future.done():
                    future.set_result(data)
        if self._closing:
            self.close()

    def close(self) -> None:
        """Ends it, once nothing is waited for."""
        self._closing = True
        loop = self._loop()
        if loop is not None and not self.waiting and not loop.is_closed():
            loop.remove_reader(self._queue.fd)


class AsyncToolExecutor:
    """Executes tool calls of many trajectories, for programs with asyncio.

        async with AsyncToolExecutor(local={"slots": 8}) as executor:
            result = await executor.execute("agent-1", "bash", {"command": "echo hello"})

    The settings are those of `ToolExecutor`. `async with`, or `await executor.start()`, starts it.
    Any number of event loops, each on its thread, may use it; `async def` tools run on the one that
    started it. A task that is cancelled cancels its call, and ends when the call's processes have
    ended; cancelled once more it does not wait for that.
    """

    def __init__(
        self,
        config: Optional[Union[Config, Mapping[str, Any]]] = None,
        *,
        tools: Optional[ToolsLike] = None,
        **settings: Unpack[Settings],
    ) -> None:
        self._core = Core(merged(config, settings), tools)
        self._started: "Optional[concurrent.futures.Future[None]]" = None
        self._lock = threading.Lock()
        self._loops: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopQueue]" = (
            weakref.WeakKeyDictionary()
        )

    async def start(self) -> None:
        """Starts it: some milliseconds for the embedded sandbox. A second time only waits for that.

        Raises `ConfigError`, `InvalidToolError`, `StartError`, `ForkedError`, `ClosedError`.
        """
        if self._core.is_closed:
            raise ClosedError("the executor is closed")
        with self._lock:
            under_way = self._started
            started = self._started = under_way or concurrent.futures.Future()
        if under_way is not None:
            await asyncio.shield(asyncio.wrap_future(under_way))
            return
        self._core.toolbox.run_async_tools_on(asyncio.get_running_loop())
        try:
            await _off_loop(self._core.start)
        except BaseException as error:
            self._core.close(0.0)
            why = ClosedError(f"the executor was not started: {type(error).__name__}: {error}")
            started.set_exception(why)
            raise
        started.set_result(None)

    async def execute(
        self,
        trajectory_id: str,
        name: str,
        arguments: Optional[Mapping[str, Any]] = None,
        timeout: Optional[float] = None,
        *,
        uniq_id: Optional[str] = None,
    ) -> ToolResult:
        """Runs a call and waits for its result, see `ToolExecutor.execute`.

        The calls of a trajectory run in the order in which their tasks have come here.
        """
        return await self._run(trajectory_id, new_call_json(name, arguments, timeout, uniq_id))

    async def execute_call(self, trajectory_id: str, call: CallLike) -> ToolResult:
        """The same with a call as `parse` or `parse_message` gives it, or OpenAI's or Anthropic's API."""
        return await self._run(trajectory_id, call_json(call))

    async def _run(self, trajectory_id: str, call: bytes) -> ToolResult:
        trajectory = trajectory_of(trajectory_id)
        loop = asyncio.get_running_loop()
        queue = self._queue_of(loop)
        handle = c_void_p()
        number = 0
        try:
            status = _native.QUEUE_FULL
            if not queue.line.locked():
                status, number = queue.submit(trajectory, call, handle)
            if status in _FULL:
                # In the order in which they have come.
                async with queue.line:
                    since = time.monotonic()
                    while status in _FULL:
                        status, number = queue.submit(trajectory, call, handle)
                        if status in _FULL:
                            await asyncio.sleep(self._core.wait_for_room(since))
            check(status)
            future = queue.waiting[number] = loop.create_future()
            data = await future
        except BaseException as error:
            if handle:
                quick.te_call_cancel(handle)
                if isinstance(error, asyncio.CancelledError):
                    await _end_of(queue, number, loop)
            queue.waiting.pop(number, None)
            raise
        finally:
            quick.te_call_free(handle)
        return result_of(data)

    def _queue_of(self, loop: asyncio.AbstractEventLoop) -> _LoopQueue:
        self._core.handle  # noqa: B018 -- says what is wrong in a forked process
        try:
            return self._loops[loop]
        except KeyError:
            pass
        with self._lock:
            for closed in [one for one in self._loops if one.is_closed()]:
                del self._loops[closed]
            queue = self._loops[loop] = _LoopQueue(self._core, loop)
        return queue

    def parse(self, text: str, format: str = "auto") -> List[ToolCall]:
        """See `ToolExecutor.parse`. Does not wait."""
        return self._core.parse(text, format)

    def parse_message(self, message: Any, format: str = "auto") -> List[ToolCall]:
        """See `ToolExecutor.parse_message`. Does not wait."""
        return self._core.parse_message(message, format)

    def trajectory(
        self,
        trajectory_id: Optional[str] = None,
        spec: Optional[Union[TrajectorySpec, Mapping[str, Any]]] = None,
        *,
        reset: bool = True,
    ) -> AsyncTrajectory:
        """A trajectory, to be released at the end of an `async with`. Without an id it gets a
        fresh one. With a `spec` it begins with that: its calls end as `BeginError.outcome` would
        say where it cannot."""
        trajectory = AsyncTrajectory(self, trajectory_id or str(uuid.uuid4()), reset)
        if spec is not None:
            self._core.submit_begin(trajectory.id, spec)
        return trajectory

    async def begin(
        self,
        trajectory_id: str,
        spec: Union[TrajectorySpec, Mapping[str, Any]],
        *,
        wait: bool = True,
    ) -> None:
        """See `ToolExecutor.begin`."""
        if not wait:
            self._core.submit_begin(trajectory_id, spec)
            return
        begin, give_up = self._core.begin(trajectory_id, spec)
        try:
            await _off_loop(begin)
        except ToolExecutorError:
            raise
        except BaseException:
            give_up()
            raise

    def cancel(self, trajectory_id: str) -> None:
        """Cancels everything of a trajectory that has not ended. Does not wait."""
        self._core.cancel(trajectory_id)

    async def release(self, trajectory_id: str, *, reset: bool = True, wait: bool = True) -> None:
        """See `ToolExecutor.release`."""
        if wait:
            await _off_loop(self._core.release(trajectory_id, reset))
        else:
            self._core.submit_release(trajectory_id, reset)

    async def read_artifact(
        self,
        trajectory_id: str,
        path: str,
        *,
        offset: Optional[int] = None,
        max_bytes: Optional[int] = None,
        sha256: Optional[bool] = None,
        file_sha256: Optional[bool] = None,
    ) -> Artifact:
        """See `ToolExecutor.read_artifact`."""
        request = request_of(
            offset=offset, max_bytes=max_bytes, sha256=sha256, file_sha256=file_sha256
        )
        return await _off_loop(self._core.read_artifact(trajectory_id, path, request))

    async def list_artifacts(
        self,
        trajectory_id: str,
        path: str = ".",
        *,
        recursive: bool = False,
        max_entries: Optional[int] = None,
    ) -> ArtifactList:
        """See `ToolExecutor.list_artifacts`."""
        request = request_of(path=path, recursive=recursive, max_entries=max_entries)
        return await _off_loop(self._core.list_artifacts(trajectory_id, request))

    async def archive_artifacts(
        self,
        trajectory_id: str,
        path: str = ".",
        *,
        max_bytes: Optional[int] = None,
        max_entries: Optional[int] = None,
    ) -> Archive:
        """See `ToolExecutor.archive_artifacts`."""
        request = request_of(path=path, max_bytes=max_bytes, max_entries=max_entries)
        return await _off_loop(self._core.archive_artifacts(trajectory_id, request))

    async def copy_artifact(
        self, trajectory_id: str, path: str, to: Union[str, os.PathLike[str]]
    ) -> int:
        """See `ToolExecutor.copy_artifact`."""
        return await _off_loop(self._core.copy_artifact(trajectory_id, path, to))

    async def put(
        self,
        trajectory_id: str,
        path: str,
        content: Content,
        *,
        mode: Optional[int] = None,
        owner: Optional[str] = None,
    ) -> PutSummary:
        """See `ToolExecutor.put`."""
        request = request_of(mode=mode, owner=owner)
        return await _off_loop(self._core.put(trajectory_id, path, content, request))

    async def put_tar(
        self,
        trajectory_id: str,
        directory: str,
        content: Content,
        *,
        owner: Optional[str] = None,
        keep_owners: Optional[bool] = None,
    ) -> PutSummary:
        """See `ToolExecutor.put_tar`."""
        request = request_of(kind="tar", owner=owner, keep_owners=keep_owners)
        return await _off_loop(self._core.put(trajectory_id, directory, content, request))

    async def put_tree(
        self, trajectory_id: str, directory: str, source: Union[str, os.PathLike[str]]
    ) -> PutSummary:
        """See `ToolExecutor.put_tree`."""
        return await _off_loop(self._core.put_tree(trajectory_id, directory, source))

    async def get(
        self, trajectory_id: str, path: str, to: Union[str, os.PathLike[str], BinaryIO]
    ) -> int:
        """See `ToolExecutor.get`."""
        if isinstance(to, (str, os.PathLike)):
            return await self.copy_artifact(trajectory_id, path, to)
        return await _off_loop(self._core.get(trajectory_id, path, to))

    async def snapshot(self, trajectory_id: str, *, end_processes: bool = False) -> Snapshot:
        """See `ToolExecutor.snapshot`."""
        return await _off_loop(Snapshots(self._core).snapshot(trajectory_id, end_processes))

    async def drop_snapshot(self, snapshot: Union[Snapshot, str]) -> None:
        """Gives a snapshot up. What began from it goes on."""
        await _off_loop(Snapshots(self._core).drop(snapshot))

    async def snapshots(self) -> List[Snapshot]:
        """The snapshots that are kept, the oldest first."""
        return await _off_loop(Snapshots(self._core).all())

    async def fork(
        self,
        trajectory_id: str,
        to: Sequence[str],
        *,
        end_processes: bool = False,
        spec: Optional[Mapping[str, Any]] = None,
    ) -> List[Fork]:
        """See `ToolExecutor.fork`."""
        return await _off_loop(Snapshots(self._core).fork(trajectory_id, to, end_processes, spec))

    async def grade(
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
        """See `ToolExecutor.grade`."""
        grade = Snapshots(self._core).grade
        return await _off_loop(
            grade(trajectory_id, command, files, stdin, env, timeout, files_at, judged_paths)
        )

    async def stats(self) -> Dict[str, Any]:
        """See `ToolExecutor.stats`."""
        return await _off_loop(self._core.stats)

    async def describe(self) -> Dict[str, Any]:
        """See `ToolExecutor.describe`."""
        return await _off_loop(self._core.describe)

    async def close(self, timeout: Optional[float] = None) -> CloseReport:
        """See `ToolExecutor.close`. Calls that are waited for get their results."""
        if timeout is not None:
            timeout = _native.seconds_of(timeout, "timeout")
            if timeout < 0:
                raise InvalidArgumentError(f"timeout is {timeout}; it must be a number from 0")
        try:
            return await _off_loop(lambda: self._core.close(timeout))
        finally:
            for loop, queue in list(self._loops.items()):
                try:
                    loop.call_soon_threadsafe(queue.close)
                except RuntimeError:
                    pass  # that loop is closed, and listens to nothing

    @property
    def closed(self) -> bool:
        """Whether it is closed, or closing."""
        return self._core.is_closed

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        # What failed is not waited for.
        await self.close(None if kind is None else 0.0)

    def __reduce__(self) -> Any:
        raise TypeError("an executor cannot be pickled: make one in each process")


class AsyncTrajectory:
    """A trajectory of an executor: the same functions without its id. Released by `async with`."""

    def __init__(self, executor: AsyncToolExecutor, id: str, reset: bool) -> None:
        trajectory_of(id)
        self.id = id
        self._executor = executor
        self._reset = reset

    async def execute(
        self,
        name: str,
        arguments: Optional[Mapping[str, Any]] = None,
        timeout: Optional[float] = None,
        *,
        uniq_id: Optional[str] = None,
    ) -> ToolResult:
        """`AsyncToolExecutor.execute` of this trajectory."""
        return await self._executor.execute(self.id, name, arguments, timeout, uniq_id=uniq_id)

    async def execute_call(self, call: CallLike) -> ToolResult:
        """`AsyncToolExecutor.execute_call` of this trajectory."""
        return await self._executor.execute_call(self.id, call)

    async def read_artifact(self, path: str) -> bytes:
        """The content of a file of the workspace, 5,000,000 bytes at most."""
        return (await self._executor.read_artifact(self.id, path)).content

    async def put(self, path: str, content: Content, *, mode: Optional[int] = None) -> PutSummary:
        """`AsyncToolExecutor.put` of this trajectory."""
        return await self._executor.put(self.id, path, content, mode=mode)

    async def put_tree(self, directory: str, source: Union[str, os.PathLike[str]]) -> PutSummary:
        """`AsyncToolExecutor.put_tree` of this trajectory."""
        return await self._executor.put_tree(self.id, directory, source)

    async def get(self, path: str, to: Union[str, os.PathLike[str], BinaryIO]) -> int:
        """`AsyncToolExecutor.get` of this trajectory."""
        return await self._executor.get(self.id, path, to)

    async def list_artifacts(self, path: str = ".", *, recursive: bool = False) -> ArtifactList:
        """`AsyncToolExecutor.list_artifacts` of this trajectory."""
        return await self._executor.list_artifacts(self.id, path, recursive=recursive)

    async def snapshot(self, *, end_processes: bool = False) -> Snapshot:
        """`AsyncToolExecutor.snapshot` of this trajectory."""
        return await self._executor.snapshot(self.id, end_processes=end_processes)

    async def fork(self, to: Sequence[str], *, end_processes: bool = False) -> List[Fork]:
        """`AsyncToolExecutor.fork` of this trajectory."""
        return await self._executor.fork(self.id, to, end_processes=end_processes)

    async def grade(
        self,
        command: str,
        *,
        files: Optional[Mapping[str, Union[str, bytes]]] = None,
        stdin: str = "",
        timeout: Optional[float] = None,
    ) -> Grade:
        """`AsyncToolExecutor.grade` of this trajectory."""
        return await self._executor.grade(
            self.id, command, files=files, stdin=stdin, timeout=timeout
        )

    def cancel(self) -> None:
        """`AsyncToolExecutor.cancel` of this trajectory."""
        self._executor.cancel(self.id)

    async def release(self) -> None:
        """Releases it now, and waits for that."""
        await self._executor.release(self.id, reset=self._reset)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        try:
            if kind is not None:
                self._executor.cancel(self.id)
            await self._executor.release(self.id, reset=self._reset, wait=False)
        except ClosedError:
            pass  # closing has released it


async def _end_of(queue: _LoopQueue, number: int, loop: asyncio.AbstractEventLoop) -> None:
    """Waits until a call that was cancelled has ended: its waiter was cancelled, not it."""
    if number in queue.waiting:
        ended: "asyncio.Future[Dict[str, Any]]" = loop.create_future()
        queue.waiting[number] = ended
        await ended


async def _off_loop(function: Callable[[], T]) -> T:
    """Calls a function that waits, on a thread that may. A task that is cancelled does not wait for
    it; what it gives is thrown away then."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    job: Job[T] = Job(function, None)

    def tell() -> None:
        try:
            loop.call_soon_threadsafe(done.set)
        except RuntimeError:
            pass  # the loop is closed: nothing waits

    job.call_when_done(tell)
    start(job)
    try:
        await done.wait()
    except BaseException:
        job.abandon()
        raise
    return job.result()
