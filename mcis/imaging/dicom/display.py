"""Stored values of a DICOM frame as it is displayed: palettes, windows, tables, padding. No JAX.

Fields of the display never take a scan with them: one that cannot be read is left out, and a note says so.
"""

import math
from typing import Any

import numpy as np

from mcis.imaging.dicom import luts
from mcis.imaging.dicom.file import DicomFile, import_pydicom
from mcis.imaging.dicom.header import Unreadable, floats, text_of, value_of
from mcis.imaging.dicom.pixels import Layout
from mcis.imaging.scan import to_8_bits

EXACT, SIGMOID, LINEAR = "LINEAR_EXACT", "SIGMOID", "LINEAR"


def to_rgb(array: np.ndarray, file: DicomFile, layout: Layout, frame: int) -> tuple[np.ndarray, list[str]]:
    """A frame (H, W) or RGB (H, W, 3) as displayed, uint8 (H, W, 3), and notes on the conversion."""
    notes: list[str] = []
    if array.ndim == 3:
        if array.dtype == np.uint8 and layout.stored >= 8:
            return array, []
        bits = min(layout.stored, 8 * array.itemsize)
        return to_8_bits(array, 0.0, 2.0**bits - 1), ["colours scaled to 8 bits"]
    if layout.kind == "PALETTE COLOR":
        try:
            return _coloured(array, file, layout), ["palette converted to RGB"]
        except Exception:  # of pydicom and NumPy, for values of another form
            notes.append("its palette is missing or cannot be read: indices shown in grey")
    header = file.header
    padding = _padding(array, header, layout, notes)
    if padding is not None:
        notes.append("padding shown black")
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        padding = ~finite if padding is None else padding | ~finite
        notes.append("NaN and infinite values shown black")
    if padding is not None:
        array = array.copy()
        array[padding] = array[~padding].min() if not padding.all() else 0
    grey, grey_notes = _grey(array, file, layout, frame)
    notes += grey_notes
    if layout.kind == "MONOCHROME1":
        grey = 255 - grey
        notes.append("inverted")
    elif text_of(header, "PresentationLUTShape").strip().upper() == "INVERSE":  # the standard allows it not
        notes.append("its header contradicts itself: MONOCHROME2, but PresentationLUTShape INVERSE: it is not inverted")
    if padding is not None:
        grey[padding] = 0
    return np.repeat(grey[..., None], 3, axis=2), notes


def _coloured(array: np.ndarray, file: DicomFile, layout: Layout) -> np.ndarray:
    """Indices of a palette as colours, uint8 (H, W, 3)."""
    header = file.header
    colours = ("RedPaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData")
    if not any(name in header for name in colours) and (uid := header.get("PaletteColorLookupTableUID")):
        coloured = import_pydicom(file.path).pixels.apply_color_lut(array, palette=uid)[..., :3]
        return (coloured >> 8 * (coloured.itemsize - 1)).astype(np.uint8)
    lowest, _ = _stored_range(array, layout)
    return luts.apply(luts.palette(header, file.little_endian, lowest), array)


def _padding(array: np.ndarray, header: Any, layout: Layout, notes: list[str]) -> np.ndarray | None:
    """Which stored values are padding (PS3.3, C.7.5.1.1.2, C.7.6.24, C.7.6.25), bool (H, W); None without padding."""
    value = limit = None
    try:
        for kind in ("Float", "DoubleFloat", "") if array.dtype.kind == "f" else ("",):
            value, limit = (_padding_number(header, f"{kind}PixelPadding{end}") for end in ("Value", "RangeLimit"))
            if value is not None:
                break
    except Exception:  # of pydicom, for a value of another form
        notes.append("its padding value cannot be read, and is left out")
        return None
    if value is None:
        return None
    if (first := _stored_value(value, array, layout)) is None:
        notes.append("its padding value cannot occur in its pixels, and is left out")
        return None
    last = first
    if limit is not None and (other := _stored_value(limit, array, layout)) is not None:
        last = other
    elif limit is not None:
        notes.append("the limit of its padding values cannot occur in its pixels, and is left out")
    found = (array >= min(first, last)) & (array <= max(first, last))
    return found if found.any() else None


def _padding_number(header: Any, name: str) -> int | float | None:
    """An element that states a padding value; None if it is missing or empty."""
    value = header.get(name)
    if value is None or (isinstance(value, str | bytes) and not value):
        return None
    if isinstance(value, bytes):  # implicit VR: the dictionary leaves open whether it is signed
        return int.from_bytes(value[:2], "little")
    return value if isinstance(value, int | float) else float(value)


def _stored_value(value: int | float, array: np.ndarray, layout: Layout) -> int | float | None:
    """A stated value as one that pixels can have; None if it is none.

    The element has 16 bits. Writers state negative values as positive ones of 16 bits or of the bits stored, and large
    positive ones as negative.
    """
    if array.dtype.kind == "f":
        return float(value) if math.isfinite(value) else None
    low, high = _stored_range(array, layout)
    meant = [int(value), int(value) - (1 << 16), int(value) + (1 << 16)]
    if low < 0 <= value <= high - low:
        meant.append(int(value) - (high - low + 1))
    return next((one for one in meant if low <= one <= high), None)


