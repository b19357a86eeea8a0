"""The C library by ctypes: its functions, its structs, and the text that goes in and out.

Functions that never wait are called without letting go of the interpreter's lock (`quick`): to let
go of it costs more than they do, above all where many threads want it. The others let go of it
(`slow`).
"""

from __future__ import annotations

import ctypes
import json
import os
import re
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int32, c_int64, c_size_t, c_uint8
from ctypes import c_uint64, c_void_p
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ._errors import (
    ConfigError,
    InternalError,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    LibraryError,
    error_of,
)

OK, TIMEOUT, CLOSED, QUEUE_FULL, COMPLETIONS_FULL = 0, 1, 2, 3, 4
ABI = 1
VARIABLE = "TOOL_EXECUTOR_LIBRARY"


class Buffer(ctypes.Structure):
    """te_buffer."""

    _fields_ = [("data", c_void_p), ("len", c_size_t)]


class CallOfTool(ctypes.Structure):
    """te_tool_call."""

    _fields_ = [
        ("name", c_void_p),
        ("name_len", c_size_t),
        ("trajectory", c_void_p),
        ("trajectory_len", c_size_t),
        ("uniq_id", c_void_p),
        ("uniq_id_len", c_size_t),
        ("arguments", c_void_p),
        ("arguments_len", c_size_t),
        ("remaining_s", c_double),
    ]


TOOL_FUNCTION = ctypes.CFUNCTYPE(c_int32, c_void_p, POINTER(CallOfTool), c_void_p)

READ_FUNCTION = ctypes.CFUNCTYPE(c_int64, c_void_p, c_void_p, c_size_t)
WRITE_FUNCTION = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)

_TEXT: List[Any] = [c_char_p, c_size_t]
_BUFFER = POINTER(Buffer)

# Never wait.
_QUICK: Dict[str, Tuple[Any, List[Any]]] = {
    "te_version": (c_char_p, []),
    "te_abi_version": (ctypes.c_uint32, []),
    "te_last_error": (c_char_p, []),
    "te_status_name": (c_char_p, [c_int32]),
    "te_buffer_free": (None, [_BUFFER]),
    "te_tools_new": (c_int32, [POINTER(c_void_p)]),
    "te_tools_add": (c_int32, [c_void_p, *_TEXT, TOOL_FUNCTION, c_void_p, c_void_p]),
    "te_tools_free": (None, [c_void_p]),
    "te_tool_reply_ok": (c_int32, [c_void_p, *_TEXT]),
    "te_tool_reply_error": (c_int32, [c_void_p, *_TEXT]),
    "te_tool_reply_fail": (c_int32, [c_void_p, *_TEXT]),
    "te_tool_reply_wanted": (c_int32, [c_void_p, POINTER(c_int32)]),
    "te_tool_reply_free": (None, [c_void_p]),
    "te_submit": (c_int32, [c_void_p, *_TEXT, *_TEXT, c_uint64, POINTER(c_void_p)]),
    "te_call_cancel": (c_int32, [c_void_p]),
    "te_call_free": (None, [c_void_p]),
    "te_queue_new": (c_int32, [c_void_p, c_size_t, POINTER(c_void_p)]),
    "te_queue_next_json": (c_int32, [c_void_p, c_size_t, c_double, _BUFFER]),
    "te_queue_fd": (c_int32, [c_void_p, POINTER(c_int)]),
    "te_queue_free": (None, [c_void_p]),
    "te_result_read": (c_int32, [*_TEXT, POINTER(c_void_p)]),
    "te_result_xml": (c_int32, [c_void_p, POINTER(c_void_p), POINTER(c_size_t)]),
    "te_result_message": (c_int32, [c_void_p, *_TEXT, _BUFFER]),
    "te_result_free": (None, [c_void_p]),
    "te_outcome_name": (c_char_p, [c_int32]),
}
# May wait, for a moment or long.
_SLOW: Dict[str, Tuple[Any, List[Any]]] = {
    "te_executor_new": (c_int32, [*_TEXT, c_void_p, POINTER(c_void_p)]),
    "te_executor_close": (c_int32, [c_void_p, c_double, POINTER(c_uint64), POINTER(c_int32)]),
    "te_executor_free": (None, [c_void_p]),
    "te_describe": (c_int32, [c_void_p, _BUFFER]),
    "te_stats": (c_int32, [c_void_p, _BUFFER]),
    "te_cancel_trajectory": (c_int32, [c_void_p, *_TEXT]),
    "te_begin": (c_int32, [c_void_p, *_TEXT, *_TEXT, POINTER(c_int32)]),
    "te_submit_begin": (c_int32, [c_void_p, *_TEXT, *_TEXT]),
    "te_release": (c_int32, [c_void_p, *_TEXT, c_int32]),
    "te_submit_release": (c_int32, [c_void_p, *_TEXT, c_int32]),
    "te_parse_text": (c_int32, [c_void_p, *_TEXT, *_TEXT, _BUFFER]),
    "te_parse_message": (c_int32, [c_void_p, *_TEXT, *_TEXT, _BUFFER]),
    "te_queue_next_json": (c_int32, [c_void_p, c_size_t, c_double, _BUFFER]),
    "te_artifact_read": (c_int32, [c_void_p, *_TEXT, *_TEXT, _BUFFER, _BUFFER]),
    "te_artifact_list": (c_int32, [c_void_p, *_TEXT, *_TEXT, _BUFFER]),
    "te_artifact_archive": (c_int32, [c_void_p, *_TEXT, *_TEXT, _BUFFER, _BUFFER]),
    "te_artifact_copy": (c_int32, [c_void_p, *_TEXT, *_TEXT, c_int, POINTER(c_uint64)]),
    "te_artifact_copy_to": (
        c_int32,
        [c_void_p, *_TEXT, *_TEXT, WRITE_FUNCTION, c_void_p, POINTER(c_uint64)],
    ),
    "te_files_put": (c_int32, [c_void_p, *_TEXT, *_TEXT, READ_FUNCTION, c_void_p, _BUFFER]),
    "te_tree_put": (c_int32, [c_void_p, *_TEXT, *_TEXT, *_TEXT, _BUFFER]),
    "te_snapshot": (c_int32, [c_void_p, *_TEXT, *_TEXT, _BUFFER]),
    "te_snapshot_drop": (c_int32, [c_void_p, *_TEXT]),
    "te_snapshots": (c_int32, [c_void_p, _BUFFER]),
    "te_fork": (c_int32, [c_void_p, *_TEXT, *_TEXT, _BUFFER]),
    "te_grade": (c_int32, [c_void_p, *_TEXT, *_TEXT, _BUFFER]),
    "te_archive_copy": (c_int32, [c_void_p, *_TEXT, *_TEXT, c_int, _BUFFER]),
}
assert ctypes.sizeof(c_uint8) == 1


