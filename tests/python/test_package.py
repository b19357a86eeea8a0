"""What is installed."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import tool_executor


def test_the_installed_package_is_tested_and_brings_its_library() -> None:
    place = Path(tool_executor.__file__).parent
    assert Path(sys.prefix) in place.parents, f"the tests ran against {place}"
    assert (place / "libtool_executor.so").is_file() and (place / "py.typed").is_file()
    assert "TOOL_EXECUTOR_LIBRARY" not in os.environ
    maps = Path("/proc/self/maps").read_text()
    assert str(place / "libtool_executor.so") in maps
    assert not [name for name in place.iterdir() if name.suffix == ".rs"]


def test_the_program_is_on_the_path_and_of_the_same_version() -> None:
    path = str(Path(sys.executable).parent)
    program = shutil.which("tool-executor", path=path)
    assert program is not None
    said = subprocess.run([program, "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout
    version = importlib.metadata.version("tool-executor")
    assert said.split()[-1] == version == tool_executor.__version__


def test_everything_public_is_documented() -> None:
    for name in tool_executor.__all__:
        one = getattr(tool_executor, name)
        assert one.__doc__, name
        if isinstance(one, type) and one.__module__.startswith("tool_executor"):
            for member, value in vars(one).items():
                if not member.startswith("_") and callable(value):
                    assert value.__doc__, f"{name}.{member}"


def test_a_library_that_cannot_be_loaded_is_an_error_that_names_the_variable(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.so"
    wrong.write_bytes(b"no library")
    libc = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libc.so" in line)
    for library in (tmp_path / "missing.so", wrong, libc):
        done = subprocess.run(
            [sys.executable, "-c", "import tool_executor"],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TOOL_EXECUTOR_LIBRARY": str(library)},
        )
        assert done.returncode == 1
        assert "LibraryError" in done.stderr and "TOOL_EXECUTOR_LIBRARY names" in done.stderr
