"""The report: the content and form of its files, and that nothing is lost or overwritten."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest

import mcis
from mcis import files
from mcis.imaging import overlay
from mcis.report import finding
from mcis.report import page as report_page
from mcis.report import writer as report_writer
from mcis.report.finding import Finding, ReportError
from mcis.report.writer import ReportWriter

HOSTILE = "a/</script><img src=x onerror=alert(1)>__DATA__`${x}'\"\u2028\u202e.png"
NOT_UTF8 = os.fsdecode(b"b/\xff\xe9.png")


def disc(height=60, width=80, at=(30, 40), radius=12):
    y, x = np.mgrid[:height, :width]
    return ((y - at[0]) ** 2 + (x - at[1]) ** 2 <= radius**2).astype(np.uint8)


def picture(height=60, width=80):
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)


def lines_of(out):
    return [json.loads(line) for line in (out / "findings.jsonl").read_bytes().splitlines()]


def head_of(out):
    page = (out / "index.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def rows_of(out):
    """The page's rows as the browser gets them: (chunk number, rows) of each script file."""
    for path in sorted((out / "page").glob("rows_*.js")):
        number, rows = re.fullmatch(r"mcisRows\((\d+),(\[.*\])\)\n", path.read_text(encoding="ascii"), re.S).groups()
        assert path.name == f"rows_{int(number):04}.js"
        yield int(number), json.loads(rows)


def test_a_line_has_every_key_in_order():
    keys = ["scan", "frame", "organ", "organ_prob", "label", "label_probs", "mask", "boxes"]
    line = Finding("a.png").to_json()
    keys += ["lesion_area_px", "error", "reason", "notes", "confidence", "review", "diameter_px", "spacing_mm"]
    keys += ["lesion_area_mm2", "diameter_mm", "series", "position_mm", "slice_normal", "header", "label_set"]
    keys += ["outer_area_px", "outer_area_share", "outer_box", "organ_certain"]
    assert list(json.loads(line)) == keys
    assert set(json.loads(line).values()) == {"a.png", None}


def test_numbers_in_a_line_are_rounded_and_finite():
    finding = Finding(
        "a", np.int64(3), "brain", np.float32(1 / 3), "tumor", {"tumor": np.float32(0.1), "no_tumor": float("nan")}
    )
    values = json.loads(finding.to_json())
    assert values["frame"] == 3
    assert values["organ_prob"] == 0.333333
    assert values["label_probs"] == {"tumor": 0.1, "no_tumor": None}


def test_a_finding_with_an_error_has_no_other_values():
    with pytest.raises(ValueError, match="must have no other values"):
        Finding("a.png", organ="brain", error="broken")
    assert Finding("a.dcm", error="broken", series="00").series == "00"


def test_boxes_are_8_connected_largest_first_then_by_position():
    mask = np.array(
        [
            [1, 0, 0, 0, 0, 0, 1],
            [0, 1, 0, 0, 0, 0, 0],  # touches the one above at a corner: one lesion
            [0, 0, 0, 1, 1, 1, 0],
            [0, 0, 0, 1, 0, 0, 0],
            [1, 0, 0, 0, 0, 0, 1],
        ],
        np.uint8,
    )
    assert finding.boxes_of(mask) == [[3, 2, 3, 2], [0, 0, 2, 2], [6, 0, 1, 1], [0, 4, 1, 1], [6, 4, 1, 1]]
    assert finding.boxes_of(np.zeros((4, 5), np.uint8)) == []
    assert finding.boxes_of(np.ones((4, 5), np.uint8)) == [[0, 0, 5, 4]]


def drawn(*rows):
    return np.array([[character == "#" for character in row] for row in rows], np.uint8)


