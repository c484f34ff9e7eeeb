"""What pictures say of themselves, read before a decoder makes room for it. Standard library only."""

import dataclasses
import struct
from collections.abc import Iterator
from typing import BinaryIO

MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")
"""How a PNG, a JPEG, a TIFF and a BMP begin."""


@dataclasses.dataclass(frozen=True)
class TiffPage:
    """A directory of a TIFF: where its entries begin and how many there are; byte order; whether it is a BigTIFF."""

    at: int
    entries: int
    order: str
    big: bool


def tiff_pages(file: BinaryIO) -> Iterator[TiffPage | None]:
    """The chain of a TIFF's directories, each once; None for one that the file no longer holds, and then no more."""
    try:
        order = {b"II": "<", b"MM": ">"}[file.read(2)]
        big = _number(file, f"{order}H") == 43
        count, entry, link = ("Q", 20, "Q") if big else ("H", 12, "I")
        file.seek(8 if big else 4)
        found: set[int] = set()
        while (at := _number(file, f"{order}{link}")) and at not in found:
            found.add(at)
            try:
                file.seek(at)
                entries = _number(file, f"{order}{count}")
            except (OSError, struct.error, OverflowError, ValueError):
                yield None
                return
            start = file.tell()
            yield TiffPage(start, entries, order, big)
            file.seek(start + entries * entry)
    except (OSError, KeyError, struct.error, OverflowError, ValueError):
        return  # what was found so far is tried, and what is wrong is said then


def _number(file: BinaryIO, form: str) -> int:
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]


def tiff_bytes(file: BinaryIO, page: TiffPage) -> int:
    """Bytes that the pixels of a page say they take, by its width, height, bits and samples a pixel."""
    said = {256: 0, 257: 0, 258: 1, 277: 1}
    forms = {1: "B", 3: "H", 4: "I", 16: "Q"}
    for number in range(min(page.entries, 4096)):
        file.seek(page.at + number * (20 if page.big else 12))
        tag, kind = (_number(file, f"{page.order}H") for _ in range(2))
        count = _number(file, f"{page.order}{'Q' if page.big else 'I'}")
        if tag in said and kind in forms:
            if count * struct.calcsize(forms[kind]) > (8 if page.big else 4):  # then they lie elsewhere
                file.seek(_number(file, f"{page.order}{'Q' if page.big else 'I'}"))
            said[tag] = _number(file, f"{page.order}{forms[kind]}")
    width, height, bits, samples = said.values()
    return width * height * samples * max(8, bits) // 8


def png_bytes(data: bytes) -> int:
    """Bytes that the pixels of a PNG say they take once they are decoded."""
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    return width * height * {0: 1, 4: 2, 6: 4}.get(colour, 3) * (2 if depth == 16 else 1)


@dataclasses.dataclass(frozen=True)
class Codestream:
    """What a JPEG, JPEG-LS or JPEG 2000 codestream says of itself; `taken` are the bytes that decoding it takes."""

    width: int
    height: int
    samples: int
    bits: int
    taken: int


def codestream(data: bytes) -> Codestream | None:
    """What a codestream says of itself; None where it is none of them. struct.error where it is cut short."""
    if (at := data.find(b"\xff\x4f\xff\x51", 0, 4096)) >= 0:  # JPEG 2000: SOC, SIZ
        right, bottom, left, top = struct.unpack_from(">4I", data, at + 8)
        samples, bits = struct.unpack_from(">HB", data, at + 40)
        width, height = right - left, bottom - top
        return Codestream(width, height, samples, (bits & 0x7F) + 1, 4 * width * height * samples)
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 10 <= len(data):
        marker, length = struct.unpack_from(">HH", data, at)
        if marker in _FRAME_HEADERS:
            bits, height, width, samples = struct.unpack_from(">BHHB", data, at + 4)
            return Codestream(width, height, samples, bits, 2 * width * height * samples)
        at += 1 if marker == 0xFFFF else 2 + length  # a marker may be filled up with FF
    return None


def boxes_lead_on(data: bytes) -> bool:
    """Whether the boxes of a JP2 file (ITU-T T.800, I.4) lead to its codestream; what is no JP2 file has none."""
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


_FRAME_HEADERS = {0xFFF7, *range(0xFFC0, 0xFFD0)} - {0xFFC4, 0xFFC8, 0xFFCC}
"""Markers after which a JPEG or JPEG-LS file says its size (ITU-T T.81, table B.1; T.87)."""


def jpeg_passes(data: bytes) -> int:
    """Times that a JPEG has its pixels gone over: scans of a progressive one, which may be empty."""
    return data.count(b"\xff\xda")


def is_picture(data: bytes) -> bool:
    """Whether a file begins as a PNG, JPEG, TIFF or BMP does."""
    return data.startswith(MAGIC)
