"""Fill the tables of docs/model_card.md that say what `mcis calibrate` fitted to the bundled weights.

    python docs/calibration.py

The facts are in the manifests of the weights. The sentences around the tables are written by hand.
"""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from results import NAMES, ROOT, replace_rows

Facts = Mapping[str, Any]
"""JSON values of a task's calibration."""
FITS = ("in_source", "left_one_source_out")
"""Measured on groups, and on sources, that the fit left out."""
CALIBRATION = "| | breast, fold 0 | brain, fold 0 |"
LABEL_SETS = "| label sets | breast, other groups |"
OUTER = "| outer outline | breast, other groups |"
POINTS = "| | shift | sensitivity | specificity | accuracy |"
REJECTION = "| | scans, groups or kinds | rejected |"


def share(value: float) -> str:
    """A number to two decimals."""
    return f"{value:.2f}"


def exact(value: float) -> str:
    """A number to three decimals."""
    return f"{value:.3f}"


def interval(rate: Facts, form: Callable[[float], str] = exact) -> str:
    """A rate with its 95 % interval."""
    return f"{form(rate['value'])} [{form(rate['low'])}, {form(rate['high'])}]"


def row(name: str, *cells: str) -> str:
    """A line of a table."""
    return f"| {name} | " + " | ".join(cells) + " |"


def calibration_rows(experts: list[Facts]) -> list[str]:
    """What calibration of the probabilities and the limit of review do, a column an expert."""

    def line(name: str, cell: Callable[[Facts], str]) -> str:
        return row(name, *map(cell, experts))

    def pair(name: str) -> Callable[[Facts], str]:
        return lambda one: f"{exact(one['labels']['before'][name])}, {exact(one['labels']['after'][name])}"

    def fitted_to(alike: str) -> Callable[[Facts], str]:
        return lambda one: exact(one["labels"]["left_one_source_out"][alike]["nll"])

    def marked(fit: str) -> Callable[[Facts], str]:
        return lambda one: (
            f"{share(one['review'][fit]['flagged'])}, {interval(one['review'][fit]['errors_flagged'], share)}"
        )

    return [
        line("scans, groups", lambda one: f"{one['labels']['scans']:,}, {one['labels']['groups']}"),
        line("negative log-likelihood, before and after", pair("nll")),
        line("calibration error, before and after", pair("calibration_error")),
        line("calibration error by chance, up to", lambda one: exact(one["labels"]["after"]["by_chance_up_to"])),
        line("negative log-likelihood, temperature fitted to other sources", fitted_to("scans_alike")),
        line("the same, all sources counted alike in the fit", fitted_to("sources_alike")),
        line(
            "errors; share of the errors that is marked",
            lambda one: f"{one['review']['errors']}; {share(one['review']['errors_flagged'])}",
        ),
        line("the same, limit fitted to other groups: scans marked, errors marked", marked("in_source")),
        line("the same, limit fitted to other sources", marked("left_one_source_out")),
        line(
            "error rate of the marked scans; of the others",
            lambda one: f"{share(one['review']['error_rate_flagged'])}; {share(one['review']['error_rate_others'])}",
        ),
    ]


def per_fit(experts: list[Facts], part: str, name: str, cell: Callable[[Facts], str]) -> str:
    """A row with a cell for each expert and fit."""
    return row(name, *(cell(one[part][fit]) for one in experts for fit in FITS))


def extreme(of: Callable[..., str], measure: str) -> Callable[[Facts], str]:
    """The source with the least or the largest value of a measure, and that value; `of` is min or max."""

    def cell(one: Facts) -> str:
        source = of(one["sources"], key=lambda name: one["sources"][name][measure])
        return f"{NAMES[source]} {exact(one['sources'][source][measure])}"

    return cell


