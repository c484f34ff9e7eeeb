"""Find scans of which a part is missing: truncated files whose decoder filled the rest with one grey level. No JAX.

This is seen in the whole scan: the letterbox may crop such an area, as it crops a border. Borders of scans differ from
it: a page or a frame is on the opposite side, too, and air ends at the curve of a head, not in a straight line.

The limits were measured on the 10,375 pictures of nine public data sets of brain MRI and breast ultrasound; none is
called cut.
"""

import dataclasses

import cv2
import numpy as np

SAME = 3
"""Grey levels that differ by no more count as one: JPEG changes them."""
MAX_MARGIN = 0.05
"""A margin is an area of one level along a side. More than this share of the height or width may be missing."""
FILL = 18
"""A margin of at least this level, unlike the opposite side, is filled. Such margins of scans have levels of 8 at
most, or the level of the opposite side."""
CONTRAST, MAX_STRAIGHT = 12, 0.65
"""A margin ends in a straight line if more than MAX_STRAIGHT of the columns in which something differs from it by
CONTRAST levels (the mean of the channels) do so at once. Of scans, none has more than 0.57."""
AT_ONCE = 0.01
"""Lines, as a share of all, that are at once; at least 3."""
BLOCK = 16
"""Lines by which the last part of a truncated JPEG may end earlier in some columns: a row of blocks is filled from the
left."""
ENOUGH = 1024
"""Pixels along the longer side that are enough: of a larger scan, every second, third ... row and column is seen."""
FRAME = 0.25
"""A frame: the opposite margin has the same level and at least this share of the depth. Margins above and below must
also both end in a straight line: a head that is cut may lie below air of the same level."""


@dataclasses.dataclass(frozen=True)
class Margin:
    """An area of one level along a side.

    Attributes:
      depth: its lines, as a share of all; 0 if there is none, 1 if there is nothing else.
      level: (3,), int, of its channels.
      outermost: (3,), median of the outermost line.
      straight: share of the columns that end it at once, 0 to 1.
    """

    depth: float
    level: np.ndarray
    outermost: np.ndarray
    straight: float


def is_cut(image: np.ndarray) -> bool:
    """Whether a part of a scan, uint8 (H, W, 3), seems to be missing along one of its sides."""
    sides = image[0], image[-1], image[:, 0], image[:, -1]
    if not any(_is_level(side) for side in sides):  # as of most scans; the rest costs more
        return False
    step = max(1, max(image.shape[:2]) // ENOUGH)
    image = np.ascontiguousarray(image[::step, ::step])
    rows, columns = (
        np.stack([cv2.reduce(image, axis, kind).reshape(-1, 3) for kind in (cv2.REDUCE_MAX, cv2.REDUCE_MIN)])
        for axis in (1, 0)
    )
    for lines, own, across, upright in ((image, rows, columns, True), (image.swapaxes(0, 1), columns, rows, False)):
        first, last = _margin(lines, own, across), _margin(lines[::-1], own[:, ::-1], across)
        if _is_filled(first, last, upright) or _is_filled(last, first, upright):
            return True
    return False


def _is_level(line: np.ndarray) -> bool:
    """Whether a line, uint8 (N, 3), has one level."""
    return bool((line.max(0).astype(int) - line.min(0) <= 2 * SAME).all())


def _is_filled(one: Margin, opposite: Margin, upright: bool) -> bool:
    """Whether a margin is what a decoder filled in, by it and the opposite one; `upright`: they are above and below."""
    if not MAX_MARGIN < one.depth < 1:
        return False
    if one.level.max() >= FILL and np.abs(one.outermost - opposite.outermost).max() > SAME:
        return True
    framed = np.abs(one.level - opposite.level).max() <= SAME and opposite.depth >= FRAME * one.depth
    return one.straight > MAX_STRAIGHT and not (framed and (opposite.straight > MAX_STRAIGHT or not upright))


def _margin(lines: np.ndarray, own: np.ndarray, across: np.ndarray) -> Margin:
    """The margin along the first line.

    Args:
      lines: uint8 (N, M, 3).
      own: largest and smallest value of each line, uint8 (2, N, 3).
      across: the same of each column, uint8 (2, M, 3).
    """
    outermost = np.median(lines[0], axis=0)
    level = own[:, 0].astype(int).sum(0) // 2
    if not _is_level(lines[0]):
        return Margin(0.0, level, outermost, 0.0)
    differs = (np.abs(own - level) > SAME).any((0, 2))
    if not differs.any():
        return Margin(1.0, level, outermost, 0.0)
    depth = int(differs.argmax())
    at_once = max(3, round(AT_ONCE * len(lines)))
    near = lines[depth : depth + at_once + BLOCK]
    ends = cv2.absdiff(near, np.full_like(near, level)).sum(2, dtype=np.uint16) > 3 * CONTRAST
    columns = np.count_nonzero(np.abs(across - level).max(0).sum(1) > 3 * CONTRAST)
    numbers = np.bincount(ends.argmax(0)[ends.any(0)], minlength=at_once + BLOCK).tolist()
    # a row of blocks later, some columns may end, too
    later = max((sum(numbers[line : line + at_once]) for line in range(at_once, BLOCK + 1)), default=0)
    straight = (sum(numbers[:at_once]) + later) / max(int(columns), 1)
    return Margin(depth / len(lines), level, outermost, straight)
