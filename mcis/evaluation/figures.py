"""An evaluation's pictures as SVG that takes its colours from the page it stands in, light or dark. No JAX.

matplotlib's Figures are drawn without pyplot, so that nothing global is left behind; scikit-learn makes the curves.
Both are imported where they are used: they take longer than `mcis --help` may.
"""

import contextlib
import html
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mcis.ops.metrics import auc

INK, FAINT = "#010203", "#010204"
SERIES = tuple(f"#01020{n}" for n in range(5, 10))
"""Colours that stand for the page's own: matplotlib knows no style sheet."""
_COLOURS = {INK: "currentColor", FAINT: "var(--line)"} | {c: f"var(--series{i})" for i, c in enumerate(SERIES)}

_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it can be read, searched and takes the page's font
    "text.parse_math": False,  # a name with a dollar is a name
    "svg.hashsalt": "mcis",  # the same figures give the same file
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


@contextlib.contextmanager
def _axes(label: str, size: tuple[float, float], into: list[str]) -> Iterator[Any]:
    """Axes to draw on; the SVG is appended to `into` at the end. Inches; `label` says what the picture shows."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained", facecolor="none")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot(facecolor="none")
        yield axes
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        into.append(_inline(file.getvalue(), label))


def _inline(svg: str, label: str) -> str:
    """An SVG file's text as an element of an HTML page: no prolog, no metadata, the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # nothing refers to groups, and every figure has an axes_1
    for name, colour in _COLOURS.items():
        svg = svg.replace(name, colour)
    _, width, height = re.search(r'viewBox="0 0 (([\d.]+) ([\d.]+))"', svg).groups()  # type: ignore[union-attr]
    head = f'<svg class="plot" role="img" aria-label="{html.escape(label)}" viewBox="0 0 {width} {height}"'
    head += f' style="max-width: {float(width) * 4 / 3:.0f}px">'
    return head + svg[svg.index(">") + 1 :].strip()


Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Class -> score float (N,) and whether the scan is of that class, bool (N,): some are and some are not."""


def roc_points(score: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates, each (M,), from (0, 0) to (1, 1)."""
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(positive, score)
    return false, true


def roc(curves: Curves, label: str) -> str:
    """ROC curves, the area under each in the legend."""
    made: list[str] = []
    with _axes(label, (3.2, 3.0), made) as axes:
        for colour, (name, (score, positive)) in zip(SERIES, curves.items(), strict=False):
            axes.plot(*roc_points(score, positive), color=colour, label=f"{name} {auc(score, positive):.3f}")
        axes.plot([0, 1], [0, 1], color=FAINT, linestyle="--", zorder=1)
        axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.legend(title="area under", loc="lower right")
    return made[0]


