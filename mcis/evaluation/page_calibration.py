"""The section of an evaluation's page on what `mcis calibrate` has fitted. No JAX."""

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from mcis.evaluation import figures
from mcis.evaluation.html import cell, figure, head, metric_head, number, row, table

ABOUT = (
    "<p>Networks with the same settings, each trained without one fold of the groups, predicted their held-out scans. "
    "Probabilities and limits were fitted to these predictions and evaluated on them, which is slightly optimistic.</p>"
)


def calibration_section(found: Mapping[str, Any]) -> str:
    """The section on the calibrated networks; "" where there are none."""
    text = ""
    for name, facts in found["weights"].items():
        known = facts.get("calibration", {})
        parts = [_part(make, known[key]) for key, make in _PARTS.items() if key in known]
        if parts:
            text += f"<h3>{escape(name)}</h3>{''.join(parts)}"
    return ABOUT + text if text else ""


def _part(make: Callable[[Mapping[str, Any]], str], facts: Any) -> str:
    """A part, or a remark that it cannot be read: a manifest may be untrusted, or of another version."""
    try:
        return make(facts)
    except (LookupError, TypeError, ValueError, AttributeError):
        return "<p>The calibration record of these weights is not of this version.</p>"


def _labels(facts: Mapping[str, Any]) -> str:
    names = ("accuracy", "balanced_accuracy", "nll", "calibration_error", "by_chance_up_to")
    rows = [row(when, [number(f"{facts[when][name]:.3f}") for name in names]) for when in ("before", "after")]
    about = f"<p>Probabilities, on {facts['scans']:d} scans of {facts['groups']:d} groups:</p>"
    return about + table("", map(metric_head, names), rows)


def _operating_points(facts: Mapping[str, Any]) -> str:
    """A table of the points, and one of their sources."""
    names = ("sensitivity", "specificity", "accuracy", "balanced_accuracy")

    def cells(measured: Mapping[str, Any]) -> list[str]:
        return [number("" if measured[name] is None else f"{measured[name]:.3f}") for name in names]

    points = facts["points"]
    rows = [row("most probable class", [number(""), *cells(facts["most_probable"])])]
    sources = []
    for name, one in points.items():
        shifts = ", ".join(f"{label} {shift:+.1f}" for label, shift in one["shift"].items())
        wanted = "" if "wanted" not in one else f"; {one['wanted']:.2f} wanted"
        missed = "" if one.get("reached", True) else ", not reached"
        rows.append(row(name, [number(escape(shifts + wanted + missed)), *cells(one)]))
        for source, measured in one["sources"].items():
            sources.append(row(f"{name}, {source}", [number(f"{measured['scans']:d}"), *cells(measured)]))
    heads = [head("shift of log-probabilities"), *map(metric_head, names)]
    about = (
        f"<p>Operating points, on {facts['scans']:d} scans of {facts['groups']:d} groups; sensitivity and specificity "
        f"of {escape(facts['last_class'])}:</p>"
    )
    by_source = table("", [head("scans"), *map(metric_head, names)], sources)
    return f"{about}{table('', heads, rows)}<details><summary>By source</summary>{by_source}</details>"


def _review(facts: Mapping[str, Any]) -> str:
    return (
        f"<p>{facts['flagged']:.0%} of {facts['scans']:d} scans are for review; they include "
        f"{facts['errors_flagged']:.0%} of {facts['errors']:d} errors (a wrong class, or a Dice below one half). The "
        f"error rate is {facts['error_rate_flagged']:.0%} among scans for review and {facts['error_rate_others']:.0%} "
        "among the others.</p>"
    ) + "".join(
        f"<p>With a limit fitted to {fit}, {one['flagged']:.0%} are for review and include "
        f"{one['errors_flagged']['value']:.0%} of the errors.</p>"
        for fit, one in _held_out(facts)
        if one["errors_flagged"]["value"] is not None
    )


