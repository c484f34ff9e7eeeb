"""Every source has a datasheet with all headings, and the numbers of the model card."""

import pathlib
import re

import pytest
from mcis_datasets.mcis_scans.sources import SOURCES

ROOT = pathlib.Path(__file__).parents[1]
FIELDS = [
    "Purpose and authors",
    "Composition",
    "Acquisition",
    "Labels and outlines",
    "Consent and ethics",
    "Licence",
    "Known faults",
    "Splits",
]
TEXT = (ROOT / "docs" / "datasheets.md").read_text(encoding="utf-8")
SHEETS = dict(re.findall(r"(?ms)^## `(\w+)`\n(.*?)(?=^## |\Z)", TEXT))


def fields_of(sheet):
    return dict(re.findall(r"(?ms)^- \*\*(.+?):\*\* (.+?)(?=^- |\Z)", sheet))


def test_every_source_has_a_datasheet():
    assert set(SHEETS) == set(SOURCES)


@pytest.mark.parametrize("source", SOURCES)
def test_datasheet_has_every_heading_in_order(source):
    fields = fields_of(SHEETS[source])
    assert list(fields) == FIELDS
    assert all(text.strip() for text in fields.values())


@pytest.mark.parametrize("source", [name for name, row in SOURCES.items() if row.organ])
def test_splits_are_those_of_the_model_card(source):
    card = (ROOT / "docs" / "model_card.md").read_text(encoding="utf-8")
    names = {"busi": "BUSI", "busbra": "BUS-BRA", "uclm": "UCLM", "brest": "BrEaST", "lgg": "LGG", "br35h": "Br35H"}
    name = names.get(source, "Cheng" if source == "cheng" else source)
    sizes = re.search(rf"(?m)^\| {name} \| [\d,]+ \| [^|]+ \| ([\d, ]+) \|", card)[1]
    assert sizes in fields_of(SHEETS[source])["Splits"]
