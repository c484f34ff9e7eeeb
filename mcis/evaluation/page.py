"""An evaluation as one HTML page without scripts or external resources, made from its report, rows and gallery."""

import base64
import dataclasses
import pathlib
import string
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from mcis.evaluation import figures
from mcis.evaluation.descriptions import USES, meaning, scans_scored, uses_seen
from mcis.evaluation.gallery import PREDICTED, TRUE
from mcis.evaluation.headline import headline, main_part
from mcis.evaluation.html import cell, fact_list, figure, folded, head, metric_row, number, row, table
from mcis.evaluation.metrics import CASCADE, routed_right
from mcis.evaluation.page_by_attribute import attribute_section
from mcis.evaluation.page_calibration import calibration_section
from mcis.evaluation.page_clinical import clinical_section
from mcis.evaluation.page_masks import masks_section, metric_table, subsets_section
from mcis.inference.rows import UNSUPPORTED_INDEX, Rows
from mcis.organs import ORGAN_NAMES, ORGANS, UNSUPPORTED

TEMPLATE = pathlib.Path(__file__).with_name("page.html")


@dataclasses.dataclass(frozen=True)
class Card:
    """A scan of the gallery: its title, its image as JPEG, and names and values to show below it."""

    title: str
    image: bytes
    caption: Sequence[tuple[str, str]]


def page(found: Mapping[str, Any], rows: Rows, cards: Sequence[Card]) -> str:
    """The whole page.

    Args:
      found: the report as its JSON file has it (`metrics.report`, and what `mcis evaluate` adds).
      rows: the results that it was made of.
      cards: the gallery, in order.
    """
    sections = {
        "headline": ("In short", headline(found, rows)),
        "against": ("Compared with another evaluation", _against(found)),
        "lost": ("Where lesions were missed", _missed(found)),
        "clinical": ("The suspicious class", clinical_section(found)),
        "masks": ("Masks", masks_section(found, rows)),
        "subsets": ("By lesion, organ and class", subsets_section(found)),
        "by_attribute": ("By attribute", attribute_section(found)),
        "figures": ("All metrics", _metrics(found)),
        "classes": ("Curves and calibration", _classes(found, rows)),
        "heat": ("Saliency of the classifier", _pointing_game(found)),
        "gallery": ("Gallery", _gallery(cards)),
        "audit": ("Were these scans used in training?", _audit(found)),
        "fitted": ("Calibration on folds", calibration_section(found)),
        "weights": ("Weights", _weights(found)),
    }
    there = {name: (title, text) for name, (title, text) in sections.items() if text}
    nav = "".join(f'<a href="#{name}">{title}</a>' for name, (title, _) in there.items())
    body = "".join(f'<section id="{name}"><h2>{title}</h2>{text}</section>' for name, (title, text) in there.items())
    title = f"{found['task']}, {scans_scored(found)}"
    footer = (
        f"<footer><p>{escape(found['notice'])} Written by mcis {escape(found['versions']['mcis'])}; "
        "report.json in the same folder has all numbers and every scan's row.</p></footer>"
    )
    # substituted once: text from data that looks like a field of the template stays text
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title),
        body=f'<p class="notice" role="note">{escape(found["notice"])}</p>{_header(title, found)}'
        f"<main><nav>{nav}</nav>{body}</main>{footer}",
    )


def _header(title: str, found: Mapping[str, Any]) -> str:
    parts, used = found["sources"], uses_seen(found["audit"])
    facts = {
        "weights": found["run"],
        "scans": scans_scored(found),
        "sources": ", ".join(
            f"{name} ({p['scans']} scans, {p['groups']} groups)" for name, p in parts.items() if name != "all"
        ),
        "date": found["date"],
    }
    if found["task"] == CASCADE:
        facts["operating point"] = found.get("operating_point") or "none: a label is the most probable class"
    if "folder" in found:
        rejected, unsure = found["folder"]["rejected"], found["folder"]["contradictions"]
        facts["not scored"] = "; ".join(f"{one['scan']}: {one['reason']}" for one in rejected[:20]) or "none"
        if unsure:
            facts["class unknown"] = f"{unsure} sets of near-duplicates with contradictory labels"
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    clean = "no network was trained on these scans, or used them to choose epoch, CRF or limits"
    verdict = f"some of these scans {used}; see below" if used else clean
    audit = f'<dt>leak audit</dt><dd class="{"bad" if used else "good"}">{verdict}</dd>'
    return f"<header><h1>{escape(title)}</h1>{fact_list(facts, audit)}</header>"