def _stored_range(array: np.ndarray, layout: Layout) -> tuple[int, int]:
    """Smallest and largest value that pixels can have, by the bits stored or, if the frame exceeds these, by its type.

    Of floats those of the frame, rounded.
    """
    if array.dtype.kind == "f":
        finite = array[np.isfinite(array)]
        return (math.floor(finite.min()), math.ceil(finite.max())) if finite.size else (0, 0)
    least, largest = array.min(), array.max()
    for bits in (layout.stored, 8 * array.itemsize):
        low = -(1 << (bits - 1)) if array.dtype.kind == "i" else 0
        high = low + (1 << bits) - 1
        if low <= least and largest <= high:
            break
    return low, high


def _grey(array: np.ndarray, file: DicomFile, layout: Layout, frame: int) -> tuple[np.ndarray, list[str]]:
    """Stored values as displayed grey values, uint8 (H, W), and notes."""
    header = file.header
    stored = _stored_range(array, layout)
    values, notes = _rescaled(array, stored, file, frame)
    window, window_notes = _window(header, frame)
    notes += window_notes
    if window is None and "VOILUTSequence" in header:
        ends, _ = _rescaled(np.array(stored, np.float64), stored, file, frame)
        table = _table(header, "VOILUTSequence", file.little_endian, float(ends.min()), notes)
    else:
        table = None
    if table is not None:
        shown = luts.apply(table, np.rint(values))
        return to_8_bits(shown, 0.0, 2.0**table.bits - 1), [*notes, "grey values by the file's VOI table"]
    if window is None:
        black, white = float(values.min()), float(values.max())
        return to_8_bits(values, black, white), [
            *notes,
            f"grey values by the frame's own range, {black:g} to {white:g}",
        ]
    centre, width, function = window
    if function == SIGMOID:
        shown = 255 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -60, 60)))
        return np.rint(shown).astype(np.uint8), [*notes, f"grey values by a sigmoid at {centre:g}, width {width:g}"]
    if function == LINEAR:
        centre, width = centre - 0.5, width - 1
    black, white = centre - width / 2, centre + width / 2
    return to_8_bits(values, black, white), [*notes, f"grey values by the file's window, {black:g} to {white:g}"]


def _rescaled(array: np.ndarray, stored: tuple[int, int], file: DicomFile, frame: int) -> tuple[np.ndarray, list[str]]:
    """Stored values after the modality's rescaling, float32, and notes; `stored` is the range of values."""
    header = file.header
    notes: list[str] = []
    if (table := _table(header, "ModalityLUTSequence", file.little_endian, stored[0], notes)) is not None:
        return luts.apply(table, array).astype(np.float32), notes
    slope, intercept = (
        _number(header, frame, "PixelValueTransformationSequence", name, default, notes)
        for name, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
    )
    if slope == 0:
        notes.append("RescaleSlope is 0: all pixels have one value")
    values = array.astype(np.float32)
    values *= slope  # in place: a frame may be large
    values += intercept
    return values, notes


def _number(header: Any, frame: int, sequence: str, name: str, default: float, notes: list[str]) -> float:
    """A number of a frame; `default`, with a note, if it is no finite number."""
    try:
        numbers = floats(value_of(header, frame, sequence, name))
        if not numbers:
            return default
        if math.isfinite(numbers[0]) and abs(numbers[0]) < np.finfo(np.float32).max:
            return numbers[0]
    except Unreadable:
        pass
    notes.append(f"{name} is not a number, and is left out")
    return default


def _table(header: Any, sequence: str, little_endian: bool, lowest: float, notes: list[str]) -> luts.Table | None:
    """The first table of a sequence, for values from `lowest`; None if there is none, or, with a note, if damaged."""
    try:
        items = header.get(sequence)
        return luts.grey_table(items[0], little_endian, lowest) if items else None
    except Exception:  # of pydicom and NumPy, for values of another form
        notes.append(f"{sequence} cannot be read, and is left out")
        return None


def _window(header: Any, frame: int) -> tuple[tuple[float, float, str] | None, list[str]]:
    """Centre, width and function of the first valid window (PS3.3, C.11.2.1.2), None if there is none; and notes."""
    sequence = "FrameVOILUTSequence"
    try:
        centres, widths = (floats(value_of(header, frame, sequence, f"Window{name}")) for name in ("Center", "Width"))
        stated = str(value_of(header, frame, sequence, "VOILUTFunction") or LINEAR).upper()
    except Unreadable:
        return None, ["its window cannot be read, and is left out"]
    function = stated if stated in (EXACT, SIGMOID) else LINEAR
    for centre, width in zip(centres, widths, strict=False):
        if math.isfinite(centre) and math.isfinite(width) and width > 0 and (width >= 1 or function != LINEAR):
            return (centre, width, function), []
    if centres or widths:
        return None, ["its window has no valid width, and is left out"]
    return None, []