@pytest.mark.parametrize(
    ("mask", "spacing", "diameter"),
    [
        (drawn("...", "..."), (1, 1), 0.0),
        (drawn("...", ".#."), (1, 1), 1.0),
        (drawn("...", ".#."), (2, 0.5), 2.0),
        (drawn("####", "...."), (1, 1), 4.0),
        (drawn("####", "...."), (1, 0.25), np.hypot(0.75, 1)),
        (drawn("#...", ".#..", "..#."), (1, 1), np.hypot(2, 3)),  # from an upper edge to a lower one, or left to right
        (drawn("####", "....", "#...", "#...", "#..."), (1, 1), 4.0),  # of the largest
        (drawn("###", "#.#", "###"), (1, 1), np.hypot(2, 3)),
    ],
)
def test_the_longest_diameter_is_the_maximum_feret_diameter(mask, spacing, diameter):
    assert finding.diameter_of(mask, spacing) == pytest.approx(diameter)


def test_the_diameter_of_a_disc():
    mask = cv2.circle(np.zeros((100, 100), np.uint8), (50, 50), 30, 1, -1)
    assert finding.diameter_of(mask) == pytest.approx(61, abs=0.6)
    assert finding.diameter_of(mask, (0.5, 0.5)) == pytest.approx(30.5, abs=0.3)
    found = finding.measured(Finding("a", spacing_mm=[0.5, 0.25]), mask)
    assert found.lesion_area_mm2 == pytest.approx(int(mask.sum()) * 0.125)
    assert found.diameter_mm == pytest.approx(30.5, abs=0.3) and found.diameter_px == pytest.approx(61, abs=0.6)


@pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255), (128, 128, 128), (255, 214, 10), (40, 200, 60)])
def test_the_outline_is_visible_on_any_background(background):
    mask, image = disc(), np.full((60, 80, 3), background, np.uint8)
    drawn = overlay.overlay(image, mask)
    luma = cv2.cvtColor(drawn, cv2.COLOR_RGB2GRAY)
    edge = luma[(cv2.dilate(mask, np.ones((7, 7), np.uint8)) > 0) & (mask == 0)]
    assert int(edge.max()) - int(edge.min()) > 100
    assert (drawn[:10] == image[:10]).all()  # away from the lesion nothing changes
    centre = drawn[30, 40].astype(int) - image[30, 40]
    assert np.abs(centre).max() <= 0.11 * 255  # the fill is faint


def test_an_empty_mask_draws_nothing_and_the_scan_is_not_modified():
    image = picture()
    kept = image.copy()
    drawn = overlay.overlay(image, np.zeros((60, 80), np.uint8))
    assert (drawn == image).all()
    assert not np.shares_memory(drawn, image)
    overlay.overlay(image, disc())
    assert (image == kept).all()


