"""Sizes that image files state in their headers, read before a decoder allocates memory. Standard library only."""

import io
import itertools
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")
"""First bytes of a PNG, JPEG, TIFF or BMP file."""
JPEG_FRAME_HEADERS = {0xFFF7, *range(0xFFC0, 0xFFD0)} - {0xFFC4, 0xFFC8, 0xFFCC}
"""Markers that precede the size in a JPEG or JPEG-LS file (ITU-T T.81, table B.1; T.87)."""
DAMAGED = (OSError, KeyError, struct.error, OverflowError, ValueError)
"""Errors of reading a damaged header."""


def is_image(data: bytes) -> bool:
    """Whether a file begins like a PNG, JPEG, TIFF or BMP file."""
    return data.startswith(SIGNATURES)


def png_bytes(data: bytes) -> int:
    """Bytes of the decoded pixels of a PNG file."""
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    return width * height * {0: 1, 4: 2, 6: 4}.get(colour, 3) * (2 if depth == 16 else 1)


class TiffPage(NamedTuple):
    """Directory of one page of a TIFF: offset of its entries, their number, byte order, whether a BigTIFF."""

    offset: int
    entries: int
    order: str
    big: bool


def tiff_pages(file: BinaryIO) -> Iterator[TiffPage]:
    """The pages of a TIFF file, each once.

    A page outside the file is the last, without entries. Damage raises nothing here: decoding the page reports it.
    """
    try:
        order = {b"II": "<", b"MM": ">"}[file.read(2)]
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
            yield TiffPage(start, entries, order, big)
            file.seek(start + entries * entry_size)
    except DAMAGED:
        return


def tiff_bytes(data: bytes, frame: int) -> int:
    """Bytes of the decoded pixels of one page of a TIFF file, by the page's tags; 0 if there is no such page."""
    file = io.BytesIO(data)
    page = next(itertools.islice(tiff_pages(file), frame, None), None)
    if page is None:
        return 0
    tags = {256: 0, 257: 0, 258: 1, 277: 1}  # width, height, bits, samples per pixel
    types = {1: "B", 3: "H", 4: "I", 16: "Q"}
    long = page.order + ("Q" if page.big else "I")
    for number in range(min(page.entries, 4096)):
        file.seek(page.offset + number * (20 if page.big else 12))
        tag, kind = (_number(file, f"{page.order}H") for _ in range(2))
        count = _number(file, long)
        if tag in tags and kind in types:
            if count * struct.calcsize(types[kind]) > struct.calcsize(long):  # the values are elsewhere in the file
                file.seek(_number(file, long))
            tags[tag] = _number(file, page.order + types[kind])
    width, height, bits, samples = tags.values()
    return width * height * samples * max(8, bits) // 8


def _number(file: BinaryIO, form: str) -> int:
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]


class Codestream(NamedTuple):
    """Header of a JPEG, JPEG-LS or JPEG 2000 codestream; `memory` are the bytes needed to decode it."""

    width: int
    height: int
    samples: int
    bits: int
    memory: int


def codestream(data: bytes) -> Codestream | None:
    """The header of a codestream; None if the data is no codestream. struct.error if it is truncated."""
    if data.startswith(b"\xff\xd8"):
        at = 2
        while at + 10 <= len(data):
            marker, length = struct.unpack_from(">HH", data, at)
            if marker in JPEG_FRAME_HEADERS:
                bits, height, width, samples = struct.unpack_from(">BHHB", data, at + 4)
                return Codestream(width, height, samples, bits, 2 * width * height * samples)
            at += 1 if marker == 0xFFFF else 2 + length  # FF bytes may precede a marker
    elif (at := data.find(b"\xff\x4f\xff\x51", 0, 4096)) >= 0:  # JPEG 2000: SOC, SIZ
        right, bottom, left, top, samples, bits = struct.unpack_from(">4I16xHB", data, at + 8)
        width, height = right - left, bottom - top
        return Codestream(width, height, samples, (bits & 0x7F) + 1, 4 * width * height * samples)
    return None


def has_codestream_box(data: bytes) -> bool:
    """Whether the boxes of a JP2 file (ITU-T T.800, I.4) lead to a codestream; True for data that is no JP2 file."""
    if not data.startswith(b"\0\0\0\x0cjP  "):
        return True
    at = 12
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"jp2c":
            return True
        if length < 8:
            return False
        at += length
    return False
