"""The first section of an evaluation's page: what was scored, how well, how certain that is, and its limits. No JAX."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from mcis.evaluation.descriptions import meaning, plain_name, uses_seen
from mcis.evaluation.html import cell, head, row, table
from mcis.evaluation.metrics import CASCADE
from mcis.evaluation.strata import FEW
from mcis.inference.rows import Rows
from mcis.ops.metrics import POSITIVES
from mcis.organs import ORGANS

SHOWN = ("accuracy", "balanced_accuracy", "mcc", "dice_lesion", "nsd_lesion", "lesion_sensitivity", "false_lesions")
SHOWN_LAST = ("missed", "false_masks", "refused", "foreign_refused")
"""Metrics of the headline, where they are there, above and below those of the suspicious class."""


def headline(found: Mapping[str, Any], rows: Rows) -> str:
    """The section, HTML; "" where nothing was scored."""
    name, part = main_part(found)
    if not part["metrics"]:
        return ""
    sources = [source for source in found["sources"] if source != "all"]
    what = "the whole cascade" if found["task"] == CASCADE else f"the network of {found['task']}"
    several = f" from {len(sources)} sources" if name == "all" else f" from {name}"
    text = (
        f"<p>Scored: <b>{escape(what)}</b> on {part['scans']:,} scans of {part['groups']:,} groups{escape(several)}. "
        "A group is a patient, or a cluster of near-duplicates where patients are unknown.</p>"
        f"{_table(found, part)}"
        "<p>In brackets: 95 % intervals, from 1,000 resamplings of whole groups. They say how much the numbers would "
        "vary with other patients of the same sources. They say nothing of other hospitals, machines or readers.</p>"
    )
    doubts = "".join(f"<li>{escape(one)}</li>" for one in cautions(found, rows))
    return text + (f"<p>Treat with caution:</p><ul>{doubts}</ul>" if doubts else "")


def main_part(found: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The name and the results of all sources together, or of the only one."""
    return list(found["sources"].items())[-1]


def _table(found: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    """Organs as columns for the cascade, one column for a network."""
    organs = [organ.name for organ in ORGANS]
    if found["task"] == CASCADE:
        columns = {name: part["subsets"][name] for name in organs if name in part.get("subsets", {})}
    else:
        columns = {found["task"]: part}
    if not columns:
        return ""
    of_class = {}  # metrics of the suspicious class, by column
    for name, column in columns.items():
        organ = name if name in organs else next((one for one in part.get("clinical", {})), "")
        clinical = part.get("clinical", {}).get(organ)
        metrics = dict(column["metrics"])
        for metric in ("balanced_accuracy", "mcc", "auc"):  # of the cascade these are named after their organ
            metrics.setdefault(metric, metrics.get(f"{metric}_{organ}"))
        of_class[name] = metrics, clinical
    lines = []

    def line(title: str, name: str, cells: list[str]) -> None:
        if any(one != "<td></td>" for one in cells):
            lines.append(row(title, cells, title=meaning(name)))

    def measured(name: str) -> None:
        line(plain_name(name), name, [_cell(of_class[one][0].get(name), columns[one]) for one in columns])

    for name in SHOWN[:3]:
        measured(name)
    for name in ("sensitivity", "specificity"):
        groups = {"sensitivity": "positive_groups", "specificity": "other_groups"}[name]
        cells = [_cell(c and c["metrics"].get(name), {"groups": c[groups]} if c else {}) for _, c in of_class.values()]
        classes = dict.fromkeys(c["class"] for _, c in of_class.values() if c)
        line(f"{plain_name(name)}, {' or '.join(classes)}", name, cells)
    measured("auc")
    for name in (*SHOWN[3:], *SHOWN_LAST):
        measured(name)
    heads = [head(name, f"{one['scans']:,} scans, {one['groups']:,} groups") for name, one in columns.items()]
    return table("", heads, lines)


def _cell(found: Any, column: Mapping[str, Any]) -> str:
    return cell(found, groups=column.get("groups", FEW))


def cautions(found: Mapping[str, Any], rows: Rows) -> list[str]:
    """What makes the numbers less certain than they look, in sentences; the gravest first."""
    doubts = []
    if used := uses_seen(found.get("audit", {})):
        doubts.append(f"Some of these scans {used}: the numbers are not those of unseen patients.")
    if (found.get("left_out") or found.get("unseen") or {}).get("runs", 1) > 1:
        doubts.append("Several networks are pooled, each on scans of its own; no single one of them was scored.")
    parts = {name: part for name, part in found["sources"].items() if name != "all" or len(found["sources"]) == 1}
    few = [f"{name} ({part['groups']})" for name, part in parts.items() if part["groups"] < FEW]
    if few:
        doubts.append(f"Sources of fewer than {FEW} groups, whose numbers may be due to chance: {', '.join(few)}.")
    doubts += _class_cautions(found, rows)
    largest, part = max(parts.items(), key=lambda item: item[1]["scans"])
    if len(parts) > 2 and part["scans"] > len(rows) / 4:
        doubts.append(f"{largest} gives {part['scans'] / len(rows):.0%} of the scans, and weighs so much in all means.")
    if "folder" in found and found["folder"]["rejected"]:
        doubts.append(f"{len(found['folder']['rejected'])} scans of the folder could not be scored; see below.")
    return doubts


def _class_cautions(found: Mapping[str, Any], rows: Rows) -> list[str]:
    """Classes of few scans or groups, and organs whose classes come from different sources."""
    if found["task"] == CASCADE and rows.organ is not None:
        kinds = {organ.name: (organ.classes, rows.organ == index) for index, organ in enumerate(ORGANS)}
    else:
        kinds = {"": (tuple(found["classes"]), np.ones(len(rows), bool))}
    few, doubts = [], []
    for organ, (classes, here) in kinds.items():
        known = here & (rows.label >= 0)
        for label, name in enumerate(classes):
            chosen = known & (rows.label == label)
            groups = len(np.unique(rows.group[chosen]))
            if known.any() and (chosen.sum() < POSITIVES or groups < FEW):
                few.append(f"{f'{organ} {name}'.strip()} ({chosen.sum()} scans, {groups} groups)")
        alone = [
            s for s in np.unique(rows.source[known]) if len(np.unique(rows.label[known & (rows.source == s)])) == 1
        ]
        if alone and len(np.unique(rows.label[known])) > 1:
            share = np.isin(rows.source[known], alone).mean()
            doubts.append(
                f"{', '.join(alone)} ({share:.0%} of the {f'{organ} scans'.strip()}) hold{'s' * (len(alone) == 1)} one "
                "class only. There the source determines the class."
            )
    if few:
        doubts.insert(0, f"Classes of fewer than {POSITIVES} scans or {FEW} groups: {', '.join(few)}.")
    return doubts
