"""JSON that somebody else may have written: of a plain file, of bounded size and depth. Standard library only."""

import json
import os
from typing import Any

MAX_BYTES = 1 << 25
"""Of a file. What it holds takes up to 24 times as much in memory: "[]," is a list."""


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
