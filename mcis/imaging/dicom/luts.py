"""Lookup tables of DICOM headers: palettes and grey values, however many bits their entries are stored in. No JAX."""

import struct
from typing import Any, NamedTuple

import numpy as np

COLOURS = ("Red", "Green", "Blue")
MAX_ENTRIES = 1 << 16


class Table(NamedTuple):
    """A lookup table: the stored value of its first entry, its entries, int64 (N,), and the bits that these use."""

    first: int
    entries: np.ndarray
    bits: int


def apply(table: Table, values: np.ndarray) -> np.ndarray:
    """The entries of values; values before the first and after the last have these."""
    return table.entries[np.clip(np.asarray(values, np.int64) - table.first, 0, len(table.entries) - 1)]


def grey_table(item: Any, little_endian: bool, lowest: float) -> Table:
    """The table of an item of a VOI or modality LUT sequence, for values from `lowest`. ValueError if damaged."""
    count, first, bits = _descriptor(item.get("LUTDescriptor"), lowest)
    entries = _words(item.get("LUTData"), count, little_endian)
    return Table(first, entries, _bits([entries], bits))


def palette(header: Any, little_endian: bool, lowest: float) -> Table:
    """The colours of a palette as a table with entries uint8 (N, 3), for values from `lowest`.

    Raises:
      ValueError: it is missing or cannot be read.
    """
    entries, first, bits = [], 0, 16
    for colour in COLOURS:
        count, first, bits = _descriptor(header.get(f"{colour}PaletteColorLookupTableDescriptor"), lowest)
        data = header.get(f"{colour}PaletteColorLookupTableData")
        if data is not None:
            entries.append(_words(data, count, little_endian))
        else:
            segments = header.get(f"Segmented{colour}PaletteColorLookupTableData")
            entries.append(_expanded(segments, count, bits, little_endian))
    shift = max(0, _bits(entries, bits) - 8)
    length = max(map(len, entries))
    padded = [np.pad(one, (0, length - len(one)), mode="edge") for one in entries]
    return Table(first, np.clip(np.stack(padded, axis=-1) >> shift, 0, 255).astype(np.uint8), 8)


def _bits(tables: list[np.ndarray], stated: int) -> int:
    """Bits that entries use: those stated, unless the entries are larger, or are of 8 bits in words of 16."""
    largest = max(int(one.max()) for one in tables)
    if largest >= 1 << stated:
        return 16
    return 8 if stated == 16 and largest < 256 else stated


def _descriptor(value: Any, lowest: float) -> tuple[int, int, int]:
    """Number of entries, stored value of the first, and bits of an entry.

    Whether the first value is signed follows from the values that the table is for (PS3.3, C.11.1.1.1, C.11.2.1.1), of
    which `lowest` is the smallest possible: files state signed ones as unsigned and the reverse.
    """
    if isinstance(value, bytes):
        value = struct.unpack("<3H", value[:6])
    if value is None or len(value) != 3:
        raise ValueError("no descriptor of three numbers")
    count, first, bits = (int(part) for part in value)
    if not -MAX_ENTRIES // 2 <= count <= MAX_ENTRIES or not 1 <= bits <= 16:
        raise ValueError("a descriptor out of range")
    count = count % MAX_ENTRIES or MAX_ENTRIES
    first %= MAX_ENTRIES
    if lowest < 0 and first >= MAX_ENTRIES // 2 and first - MAX_ENTRIES + count > lowest:
        first -= MAX_ENTRIES
    return count, first, bits


def _raw(value: Any, little_endian: bool) -> bytes:
    """The bytes of a table, as of a little-endian file; pydicom returns some as numbers."""
    if isinstance(value, bytes):
        if little_endian or len(value) % 2:
            return value
        return np.frombuffer(value, ">u2").astype("<u2").tobytes()
    if value is None:
        raise ValueError("no table")
    numbers = np.atleast_1d(np.asarray(value, np.int64)) & 0xFFFF
    return numbers.astype("<u2").tobytes()


def _words(value: Any, count: int, little_endian: bool) -> np.ndarray:
    """The entries of a table: one byte each if there are as many bytes, else two."""
    data = _raw(value, little_endian)
    if len(data) < 2:
        raise ValueError("an empty table")
    if count <= len(data) <= count + 1 < 2 * count:
        return np.frombuffer(data, np.uint8)[:count].astype(np.int64)
    return np.frombuffer(data[: len(data) // 2 * 2], "<u2")[:count].astype(np.int64)


def _expanded(value: Any, count: int, bits: int, little_endian: bool) -> np.ndarray:
    """The entries of a segmented table (PS3.3, C.7.9.2)."""
    data = _raw(value, little_endian)
    for form in ("<B", "<H") if bits == 8 else ("<H", "<B"):
        size = struct.calcsize(form)
        codes = [code for (code,) in struct.iter_unpack(form, data[: len(data) // size * size])]
        entries: list[int] = []
        try:
            _expand(codes, 0, None, entries, count, size)
        except (IndexError, ValueError):
            continue
        if len(entries) == count:
            return np.array(entries, np.int64)
    raise ValueError("a segmented table of another length than its descriptor says")


def _expand(codes: list[int], at: int, left: int | None, entries: list[int], count: int, size: int) -> None:
    """Append the entries of the segments from index `at`: of `left` segments, or until there are `count` entries."""
    while at + 1 < len(codes) and len(entries) < count and left != 0:
        kind, length = codes[at], codes[at + 1]
        if kind == 0:  # discrete
            entries += codes[at + 2 : at + 2 + length]
            at += 2 + length
        elif kind == 1:  # linear
            first, last = entries[-1], codes[at + 2]
            entries += [round(first + (last - first) * step / length) for step in range(1, length + 1)]
            at += 3
        elif kind == 2 and left is None:  # indirect: segments from a byte offset, of two words of 16 bits
            words = 4 // size
            low, high = (
                sum(code << 8 * size * index for index, code in enumerate(codes[start : start + words // 2]))
                for start in (at + 2, at + 2 + words // 2)
            )
            _expand(codes, (high << 16 | low) // size, length, entries, count, size)
            at += 2 + words
        else:
            raise ValueError("an unknown segment")
        left = None if left is None else left - 1
