"""What calls are made of, and what they give: plain data, which can be pickled."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Dict, List, Mapping, Optional, Union, cast

from . import _native
from ._errors import InvalidArgumentTypeError

__all__ = [
    "Archive",
    "ArchiveInfo",
    "Artifact",
    "ArtifactEntry",
    "ArtifactList",
    "CloseReport",
    "Outcome",
    "ToolCall",
    "ToolResult",
]


class Outcome(str, Enum):
    """How a call ended, for programs. Compares equal to its text, such as `"non_zero_exit"`."""

    OK = "ok"
    """The tool did what it was asked to do."""
    NON_ZERO_EXIT = "non_zero_exit"
    """The command ran to its end and its exit code is not 0, or a signal ended it."""
    TOOL_ERROR = "tool_error"
    """The tool ran and refused or failed: file not found, access denied."""
    TIMEOUT = "timeout"
    """The call's time was up; all its processes are dead."""
    OUT_OF_MEMORY = "out_of_memory"
    """The slot's memory limit ended it."""
    DISK_FULL = "disk_full"
    """The slot's limit of workspace bytes ended it."""
    CANCELLED = "cancelled"
    """It was cancelled."""
    INVALID_CALL = "invalid_call"
    """The call itself is wrong: its arguments do not fit, or it could not be read."""
    UNKNOWN_TOOL = "unknown_tool"
    """No tool has this name."""
    ISOLATION_UNAVAILABLE = "isolation_unavailable"
    """The policy demands an isolation that this sandbox cannot give."""
    SANDBOX_LOST = "sandbox_lost"
    """The sandbox that held the trajectory's workspace is gone."""
    BACKEND_FAILED = "backend_failed"
    """The sandbox failed, or could not start the command."""
    EXTERNAL_FAILED = "external_failed"
    """An external tool, or a function of this program, is broken or could not be run."""
    NEVER_RAN = "never_ran"
    """The call was accepted and never started: no slot in time, or the executor was closed."""
    IMAGE_UNAVAILABLE = "image_unavailable"
    """The image that the trajectory asked for cannot be had."""
    IMAGE_UNUSABLE = "image_unusable"
    """Commands cannot be run in the image that the trajectory asked for."""
    SPEC_UNSUPPORTED = "spec_unsupported"
    """The trajectory asked for what this sandbox cannot give, or its operator does not allow."""
    TRAJECTORY_EXPIRED = "trajectory_expired"
    """The time that the trajectory may hold its slot was up: `max_wall_s` or `max_idle_s`."""

    def __str__(self) -> str:
        return self.value


OUTCOMES = {outcome.value: outcome for outcome in Outcome}


def _no_arguments() -> Dict[str, Any]:
    return {}


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool, as `parse` and `parse_message` find it, or made by hand."""

    name: str
    """The tool's name, as the model wrote it."""
    arguments: Any = field(default_factory=_no_arguments)
    """The arguments: a dict, unless the model erred."""
    uniq_id: Optional[str] = None
    """The caller's id of this call; the result carries the same. A fresh one unless given."""
    timeout_s: Optional[float] = None
    """How many seconds it may run, from 1 to `max_timeout_s` (600)."""
    raw_text: str = ""
    """The text that the call was parsed from."""
    origin: Optional[Mapping[str, Any]] = None
    """How the call was read: its format, repairs, and `unreadable`, if it cannot be read."""

    def to_dict(self) -> Dict[str, Any]:
        """The call as JSON has it, without what is not given."""
        call: Dict[str, Any] = {"name": self.name, "arguments": self.arguments}
        for key in ("uniq_id", "timeout_s", "origin"):
            value = getattr(self, key)
            if value is not None:
                call[key] = value
        if self.raw_text:
            call["raw_text"] = self.raw_text
        return call


@dataclass(frozen=True)
class ToolResult:
    """What a call gave. A tool that fails is a result too: `success` is False, `error` says why."""

    trajectory_id: str
    """Whose call it was."""
    uniq_id: str
    """The call's id."""
    outcome: Outcome
    """How the call ended."""
    success: bool
    """Whether the tool did what it was asked to do: `outcome` is `Outcome.OK`."""
    output: str
    """What the tool printed or read; there for failures too, as far as it came."""
    error: str
    """Empty on success, else one line that says what went wrong."""
    metadata: Dict[str, Any]
    """Facts about the run: `exit_code`, `signal`, `sandboxed`, byte counts."""
    may_have_executed: bool
    """False only where it is certain that nothing of the call ran."""
    model_attributable: bool
    """The training mask: False where the infrastructure, not the model, ended the call this way."""
    queue_s: float
    """Seconds from its acceptance to its hand-over to the sandbox, without the wait for a slot."""
    slot_s: float
    """Seconds of waiting for a slot."""
    exec_s: float
    """Seconds from the hand-over until the result was there."""
    tag: Any = None
    """What the call was submitted with; None from `execute`."""

    def _json(self) -> bytes:
        data = {**self.__dict__, "outcome": self.outcome.value}
        del data["tag"]
        return json.dumps(data).encode()

    @property
    def xml(self) -> str:
        """The result as a model is shown it: `<tool_response>` text."""
        return _native.xml_of(self._json())

    def message(self, form: str = "openai") -> Dict[str, Any]:
        """The message that answers the call, with the call's id.

        `form` is "openai", "openai-responses", "anthropic", "openai-function-call" (to which the
        caller adds the tool's name) or "sharegpt".
        """
        return _native.message_of(self._json(), form)


