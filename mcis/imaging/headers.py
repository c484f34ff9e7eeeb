"""Sizes that image files state in their headers, read before a decoder allocates memory; and their orientation."""

import contextlib
import io
import struct
import zlib
from typing import NamedTuple

from mcis.imaging.scan import AGAIN
from mcis.imaging.tiff.header import orientation_of

SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")
"""First bytes of a PNG, JPEG, TIFF or BMP file."""
JPEG_FRAME_HEADERS = {0xFFF7, *range(0xFFC0, 0xFFD0)} - {0xFFC4, 0xFFC8, 0xFFCC}
"""Markers that precede the size in a JPEG or JPEG-LS file (ITU-T T.81, table B.1; T.87)."""


def is_image(data: bytes) -> bool:
    """Whether a file begins like a PNG, JPEG, TIFF or BMP file."""
    return data.startswith(SIGNATURES)


def png_bytes(data: bytes) -> int:
    """Bytes of the decoded pixels of a PNG file."""
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    return width * height * {0: 1, 4: 2, 6: 4}.get(colour, 3) * (2 if depth == 16 else 1)


def has_cut_chunk(data: bytes) -> bool:
    """Whether a chunk of a PNG file is longer than what is left of it: OpenCV would reserve its length, up to 4 GiB."""
    at = 8
    while data.startswith(b"\x89PNG") and at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        at += 8 + length
        if kind == b"IEND" or at > len(data):
            return at > len(data)
        at += 4
    return False


def exif_orientation(data: bytes) -> int:
    """The orientation in the Exif data of a JPEG or PNG file, 1 to 8; 1 if there is none, or it is damaged."""
    try:
        found = _exif(data)
    except struct.error:
        found = b""
    return orientation_of(io.BytesIO(found)) if found else 1


def _exif(data: bytes) -> bytes:
    """The Exif data of a JPEG (APP1) or PNG file (eXIf), a TIFF without pictures; empty if there is none."""
    if data.startswith(b"\xff\xd8"):
        at = 2
        while data[at : at + 1] == b"\xff" and data[at + 1] != 0xDA:  # up to the pixels
            if data[at + 1] == 0xFF:
                at += 1
                continue
            (length,) = struct.unpack_from(">H", data, at + 2)
            if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
                return data[at + 10 : at + 2 + length]
            at += 2 + length
    elif data.startswith(b"\x89PNG"):
        at = 8
        while at + 12 <= len(data):
            length, kind = struct.unpack_from(">I4s", data, at)
            if kind == b"eXIf":
                return data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0")
            at += 12 + length
    return b""


def png_transparent_grey(data: bytes) -> int | None:
    """The grey level, as it is decoded, that the tRNS chunk of a grey PNG makes transparent; None if there is none."""
    if not data.startswith(b"\x89PNG") or data[25:26] != b"\0":
        return None
    at, depth = 33, data[24]
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"tRNS" and length == 2:
            (level,) = struct.unpack_from(">H", data, at + 8)
            return level * 255 // ((1 << depth) - 1) if depth < 8 else level
        if kind == b"IDAT":
            return None
        at += 12 + length
    return None


def png_of_indexes(data: bytes) -> bytes | None:
    """A PNG file with a palette as a grey one of its indexes; None for another file."""
    if not data.startswith(b"\x89PNG") or data[25:26] != b"\x03":
        return None
    head = data[12:25] + b"\0" + data[26:29]
    made, at = data[:12] + head + struct.pack(">I", zlib.crc32(head)), 33
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in (b"IDAT", b"IEND"):
            made += data[at : at + 12 + length]
        at += 12 + length
    return made


BMP_MASKS = ((0xFF0000, 0xFF00, 0xFF), (0x7C00, 0x3E0, 0x1F), (0xF800, 0x7E0, 0x1F))
"""Bits of red, green and blue that OpenCV reads: it takes all others for one of these."""


def bmp_for_opencv(data: bytes) -> bytes | None:
    """A BMP file as OpenCV reads it in the right colours; None if it has them in an order that OpenCV does not read."""
    try:
        start, size = struct.unpack_from("<II", data, 10)
        if size == 12:
            width, height, planes, bits = struct.unpack_from("<HHHH", data, 18)
            if bits == 24:  # else it becomes grey
                head = struct.pack("<IiiHHIIiiII", 40, width, height, planes, bits, *[0] * 6)
                return data[:10] + struct.pack("<I", 54) + head + data[start:]
        elif struct.unpack_from("<I", data, 30)[0] in (3, 6) and struct.unpack_from("<III", data, 54) not in BMP_MASKS:
            return None
    except struct.error:
        pass  # the decoder reports a damaged header
    return data


def bmp_of_indexes(data: bytes) -> bytes | None:
    """A BMP file with a palette as one whose colours are the grey levels of its indexes; None for another file."""
    try:
        start, size = struct.unpack_from("<II", data, 10)
        bits, colour = struct.unpack_from("<H", data, 24 if size == 12 else 28)[0], 3 if size == 12 else 4
        if bits > 8:
            return None
    except struct.error:
        return None
    count = max(0, min(1 << bits, (start - 14 - size) // colour))
    grey = b"".join(bytes([index] * 3 + [0])[:colour] for index in range(count))
    return data[: 14 + size] + grey + data[14 + size + len(grey) :]


class Codestream(NamedTuple):
    """Header of a JPEG, JPEG-LS or JPEG 2000 codestream; `memory` are the bytes needed to decode it."""

    width: int
    height: int
    samples: int
    bits: int
    memory: int


def codestream(data: bytes, strict: bool = False) -> Codestream | None:
    """The header of a codestream; None if the data is no codestream. struct.error if it is truncated.

    With `strict`, also None if a JPEG has anything but segments before the header: libjpeg skips it, GDCM crashes.
    """
    if data.startswith(b"\xff\xd8"):
        at = 2
        while at + 10 <= len(data):
            marker, length = struct.unpack_from(">HH", data, at)
            if marker in JPEG_FRAME_HEADERS:
                bits, height, width, samples = struct.unpack_from(">BHHB", data, at + 4)
                return Codestream(width, height, samples, bits, 2 * width * height * samples)
            if strict and marker < 0xFF00:
                return None
            at += 1 if marker == 0xFFFF else 2 + length  # FF bytes may precede a marker
    elif (at := data.find(b"\xff\x4f\xff\x51", 0, 4096)) >= 0:  # JPEG 2000: SOC, SIZ
        right, bottom, left, top, samples, bits = struct.unpack_from(">4I16xHB", data, at + 8)
        width, height = right - left, bottom - top
        return Codestream(width, height, samples, (bits & 0x7F) + 1, 4 * width * height * samples)
    return None


def why_unreadable(data: bytes) -> str:
    """What is wrong with a PNG, JPEG or BMP file that the decoder rejects, and what to do."""
    if data.startswith(b"\xff\xd8"):
        with contextlib.suppress(struct.error):
            if data[2:4] == b"\xff\xf7":
                return "it is a JPEG-LS file, which is not supported; save it again as PNG"
            if (stream := codestream(data)) is not None and stream.bits > 8:
                return f"it is a JPEG of {stream.bits} bits, which is not supported; save it again as PNG of 16 bits"
        return f"the JPEG file is damaged or truncated; {AGAIN}"
    kind = "PNG" if data.startswith(b"\x89PNG") else "BMP"
    return f"the {kind} file is damaged or truncated; {AGAIN}"


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
