"""Label sets and outer outlines: fit limits that bound their rate of errors (`ops.conformal`), and measure the rate.

- The label set of a scan holds every class whose calibrated probability reaches the limit of the class, and the decided
  class. The limits are fitted class by class (Mondrian), so that the true class is in the set for COVERAGE of the scans
  of each class: a malignancy must not be left out because most scans are benign.
- The outer outline of a lesion is its mask at a lower threshold, at which MISSED of the lesion's pixels are expected to
  lie outside. It is fitted to held-out scans with an outlined lesion that are called a lesion: only these get a mask.

Both count groups, not scans. The rates are then measured twice, on scans that the limits were not fitted to: of other
groups of the same sources (folds of groups), and of a source that is left out. Only the first is what the method
promises. The networks have learned from all sources, so a hospital of which they have seen nothing may do worse still.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from mcis.inference.rows import Rows
from mcis.ops.conformal import controlled_threshold, coverage_threshold, group_folds
from mcis.ops.metrics import bootstrap_interval, rate, with_ends, with_interval
from mcis.organs import Organ

COVERAGE = 0.90
"""Target share of the scans of each class whose label set holds the true class."""
MISSED = 0.10
"""Largest expected share of a lesion's pixels outside the outer outline."""
FOLDS = 10
THRESHOLDS = np.array([0.001, 0.002, 0.005, *np.arange(1, 51) / 100], np.float32)
"""The thresholds that are tried for the outer outline, rising, up to that of the mask, which it contains."""

Measured = dict[str, Any]
"""JSON values; a rate with an interval is {"value", "low", "high"}."""


def fit_label_set(organ: Organ, rows: Rows, decided: np.ndarray) -> tuple[np.ndarray, Measured]:
    """The limits of an organ's label sets, and how often these hold the true class.

    Args:
      organ: whose classes the labels are.
      rows: predictions for held-out scans, with calibrated `probs`; scans of unknown class are left out.
      decided: int (N,), the label of each row at the default operating point.

    Returns:
      float32 (K,), the least probability with which a class is in the set: 0, so always, for a class with fewer than
      nine groups; and facts {"wanted", "scans", "groups", "limits": {class: limit}, "in_source", "left_one_source_out":
      `_of_sets` of limits fitted to other groups, and to other sources; None where there is one group, or one source}.
    """
    known = rows.label >= 0
    rows, decided = rows.take(known), decided[known]

    def fit(part: np.ndarray) -> np.ndarray:
        return set_limits_of(rows.take(part), len(organ.classes))

    def sets(limits: np.ndarray) -> np.ndarray:
        return in_set(rows.probs, decided, limits)

    limits = fit(np.ones(len(rows), bool))
    return limits, {
        "wanted": COVERAGE,
        "scans": len(rows),
        "groups": len(np.unique(rows.group)),
        "limits": dict(zip(organ.classes, map(float, limits), strict=True)),
    } | {
        name: None if out is None else _of_sets(organ, rows, out)
        for name, out in held_out(rows, lambda part, others: sets(fit(part))[others]).items()
    }


def set_limits_of(rows: Rows, classes: int) -> np.ndarray:
    """The limits that are fitted to rows of known class: float32 (classes,)."""
    parts = [rows.take(rows.label == k) for k in range(classes)]
    return np.array([coverage_threshold(part.probs[:, k], part.group, COVERAGE) for k, part in enumerate(parts)], "f4")


