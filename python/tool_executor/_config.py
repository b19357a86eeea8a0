"""The settings, as type checkers see them. What is not known here is refused by the library, which
names the keys that it knows. Times are in seconds; None is the same as a key that is left out."""

from __future__ import annotations

import os
from typing import Any, List, Mapping, Optional, TypedDict, Union

__all__ = [
    "Bind",
    "Config",
    "FleetConfig",
    "ImagesConfig",
    "LocalConfig",
    "PolicyConfig",
    "Settings",
    "SlotLimits",
    "SlurmConfig",
    "SlurmJobs",
    "SpecFile",
    "ToolServerConfig",
    "ToolsConfig",
    "TrajectoryLimits",
    "TrajectorySpec",
]


class SlotLimits(TypedDict, total=False):
    """What one slot may use; None is no limit."""

    processes: Optional[int]
    memory_bytes: Optional[int]
    cpu: Optional[float]
    open_files: Optional[int]
    file_bytes: Optional[int]
    workspace_bytes: Optional[int]
    files: Optional[int]


_Path = Union[str, "os.PathLike[str]"]


class Bind(TypedDict, total=False):
    """A directory or file of the host's that commands have. `source` must be given."""

    source: _Path
    place: Optional[_Path]
    writable: Optional[bool]


class ImagesConfig(TypedDict, total=False):
    """How images are pulled from registries by `skopeo`, and how much of the disk they may have."""

    pull: Optional[bool]
    """Whether an image that is not here is pulled; true unless given."""
    platform: Optional[str]
    """"amd64" or "arm64"; this machine's unless given."""
    auth_file: Optional[_Path]
    cert_dir: Optional[_Path]
    plain_http: Optional[List[str]]
    """Registries, as "host" or "host:port", that need no https."""
    retries: Optional[int]
    timeout_s: Optional[float]
    parallel: Optional[int]
    refresh_s: Optional[float]
    """How old the answer of a registry to a tag may be; any age unless given."""
    store_bytes: Optional[int]
    """Beyond this the images are removed that were not used for longest; no limit unless given."""


class LocalConfig(TypedDict, total=False):
    """The embedded sandbox."""

    slots: Optional[int]
    """How many trajectories have a workspace at the same time; 10 unless given."""
    data_dir: Optional[_Path]
    image: Optional[str]
    """The image whose files sandboxes have in place of the machine's: `dir:/path`, `oci:/path`,
    `docker-archive:/path`, or a name: of one that was imported, or else of a registry's."""
    images: Optional[ImagesConfig]
    user_ids: Optional[str]
    max_output_chars: Optional[int]
    max_output_file_bytes: Optional[int]
    max_file_bytes: Optional[int]
    warm_slots: Optional[bool]
    seccomp: Optional[bool]
    adopt_orphans: Optional[bool]
    allow_unisolated: Optional[bool]
    network: Optional[str]
    """"none", "proxy" or "host"."""
    allow_hosts: Optional[List[str]]
    log_egress: Optional[bool]
    ca_pem: Optional[str]
    limits: Optional[SlotLimits]
    binds: Optional[List[Bind]]
    env: Optional[Mapping[str, Optional[str]]]
    path_prepend: Optional[List[_Path]]
    devices: Optional[List[_Path]]


class FleetConfig(TypedDict, total=False):
    """Sandbox servers on other machines."""

    urls: Optional[List[str]]
    servers_file: Optional[_Path]
    servers_name: Optional[str]
    token: Optional[str]
    unreachable_timeout_s: Optional[float]
    start_timeout_s: Optional[float]
    bad_server_pause_s: Optional[float]
    allow_unisolated: Optional[bool]
    slots: Optional[int]
    ca_pem: Optional[str]


class SlurmJobs(TypedDict, total=False):
    """The jobs that sandbox servers run in, outside of an allocation."""

    partition: Optional[str]
    account: Optional[str]
    time: Optional[str]
    arguments: Optional[List[str]]


