"""DICOM files as scans, a frame at a time, and without their identifiers. No JAX; pydicom comes with the extra `dicom`.

What is read of a header is TAGS and no more: a patient's name never reaches this process's objects, so that it cannot
reach a finding, a log or a page. For the same reason no message quotes what pydicom says of a damaged file.
"""

import io
import logging
import math
import os
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from mcis import MAX_PIXELS
from mcis.imaging.geometry import Place, along_normal, digest
from mcis.imaging.headers import boxes_lead_on, codestream
from mcis.imaging.scan import MAX_DECODED, MAX_FRAMES, Scan, ScanError, bands, check_file, check_passes

SUFFIXES = (".dcm", ".dicom", ".ima")
MAX_BYTES = 1 << 31
"""Of a file; a frame is read by itself, so that memory is what one frame takes."""
MAX_HEADER = 1 << 26
"""Bytes that are read of a header; what is skipped in it does not count, and each element for PER_READ at least."""
PER_READ = 256
DEFLATED = "1.2.840.10008.1.2.1.99"
"""The transfer syntax that has all of the file inflated at once, however much that is."""
NO_SCANS = ("SEG", "RTDOSE", "RTSTRUCT", "PR", "SR")
"""Modalities of what is made from scans."""
END = b"\xff\xd9"
"""The marker at the end of a JPEG-LS codestream."""
CENTIMETRES = 3
"""Physical units of an ultrasound region (PS3.3 C.8.5.5.1.15)."""
TAGS = (
    *("SOPClassUID", "Modality", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration", "BurnedInAnnotation"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction"),
    *("WindowCenter", "WindowWidth", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"),
    *("SequenceOfUltrasoundRegions", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("SeriesInstanceUID", "SOPInstanceUID", "ImagePositionPatient", "ImageOrientationPatient"),
    *("PaletteColorLookupTableUID", "SegmentedRedPaletteColorLookupTableData"),
    *("SegmentedGreenPaletteColorLookupTableData", "SegmentedBluePaletteColorLookupTableData"),
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue")),
    *(f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
)
"""All that is read of a header: how its pixels are to be shown, how large they are, and where they lie. The two
UIDs say which slices belong together; `place_of` hashes them, and nothing keeps them."""


def holds(name: str, head: bytes) -> bool:
    """Whether a file is DICOM, of its name and first bytes."""
    return head[128:132] == b"DICM" or name.lower().endswith(SUFFIXES)


def nameless(path: pathlib.Path) -> bool:
    """Whether a file whose name has no suffix, or a number for one, as archives write them, is DICOM."""
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
    """Number of frames; 1 for a file that cannot be read, and at most one beyond MAX_FRAMES."""
    try:
        return min(max(1, int(header(path).get("NumberOfFrames") or 1)), MAX_FRAMES + 1)
    except (ScanError, OSError, ValueError, TypeError, OverflowError):
        return 1


def read(path: str | os.PathLike, frame: int = 0) -> Scan:
    """Read a frame of a DICOM file: MONOCHROME1 and 2, RGB, YBR, palette; plain, RLE, JPEG, JPEG-LS, JPEG 2000.

    Args:
      path: a file.
      frame: which of its frames, from 0.

    Returns:
      The Scan: uint8 RGB of the frame's own size. Grey values go through the modality's rescaling and the first window
      of the file, or VOI table, and where it has none linearly from the frame's minimum and maximum to [0, 255];
      MONOCHROME1 is inverted. `spacing` is the pixel spacing, of an ultrasound that of its one region.

    Raises:
      ScanError: it is no such file, has no pixels or too many, or no decoder for them is at hand.
    """
    if frame >= MAX_FRAMES:
        raise ScanError(f"{path}: has more than {MAX_FRAMES} frames; the others are not read, split the file")
    found = header(path)
    with _in_our_words(path):
        if found.get("Modality") in NO_SCANS:
            raise ScanError(f"{path}: of modality {found.Modality}, made from scans and none itself")
        place = place_of(found, frame)
    try:
        return _read(path, found, frame, place)
    except ScanError as error:
        error.series = None if place is None else place.series
        raise


def _read(path: str | os.PathLike, found: Any, frame: int, place: Place | None) -> Scan:
    with _in_our_words(path):
        rows, columns = int(found.get("Rows") or 0), int(found.get("Columns") or 0)
        if rows * columns == 0:
            raise ScanError(f"{path}: a DICOM file without a picture ({_kind(found)})")
        if rows * columns > MAX_PIXELS:
            raise ScanError(f"{path}: {columns} x {rows} pixels; at most {MAX_PIXELS} are read")
        taken = rows * columns * int(found.get("SamplesPerPixel") or 1) * int(found.get("BitsAllocated") or 8) // 8
        if taken > MAX_DECODED:
            raise ScanError(f"{path}: {taken >> 20} MiB of pixels a frame; at most {MAX_DECODED >> 20} MiB are read")
        if frame >= int(found.get("NumberOfFrames") or 1):
            raise ScanError(f"{path}: has no frame {frame}; they count from 0")
        image, notes = _shown(_pixels(path, found, frame), found, frame, path)
        spacing, of_spacing = spacing_of(found, frame)
        return Scan(np.ascontiguousarray(image), (*notes, *of_spacing, *_burnt_in(found)), spacing, place)


def header(path: str | os.PathLike, tags: Sequence[str] = TAGS) -> Any:
    """The Dataset of a file's tags, without its pixels. ScanError where it is no DICOM file that can be read."""
    check_file(path, MAX_BYTES)
    pydicom = _pydicom(path)
    with _in_our_words(path), _Bounded(path, MAX_HEADER) as file:
        pydicom.filereader.read_preamble(file, False)
        meta = pydicom.filereader.read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
        if meta.get("TransferSyntaxUID") == DEFLATED:
            raise ScanError(f"{path}: deflated DICOM is not read; `dcmconv +te` writes it without")
        file.seek(0)
        return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(tags))


class _Bounded(io.BufferedReader):
    """A file of which so many bytes are read and no more, whatever it claims. ScanError where more are asked for."""

    def __init__(self, path: str | os.PathLike, most: int):
        self._path, self._left = path, most
        super().__init__(io.FileIO(path))

    def read(self, size: int | None = -1) -> bytes:
        found = super().read(self._left + 1 if size is None or size < 0 else min(size, self._left + 1))
        self._left -= max(len(found), PER_READ)
        if self._left < 0:
            raise ScanError(f"{self._path}: more is in its header, or in one frame, than is read of one")
        return found


def _pydicom(path: str | os.PathLike) -> Any:
    try:
        import pydicom
        import pydicom.filereader
        import pydicom.pixels
    except ImportError:
        raise ScanError(f"{path}: DICOM is read where its extra is installed: pip install -e '.[dicom]'") from None
    # what it says of odd values quotes them
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
    return pydicom


class _in_our_words:  # reads as a statement
    """Whatever a decoder finds wrong becomes a ScanError that quotes nothing of the file."""

    def __init__(self, path: str | os.PathLike):
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, ScanError | MemoryError) or not isinstance(error, Exception):
            return
        if isinstance(error, OSError) and error.filename is not None:
            return  # of the file system
        raise ScanError(f"{self.path}: damaged, or not DICOM that can be read here ({type(error).__name__})") from None


def _kind(found: Any) -> str:
    """What a file is, in a word that is nobody's name."""
    modality = str(found.get("Modality") or "")
    return modality if modality.isalnum() and len(modality) <= 4 else "no modality"


def _pixels(path: str | os.PathLike, found: Any, frame: int) -> np.ndarray:
    """A frame as it is stored, YBR as RGB: (H, W) or (H, W, 3)."""
    pydicom = _pydicom(path)
    syntax = found.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        _check_frame(path, found, frame)
    try:
        with _Bounded(path, MAX_HEADER + MAX_DECODED) as file:
            return pydicom.pixels.pixel_array(file, index=frame, decoding_plugin=_decoder_of(path, syntax))
    except (RuntimeError, NotImplementedError) as error:
        if "missing dependencies" in str(error) or isinstance(error, NotImplementedError):
            raise ScanError(f"{path}: no decoder here reads {syntax.name}; `gdcmconv --raw` decompresses it") from None
        raise


def _decoder_of(path: str | os.PathLike, syntax: Any) -> str:
    """What decodes a transfer syntax, "" for the first that there is.

    GDCM only where nothing else does (lossless JPEG): it ends the process on codestreams that others refuse.
    """
    if not syntax.is_encapsulated:
        return ""
    there = _pydicom(path).pixels.get_decoder(syntax).available_plugins
    return next((name for name in there if name != "gdcm"), "")


def _check_frame(path: str | os.PathLike, found: Any, frame: int) -> None:
    """ScanError where a compressed frame is another than the header says: a decoder would make room for it."""
    pydicom = _pydicom(path)
    with _Bounded(path, MAX_HEADER + MAX_DECODED) as file:
        pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[])
        file.seek(12, os.SEEK_CUR)  # tag, representation and length, after which the frames' items begin
        data = pydicom.encaps.get_frame(file, frame, number_of_frames=int(found.get("NumberOfFrames") or 1))
    syntax, uid = found.file_meta.TransferSyntaxUID, pydicom.uid
    if syntax in uid.JPEGLSTransferSyntaxes and not data.rstrip(b"\0").endswith(END):  # in which CharLS spins for long
        raise ScanError(f"{path}: a frame that was cut short")
    if syntax not in (*uid.JPEGTransferSyntaxes, *uid.JPEGLSTransferSyntaxes, *uid.JPEG2000TransferSyntaxes):
        return
    if not boxes_lead_on(data) or (holds := codestream(data)) is None:  # pydicom goes round in the former for ever
        raise ScanError(f"{path}: a frame that does not say its size; damaged, or no {syntax.name}")
    said = int(found.Columns), int(found.Rows), int(found.SamplesPerPixel)
    if holds.taken > 2 * MAX_DECODED:
        raise ScanError(
            f"{path}: {holds.taken >> 20} MiB are needed to decode a frame; at most {MAX_DECODED >> 19} MiB are taken"
        )
    if (holds.width, holds.height, holds.samples) != said or holds.bits > int(found.BitsAllocated):
        wrong = f"a frame of {holds.width} x {holds.height} pixels of {holds.samples} x {holds.bits} bits"
        raise ScanError(
            f"{path}: {wrong}, where the header says {said[0]} x {said[1]}, {said[2]} x {found.BitsAllocated}"
        )
    check_passes(data, holds.width * holds.height, str(path))


