"""The page of a report of `mcis predict` in a real browser, from disk: `make browser`. Screenshots go to ./browser.

The scans are phantoms of both organs, a series and a broken file. What the page shows is compared with findings.jsonl,
so it does not matter what the networks say.
"""

import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from playwright.sync_api import expect

from mcis.checkpoints import checkpoint
from mcis.checkpoints.bundle import BUNDLED
from mcis.imaging import phantom
from tests.fixtures.dicom_files import write_series
from tests.lanes.browser.chromium import SHOTS, browser, watch  # noqa: F401

SINGLE = 24
"""Files that are no part of the series: with it and the broken file there are two pages of 25 scans."""
SLICES = 3
NAMED = "<img src=x onerror=document.title='taken'>.png"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Folder of a report, and its findings, with their numbers."""
    folder, out = tmp_path_factory.mktemp("scans"), tmp_path_factory.mktemp("report") / "out"
    for index in range(SINGLE):
        organ = ("brain", "breast")[index % 2]
        image = phantom.make_phantom(organ, index // 2 % 2, index, size=(150, 160 + 2 * index)).image
        name = NAMED if index == 0 else f"{organ}_{index}.png"
        cv2.imwrite(str(folder / name), image[..., ::-1])
    (folder / "broken.png").write_bytes(b"no picture")
    slices = [phantom.make_phantom("brain", 1, seed, size=(150, 150)).image[..., 0] for seed in range(SLICES)]
    window = {"WindowCenter": "128", "WindowWidth": "256", "Modality": "MR"}
    write_series(folder / "series", slices, **window)
    weights = tmp_path_factory.mktemp("weights") / "strict"  # with a limit that makes some organs uncertain
    shutil.copytree(BUNDLED, weights)
    variables, manifest = checkpoint.load(weights / "route")
    checkpoint.save(weights / "route", variables | {"certain": np.float32(0.999)}, manifest, half=True)
    command = [sys.executable, "-m", "mcis", "predict", str(folder), f"--out={out}", f"--weights={weights}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "broken.png" in done.stderr, done.stderr  # 1: a scan could not be read
    lines = (out / "findings.jsonl").read_text().splitlines()
    return out, [{"index": index, **json.loads(line)} for index, line in enumerate(lines)]


@pytest.fixture
def page(browser, report):  # noqa: F811
    """The report's page, which loads files of its folder only, and logs no errors."""
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    page = context.new_page()
    wrong = watch(page, report[0].as_uri(), "data:")
    page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
    page.goto(f"{(report[0] / 'index.html').as_uri()}#size=100")
    expect(page.locator("#rows tr")).to_have_count(len(report[1]))
    yield page
    context.close()
    assert wrong == []


def expect_rows(page, rows):
    """The table has exactly these findings, in this order."""
    expect(page.locator("#rows td.n")).to_have_text([str(row["index"]) for row in rows])


def chip(page, name):
    return page.locator("#chips button").filter(has_text=name).first


def in_order(rows, value, down=False):
    """Findings by a value, equal ones in input order, those without one last; as the page sorts them."""
    known = sorted((row for row in rows if value(row) is not None), key=value)
    if down:  # equal ones stay in input order
        known = sorted(known, key=value, reverse=True)
    return known + [row for row in rows if value(row) is None]


def test_every_finding_is_a_row_with_its_picture(page, report):
    out, rows = report
    assert len(rows) == SINGLE + SLICES + 1
    expect_rows(page, rows)
    expect(page.locator("#notice")).to_contain_text("Not a medical device")
    expect(page.locator("#about")).to_contain_text(f"{len(rows)} scans")
    expect(page.locator("#about")).to_contain_text("1 error")
    expect(page.locator("#state")).to_have_text(f"1\u2013{len(rows)} of {len(rows)} scans")
    for row, shown in zip(rows, page.locator("#rows tr").all(), strict=True):
        expect(shown).to_contain_text(row["scan"].rsplit("/", 1)[1])
        expect(shown).to_contain_text("Error: " if row["error"] else row["label"] or row["organ"] or "unknown")
        expect(shown.get_by_text("organ uncertain")).to_have_count(int(row["organ_certain"] is False))
    assert {True, False} <= {row["organ_certain"] for row in rows}
    page.mouse.wheel(0, 20_000)  # pictures are loaded when they come into view
    page.wait_for_timeout(1000)
    sizes = page.evaluate("[...document.querySelectorAll('#rows img')].map(e => e.complete && e.naturalWidth)")
    assert len(sizes) == len(rows) - 1 and sizes[-1] and any(sizes)
    assert page.title() == "mcis findings", "a file name became markup"
    page.screenshot(path=SHOTS / "report.png")
    assert json.loads(page.locator("#run").text_content()) == json.loads((out / "run.json").read_text())


def test_filters_select_and_can_be_taken_back(page, report):
    _, rows = report
    for key in ("organ", "label"):
        for name in {row[key] for row in rows if row[key]}:
            chosen = [row for row in rows if row[key] == name]
            button = page.locator("#chips button").filter(has_text=f"{name}{len(chosen)}").first
            button.click()
            expect_rows(page, chosen)
            expect(page.locator("#chips button[aria-pressed=true]")).to_have_text([f"{name}{len(chosen)}"])
            assert f"{key}={name}" in page.url
            page.locator("#chips button[aria-pressed=true]").click()
            expect_rows(page, rows)
    chip(page, "errors").click()
    expect_rows(page, [row for row in rows if row["error"]])
    chip(page, "all").click()
    expect_rows(page, rows)
    page.keyboard.press("/")
    page.keyboard.type("BRAIN_")
    found = [row for row in rows if "brain_" in row["scan"]]
    assert 0 < len(found) < len(rows)
    expect_rows(page, found)
    page.locator("#q").fill("no such name")
    expect_rows(page, [])
    expect(page.locator("#state")).to_have_text("no scans")
    chip(page, "all").click()
    expect_rows(page, rows)


