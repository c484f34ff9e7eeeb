"""Unpack the strips and tiles of TIFF files, each to a known number of bytes. No JAX.

Every codec raises an error for damaged data. OpenCV's own TIFF reader is not used for whole files: where libtiff cannot
decode a strip, it returns black or the strip before, without an error.
"""

import struct
import zlib

import cv2
import numpy as np

from mcis.imaging.headers import codestream
from mcis.imaging.scan import check_passes

NONE, LZW, JPEG, DEFLATE, PACKBITS = 1, 5, 7, (8, 32946), 32773
FAX = (2, 3, 4, 32771)
SUPPORTED = (NONE, *FAX, LZW, JPEG, *DEFLATE, PACKBITS)
NAMES = {6: "old-style JPEG", 9: "JBIG", 10: "JBIG", 22610: "JPEG XR", 32809: "ThunderScan", 33003: "JPEG 2000"}
NAMES |= {33004: "JPEG 2000", 33005: "JPEG 2000", 33007: "JPEG", 34661: "JBIG", 34676: "SGI LogLuv"}
NAMES |= {
    34677: "SGI LogLuv",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "JPEG of DNG",
    34925: "LZMA",
    34926: "Zstandard",
}
NAMES |= {34927: "WebP", 34933: "PNG", 34934: "JPEG XR", 50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL"}
NAMES |= {52546: "JPEG XL", 34926: "Zstandard"}
"""Names of other compressions, for messages."""
REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
MAX_WIDTH = 1 << 20
"""Pixels in a row that OpenCV reads."""
MAX_SLOW = 1 << 22
"""Bytes of a strip that are unpacked in Python: a second or two."""


def unpack(compression: int, data: bytes, rows: int, row_bytes: int) -> bytes:
    """The content of a strip or tile, `rows` * `row_bytes` bytes, of any compression but JPEG and FAX.

    Raises:
      ValueError, zlib.error: damaged, or with fewer bytes.
    """
    size = rows * row_bytes
    if compression == NONE:
        content = data[:size]
    elif compression in DEFLATE:
        content = zlib.decompressobj().decompress(data, size)
    elif compression == PACKBITS:
        content = _packbits(data, size)
    elif row_bytes % 2 == 0 and row_bytes // 2 <= MAX_WIDTH and rows <= MAX_WIDTH:
        content = _lzw_of_opencv(data, rows, row_bytes // 2)
    elif rows % 2 == 0 and row_bytes <= MAX_WIDTH and rows // 2 <= MAX_WIDTH:
        content = _lzw_of_opencv(data, rows // 2, row_bytes)
    else:
        content = _odd_lzw(data, rows, row_bytes)
    if len(content) < size:
        raise ValueError(f"{len(content)} of {size} bytes")
    return content


def _packbits(data: bytes, size: int) -> bytes:
    """PackBits (TIFF 6.0, section 9)."""
    out, at = bytearray(), 0
    while len(out) < size and at < len(data):
        head = data[at]
        if head < 128:
            out += data[at + 1 : at + 2 + head]
            at += 2 + head
        else:
            if head > 128:
                out += data[at + 1 : at + 2] * (257 - head)
            at += 2 if head > 128 else 1
    return bytes(out[:size])


def _lzw_of_opencv(data: bytes, rows: int, width: int) -> bytes:
    """LZW (TIFF 6.0, section 13) by libtiff, as a TIFF of one strip of 16 bits, which OpenCV does not scale."""
    decoded = cv2.imdecode(_tiff_of_one_strip(data, rows, width, LZW, 16), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.shape != (rows, width) or decoded.dtype != np.uint16:
        raise ValueError("damaged LZW")
    return decoded.astype("<u2", copy=False).tobytes()


def _odd_lzw(data: bytes, rows: int, row_bytes: int) -> bytes:
    """The same for an odd number of bytes, which are no 16 bits: in Python if they are few.

    As 8 bits, OpenCV returns a damaged strip without an error, so all rows but the last are decoded as 16 bits, too.
    """
    if rows * row_bytes > MAX_SLOW and rows > 1 and max(rows, row_bytes) <= MAX_WIDTH:
        exact = _lzw_of_opencv(data, rows // 2, row_bytes)
        whole = cv2.imdecode(_tiff_of_one_strip(data, rows, row_bytes, LZW, 8), cv2.IMREAD_UNCHANGED)
        if whole is not None and whole.shape == (rows, row_bytes) and whole[:-1].tobytes() == exact:
            return whole.tobytes()
    return _lzw(data, rows * row_bytes)


def _lzw(data: bytes, size: int) -> bytes:
    """The same in Python, far slower. Ends silently where the data is damaged; the caller counts the bytes."""
    out = bytearray()
    starts: list[int] = []  # of the strings of codes from 258 in `out`, where they stand already, and their lengths
    lengths: list[int] = []
    bits = count = last = length = 0
    width = 9
    for byte in data:
        bits, count = bits << 8 | byte, count + 8
        if count < width:
            continue
        count -= width
        code, bits = bits >> count, bits & ((1 << count) - 1)
        if code == 256:
            starts, lengths, width, length = [], [], 9, 0
            continue
        if code == 257 or len(out) >= size:
            break
        at = len(out)
        if length:  # the string before, and the first byte of this one
            starts.append(last)
            lengths.append(length + 1)
        if code < 256:
            out.append(code)
        elif code - 258 < len(starts):
            start, end = starts[code - 258], starts[code - 258] + lengths[code - 258]
            out += out[start:end]
            if end > at:  # the string that has just been made, whose last byte is its first
                out.append(out[start])
        else:
            break
        last, length = at, len(out) - at
        following = 258 + len(starts)
        width = 9 if following < 511 else 10 if following < 1023 else 11 if following < 2047 else 12
    return bytes(out[:size])


def fax(compression: int, data: bytes, rows: int, width: int, options: int) -> np.ndarray:
    """A strip of ITU-T T.4 or T.6: uint8 {0,1} (rows, width), 1 where the file has 1."""
    if width > MAX_WIDTH or rows > MAX_WIDTH:
        raise ValueError("too wide")
    extra = ((292 if compression != 4 else 293, 4, options),) if compression in (3, 4) else ()
    decoded = cv2.imdecode(_tiff_of_one_strip(data, rows, width, compression, 1, *extra), cv2.IMREAD_GRAYSCALE)
    if decoded is None or decoded.shape != (rows, width):
        raise ValueError("damaged fax")
    return (decoded > 127).astype(np.uint8)


def _tiff_of_one_strip(
    data: bytes, rows: int, width: int, compression: int, bits: int, *extra: tuple[int, int, int]
) -> np.ndarray:
    """A grey TIFF file, little-endian, uint8 (N,)."""
    tags = [(256, 4, width), (257, 4, rows), (258, 3, bits), (259, 3, compression), (262, 3, 1)]
    tags += [(273, 4, 0), (277, 3, 1), (278, 4, rows), (279, 4, len(data)), *extra]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, form, 1, start if tag == 273 else v) for tag, form, v in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return np.frombuffer(head + data, np.uint8)


def jpeg(data: bytes, tables: bytes, shape: tuple[int, int, int], is_rgb: bool) -> np.ndarray:
    """A strip or tile of JPEG (TIFF technical note 2): uint8 (H, W, C), colours as RGB.

    Args:
      data: a JPEG file, perhaps without tables.
      tables: a JPEG file of tables alone; may be empty.
      shape: (H, W, C) that the page states.
      is_rgb: whether colours are stored as RGB; otherwise YCbCr.

    Raises:
      ValueError: damaged, of another size, or of more than 8 bits.
    """
    if tables.startswith(b"\xff\xd8") and data.startswith(b"\xff\xd8"):
        data = tables.rstrip(b"\0").removesuffix(b"\xff\xd9") + data[2:]
    if shape[2] == 3:
        while data[2:4] in (b"\xff\xe0", b"\xff\xee"):  # JFIF or Adobe: the page says what the colours are
            data = data[:2] + data[4 + struct.unpack_from(">H", data, 4)[0] :]
        adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\0\0\0\0" + (b"\0" if is_rgb else b"\1")
        data = data[:2] + adobe + data[2:]
    stream = codestream(data)
    if stream is None or (stream.samples, stream.bits) != (shape[2], 8):
        raise ValueError("another JPEG than the page states")
    if (
        stream.width < shape[1]
        or stream.height < shape[0]
        or stream.width * stream.height > 4 * shape[0] * shape[1] + 4096
    ):
        raise ValueError("a JPEG of another size than the page states")
    check_passes(data, stream.width * stream.height, "image")
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None:
        raise ValueError("damaged JPEG")
    decoded = decoded.reshape(*decoded.shape[:2], -1)[: shape[0], : shape[1]]
    if decoded.shape != shape:
        raise ValueError("a JPEG of another size than the page states")
    return decoded[..., ::-1]
