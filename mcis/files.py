"""JSON that somebody else may have written: of plain files, bounded, of the types it should be. Standard library."""

import json
import os
import pathlib
import types
import typing
from collections.abc import Iterator
from typing import Any, TypeVar

T = TypeVar("T")

MAX_BYTES = 1 << 25
"""Of a file. What it holds takes up to 24 times as much in memory: "[]," is a list."""
MAX_LINE = 1 << 24
"""Bytes of a line: half a million lesions of a finding."""


def parse_json(text: bytes | str) -> Any:
    """What a JSON text says. ValueError where it is none, or is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: str | os.PathLike, most: int = MAX_BYTES) -> Any:
    """What a JSON file of at most so many bytes says.

    Raises:
      ValueError: it is none, or is no plain file: a pipe would block, and a device may have no end.
      OSError: it is not there, or may not be read.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError("no plain file")
    with open(path, "rb") as file:
        try:
            text = file.read(most + 1)
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None  # Python does not say of which file
    if len(text) > most:
        raise ValueError(f"more than {most >> 20} MiB")
    return parse_json(text)


def from_json(kind: type[T], text: bytes | str) -> T:
    """A dataclass of a JSON object. Keys that are not its fields are ignored.

    Raises:
      ValueError: it is no JSON, or the dataclass refuses it.
      TypeError: it is no object, lacks a field, or has one of another type.
    """
    values = parse_json(text)
    if not isinstance(values, dict):
        raise TypeError("no object")
    fields = typing.get_type_hints(kind)
    made = kind(**{name: values[name] for name in fields if name in values})
    if strange := [name for name, of in fields.items() if not _is_a(getattr(made, name), of)]:
        raise TypeError(f"{', '.join(strange)} of another type")
    return made


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of a field's type; a float may be an integer, or null where it was not finite."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return any(_is_a(value, part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(_is_a(part, parts[0]) for part in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is_a(part, parts[1]) for part in value.values())
    return type(value) in ((float, int, types.NoneType) if kind is float else (kind,))


def read_lines(path: str | os.PathLike, kind: type[T], error: type[ValueError] = ValueError) -> Iterator[T]:
    """Stream a file of a dataclass a line. A last line cut short (a full disk, a crash) is left out.

    Raises:
      error: another line is none, and the message gives its number; or it is no plain file.
      OSError: it is not there, or may not be read.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would block
        raise error(f"{path}: no plain file; is this a report?")
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), 1):
            if not line.endswith(b"\n") and len(line) < MAX_LINE:
                return
            try:
                made = from_json(kind, line)
            except (ValueError, TypeError):
                raise error(f"{path}: line {number} is no {kind.__name__.lower()}; is this a report?") from None
            yield made


def expand_user(path: str | os.PathLike) -> pathlib.Path:
    """`path` with a leading ~ or ~user replaced; ValueError where there is no such user."""
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path}: there is no such user; write the folder out") from None
