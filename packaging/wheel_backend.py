"""The wheel's build backend: maturin, and the C library beside the Python package.

maturin builds a program or a library into a wheel, never both, and what it does for a library
(`bindings = "cffi"`) wants cffi. So it builds the program, with the package beneath `python`. The
library is linked by the same run of cargo, since it is a crate type of the crate that the program
uses; it is put into the wheel here.
"""

import base64
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, List, Mapping, Optional

import maturin
from maturin import (  # noqa: F401 -- hooks of the interface
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

LIBRARY = "tool_executor/libtool_executor.so"
Settings = Optional[Mapping[str, Any]]


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: Optional[str] = None
) -> str:
    """Builds the program, the library and the package into one wheel."""
    # The symbols of functions are twice what is needed to run.
    os.environ.setdefault("CARGO_PROFILE_RELEASE_STRIP", "symbols")
    with tempfile.TemporaryDirectory() as directory:
        name = maturin.build_wheel(directory, config_settings, metadata_directory)
        library = _library(maturin.get_maturin_pep517_args(config_settings))
        _add(Path(directory, name), Path(wheel_directory, name), library)
    return name


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: Optional[str] = None
) -> str:
    """The same with the package in this tree, where the library is copied to."""
    name = maturin.build_editable(wheel_directory, config_settings, metadata_directory)
    library = _library(maturin.get_maturin_pep517_args(config_settings))
    Path("python", LIBRARY).write_bytes(library.read_bytes())
    return name


def _library(arguments: List[str]) -> Path:
    """The library that maturin's run of cargo with these arguments has linked."""
    profile = _value(arguments, "--profile") or "release"
    target = _value(arguments, "--target") or os.environ.get("CARGO_BUILD_TARGET", "")
    if not target and "--zig" in arguments:
        target = _output("rustc", "--print", "host-tuple").strip()
    metadata = json.loads(_output("cargo", "metadata", "--format-version=1", "--no-deps"))
    # Cargo's name for the directory of its own profile.
    directory = {"dev": "debug", "test": "debug", "bench": "release"}.get(profile, profile)
    built = Path(metadata["target_directory"], target, directory, "deps", Path(LIBRARY).name)
    if not built.is_file():
        sys.exit(f"error: cargo has left no {built}; Cargo.toml's crate-type needs \"cdylib\"")
    return built


def _value(arguments: List[str], option: str) -> Optional[str]:
    """What an option is given, as `--option value` or `--option=value`."""
    for index, argument in enumerate(arguments):
        if argument == option:
            return arguments[index + 1]
        if argument.startswith(option + "="):
            return argument[len(option) + 1 :]
    return None


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _add(wheel: Path, to: Path, library: Path) -> None:
    """Copies a wheel, with the library in it and in its record."""
    content = library.read_bytes()
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as new:
        (record,) = [entry for entry in old.infolist() if entry.filename.endswith(".dist-info/RECORD")]
        for entry in old.infolist():
            if entry is not record:
                new.writestr(entry, old.read(entry))
        added = zipfile.ZipInfo(LIBRARY, record.date_time)
        added.external_attr, added.compress_type = 0o100755 << 16, zipfile.ZIP_DEFLATED
        new.writestr(added, content)
        lines = io.StringIO()
        lines.write(old.read(record).decode())
        csv.writer(lines, lineterminator="\n").writerow([LIBRARY, f"sha256={digest}", len(content)])
        new.writestr(record, lines.getvalue())