class SlurmConfig(TypedDict, total=False):
    """Sandbox servers that are started by Slurm, as many as trajectories need."""

    program: Optional[_Path]
    min_servers: Optional[int]
    max_servers: Optional[int]
    jobs: Optional[SlurmJobs]
    slots_per_server: Optional[int]
    server_arguments: Optional[List[str]]
    allow_unisolated: Optional[bool]
    start_timeout_s: Optional[float]
    idle_timeout_s: Optional[float]
    drain_before_s: Optional[float]
    unreachable_timeout_s: Optional[float]
    token: Optional[str]


class BackendConfig(TypedDict, total=False):
    """One of several kinds of slots: one of `local`, `fleet` and `slurm`."""

    name: Optional[str]
    spill_after_s: Optional[float]
    local: Optional[LocalConfig]
    fleet: Optional[FleetConfig]
    slurm: Optional[SlurmConfig]


class ToolServerConfig(TypedDict, total=False):
    """The server that runs external tools."""

    url: str
    token: Optional[str]
    concurrency: Optional[int]
    ca_pem: Optional[str]


class PolicyConfig(TypedDict, total=False):
    """What calls may do."""

    allow_network: Optional[bool]
    require_sandbox: Optional[bool]
    require_stateful_sandbox: Optional[bool]
    unknown_arguments: Optional[str]
    output_order: Optional[str]
    background: Optional[str]


class ToolsConfig(TypedDict, total=False):
    """Which tools there are, beside those that are functions."""

    builtin: Optional[bool]
    external: Optional[List[Mapping[str, Any]]]


class Settings(TypedDict, total=False):
    """The settings of an executor that may be keyword arguments."""

    local: Optional[LocalConfig]
    fleet: Optional[FleetConfig]
    slurm: Optional[SlurmConfig]
    backends: Optional[List[BackendConfig]]
    tool_server: Optional[ToolServerConfig]
    policy: Optional[PolicyConfig]
    batch_policy: Optional[str]
    batch_window_s: Optional[float]
    max_batch_size: Optional[int]
    queue_capacity: Optional[int]
    queue_timeout_s: Optional[float]
    acquire_timeout_s: Optional[float]
    max_timeout_s: Optional[float]
    default_timeout_s: Optional[float]
    answer_grace_s: Optional[float]
    reset_timeout_s: Optional[float]
    begin_timeout_s: Optional[float]
    close_timeout_s: Optional[float]
    on_lost_workspace: Optional[str]
    io_threads: Optional[int]
    handler_threads: Optional[int]
    idle_limit_s: Optional[float]


class Config(Settings, total=False):
    """The settings of an executor. `{"local": {}}` is the embedded sandbox with all its defaults;
    with none of `local`, `fleet`, `slurm` and `backends` there are functions of the program's and
    external tools only."""

    tools: Optional[ToolsConfig]


class TrajectoryLimits(TypedDict, total=False):
    """What one trajectory's slot may use, as far as that is less than `SlotLimits` allow."""

    processes: int
    memory_bytes: int
    cpu: float
    open_files: int
    file_bytes: int
    workspace_bytes: int
    files: int


class SpecFile(TypedDict, total=False):
    """A small file that a trajectory begins with: `path`, and `content` or `base64`, must be
    given; `mode` is octal digits, as `"0755"`."""

    path: str
    content: Union[str, bytes]
    base64: str
    mode: str


class TrajectorySpec(TypedDict, total=False):
    """What one trajectory asks for beyond the executor's settings, see `ToolExecutor.begin`. What is
    left out is as the settings have it; a spec narrows them, and never widens them."""

    image: Optional[str]
    snapshot: Optional[str]
    user: Optional[str]
    workdir: Optional[str]
    env: Mapping[str, str]
    limits: TrajectoryLimits
    network: Optional[str]
    allow_hosts: Optional[List[str]]
    background: Optional[str]
    max_wall_s: Optional[float]
    max_idle_s: Optional[float]
    files: List[SpecFile]