def test_each_column_sorts_in_both_directions(page, report):
    _, rows = report
    values = {
        "Sort by organ": lambda row: "error" if row["error"] else row["organ"],
        "Sort by probability of the organ": lambda row: row["organ_prob"],
        "Sort by label": lambda row: row["label"],
        "Sort by probability of the label": lambda row: (row["label_probs"] or {}).get(row["label"]),
        "Sort by confidence": lambda row: row["confidence"],
        "Sort by lesions": lambda row: None if row["boxes"] is None else len(row["boxes"]),
        "Sort by lesion area, pixels": lambda row: row["lesion_area_px"],
        "Sort by lesion area, mm": lambda row: row["lesion_area_mm2"],
        "Sort by longest diameter, pixels": lambda row: row["diameter_px"],
        "Sort by longest diameter, mm": lambda row: row["diameter_mm"],
        "Sort by #": lambda row: row["index"],
    }
    heads = page.locator("#heads button")
    assert heads.count() == len(values) + 1  # and the name
    for title, value in values.items():
        largest_first = any(word in title for word in ("lesion", "diameter"))
        for down in (largest_first, not largest_first):
            page.locator(f"#heads button[title^='{title}']").first.click()
            expect_rows(page, in_order(rows, value, down))
            said = page.locator("#heads th[aria-sort]")
            expect(said).to_have_count(1)
            assert said.get_attribute("aria-sort") == ("descending" if down else "ascending")
    page.locator("#heads button[title^='Sort by scan']").click()
    names = page.locator("#rows .name").all_text_contents()
    numbers = [int(name[6:-4]) for name in names if name.startswith("brain_")]
    assert numbers == sorted(numbers) and len(numbers) > 5, "2 comes before 10"


def test_a_volume_selects_its_slices(page, report):
    _, rows = report
    volumes = page.locator("#volumes tbody tr")
    expect(volumes).to_have_count(1)
    expect(volumes).to_contain_text(f"{SLICES}")
    slices = [row for row in rows if "/series/" in row["scan"]]
    assert len(slices) == SLICES and len({row["series"] for row in slices}) == 1
    volumes.locator("button.name").click()
    expect_rows(page, slices)
    expect(volumes.locator("button.name")).to_have_attribute("aria-pressed", "true")
    volumes.locator("button.name").click()
    expect_rows(page, rows)
    page.locator("#volumes summary").click()
    expect(volumes).not_to_be_visible()
    page.locator("#volumes summary").click()
    expect(volumes).to_be_visible()


def test_details_open_step_and_close_and_the_address_keeps_the_view(page, report):
    _, rows = report
    dialog = page.locator("#detail")
    page.locator("#scan1").click()
    expect(dialog).to_be_visible()
    expect(dialog).to_contain_text(f"2 of {len(rows)}")
    expect(dialog).to_contain_text(rows[1]["scan"].rsplit("/", 1)[1])
    expect(dialog).to_contain_text("Not a medical device")
    page.screenshot(path=SHOTS / "report_detail.png")
    page.keyboard.press("ArrowRight")
    expect(dialog).to_contain_text(f"3 of {len(rows)}")
    dialog.get_by_label("Previous scan").click()
    expect(dialog).to_contain_text(f"2 of {len(rows)}")
    address = page.url
    page.keyboard.press("Escape")
    expect(dialog).not_to_be_visible()
    assert page.evaluate("document.activeElement.id") == "scan1", "the keyboard is where it was"
    page.go_back()
    expect(dialog).to_be_visible()
    page.goto("about:blank")
    page.goto(address)
    expect(dialog).to_contain_text(f"2 of {len(rows)}")
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).not_to_be_visible()
    broken = next(row for row in rows if row["error"])
    page.locator(f"#scan{broken['index']}").click()
    expect(dialog).to_contain_text(broken["error"])


def test_pages_of_a_long_list(page, report):
    _, rows = report
    page.locator("#pager select").select_option("25")
    expect_rows(page, rows[:25])
    expect(page.locator("#state")).to_have_text(f"1\u201325 of {len(rows)} scans")
    page.locator("#pager").get_by_label("Next page").click()
    expect_rows(page, rows[25:])
    expect(page.locator("#pager2")).to_contain_text("2 / 2")
    assert page.locator("#pager").get_by_label("Last page").is_disabled()
    page.go_back()
    expect_rows(page, rows[:25])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_fits_a_phone(browser, report, scheme):  # noqa: F811
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True, is_mobile=True
    )
    page = context.new_page()
    wrong = watch(page, report[0].as_uri(), "data:")
    page.goto((report[0] / "index.html").as_uri())
    expect_rows(page, report[1])
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#sort").select_option("label")
    expect_rows(page, in_order(report[1], lambda row: row["label"]))
    page.locator("#reverse").click()
    expect_rows(page, in_order(report[1], lambda row: row["label"], down=True))
    page.screenshot(path=SHOTS / f"report_phone_{scheme}.png")
    context.close()
    assert wrong == []
