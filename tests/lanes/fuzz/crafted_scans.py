"""Handwritten bad DICOM and NIfTI files: false sizes, deep nesting, contradicting headers, decompression bombs."""

import gzip
import struct

from tests.lanes.fuzz import seeds
from tests.lanes.fuzz.crafted_pictures import SIDE, Crafted, jpeg_scans
from tests.lanes.fuzz.mutations import Odd, Tree


def element(tag: tuple[int, int], vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """A DICOM element, explicit VR little endian; `length` overrides the true length."""
    size = len(value) if length is None else length
    long = vr in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF")
    return struct.pack("<HH", *tag) + vr + (struct.pack("<HI", 0, size) if long else struct.pack("<H", size)) + value


PIXELS = (0x7FE0, 0x0010)
ENDLESS = 0xFFFFFFFF


def dicom_of(
    rows: int,
    columns: int,
    *,
    samples: int = 1,
    bits: int = 8,
    syntax: bytes = b"1.2.840.10008.1.2.1",
    pixels: bytes = b"",
    frames: bytes = b"1 ",
    kind: bytes = b"",
    more: bytes = b"",
    claim: int | None = None,
) -> bytes:
    """A DICOM file; `more` are elements between those of the image and its pixels."""
    uid = syntax + b"\0" * (len(syntax) % 2)
    meta = element((2, 0x10), b"UI", uid)
    kind = kind or (b"RGB " if samples == 3 else b"MONOCHROME2 ")
    head = element((8, 0x60), b"CS", b"MR")
    head += element((0x28, 2), b"US", struct.pack("<H", samples)) + element((0x28, 4), b"CS", kind)
    head += element((0x28, 6), b"US", b"\0\0") * (samples > 1)
    head += element((0x28, 8), b"IS", frames) + element((0x28, 0x10), b"US", struct.pack("<H", rows))
    head += element((0x28, 0x11), b"US", struct.pack("<H", columns))
    for number, value in ((0x100, bits), (0x101, bits), (0x102, bits - 1), (0x103, 0)):
        head += element((0x28, number), b"US", struct.pack("<H", value & 0xFFFF))
    body = element(PIXELS, b"OB" if bits == 8 else b"OW", pixels, claim)
    return bytes(128) + b"DICM" + element((2, 0), b"UL", struct.pack("<I", len(meta))) + meta + head + more + body


def fragments(*parts: bytes, table: bytes = b"") -> bytes:
    """Encapsulated pixels."""
    items = [struct.pack("<HHI", 0xFFFE, 0xE000, len(part)) + part for part in (table, *parts)]
    return b"".join(items) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def rle(side: int, samples: int, bits: int) -> bytes:
    """A frame of zeros, packed in runs of 128."""
    segments = samples * bits // 8
    one = b"\x81\0" * (side * side // 128)
    head = struct.pack("<16I", segments, *[64 + k * len(one) for k in range(15)])
    return head + one * min(segments, 15)


def j2k(width: int, height: int, tile: int, components: int = 1, left: int = 0) -> bytes:
    """A JPEG 2000 codestream with only a header."""
    size = struct.pack(">HIIIIIIIIH", 0, width + left, height, left, 0, tile, tile, left, 0, components)
    size += b"\x07\x01\x01" * components
    cod = b"\xff\x52\x00\x0c\x00\x00\x00\x01\x00\x05\x04\x04\x00\x01"
    qcd = b"\xff\x5c\x00\x13\x40" + b"\x40" * 16
    head = b"\xff\x4f\xff\x51" + struct.pack(">H", len(size) + 2) + size + cod + qcd
    return head + b"\xff\x90\x00\x0a\x00\x00\x00\x00\x00\x00\x00\x01\xff\x93" + bytes(64) + b"\xff\xd9"


def jls(width: int, height: int, components: int = 1, bits: int = 8) -> bytes:
    """A JPEG-LS codestream of zeros."""
    parts = b"".join(bytes([k + 1, 0x11, 0]) for k in range(components))
    head = b"\xff\xd8\xff\xf7" + struct.pack(">HBHHB", 8 + 3 * components, bits, height, width, components) + parts
    scan = struct.pack(">HB", 6 + 2 * components, components)
    scan += b"".join(bytes([k + 1, 0]) for k in range(components)) + b"\0\0\0"
    return head + b"\xff\xda" + scan + b"\xff" * 0 + bytes(4096) + b"\xff\xd9"


def nested(depth: int, tag: tuple[int, int] = (0x5200, 0x9229)) -> bytes:
    """Nested sequences of undefined length."""
    return (element(tag, b"SQ", b"", ENDLESS) + struct.pack("<HHI", 0xFFFE, 0xE000, ENDLESS)) * depth


RLE, J2K, JLS = b"1.2.840.10008.1.2.5", b"1.2.840.10008.1.2.4.91", b"1.2.840.10008.1.2.4.80"
JPEG, LOSSLESS, DEFLATED = b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4.70", b"1.2.840.10008.1.2.1.99"


def packed(syntax: bytes, data: bytes, rows: int = 64, columns: int = 64, **claims: object) -> Tree:
    """A DICOM file with a compressed frame."""
    whole = fragments(data + b"\0" * (len(data) % 2))
    return {"a.dcm": dicom_of(rows, columns, syntax=syntax, pixels=whole, claim=ENDLESS, **claims)}  # type: ignore[arg-type]


def jpeg_in_dicom(name: str, syntax: bytes, **claims: object) -> Tree:
    data = next(tree[name] for tree in seeds.pictures() if name in tree)
    assert isinstance(data, bytes)
    return packed(syntax, data, 72, 96, **claims)


def long_element(tag: tuple[int, int], vr: bytes) -> Tree:
    """A sparse file with a header element of 1.5 GiB."""
    size = 3 << 29
    head = dicom_of(64, 64, more=element(tag, vr, b"", size))
    return {"a.dcm": Odd("long", str(size + 4096), head[: head.rindex(element(PIXELS, b"OB", b""))])}


DICOM: Crafted = (
    lambda: {"a.dcm": b""},
    lambda: {"a.dcm": Odd("pipe")},
    lambda: {"a.dcm": Odd("folder")},
    lambda: {"a.dcm": Odd("link", "/dev/zero")},
    lambda: {"IM0001": Odd("link", "IM0001")},
    lambda: {"a.dcm": Odd("long", str(1 << 31), bytes(128) + b"DICM")},
    lambda: {"a.dcm": Odd("long", str((1 << 31) - 999), dicom_of(SIDE, SIDE, claim=1 << 26))},
    lambda: {"a.dcm": Odd("long", "999000000", dicom_of(SIDE, SIDE, samples=3, bits=32, claim=805306368))},
    lambda: {"a.dcm": Odd("long", "999000000", dicom_of(SIDE, SIDE, samples=3, bits=16, claim=402653184))},
    lambda: {"a.dcm": Odd("long", "999000000", dicom_of(SIDE, SIDE, bits=64, claim=536870912))},
    lambda: {"a.dcm": Odd("long", "1999000000", dicom_of(SIDE, SIDE, samples=7, bits=32, claim=1879048192))},
    lambda: {"a.dcm": dicom_of(SIDE, SIDE, bits=32)},
    lambda: {"a.dcm": dicom_of(65535, 65535)},
    lambda: {"a.dcm": dicom_of(8, 8, frames=b"99999999999", pixels=bytes(64))},
    lambda: {"a.dcm": dicom_of(8, 8, frames=b"2147483647 ", pixels=bytes(64))},
    lambda: {"a.dcm": dicom_of(8, 8, bits=0, pixels=bytes(64))},
    lambda: {"a.dcm": dicom_of(8, 8, samples=0, pixels=bytes(64))},
    lambda: {"a.dcm": dicom_of(8, 8, samples=65535, pixels=bytes(64))},
    lambda: {"a.dcm": dicom_of(8, 8, pixels=bytes(64), claim=ENDLESS - 1)},
    lambda: {"a.dcm": dicom_of(8, 8, pixels=bytes(64), kind=b"PALETTE COLOR ")},
    lambda: {"a.dcm": dicom_of(8, 8, pixels=bytes(64), more=nested(20))},
    lambda: {"a.dcm": dicom_of(8, 8, pixels=bytes(64), more=nested(900))},
    lambda: {"a.dcm": dicom_of(8, 8, pixels=bytes(64), more=nested(100_000))},
    lambda: {"a.dcm": dicom_of(8, 8, pixels=bytes(64), more=nested(100_000, (0x11, 0x1001)))},
    lambda: {"a.dcm": dicom_of(8, 8, pixels=bytes(64), more=element((0x28, 0x30), b"DS", b"1\\" * 30_000))},
    lambda: {"a.dcm": dicom_of(8, 8, pixels=bytes(64), more=element((0x28, 0x1050), b"DS", b"9" * 60_000))},
    lambda: {"a.dcm": dicom_of(8, 8, pixels=bytes(64), more=element((0x28, 0x1053), b"DS", b"1e308 "))},
    lambda: long_element((0x28, 0x1201), b"OW"),
    lambda: long_element((0x28, 0x30), b"UT"),
    lambda: long_element((0x11, 0x1001), b"OB"),
    lambda: long_element((0x18, 0x6011), b"SQ"),
    lambda: packed(RLE, rle(64, 1, 8)),
    lambda: packed(RLE, rle(SIDE, 1, 8), SIDE, SIDE),
    lambda: packed(RLE, rle(SIDE, 3, 8), SIDE, SIDE, samples=3),
    lambda: packed(RLE, rle(SIDE, 3, 16), SIDE, SIDE, samples=3, bits=16),
    lambda: packed(RLE, rle(SIDE, 3, 32), SIDE, SIDE, samples=3, bits=32),
    lambda: packed(RLE, rle(SIDE, 1, 8)),
    lambda: packed(RLE, rle(64, 1, 8)[:64]),
    lambda: packed(RLE, struct.pack("<16I", ENDLESS, *[ENDLESS] * 15)),
    lambda: packed(J2K, j2k(64, 64, 64)),
    lambda: packed(J2K, j2k(64, 64, 1)),
    lambda: packed(J2K, j2k(SIDE, SIDE, SIDE), SIDE, SIDE),
    lambda: packed(J2K, j2k(SIDE, SIDE, 1), SIDE, SIDE),
    lambda: packed(J2K, j2k(SIDE, SIDE, 64), SIDE, SIDE),
    lambda: packed(J2K, j2k(SIDE, SIDE, SIDE, 3), SIDE, SIDE, samples=3),
    lambda: packed(J2K, j2k(SIDE, SIDE, SIDE, 255), SIDE, SIDE),
    lambda: packed(J2K, j2k(64, 64, 64, 16000)),
    lambda: packed(J2K, j2k(2048, 2048, 2048, 16000), 2048, 2048),
    lambda: packed(J2K, j2k(64, 64, 64, 3)),
    lambda: packed(J2K, j2k(64, 64, ENDLESS)),
    lambda: packed(J2K, j2k(64, 64, 64, 1, 1 << 30)),
    lambda: packed(J2K, j2k(64, 64, 64), samples=3),
    lambda: packed(J2K, j2k(64, 64, 64), bits=16),
    lambda: packed(J2K, b"\xff\x4f\xff\x51"),
    lambda: packed(JLS, jls(64, 64)),
    lambda: packed(JLS, jls(SIDE, SIDE), SIDE, SIDE),
    lambda: packed(JLS, jls(65535, 1000), 1000, 65535),
    lambda: packed(JLS, jls(64, 64, 255)),
    lambda: packed(JLS, jls(64, 64, 3)),
    lambda: packed(JLS, jls(64, 64), samples=3),
    lambda: packed(JLS, jls(64, 64, 1, 16)),
    lambda: packed(JLS, jls(64, 64, 1, 0)),
    lambda: packed(JLS, jls(0, 0)),
    lambda: jpeg_in_dicom("colour.jpg", JPEG),
    lambda: jpeg_in_dicom("colour.jpg", JPEG, samples=3, bits=16),
    lambda: jpeg_in_dicom("colour.jpg", LOSSLESS, samples=3),
    lambda: jpeg_in_dicom("cmyk.jpg", JPEG, samples=3),
    lambda: jpeg_in_dicom("colour.jpg", J2K, samples=3),
    lambda: jpeg_in_dicom("colour.jpg", JLS, samples=3),
    lambda: jpeg_in_dicom("colour.jpg", RLE, samples=3),
    lambda: jpeg_in_dicom("grey.png", JPEG),
    lambda: jpeg_in_dicom("grey.tif", J2K),
    lambda: packed(JPEG, jpeg_scans(SIDE, SIDE, 100)["a.jpg"], SIDE, SIDE),  # type: ignore[arg-type]
    lambda: packed(JPEG, b"\xff\xd8" + b"\xff" * 100_000),
    lambda: packed(JPEG, b"\xff\xd8" + b"\xff\xe0\x00\x00" * 100_000),
    lambda: packed(JPEG, b""),
    lambda: packed(DEFLATED, b""),
    lambda: {"a.dcm": dicom_of(64, 64, syntax=RLE, pixels=fragments(*[b""] * 200_000), claim=ENDLESS)},
    lambda: {
        "a.dcm": dicom_of(64, 64, syntax=JPEG, pixels=fragments(b"\xff\xd8", table=b"\xff" * 40_000), claim=ENDLESS)
    },
    lambda: {"a.dcm": dicom_of(64, 64, syntax=JPEG, frames=b"4000", pixels=fragments(b"\xff\xd8"), claim=ENDLESS)},
    lambda: {
        "a.dcm": dicom_of(64, 64, syntax=JPEG, pixels=struct.pack("<HHI", 0xFFFE, 0xE000, ENDLESS), claim=ENDLESS)
    },
)


def nifti_of(
    shape: tuple[int, ...], code: int, bits: int, offset: float, extension: int = 0, version: int = 1
) -> bytes:
    """A NIfTI header."""
    if version == 2:
        head = bytearray(544)
        struct.pack_into(
            "<i8sHH8q", head, 0, 540, b"n+2\0\r\n\x1a\n", code, bits, len(shape), *shape, *[1] * (7 - len(shape))
        )
        struct.pack_into("<8d", head, 104, *[1.0] * 8)
        struct.pack_into("<q", head, 168, int(offset))
    else:
        head = bytearray(352)
        struct.pack_into("<i", head, 0, 348)
        struct.pack_into("<8h", head, 40, len(shape), *shape, *[1] * (7 - len(shape)))
        struct.pack_into("<hh", head, 70, code, bits)
        struct.pack_into("<8f", head, 76, *[1.0] * 8)
        struct.pack_into("<f", head, 108, offset)
        head[344:348] = b"n+1\0"
    if extension:
        head[-4:] = b"\1\0\0\0"
        head += struct.pack("<ii", extension, 6)
    return bytes(head)


def bomb(head: bytes, size: int) -> bytes:
    """A gzip file that begins with `head` and continues with zeros."""
    return gzip.compress(head, mtime=0) + gzip.compress(bytes(1 << 26), 9, mtime=0) * (size >> 26)


NIFTI: Crafted = (
    lambda: {"a.nii": b""},
    lambda: {"a.nii.gz": b""},
    lambda: {"a.nii": Odd("pipe")},
    lambda: {"a.nii.gz": Odd("folder")},
    lambda: {"a.nii": Odd("link", "/dev/zero")},
    lambda: {"a.nii": Odd("long", str(1 << 29), nifti_of((512, 512, 1023), 4, 16, 352))},
    lambda: {"a.nii": Odd("long", str(1 << 29), nifti_of((512, 512, 511), 16, 32, 352))},
    lambda: {"a.nii": Odd("long", "500000000", nifti_of((8000, 8000, 1), 64, 64, 352))},
    lambda: {"a.nii": nifti_of((32767, 32767, 32767), 64, 64, 352)},
    lambda: {"a.nii": nifti_of((1 << 40, 1 << 40, 1), 64, 64, 544, 0, 2)},
    lambda: {"a.nii": nifti_of((10, 10, 10), 128, 24, 352) + bytes(9000)},
    lambda: {"a.nii": nifti_of((10, 10, 10), 1536, 128, 352) + bytes(99_000)},
    lambda: {"a.nii": nifti_of((10, 10, -10), 4, 16, 352) + bytes(9000)},
    lambda: {"a.nii": nifti_of((10, 10, 10), 4, 16, 352, 1 << 30) + bytes(9000)},
    lambda: {"a.nii": nifti_of((10, 10, 10), 4, 16, 1e9)},
    lambda: {"a.nii.gz": bomb(nifti_of((10, 10, 10), 4, 16, 352), 1 << 31)},
    lambda: {"a.nii.gz": bomb(nifti_of((10, 10, 10), 4, 16, 1e9), 1 << 30)},
    lambda: {"a.nii.gz": bomb(nifti_of((10, 10, 10), 4, 16, 1e10), 10 << 30)},
    lambda: {"a.nii.gz": bomb(nifti_of((10, 10, 10), 4, 16, 1e10, 0, 2), 10 << 30)},
    lambda: {"a.nii.gz": bomb(nifti_of((10, 10, 10), 4, 16, 1e9, 999_999_984), 1 << 30)},
    lambda: {"a.nii.gz": bomb(nifti_of((10, 10, 10), 4, 16, 2e9, 1_999_999_984), 2 << 30)},
    lambda: {"a.nii.gz": bomb(nifti_of((512, 512, 1000), 4, 16, 352), 1 << 29)},
    lambda: {"a.nii.gz": gzip.compress(bytes(99), mtime=0) * 100_000},
    lambda: {"a.nii.gz": gzip.compress(nifti_of((10, 10, 10), 4, 16, 352), mtime=0)[:-9]},
)
