"""What shows in a whole scan only, before the letterbox resizes it: a missing part, too few grey levels. No JAX.

A scan is called cut only where a decoder makes it so. Margins, toolbars, heads without a face and fields of view that
end early are areas of one level along a side, too, and are scans.
"""

import numpy as np

FILL, SAME = 128, 3
"""What decoders show of a JPEG file below the last row that is there; and by how much each channel may differ."""
MAX_FILLED = 0.05
"""Largest share of the height that may be filled, at the bottom."""
MIN_DISTINCT, RARE = 8, 1e-4
"""Fewest grey levels of 256 that have more than a share of RARE of the content. Of 1,080 scans of nine public data
sets the fewest is 48, reduced to a tenth of their contrast 11, to 16 levels 8, but for slices with little of a head."""
BLACK, MAX_EMPTY, MIN_STRAIGHT = 10, 0.2, 0.65
"""An empty area that is worth a note: no pixel is above BLACK, it is deeper than a share of MAX_EMPTY, and more than
MIN_STRAIGHT of the columns that show anything begin at once. Air ends at the curve of a head instead."""
ENOUGH = 1024
"""Pixels along the longer side that are enough: of a larger scan, every second, third ... row and column is seen."""


def flaw_of(image: np.ndarray, content: np.ndarray) -> str | None:
    """Why a scan is a part of one, or no scan; None where it seems to be one.

    Args:
      image: the whole scan, uint8 (H, W, 3).
      content: what its crop leaves of it, likewise.
    """
    upright = image[::-1, :: _step(image)]
    if (
        len(image) > 1
        and _is_fill(upright[: max(1, round(MAX_FILLED * len(image)))]).all()
        and _is_fill(upright[-1]).mean() < 0.9
    ):
        share = float(_is_fill(upright).all((1, 2)).argmin()) / len(image)
        if share > MAX_FILLED:
            whole = "as programs show a picture file of which only a part was copied; copy or export it again"
            return f"cut: its lower {share:.0%} is plain grey, {whole}"
    step = _step(content)
    grey = content[::step, ::step].max(2)  # of colours, each channel has as few levels
    levels = int(np.count_nonzero(np.bincount(grey.ravel()) > RARE * grey.size))
    if levels < MIN_DISTINCT:
        what = f"{levels} grey levels" if levels > 1 else "1 grey level"
        return f"only {what}: a mask, a label map or a drawing? If it is a scan, export it with all its grey levels"
    return None


def empty_note(image: np.ndarray) -> str | None:
    """A note if a large part of uint8 (H, W, 3), above or below, is black and ends in a straight line; None if not.

    With such an area at both ends, it is a frame.
    """
    step = _step(image)
    shown = image[::step, ::step].max(2) > BLACK
    columns = np.count_nonzero(shown.any(0))
    found = []
    for side, rows in (("upper", shown), ("lower", shown[::-1])):
        depth = int(rows.any(1).argmax())
        at_once = rows[depth : depth + max(3, len(rows) // 100)].any(0)
        if depth > MAX_EMPTY * len(rows) and np.count_nonzero(at_once) > MIN_STRAIGHT * columns:
            line = f"the {side} {depth / len(rows):.0%} is one black area that ends in a straight line"
            found.append(f"{line}: if a part of the scan is missing, get a whole file")
    return found[0] if len(found) == 1 else None


def _is_fill(values: np.ndarray) -> np.ndarray:
    return np.abs(values.astype(np.int16) - FILL) <= SAME


def _step(image: np.ndarray) -> int:
    return max(1, max(image.shape[:2]) // ENOUGH)