def _metrics(found: Mapping[str, Any]) -> str:
    names = dict.fromkeys(name for part in found["sources"].values() for name in part["metrics"])
    if not names:
        return "<p>Neither classes nor masks of these scans are known: there is nothing to score.</p>"
    about = (
        "<p>Values with 95 % bootstrap intervals by group: a patient, or a cluster of near-duplicates. The definition "
        "of each is below, and where the pointer rests.</p>"
    )
    if (found.get("left_out") or found.get("unseen") or {}).get("runs", 1) > 1:
        about += (
            "<p>Each scan was predicted by networks that had not seen it. Where several networks predict, their "
            "probabilities, each on its own scale, are pooled, which lowers areas under curves slightly.</p>"
        )
    main, part = main_part(found)
    others = {name: one for name, one in found["sources"].items() if name != main}
    by_source = folded("By source", metric_table(others) if others else "")
    words = folded("Definitions", fact_list({name: meaning(name) for name in names}))
    return about + metric_table({main: part}) + by_source + words


def _against(found: Mapping[str, Any]) -> str:
    if "against" not in found:
        return ""
    rows = []
    for name, higher in found["against"]["metrics"].items():
        sure = higher["low"] is not None and (higher["low"] > 0 or higher["high"] < 0)
        cells = [cell(higher, "+"), f"<td class=why>{escape(meaning(name))}</td>"]
        rows.append(metric_row(name, cells, "sure" if sure else ""))
    return (
        f"<p>Each metric less that of {escape(found['against']['report'])}, on the same scans, with 95 % intervals by "
        f"group. Bold: the interval excludes 0.</p>{table('metric', [head('difference'), '<th></th>'], rows)}"
    )


def _missed(found: Mapping[str, Any]) -> str:
    parts = {}
    for name, part in found["sources"].items():
        if part.get("lost", {}).get("lesions"):
            stages = {stage: count for stage, count in part["lost"].items() if stage != "lesions"}
            parts[name] = {"found": part["lost"]["lesions"] - sum(stages.values())} | stages
    if not parts:
        return ""
    about = (
        "<p>Of the scans with a lesion: missed by the router, which rejected them or chose another organ; by the "
        "classifier, which predicted a class free of lesions; by the segmenter, whose mask does not touch the lesion "
        "or is empty; found. The gallery shows the worst, and the stage.</p>"
    )
    return about + figure(figures.shares(parts, "Where lesions were missed, by source"), "", broad=True)


def _classes(found: Mapping[str, Any], rows: Rows) -> str:
    """Curves, calibration and confusion matrix of each source; for the cascade of each organ and source."""
    texts = {}
    for name, part in found["sources"].items():
        text = ""
        here = np.ones(len(rows), bool) if name == "all" else rows.source == name
        for index, organ in enumerate(ORGANS):
            if organ.name in part.get("routed", {}):
                chosen = rows.take(here & routed_right(rows, index))
                probs = chosen.label_probs[:, : len(organ.classes)]
                text += _class_plots(
                    f"{name}, {organ.name}", part["routed"][organ.name], chosen.label, probs, organ.classes
                )
        if "confusion" in part:
            chosen = rows.take(here & (rows.label >= 0))
            text += _class_plots(name, part, chosen.label, chosen.probs, found["classes"])
        texts[name] = text
    text = texts.pop(main_part(found)[0])
    text += folded("By source", "".join(texts.values()))
    if not text or found["task"] != CASCADE:
        return text
    names = [*ORGAN_NAMES, UNSUPPORTED]
    there = [index for index in range(len(names)) if (rows.organ == index).any()]
    counts = [np.bincount(rows.said_organ[rows.organ == i], minlength=UNSUPPORTED_INDEX + 1).tolist() for i in there]
    organs = _confusion(counts, [names[i] for i in there], names)
    about = (
        "<p>On the scans that were routed to the right organ. Rejected scans and scans of a wrong organ are not in "
        "these curves; they are in the metrics above.</p>"
    )
    return f"<h3>Organs predicted by the router</h3>{organs}{about}{text}"


