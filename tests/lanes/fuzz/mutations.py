"""Random changes to inputs. An input is a Tree: files by name, or what is in place of a file.

Some changes ignore the format (CHANGES); others change fields of a NIfTI header, tags of a TIFF or values of JSON. A
mutator takes (rng, tree, others): the random generator, the input, and other inputs to take pieces from.
"""

import dataclasses
import json
import os
import pathlib
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Odd:
    """What is in place of a regular file: "folder", "pipe", "link" (to a path), or "long" (a sparse file).

    to: target of a link, or number of bytes of a long file.
    head: first bytes of a long file.
    """

    kind: str
    to: str = ""
    head: bytes = b""


Tree = dict[str, bytes | Odd]
Change = Callable[[random.Random, bytes, bytes], bytes]
"""From the bytes of a file, and of another one, to changed bytes."""
Mutator = Callable[[random.Random, Tree, Sequence[Tree]], Tree]

EXTREMES = (0, 1, 2, 3, 7, 8, 16, 63, 64, 127, 128, 255, 256, 4096, 32767, 32768, 65535, 65536, 1 << 24, (1 << 31) - 1)
EXTREMES += (1 << 31, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1)


def flip_bits(rng: random.Random, data: bytes, other: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def run_of_bytes(rng: random.Random, data: bytes, other: bytes) -> bytes:
    at, length = _part(rng, data)
    run = rng.choice((b"\0", b"\xff", b"A", b"\n", b" ")) * length if rng.random() < 0.6 else rng.randbytes(length)
    return data[:at] + run + data[at + length :]


def truncate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: rng.choice((0, rng.randrange(len(data)), rng.randrange(min(len(data), 600)), len(data) - 1))]


def duplicate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    at, length = _part(rng, data)
    return data[:at] + data[at : at + length] * rng.choice((2, 3, 50)) + data[at + length :]


def leave_out(rng: random.Random, data: bytes, other: bytes) -> bytes:
    at, length = _part(rng, data)
    return data[:at] + data[at + length :]


def splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    if rng.random() < 0.5:
        return data[: rng.randrange(len(data))] + other[rng.randrange(len(other) + 1) :]
    at, length = _part(rng, other)
    place = rng.randrange(len(data))
    return data[:place] + other[at : at + length] + data[place + length * rng.randrange(2) :]


