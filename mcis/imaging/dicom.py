"""Read DICOM files as scans, one frame at a time. No JAX."""

import math
import os
import pathlib
from typing import Any

import numpy as np

from mcis import MAX_PIXELS
from mcis.imaging.dicom_header import (
    MAX_HEADER,
    BoundedFile,
    aspect_of,
    floats,
    geometry_of,
    import_pydicom,
    read_header,
    safe_errors,
    spacing_of,
    value_of,
)
from mcis.imaging.headers import codestream, has_codestream_box
from mcis.imaging.modality import stated_content
from mcis.imaging.scan import MAX_DECODED, MAX_FRAMES, Scan, ScanError, check_frame, check_passes, to_8_bits

SUFFIXES = (".dcm", ".dicom", ".ima")
NOT_IMAGES = ("SEG", "RTDOSE", "RTSTRUCT", "PR", "SR")
"""Modalities of objects derived from images."""
JPEG_LS_END = b"\xff\xd9"


def matches(name: str, head: bytes) -> bool:
    """Whether a file is DICOM, by its name and first bytes."""
    return head[128:132] == b"DICM" or name.lower().endswith(SUFFIXES)


def is_dicom_without_suffix(path: pathlib.Path) -> bool:
    """Whether a file without suffix, or with a number as suffix, as archives name them, is DICOM."""
    if (path.suffix and not path.suffix[1:].isdigit()) or path.name == "DICOMDIR":
        return False
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def count_frames(path: str | os.PathLike) -> int:
    """Number of frames, at most MAX_FRAMES + 1; 1 for a file that cannot be read."""
    try:
        return min(max(1, int(read_header(path).get("NumberOfFrames") or 1)), MAX_FRAMES + 1)
    except (ScanError, OSError, ValueError, TypeError, OverflowError):
        return 1


def read(path: str | os.PathLike, frame: int = 0) -> Scan:
    """Read one frame: MONOCHROME1 and 2, RGB, YBR, palette; uncompressed, RLE, JPEG, JPEG-LS, JPEG 2000.

    Returns:
      The Scan, of the frame's size. Grey values pass through the modality rescaling and the file's first window or VOI
      table; without one, the frame's minimum and maximum become 0 and 255. MONOCHROME1 is inverted. `spacing` is the
      pixel spacing; for an ultrasound, that of its only region.

    Raises:
      ScanError: no DICOM file, no pixels or too many, or no decoder is installed for them.
    """
    header = read_header(path)
    series: str | None = None
    try:
        with safe_errors(path):
            if header.get("Modality") in NOT_IMAGES:
                raise ScanError(f"{path}: of modality {header.Modality}, which is derived from scans")
            geometry = geometry_of(header, frame)
            series = None if geometry is None else geometry.series
            rows, columns = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
            if rows * columns == 0:
                raise ScanError(f"{path}: a DICOM file without an image ({_modality(header)})")
            if rows * columns > MAX_PIXELS:
                raise ScanError(f"{path}: {columns} x {rows} pixels; at most {MAX_PIXELS} are read")
            size = rows * columns * int(header.get("SamplesPerPixel") or 1) * int(header.get("BitsAllocated") or 8) // 8
            if size > MAX_DECODED:
                raise ScanError(f"{path}: {size >> 20} MiB of pixels per frame; at most {MAX_DECODED >> 20} are read")
            check_frame(path, frame, int(header.get("NumberOfFrames") or 1))
            image, notes = _to_rgb(_pixels(path, header, frame), header, frame, path)
            spacing, spacing_notes = spacing_of(header, frame)
            stated, stated_notes = stated_content(header, frame)
            notes += [*spacing_notes, *stated_notes, *_burnt_in(header)]
            return Scan(np.ascontiguousarray(image), tuple(notes), spacing, geometry, stated, aspect_of(header))
    except ScanError as error:
        error.series = series
        raise


def _modality(header: Any) -> str:
    """The modality, if it has the form of one, so that it cannot be a name."""
    modality = str(header.get("Modality") or "")
    return modality if modality.isalnum() and len(modality) <= 4 else "no modality"


def _pixels(path: str | os.PathLike, header: Any, frame: int) -> np.ndarray:
    """A frame as stored, YBR converted to RGB: (H, W) or (H, W, 3)."""
    pydicom = import_pydicom(path)
    syntax = header.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        _check_compressed_frame(path, header, frame)
    try:
        with BoundedFile(path, MAX_HEADER + MAX_DECODED) as file:
            return pydicom.pixels.pixel_array(file, index=frame, decoding_plugin=_decoder_for(path, syntax))
    except (RuntimeError, NotImplementedError) as error:
        if "missing dependencies" in str(error) or isinstance(error, NotImplementedError):
            raise ScanError(
                f"{path}: no decoder for {syntax.name} is installed; decompress it with `gdcmconv --raw`"
            ) from None
        raise


def _decoder_for(path: str | os.PathLike, syntax: Any) -> str:
    """The pydicom plugin for a transfer syntax; "" leaves the choice to pydicom.

    GDCM is used only if nothing else can decode (lossless JPEG): it aborts the process on codestreams that other
    decoders reject.
    """
    if not syntax.is_encapsulated:
        return ""
    plugins = import_pydicom(path).pixels.get_decoder(syntax).available_plugins
    return next((name for name in plugins if name != "gdcm"), "")


