"""The published results: the card's front matter and tables have the figures of a report and of the bundled weights."""

import importlib
import pathlib
import re
import shutil
import sys

import pytest
import yaml
from mcis_datasets.mcis_scans.sources import SOURCES

ROOT = pathlib.Path(__file__).parents[1]
with pytest.MonkeyPatch.context() as patch:  # as for `python docs/calibration.py`
    patch.setattr(sys, "path", [str(ROOT / "docs"), *sys.path])
    results, calibration = (importlib.import_module(name) for name in ("results", "calibration"))


def front_of(root):
    text = (root / "docs" / "model_card.md").read_text(encoding="utf-8")
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def cells_of(page, head):
    """Name of a source -> the cells of its row, without intervals."""
    lines = page.read_text(encoding="utf-8").split("\n")
    first = next(i for i, line in enumerate(lines) if line.startswith(head)) + 2
    rows = {}
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        name, *cells = [re.sub(r" \[.*?\]", "", cell.strip()) for cell in line.strip("|").split("|")]
        rows[name.split(":")[0]] = cells
    return rows


def test_front_matter_has_the_keys_of_model_hubs_and_the_published_sources():
    front = front_of(ROOT)
    assert front["license"] == "other" and (ROOT / front["license_link"]).is_file()
    assert front["library_name"] == "mcis" and front["pipeline_tag"] == "image-segmentation"
    assert set(front["datasets"]) == {name for name, row in SOURCES.items() if row.organ}
    assert set(front["metrics"]) == set(results.HUB)
    for row in front["model-index"][0]["results"]:
        assert set(row) == {"task", "dataset", "metrics"}
        assert {metric["type"] for metric in row["metrics"]} <= set(front["metrics"])


def test_front_matter_and_tables_have_the_same_figures():
    card = cells_of(ROOT / "docs" / "model_card.md", results.CARD_HEAD)
    readme = cells_of(ROOT / "README.md", results.README_HEAD)
    found = front_of(ROOT)["model-index"][0]["results"]
    assert [row["dataset"]["name"] for row in found] == list(card) == list(readme) == list(results.NAMES.values())
    for row in found:
        name = row["dataset"]["name"]
        values = {metric["type"]: f"{metric['value']:.3f}" for metric in row["metrics"]}
        _, accuracy, auc, dice, *_ = card[name]
        assert [values.get(kind, "") for kind in ("accuracy", "roc_auc", "dice")] == [accuracy, auc, dice], name
        assert readme[name][0] == accuracy and readme[name][3].split(";")[0] == dice, name


def report():
    """A report whose sources have different figures; the source `healthy` has no lesions."""
    sources = {}
    for number, source in enumerate(results.NAMES):
        value = {"value": 0.5 + number / 100, "low": 0.25, "high": 0.75}
        names = ("accuracy", *results.keys(source), "dice_lesion", "dice_patient", "dice_patient_median", "false_masks")
        metrics = {name: dict(value) for name in names} | {"refused": {"value": 0.0, "low": 0.0, "high": 0.0}}
        if source == "healthy":
            metrics = {name: metrics[name] for name in ("accuracy", "refused")}
        sources[source] = {"scans": 10 + number, "groups": 4, "metrics": metrics}
    return {"task": "cascade", "split": "test", "sources": sources}


def test_the_script_fills_tables_and_front_matter_from_one_report(tmp_path):
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/model_card.md"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    results.fill(report(), tmp_path)
    card, readme = tmp_path / "docs" / "model_card.md", tmp_path / "README.md"
    assert "| BUS-BRA: 11, 4 | 0.510 [0.250, 0.750] | 0.510 [0.250, 0.750] |" in readme.read_text(encoding="utf-8")
    assert cells_of(card, results.CARD_HEAD)["LGG"] == ["14, 4", *["0.540"] * 3, "0.540, 0.540", "0.540", "0.000"]
    assert cells_of(card, results.CARD_HEAD)["healthy"] == ["17, 4", "0.570", "", "", "", "", "0.000"]
    found = {row["dataset"]["type"]: row["metrics"] for row in front_of(tmp_path)["model-index"][0]["results"]}
    assert [metric["value"] for metric in found["cheng"]] == [0.56, 0.56, 0.56]
    assert [(metric["type"], metric["value"]) for metric in found["healthy"]] == [("accuracy", 0.57)]
    before = card.read_bytes()
    results.fill(report(), tmp_path)
    assert card.read_bytes() == before  # a second time changes nothing


def test_a_report_of_something_else_is_refused(tmp_path):
    other = report()
    del other["sources"]["lgg"]
    with pytest.raises(ValueError, match=r"lacks the sources \['lgg'\]"):
        results.fill(other, tmp_path)


def test_the_card_has_what_was_fitted_to_the_bundled_weights():
    lines = (ROOT / "docs" / "model_card.md").read_text(encoding="utf-8").split("\n")
    for head, rows in calibration.tables(ROOT / "mcis" / "weights").items():
        (first,) = (number for number, line in enumerate(lines) if line.startswith(head))
        assert lines[first + 2 : first + 2 + len(rows)] == rows, f"{head}: run `python docs/calibration.py`"
        assert not lines[first + 2 + len(rows)].startswith("|")
        assert {row.count("|") for row in rows} == {lines[first].count("|")}
