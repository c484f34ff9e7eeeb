"""The sections of an evaluation's page on masks: overlap, single lesions, and parts of the scans. No JAX."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from mcis.evaluation import figures
from mcis.evaluation.descriptions import meaning
from mcis.evaluation.headline import main_part
from mcis.evaluation.html import cell, figure, folded, head, metric_row, number, row, table
from mcis.evaluation.strata import FEW, LESION_SIZES
from mcis.inference.rows import Rows
from mcis.ops.lesions import MATCH, SMALLEST
from mcis.ops.metrics import dice
from mcis.organs import ORGANS

STRATUM_METRICS = {
    "dice_lesion": "Dice",
    "nsd_lesion": "Surface Dice",
    "lesion_sensitivity": "Lesions found",
    "missed": "Missed scans",
    "accuracy": "Right class",
}
"""Metrics of strata, and their names in print, which need not repeat that these are lesion scans."""
STRATA = {
    "single": "one lesion",
    "several": "several lesions",
    "inside": "lesion inside",
    "at the border": "lesion at the border",
    "rectangular": "rectangular frame",
    "sector": "sector-shaped frame",
}
"""Names of strata in print; sizes are named after their limits."""


def metric_table(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Metrics as rows; parts (sources, or subsets of one) as columns."""
    heads = [head(name, f"{part['scans']:,} scans, {part['groups']:,} groups") for name, part in parts.items()]
    names = dict.fromkeys(name for part in parts.values() for name in part["metrics"])
    rows = []
    for name in names:
        cells = [cell(part["metrics"].get(name), groups=part["groups"]) for part in parts.values()]
        rows.append(metric_row(name, cells))
    return table("metric", heads, rows)


def masks_section(found: Mapping[str, Any], rows: Rows) -> str:
    """The distribution of Dice by source, class and lesion size; and single lesions."""
    if rows.true is None or not rows.lesion.any():
        return ""
    lesions = rows.take(rows.lesion)
    overlap, source, kind = dice(*lesions.counts), lesions.source, _class_names(lesions, found["classes"])
    pairs = sorted({*zip(source.tolist(), kind.tolist(), strict=True)})
    boxes = {f"{a}, {b}": overlap[(source == a) & (kind == b)] for a, b in pairs}
    by_source = {name: overlap[source == name] for name in np.unique(source).tolist()}
    edges = [low for low, _ in LESION_SIZES.values() if low]
    sized = figures.dice_by_size(lesions.true / lesions.pixels, overlap, source, edges, "Dice against lesion size")
    empty = rows.take(rows.has_mask & (rows.true == 0))
    masked = int((empty.predicted > 0).sum())
    false = f" {masked} of {len(empty)} scans without a lesion have a mask that is not empty." if len(empty) else ""
    return (
        f"<p>The {len(lesions):,} scans with a lesion whose true mask is known. One rule for empty masks: Dice and "
        "surface Dice are 1 where both masks are empty and 0 where one is; distances exist only where neither is, and "
        f"a lesion without a mask is missed.{false}</p>"
        + figure(figures.dice_boxes(boxes, "Dice by source and class"), "by source and class, scans", broad=True)
        + '<div class="plots">'
        + figure(figures.dice_histogram(by_source, "Histogram of Dice"), "histogram")
        + figure(
            sized,
            "by lesion size, coloured as in the histogram; dotted, 1 % and 5 %; the median in fifths of the scans",
        )
        + "</div>"
        + _single_lesions(main_part(found)[1])
    )


def _class_names(rows: Rows, classes: Sequence[str]) -> np.ndarray:
    """The class of each row's scan, str (N,): of the task's classes, or for a cascade of its organ's."""
    tables = [classes] * len(rows)
    if rows.organ is not None:
        tables = [[*(organ.classes for organ in ORGANS), ()][index] for index in rows.organ]
    pairs = zip(tables, rows.label.tolist(), strict=True)
    return np.array([names[label] if label >= 0 else "class unknown" for names, label in pairs])


def _single_lesions(part: Mapping[str, Any]) -> str:
    """Sensitivity per lesion at some numbers of false positives per scan, one organ a row."""
    curves = part.get("froc", {})
    if not curves:
        return ""
    rows = []
    for organ, curve in curves.items():
        cells = [number(f"{curve['lesions']:,}"), number(f"{curve['end']:.2f}")]
        for point in curve["points"]:
            cells.append(cell(point) if point["reached"] else number("&ndash;"))
        last = curve["points"][-1]
        rows.append(row(organ, [*cells, number("") if last["reached"] else cell(last)]))
    limits = [f"{point['false_per_scan']:g} false" for point in next(iter(curves.values()))["points"]]
    heads = [head("lesions"), head("false per scan", "all that are predicted")]
    heads += [head(limit, "per scan") for limit in limits] + [head("at the end")]
    return (
        f"<h3>Single lesions</h3><p>Connected parts of the masks, from {SMALLEST} pixels on, matched one to one where "
        f"the intersection over union is at least {MATCH:g}. The share of the true lesions that are found, with no "
        "more than so many false ones per scan (free-response ROC). A lesion's score is its mean probability. A dash: "
        f"fewer false lesions than that are predicted at all.</p>{table('', heads, rows)}"
    )


def subsets_section(found: Mapping[str, Any]) -> str:
    """Metrics by organ or class, and of lesion scans by what their true masks show."""
    name, part = main_part(found)
    sizes = {f"lesions {size}" for size in LESION_SIZES}
    text, others = "", ""
    for source, one in found["sources"].items():
        shown = {key: value for key, value in one.get("subsets", {}).items() if key not in sizes}
        known = metric_table(shown) if shown else ""
        if source == name:
            text = known
        elif known or one.get("strata"):
            others += f"<h3>{escape(source)}</h3>{_strata(one)}{folded('All metrics', known)}"
    lesions = _strata(part)
    if lesions:
        lesions = (
            "<h3>Lesion scans, by what their pixels show</h3><p>Size is a share of the scan's area. At the border: "
            "the true mask reaches the border of the scan's content. <i>few</i>: fewer than "
            f"{FEW} groups, which are too few for an interval.</p>{lesions}"
        )
    return lesions + folded("All metrics by organ, class or kind of scan", text) + folded("By source", others)


def _strata(part: Mapping[str, Any]) -> str:
    parts = part.get("strata", [])
    if not parts:
        return ""
    names = [name for name in STRATUM_METRICS if any(name in one["metrics"] for one in parts)]
    rows = []
    for one in parts:
        title = f"{one['organ']}, {STRATA.get(one['stratum'], 'lesion ' + one['stratum'])}"
        counts = [number(f"{one['scans']:,}"), number(f"{one['groups']:,}")]
        cells = [cell(one["metrics"].get(name), groups=one["groups"]) for name in names]
        rows.append(row(title, counts + cells))
    heads = (head(STRATUM_METRICS[name], title=meaning(name)) for name in names)
    return table("", [head("scans"), head("groups"), *heads], rows)