def _path() -> str:
    """Where the library is: what the variable names, else beside this file."""
    named = os.environ.get(VARIABLE)
    if named:
        return named
    return str(Path(__file__).with_name("libtool_executor.so"))


def _load() -> Tuple[Any, Any]:
    path = _path()
    libraries: List[Any] = []
    try:
        for kind, functions in ((ctypes.PyDLL, _QUICK), (ctypes.CDLL, _SLOW)):
            library: Any = kind(path)
            for name, (result, arguments) in functions.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
            libraries.append(library)
    except (OSError, AttributeError) as error:
        raise LibraryError(
            f"the library of tool-executor cannot be loaded: {error}. An installed wheel has it "
            f"beside this package; the variable {VARIABLE} names another one "
            "(libtool_executor.so, as `cargo build --release` leaves it in target/release)"
        ) from error
    quick, slow = libraries
    if quick.te_abi_version() != ABI:
        raise LibraryError(
            f"{path} has the ABI {quick.te_abi_version()}, this package needs {ABI}: "
            f"unset {VARIABLE}, or install the package that belongs to that library"
        )
    return quick, slow


quick, slow = _load()
# With keyword arguments this has to be looked up at each call; the encoder is the same one.
_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_string_at = ctypes.string_at
# `json.loads` takes as long again to find out what it is given.
_raw_decode = json.JSONDecoder().raw_decode


def check(status: int) -> None:
    """Raises what a status says, unless that is OK."""
    if status != OK:
        name = quick.te_status_name(status).decode()
        raise error_of(name, quick.te_last_error().decode(errors="replace"))


def version() -> str:
    """The library's version, such as "0.1.0"."""
    text: bytes = quick.te_version()
    return text.decode()


def text_of(value: Any, what: str) -> bytes:
    """Text as the library takes it."""
    if type(value) is not str:
        kind = type(value).__name__
        raise InvalidArgumentTypeError(f"{what} must be a str, and is of type {kind}: {value!r:.80}")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"{what} is no Unicode text: {error}") from error


