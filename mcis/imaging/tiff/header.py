"""Directories of TIFF files: which pages there are, and how a page is stored. Nothing is decoded here. No JAX."""

import itertools
import struct
from collections.abc import Iterator
from typing import BinaryIO, Literal, NamedTuple

import numpy as np

from mcis.imaging.scan import MAX_FRAMES

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
DAMAGED = (OSError, KeyError, IndexError, struct.error, OverflowError, ValueError)
"""Errors of reading a damaged header."""
REDUCED, MASK = 1, 4
"""Bits of NewSubfileType: a thumbnail of another page, a transparency mask of another page."""
TYPES = {1: "u1", 2: "u1", 3: "u2", 4: "u4", 5: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 13: "u4", 16: "u8"}
"""Types of values (TIFF 6.0, page 15) as NumPy's; a fraction is two numbers."""
ORDERS: dict[bytes, Literal["<", ">"]] = {b"II": "<", b"MM": ">"}
MAX_ENTRIES = 4096
MAX_VALUES = 1 << 22
"""Values of one tag; a page has as many offsets as strips or tiles."""


class TiffPage(NamedTuple):
    """Directory of a page: offset of its entries, their number, byte order, whether a BigTIFF, its NewSubfileType."""

    offset: int
    entries: int
    order: Literal["<", ">"]
    big: bool
    kind: int = 0


def tiff_pages(file: BinaryIO) -> Iterator[TiffPage]:
    """The pages of a TIFF file, each once.

    A page outside the file is the last, without entries. Damage raises nothing here: decoding the page reports it.
    """
    try:
        order = ORDERS[file.read(2)]
        big = _number(file, f"{order}H") == 43
        count, entry_size, link = ("Q", 20, "Q") if big else ("H", 12, "I")
        file.seek(8 if big else 4)
        seen: set[int] = set()
        while (offset := _number(file, f"{order}{link}")) and offset not in seen:
            seen.add(offset)
            try:
                file.seek(offset)
                entries = _number(file, f"{order}{count}")
            except DAMAGED:
                yield TiffPage(offset, 0, order, big)
                return
            start = file.tell()
            yield TiffPage(start, entries, order, big, _kind(file.read(entry_size), order, big) if entries else 0)
            file.seek(start + entries * entry_size)
    except DAMAGED:
        return


def _kind(entry: bytes, order: str, big: bool) -> int:
    """NewSubfileType by the first entry of a directory: entries are in ascending order, and it is the lowest."""
    if len(entry) < 12:
        return 0
    tag, form = struct.unpack_from(f"{order}HH", entry)
    value = struct.unpack_from(order + ("H" if form == 3 else "I"), entry, 12 if big else 8)[0]
    return value if tag == 254 else {2: REDUCED}.get(value, 0) if tag == 255 else 0


def scan_pages(file: BinaryIO) -> list[TiffPage]:
    """The pages that are pictures of their own, at most MAX_FRAMES + 1: no thumbnails and transparency masks of others.

    All pages, if there is no such page.
    """
    pages = list(itertools.islice(tiff_pages(file), MAX_FRAMES + 1))
    return [page for page in pages if not page.kind & (REDUCED | MASK)] or pages


def tags_of(file: BinaryIO, page: TiffPage) -> dict[int, np.ndarray]:
    """The values of a page's tags, 1-D integers. Tags of other types, or with too many values, are left out.

    Raises:
      ValueError, struct.error: values lie outside the file.
    """
    found: dict[int, np.ndarray] = {}
    long = page.order + ("Q" if page.big else "I")
    entry_size, inline = (20, 8) if page.big else (12, 4)
    for number in range(min(page.entries, MAX_ENTRIES)):
        file.seek(page.offset + number * entry_size)
        tag, form = _number(file, f"{page.order}H"), _number(file, f"{page.order}H")
        count = _number(file, long)
        if form not in TYPES or not 0 < count <= MAX_VALUES or tag in found:
            continue
        dtype = np.dtype(TYPES[form]).newbyteorder(page.order)
        size = count * dtype.itemsize * (2 if form == 5 else 1)
        if size > inline:
            file.seek(_number(file, long))
        data = file.read(size)
        if len(data) < size:
            raise ValueError("a tag outside the file")
        values = np.frombuffer(data, dtype)
        found[tag] = values.astype(np.int64) if dtype.itemsize < 8 else values.astype(np.uint64).view(np.int64)
    return found


def orientation_of(file: BinaryIO) -> int:
    """The orientation of the first page, 1 to 8; 1 if it is missing or invalid. Also for the TIFF inside of Exif."""
    try:
        page = next(tiff_pages(file))
        return valid_orientation(int(tags_of(file, page).get(274, [1])[0]))
    except (StopIteration, *DAMAGED):
        return 1


def valid_orientation(value: int) -> int:
    """1 for a value that is no orientation."""
    return value if 1 <= value <= 8 else 1


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror (H, W, ...) as stored to how it is displayed (TIFF 6.0, Orientation; Exif 2.3).

    >>> upright(np.array([[1, 2, 3]]), 6).tolist(), upright(np.array([[1, 2, 3]]), 3).tolist()
    ([[1], [2], [3]], [[3, 2, 1]])
    """
    if orientation >= 5:  # rows are columns
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array


def _number(file: BinaryIO, form: str) -> int:
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]
