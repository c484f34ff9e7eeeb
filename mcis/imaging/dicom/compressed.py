"""Compressed frames of a DICOM file: found once for a file, checked, and decoded by pydicom's plugins. No JAX.

What a frame is compressed with is decided by its codestream: headers state other transfer syntaxes at times.
"""

import dataclasses
import functools
import itertools
import re
import struct
from typing import Any, NamedTuple

import cv2
import numpy as np

from mcis.imaging.dicom import bits, jpeg_12_bits
from mcis.imaging.dicom.file import DicomFile, import_pydicom
from mcis.imaging.dicom.header import frames_of
from mcis.imaging.dicom.syntaxes import (
    FAMILIES,
    J2K,
    JPEG,
    JPEG_EXTENDED,
    JPEG_LOSSLESS,
    JPEG_LS,
    NATIVE,
    RLE,
    advice,
    is_decodable,
    is_never_decodable,
)
from mcis.imaging.headers import JPEG_FRAME_HEADERS, Codestream, codestream, has_codestream_box
from mcis.imaging.scan import AGAIN, MAX_DECODED, MAX_FRAMES, ScanError, check_passes

JPEG_START, J2K_START, JP2_START = b"\xff\xd8", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  "
JPEG_END = 0xFFD9
JPEG_SCAN = 0xFFDA
MAX_TABLE = 8 * MAX_FRAMES
"""Bytes of a table of offsets of frames."""
MARKER = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")
"""A marker within or after the coded data of a JPEG or JPEG-LS; restart markers belong to the data."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a header describes a frame, with what it lacks or contradicts made good.

    Attributes:
      rows, columns, samples: of the frame.
      allocated, stored, high: bits of a value, bits used of them, the highest of these.
      signed: whether values are signed; `planar`: whether each colour is stored for itself.
      kind: photometric interpretation, of KINDS or one of compressed data.
      notes: on what was made good.
    """

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high: int
    signed: bool
    planar: bool
    kind: str
    notes: tuple[str, ...] = ()


class Frame(NamedTuple):
    """A decoded frame.

    Attributes:
      array: (H, W) or RGB (H, W, 3).
      notes: on its decoding.
      bits: how many bits its values use where these are more than the header says, so that it is scrambled; else 0.
    """

    array: np.ndarray
    notes: list[str]
    bits: int = 0


def check_syntax(file: DicomFile) -> None:
    """Raise ScanError if nothing can decode the file's transfer syntax, whatever its pixel data are."""
    native = file.pixels is not None and not is_compressed(file)
    if is_never_decodable(file.syntax) or (native and not is_decodable(file.syntax)):
        raise ScanError(f"{file.path}: {advice(file.path, file.syntax)}")


def is_compressed(file: DicomFile) -> bool:
    """Whether the pixel data are items with frames: the element's form decides, not the transfer syntax."""
    assert file.pixels is not None
    return file.pixels.length is None or (file.syntax not in NATIVE and bool(file.items))


def codec_of(data: bytes, stated: str) -> str | None:
    """What a frame is compressed with: JPEG, JPEG_EXTENDED, JPEG_LOSSLESS, JPEG_LS, J2K or RLE; None if unknown."""
    if data.startswith(JPEG_START):
        at = 2
        while at + 4 <= len(data):
            marker, length = struct.unpack_from(">HH", data, at)
            if marker in JPEG_FRAME_HEADERS:
                return {0xFFC0: JPEG, 0xFFC1: JPEG_EXTENDED, 0xFFC2: JPEG, 0xFFC3: JPEG_LOSSLESS, 0xFFF7: JPEG_LS}.get(
                    marker
                )
            at += 1 if marker == 0xFFFF else 2 + length
        return None
    if data.startswith((J2K_START, JP2_START)) or (J2K in FAMILIES.get(stated, ()) and J2K_START in data[:4096]):
        return J2K
    if len(data) >= 64:
        count, first, *others = struct.unpack_from("<16I", data)
        if 1 <= count <= 15 and first == 64 and not any(others[count - 1 :]):
            return RLE
    return None


