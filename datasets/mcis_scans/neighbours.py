"""Runs of neighbours: which slices of a list, in which a patient's slices follow each other, may be of one patient.

For sources that name no patients. The list is cut only where neighbours differ in both head and lesion: a cut inside a
patient's slices would let that patient be in two splits, while a cut that is missed only makes a group larger. A
patient's slices elsewhere in the list, as in another plane, are not found.
"""

from collections.abc import Iterable

import cv2
import numpy as np

SIDE = 48
"""Side of the small copies that are compared, pixels."""
SIGMA = 1.0
"""Blur of the small copies, pixels: neighbouring slices are some millimetres apart."""
SAME_HEAD = 0.9
"""Correlation of small copies from which neighbours are taken for one head in one plane. In Cheng's list, two slices
whose lesions overlap correlate by 0.97 (median); where they do not, by 0.7."""
SAME_LESION = 0.02
"""Share of the smaller mask that overlaps, from which it is taken for the same lesion."""

Planes = tuple[np.ndarray, np.ndarray]
"""A slice and its mask, both uint8 (H, W)."""


def runs_of(slices: Iterable[Planes | None]) -> list[int]:
    """The run of each slice, numbered from 0. One that is None (not readable) separates nothing."""
    runs: list[int] = []
    last: Planes | None = None
    for planes in slices:
        cut = last is not None and planes is not None and not _alike(last, planes)
        runs.append(runs[-1] + cut if runs else 0)
        last = planes or last
    return runs


def _alike(a: Planes, b: Planes) -> bool:
    return _same_lesion(a[1], b[1]) or _same_head(a[0], b[0])


def _same_lesion(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape:
        b = cv2.resize(b, a.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    smaller = min(np.count_nonzero(a), np.count_nonzero(b))
    return bool(smaller > 0 and np.count_nonzero(a & b) >= SAME_LESION * smaller)


def _same_head(a: np.ndarray, b: np.ndarray) -> bool:
    x, y = _small(a), _small(b)
    return float((x * y).sum()) >= SAME_HEAD * float(np.sqrt((x * x).sum() * (y * y).sum()) + 1e-9)


def _small(plane: np.ndarray) -> np.ndarray:
    small = cv2.GaussianBlur(cv2.resize(plane, (SIDE, SIDE), interpolation=cv2.INTER_AREA), (0, 0), SIGMA)
    return small.astype(np.float32) - small.mean()
