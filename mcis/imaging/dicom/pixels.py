"""One frame of a DICOM file as an array: how its header describes it, and native pixel data. No JAX."""

import math
from typing import Any

import numpy as np

from mcis import MAX_PIXELS
from mcis.imaging.dicom import bits, compressed, syntaxes
from mcis.imaging.dicom.compressed import Frame, Layout
from mcis.imaging.dicom.file import BIG_ENDIAN, DicomFile
from mcis.imaging.dicom.header import frames_of, text_of, whole_of
from mcis.imaging.scan import AGAIN, MAX_DECODED, ScanError

KINDS = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422")
"""Photometric interpretations of native pixel data."""
FLOATS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}
"""Bits of a value, by the keyword of the element."""


def layout_of(file: DicomFile) -> Layout:
    """The layout of a file's frames.

    Raises:
      ScanError: no pixels, or more than are read.
    """
    path, header = file.path, file.header
    rows, columns = whole_of(header, "Rows") or 0, whole_of(header, "Columns") or 0
    if rows * columns <= 0:
        kind = modality_of(header) or "no modality"
        raise ScanError(f"{path}: holds only data about the scan, no image ({kind}); export the images again")
    if rows * columns > MAX_PIXELS:
        raise ScanError(f"{path}: {columns} x {rows} pixels; at most {MAX_PIXELS} are read")
    if file.pixels is None:
        raise ScanError(f"{path}: holds no image: truncated, or its pixels are elsewhere; export the images again")
    notes: list[str] = []
    samples = whole_of(header, "SamplesPerPixel") or 1
    floating = FLOATS.get(file.pixels.keyword)
    allocated = floating or whole_of(header, "BitsAllocated") or whole_of(header, "BitsStored") or 8
    if allocated not in (1, 8, 16, 32, 64):
        raise ScanError(f"{path}: {allocated} bits a value (BitsAllocated); 1, 8, 16 and 32 are supported")
    size = rows * columns * samples * allocated // 8
    if size > MAX_DECODED:
        raise ScanError(f"{path}: {size >> 20} MiB of pixels per frame; at most {MAX_DECODED >> 20} are read")
    stored = floating or whole_of(header, "BitsStored") or allocated
    if not 1 <= stored <= allocated:
        stored = allocated
        notes.append(f"BitsStored contradicts BitsAllocated: all {allocated} bits are used")
    high = whole_of(header, "HighBit")
    high = high if high is not None and stored - 1 <= high < allocated else stored - 1
    kind, kind_notes = _kind(header, samples)
    if samples not in (1, 3):
        raise ScanError(
            f"{path}: unsupported pixels of {samples} values; 1 (MONOCHROME, PALETTE COLOR) or 3 (RGB, YBR) can be read"
        )
    signed, planar = whole_of(header, "PixelRepresentation") == 1, whole_of(header, "PlanarConfiguration") == 1
    return Layout(rows, columns, samples, allocated, stored, high, signed, planar, kind, (*notes, *kind_notes))


def _kind(header: Any, samples: int) -> tuple[str, list[str]]:
    """The photometric interpretation, and a note if the header's is missing, unknown or of other samples."""
    stated = " ".join(text_of(header, "PhotometricInterpretation").replace("\0", " ").upper().split())
    kind = {"PALETTE COLOUR": "PALETTE COLOR", "PALETTE": "PALETTE COLOR", "MONOCHROME": "MONOCHROME2"}.get(
        stated.replace("_COLOR", " COLOR"), stated.replace("MONOCHROME ", "MONOCHROME")
    )
    grey = kind.startswith("MONOCHROME") or kind == "PALETTE COLOR"
    known = kind in KINDS or kind.startswith("YBR_")
    if known and grey == (samples == 1):
        return kind, []
    default = "MONOCHROME2" if samples == 1 else "RGB"
    name = kind if known else "unknown" if kind else "missing"
    return default, [f"photometric interpretation {name}, with {samples} values a pixel: shown as {default}"]


def modality_of(header: Any) -> str:
    """The modality, if it has the form of one, so that it cannot be a name; else ""."""
    modality = text_of(header, "Modality")
    return modality if modality.isalnum() and len(modality) <= 10 else ""


def decode(file: DicomFile, layout: Layout, frame: int) -> Frame:
    """A frame as stored, YBR converted to RGB.

    Raises:
      ScanError: the frame is missing, damaged or compressed in a way that cannot be decoded.
    """
    if file.syntax == syntaxes.WRAPPED:
        return _decode_native(file, layout, 0, compressed.frame_bytes(file, frame))
    if compressed.is_compressed(file):
        return compressed.decode(file, layout, frame)
    return _decode_native(file, layout, frame)


