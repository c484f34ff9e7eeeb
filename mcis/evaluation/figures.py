"""Figures of an evaluation as SVG that takes its colours from the page around it, light or dark. No JAX.

Only this module imports matplotlib, which is an extra, and only when a figure is drawn. Figures are drawn without
pyplot, so that no global state is left behind.
"""

import contextlib
import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mcis.ops.metrics import auc

INK, FAINT = "#010203", "#010204"
SERIES = tuple(f"#0102{n:02x}" for n in range(5, 13))
"""Placeholders for the page's colours, because matplotlib knows no style sheets."""
_COLOURS = {INK: "currentColor", FAINT: "var(--line)"} | {c: f"var(--series{i})" for i, c in enumerate(SERIES)}

_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it can be searched and takes the page's font
    "text.parse_math": False,  # a dollar sign in a name is no formula
    "svg.hashsalt": "mcis",  # the same data gives the same file
    "font.size": 9.0,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "axes.grid": True,
    "axes.axisbelow": True,
}
_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


class Plot:
    """Axes to draw on, and after `_plot` the SVG."""

    def __init__(self, axes: Any):
        self.axes, self.svg = axes, ""

    def name_rows(self, names: Sequence[str], **style: Any) -> None:
        """Name what is drawn at 0, 1, ... from top to bottom."""
        self.axes.set_yticks(range(len(names)), names, **style)
        self.axes.set_ylim(len(names) - 0.5, -0.5)
        self.axes.grid(False, axis="y")


@contextlib.contextmanager
def _plot(label: str, width: float, height: float) -> Iterator[Plot]:
    """A plot of that size in inches; `label` describes the figure to screen readers."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
        FigureCanvasSVG(figure)
        plot = Plot(figure.add_subplot(facecolor="none"))
        yield plot
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=_METADATA)
        plot.svg = _inline(file.getvalue(), label)


def _inline(svg: str, label: str) -> str:
    """An SVG file's text as an element of an HTML page, in the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # unused, and the same in every figure
    for placeholder, colour in _COLOURS.items():
        svg = svg.replace(placeholder, colour)
    _, width, height = re.search(r'viewBox="0 0 (([\d.]+) ([\d.]+))"', svg).groups()  # type: ignore[union-attr]
    head = f'<svg class="plot" role="img" aria-label="{html.escape(label)}" viewBox="0 0 {width} {height}"'
    head += f' style="max-width: {float(width) * 4 / 3:.0f}px">'
    return head + svg[svg.index(">") + 1 :].strip()


def _percent(value: float, _: int) -> str:
    return f"{value:g}"


Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Class -> score float (N,) and whether the scan is of that class, bool (N,), with at least one of either kind."""


def positives_above(score: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives at each threshold, one per distinct score, largest first: int (M,) twice."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    true = np.cumsum(positive[order])[last]
    return true, last + 1 - true


def roc(curves: Curves, label: str) -> str:
    """ROC curves, with the area under each in the legend."""
    with _plot(label, 3.2, 3.0) as plot:
        for colour, (name, (score, positive)) in zip(SERIES, curves.items(), strict=False):
            rates = (np.append(0, count) / count[-1] for count in reversed(positives_above(score, positive)))
            plot.axes.plot(*rates, color=colour, label=f"{name} {auc(score, positive):.3f}")
        plot.axes.plot([0, 1], [0, 1], color=FAINT, linestyle="--", zorder=1)
        plot.axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        plot.axes.legend(title="AUC", loc="lower right")
    return plot.svg


def average_precision(true: np.ndarray, false: np.ndarray) -> float:
    """Mean precision over the positive scans, each at its own threshold; the counts of `positives_above`."""
    return float((np.diff(true, prepend=0) * true / (true + false)).sum() / true[-1])


def precision_recall(curves: Curves, label: str) -> str:
    """Precision-recall curves, with average precision in the legend and the class's share as a dotted line."""
    with _plot(label, 3.2, 3.0) as plot:
        for colour, (name, (score, positive)) in zip(SERIES, curves.items(), strict=False):
            true, false = positives_above(score, positive)
            recall, precision = np.append(0, true / true[-1]), np.append(1, true / (true + false))
            legend = f"{name} {average_precision(true, false):.3f}"
            plot.axes.plot(recall, precision, drawstyle="steps-pre", color=colour, label=legend)
            plot.axes.axhline(positive.mean(), color=colour, linestyle=":", linewidth=1)
        plot.axes.set(xlabel="recall (sensitivity)", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        plot.axes.legend(title="average precision", loc="lower left")
    return plot.svg


def reliability(found: Mapping[str, Any], label: str) -> str:
    """A reliability diagram in bins of equally many scans, with the 95 % band of a calibrated model.

    Args:
      found: of `ops.calibration.Reliability`, as JSON values.
      label: description of the figure.
    """
    confidence, accuracy, low, high = (np.array(found[name]) for name in ("confidence", "accuracy", "low", "high"))
    least = max(0.0, min(confidence.min(), accuracy.min(), low.min(), 0.8) - 0.03)
    band = [np.maximum(confidence - low, 0), np.maximum(high - confidence, 0)]
    style: dict[str, Any] = {"fmt": "none", "ecolor": SERIES[0], "elinewidth": 7, "alpha": 0.35}
    with _plot(label, 3.2, 3.0) as plot:
        plot.axes.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1, alpha=0.5)
        plot.axes.errorbar(confidence, confidence, band, **style, label="calibrated, 95 %")
        plot.axes.plot(confidence, accuracy, marker="o", markersize=5, color=SERIES[1], linewidth=1.2, label="measured")
        plot.axes.set(xlabel="predicted probability", ylabel="accuracy", xlim=(least, 1.02), ylim=(least, 1.03))
        plot.axes.legend(loc="upper left")
    return plot.svg


