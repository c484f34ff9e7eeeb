"""What the router refuses: its limits, fitted to answers of folds, and the price of each.

A scan is refused where the router's probability of an organ is small or its features lie far from all that it learned
from (`ops.novelty`). The cascade refuses thumbnails as well (`canvas.Fit`), whatever the router sees in them: that is
told apart, for it says nothing of the same kinds at full size. Intervals are over groups: patients or clusters of the
known scans, kinds of the foreign ones, for pictures of one kind are refused or taken together.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mcis.ops.metrics import bootstrap_interval
from mcis.organs import ORGANS

REFUSED = 0.01
"""Share of the known scans that the router may refuse."""
PROBABILITY_SHARE = 0.9
"""What the probability has of that, the distance has the rest: of kinds left out the probability refuses more (at 1 %
of known scans 86 % against 83 %, halves 83 %; docs/experiments.md); the distance catches what is like nothing."""
TRADE_OFF = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Shares of the known scans for which it is said what would be refused of the foreign ones."""
NEAR = frozenset({"mri", "mr", "us", "ultrasound", "head", "brain"})
"""Words in the name of a kind's folder that make it near: MRI or ultrasound of something else, or another picture of
the head. A mammogram shows a breast, but nothing that looks like an ultrasound: it is far."""

Interval = dict[str, float | None]
"""{"value", "low", "high"}: a share and its 95 % bootstrap interval by group, None where there is one group."""


def is_near(kind: str) -> bool:
    """Whether a foreign kind, as "foreign/us_lung", looks much like the known scans, by the words of its name.

    >>> [is_near(kind) for kind in ("foreign/us_lung", "foreign/mri_cardiac", "foreign/xray_chest", "foreign/music")]
    [True, True, False, False]
    """
    return bool(NEAR & set(kind.rsplit("/", 1)[-1].lower().replace("-", "_").split("_")))


def fit_router(answers: Mapping[str, np.ndarray]) -> tuple[dict[str, float], dict[str, Any]]:
    """The router's limits, which together refuse REFUSED of the known scans; and what they refuse.

    Args:
      answers: `calibrate.Answers` of the router.

    Returns:
      {"threshold": its smallest probability, "reach": its largest distance in units of `ops.novelty`'s limit}; and the
      shares refused, of known scans and by source, of foreign ones and by kind, far and near, and how they go together;
      all this by the router alone, and "with_thumbnails" by router and size together.
    """
    known = answers["label"] < len(ORGANS)
    prob = answers["probs"][:, : len(ORGANS)].max(1)
    near = np.array([is_near(group) for group in answers["group"].tolist()])
    parts = {"known": known, "far": ~known & ~near, "near": ~known & near}
    parts = {name: part for name, part in parts.items() if part.any()}

    def refuse(share: float) -> tuple[dict[str, float], np.ndarray]:
        limits = {
            "threshold": float(np.quantile(prob[known], PROBABILITY_SHARE * share)),
            "reach": float(np.quantile(answers["novelty"][known], 1 - (1 - PROBABILITY_SHARE) * share)),
        }
        return limits, (prob < limits["threshold"]) | (answers["novelty"] > limits["reach"])

    def shares(refused: np.ndarray) -> dict[str, Interval]:
        return {name: _share(refused[part], answers["group"][part]) for name, part in parts.items()}

    limits, refused = refuse(REFUSED)
    wrong = known & ~refused & (answers["probs"][:, : len(ORGANS)].argmax(1) != answers["label"])
    facts: dict[str, Any] = {
        "scans": {name: int(part.sum()) for name, part in parts.items()},
        "groups": {name: len(np.unique(answers["group"][part])) for name, part in parts.items()},
        "refused": shares(refused),
        "with_thumbnails": shares(refused | answers["thumbnail"]),
        "to_the_wrong_organ": int(wrong.sum()),
        "sources": _by_name(answers["source"][known], refused[known], answers["group"][known]),
        "kinds": _by_name(answers["group"][~known], refused[~known], answers["group"][~known]),
    }
    if (~known).any():
        facts["trade_off"] = [shares(refuse(share)[1]) for share in TRADE_OFF]
    return limits, facts


def _share(refused: np.ndarray, group: np.ndarray) -> Interval:
    found = bootstrap_interval(lambda index, _: {"share": float(refused[index].mean())}, group)["share"]
    low, high = (None if np.isnan(end) else end for end in found)
    return {"value": float(refused.mean()), "low": low, "high": high}


def _by_name(name: np.ndarray, refused: np.ndarray, group: np.ndarray) -> dict[str, dict[str, Any]]:
    return {
        str(each): {"scans": int((name == each).sum())} | _share(refused[name == each], group[name == each])
        for each in np.unique(name)
    }
