"""Files that may be damaged or written by others: JSON within limits and of the right types; atomic writes.

Standard library only.
"""

import contextlib
import json
import os
import pathlib
import types
import typing
from collections.abc import Iterator
from typing import Any, TypeVar

T = TypeVar("T")

MAX_BYTES = 1 << 25
"""Bytes of a JSON file; its content takes up to 24 times as much memory: "[]," is a list."""
MAX_LINE = 1 << 24
"""Bytes of a line: a finding with half a million lesions."""


def parse_json(text: bytes | str) -> Any:
    """The content of a JSON text. ValueError if it is invalid or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> Any:
    """The content of a JSON file.

    Raises:
      ValueError: invalid JSON, more than `max_bytes`, or not a regular file: a pipe would block, a device may not end.
      OSError: the file does not exist or cannot be read.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError("not a regular file")
    with open(path, "rb") as file:
        try:
            text = file.read(max_bytes + 1)
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None  # Python does not name the file
    if len(text) > max_bytes:
        raise ValueError(f"more than {max_bytes >> 20} MiB")
    return parse_json(text)


def from_json(kind: type[T], text: bytes | str) -> T:
    """A dataclass from a JSON object. Keys that are not fields are ignored.

    Raises:
      ValueError: invalid JSON, or the dataclass raises it.
      TypeError: not an object, or a field is missing or has the wrong type.
    """
    values = parse_json(text)
    if not isinstance(values, dict):
        raise TypeError("not an object")
    field_types = typing.get_type_hints(kind)
    made = kind(**{name: values[name] for name in field_types if name in values})
    if wrong := [name for name, field_type in field_types.items() if not _is_a(getattr(made, name), field_type)]:
        raise TypeError(f"wrong type of {', '.join(wrong)}")
    return made


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a JSON value has a field's type; a float may be an integer, or null if it was not finite."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return any(_is_a(value, part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(_is_a(part, parts[0]) for part in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is_a(part, parts[1]) for part in value.values())
    return type(value) in ((float, int, types.NoneType) if kind is float else (kind,))


def read_lines(path: str | os.PathLike, kind: type[T], error: type[ValueError] = ValueError) -> Iterator[T]:
    """Stream a file with one dataclass per line. A truncated last line (full disk, crash) is skipped.

    Raises:
      error: another line is invalid, and the message gives its number; or not a regular file.
      OSError: the file does not exist or cannot be read.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would block
        raise error(f"{path}: not a regular file; is this a report?")
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), 1):
            if not line.endswith(b"\n") and len(line) < MAX_LINE:
                return
            try:
                made = from_json(kind, line)
            except (ValueError, TypeError):
                raise error(f"{path}: line {number} is not a {kind.__name__.lower()}; is this a report?") from None
            yield made


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 file atomically, as `write_bytes` does, with line ends as they are in `text`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write a file atomically: after a crash or error, and for readers at any time, it is the old file or the new one.

    The data goes to a hidden file in the same folder, which then replaces `path`.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # two processes may write the same file
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