def _class_plots(
    title: str, part: Mapping[str, Any], label: np.ndarray, probs: np.ndarray, classes: Sequence[str]
) -> str:
    curves = {
        name: (probs[:, index], label == index)
        for index, name in enumerate(classes)
        if (label == index).any() and not (label == index).all()
    }
    drawn = []
    if curves:
        drawn.append(figure(figures.roc(curves, f"ROC curves, {title}"), "ROC, each class against the rest"))
        precision = figures.precision_recall(curves, f"Precision-recall curves, {title}")
        drawn.append(figure(precision, "precision and recall; dotted, the class's share"))
    found = part["reliability"]
    error = f"{found['error']:.3f}; for a calibrated model below {found['error_high']:.3f} in 95 % of such data sets"
    drawn.append(figure(figures.reliability(found, f"Reliability, {title}"), f"calibration error {error}"))
    confusion = _confusion(part["confusion"], classes, classes)
    drawn.append(figure(confusion, "confusion matrix: scans, share of the true class"))
    few = "" if curves else '<p class="quiet">All scans are of one class: there are no curves.</p>'
    return f'<h3>{escape(title)}, {len(label)} scans of known class</h3>{few}<div class="plots">{"".join(drawn)}</div>'


def _confusion(counts: Sequence[Sequence[int]], true: Sequence[str], predicted: Sequence[str]) -> str:
    """[true][predicted] counts, shaded by their share of the row."""
    rows = []
    for name, line in zip(true, counts, strict=True):
        shares = ((n, n / max(sum(line), 1)) for n in line)
        rows.append(row(name, [f'<td style="--share:{s:.3f}">{n}<br><small>{s:.0%}</small></td>' for n, s in shares]))
    return table("true \\ predicted", [f"<th>{escape(name)}</th>" for name in predicted], rows, "confusion")


def _pointing_game(found: Mapping[str, Any]) -> str:
    game = found.get("heat")
    if not game:
        return ""
    ends = "no interval" if game["low"] is None else f"95 % interval by group {game['low']:.2f} to {game['high']:.2f}"
    return (
        f"<p>Saliency maps of {game['scans']} lesion scans of {game['groups']} groups whose class was predicted: the "
        f"region whose hiding lowers the probability of the class most lies in the lesion for {game['in_lesion']:.0%} "
        f"of them ({ends}). A random point does for {game['by_chance']:.0%}. The gallery shows maps.</p>"
    )


def _gallery(cards: Sequence[Card]) -> str:
    if not cards:
        return ""
    keys = "".join(
        f'<span class="key" style="border-top: {width}px solid rgb{colour}"></span>{name}'
        for name, colour, width in (("true outline", TRUE, 4), ("predicted outline", PREDICTED, 2))
    )
    text = f"<p>{keys}. The scans were chosen by their results and predicted again for these images.</p>"
    for title in dict.fromkeys(card.title for card in cards):
        shown = "".join(_card(card) for card in cards if card.title == title)
        text += f'<h3>{escape(title)}</h3><div class="cards">{shown}</div>'
    return text


def _card(card: Card) -> str:
    words = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in card.caption)
    coded = base64.b64encode(card.image).decode()
    alt = escape(card.caption[0][1])
    return f'<figure class="card"><img alt="{alt}" src="data:image/jpeg;base64,{coded}"><dl>{words}</dl></figure>'


def _audit(found: Mapping[str, Any]) -> str:
    audit = found["audit"]
    rows = []
    for name, uses in audit["networks"].items():
        counts = [uses.get(use, {"used": 0, "scored": 0}) for use in USES]
        cells = [number(c["used"]) + number(c["scored"], "bad" if c["scored"] else "good") for c in counts]
        rows.append(row(name, cells))
    heads = [head(use) + head("of these scored") for use in ("trained on", "used to choose")]
    return (
        f"<p>{audit['scans']} scans were scored, with {audit['fingerprints']} different contents, of {audit['groups']} "
        "groups. Weights list the fingerprints of the scans that they were trained on, and of those that chose epoch, "
        "CRF or limits; the table counts the scored scans among them. A proper test has 0 everywhere. A fingerprint "
        "identifies an image pixel by pixel; near-duplicates and copies of another size have other fingerprints and "
        "are not counted. The builder keeps near-duplicates of a data set in one split; a test on copies of published "
        f"scans is rejected by their names.</p>{table('network', heads, rows)}"
    )


def _weights(found: Mapping[str, Any]) -> str:
    text = ""
    for name, facts in found["weights"].items():
        shown = {
            "network": f"{facts['model']}, {facts['features']} features, {facts['size']} px",
            "trained on": ", ".join(facts["sources"]),
            "epoch": facts["epoch"],
            "networks": facts["members"],
            "CRF": f"{facts['crf_steps']} updates" if facts["crf_steps"] else "none",
            "made with": ", ".join(f"{key} {value}" for key, value in facts["versions"].items()),
            "sha256 of manifest.json": facts["manifest_sha256"],
        }
        text += f"<h3>{escape(name)}</h3>{fact_list(shown)}"
    return text