def _shown(array: np.ndarray, found: Any, frame: int, path: str | os.PathLike) -> tuple[np.ndarray, list[str]]:
    """A frame as it is to be seen, uint8 (H, W, 3), and what was done to it."""
    pixels = _pydicom(path).pixels
    kind = str(found.get("PhotometricInterpretation") or "")
    if kind == "PALETTE COLOR":
        coloured = pixels.apply_color_lut(array, found)[..., :3]
        return (coloured >> 8 * (coloured.itemsize - 1)).astype(np.uint8), ["palette laid out as RGB"]
    if array.ndim == 3:
        if array.dtype == np.uint8:
            return array, []
        return _scaled(array, 0.0, 2.0 ** int(found.BitsStored) - 1), ["colours scaled to 8 bits"]
    if not kind.startswith("MONOCHROME"):
        raise ScanError(f"{path}: pixels of a kind that is not read; MONOCHROME, RGB, YBR and PALETTE COLOR are")
    if (table := found.get("VOILUTSequence")) and "WindowCenter" not in found:
        values = pixels.apply_voi_lut(pixels.apply_modality_lut(array, found), found).astype(np.float32)
        low, high, said = 0.0, 2.0 ** int(table[0].LUTDescriptor[2]) - 1, "its table of grey values"
    else:
        values = _rescaled(array, found, frame, pixels)
        low, high, said = _window(values, found, frame)
    if not np.isfinite(values).all():
        raise ScanError(f"{path}: has NaN or infinite pixels")
    grey = _scaled(values, low, high)
    if kind == "MONOCHROME1":
        grey = 255 - grey
    return np.repeat(grey[..., None], 3, axis=2), [f"shown by {said}", *(["inverted"] if kind == "MONOCHROME1" else [])]


