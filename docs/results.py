"""Fill the tables of results in README.md and docs/model_card.md, and the card's front matter, from one report.

    mcis evaluate mcis/weights --split=test --out=test/
    python docs/results.py test/report.json

The front matter is YAML as model hubs read it. The sentences around the tables are written by hand.
"""

import json
import pathlib
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
NAMES = {
    "busi": "BUSI",
    "busbra": "BUS-BRA",
    "uclm": "UCLM",
    "brest": "BrEaST",
    "lgg": "LGG",
    "br35h": "Br35H",
    "cheng": "Cheng",
    "healthy": "healthy",
    "notumor": "notumor",
}
"""Source -> its name in the tables, in their order."""
BREAST = {"busi", "busbra", "uclm", "brest"}
README_HEAD = "| [source](datasets/mcis_scans/README.md): scans, groups |"
CARD_HEAD = "| | scans, groups | accuracy | area under the ROC curve: malignant or tumour |"
FRONT = """\
license: other
license_name: research-use-only
license_link: mcis/weights/LICENSE
library_name: mcis
pipeline_tag: image-segmentation
tags:
- jax
- flax
- medical-imaging
- image-classification
- brain-mri
- breast-ultrasound
- research-use-only
datasets:
{datasets}
metrics:
- accuracy
- roc_auc
- dice
model-index:
- name: mcis bundled weights
  results:
"""
HUB = {"accuracy": "Accuracy", "roc_auc": "Area under the ROC curve", "dice": "Dice of lesion scans"}
"""Metric of the front matter -> its name."""


def text(metrics: dict[str, Any], name: str, interval: bool = True) -> str:
    """A metric to three decimals, with its interval unless that has no width; "" where it was not measured."""
    row = metrics.get(name)
    if row is None or row["value"] is None:
        return ""
    value, low, high = row["value"], row["low"], row["high"]
    wide = interval and low is not None and not low == high == value
    return f"{value:.3f}" + (f" [{low:.3f}, {high:.3f}]" if wide else "")


def keys(source: str) -> tuple[str, str, str]:
    """Names of sensitivity, specificity and area under the curve of a source's suspicious class."""
    if source in BREAST:
        return "sensitivity_breast_malignant", "sensitivity_breast_normal", "auc_breast_malignant"
    return "sensitivity_brain_tumor", "sensitivity_brain_no_tumor", "auc_brain_tumor"


def readme_row(source: str, row: dict[str, Any]) -> str:
    """A row of README.md's table."""
    metrics = row["metrics"]
    sensitivity, specificity, _ = keys(source)
    dice = text(metrics, "dice_lesion")
    if source == "lgg":
        dice = f"{text(metrics, 'dice_lesion', False)}; per patient {text(metrics, 'dice_patient')}"
    rejected = "0" if metrics["refused"]["value"] == 0 else text(metrics, "refused", False)
    cells = (text(metrics, "accuracy"), text(metrics, sensitivity), text(metrics, specificity), dice, rejected)
    return f"| {NAMES[source]}: {row['scans']}, {row['groups']} | " + " | ".join(cells) + " |"


def card_row(source: str, row: dict[str, Any]) -> str:
    """A row of the card's table."""
    metrics = row["metrics"]
    pooled = ", ".join(filter(None, (text(metrics, f"dice_patient{end}", False) for end in ("", "_median"))))
    cells = (
        text(metrics, "accuracy"),
        text(metrics, keys(source)[2]),
        text(metrics, "dice_lesion"),
        pooled,
        text(metrics, "false_masks", False),
        text(metrics, "refused"),
    )
    return f"| {NAMES[source]} | {row['scans']}, {row['groups']} | " + " | ".join(cells) + " |"


def front_matter(sources: dict[str, Any]) -> str:
    """The card's front matter, between lines of "---"."""
    lines = [FRONT.format(datasets="\n".join(f"- {source}" for source in NAMES if source in sources)).rstrip()]
    for source, name in NAMES.items():
        if source not in sources:
            continue
        metrics = sources[source]["metrics"]
        hub = {"accuracy": "accuracy", "roc_auc": keys(source)[2], "dice": "dice_lesion"}
        lines += [
            "  - task:",
            "      type: image-segmentation",
            "    dataset:",
            f"      name: {name}",
            f"      type: {source}",
            "      split: test",
            "    metrics:",
        ]
        for kind, key in hub.items():
            value = text(metrics, key, False)
            if value:
                lines += [f"    - type: {kind}", f"      name: {HUB[kind]}", f"      value: {value}"]
    return "---\n" + "\n".join(lines) + "\n---\n"


def replace_rows(page: str, head: str, rows: list[str]) -> str:
    """The page with other rows in the table whose first line starts with `head`.

    Raises:
      ValueError: the page has no such table.
    """
    lines = page.split("\n")
    found = [i for i, line in enumerate(lines) if line.startswith(head)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} tables start with {head!r}; there must be one")
    first = last = found[0] + 2
    while lines[last].startswith("|"):
        last += 1
    return "\n".join(lines[:first] + rows + lines[last:])


def fill(report: dict[str, Any], root: pathlib.Path = ROOT) -> None:
    """Fill both pages below `root` from a report of the cascade.

    Raises:
      ValueError: the report lacks a source of the tables, or is not of a cascade on the test split.
    """
    sources = report["sources"]
    missing = [source for source in NAMES if source not in sources]
    if report["task"] != "cascade" or report["split"] != "test" or missing:
        raise ValueError(
            f"the report is of {report['task']!r} on the split {report['split']!r} and lacks the sources {missing}; it "
            "must be of a bundle on the test split of all nine: mcis evaluate mcis/weights --split=test --out=test/"
        )
    readme, card = root / "README.md", root / "docs" / "model_card.md"
    rows = [readme_row(source, sources[source]) for source in NAMES]
    readme.write_text(replace_rows(readme.read_text(encoding="utf-8"), README_HEAD, rows), encoding="utf-8")
    body = card.read_text(encoding="utf-8")
    if body.startswith("---\n"):
        body = body.split("\n---\n", 1)[1].lstrip("\n")
    rows = [card_row(source, sources[source]) for source in NAMES]
    card.write_text(front_matter(sources) + "\n" + replace_rows(body, CARD_HEAD, rows), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    fill(json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")))
