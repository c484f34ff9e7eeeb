"""The router's limits: fitted to predictions of folds, with the share of scans that they reject.

A scan is rejected where the router's probability of an organ is low or its features lie far from those of the training
scans (`ops.ood`). The cascade also rejects thumbnails (`inference.plausibility`), whatever the router predicts of them;
they are reported separately, because they say nothing of the same kinds of images at full size. Intervals are over
groups: patients or clusters of the known scans, and kinds of the out-of-distribution (OOD) scans, because images of one
kind are rejected or accepted together.
"""

from typing import Any

import numpy as np

from mcis.inference.rows import UNSUPPORTED_INDEX, Rows
from mcis.ops.metrics import rate
from mcis.organs import ORGANS

REJECTED = 0.01
"""Largest share of the known scans of any source that the limits reject. A limit on the pooled scans could reject far
more of a small source."""
NOT_CERTAIN = 0.02
"""Largest share of the known scans of any source that are rejected or uncertain."""
TRADE_OFF = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Shares of rejected known scans for which the share of rejected OOD scans is reported."""
NEAR = frozenset({"mri", "mr", "us", "ultrasound", "head", "brain"})
"""Words in the name of a kind's folder that make it a near kind: MRI or ultrasound of another organ, or another image
of the head. A mammogram shows a breast but does not look like an ultrasound: it is far."""

Interval = dict[str, float | None]
"""{"value", "low", "high"}: a share and its 95 % bootstrap interval by group, None where there is one group."""


def is_near(kind: str) -> bool:
    """Whether an OOD kind, as "foreign/us_lung", looks much like the known scans, by the words of its name.

    >>> [is_near(kind) for kind in ("foreign/us_lung", "foreign/mri_cardiac", "foreign/xray_chest", "foreign/music")]
    [True, True, False, False]
    """
    return bool(NEAR & set(kind.rsplit("/", 1)[-1].lower().replace("-", "_").split("_")))


def fit_router(rows: Rows) -> tuple[dict[str, float], dict[str, Any]]:
    """The router's limits, which reject REJECTED of the worst source's known scans; and what they do.

    The limit of the OOD score is beyond all known scans: it rejects what is unlike any of them. Accepted scans below
    "certain" get an answer and a warning (`inference.cascade`).

    Args:
      rows: predictions of the router's folds (`calibrate.out_of_fold`).

    Returns:
      {"threshold": its smallest probability, "certain": that of a certain organ, "reach": the multiplier of the OOD
      limit of `ops.ood`}; and the rejected shares of known scans, in all and by source, and of OOD scans, far, near and
      by kind, the shares that are rejected or uncertain, and the trade-off. All are of the router alone, but for
      "with_thumbnails".
    """
    known = rows.label < UNSUPPORTED_INDEX
    prob = rows.probs[:, : len(ORGANS)].max(1)
    near = np.array([is_near(group) for group in rows.group.tolist()])
    parts = {"known": known, "far": ~known & ~near, "near": ~known & near}
    parts = {name: part for name, part in parts.items() if part.any()}

    # The distance had a share of the rejections once, and found fewer OOD scans with it (docs/experiments.md).
    farthest = float(rows.novelty[known].max())
    sources = [known & (rows.source == source) for source in np.unique(rows.source[known]).tolist()]

    def reject(share: float) -> tuple[dict[str, float], np.ndarray]:
        limits = {"threshold": min(float(np.quantile(prob[part], share)) for part in sources), "reach": farthest}
        return limits, (prob < limits["threshold"]) | (rows.novelty > limits["reach"])

    def shares(rejected: np.ndarray) -> dict[str, Interval]:
        return {name: rate(rejected[part], rows.group[part]) for name, part in parts.items()}

    def shares_by(name: np.ndarray, part: np.ndarray, rejected: np.ndarray) -> dict[str, dict[str, Any]]:
        every = {each: part & (name == each) for each in np.unique(name[part]).tolist()}
        return {
            each: {"scans": int(rows_of.sum())} | rate(rejected[rows_of], rows.group[rows_of])
            for each, rows_of in every.items()
        }

    limits, rejected = reject(REJECTED)
    not_certain_limits, not_certain = reject(NOT_CERTAIN)
    limits["certain"] = not_certain_limits["threshold"]
    wrong = known & ~rejected & (rows.probs[:, : len(ORGANS)].argmax(1) != rows.label)
    facts: dict[str, Any] = {
        "scans": {name: int(part.sum()) for name, part in parts.items()},
        "groups": {name: len(np.unique(rows.group[part])) for name, part in parts.items()},
        "refused": shares(rejected),
        "with_thumbnails": shares(rejected | rows.thumbnail),
        "or_uncertain": shares(not_certain),
        "or_uncertain_sources": shares_by(rows.source, known, not_certain),
        "to_the_wrong_organ": int(wrong.sum()),
        "sources": shares_by(rows.source, known, rejected),
        "kinds": shares_by(rows.group, ~known, rejected),
    }
    if (~known).any():
        facts["trade_off"] = [shares(reject(share)[1]) for share in TRADE_OFF]
    return limits, facts