def decode(file: DicomFile, layout: Layout, frame: int) -> Frame:
    """A compressed frame, YBR converted to RGB. ScanError if it cannot be decoded."""
    pydicom, path = import_pydicom(file.path), file.path
    data = frame_bytes(file, frame)
    codec = codec_of(data, file.syntax)
    if codec is None or (codec == RLE and file.syntax != RLE and file.syntax not in NATIVE):
        if not is_decodable(file.syntax):
            raise ScanError(f"{path}: {advice(path, file.syntax)}")
        name = "compressed image" if file.syntax in NATIVE else pydicom.uid.UID(file.syntax).name
        raise ScanError(f"{path}: a frame without a size; damaged, or no {name}")
    notes: list[str] = []
    if codec not in FAMILIES.get(file.syntax, ()):
        notes.append(f"its pixels are compressed ({pydicom.uid.UID(codec).name}), other than its header says")
    options: dict[str, Any] = {
        "rows": layout.rows,
        "columns": layout.columns,
        "samples_per_pixel": layout.samples,
        "bits_allocated": layout.allocated,
        "bits_stored": layout.stored,
        "pixel_representation": int(layout.signed),
        "planar_configuration": int(layout.planar),
        "photometric_interpretation": layout.kind,
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
    }
    uid, plugin = pydicom.uid.UID(codec), ""
    if codec != RLE:
        data, stream = _checked(path, layout, data, codec)
        uid, plugin, changes = _decoder(path, layout, data, stream, codec, file.syntax)
        options |= changes
    try:
        if codec == JPEG_EXTENDED and uid == JPEG_EXTENDED:
            return Frame(_decode_12_bits(path, data, layout), notes)
        decoder = pydicom.pixels.get_decoder(uid)
        items = pydicom.encaps.encapsulate([data], has_bot=False)
        padded = layout.samples == 1 and codec in (RLE, JPEG_LOSSLESS)
        options |= {"correct_unused_bits": False} if padded else {}
        array = decoder.as_array(items, index=0, decoding_plugin=plugin, **options)[0]
        if not padded:
            return Frame(array, notes)
        array, used, more = bits.used(array, layout, file.header)
        return Frame(array, [*notes, *more], used)
    except (RuntimeError, NotImplementedError) as error:
        if codec == J2K and (array := _decode_j2k(data, layout)) is not None:
            return Frame(array, notes)
        if "missing dependencies" in str(error) or isinstance(error, NotImplementedError):
            raise ScanError(
                f"{path}: no decoder for {uid.name} is installed; decompress it with `gdcmconv --raw`"
            ) from None
        raise


def _decoder(
    path: str, layout: Layout, data: bytes, stream: Codestream, codec: str, stated: str
) -> tuple[Any, str, dict[str, Any]]:
    """Transfer syntax, plugin and changed options to decode a codestream with."""
    changes: dict[str, Any] = {}
    end = {JPEG_LS: (".80", ".81"), JPEG_LOSSLESS: (".57", ".70"), J2K: (".90", ".91")}.get(codec, ())
    syntax = stated if stated.endswith(end) and stated in FAMILIES else codec
    if codec in (JPEG, JPEG_EXTENDED):
        syntax = JPEG if stream.bits == 8 else JPEG_EXTENDED
        if stream.bits == 8:
            changes = {"bits_allocated": 8, "bits_stored": 8}
    if layout.kind.startswith("YBR_PARTIAL"):
        changes["photometric_interpretation"] = "YBR_FULL_422"  # the colours of a JPEG codestream have the full range
    if codec == J2K and layout.kind.startswith("YBR") and _j2k_is_transformed(data):
        changes["photometric_interpretation"] = "YBR_RCT"  # the decoder returns RGB
    return import_pydicom(path).uid.UID(syntax), decoder_for(path, syntax), changes


def _j2k_is_transformed(data: bytes) -> bool:
    """Whether a JPEG 2000 codestream states a transformation of its colours (T.800, A.6.1): decoders undo it."""
    at = data.find(b"\xff\x52", data.find(J2K_START))
    return 0 <= at < len(data) - 9 and data[at + 8] == 1


def _decode_j2k(data: bytes, layout: Layout) -> np.ndarray | None:
    """A JPEG 2000 frame by OpenCV; None if it is not of 8 or 16 bits.

    It reads colours of 16 bits, which Pillow lacks, and damaged files that Pillow rejects.
    """
    stream = codestream(data)
    if stream is None or stream.bits not in (8, 16) or layout.signed or layout.kind.startswith("YBR_FULL"):
        return None
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None or array.shape[:2] != (layout.rows, layout.columns):
        return None
    return np.ascontiguousarray(array[..., ::-1]) if array.ndim == 3 else array


def _decode_12_bits(path: str, data: bytes, layout: Layout) -> np.ndarray:
    """A grey JPEG frame of 12 bits."""
    if layout.samples != 1:
        raise ScanError(f"{path}: a JPEG in colour of 12 bits; decompress it with another program first")
    values = jpeg_12_bits.decode(data, layout.rows, layout.columns)
    if values is None:
        raise ScanError(f"{path}: a damaged JPEG frame of 12 bits")
    return values