# The library's numbers have 64 bits.
_MANY_DIGITS = re.compile(r"\d{19,}")


def json_of(value: Any, what: str) -> bytes:
    """A value in JSON."""
    try:
        text = _encode(value)
    except TypeError as error:
        raise InvalidArgumentTypeError(f"{what} is not JSON: {error}") from error
    except ValueError as error:
        raise InvalidArgumentError(f"{what} is not JSON: {error}") from error
    except RecursionError as error:
        raise InvalidArgumentError(f"{what} is nested too deeply for JSON") from error
    if _MANY_DIGITS.search(text) is not None:
        _refuse_huge(value, what)
    return text.encode()


def _refuse_huge(value: Any, what: str) -> None:
    """An integer beyond 64 bits would arrive as another number."""
    stack: List[Any] = [value]
    while stack:
        one: Any = stack.pop()
        if isinstance(one, int) and not -(2**63) <= one < 2**64:
            digits = one.bit_length()
            text = f"{what} has an integer of {digits} bits, and 64 are the most: pass it as text"
            raise InvalidArgumentError(text)
        if isinstance(one, dict):
            stack.extend(one.values())  # pyright: ignore[reportUnknownArgumentType]
        elif isinstance(one, (list, tuple)):
            stack.extend(one)  # pyright: ignore[reportUnknownArgumentType]


def _of_config(value: Any) -> Any:
    path: Any = value.__fspath__() if hasattr(value, "__fspath__") else None
    if isinstance(path, str):
        return path
    raise TypeError(f"{value!r:.80} is of type {type(value).__name__}")


def config_json(config: Mapping[str, Any]) -> bytes:
    """A configuration in JSON; paths are text there."""
    try:
        return json.dumps(config, allow_nan=False, default=_of_config).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the configuration is not JSON: {error}") from error


def seconds_of(value: Any, what: str) -> float:
    """A number of seconds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        kind = type(value).__name__
        raise InvalidArgumentTypeError(f"{what} must be a number of seconds, and is of type {kind}")
    try:
        seconds = float(value)
    except OverflowError as error:
        raise InvalidArgumentError(f"{what} is too large: {error}") from error
    if seconds != seconds:
        raise InvalidArgumentError(f"{what} is NaN; it must be a number of seconds")
    return seconds


def take(buffer: Buffer) -> bytes:
    """What is in a buffer, which is freed."""
    try:
        return _string_at(buffer.data, buffer.len) if buffer.len else b""
    finally:
        quick.te_buffer_free(byref(buffer))


def take_json(buffer: Buffer) -> Any:
    """The JSON in a buffer, which is freed."""
    return _raw_decode(take(buffer).decode())[0]


def json_in(buffer: Buffer) -> Any:
    """The JSON in a buffer, which is not freed."""
    return _raw_decode(_string_at(buffer.data, buffer.len).decode())[0]


def read_result(json_text: bytes) -> c_void_p:
    """A result of the library's, of its JSON; to be freed."""
    result = c_void_p()
    check(quick.te_result_read(json_text, len(json_text), byref(result)))
    return result


def xml_of(json_text: bytes) -> str:
    """A result, given in JSON, as a model is shown it."""
    result = read_result(json_text)
    try:
        text, size = c_void_p(), c_size_t()
        check(quick.te_result_xml(result, byref(text), byref(size)))
        return _string_at(text.value or 0, size.value).decode() if size.value else ""
    finally:
        quick.te_result_free(result)


def message_of(json_text: bytes, form: str) -> Dict[str, Any]:
    """A result, given in JSON, as the message that answers its call."""
    name = text_of(form, "the form of the message")
    result = read_result(json_text)
    try:
        buffer = Buffer()
        check(quick.te_result_message(result, name, len(name), byref(buffer)))
        message: Any = take_json(buffer)
    finally:
        quick.te_result_free(result)
    if not isinstance(message, dict):
        raise InternalError("a message is no object")
    return message  # pyright: ignore[reportUnknownVariableType]


def optional_json(request: Mapping[str, Optional[Any]]) -> Tuple[bytes, int]:
    """A request of the keys that are given."""
    given = {key: value for key, value in request.items() if value is not None}
    text = json_of(given, "the request")
    return text, len(text)