def dice_boxes(groups: Mapping[str, np.ndarray], label: str) -> str:
    """Box plots of Dice with every scan as a dot and the mean as a line, one below the other.

    Args:
      groups: name -> float (N,), none of them empty.
      label: description of the figure.
    """
    rng = np.random.default_rng(0)
    line = {"color": INK, "linewidth": 1.2}
    style: dict[str, Any] = dict.fromkeys(("boxprops", "whiskerprops", "capprops"), line)
    style |= {"medianprops": {"color": SERIES[1], "linewidth": 2}, "widths": 0.6, "showfliers": False}
    with _plot(label, 6.6, 0.9 + 0.42 * len(groups)) as plot:
        for at, values in enumerate(groups.values()):
            alpha = max(0.15, min(0.6, 30 / len(values)))
            height = at + rng.uniform(-0.28, 0.28, len(values))
            plot.axes.scatter(values, height, s=9, color=SERIES[0], alpha=alpha, linewidths=0)
        plot.axes.boxplot(list(groups.values()), positions=range(len(groups)), orientation="horizontal", **style)
        plot.name_rows([f"{name}, {len(values)}" for name, values in groups.items()])
        plot.axes.set(xlabel="Dice", xlim=(-0.02, 1.02))
    return plot.svg


def dice_histogram(groups: Mapping[str, np.ndarray], label: str) -> str:
    """Histogram of the lesion scans' Dice, stacked by source."""
    with _plot(label, 3.2, 2.8) as plot:
        colours = [SERIES[i % len(SERIES)] for i in range(len(groups))]
        bins = np.linspace(0, 1, 21)
        plot.axes.hist(list(groups.values()), bins=bins, stacked=True, color=colours, label=list(groups), rwidth=0.9)
        plot.axes.set(xlabel="Dice", ylabel="lesion scans", xlim=(-0.02, 1.02))
        plot.axes.grid(False, axis="x")
        plot.axes.legend(loc="upper center")  # most scans have a high Dice, and many of the others none
    return plot.svg


def dice_by_size(share: np.ndarray, overlap: np.ndarray, source: np.ndarray, sizes: Sequence[float], label: str) -> str:
    """Dice of lesion scans against lesion size, with the median in fifths of the scans.

    Args:
      share: float (N,), the lesion's share of the scan, above 0.
      overlap: float (N,), Dice.
      source: str (N,).
      sizes: shares that separate the size classes.
      label: description of the figure.
    """
    with _plot(label, 3.2, 2.8) as plot:
        for at, name in enumerate(np.unique(source).tolist()):
            here, colour = source == name, SERIES[at % len(SERIES)]
            plot.axes.scatter(100 * share[here], overlap[here], s=8, alpha=0.5, color=colour, linewidths=0)
        for size in sizes:
            plot.axes.axvline(100 * size, color=INK, linestyle=":", linewidth=1, alpha=0.5)
        if len(share) >= 10:
            fifths = np.array_split(np.argsort(share), 5)
            middle = [(100 * np.median(share[part]), np.median(overlap[part])) for part in fifths]
            plot.axes.plot(
                *zip(*middle, strict=True), color=INK, marker="D", markersize=4, linewidth=1.2, label="median"
            )
        plot.axes.set(xlabel="lesion, % of the scan", ylabel="Dice", xscale="log", ylim=(-0.03, 1.03))
        plot.axes.xaxis.set_major_formatter(_percent)
        if len(share) >= 10:
            plot.axes.legend(loc="lower right")
    return plot.svg