def test_the_files_of_a_run(tmp_path):
    mask = disc() | disc(at=(5, 5), radius=2)
    with ReportWriter(tmp_path / "a" / "b", {"threshold": 0.5, "place": pathlib.Path("x")}) as writer:
        probs = {"no_tumor": 0.01, "tumor": 0.99}
        first = writer.add(Finding("s/benign (1).png", 0, "brain", 0.9, "tumor", probs), picture(), mask)
        writer.add(Finding("s/none.png", None, "brain", 0.9, "tumor", probs), picture(), np.zeros((60, 80), np.uint8))
        writer.add(Finding("s/not asked.png", None, "breast", 0.9, "normal", {"normal": 1.0}, review=True), picture())
        writer.add(Finding("s/cat.jpg", None, "unsupported", 0.4, reason="blank: nearly all"), picture())
        writer.add(Finding("s/broken.png", error="not a readable picture"))
    out = tmp_path / "a" / "b"
    found, none, unasked, cat, broken = lines_of(out)

    assert found == json.loads(first.to_json())
    assert found["mask"] == "masks/000000_benign_1.png"
    assert found["boxes"] == [[28, 18, 25, 25], [3, 3, 5, 5]]
    assert found["lesion_area_px"] == mask.sum()
    assert (none["boxes"], none["lesion_area_px"]) == ([], 0)
    for line in (unasked, cat, broken):
        assert line["mask"] is line["boxes"] is line["lesion_area_px"] is None
    assert (cat["organ"], cat["label"]) == ("unsupported", None)
    assert [key for key, value in broken.items() if value is not None] == ["scan", "error"]

    stored = cv2.imread(str(out / found["mask"]), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint8
    assert (stored == 255 * mask).all()  # one channel, the scan's size
    assert not cv2.imread(str(out / none["mask"]), cv2.IMREAD_UNCHANGED).any()
    overlays = sorted(path.name for path in (out / "overlays").iterdir())
    assert overlays == ["000000_benign_1.jpg", "000001_none.jpg", "000002_not_asked.jpg", "000003_cat.jpg"]
    assert cv2.imread(str(out / "overlays" / overlays[0])).shape == (60, 80, 3)

    run = json.loads((out / "run.json").read_text())
    assert (run["status"], run["notice"], run["options"]["place"]) == ("complete", mcis.NOTICE, "x")
    assert {"mcis", "python", "numpy", "opencv"} <= set(run["versions"])
    assert run["started"] <= run["finished"]
    assert run["counts"] == writer.counts
    assert {key: run["counts"][key] for key in ("scans", "errors", "lesions")} == {
        "scans": 5,
        "errors": 1,
        "lesions": 2,
    }
    assert run["counts"]["review"] == 1
    assert run["counts"]["organs"] == {"brain": 2, "breast": 1, "unsupported": 1}
    assert run["counts"]["reasons"] == {"blank": 1}
    assert run["counts"]["labels"] == {"no_tumor": 0, "tumor": 2, "normal": 1, "benign": 0, "malignant": 0}


def test_the_page_holds_every_row(tmp_path, monkeypatch):
    monkeypatch.setattr(report_page, "CHUNK", 4)
    names = [HOSTILE, NOT_UTF8, *(f"{i}.png" for i in range(9))]
    with ReportWriter(tmp_path, {}) as writer:
        for i, name in enumerate(names):
            writer.add(Finding(name, error="<b>x</b>") if i % 5 == 4 else Finding(name, organ="brain", organ_prob=0.5))
    head, rows = head_of(tmp_path), []
    for number, chunk in rows_of(tmp_path):
        assert len(rows) == number * head["chunk"]
        rows += chunk
    page = [dict(zip(head["keys"], row, strict=True)) for row in rows]
    assert [{key: row[key] for key in finding.KEYS} for row in page] == lines_of(tmp_path)
    assert head["run"] == json.loads((tmp_path / "run.json").read_text())


def test_malicious_file_names_are_escaped(tmp_path):
    with ReportWriter(tmp_path, {"paths": [HOSTILE, NOT_UTF8]}) as writer:
        for name in (HOSTILE, NOT_UTF8, "../../etc/passwd", "x/" + "long" * 200 + ".png", "日本.png", ".png", "..", ""):
            writer.add(Finding(name), picture(), disc())
    assert [line["scan"] for line in lines_of(tmp_path)][:2] == [HOSTILE, NOT_UTF8]
    assert os.fsencode(lines_of(tmp_path)[1]["scan"]) == b"b/\xff\xe9.png"
    for line in lines_of(tmp_path):
        assert re.fullmatch(r"masks/\d{6}_[A-Za-z0-9][A-Za-z0-9._-]{0,59}\.png", line["mask"])
        assert (tmp_path / line["mask"]).is_file()
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count("</script>") == 2  # the page's own two
    assert "<img" not in page
    assert head_of(tmp_path)["run"]["options"]["paths"] == [HOSTILE, NOT_UTF8]
    assert not [path for path in (tmp_path / "page").iterdir() if b"<" in path.read_bytes()]


def test_the_page_has_the_notice_and_loads_nothing_from_other_servers(tmp_path):
    with ReportWriter(tmp_path, {}) as writer:
        pass
    assert writer.counts["scans"] == 0
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert mcis.NOTICE in page.split("<script")[0]  # without JavaScript too
    assert not re.findall(r"https?:|//[a-z]+\.|@import|url\(", page)


def test_large_scans_have_reduced_overlays_and_full_size_masks(tmp_path, monkeypatch):
    monkeypatch.setattr(overlay, "SIDE", 40)
    mask = np.zeros((60, 80), np.uint8)
    mask[31, 41] = 1  # less than a pixel of the overlay
    with ReportWriter(tmp_path, {}) as writer:
        finding = writer.add(Finding("a.png"), np.zeros((60, 80, 3), np.uint8), mask)
    drawn = cv2.imread(str(tmp_path / "overlays/000000_a.jpg"))
    assert drawn.shape == (30, 40, 3)
    assert drawn.max() > 100  # still outlined
    assert (finding.boxes, finding.lesion_area_px) == ([[41, 31, 1, 1]], 1)
    assert cv2.imread(str(tmp_path / finding.mask), cv2.IMREAD_UNCHANGED).shape == (60, 80)


def test_a_mask_of_another_size_is_an_error(tmp_path):
    with ReportWriter(tmp_path, {}) as writer, pytest.raises(ValueError, match="height, width"):
        writer.add(Finding("a.png"), picture(), disc(50, 80))


def test_a_report_is_not_overwritten_by_default(tmp_path):
    with ReportWriter(tmp_path, {}) as writer:
        writer.add(Finding("a.png", organ="brain"), picture(), disc())
    before = (tmp_path / "findings.jsonl").read_bytes()
    with pytest.raises(ReportError, match="contains a report already"):
        ReportWriter(tmp_path, {})
    assert (tmp_path / "findings.jsonl").read_bytes() == before
    (tmp_path / "file").touch()
    with pytest.raises(ReportError, match="needs a folder"):
        ReportWriter(tmp_path / "file", {})


def test_overwriting_removes_only_the_files_of_the_report(tmp_path):
    with ReportWriter(tmp_path, {}) as writer:
        for name in ("a.png", "b.png"):
            writer.add(Finding(name, organ="brain"), picture(), disc())
    others = [tmp_path / "notes.txt", tmp_path / "masks" / "000000_other.png", tmp_path / "page" / "keep.js"]
    for path in others:
        path.write_text("other")
    with ReportWriter(tmp_path, {}, overwrite=True) as writer:
        writer.add(Finding("c.png", error="broken"))
    assert [line["scan"] for line in lines_of(tmp_path)] == ["c.png"]
    assert all(path.read_text() == "other" for path in others)
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["000000_other.png"]
    assert not list((tmp_path / "overlays").iterdir())


def test_overwriting_fails_if_the_file_is_not_a_report(tmp_path):
    (tmp_path / "findings.jsonl").write_text('{"scan": "a.png"}\n{"name": 1}\n')
    with pytest.raises(ReportError, match="line 2 is not a finding"):
        ReportWriter(tmp_path, {}, overwrite=True)
    assert (tmp_path / "findings.jsonl").exists()


def test_after_an_exception_lines_and_page_are_complete_and_name_it(tmp_path):
    def run_until_stopped(writer):
        with writer:
            writer.add(Finding("a.png", organ="brain"))
            raise KeyboardInterrupt

    writer = ReportWriter(tmp_path, {})
    with pytest.raises(KeyboardInterrupt):
        run_until_stopped(writer)
    assert len(lines_of(tmp_path)) == len(next(rows_of(tmp_path))[1]) == 1
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["status"], run["error"]) == ("stopped", "KeyboardInterrupt()")
    writer.close()  # has no effect
    assert json.loads((tmp_path / "run.json").read_text()) == run