def decoder_for(path: str, syntax: str) -> str:
    """The pydicom plugin for a transfer syntax; "" leaves the choice to pydicom.

    GDCM is used only if nothing else can decode (lossless JPEG): it aborts the process on codestreams that other
    decoders reject.
    """
    plugins = import_pydicom(path).pixels.get_decoder(syntax).available_plugins
    return next((name for name in plugins if name != "gdcm"), "")


def _checked(path: str, layout: Layout, data: bytes, codec: str) -> tuple[bytes, Codestream]:
    """A codestream up to its end, and its header.

    Raises:
      ScanError: it does not match the file's header: a decoder would allocate what it claims.
    """
    if codec == JPEG_LS:
        end = jpeg_end(data)
        if end is None:  # CharLS would spin
            raise ScanError(f"{path}: truncated frame; {AGAIN}")
        data = data[:end]
    name = import_pydicom(path).uid.UID(codec).name
    stream = codestream(data, strict=True)
    if stream is None or not has_codestream_box(data):  # pydicom would follow the boxes forever
        raise ScanError(f"{path}: a frame without a size; damaged, or no {name}")
    if stream.memory > 2 * MAX_DECODED:
        raise ScanError(
            f"{path}: decoding a frame needs {stream.memory >> 20} MiB; at most {MAX_DECODED >> 19} MiB are allowed"
        )
    expected = layout.columns, layout.rows, layout.samples
    if stream[:3] != expected or stream.bits > layout.allocated:
        stated, actual = (
            f"{width} x {height} pixels of {samples} x {bits} bits"
            for width, height, samples, bits in ((*expected, layout.allocated), stream[:4])
        )
        raise ScanError(f"{path}: a frame of {actual}, but the header says {stated}")
    check_passes(data, stream.width * stream.height, path)
    return data, stream


def jpeg_end(data: bytes) -> int | None:
    """Bytes of a JPEG or JPEG-LS codestream with its end marker, without what follows; None if that marker lacks."""
    at = 2
    while at + 2 <= len(data):
        (marker,) = struct.unpack_from(">H", data, at)
        if marker == JPEG_END:
            return at + 2
        if marker == 0xFFFF:
            at += 1
            continue
        if marker >> 8 != 0xFF or at + 4 > len(data):
            return None
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
        if marker == JPEG_SCAN:
            match = MARKER.search(data, at)
            if match is None:
                return None
            at = match.start()
    return None


def frame_bytes(file: DicomFile, frame: int) -> bytes:
    """The compressed bytes of a frame. ScanError if they are missing."""
    frames = frame_items(file)
    if frame >= len(frames) or not frames[frame]:
        there = "1 frame" if len(frames) == 1 else f"{len(frames)} frames"
        raise ScanError(f"{file.path}: truncated: it has the compressed pixels of {there} only; {AGAIN}")
    with file.open(2 * MAX_DECODED) as source:
        parts = []
        for at, length in frames[frame]:
            source.seek(at)
            parts.append(source.read(length))
    return b"".join(parts)


@functools.lru_cache(2)
def frame_items(file: DicomFile) -> list[list[tuple[int, int]]]:
    """Offset and length of the fragments of each frame, found once for a file."""
    if not file.items:
        return []
    (table_at, table_size), *fragments = file.items
    count = frames_of(file.header)
    if count == 1 or not fragments:
        return [fragments]
    if len(fragments) == count:
        return [[one] for one in fragments]
    number_at = {at - fragments[0][0]: number for number, (at, _) in enumerate(fragments)}
    with file.open(2 * MAX_DECODED) as source:
        source.seek(table_at)
        tables = [(source.read(min(table_size, MAX_TABLE)), "<I")]
        if isinstance(extended := file.header.get("ExtendedOffsetTable"), bytes):
            tables.append((extended, "<Q"))
        for table, form in tables:
            whole = len(table) // struct.calcsize(form) * struct.calcsize(form)
            offsets = [offset for (offset,) in struct.iter_unpack(form, table[:whole])]
            if len(offsets) == count and sorted(set(offsets)) == offsets and set(offsets) <= number_at.keys():
                bounds = [*(number_at[offset] for offset in offsets), len(fragments)]
                return [fragments[start:end] for start, end in itertools.pairwise(bounds)]
        frames: list[list[tuple[int, int]]] = []
        for at, length in fragments:
            source.seek(at)
            if not frames or source.read(4).startswith((JPEG_START, J2K_START, JP2_START[:4])):
                frames.append([])
            frames[-1].append((at, length))
    return frames