def _decode_native(file: DicomFile, layout: Layout, frame: int, frame_data: bytes | None = None) -> Frame:
    """A frame of pixel data that are not compressed: of the file's, or `frame_data`."""
    pixels = file.pixels
    assert pixels is not None
    kind, count = layout.kind, layout.rows * layout.columns * layout.samples
    subsampled = kind in ("YBR_FULL_422", "YBR_PARTIAL_422")
    length = (pixels.length or 0) if frame_data is None else len(frame_data) * frames_of(file.header)
    if subsampled and length >= count * frames_of(file.header):  # as large as without subsampling
        kind, subsampled = kind.removesuffix("_422"), False
    stored = count * 2 // 3 if subsampled else count
    first, shift = divmod(frame * stored * layout.allocated, 8)
    size = math.ceil((shift + stored * layout.allocated) / 8)
    swapped = file.syntax == BIG_ENDIAN and layout.allocated == 8 and pixels.words
    odd = first % 2 if swapped else 0
    even = (size + odd) % 2 if swapped else 0
    data, notes = _native_bytes(file, layout, first - odd, size + odd + even, frame_data)
    if swapped:
        data = np.frombuffer(data, "u2").byteswap().tobytes()
    values, bits, more = _values(data[odd : odd + size], file, layout, shift, stored)
    notes += more
    if subsampled:  # Y1 Y2 B R -> Y1 B R, Y2 B R
        values = values.reshape(-1, 4)[:, [0, 2, 3, 1, 2, 3]].reshape(-1)
    if layout.samples == 1:
        return Frame(values.reshape(layout.rows, layout.columns), notes, bits)
    if layout.planar and not subsampled:
        values = np.moveaxis(values.reshape(layout.samples, layout.rows, layout.columns), 0, -1)
    values = np.ascontiguousarray(values.reshape(layout.rows, layout.columns, layout.samples))
    if kind.startswith("YBR_") and kind not in ("YBR_ICT", "YBR_RCT"):
        values = _to_rgb(values, layout.stored, kind.startswith("YBR_PARTIAL"))
    return Frame(values, notes, bits)


def _values(data: bytes, file: DicomFile, layout: Layout, shift: int, count: int) -> tuple[np.ndarray, int, list[str]]:
    """The values of a frame in the byte order of this machine, as `bits.used` gives them."""
    if layout.allocated == 1:
        return np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[shift : shift + count], 0, []
    assert file.pixels is not None
    code = "f" if file.pixels.keyword in FLOATS else "i" if layout.signed else "u"
    stored = np.frombuffer(data, f"{'<' if file.little_endian else '>'}{code}{layout.allocated // 8}")
    values = stored.astype(stored.dtype.newbyteorder("="))
    return (values, 0, []) if code == "f" else bits.used(values, layout, file.header)


def _native_bytes(
    file: DicomFile, layout: Layout, start: int, size: int, frame_data: bytes | None
) -> tuple[bytes, list[str]]:
    """Bytes of the pixel data; up to a row of missing ones are 0, with a note."""
    pixels = file.pixels
    assert pixels is not None
    if frame_data is not None:
        data = frame_data[start : start + size]
    else:
        with file.open(2 * MAX_DECODED) as source:
            source.seek(pixels.offset + start)
            data = source.read(max(0, min(size, (pixels.length or 0) - start)))
    missing = size - len(data)
    if missing > max(16, layout.columns * layout.samples * layout.allocated // 8):
        raise ScanError(f"{file.path}: truncated: {len(data)} of the {size} bytes of the frame are there; {AGAIN}")
    if missing <= size % 2:  # the byte that makes a length even
        return data + bytes(missing), []
    return data + bytes(missing), [f"the last {missing} bytes of its pixels are missing, and shown as 0"]


def _to_rgb(values: np.ndarray, bits: int, partial: bool) -> np.ndarray:
    """YBR_FULL or YBR_PARTIAL as RGB, of the same type (PS3.3, C.7.6.3.1.2)."""
    largest = float((1 << bits) - 1)
    scaled = values.astype(np.float32) * (255 / largest)
    y, b, r = scaled[..., 0], scaled[..., 1] - 128, scaled[..., 2] - 128
    if partial:
        y, b, r = (y - 16) * (255 / 219), b * (255 / 224), r * (255 / 224)
    rgb = np.stack([y + 1.402 * r, y - 0.114 * 1.772 / 0.587 * b - 0.299 * 1.402 / 0.587 * r, y + 1.772 * b], axis=-1)
    return np.clip(np.floor(rgb * (largest / 255) + 0.5), 0, largest).astype(values.dtype)