def _rescaled(array: np.ndarray, found: Any, frame: int, pixels: Any) -> np.ndarray:
    """Stored values as the modality means them, float32."""
    if "ModalityLUTSequence" in found:
        return pixels.apply_modality_lut(array, found).astype(np.float32)
    slope = of_frame(found, frame, "PixelValueTransformationSequence", "RescaleSlope")
    intercept = of_frame(found, frame, "PixelValueTransformationSequence", "RescaleIntercept")
    values = array.astype(np.float32)
    values *= float(1 if slope is None else slope)  # in place: a frame may be large
    values += float(intercept or 0)
    return values


def _window(values: np.ndarray, found: Any, frame: int) -> tuple[float, float, str]:
    """The values that become black and white, and in words where they come from (PS3.3 C.11.2.1.2)."""
    centre, width = (of_frame(found, frame, "FrameVOILUTSequence", f"Window{part}") for part in ("Center", "Width"))
    centre, width = (_first(value) for value in (centre, width))
    exact = str(of_frame(found, frame, "FrameVOILUTSequence", "VOILUTFunction") or "LINEAR") != "LINEAR"
    if centre is None or width is None or not width >= 1 or not math.isfinite(centre):
        low, high = float(values.min()), float(values.max())
        return low, high, f"its own values, {low:g} to {high:g}"
    low, high = centre - width / 2, centre + width / 2
    if not exact:
        low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    return low, high, f"the file's window, {low:g} to {high:g}"


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """[low, high] to [0, 255], rounded and cut: uint8."""
    scaled = np.empty(values.shape, np.uint8)
    for rows in bands(values):
        at = (values[rows].astype(np.float32) - low) * (255.0 / max(high - low, 1e-12))
        scaled[rows] = np.clip(np.rint(at), 0, 255)
    return scaled


