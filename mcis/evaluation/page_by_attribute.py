"""The section of an evaluation's page on results by attribute, and their text for a terminal. No JAX."""

from collections.abc import Mapping
from html import escape
from typing import Any

from mcis.data.attributes import VOCABULARY
from mcis.evaluation.html import cell, head, number, row, table
from mcis.ops.metrics import with_interval

ORDER = ("accuracy", "sensitivity", "auc", "dice_lesion", "refused")
"""Beginnings of the names of metrics, in the order of the columns: a value may lack some."""
ABOUT = (
    "<p>The main metrics of all scans together, by what their sources state of them. Strata with fewer than ten groups "
    "are marked few and have no interval. Strata may differ in more than this attribute, as in their patients or "
    "classes.</p>"
)


def attribute_section(found: Mapping[str, Any]) -> str:
    """The section, a table for each attribute; "" where there are none."""
    parts = found.get("by_attribute") or {}
    return ABOUT + "".join(_table(name, part) for name, part in parts.items()) if parts else ""


def _table(name: str, part: Mapping[str, Any]) -> str:
    names = metrics_of(part)
    rows = [
        row(value, [number(one["scans"]), number(one["groups"]), *(_cell(one, metric) for metric in names)])
        for value, one in part["values"].items()
    ]
    rest = part["not_stated"]
    if rest["scans"]:
        rows.append(row("not stated", [number(rest["scans"]), number(rest["groups"]), *("<td></td>" for _ in names)]))
    about = f"<p>{escape(VOCABULARY[name])}</p>" if name in VOCABULARY else ""
    return f"<h3>{escape(name)}</h3>{about}{table('', map(head, ('scans', 'groups', *names)), rows)}"


def _cell(one: Mapping[str, Any], metric: str) -> str:
    measured = one["metrics"].get(metric)
    if one["few"] and measured is not None:
        return number(f"{measured['value']:.3f} <small>few</small>")
    return cell(measured)


def metrics_of(part: Mapping[str, Any]) -> list[str]:
    """The metrics that some value of an attribute has, in the order of ORDER."""
    names = dict.fromkeys(metric for one in part["values"].values() for metric in one["metrics"])
    kinds = [*ORDER, ""]  # the last one begins every name
    return sorted(names, key=lambda name: next(at for at, kind in enumerate(kinds) if name.startswith(kind)))


def text_of(one: Mapping[str, Any], metric: str) -> str:
    """A stratum's metric in a terminal; "" where it has none."""
    measured = one["metrics"].get(metric)
    if measured is None:
        return ""
    return f"{measured['value']:.3f} (few)" if one["few"] else with_interval(measured)