def precision_recall(curves: Curves, label: str) -> str:
    """Precision-recall curves, average precision in the legend; dotted, the share of the class."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    made: list[str] = []
    with _axes(label, (3.2, 3.0), made) as axes:
        for colour, (name, (score, positive)) in zip(SERIES, curves.items(), strict=False):
            precision, recall, _ = precision_recall_curve(positive, score)
            average = average_precision_score(positive, score)
            axes.plot(recall, precision, drawstyle="steps-post", color=colour, label=f"{name} {average:.3f}")
            axes.axhline(positive.mean(), color=colour, linestyle=":", linewidth=1)
        axes.set(xlabel="recall (sensitivity)", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.legend(title="average precision", loc="lower left")
    return made[0]


def reliability(found: Mapping[str, Any], label: str) -> str:
    """How often what was said was right, in bins of equally many scans, beside what chance alone would show.

    Args:
      found: of `ops.calibration.Reliability`, as JSON has it.
      label: what the picture shows.
    """
    made: list[str] = []
    confidence, accuracy, low, high = (np.array(found[name]) for name in ("confidence", "accuracy", "low", "high"))
    least = max(0.0, min(confidence.min(), accuracy.min(), low.min(), 0.8) - 0.03)
    with _axes(label, (3.2, 3.0), made) as axes:
        axes.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1, alpha=0.5)
        beyond = [np.maximum(confidence - low, 0), np.maximum(high - confidence, 0)]
        axes.errorbar(
            confidence,
            confidence,
            beyond,
            fmt="none",
            ecolor=SERIES[0],
            elinewidth=7,
            alpha=0.35,
            label="calibrated, 95 %",
        )
        axes.plot(confidence, accuracy, marker="o", markersize=5, color=SERIES[1], linewidth=1.2, label="measured")
        axes.set(
            xlabel="probability of what was said", ylabel="share that was right", xlim=(least, 1.02), ylim=(least, 1.03)
        )
        axes.legend(loc="upper left")
    return made[0]


def dice_boxes(groups: Mapping[str, np.ndarray], label: str) -> str:
    """Dice of scans by kind: every scan a dot, the quartiles a box, the mean a line; names below each other.

    Args:
      groups: name -> float (N,), none of them empty.
      label: what the picture shows.
    """
    made: list[str] = []
    rng = np.random.default_rng(0)
    with _axes(label, (6.6, 0.9 + 0.42 * len(groups)), made) as axes:
        for at, values in enumerate(groups.values()):
            alpha = max(0.15, min(0.6, 30 / len(values)))
            height = at + rng.uniform(-0.28, 0.28, len(values))
            axes.scatter(values, height, s=9, color=SERIES[0], alpha=alpha, linewidths=0)
        line = {"color": INK, "linewidth": 1.2}
        axes.boxplot(
            list(groups.values()), positions=range(len(groups)), orientation="horizontal", widths=0.6, showfliers=False,
            boxprops=line, whiskerprops=line, capprops=line, medianprops={"color": SERIES[1], "linewidth": 2},
        )  # fmt: skip
        axes.set_yticks(range(len(groups)), [f"{name}, {len(values)}" for name, values in groups.items()])
        axes.set(xlabel="Dice", xlim=(-0.02, 1.02), ylim=(len(groups) - 0.5, -0.5))
        axes.grid(False, axis="y")
    return made[0]


def dice_histogram(groups: Mapping[str, np.ndarray], label: str) -> str:
    """How many lesion scans have which Dice, one source on top of the other."""
    made: list[str] = []
    with _axes(label, (3.2, 2.8), made) as axes:
        colours = [SERIES[i % len(SERIES)] for i in range(len(groups))]
        bins = np.linspace(0, 1, 21)
        axes.hist(list(groups.values()), bins=bins, stacked=True, color=colours, label=list(groups), rwidth=0.9)
        axes.set(xlabel="Dice", ylabel="lesion scans", xlim=(-0.02, 1.02))
        axes.grid(False, axis="x")
        axes.legend(loc="upper left")
    return made[0]


def dice_by_size(share: np.ndarray, overlap: np.ndarray, source: np.ndarray, sizes: Sequence[float], label: str) -> str:
    """Dice of lesion scans against the lesion's share of the scan, and the median in fifths of the scans.

    Args:
      share: float (N,), above 0.
      overlap: float (N,), Dice.
      source: str (N,).
      sizes: shares at which figures by size are cut.
      label: what the picture shows.
    """
    made: list[str] = []
    with _axes(label, (3.2, 2.8), made) as axes:
        for at, name in enumerate(np.unique(source).tolist()):
            here = source == name
            axes.scatter(
                100 * share[here],
                overlap[here],
                s=8,
                alpha=0.5,
                color=SERIES[at % len(SERIES)],
                linewidths=0,
                label=name,
            )
        for cut in sizes:
            axes.axvline(100 * cut, color=INK, linestyle=":", linewidth=1, alpha=0.5)
        if len(share) >= 10:
            fifths = np.array_split(np.argsort(share), 5)
            middle = [(100 * np.median(share[part]), np.median(overlap[part])) for part in fifths]
            axes.plot(*zip(*middle, strict=True), color=INK, marker="D", markersize=4, linewidth=1.2, label="median")
        axes.set(xlabel="lesion, % of the scan", ylabel="Dice", xscale="log", ylim=(-0.03, 1.03))
        axes.xaxis.set_major_formatter(_percent())
        axes.legend(loc="lower right")
    return made[0]


def _percent() -> Callable[[float, int], str]:
    return lambda value, _: f"{value:g}"


def trade_off(points: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any], label: str) -> str:
    """What is refused of foreign pictures against what is of known scans, with bands of 95 % over kinds.

    Args:
      points: each {"known", "far", "near"} -> {"value", "low", "high"}; far or near may be missing in all.
      chosen: the one that the limits make.
      label: what the picture shows.
    """
    made: list[str] = []
    with _axes(label, (3.6, 3.2), made) as axes:
        known = [100 * max(point["known"]["value"], 1e-4) for point in points]
        for colour, name in zip(SERIES, [name for name in ("far", "near") if name in chosen], strict=False):
            values, low, high = ([point[name][end] for point in points] for end in ("value", "low", "high"))
            if None not in low:
                axes.fill_between(known, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(known, values, color=colour, marker="o", markersize=3, label=f"{name} kinds")
            axes.plot(100 * max(chosen["known"]["value"], 1e-4), chosen[name]["value"], "D", color=colour, markersize=8)
        axes.set(xlabel="known scans refused, %", ylabel="foreign pictures refused", xscale="log", ylim=(-0.03, 1.03))
        axes.xaxis.set_major_formatter(_percent())
        axes.legend(loc="lower right")
    return made[0]


def kinds(shares: Mapping[str, Mapping[str, Any]], label: str) -> str:
    """Kinds of pictures below each other, the share of each that was refused as a bar, and its pictures counted.

    Args:
      shares: kind -> {"value", "scans", ...}.
      label: what the picture shows.
    """
    made: list[str] = []
    ranked = sorted(shares.items(), key=lambda item: (item[1]["value"], item[0]))
    with _axes(label, (3.6, 0.7 + 0.19 * len(ranked)), made) as axes:
        axes.barh(range(len(ranked)), [100 * kind["value"] for _, kind in ranked], height=0.65, color=SERIES[0])
        axes.set_yticks(range(len(ranked)), [f"{name}, {kind['scans']}" for name, kind in ranked], fontsize=8)
        axes.set(xlabel="% refused", xlim=(0, 101), ylim=(len(ranked) - 0.4, -0.6))
        axes.grid(False, axis="y")
    return made[0]


def shares(parts: Mapping[str, Mapping[str, int]], label: str) -> str:
    """What became of the scans of each part, as bars of 100 %, counts inside.

    Args:
      parts: name -> what became of them -> scans; the same keys everywhere, the first one first.
      label: what the picture shows.
    """
    made: list[str] = []
    kinds = list(next(iter(parts.values())))
    with _axes(label, (6.6, 1.1 + 0.42 * len(parts)), made) as axes:
        start = np.zeros(len(parts))
        total = np.array([sum(part.values()) for part in parts.values()])
        for colour, kind in zip((SERIES[2], *SERIES[:2], *SERIES[3:]), kinds, strict=False):
            count = np.array([part[kind] for part in parts.values()])
            width = 100 * count / np.maximum(total, 1)
            axes.barh(range(len(parts)), width, left=start, height=0.62, color=colour, alpha=0.8, label=kind)
            for at in np.flatnonzero(width > 3):
                axes.text(start[at] + width[at] / 2, at, str(count[at]), ha="center", va="center", fontsize=8.5)
            start += width
        axes.set_yticks(range(len(parts)), [f"{name}, {n}" for name, n in zip(parts, total, strict=True)])
        axes.set(xlabel="% of the lesion scans", xlim=(0, 100), ylim=(len(parts) - 0.5, -0.5))
        axes.grid(False, axis="y")
        axes.figure.legend(loc="outside upper center", ncols=len(kinds), handlelength=1.0)
    return made[0]