def _check_compressed_frame(path: str | os.PathLike, header: Any, frame: int) -> None:
    """Raise ScanError if a codestream does not match the header: a decoder would allocate what it claims."""
    pydicom = import_pydicom(path)
    with BoundedFile(path, MAX_HEADER + MAX_DECODED) as file:
        pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[])
        file.seek(12, os.SEEK_CUR)  # tag, representation and length of the pixel data; its items follow
        data = pydicom.encaps.get_frame(file, frame, number_of_frames=int(header.get("NumberOfFrames") or 1))
    syntax, uid = header.file_meta.TransferSyntaxUID, pydicom.uid
    if syntax in uid.JPEGLSTransferSyntaxes and not data.rstrip(b"\0").endswith(JPEG_LS_END):  # CharLS would spin
        raise ScanError(f"{path}: truncated frame")
    if syntax not in (*uid.JPEGTransferSyntaxes, *uid.JPEGLSTransferSyntaxes, *uid.JPEG2000TransferSyntaxes):
        return
    if not has_codestream_box(data) or (stream := codestream(data)) is None:  # pydicom would follow the boxes forever
        raise ScanError(f"{path}: a frame without a size; damaged, or no {syntax.name}")
    if stream.memory > 2 * MAX_DECODED:
        raise ScanError(
            f"{path}: decoding a frame needs {stream.memory >> 20} MiB; at most {MAX_DECODED >> 19} MiB are allowed"
        )
    expected = int(header.Columns), int(header.Rows), int(header.SamplesPerPixel)
    if stream[:3] != expected or stream.bits > int(header.BitsAllocated):
        stated, actual = (
            f"{width} x {height} pixels of {samples} x {bits} bits"
            for width, height, samples, bits in ((*expected, header.BitsAllocated), stream[:4])
        )
        raise ScanError(f"{path}: a frame of {actual}, but the header says {stated}")
    check_passes(data, stream.width * stream.height, str(path))


def _to_rgb(array: np.ndarray, header: Any, frame: int, path: str | os.PathLike) -> tuple[np.ndarray, list[str]]:
    """A frame as displayed, uint8 (H, W, 3), and notes on the conversion."""
    pixels = import_pydicom(path).pixels
    kind = str(header.get("PhotometricInterpretation") or "")
    if kind == "PALETTE COLOR":
        coloured = pixels.apply_color_lut(array, header)[..., :3]
        return (coloured >> 8 * (coloured.itemsize - 1)).astype(np.uint8), ["palette converted to RGB"]
    if array.ndim == 3:
        if array.dtype == np.uint8:
            return array, []
        return to_8_bits(array, 0.0, 2.0 ** int(header.BitsStored) - 1), ["colours scaled to 8 bits"]
    if not kind.startswith("MONOCHROME"):
        raise ScanError(f"{path}: unsupported pixels; MONOCHROME, RGB, YBR and PALETTE COLOR are supported")
    if (table := header.get("VOILUTSequence")) and "WindowCenter" not in header:
        values = pixels.apply_voi_lut(pixels.apply_modality_lut(array, header), header).astype(np.float32)
        black, white, source = 0.0, 2.0 ** int(table[0].LUTDescriptor[2]) - 1, "the file's VOI table"
    else:
        values = _rescaled(array, header, frame, pixels)
        black, white, source = _window(values, header, frame)
    if not np.isfinite(values).all():
        raise ScanError(f"{path}: has NaN or infinite pixels")
    grey = to_8_bits(values, black, white)
    notes = [f"grey values by {source}"]
    if kind == "MONOCHROME1":
        grey = 255 - grey
        notes.append("inverted")
    return np.repeat(grey[..., None], 3, axis=2), notes


def _rescaled(array: np.ndarray, header: Any, frame: int, pixels: Any) -> np.ndarray:
    """Stored values after the modality's rescaling, float32."""
    if "ModalityLUTSequence" in header:
        return pixels.apply_modality_lut(array, header).astype(np.float32)
    slope = value_of(header, frame, "PixelValueTransformationSequence", "RescaleSlope")
    intercept = value_of(header, frame, "PixelValueTransformationSequence", "RescaleIntercept")
    values = array.astype(np.float32)
    values *= float(1 if slope is None else slope)  # in place: a frame may be large
    values += float(intercept or 0)
    return values


def _window(values: np.ndarray, header: Any, frame: int) -> tuple[float, float, str]:
    """The values shown black and white, and where they come from, as text (PS3.3 C.11.2.1.2)."""
    centres = floats(value_of(header, frame, "FrameVOILUTSequence", "WindowCenter"))
    widths = floats(value_of(header, frame, "FrameVOILUTSequence", "WindowWidth"))
    if not centres or not widths or not widths[0] >= 1 or not math.isfinite(centres[0]):
        black, white = float(values.min()), float(values.max())
        return black, white, f"the frame's own range, {black:g} to {white:g}"
    centre, width = centres[0], widths[0]
    if str(value_of(header, frame, "FrameVOILUTSequence", "VOILUTFunction") or "LINEAR") == "LINEAR":
        centre, width = centre - 0.5, width - 1
    black, white = centre - width / 2, centre + width / 2
    return black, white, f"the file's window, {black:g} to {white:g}"


def _burnt_in(header: Any) -> list[str]:
    """A warning if the pixels may name the patient."""
    annotated = header.get("BurnedInAnnotation")
    if annotated == "YES":
        return ["text is burnt into its pixels, says the file: check before you share images of it"]
    if annotated != "NO" and header.get("Modality") == "US":
        return ["ultrasound: names and dates may be burnt into its pixels; check before you share images of it"]
    return []