def decision_curve(found: Mapping[str, Any], band: bool, share: float, label: str) -> str:
    """Net benefit against the threshold, next to calling all scans and none.

    Args:
      found: of `clinical.net_benefit`.
      band: whether to draw its 95 % band.
      share: of the suspicious class, the largest net benefit.
      label: description of the figure.
    """
    threshold = found["threshold"]
    with _plot(label, 3.6, 3.0) as plot:
        if band and None not in found["low"]:
            plot.axes.fill_between(threshold, found["low"], found["high"], color=SERIES[0], alpha=0.2, linewidth=0)
        plot.axes.plot(threshold, found["model"], color=SERIES[0], linewidth=1.8, label="by the network")
        plot.axes.plot(threshold, found["all"], color=SERIES[1], linewidth=1.2, label="call all")
        plot.axes.axhline(0, color=INK, linestyle="--", linewidth=1, label="call none")
        plot.axes.set(xlabel="threshold on the probability", ylabel="net benefit per scan", xlim=(0, 1))
        plot.axes.set_ylim(-0.25 * share, 1.08 * share)
        plot.axes.legend(loc="best")
    return plot.svg


def trade_off(points: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any], label: str) -> str:
    """Rejected share of OOD scans against that of known scans, with 95 % bands over kinds of OOD scans.

    Args:
      points: each {"known", "far", "near"} -> {"value", "low", "high"}; far or near may be missing in all.
      chosen: the point of the fitted limits.
      label: description of the figure.
    """
    with _plot(label, 3.6, 3.2) as plot:
        known = [100 * max(point["known"]["value"], 1e-4) for point in points]
        for colour, name in zip(SERIES, [name for name in ("far", "near") if name in chosen], strict=False):
            values, low, high = ([point[name][end] for point in points] for end in ("value", "low", "high"))
            if None not in low:
                plot.axes.fill_between(known, low, high, color=colour, alpha=0.15, linewidth=0)
            plot.axes.plot(known, values, color=colour, marker="o", markersize=3, label=f"{name} kinds")
            at = 100 * max(chosen["known"]["value"], 1e-4)
            plot.axes.plot(at, chosen[name]["value"], "D", color=colour, markersize=8)
        plot.axes.set(xlabel="known scans rejected, %", ylabel="OOD scans rejected", xscale="log", ylim=(-0.03, 1.03))
        plot.axes.xaxis.set_major_formatter(_percent)
        plot.axes.legend(loc="lower right")
    return plot.svg


def kinds(shares: Mapping[str, Mapping[str, Any]], label: str) -> str:
    """Rejected share of each kind of OOD scans, one bar below the other, with the number of scans.

    Args:
      shares: kind -> {"value", "scans", ...}.
      label: description of the figure.
    """
    ranked = sorted(shares.items(), key=lambda item: (item[1]["value"], item[0]))
    with _plot(label, 3.6, 0.7 + 0.19 * len(ranked)) as plot:
        plot.axes.barh(range(len(ranked)), [100 * kind["value"] for _, kind in ranked], height=0.65, color=SERIES[0])
        plot.name_rows([f"{name}, {kind['scans']}" for name, kind in ranked], fontsize=8)
        plot.axes.set(xlabel="% rejected", xlim=(0, 101))
    return plot.svg


def shares(parts: Mapping[str, Mapping[str, int]], label: str) -> str:
    """Stacked bars of 100 %, one per part, with counts inside.

    Args:
      parts: name -> outcome -> scans; the same outcomes in all.
      label: description of the figure.
    """
    outcomes = list(next(iter(parts.values())))
    total = np.array([sum(part.values()) for part in parts.values()])
    with _plot(label, 6.6, 1.1 + 0.42 * len(parts)) as plot:
        start = np.zeros(len(parts))
        for colour, outcome in zip((SERIES[2], *SERIES[:2], *SERIES[3:]), outcomes, strict=False):
            count = np.array([part[outcome] for part in parts.values()])
            width = 100 * count / np.maximum(total, 1)
            plot.axes.barh(range(len(parts)), width, left=start, height=0.62, color=colour, alpha=0.8, label=outcome)
            for at in np.flatnonzero(width > 3):
                plot.axes.text(start[at] + width[at] / 2, at, str(count[at]), ha="center", va="center", fontsize=8.5)
            start += width
        plot.name_rows([f"{name}, {n}" for name, n in zip(parts, total, strict=True)])
        plot.axes.set(xlabel="% of the lesion scans", xlim=(0, 100))
        plot.axes.figure.legend(loc="outside upper center", ncols=len(outcomes), handlelength=1.0)
    return plot.svg