def _label_set(facts: Mapping[str, Any]) -> str:
    limits = ", ".join(f"{escape(name)} {limit:.3f}" for name, limit in facts["limits"].items())
    about = (
        f"<p>Label sets, fitted to hold the true class of {facts['wanted']:.0%} of the scans of each class, on "
        f"{facts['scans']:d} scans of {facts['groups']:d} groups. Least probability of a class: {limits}.</p>"
    )
    names = ("coverage_of_groups", "size", "single")

    def cells(one: Mapping[str, Any]) -> list[str]:
        classes = ", ".join(f"{escape(name)} {share:.3f}" for name, share in one["classes"].items())
        return [*(number(f"{one[name]:.3f}") for name in names), number(classes)]

    rows = []
    for fit, measured in _held_out(facts):
        rows.append(row(fit, [number(f"{measured['scans']:d}"), cell(measured["coverage"]), *cells(measured)]))
        for source, one in measured["sources"].items():
            shown = [number(f"{one['scans']:d}"), number(f"{one['coverage']:.3f}"), *cells(one)]
            rows.append(row(f"{fit}: {source}", shown))
    return about + table("fitted to", map(head, ("scans", "coverage", *names, "coverage by class")), rows)


def _outer(facts: Mapping[str, Any]) -> str:
    threshold = "none reaches it" if facts["threshold"] is None else f"threshold {facts['threshold']:.3g}"
    about = (
        f"<p>Outer outline ({threshold}), fitted to miss at most {facts['wanted']:.0%} of a lesion, on "
        f"{facts['scans']:d} lesion scans of {facts['groups']:d} groups that are called a lesion. The area is a "
        "multiple of the mask's.</p>"
    )
    names = ("missed_by_mask", "missed_of_scans", "area")
    rows = []
    for fit, measured in _held_out(facts):
        others = [number(f"{measured[name]:.3f}") for name in names]
        rows.append(row(fit, [number(f"{measured['scans']:d}"), cell(measured["missed"]), *others]))
        for source, one in measured["sources"].items():
            shown = [number(f"{one['scans']:d}"), *(number(f"{one[name]:.3f}") for name in ("missed", *names))]
            rows.append(row(f"{fit}: {source}", shown))
    return about + table("fitted to", map(head, ("scans", "missed", *names)), rows)


def _held_out(facts: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The measures on scans that a fit has not seen, by what it was fitted to."""
    named = {"in_source": "other groups", "left_one_source_out": "other sources"}
    return [(text, facts[name]) for name, text in named.items() if facts.get(name) is not None]


def _rejection(facts: Mapping[str, Any]) -> str:
    columns = {"rejected": facts["refused"]}
    if "with_thumbnails" in facts:
        columns["rejected, thumbnails included"] = facts["with_thumbnails"]
    if "or_uncertain" in facts:
        columns["rejected or uncertain"] = facts["or_uncertain"]
    rows = []
    for name in facts["refused"]:
        counts = [number(f"{facts[count][name]:d}") for count in ("scans", "groups")]
        rows.append(row(name, counts + [cell(shares[name]) for shares in columns.values()]))
    text = table("", map(head, ("scans", "groups or kinds", *columns)), rows)
    if "trade_off" in facts:
        curve = figures.trade_off(facts["trade_off"], facts["refused"], "Rejection of OOD scans against known scans")
        kinds = {name.rsplit("/", 1)[-1]: kind for name, kind in facts["kinds"].items()}
        bars = figures.kinds(kinds, "Rejected, by kind")
        text += (
            '<div class="plots">'
            + figure(curve, "other limits; the larger marks are the fitted ones")
            + figure(bars, "rejected share of each kind of OOD scans, by networks that did not train on that kind")
            + "</div>"
        )
    return text


_PARTS = {
    "labels": _labels,
    "operating_points": _operating_points,
    "review": _review,
    "label_set": _label_set,
    "outer": _outer,
    "refusal": _rejection,
}
