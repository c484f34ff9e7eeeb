"""The reporting checklists answer every item, and their links lead to headings that exist."""

import pathlib
import re

import pytest

DOCS = pathlib.Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "reporting.md").read_text(encoding="utf-8")
LETTERS = {3: "abc", 5: "ab", 6: "abc", 8: "abc", 9: "abc", 12: "abcdefg", 18: "abcdef", 20: "abc", 23: "ab", 27: "abc"}
ITEMS = {
    "CLAIM 2024": [str(item) for item in range(1, 45)],
    "TRIPOD+AI": [f"{item}{letter}" for item in range(1, 28) for letter in LETTERS.get(item, [""])],
}
LINKS = sorted(set(re.findall(r"\]\(([\w./]+)(?:#([\w-]+))?\)", TEXT)))


@pytest.mark.parametrize("name", ITEMS)
def test_every_item_is_answered_once_and_in_order(name):
    part = TEXT.split(f"\n## {name}\n")[1].split("\n## ")[0]
    rows = re.findall(r"(?m)^\| (\d+[a-g]?) \| (.+?) \| (.+) \|$", part)
    assert [item for item, *_ in rows] == ITEMS[name]
    assert all(topic.strip() and answer.strip() for _, topic, answer in rows)


@pytest.mark.parametrize(("page", "anchor"), LINKS)
def test_links_lead_to_headings(page, anchor):
    text = (DOCS / page).read_text(encoding="utf-8")
    titles = re.findall(r"(?m)^#+ (.+)$", text)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert not anchor or anchor in anchors
