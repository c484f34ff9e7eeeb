"""The suspicious class against the rest: 2 x 2 metrics, predictive values at other prevalences, net benefit. No JAX.

The suspicious class is the last of an organ (malignant, tumor). A scan that gets no class of its organ, because it is
rejected or routed to another organ, counts as an error: missed if it is of the suspicious class, else a false alarm.
(This is the 3 x 2 table with an intention to diagnose of Schuetz et al. 2012.)
"""

from typing import Any, NamedTuple

import numpy as np

from mcis.inference.rows import Rows
from mcis.ops.bootstrap import drawn_sums, group_draws, interval, share
from mcis.organs import ORGANS, organ_index
from mcis.tasks.config import Task

PREVALENCES = (0.01, 0.05, 0.20)
"""Shares of the suspicious class at which predictive values are stated, besides that of the scored scans."""
THRESHOLDS = np.arange(1, 100) / 100
"""Probabilities of the suspicious class of a decision curve."""


class Calls(NamedTuple):
    """The N scans of an organ whose class is known.

    Attributes:
      positive: bool (N,), of the suspicious class.
      called: bool (N,), for which the suspicious class was decided.
      analysed: bool (N,), that got a class of their organ.
      probability: float (N,), of the suspicious class; NaN where not analysed; None where none is kept.
      group: (N,).
    """

    positive: np.ndarray
    called: np.ndarray
    analysed: np.ndarray
    probability: np.ndarray | None
    group: np.ndarray


def calls_by_organ(task: Task | None, rows: Rows) -> dict[str, Calls]:
    """Organ -> its calls, where both the suspicious class and others occur; None is the cascade.

    An organ without a classifier is left out. Single networks decide for the most probable class.
    """
    found = {}
    if task is None:
        for index, organ in enumerate(ORGANS):
            here = rows.take((rows.organ == index) & (rows.label >= 0))
            last, analysed = len(organ.classes) - 1, (here.said_organ == index) & (here.said_label >= 0)
            if analysed.any():
                called, probs = analysed & (here.said_label == last), here.label_probs
                probability = None if probs is None else np.where(analysed, probs[:, last], np.nan)
                found[organ.name] = Calls(here.label == last, called, analysed, probability, here.group)
    elif task.organ is not None and rows.probs is not None:
        here = rows.take(rows.label >= 0)
        last, every = len(ORGANS[organ_index(task.organ)].classes) - 1, np.ones(len(here), bool)
        called = here.probs.argmax(1) == last
        found[task.organ] = Calls(here.label == last, called, every, here.probs[:, last], here.group)
    return {name: calls for name, calls in found.items() if calls.positive.any() and not calls.positive.all()}


def clinical(task: Task | None, rows: Rows, draws: int = 1000) -> dict[str, Any]:
    """Organ -> the metrics of its suspicious class, as JSON values; organs without such metrics are left out.

    Returns:
      For each organ: class, scans, groups, positives, positive_groups, other_groups; counts: of the positives and of
      the others, how many were "called" (the suspicious class), "not_called" and "not_analysed"; metrics: sensitivity,
      specificity, ppv and npv with intervals by group; prevalences: ppv and npv at each of PREVALENCES and at the
      scans' own ("own"), by Bayes' rule from sensitivity and specificity; and where probabilities are kept,
      decision_curve (`net_benefit`).
    """
    found = {}
    for name, calls in calls_by_organ(task, rows).items():
        positive, called, analysed, probability, group = calls
        counts = {
            kind: {
                "called": int((called & chosen).sum()),
                "not_called": int((analysed & ~called & chosen).sum()),
                "not_analysed": int((~analysed & chosen).sum()),
            }
            for kind, chosen in {"positives": positive, "others": ~positive}.items()
        }
        index, times = group_draws(group, draws)
        true, false, missed, cleared = drawn_sums(_table(calls), index, times).T
        sensitivity, specificity = share(true, true + missed), share(cleared, cleared + false)
        metrics = {"sensitivity": sensitivity, "specificity": specificity}
        metrics |= {"ppv": share(true, true + false), "npv": share(cleared, cleared + missed)}
        own = float(positive.mean())
        prevalences: list[dict[str, Any]] = []
        for at, prevalence in enumerate((*PREVALENCES, own)):
            values = predictive_values(sensitivity, specificity, prevalence)
            ends = {value: interval(each) for value, each in zip(("ppv", "npv"), values, strict=True)}
            prevalences.append({"prevalence": prevalence, "own": at == len(PREVALENCES)} | _scored(ends))
        found[name] = {
            "class": ORGANS[organ_index(name)].classes[-1],
            "scans": len(positive),
            "groups": len(np.unique(group)),
            "positives": int(positive.sum()),
            "positive_groups": len(np.unique(group[positive])),
            "other_groups": len(np.unique(group[~positive])),
            "counts": counts,
            "metrics": _scored({metric: interval(each) for metric, each in metrics.items()}),
            "prevalences": prevalences,
        }
        if probability is not None:
            found[name]["decision_curve"] = net_benefit(calls, draws)
    return found