def of_frame(found: Any, frame: int, sequence: str, name: str) -> Any:
    """An attribute of a frame: in its own functional group, in that of all frames, or in the file."""
    groups = found.get("PerFrameFunctionalGroupsSequence") or []
    for group in (*groups[frame : frame + 1], *(found.get("SharedFunctionalGroupsSequence") or [])[:1]):
        for item in (group.get(sequence) or [])[:1]:
            if name in item:
                return item[name].value
    return found.get(name)


def _first(value: Any) -> float | None:
    """The first of several values, as a number; None where there is none."""
    if value is None or isinstance(value, str | bytes):
        return None
    values = list(value) if isinstance(value, Sequence) or hasattr(value, "__iter__") else [value]
    return float(values[0]) if values else None


def spacing_of(found: Any, frame: int) -> tuple[tuple[float, float] | None, list[str]]:
    """Millimetres from row to row and from column to column, None where the file does not say; and what to note."""
    regions = [
        (float(region.PhysicalDeltaY), float(region.PhysicalDeltaX))
        for region in found.get("SequenceOfUltrasoundRegions") or []
        if region.get("PhysicalUnitsXDirection") == region.get("PhysicalUnitsYDirection") == CENTIMETRES
    ]
    if regions:
        if len(set(regions)) > 1:
            return None, ["several regions of different scale: nothing is measured in mm"]
        return _positive([10 * abs(delta) for delta in regions[0]]), []
    value = of_frame(found, frame, "PixelMeasuresSequence", "PixelSpacing")
    if value is None and (value := found.get("NominalScannedPixelSpacing")) is None:
        if found.get("ImagerPixelSpacing") is not None:
            return None, ["pixel spacing is that of the detector: nothing is measured in mm"]
        return None, []
    return _positive([float(part) for part in value]), []


def place_of(found: Any, frame: int) -> Place | None:
    """Where a frame lies, of a header; None where its file does not say what series it is of.

    Frames of one file are a volume of their own, files of a series one together; a file that says no position stands
    alone, as most ultrasound does.
    """
    series = str(found.get("SeriesInstanceUID") or "")
    if not series:
        return None
    lies = position_of(found, frame)
    if lies is None or int(found.get("NumberOfFrames") or 1) > 1:
        series = f"{series}/{found.get('SOPInstanceUID')}"
    where = None if lies is None else along_normal(lies[0], lies[1][:3], lies[1][3:])
    return Place(digest(series), *(where or (None, None)))


def position_of(found: Any, frame: int) -> tuple[list[float], list[float]] | None:
    """ImagePositionPatient and ImageOrientationPatient of a frame; None where a file does not say both in numbers."""
    try:
        position = _numbers(of_frame(found, frame, "PlanePositionSequence", "ImagePositionPatient"), 3)
        orientation = _numbers(of_frame(found, frame, "PlaneOrientationSequence", "ImageOrientationPatient"), 6)
    except (ValueError, TypeError, OverflowError):
        return None
    return None if position is None or orientation is None else (position, orientation)


def _numbers(value: Any, count: int) -> list[float] | None:
    if value is None or isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        return None
    numbers = [float(part) for part in value]
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def _positive(spacing: list[float]) -> tuple[float, float] | None:
    if len(spacing) != 2 or not all(math.isfinite(part) and part > 0 for part in spacing):
        return None
    return spacing[0], spacing[1]


def _burnt_in(found: Any) -> list[str]:
    """A warning where a picture may show whom it is of."""
    said = found.get("BurnedInAnnotation")
    if said == "YES":
        return ["the file says that text is burnt into its pixels: look before you share pictures of it"]
    if said != "NO" and found.get("Modality") == "US":
        return ["ultrasound: names and dates may be burnt into its pixels; look before you share pictures of it"]
    return []
