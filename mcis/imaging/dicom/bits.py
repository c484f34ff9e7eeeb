"""The bits of stored DICOM values that the header says are used, and what lies beyond them. No JAX."""

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from mcis.imaging.dicom.file import OVERLAY_POSITIONS

if TYPE_CHECKING:
    from mcis.imaging.dicom.compressed import Layout

SIGNS = (
    "its pixels have bits beyond Bits Stored that look like the sign of negative values, but its header says that they "
    "are unsigned: such pixels are shown bright"
)


def used(values: np.ndarray, layout: "Layout", header: Any) -> tuple[np.ndarray, int, list[str]]:
    """Stored values without the bits that the header does not use; values in the upper bits are moved.

    Args:
      values: integers of `layout.allocated` bits, signed as the layout says.
      layout: of the file.
      header: of the file; bits of its overlays (group 60xx) may lie beside the values.

    Returns:
      The values; the bits that some values use if these are more than the layout says, so that the picture is
      scrambled, else 0; and notes. The sign of a negative value may go on beyond the stored bits.
    """
    if layout.stored == layout.allocated:
        return values, 0, []
    kind = np.dtype(f"u{values.itemsize}").type
    raw = np.ascontiguousarray(values).view(kind)
    kept = ((1 << layout.allocated) - 1) & ~_overlays(header)
    present = int(np.bitwise_or.reduce(raw, axis=None)) & kept
    low = layout.high + 1 - layout.stored
    low = 0 if present & ((1 << low) - 1) else low  # HighBit is wrong
    top = low + layout.stored - 1
    above = kept & ~((1 << (top + 1)) - 1)
    left = layout.allocated - 1 - top
    shown = (values << left) >> (left + low)
    if not present & above:
        return shown, 0, []
    found = raw & kind(above)
    wrong = (found != 0) & ((found != above) | (raw & kind(1 << top) == 0))
    if wrong.any():
        return shown, int((raw[wrong] & kind(kept)).max()).bit_length() - low, []
    return shown, 0, [] if layout.signed else [SIGNS]


def _overlays(header: Any) -> int:
    """The bits of a value that belong to overlays, as a mask."""
    bits = 0
    for tag in OVERLAY_POSITIONS:
        with contextlib.suppress(Exception):  # missing, or damaged: pydicom converts values when they are first used
            bits |= 1 << int(header[tag].value)
    return bits
