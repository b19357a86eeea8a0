"""Executes the tool calls of many concurrent LLM agents, in sandboxes of their own.

    from tool_executor import ToolExecutor

    with ToolExecutor(local={"slots": 8}) as executor:
        result = executor.execute("agent-1", "bash", {"command": "echo hello"})
        print(result.output, result.outcome, result.model_attributable)

`ToolExecutor` is for threads, `AsyncToolExecutor` for asyncio. `tool` makes a tool of a function.
Every exception is a `ToolExecutorError`; a tool that fails is a `ToolResult`.
"""

from ._asyncio import AsyncToolExecutor, AsyncTrajectory
from ._config import (
    BackendConfig,
    Bind,
    Config,
    FleetConfig,
    ImagesConfig,
    LocalConfig,
    PolicyConfig,
    Settings,
    SlotLimits,
    SlurmConfig,
    SlurmJobs,
    SpecFile,
    ToolsConfig,
    ToolServerConfig,
    TrajectoryLimits,
    TrajectorySpec,
)
from ._errors import (
    ArtifactError,
    ArtifactNotFoundError,
    BeginError,
    ClosedError,
    ConfigError,
    ForkedError,
    InternalError,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    InvalidToolError,
    LibraryError,
    QueueFullError,
    ReleaseError,
    SnapshotError,
    SpecError,
    StartError,
    ToolExecutorError,
    ToolServerError,
    WaitTimeoutError,
)
from ._executor import PendingCall, ToolExecutor, Trajectory
from ._native import version as _version
from ._snapshots import Fork, Grade, Snapshot
from ._tools import Tool, ToolContext, ToolError, tool
from ._types import (
    Archive,
    ArchiveInfo,
    Artifact,
    ArtifactEntry,
    ArtifactList,
    CloseReport,
    Outcome,
    PutSummary,
    ToolCall,
    ToolResult,
)

__version__ = _version()

__all__ = [
    "Archive",
    "ArchiveInfo",
    "Artifact",
    "ArtifactEntry",
    "ArtifactError",
    "ArtifactList",
    "ArtifactNotFoundError",
    "AsyncToolExecutor",
    "AsyncTrajectory",
    "BackendConfig",
    "BeginError",
    "Bind",
    "CloseReport",
    "ClosedError",
    "Config",
    "ConfigError",
    "FleetConfig",
    "Fork",
    "ForkedError",
    "Grade",
    "InternalError",
    "InvalidArgumentError",
    "InvalidArgumentTypeError",
    "InvalidToolError",
    "LibraryError",
    "ImagesConfig",
    "LocalConfig",
    "Outcome",
    "PendingCall",
    "PolicyConfig",
    "PutSummary",
    "QueueFullError",
    "ReleaseError",
    "Settings",
    "SlotLimits",
    "SlurmConfig",
    "SlurmJobs",
    "Snapshot",
    "SnapshotError",
    "SpecError",
    "SpecFile",
    "StartError",
    "Tool",
    "ToolCall",
    "ToolContext",
    "ToolError",
    "ToolExecutor",
    "ToolExecutorError",
    "ToolResult",
    "ToolServerConfig",
    "ToolServerError",
    "ToolsConfig",
    "Trajectory",
    "TrajectoryLimits",
    "TrajectorySpec",
    "WaitTimeoutError",
    "tool",
]
