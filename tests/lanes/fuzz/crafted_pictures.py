"""Handwritten bad images: decompression bombs, false sizes, endless progressive scans."""

import functools
import struct
import zlib
from collections.abc import Callable

import numpy as np

from tests.lanes.fuzz import seeds
from tests.lanes.fuzz.mutations import Odd, Tree, png

Crafted = tuple[Callable[[], Tree], ...]
SIDE = 8192
"""Side of the largest square image that is read."""


def zeros(size: int) -> bytes:
    """`size` zeros, compressed by zlib."""
    packer = zlib.compressobj(9)
    block = bytes(1 << 20)
    parts = [packer.compress(block) for _ in range(size >> 20)]
    return b"".join([*parts, packer.compress(bytes(size & ((1 << 20) - 1))), packer.flush()])


def png_of(width: int, height: int, depth: int, colour: int, interlaced: int = 0, *chunks: bytes) -> Tree:
    """A black PNG of any size."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    head = png(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    rows = zeros(min(height * (1 + width * channels * depth // 8), 1 << 30))
    body = b"".join(png(b"IDAT", rows[at : at + (1 << 20)]) for at in range(0, len(rows), 1 << 20))
    return {"a.png": b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + body + png(b"IEND", b"")}


def tiff_of(width: int, height: int, bits: int, channels: int, kind: int = 1, tile: int = 0, big: bool = False) -> Tree:
    """A black TIFF, deflated, in one strip or in tiles that all lie in one place."""
    size = (tile * tile if tile else width * height) * channels * bits // 8
    rows = zeros(min(size, 1 << 32))
    count = -(-width // tile) * -(-height // tile) if tile else 1
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, 8), (262, 3, 1, 1 + (channels > 2))]
    tags += [(277, 3, 1, channels), (339, 3, 1, kind)]
    data = bytearray(b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) if big else b"II*\0" + struct.pack("<I", 8))
    number, entry = (len(tags) + 4 if tile else len(tags) + 3), 20 if big else 12
    at = len(data) + (8 if big else 2) + entry * number + (8 if big else 4)
    if tile:
        tags += [(322, 4, 1, tile), (323, 4, 1, tile)]
        tags += [(324, 4, count, at), (325, 4, count, at + 4 * count)]
        tail = struct.pack("<I", at + 8 * count) * count + struct.pack("<I", len(rows)) * count + rows
    else:
        tags += [(273, 4, 1, at), (278, 4, 1, height), (279, 4, 1, len(rows))]
        tail = rows
    data += struct.pack("<Q" if big else "<H", number)
    for tag, form, many, value in sorted(tags):
        data += struct.pack("<HHQQ" if big else "<HHII", tag, form, many, value)
    return {"a.tif": bytes(data + bytes(8 if big else 4) + tail)}


def tiff_chain(loop: bool) -> Tree:
    """A TIFF of a hundred thousand pages, or of pages that link back to the first."""
    page = struct.pack("<H", 0)
    many = 4 if loop else 100_000
    parts = [page + struct.pack("<I", 8 + 6 * ((k + 1) % many if loop else k + 1)) for k in range(many)]
    return {"a.tif": b"II*\0" + struct.pack("<I", 8) + b"".join(parts) + page + bytes(4)}


def jpeg_of(width: int, height: int, scans: int = 1) -> Tree:
    """A JPEG whose header says this size, with this number of empty progressive scans."""
    name = "progressive.jpeg" if scans > 1 else "colour.jpg"
    data = bytearray(next(tree[name] for tree in seeds.pictures() if name in tree))
    for marker in (b"\xff\xc0", b"\xff\xc2"):
        if (at := data.find(marker)) > 0:
            struct.pack_into(">HH", data, at + 5, height, width)
    at = data.find(b"\xff\xda")
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00"
    return {"a.jpg": bytes(data[:at] + (scan * scans if scans > 1 else b"") + data[at:])}


def jpeg_scans(width: int, height: int, scans: int) -> Tree:
    """A grey progressive JPEG with a DC scan and empty scans of AC coefficients: each is a pass over all pixels."""
    table = bytes([1, *[0] * 15, 0])  # one code, "0": end of block
    head = b"\xff\xd8" + b"\xff\xdb\x00\x43\x00" + bytes([1] * 64)
    head += b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\x01\x11\x00"
    head += b"\xff\xc4" + struct.pack(">HB", 3 + len(table), 0x00) + table
    head += b"\xff\xc4" + struct.pack(">HB", 3 + len(table), 0x10) + table
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00"
    return {"a.jpg": head + b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00" + scan * scans + b"\xff\xd9"}


def other_pictures() -> list[Tree]:
    """Images in formats that OpenCV can read but mcis does not support, under a supported suffix."""
    import cv2

    colour = seeds.picture()
    found = []
    for suffix in (".webp", ".jp2", ".hdr", ".pgm", ".pfm", ".ras", ".gif", ".avif", ".exr"):
        try:
            array = colour.astype(np.float32) if suffix in (".hdr", ".exr", ".pfm") else colour
            done, data = cv2.imencode(suffix, array)
        except cv2.error:
            continue
        found += [{"a.png": data.tobytes()}] if done else []
    rgbe = b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 8192 +X 8192\n"
    line = b"\x02\x02" + struct.pack(">H", SIDE) + b"\xff\x01" * 4 * 65
    return [*found, {"a.png": rgbe + line * 2000}, {"a.png": b"PF\n8192 8192\n-1\n" + bytes(99)}]


def of_other_pictures(number: int) -> Tree:
    found = other_pictures()
    return found[number % len(found)]


def bmp_of(width: int, height: int, bits: int, compression: int = 0) -> Tree:
    head = b"BM" + struct.pack("<IHHI", 1 << 30, 0, 0, 54)
    return {"a.bmp": head + struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, *[0] * 5) + bytes(999)}


PICTURES: Crafted = (
    lambda: {"a.png": b""},
    lambda: {"a.png": Odd("folder")},
    lambda: {"a.png": Odd("pipe")},
    lambda: {"a.tif": Odd("pipe")},
    lambda: {"a.png": Odd("link", "a.png")},
    lambda: {"a.tif": Odd("link", "/dev/zero")},
    lambda: {"a.png": Odd("long", str(1 << 36), b"\x89PNG")},
    lambda: {"a.tif": Odd("long", str(1 << 28), b"II*\0\x08\0\0\0")},
    lambda: png_of(SIDE, SIDE, 8, 0),
    lambda: png_of(SIDE, SIDE, 8, 2),
    lambda: png_of(SIDE, SIDE, 8, 6),
    lambda: png_of(SIDE, SIDE, 16, 0),
    lambda: png_of(SIDE, SIDE, 16, 2),
    lambda: png_of(SIDE, SIDE, 16, 6),
    lambda: png_of(4096, 4096, 16, 6, 1),
    lambda: png_of(SIDE, SIDE, 8, 2, 1),
    lambda: png_of(1 << 26, 1, 8, 2),
    lambda: png_of(1, 1 << 20, 8, 2),
    lambda: png_of(60000, 60000, 8, 2),
    lambda: png_of((1 << 31) - 1, (1 << 31) - 1, 16, 6),
    lambda: png_of(64, 64, 8, 2, 0, png(b"iCCP", b"a\0\0" + zeros(1 << 28))),
    lambda: png_of(64, 64, 8, 2, 0, png(b"zTXt", b"a\0\0" + zeros(1 << 28))),
    lambda: png_of(64, 64, 8, 2, 0, *[png(b"tEXt", b"a\0b")] * 100_000),
    lambda: tiff_of(SIDE, SIDE, 8, 3),
    lambda: tiff_of(SIDE, SIDE, 16, 4),
    lambda: tiff_of(SIDE, SIDE, 32, 1, 3),
    lambda: tiff_of(SIDE, SIDE, 32, 3, 3),
    lambda: tiff_of(SIDE, SIDE, 64, 3, 3, 256),
    lambda: tiff_of(SIDE, SIDE, 64, 4, 3, 1024),
    lambda: tiff_of(SIDE, SIDE, 16, 4, 1, 512, True),
    lambda: tiff_of(SIDE, SIDE, 8, 1, 1, 16),
    lambda: tiff_of(64, 64, 8, 60000),
    lambda: tiff_of(64, 64, 8, 1, 1, 1 << 15),
    lambda: tiff_of(1 << 16, 1 << 16, 8, 1),
    lambda: tiff_chain(True),
    lambda: tiff_chain(False),
    lambda: jpeg_of(65500, 1000),
    lambda: jpeg_of(65500, 65500),
    lambda: jpeg_of(SIDE, SIDE),
    lambda: jpeg_of(SIDE, SIDE, 2),
    lambda: jpeg_of(SIDE, SIDE, 500),
    lambda: jpeg_scans(SIDE, SIDE, 1),
    lambda: jpeg_scans(SIDE, SIDE, 100),
    lambda: jpeg_scans(2000, 2000, 10_000),
    lambda: bmp_of(SIDE, SIDE, 24),
    lambda: bmp_of(SIDE, -SIDE, 32, 3),
    lambda: bmp_of(-5, 5, 8, 1),
    lambda: bmp_of(1 << 30, 1, 1),
    lambda: bmp_of(30000, 2000, 4, 2),
    lambda: {"a.bmp": bmp_of(SIDE, SIDE, 8, 1)["a.bmp"] + b"\0\0" * 100},  # type: ignore[operator]
    *(functools.partial(of_other_pictures, number) for number in range(11)),
)