def label_set_rows(experts: list[Facts]) -> list[str]:
    """Coverage and size of the label sets."""

    def of_class(*names: str) -> Callable[[Facts], str]:
        return lambda one: exact(next(iter(one["classes"][name] for name in names if name in one["classes"]), 0.0))

    def benign(one: Facts) -> str:
        return exact(one["classes"]["benign"]) if "benign" in one["classes"] else ""

    cells: dict[str, Callable[[Facts], str]] = {
        "hold the true label": lambda one: interval(one["coverage"]),
        "mean over groups": lambda one: exact(one["coverage_of_groups"]),
        "of malignant, or tumour": of_class("malignant", "tumor"),
        "of benign": benign,
        "of normal, or no tumour": of_class("normal", "no_tumor"),
        "least of a source": extreme(min, "coverage"),
        "mean size; share with one label": lambda one: f"{share(one['size'])}; {share(one['single'])}",
    }
    return [per_fit(experts, "label_set", name, cell) for name, cell in cells.items()]


def outer_rows(experts: list[Facts]) -> list[str]:
    """What the outer outlines miss."""
    cells: dict[str, Callable[[Facts], str]] = {
        "missed by it": lambda one: interval(one["missed"]),
        "missed by the mask": lambda one: exact(one["missed_by_mask"]),
        "most of a source": extreme(max, "missed"),
        "median area, times the mask's": lambda one: share(one["area"]),
    }
    return [per_fit(experts, "outer", name, cell) for name, cell in cells.items()]


def point_rows(name: str, facts: Facts) -> list[str]:
    """The operating points of an organ."""

    def line(what: str, shift: str, one: Facts) -> str:
        measures = ("sensitivity", "specificity", "accuracy", "mean_over_sources")
        return row(f"{name}, {what}", shift, *(exact(one[measure]) for measure in measures))

    points = facts["operating_points"]
    lines = [line("most probable class", "", points["most_probable"])]
    for point, one in points["points"].items():
        moved = ", ".join(f"{label.replace('_', ' ')} {by:+.1f}" for label, by in one["shift"].items() if by)
        missed = "" if one.get("reached", True) else f" ({one['wanted']:.2f} wanted, not reached)"
        lines.append(line(f"`{point}`{missed}", moved or "none", one))
    return lines


def rejection_rows(facts: Facts) -> list[str]:
    """Shares that the router's folds reject, or find uncertain."""
    refusal, names = facts["refusal"], {"known": "known scans", "far": "far kinds", "near": "near kinds"}
    measures = ("refused", "with_thumbnails", "or_uncertain")
    lines = [
        row(
            text,
            f"{refusal['scans'][part]:,}, {refusal['groups'][part]:,}",
            *(interval(refusal[measure][part]) for measure in measures),
        )
        for part, text in names.items()
    ]
    for source, text in NAMES.items():
        one, unsure = refusal["sources"][source], refusal["or_uncertain_sources"][source]
        lines.append(row(text, f"{one['scans']:,}", exact(one["value"]), "", exact(unsure["value"])))
    return lines


def tables(folder: pathlib.Path) -> dict[str, list[str]]:
    """The start of the first line of each table -> its rows, from the manifests of a bundle."""

    def facts(task: str) -> Facts:
        return json.loads((folder / task / "manifest.json").read_text(encoding="utf-8"))["calibration"]

    breast, brain = facts("segment_breast"), facts("segment_brain")
    return {
        CALIBRATION: calibration_rows([breast, brain]),
        LABEL_SETS: label_set_rows([breast, brain]),
        OUTER: outer_rows([breast, brain]),
        POINTS: point_rows("breast", breast) + point_rows("brain", brain),
        REJECTION: rejection_rows(facts("route")),
    }


if __name__ == "__main__":
    card = ROOT / "docs" / "model_card.md"
    page = card.read_text(encoding="utf-8")
    for head, rows in tables(ROOT / "mcis" / "weights").items():
        page = replace_rows(page, head, rows)
    card.write_text(page, encoding="utf-8")
