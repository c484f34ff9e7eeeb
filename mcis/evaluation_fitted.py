"""What `mcis calibrate` found, as a section of an evaluation's page. No JAX."""

from collections.abc import Mapping
from html import escape
from typing import Any

from mcis import evaluation_plots as plots
from mcis.evaluation_html import cell, figure


def fitted(found: Mapping[str, Any]) -> str:
    """The section, of the networks that were calibrated; "" where none was."""
    text = ""
    for name, facts in found["weights"].items():
        known = facts.get("calibration", {})
        parts = [make(known[what]) for what, make in _PARTS.items() if what in known]
        if parts:
            text += f"<h3>{escape(name)}</h3>{''.join(parts)}"
    about = (
        "<p>Networks of the same recipe, each trained without one fold of the groups, answered what they had left out. "
        "Probabilities and limits were fitted to these answers, and on the same answers it is said what they do. They "
        "are not the scans scored above.</p>"
    )
    return about + text if text else ""


def _labels(facts: Mapping[str, Any]) -> str:
    names = ("accuracy", "balanced_accuracy", "nll", "calibration_error", "by_chance_up_to")
    lines = ""
    for when in ("before", "after"):
        cells = "".join(f'<td class="n">{facts[when][name]:.3f}</td>' for name in names)
        lines += f"<tr><th>{when}</th>{cells}</tr>"
    heads = "".join(f'<th class="n">{name}</th>' for name in names)
    return (
        f"<p>Probabilities, on {facts['scans']} scans of {facts['groups']} groups:</p>"
        f'<div class="wide"><table><thead><tr><th></th>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'
    )


def _review(facts: Mapping[str, Any]) -> str:
    return (
        f"<p>For review, {facts['flagged']:.0%} of {facts['scans']} scans: they hold {facts['errors_flagged']:.0%} of "
        f"{facts['errors']} errors (a wrong class, or a Dice below one half). Of what is for review "
        f"{facts['error_rate_flagged']:.0%} is wrong, of the rest {facts['error_rate_others']:.0%}.</p>"
    )


def _refusal(facts: Mapping[str, Any]) -> str:
    lines = "".join(
        f'<tr><th>{escape(name)}</th><td class="n">{facts["scans"][name]}</td>'
        f'<td class="n">{facts["groups"][name]}</td>{cell(share)}</tr>'
        for name, share in facts["refused"].items()
    )
    head = '<th></th><th class="n">scans</th><th class="n">groups or kinds</th><th class="n">refused</th>'
    text = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
    if "trade_off" in facts:
        curve = plots.trade_off(facts["trade_off"], facts["refused"], "What refusing more known scans would refuse")
        text += '<div class="plots">' + figure(curve, "if other limits were set; the larger marks are those that are")
        bars = plots.kinds({name.rsplit("/", 1)[-1]: k for name, k in facts["kinds"].items()}, "Refused, by kind")
        text += figure(bars, "refused of each foreign kind by networks that have not learned from it") + "</div>"
    return text


_PARTS = {"labels": _labels, "review": _review, "refusal": _refusal}