def _table(calls: Calls) -> np.ndarray:
    """Whether each scan is a true positive, false positive, false negative and true negative: bool (N, 4)."""
    positive, called, analysed = calls[:3]
    alarm = ~positive & (called | ~analysed)
    return np.stack([positive & called, alarm, positive & ~called, ~positive & ~alarm], 1)


def _scored(found: dict[str, Any]) -> dict[str, Any]:
    """The scores that have a value."""
    return {name: one for name, one in found.items() if np.isfinite(one["value"])}


def predictive_values(
    sensitivity: np.ndarray, specificity: np.ndarray, prevalence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Positive and negative predictive value by Bayes' rule, elementwise; NaN where nothing is called so.

    Of 1,000 scans 10 are suspicious. 9 of these are called, and 99 of the others:

    >>> ppv, npv = predictive_values(np.array([0.9]), np.array([0.9]), 0.01)
    >>> round(float(ppv[0]), 4) == round(9 / 108, 4), round(float(npv[0]), 4) == round(891 / 892, 4)
    (True, True)
    """
    true, missed = sensitivity * prevalence, (1 - sensitivity) * prevalence
    cleared, false = specificity * (1 - prevalence), (1 - specificity) * (1 - prevalence)
    return share(true, true + false), share(cleared, cleared + missed)


def net_benefit(calls: Calls, draws: int = 1000) -> dict[str, Any]:
    """The decision curve of the probability of the suspicious class (Vickers & Elkin 2006), as JSON values.

    At a threshold t all scans with a probability of t or more are called. The net benefit is the share of true
    positives, less the share of false positives times t / (1 - t): in true positives per scan.

    Returns:
      threshold; model, low, high: its net benefit with the 95 % interval by group, None for no interval; all: that of
      calling every scan; each a list, of THRESHOLDS. Calling none has 0.
    """
    assert calls.probability is not None
    index, times = group_draws(calls.group, draws)
    called = np.nan_to_num(calls.probability)[:, None] >= THRESHOLDS
    alarm = ~calls.positive[:, None] & (called | ~calls.analysed[:, None])
    sums = drawn_sums(np.hstack([calls.positive[:, None] & called, alarm, np.ones((len(called), 1))]), index, times)
    true, false = sums[:, : len(THRESHOLDS)], sums[:, len(THRESHOLDS) : -1]
    odds = THRESHOLDS / (1 - THRESHOLDS)
    model = [interval(column) for column in ((true - false * odds) / sums[:, -1:]).T]
    share_positive = calls.positive.mean()
    every = share_positive - (1 - share_positive) * odds

    def rounded(values: Any) -> list[float | None]:
        return [None if value is None else round(float(value), 6) for value in values]

    curve: dict[str, Any] = {"threshold": THRESHOLDS.tolist()}
    curve |= {
        key: rounded(one[end] for one in model) for key, end in (("model", "value"), ("low", "low"), ("high", "high"))
    }
    return curve | {"all": rounded(every)}