def test_a_killed_run_keeps_every_line_and_needs_no_jax(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from mcis.report.finding import Finding\n"
        "from mcis.report.writer import ReportWriter\n"
        "assert not {'jax', 'flax', 'tensorflow'} & set(sys.modules)\n"
        "writer = ReportWriter(sys.argv[1], {})\n"
        "for i in range(7): writer.add(Finding(f'{i}.png', organ='brain'))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [line["scan"] for line in lines_of(tmp_path)] == [f"{i}.png" for i in range(7)]
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "running"
    with (tmp_path / "findings.jsonl").open("ab") as file:
        file.write(b'{"scan": "cut sho')  # as after a full disk
    assert len(list(finding.read_findings(tmp_path / "findings.jsonl"))) == 7


def test_the_page_is_updated_during_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(report_writer, "REFRESH_SECONDS", 0.0)
    writer = ReportWriter(tmp_path, {})
    for count in (1, 2):
        writer.add(Finding("a.png", organ="brain"))
        assert head_of(tmp_path)["run"]["counts"]["scans"] == len(next(rows_of(tmp_path))[1]) == count
        assert head_of(tmp_path)["run"]["status"] == "running"
    writer.close()
    assert head_of(tmp_path)["run"]["status"] == "complete"


def volume_rows_of(out):
    for path in sorted((out / "page").glob("volumes_*.js")):
        text = path.read_text(encoding="ascii")
        number, rows = re.fullmatch(r"mcisVolumes\((\d+),(\[.*\])\)\n", text, re.S).groups()
        assert path.name == f"volumes_{int(number):04}.js"
        yield from json.loads(rows)


def test_every_volume_has_a_line_and_one_of_several_slices_a_row_of_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(report_page, "CHUNK", 2)
    with ReportWriter(tmp_path, {}) as writer:
        writer.add(Finding("picture.png", organ="brain"))
        for series in "abcde":
            for position in (0.0, 2.0) if series != "b" else (0.0,):
                writer.add(Finding(HOSTILE + series, None, "brain", series=series, position_mm=position))
        writer.add_segmentations("c", ["elsewhere/c.dcm"], ["no segmentation: x"])
    lines = [json.loads(line) for line in (tmp_path / "volumes.jsonl").read_text().splitlines()]
    assert [line["series"] for line in lines] == list("abcde") and [line["slices"] for line in lines] == [2, 1, 2, 2, 2]
    assert (lines[2]["segmentations"], lines[2]["notes"]) == (["elsewhere/c.dcm"], ["no segmentation: x"])
    head = head_of(tmp_path)
    rows = [dict(zip(head["volumeKeys"], row, strict=True)) for row in volume_rows_of(tmp_path)]
    assert rows == [line for line in lines if line["slices"] > 1] and head["volumes"] == 4 and not head["mm"]
    assert not [path for path in (tmp_path / "page").iterdir() if b"<" in path.read_bytes()]


def test_a_report_without_volumes_has_no_volumes_file(tmp_path):
    with ReportWriter(tmp_path, {}) as writer:
        writer.add(Finding("a.png", organ="brain"))
    assert not (tmp_path / "volumes.jsonl").exists() and head_of(tmp_path)["volumes"] == 0


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        b'{"scan":' * 100_000,
        b'{"scan": 5}',
        b'{"scan": "a", "organ": ["brain"]}',
        b'{"scan": "a", "boxes": 5}',
        b'{"scan": "a", "boxes": [["x", 1, 2, 3]]}',
        b'{"scan": "a", "error": 5}',
        b'{"scan": "a", "review": "yes"}',
        b'{"scan": "a", "label_probs": [1]}',
        b"5",
    ],
)
def test_a_line_that_is_not_a_finding_is_an_error_with_its_number(line, tmp_path):
    path = tmp_path / "findings.jsonl"
    path.write_bytes(Finding("a", organ_prob=1.0, spacing_mm=[1.0, 2.0]).to_json().encode() + b"\n" + line + b"\n")
    with pytest.raises(ReportError, match="line 2 is not a finding"):
        list(finding.read_findings(path))


def test_numbers_that_are_not_finite_are_read_as_none(tmp_path):
    path = tmp_path / "findings.jsonl"
    path.write_text(Finding("a", organ_prob=1, label_probs={"tumor": float("nan")}).to_json() + "\n")
    assert list(finding.read_findings(path)) == [Finding("a", organ_prob=1, label_probs={"tumor": None})]


def test_pipes_devices_and_overlong_lines_are_not_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        with pytest.raises(ReportError, match="not a regular file"):
            next(finding.read_findings(tmp_path / name))
    monkeypatch.setattr(files, "MAX_LINE", 100)
    (tmp_path / "long").write_bytes(b'{"scan": "' + b"a" * 200)
    with pytest.raises(ReportError, match="line 1 is not a finding"):
        next(finding.read_findings(tmp_path / "long"))
