"""What `mcis calibrate` found, as a section of an evaluation's page. No JAX."""

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from mcis.evaluation import figures as plots
from mcis.evaluation.html import cell, figure


def fitted(found: Mapping[str, Any]) -> str:
    """The section, of the networks that were calibrated; "" where none was."""
    text = ""
    for name, facts in found["weights"].items():
        known = facts.get("calibration", {})
        parts = [_shown(make, known[what]) for what, make in _PARTS.items() if what in known]
        if parts:
            text += f"<h3>{escape(name)}</h3>{''.join(parts)}"
    about = (
        "<p>Networks of the same recipe, each trained without one fold of the groups, answered what they had left out. "
        "Probabilities and limits were fitted to these answers, and on the same answers it is said what they do, which "
        "flatters a little.</p>"
    )
    return about + text if text else ""


def _shown(make: Callable[[Mapping[str, Any]], str], facts: Any) -> str:
    """A part, or that it cannot be read: a manifest may be another's, or of another version."""
    try:
        return make(facts)
    except (LookupError, TypeError, ValueError, AttributeError):
        return "<p>What these weights say of their calibration is not of this version.</p>"


def _labels(facts: Mapping[str, Any]) -> str:
    names = ("accuracy", "balanced_accuracy", "nll", "calibration_error", "by_chance_up_to")
    lines = ""
    for when in ("before", "after"):
        cells = "".join(f'<td class="n">{facts[when][name]:.3f}</td>' for name in names)
        lines += f"<tr><th>{when}</th>{cells}</tr>"
    heads = "".join(f'<th class="n">{name}</th>' for name in names)
    return (
        f"<p>Probabilities, on {facts['scans']:d} scans of {facts['groups']:d} groups:</p>"
        f'<div class="wide"><table><thead><tr><th></th>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'
    )


def _review(facts: Mapping[str, Any]) -> str:
    flagged, held = facts["flagged"], facts["errors_flagged"]
    worse, better = facts["error_rate_flagged"], facts["error_rate_others"]
    return (
        f"<p>For review, {flagged:.0%} of {facts['scans']:d} scans; they hold {held:.0%} of {facts['errors']:d} errors "
        f"(a wrong class, or a Dice below one half). Of what is for review {worse:.0%} is wrong, of the rest "
        f"{better:.0%}.</p>"
    )


def _refusal(facts: Mapping[str, Any]) -> str:
    lines = "".join(
        f'<tr><th>{escape(name)}</th><td class="n">{facts["scans"][name]:d}</td>'
        f'<td class="n">{facts["groups"][name]:d}</td>{cell(share)}'
        + (cell(facts["with_thumbnails"][name]) if "with_thumbnails" in facts else "")
        + "</tr>"
        for name, share in facts["refused"].items()
    )
    head = '<th></th><th class="n">scans</th><th class="n">groups or kinds</th><th class="n">refused</th>'
    if "with_thumbnails" in facts:
        head += '<th class="n">refused, thumbnails included</th>'
    text = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
    if "trade_off" in facts:
        curve = plots.trade_off(facts["trade_off"], facts["refused"], "What refusing more known scans would refuse")
        text += '<div class="plots">' + figure(curve, "if other limits were set; the larger marks are those that are")
        bars = plots.kinds({name.rsplit("/", 1)[-1]: k for name, k in facts["kinds"].items()}, "Refused, by kind")
        text += figure(bars, "refused of each foreign kind by networks that have not learned from it") + "</div>"
    return text


_PARTS = {"labels": _labels, "review": _review, "refusal": _refusal}
