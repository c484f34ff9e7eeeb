"""An evaluation as one HTML page that opens from disk and asks for nothing else. No JAX, no script.

The page is a function of the report's JSON values, the rows of results and the gallery's pictures. Every text from
data goes through `html.escape`.
"""

import base64
import dataclasses
import pathlib
import string
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from mcis.evaluation import figures as plots
from mcis.evaluation.descriptions import USES, meaning, scans_scored, uses_seen
from mcis.evaluation.gallery import SAID, TRUE, Rows
from mcis.evaluation.html import cell, fact_list, figure
from mcis.evaluation.page_calibration import fitted
from mcis.ops.metrics import dice
from mcis.organs import ORGAN_NAMES, ORGANS, UNSUPPORTED

CASCADE = "cascade"
TEMPLATE = pathlib.Path(__file__).with_name("page.html")
SIZES = (0.01, 0.05)
"""Shares of the scan at which lesions of another size begin, as in `scores.LESION_SIZES`."""


@dataclasses.dataclass(frozen=True)
class Card:
    """One scan of the gallery: under which title, its picture as JPEG, and names and values to say below it."""

    title: str
    picture: bytes
    caption: Sequence[tuple[str, str]]


def page(found: Mapping[str, Any], rows: Rows, cards: Sequence[Card]) -> str:
    """The whole page.

    Args:
      found: the report as its JSON file has it (`scores.report`, and what `mcis evaluate` adds).
      rows: the results that it was made of.
      cards: the gallery, in order.
    """
    sections = {
        "figures": ("Figures", _figures(found)),
        "against": ("Against another run", _against(found)),
        "lost": ("Where lesions were lost", _lost(found)),
        "classes": ("Classes", _classes(found, rows)),
        "heat": ("Where the classifier looks", _heat(found)),
        "masks": ("Masks", _masks(found, rows)),
        "subsets": ("By size, class or organ", _subsets(found)),
        "gallery": ("Scans to look at", _gallery(cards)),
        "audit": ("Were these scans seen in training?", _audit(found)),
        "fitted": ("Fitted on folds", fitted(found)),
        "weights": ("Weights", _weights(found)),
    }
    there = {name: (title, text) for name, (title, text) in sections.items() if text}
    nav = "".join(f'<a href="#{name}">{title}</a>' for name, (title, _) in there.items())
    body = "".join(f'<section id="{name}"><h2>{title}</h2>{text}</section>' for name, (title, text) in there.items())
    title = f"{found['task']}, {scans_scored(found)}"
    # one pass: a text from data that looks like a field of the template stays a text
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title),
        body=f'<p class="notice" role="note">{escape(found["notice"])}</p>{_header(title, found)}'
        f"<main><nav>{nav}</nav>{body}</main>{_footer(found)}",
    )


def _header(title: str, found: Mapping[str, Any]) -> str:
    parts, audit = found["sources"], found["audit"]
    sources = ", ".join(f"{name} ({part['scans']} scans, {part['groups']} groups)" for name, part in parts.items())
    seen = uses_seen(audit)
    facts = {"scored": found["run"], "on": scans_scored(found), "sources": sources, "date": found["date"]}
    if "folder" in found:
        rejected, unsure = found["folder"]["rejected"], found["folder"]["contradictions"]
        facts["not scored"] = "; ".join(f"{one['scan']}: {one['reason']}" for one in rejected[:20]) or "none"
        if unsure:
            facts["class unknown"] = f"{unsure} sets of near-duplicates whose labels contradict each other"
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    verdict = (
        f'<dt>leak audit</dt><dd class="{"bad" if seen else "good"}">'
        + (
            f"some of these scans {seen}; see below"
            if seen
            else "no network was trained on one of these pictures, and none of them chose its epoch, CRF or limits"
        )
        + "</dd>"
    )
    return f"<header><h1>{escape(title)}</h1>{fact_list(facts, verdict)}</header>"


