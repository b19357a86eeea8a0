"""What goes wrong, as exceptions. A tool that fails is none of them: it is a result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Optional, Type

if TYPE_CHECKING:
    from ._types import Outcome

__all__ = [
    "ArtifactError",
    "ArtifactNotFoundError",
    "BeginError",
    "ClosedError",
    "ConfigError",
    "ForkedError",
    "InternalError",
    "InvalidArgumentError",
    "InvalidArgumentTypeError",
    "InvalidToolError",
    "LibraryError",
    "QueueFullError",
    "ReleaseError",
    "SnapshotError",
    "SpecError",
    "StartError",
    "ToolExecutorError",
    "ToolServerError",
    "WaitTimeoutError",
]


class ToolExecutorError(Exception):
    """Every exception of this package is one.

    `status` is the name of the C library's status, such as `"TE_CLOSED"`, or empty where the
    package itself has refused something.
    """

    status: str = ""


class LibraryError(ToolExecutorError, ImportError):
    """The C library cannot be loaded, or is of another version."""


class InvalidArgumentError(ToolExecutorError, ValueError):
    """A value makes no sense: NaN, a length, text that is no UTF-8. Nothing ran."""


class InvalidArgumentTypeError(InvalidArgumentError, TypeError):
    """A value is of a type that is not taken. Nothing ran."""


class ConfigError(InvalidArgumentError):
    """The configuration has an unknown key, which is named with the valid ones, or a wrong value."""


class SpecError(InvalidArgumentError):
    """A trajectory's spec has an unknown key, which is named with the valid ones, or a wrong value."""


class InvalidToolError(InvalidArgumentError):
    """A tool cannot be registered: its name is taken, or its signature cannot be described."""


class StartError(ToolExecutorError):
    """The executor could not be started: no isolation, a sandbox server that does not answer."""


class ToolServerError(StartError):
    """The ToolServer cannot be used."""


class ClosedError(ToolExecutorError):
    """The executor is closed, or was never started."""


class QueueFullError(ToolExecutorError):
    """There is no room for another call: fetch completions, and submit again."""


class WaitTimeoutError(ToolExecutorError, TimeoutError):
    """Nothing came in the time that the caller was ready to wait."""


class BeginError(ToolExecutorError):
    """A trajectory did not begin as its spec asks, or has begun already.

    Where it did not, `outcome` is how its calls end until it is released, such as
    `Outcome.SPEC_UNSUPPORTED`.
    """

    outcome: Optional["Outcome"] = None


class ReleaseError(ToolExecutorError):
    """A workspace could not be emptied. Its slot is not given out before that succeeds."""


class ArtifactError(ToolExecutorError):
    """A workspace's file cannot be read; `status` says why, such as `"TE_NO_SLOT"`."""


class ArtifactNotFoundError(ArtifactError):
    """Nothing is at this path."""


class SnapshotError(ToolExecutorError):
    """There is no snapshot, fork or grade; `status` says why, such as `"TE_KEEPS_PROCESSES"`."""


class ForkedError(ToolExecutorError):
    """This process was forked from the one that made the executor, and has none of its threads.

    Use multiprocessing's "spawn", or make the executor after the fork, in a process that had none
    before it.
    """


class InternalError(ToolExecutorError):
    """A bug in the library or in this package."""


_TYPES: Dict[str, Type[ToolExecutorError]] = {
    "TE_TIMEOUT": WaitTimeoutError,
    "TE_CLOSED": ClosedError,
    "TE_QUEUE_FULL": QueueFullError,
    "TE_COMPLETIONS_FULL": QueueFullError,
    "TE_INVALID_ARGUMENT": InvalidArgumentError,
    "TE_INVALID_UTF8": InvalidArgumentError,
    "TE_INVALID_JSON": InvalidArgumentError,
    "TE_INVALID_CONFIG": ConfigError,
    "TE_INVALID_TOOL": InvalidToolError,
    "TE_START_FAILED": StartError,
    "TE_TOOL_SERVER_FAILED": ToolServerError,
    "TE_RESET_FAILED": ReleaseError,
    "TE_ALREADY_BEGUN": BeginError,
    "TE_NOT_BEGUN": BeginError,
    "TE_INVALID_SPEC": SpecError,
    "TE_NO_SLOT": ArtifactError,
    "TE_OUTSIDE_WORKSPACE": ArtifactError,
    "TE_NOT_FOUND": ArtifactNotFoundError,
    "TE_NOT_A_FILE": ArtifactError,
    "TE_UNSUPPORTED_TYPE": ArtifactError,
    "TE_TOO_LARGE": ArtifactError,
    "TE_SANDBOX_LOST": ArtifactError,
    "TE_UNSUPPORTED": ArtifactError,
    "TE_IO": ArtifactError,
    "TE_DISK_FULL": ArtifactError,
    "TE_REFUSED": ArtifactError,
    "TE_BAD_ARCHIVE": ArtifactError,
    "TE_KEEPS_PROCESSES": SnapshotError,
    "TE_TOO_MANY_SNAPSHOTS": SnapshotError,
    "TE_FORKED": ForkedError,
}


def error_of(status: str, message: str) -> ToolExecutorError:
    """The exception for a status of the library's."""
    error = _TYPES.get(status, InternalError)(message)
    error.status = status
    return error