def in_set(probs: np.ndarray, decided: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Whether each class is in the label set, bool (N, K), of float (N, K) probs and int (N,) decided labels."""
    return (probs >= limits) | (np.arange(probs.shape[1]) == decided[:, None])


def fit_outer(rows: Rows) -> tuple[float, Measured]:
    """The threshold of the outer outline, and the share of a lesion that it misses.

    Args:
      rows: held-out scans with an outlined lesion that are called a lesion, with the columns `inside` and `area`.

    Returns:
      The threshold, NaN where none bounds the rate, as with fewer than nine groups; and facts {"wanted", "scans",
      "groups", "threshold" and "bound" (None for NaN), "in_source", "left_one_source_out": `_of_outlines`}.
    """

    def fit(part: np.ndarray) -> tuple[float, float]:
        return controlled_threshold(missed_shares(rows)[part], THRESHOLDS, rows.group[part], MISSED)

    def column(part: np.ndarray, others: np.ndarray) -> np.ndarray:
        threshold, _ = fit(part)
        # without a threshold there is no outer outline, and the mask is all there is
        at = len(THRESHOLDS) - 1 if np.isnan(threshold) else int(np.argmin(np.abs(THRESHOLDS - threshold)))
        return np.full(np.count_nonzero(others), at)

    threshold, bound = fit(np.ones(len(rows), bool))
    facts = {
        "wanted": MISSED,
        "scans": len(rows),
        "groups": len(np.unique(rows.group)),
        "threshold": None if np.isnan(threshold) else threshold,
        "bound": None if np.isnan(bound) else bound,
    }
    return threshold, facts | {
        name: None if out is None else _of_outlines(rows, out) for name, out in held_out(rows, column).items()
    }


def missed_shares(rows: Rows) -> np.ndarray:
    """The share of each lesion's pixels that is not above each of THRESHOLDS, float64 (N, T) in [0, 1]."""
    return 1.0 - rows.inside / rows.true[:, None]


def held_out(rows: Rows, apply: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> dict[str, np.ndarray | None]:
    """What `apply` gives for scans that it was not fitted to, (N, ...): by folds of groups, and by sources.

    `apply` takes two bool (N,), the rows to fit to and those to apply the fit to. These share no group: near-duplicates
    of two sources are one. None where nothing is left to fit to, as with a single source.
    """
    found: dict[str, np.ndarray | None] = {}
    for name, part in (("in_source", group_folds(rows.group, FOLDS)), ("left_one_source_out", rows.source)):
        splits = [(~np.isin(rows.group, rows.group[part == one]), part == one) for one in np.unique(part)]
        if not all(fit.any() for fit, _ in splits):
            found[name] = None
            continue
        pieces = [(np.flatnonzero(others), apply(fit, others)) for fit, others in splits]
        order = np.argsort(np.concatenate([index for index, _ in pieces]))
        found[name] = np.concatenate([values for _, values in pieces])[order]
    return found


def _of_sets(organ: Organ, rows: Rows, sets: np.ndarray) -> Measured:
    """Coverage of bool (N, K) label sets, of all scans and by class and source, and their mean size.

    {"scans", "coverage": of the scans with an interval, "coverage_of_groups": mean over groups, "classes": {class:
    coverage}, "size", "single": share of sets with one class, "sources": {source: the same without interval}}.
    """
    covered = sets[np.arange(len(rows)), rows.label]

    def measure(part: np.ndarray) -> Measured:
        label, size = rows.label[part], sets[part].sum(1)
        classes = {name: covered[part][label == k] for k, name in enumerate(organ.classes) if (label == k).any()}
        return {
            "scans": len(label),
            "coverage_of_groups": _mean_over_groups(covered[part], rows.group[part]),
            "classes": {name: float(values.mean()) for name, values in classes.items()},
            "size": float(size.mean()),
            "single": float((size == 1).mean()),
        }

    every = np.ones(len(rows), bool)
    sources = {name: rows.source == name for name in np.unique(rows.source).tolist()}
    return (
        {"coverage": rate(covered, rows.group)}
        | measure(every)
        | {
            "sources": {
                name: {"coverage": float(covered[part].mean())} | measure(part) for name, part in sources.items()
            }
        }
    )


def _of_outlines(rows: Rows, column: np.ndarray) -> Measured:
    """What the outer outlines at int (N,) columns of THRESHOLDS miss.

    {"scans", "missed": mean over groups with an interval, "missed_by_mask": the same of the mask itself,
    "missed_of_scans": mean over scans, "area": median of the area as a multiple of the mask's, "sources": {source: the
    same without interval}}. An empty mask counts as one pixel.
    """
    index = np.arange(len(rows))
    shares = missed_shares(rows)
    missed, by_mask = shares[index, column], shares[:, -1]
    ratio = rows.area[index, column] / np.maximum(rows.area[:, -1], 1)

    def measure(part: np.ndarray) -> Measured:
        return {
            "scans": int(part.sum()),
            "missed_by_mask": _mean_over_groups(by_mask[part], rows.group[part]),
            "missed_of_scans": float(missed[part].mean()),
            "area": float(np.median(ratio[part])),
        }

    def mean(index: np.ndarray, group: np.ndarray) -> dict[str, float]:
        return {"missed": _mean_over_groups(missed[index], group)}

    every = np.ones(len(rows), bool)
    sources = {name: rows.source == name for name in np.unique(rows.source).tolist()}
    whole = with_ends(_mean_over_groups(missed, rows.group), bootstrap_interval(mean, rows.group)["missed"])
    return (
        {"missed": whole}
        | measure(every)
        | {
            "sources": {
                name: {"missed": _mean_over_groups(missed[part], rows.group[part])} | measure(part)
                for name, part in sources.items()
            }
        }
    )


def _mean_over_groups(values: np.ndarray, group: np.ndarray) -> float:
    _, index, sizes = np.unique(group, return_inverse=True, return_counts=True)
    return float((np.bincount(index, values) / sizes).mean())


def sentences(facts: Measured) -> list[str]:
    """What the label sets, outer outlines and review flags of a network hold, one sentence each."""
    found = []
    if "label_set" in facts:
        one = facts["label_set"]
        inside, left = (one[name] for name in ("in_source", "left_one_source_out"))
        text = f"label sets are meant to hold the true class of {one['wanted']:.2f} of the scans of each class"
        if inside is not None:
            text += f"; they hold that of {with_interval(inside['coverage'])} of the scans of other groups"
            text += f", with {inside['size']:.2f} classes on average"
        if left is not None:
            worst = min(left["sources"], key=lambda name: left["sources"][name]["coverage"])
            text += (
                f"; of {left['coverage']['value']:.3f} where each source is left out of the fit, the fewest in {worst} "
            )
            text += f"({left['sources'][worst]['coverage']:.3f})"
        found.append(text)
    if "outer" in facts:
        one = facts["outer"]
        inside, left = (one[name] for name in ("in_source", "left_one_source_out"))
        if one["threshold"] is None:
            return [
                *found,
                f"no threshold keeps the outer outline from missing more than {one['wanted']:.2f} of a lesion",
            ]
        text = f"the outer outline, at {one['threshold']:g}, is meant to miss at most {one['wanted']:.2f} of a lesion"
        if inside is not None:
            text += f"; it misses {with_interval(inside['missed'])} in other groups, where the mask misses "
            text += f"{inside['missed_by_mask']:.3f}, and has {inside['area']:.2f} times the mask's area"
        if left is not None:
            worst = max(left["sources"], key=lambda name: left["sources"][name]["missed"])
            text += f"; {left['missed']['value']:.3f} where each source is left out of the fit, the most in {worst} "
            text += f"({left['sources'][worst]['missed']:.3f})"
        found.append(text)
    return found