def _table(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Metrics below each other, parts (sources, or subsets of one) beside each other, with their counts."""
    heads = "".join(
        f'<th class="n">{escape(name)}<small>{part["scans"]} scans, {part["groups"]} groups</small></th>'
        for name, part in parts.items()
    )
    names = dict.fromkeys(name for part in parts.values() for name in part["metrics"])
    lines = []
    for name in names:
        cells = "".join(cell(part["metrics"].get(name)) for part in parts.values())
        lines.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    head = f"<thead><tr><th>metric</th>{heads}</tr></thead>"
    return f'<div class="wide"><table>{head}<tbody>{"".join(lines)}</tbody></table></div>'


def _figures(found: Mapping[str, Any]) -> str:
    about = "<p>Values with 95 % bootstrap intervals by group: a patient, or a cluster of near-duplicates.</p>"
    if found.get("left_out", {}).get("runs", 1) > 1:
        about += (
            "<p>Each scan was answered by the run that had left it out. Probabilities of several networks lie together "
            "here, each on its own scale, which lowers areas under curves a little.</p>"
        )
    if not any(part["metrics"] for part in found["sources"].values()):
        return "<p>Nothing is known of these scans that could be scored: no class and no mask.</p>"
    names = dict.fromkeys(name for part in found["sources"].values() for name in part["metrics"])
    said = "".join(f"<dt>{escape(name)}</dt><dd>{escape(meaning(name))}</dd>" for name in names)
    words = f'<details><summary>What the metrics say</summary><dl class="facts">{said}</dl></details>'
    return about + _table(found["sources"]) + words


def _subsets(found: Mapping[str, Any]) -> str:
    parts = {name: part["subsets"] for name, part in found["sources"].items() if part.get("subsets")}
    text = ""
    for number, (name, subsets) in enumerate(reversed(parts.items())):  # all of them together come first
        shown = " open" if number == 0 else ""
        text += f"<details{shown}><summary>{escape(name)}</summary>{_table(subsets)}</details>"
    return text


def _against(found: Mapping[str, Any]) -> str:
    if "against" not in found:
        return ""
    lines = []
    for name, higher in found["against"]["metrics"].items():
        sure = higher["low"] is not None and (higher["low"] > 0 or higher["high"] < 0)
        row = f"<th>{escape(name)}</th>{cell(higher, '+')}<td class=why>{escape(meaning(name))}</td>"
        lines.append(f"<tr{' class=sure' if sure else ''}>{row}</tr>")
    return (
        f"<p>How much higher each figure is than that of {escape(found['against']['report'])}, on the same scans, with "
        "95 % intervals by group. Bold: the interval leaves out 0.</p>"
        f'<div class="wide"><table><tbody>{"".join(lines)}</tbody></table></div>'
    )


def _lost(found: Mapping[str, Any]) -> str:
    parts = {}
    for name, part in found["sources"].items():
        if part.get("lost", {}).get("lesions"):
            by = {where: count for where, count in part["lost"].items() if where != "lesions"}
            parts[name] = {"found": part["lost"]["lesions"] - sum(by.values())} | by
    if not parts:
        return ""
    return (
        "<p>Of the scans with a lesion: refused or sent to another organ by the router, called free of lesions by the "
        "classifier, given no mask or one beside the lesion by the segmenter; found, the rest.</p>"
        + figure(plots.shares(parts, "Where lesion scans were lost, by source"), "", broad=True)
    )


def _classes(found: Mapping[str, Any], rows: Rows) -> str:
    """Curves, calibration and confusions by source; for the cascade by organ and source."""
    text, task = "", found["task"]
    for name, part in found["sources"].items():
        here = np.ones(len(rows["source"]), bool) if name == "all" else rows["source"] == name
        if task == CASCADE:
            for index, organ in enumerate(ORGANS):
                if organ.name in part.get("routed", {}):
                    chosen = here & (rows["organ"] == index) & (rows["said_organ"] == index)
                    chosen &= (rows["label"] >= 0) & (rows["said_label"] >= 0)
                    label, probs = rows["label"][chosen], rows["label_probs"][chosen, : len(organ.classes)]
                    text += _said(f"{name}, {organ.name}", part["routed"][organ.name], label, probs, organ.classes)
        elif "confusion" in part:
            known = here & (rows["label"] >= 0)
            text += _said(name, part, rows["label"][known], rows["probs"][known], found["classes"])
    if not text or task != CASCADE:
        return text
    about = (
        "<p>On the scans that the router sent to the right organ; what it refused or sent elsewhere is not in these "
        "curves, and is in the figures above.</p>"
    )
    return f"<h3>What the router said</h3>{_organs(rows)}{about}{text}"


def _organs(rows: Rows) -> str:
    """Organs as the router called them, over all sources."""
    names = [*ORGAN_NAMES, UNSUPPORTED]
    there = [index for index in range(len(names)) if (rows["organ"] == index).any()]
    table = [np.bincount(rows["said_organ"][rows["organ"] == i], minlength=len(ORGANS) + 1).tolist() for i in there]
    return _confusion(table, [names[i] for i in there], names)


def _said(title: str, part: Mapping[str, Any], label: np.ndarray, probs: np.ndarray, classes: Sequence[str]) -> str:
    curves = {
        name: (probs[:, index], label == index)
        for index, name in enumerate(classes)
        if (label == index).any() and not (label == index).all()
    }
    found = part["reliability"]
    drawn = []
    if curves:
        drawn.append(figure(plots.roc(curves, f"ROC curves, {title}"), "ROC, each class against the rest"))
        precision = plots.precision_recall(curves, f"Precision-recall curves, {title}")
        drawn.append(figure(precision, "precision and recall; dotted, the class's share"))
    error = f"{found['error']:.3f}; a calibrated model stays below {found['error_high']:.3f} in 95 % of such sets"
    drawn.append(figure(plots.reliability(found, f"Reliability, {title}"), f"calibration error {error}"))
    table = _confusion(part["confusion"], classes, classes)
    drawn.append(f"<figure><figcaption>confusion: scans, share of the class</figcaption>{table}</figure>")
    few = "" if curves else '<p class="quiet">All of one class: there is no curve.</p>'
    return f'<h3>{escape(title)}, {len(label)} scans of known class</h3>{few}<div class="plots">{"".join(drawn)}</div>'


def _confusion(table: Sequence[Sequence[int]], true: Sequence[str], said: Sequence[str]) -> str:
    """[true][said] counts, shaded by their share of the row."""
    head = "".join(f"<th>{escape(name)}</th>" for name in said)
    lines = []
    for name, row in zip(true, table, strict=True):
        whole = max(sum(row), 1)
        cells = "".join(f'<td style="--share:{n / whole:.3f}">{n}<br><small>{n / whole:.0%}</small></td>' for n in row)
        lines.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    return (
        f'<div class="wide"><table class="confusion"><thead><tr><th>is \\ said</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _heat(found: Mapping[str, Any]) -> str:
    """How often the classifier's map peaks in the lesion."""
    heat = found.get("heat")
    if not heat:
        return ""
    ends = "no interval" if heat["low"] is None else f"95 % interval by group {heat['low']:.2f} to {heat['high']:.2f}"
    return (
        f"<p>On {heat['scans']} lesion scans of {heat['groups']} groups whose class was found: hiding parts of a scan "
        f"in turn, what lowers the class's probability most lies in the lesion in {heat['in_lesion']:.0%} ({ends}). A "
        f"place chosen blindly would in {heat['by_chance']:.0%}. Maps of single scans are in the gallery.</p>"
    )


def _masks(found: Mapping[str, Any], rows: Rows) -> str:
    """How Dice is spread: by source and class, and against the lesion's size."""
    lesion = rows["has_mask"] & (rows["true"] > 0) if "true" in rows else np.zeros(0, bool)
    if not lesion.any():
        return ""
    overlap, share = dice(rows["both"], rows["predicted"], rows["true"]), rows["true"] / rows["pixels"]
    source, kind = rows["source"], _class_names(rows, found["classes"])
    kinds = sorted({*zip(source[lesion].tolist(), kind[lesion].tolist(), strict=True)})
    boxes = {f"{a}, {b}": overlap[lesion & (source == a) & (kind == b)] for a, b in kinds}
    by_source = {name: overlap[lesion & (source == name)] for name in np.unique(source[lesion]).tolist()}
    sized = plots.dice_by_size(share[lesion], overlap[lesion], source[lesion], SIZES, "Dice against lesion size")
    empty = rows["has_mask"] & (rows["true"] == 0)
    false = ""
    if empty.any():
        masked = int((rows["predicted"][empty] > 0).sum())
        false = f"<p>Of {int(empty.sum())} scans without a lesion {masked} were given a mask.</p>"
    return (
        f"<p>The {int(lesion.sum())} scans with a lesion whose outline is known. Dice 0: no mask, or one beside the "
        f"lesion.</p>{false}"
        + figure(plots.dice_boxes(boxes, "Dice by source and class"), "by source and class, scans", broad=True)
        + '<div class="plots">'
        + figure(plots.dice_histogram(by_source, "Histogram of Dice"), "how many scans have which Dice")
        + figure(sized, "against the lesion's size; dotted, 1 % and 5 %; the median in fifths of the scans")
        + "</div>"
    )


def _class_names(rows: Rows, classes: Sequence[str]) -> np.ndarray:
    """The class of each row's scan, str (N,), by the task's classes, or by those of the organ where rows say it."""
    label = rows["label"].tolist()
    of_organ = [*(organ.classes for organ in ORGANS), ()]  # a foreign scan has no class
    tables = [of_organ[organ] for organ in rows["organ"]] if "organ" in rows else [classes] * len(label)
    return np.array([table[at] if at >= 0 else "class unknown" for table, at in zip(tables, label, strict=True)])


def _gallery(cards: Sequence[Card]) -> str:
    if not cards:
        return ""
    keys = "".join(
        f'<span class="key" style="border-top: {width}px solid rgb{colour}"></span>{name}'
        for name, colour, width in (("true outline", TRUE, 4), ("predicted outline", SAID, 2))
    )
    text = f"<p>{keys}. Chosen by their results alone; the network saw them again for these pictures.</p>"
    for title in dict.fromkeys(card.title for card in cards):
        shown = "".join(_card(card) for card in cards if card.title == title)
        text += f'<h3>{escape(title)}</h3><div class="cards">{shown}</div>'
    return text


def _card(card: Card) -> str:
    words = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in card.caption)
    coded = base64.b64encode(card.picture).decode()
    alt = escape(card.caption[0][1])
    return f'<figure class="card"><img alt="{alt}" src="data:image/jpeg;base64,{coded}"><dl>{words}</dl></figure>'