def extreme_number(rng: random.Random, data: bytes, other: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        size = rng.choice((1, 2, 4, 8))
        if len(out) > size:
            value = (rng.choice(EXTREMES) & ((1 << 8 * size) - 1)).to_bytes(size, rng.choice(("little", "big")))
            at = rng.randrange(min(len(out), rng.choice((128, 1024, len(out)))) - size + 1) if len(out) > size else 0
            out[max(at, 0) : max(at, 0) + size] = value
    return bytes(out)


def _part(rng: random.Random, data: bytes) -> tuple[int, int]:
    length = min(len(data), rng.choice((1, 2, 4, 16, 64, 512, max(1, len(data) // 3))))
    return rng.randrange(len(data) - length + 1), length


CHANGES: tuple[Change, ...] = (
    *(flip_bits, flip_bits, run_of_bytes, truncate, duplicate, leave_out, splice, extreme_number, extreme_number),
)


def in_a_file(change: Change, like: str = "") -> Mutator:
    """A mutator that changes one of the files whose names end with `like`."""

    def mutate(rng: random.Random, tree: Tree, others: Sequence[Tree]) -> Tree:
        files = [
            name for name, content in tree.items() if name.endswith(like) and isinstance(content, bytes) and content
        ]
        if not files:
            return tree
        name = rng.choice(files)
        other = [c for c in rng.choice(others).values() if isinstance(c, bytes)] or [b""]
        return {**tree, name: change(rng, tree[name], rng.choice(other))}  # type: ignore[arg-type]

    return mutate


BYTES: tuple[Mutator, ...] = tuple(in_a_file(change) for change in CHANGES)

NAMES = (
    *(
        "a\nb",
        "a\tb\x1b[31m",
        "\x7f",
        "-rf",
        "--out",
        "~",
        "%s%n{0}",
        "NUL",
        "CON.png",
        "a b\u202egnp.exe",
        "\u00e9" * 80,
    ),
    *(
        "n" * 255,
        "\udcff\udcfe",
        "'\"`$(touch stray)`",
        "<script>alert(1)</script>",
        "*?[a-z]",
        "..",
        "...",
        " ",
        "a\\b",
    ),
)
"""File names without suffix."""
PLACES = ("/dev/zero", "/dev/null", "/proc/self/mem", ".", "..", "nowhere", "itself")
"""Targets of links; no large folder, because links are followed and all files there would be read."""


def in_place(rng: random.Random, tree: Tree, others: Sequence[Tree]) -> Tree:
    """Replace a file by something else."""
    name = rng.choice(list(tree))
    kind = rng.choice(("folder", "pipe", "link", "empty", "gone"))
    if kind == "gone":
        return {key: value for key, value in tree.items() if key != name} or {name: b""}
    to = rng.choice(PLACES)
    return {**tree, name: b"" if kind == "empty" else Odd(kind, name.rsplit("/", 1)[-1] if to == "itself" else to)}


def hostile_name(rng: random.Random, tree: Tree, others: Sequence[Tree]) -> Tree:
    """Rename a file."""
    name = rng.choice(list(tree))
    place, _, own = name.rpartition("/")
    dot, suffix = own.partition(".")[1:] if rng.random() < 0.8 else ("", "")
    new = f"{place}/" * bool(place) + rng.choice(NAMES) + dot + suffix
    if rng.random() < 0.1:
        new = "d/" * 60 + new
    return {(new if key == name else key): value for key, value in tree.items()}


def swap_files(rng: random.Random, tree: Tree, others: Sequence[Tree]) -> Tree:
    """Swap two files, or replace one by a file of another input."""
    if len(tree) < 2 or rng.random() < 0.3:
        return {**tree, rng.choice(list(tree)): rng.choice(list(rng.choice(others).values()))}
    one, two = rng.sample(list(tree), 2)
    return {**tree, one: tree[two], two: tree[one]}


PLACED: tuple[Mutator, ...] = (in_place, hostile_name, swap_files)

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e300, float("nan"), float("inf")),
    *("", "x", "0", "../../stray", "/tmp/mcis-fuzz-stray", "\0", "\ud800", "é" * 300, "x" * 100_000, "{}", "__proto__"),
    *([], {}, [[]], [None], [1, 2, 3, 4], {"a": 1}, [0] * 10_000, {"": {}}),
)
TEXTS = ("[" * 100_000, '{"a":' * 50_000, "1e999", "9" * 5000, "-", "NaN", '"\\ud800"', "[1,", "nul", '"\\x00"', "\x00")
"""Invalid JSON, or values that are problematic to read."""


def json_value(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Replace, remove or rename a value of a JSON file or of one line of it."""
    lines = data.splitlines(keepends=True) if b'"\n{' not in data and data.count(b"\n{") else [data]
    at = rng.randrange(len(lines)) if lines else 0
    try:
        content = json.loads(lines[at])
    except (ValueError, IndexError, RecursionError):
        return flip_bits(rng, data, other) if data else data
    marker = "b4d5ace0"
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        content = _changed(rng, content, marker)
    text = json.dumps(content, indent=rng.choice((None, 1)) if len(lines) == 1 else None)
    while f'"{marker}"' in text:
        text = text.replace(f'"{marker}"', rng.choice(TEXTS), 1)
    lines[at] = text.encode("utf-8", "surrogatepass") + b"\n"
    return b"".join(lines)


def _changed(rng: random.Random, content: Any, marker: str) -> Any:
    if isinstance(content, dict | list) and content and rng.random() < 0.85:
        key = rng.choice(list(content) if isinstance(content, dict) else range(len(content)))
        way = rng.random()
        if way > 0.2:
            content[key] = _changed(rng, content[key], marker)
        elif way > 0.1 or isinstance(content, list):
            content = content.copy()
            del content[key]
        else:
            content = {(str(rng.choice(VALUES)) if k == key else k): v for k, v in content.items()}
        return content
    return marker if rng.random() < 0.15 else rng.choice(VALUES)


CELLS = (
    "",
    "x",
    "\0",
    '"',
    '"""',
    ",,,,",
    "\n",
    "\r",
    "../../stray",
    "/etc/passwd",
    "x" * 200_000,
    "é",
    "1e999",
    "-1",
    ";",
)


def csv_cell(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Replace a cell of a table; remove or repeat a line."""
    lines = data.decode("utf-8", "replace").split("\n")
    at = rng.randrange(len(lines))
    if rng.random() < 0.2:
        lines[at : at + 1] = [lines[at]] * rng.choice((0, 2, 20))
    else:
        cells = lines[at].split(",")
        cells[rng.randrange(len(cells))] = rng.choice(CELLS)
        lines[at] = ",".join(cells)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def png_chunk(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Change the content of a PNG chunk and correct its checksum."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = struct.unpack_from(">I", data, at)[0]
        chunks.append([data[at + 4 : at + 8], data[at + 8 : at + 8 + length]])
        at += 12 + length
    if not chunks:
        return data
    one = rng.choice(chunks)
    change = rng.choice((extreme_number, flip_bits) if one[0] == b"IHDR" else CHANGES)
    one[1] = change(rng, one[1] or b"\0", other)
    if rng.random() < 0.1:
        chunks.insert(rng.randrange(len(chunks)), rng.choice(chunks))
    return data[:8] + b"".join(png(kind, content) for kind, content in chunks)


def png(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def tiff_tag(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Change the number, type, count or value of a TIFF tag in one of the directories."""
    if data[:4] not in (b"II*\0", b"II+\0"):
        return extreme_number(rng, data, other)
    out, big = bytearray(data), data[2] == 43
    link, count, entry = ("<Q", "<Q", 20) if big else ("<I", "<H", 12)
    at = struct.unpack_from(link, data, 8 if big else 4)[0]
    for _ in range(rng.randrange(3)):  # of the first page or a later one
        if at + 8 > len(data):
            break
        after = at + struct.calcsize(count) + entry * struct.unpack_from(count, data, at)[0]
        if after + 8 > len(data) or not (following := struct.unpack_from(link, data, after)[0]):
            break
        at = following
    if at + 8 > len(data):
        return flip_bits(rng, data, other)
    number = struct.unpack_from(count, data, at)[0]
    tag = at + struct.calcsize(count) + entry * rng.randrange(max(1, min(number, 40)))
    offset, size = rng.choice(((0, 2), (2, 2), (4, entry // 2 - 2), (entry // 2 + 2, entry // 2 - 2)))
    out[tag + offset : tag + offset + size] = (rng.choice(EXTREMES) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    return bytes(out)


def number_at(offsets: Sequence[tuple[int, str]]) -> Change:
    """A change of one of some fields, given as (offset, struct format)."""

    def change(rng: random.Random, data: bytes, other: bytes) -> bytes:
        out = bytearray(data)
        for _ in range(rng.choice((1, 1, 2))):
            offset, kind = rng.choice(offsets)
            if offset + struct.calcsize(kind) > len(out):
                continue
            if kind[-1] in "fd":
                value: Any = rng.choice(
                    (0.0, -1.0, 1e-30, 1e30, 352.0, 1e9, 2.0**31, float("nan"), float("inf"), -1e30)
                )
                struct.pack_into(kind, out, offset, value)
            else:
                size = struct.calcsize(kind)
                out[offset : offset + size] = (rng.choice(EXTREMES) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        return bytes(out)

    return change


def write_tree(tree: Tree, folder: pathlib.Path) -> None:
    """Write an input to a folder; skip what the file system does not accept."""
    for name, content in tree.items():
        path = os.path.join(folder, name)
        if "\0" in name or not os.path.normpath(path).startswith(f"{folder}/"):
            continue
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if isinstance(content, bytes):
                with open(path, "xb") as file:
                    file.write(content)
            elif content.kind == "folder":
                os.mkdir(path)
            elif content.kind == "pipe":
                os.mkfifo(path)
            elif content.kind == "long":
                with open(path, "xb") as file:
                    file.write(content.head)
                    file.truncate(int(content.to))
            else:
                os.symlink(content.to, path)
        except (OSError, UnicodeError):
            continue
