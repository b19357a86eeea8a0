"""Snapshots, forks and grades: what both executors share, and what they give."""

from __future__ import annotations

import base64
import json
from ctypes import byref
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Union, cast

from . import _native
from ._core import Core, trajectory_of
from ._errors import ArtifactError, InvalidArgumentTypeError, SnapshotError, ToolExecutorError
from ._native import Buffer, slow
from ._types import OUTCOMES, Outcome

__all__ = ["Fork", "Grade", "Snapshot"]


@dataclass(frozen=True)
class Snapshot:
    """The files of a trajectory at one moment. Kept until it is dropped, or the executor closes."""

    id: str
    """Its id: what a spec's `snapshot` is."""
    container: str
    """The container that it is in: what begins from it gets a slot there."""
    parent: Optional[str]
    """The snapshot that its trajectory began from, or was made of last."""
    age_s: float
    """How long ago it was made, in seconds."""
    layers: int
    """How many layers of files are beneath what begins from it."""
    bytes: Optional[int]
    """What its own layers take on the disk, where that is known."""
    ended_processes: List[str]
    """What was ended for it: only as `snapshot` gives it."""


@dataclass(frozen=True)
class Fork:
    """What became of one fork."""

    trajectory_id: str
    """The trajectory that was to begin."""
    begun: bool
    """Whether it has begun."""
    outcome: Optional[Outcome]
    """How its calls end, where it could not begin."""
    error: Optional[str]
    """Why it has not begun."""


@dataclass(frozen=True)
class Grade:
    """What a grader's command gave. Nothing of it is the model's doing."""

    outcome: Outcome
    """How the command ended."""
    error: str
    """Empty if its exit code is 0, else one line that says what went wrong."""
    metadata: Dict[str, Any]
    """Facts about the run, as those of a call."""
    stdout: str
    """What it wrote to its standard output, cut to size."""
    stderr: str
    """What it wrote to its standard error, cut to size."""
    verdict: Optional[str]
    """What it wrote to the descriptor for its verdict; None if that is nothing."""
    ended_processes: List[str]
    """What was ended of the trajectory's."""

    @property
    def exit_code(self) -> Optional[int]:
        """The command's exit code, where it ended by itself or by a signal."""
        return self.metadata.get("exit_code")

    @property
    def verdict_json(self) -> Any:
        """The verdict as JSON; None if there is none, or it is no JSON."""
        try:
            return json.loads(self.verdict or "null")
        except ValueError:
            return None


SpecFiles = Mapping[str, Union[str, bytes]]


def _check(status: int) -> None:
    try:
        _native.check(status)
    except ArtifactError as error:
        # The statuses are the same; what they are about is not.
        raised: ToolExecutorError = SnapshotError(str(error))
        raised.status = error.status
        raise raised from None


def _files(files: Optional[SpecFiles]) -> List[Dict[str, str]]:
    written: List[Dict[str, str]] = []
    given: Dict[str, Any] = dict(files or {})
    for path, content in given.items():
        if isinstance(content, str):
            written.append({"path": path, "content": content})
        elif isinstance(content, (bytes, bytearray, memoryview)):
            octets = bytes(cast("bytes", content))
            written.append({"path": path, "base64": base64.b64encode(octets).decode()})
        else:
            kind = type(content).__name__
            raise InvalidArgumentTypeError(f"the file {path!r} must be str or bytes, and is {kind}")
    return written


def snapshot_id(snapshot: Union[Snapshot, str]) -> str:
    """The id of a snapshot, or what may be one."""
    return snapshot.id if isinstance(snapshot, Snapshot) else snapshot


class Snapshots:
    """What an executor does with snapshots: each gives a function for a thread that may wait."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def _asked(self, function: Any, trajectory_id: str, request: Mapping[str, Any]) -> Callable[[], Any]:
        handle, text = self._core.handle, trajectory_of(trajectory_id)
        what, size = _native.optional_json(request)

        def run() -> Any:
            given = Buffer()
            _check(function(handle, text, len(text), what, size, byref(given)))
            return _native.take_json(given)

        return run

    def snapshot(self, trajectory_id: str, end_processes: bool) -> Callable[[], Snapshot]:
        """Makes one."""
        run = self._asked(slow.te_snapshot, trajectory_id, {"end_processes": end_processes})
        return lambda: Snapshot(**run())

    def drop(self, snapshot: Union[Snapshot, str]) -> Callable[[], None]:
        """Gives one up."""
        handle, id = self._core.handle, _native.text_of(snapshot_id(snapshot), "snapshot")
        return lambda: _check(slow.te_snapshot_drop(handle, id, len(id)))

    def all(self) -> Callable[[], List[Snapshot]]:
        """Those that are kept."""
        handle = self._core.handle

        def run() -> List[Snapshot]:
            given = Buffer()
            _check(slow.te_snapshots(handle, byref(given)))
            return [Snapshot(**one) for one in _native.take_json(given)]

        return run

    def fork(
        self,
        trajectory_id: str,
        to: Sequence[str],
        end_processes: bool,
        spec: Optional[Mapping[str, Any]],
    ) -> Callable[[], List[Fork]]:
        """Begins others from a trajectory."""
        if isinstance(to, (str, bytes)):
            raise InvalidArgumentTypeError("to must be a list of trajectory ids, and is one text")
        request = {"to": list(to), "end_processes": end_processes, "spec": spec}
        run = self._asked(slow.te_fork, trajectory_id, request)

        def forks() -> List[Fork]:
            made: List[Dict[str, Any]] = run()
            for one in made:
                one["outcome"] = OUTCOMES.get(one["outcome"])
            return [Fork(**one) for one in made]

        return forks

    def grade(
        self,
        trajectory_id: str,
        command: str,
        files: Optional[SpecFiles],
        stdin: str,
        env: Optional[Mapping[str, str]],
        timeout: Optional[float],
        files_at: Optional[str],
        judged_paths: Optional[Sequence[str]],
    ) -> Callable[[], Grade]:
        """Judges a trajectory."""
        request = {
            "command": command,
            "files": _files(files),
            "stdin": stdin,
            "env": None if env is None else dict(env),
            "timeout_s": None if timeout is None else _native.seconds_of(timeout, "timeout"),
            "files_at": files_at,
            "judged_paths": None if judged_paths is None else list(judged_paths),
        }
        run = self._asked(slow.te_grade, trajectory_id, request)

        def grade() -> Grade:
            given: Dict[str, Any] = run()
            result = given.pop("result")
            return Grade(
                outcome=OUTCOMES[result["outcome"]],
                error=result["error"],
                metadata=result["metadata"],
                **given,
            )

        return grade