def _audit(found: Mapping[str, Any]) -> str:
    audit = found["audit"]
    lines = []
    for name, uses in audit["networks"].items():
        cells = "".join(
            f'<td class="n">{use["used"]}</td><td class="n {"bad" if use["scored"] else "good"}">{use["scored"]}</td>'
            for use in (uses.get(name, {"used": 0, "scored": 0}) for name in USES)
        )
        lines.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    head = "".join(f'<th class="n">{use}</th><th class="n">of these scored</th>' for use in ("trained on", "chosen by"))
    return (
        f"<p>{audit['scans']} scans were scored, {audit['fingerprints']} different ones by content, of "
        f"{audit['groups']} groups. Weights list the fingerprints of the scans that they were trained on, and of those "
        "that chose epoch, CRF or limits; this is how many of the scored ones are among them. A proper test has 0 "
        "everywhere. A fingerprint knows the same picture, pixel by pixel; a near-duplicate or a copy of another size "
        "has another one and is not counted. The builder keeps near-duplicates of a data set in one split; a test on "
        "copies of published scans is refused by their names.</p>"
        f'<div class="wide"><table><thead><tr><th>network</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _weights(found: Mapping[str, Any]) -> str:
    text = ""
    for name, facts in found["weights"].items():
        said = {
            "network": f"{facts['model']}, {facts['features']} features, {facts['size']} px",
            "trained on": ", ".join(facts["sources"]),
            "epoch": facts["epoch"],
            "networks": facts["members"],
            "CRF": f"{facts['crf_steps']} updates" if facts["crf_steps"] else "none",
            "made with": ", ".join(f"{key} {value}" for key, value in facts["versions"].items()),
            "sha256 of manifest.json": facts["manifest_sha256"],
        }
        text += f"<h3>{escape(name)}</h3>{fact_list(said)}"
    return text


def _footer(found: Mapping[str, Any]) -> str:
    return (
        f"<footer><p>{escape(found['notice'])} Written by mcis {escape(found['versions']['mcis'])}; "
        "report.json beside this page has every figure and every scan's row.</p></footer>"
    )