def result_of(data: Dict[str, Any], tag: Any = None) -> ToolResult:
    """A result of its JSON, whose keys are the fields. Faster than by the constructor."""
    data["outcome"] = OUTCOMES[data["outcome"]]
    data["tag"] = tag
    result = object.__new__(ToolResult)
    result.__dict__.update(data)
    return result


@dataclass(frozen=True)
class Artifact:
    """A file of a workspace, or a part of one."""

    content: bytes
    path: str
    offset: int
    """Where in the file `content` begins, in bytes."""
    file_size: int
    """The whole file's bytes."""
    truncated: bool
    """Whether the file has more after `content`."""
    mime: str
    sha256: Optional[str] = None
    """The checksum of `content`, if it was asked for."""
    file_sha256: Optional[str] = None
    """The checksum of the whole file, if it was asked for."""


@dataclass(frozen=True)
class ArtifactEntry:
    """A file or directory in a listing."""

    path: str
    is_dir: bool
    size: int
    """Bytes."""
    mtime: float
    """Seconds since 1970."""


@dataclass(frozen=True)
class ArtifactList:
    """What is in a workspace."""

    entries: List[ArtifactEntry]
    truncated: bool
    """Whether there are more than were asked for."""


@dataclass(frozen=True)
class ArchiveInfo:
    """What was put into an archive."""

    bytes: int
    entry_count: int
    truncated: bool
    """Whether files were left out, because of the limit of entries."""


@dataclass(frozen=True)
class Archive:
    """A .tar.gz in memory."""

    content: bytes
    info: ArchiveInfo


@dataclass(frozen=True)
class PutSummary:
    """What was put into a trajectory's machine."""

    path: str
    """Where it is, as commands see it, symlinks resolved."""
    bytes: int
    """Those of all files."""
    entry_count: int
    """Files, directories and links."""
    skipped: int
    """Devices, sockets and FIFOs that were left out."""


@dataclass(frozen=True)
class CloseReport:
    """How closing went."""

    cancelled: int
    """How many calls were cancelled."""
    all_threads_ended: bool
    """False if code of the program's still blocks a thread of the library."""


CallLike = Union[ToolCall, Mapping[str, Any]]
"""A `ToolCall`, its dict, or a call of OpenAI's or Anthropic's API as it is."""


def mapping_of(value: Any, what: str) -> Mapping[str, Any]:
    """A dict, or what says it of itself, as the objects of OpenAI's and Anthropic's clients do."""
    if isinstance(value, Mapping):
        return value  # pyright: ignore[reportUnknownVariableType]
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        dumped: Any = dump(exclude_none=True)
        if isinstance(dumped, Mapping):
            return dumped  # pyright: ignore[reportUnknownVariableType]
    kind = type(value).__name__
    raise InvalidArgumentTypeError(f"{what} must be a dict, and is of type {kind}: {value!r:.80}")


def call_json(call: Any) -> bytes:
    """A call in JSON."""
    if type(call) is ToolCall:
        return _native.json_of(call.to_dict(), "the call")
    return _native.json_of(dict(mapping_of(call, "the call")), "the call")


def new_call_json(
    name: Any, arguments: Any, timeout: Optional[float], uniq_id: Optional[str]
) -> bytes:
    """A call of its parts in JSON."""
    if type(name) is not str:
        _native.text_of(name, "the tool's name")
    call: Dict[str, Any] = {"name": name}
    if arguments is not None:
        if type(arguments) is not dict:
            arguments = dict(mapping_of(arguments, "arguments"))
        for key in cast("Dict[Any, Any]", arguments):
            if type(key) is not str:
                kind = type(key).__name__
                text = f"the names of arguments must be text, and {key!r:.80} is of type {kind}"
                raise InvalidArgumentTypeError(text)
        call["arguments"] = arguments
    if timeout is not None:
        call["timeout_s"] = _native.seconds_of(timeout, "timeout")
    if uniq_id is not None:
        _native.text_of(uniq_id, "uniq_id")
        call["uniq_id"] = uniq_id
    return _native.json_of(call, "arguments")
