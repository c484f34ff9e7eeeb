"""The page of `mcis serve` in a real browser, with a server process: `make browser`. Screenshots go to ./browser.

The scans are phantoms, on which the weights were not trained: the tests only check that the page shows the findings.
"""

import base64
import concurrent.futures
import csv
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.request
import zipfile

import cv2
import httpx2 as httpx
import numpy as np
import pydicom
import pytest
from playwright.sync_api import Page, expect

from mcis.imaging import phantom
from tests.fixtures.dicom_files import CANARY, dataset, write_series
from tests.lanes.browser.chromium import SHOTS, browser, watch  # noqa: F401

TOKEN = "a-token-of-the-test"
YELLOW = (255, 214, 10)


def start(*options, **environment):
    """A server process and its address, once it is ready."""
    command = [sys.executable, "-m", "mcis", "serve", "--port=0", "--task=segment_breast", "--members=1", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )
    line = process.stdout.readline().strip()
    assert line.startswith("http://"), (line, process.poll() is not None and process.stderr.read())
    return process, line


def end(process):
    """Terminate a server; what it printed on standard error."""
    process.send_signal(signal.SIGTERM)
    return process.communicate(timeout=30)[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    temporary = tmp_path_factory.mktemp("temporary")
    process, address = start(TMPDIR=str(temporary))
    yield address
    assert end(process) == "", "a server logs nothing about requests"
    assert not list(temporary.iterdir())


@pytest.fixture
def page(browser, server):  # noqa: F811
    """A new page that sends requests only to the server and logs no errors."""
    context = browser.new_context(viewport={"width": 1280, "height": 860}, accept_downloads=True)
    page = context.new_page()
    wrong = watch(page, server, "data:", "blob:")
    page.goto(server)
    yield page
    context.close()
    assert wrong == []


def scan(seed=1, label=2, size=(300, 400)):
    return phantom.make_phantom("breast", label, seed, size=size).image


def png(image):
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def upload(page: Page, *files, done=None):
    """Upload files, (name, bytes), and wait until all are analysed."""
    given = [{"name": name, "mimeType": "application/octet-stream", "buffer": data} for name, data in files]
    page.set_input_files("#pick", given)
    expect(page.locator("#state")).to_contain_text(
        f"{done or len(files)} of {done or len(files)} done", timeout=120_000
    )


def until(page, true, seconds=240):
    """Wait until an expression is true on the page; the page's policy forbids Playwright's own way of waiting."""
    end = time.monotonic() + seconds
    while not page.evaluate(f"!!({true})"):
        assert time.monotonic() < end, true
        page.wait_for_timeout(50)


def ask(server, *files, path="v1/findings", **query):
    parts = [("files", (name, data)) for name, data in files]
    return httpx.post(f"{server}{path}", files=parts, params=query, timeout=300)


def outlined(server):
    """A phantom with an outlined lesion, its finding and its mask."""
    for seed in range(12):
        data = png(scan(seed))
        (found,) = ask(server, ("a.png", data), pictures=True).json()["findings"]
        if (found["lesion_area_px"] or 0) > 500:
            mask = cv2.imdecode(np.frombuffer(base64.b64decode(found["mask_png"]), np.uint8), cv2.IMREAD_GRAYSCALE)
            return data, found, mask
    raise AssertionError("no phantom has an outlined lesion")


def canvas(page):
    """The canvas, uint8 RGB (H, W, 3), and the scan's position in it: x, y, scale."""
    url = page.evaluate("document.getElementById('canvas').toDataURL()")
    data = np.frombuffer(base64.b64decode(url.split(",")[1]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1], page.evaluate("[view.x, view.y, view.scale]")


def yellow(picture):
    return (np.abs(picture.astype(int) - YELLOW).sum(-1) < 120).sum()


def saved(page, button):
    with page.expect_download() as download:
        button.click()
    return download.value.suggested_filename, pathlib.Path(download.value.path()).read_bytes()


def test_the_lesion_is_drawn_at_its_mask_and_can_be_hidden_filled_and_zoomed(page, server):
    data, found, mask = outlined(server)
    upload(page, ("a.png", data))
    until(page, "drawn?.layers")
    picture, (x, y, scale) = canvas(page)
    assert yellow(picture) > 100
    page.screenshot(path=SHOTS / "one.png")
    edge = mask - cv2.erode(mask, np.ones((3, 3), np.uint8))
    rows, columns = np.nonzero(edge)
    at = np.rint(np.stack([y + (rows + 0.5) * scale, x + (columns + 0.5) * scale], -1)).astype(int)
    reach = int(np.ceil(scale)) + 2
    near = [yellow(picture[max(0, r - reach) : r + reach + 1, max(0, c - reach) : c + reach + 1]) for r, c in at[::7]]
    assert np.mean(np.array(near) > 0) > 0.98, "the outline does not follow the mask's edge"
    page.keyboard.press("m")
    assert yellow(canvas(page)[0]) == 0
    page.keyboard.press("m")
    page.keyboard.press("f")
    filled = canvas(page)[0]
    inside = cv2.erode(mask, np.ones((15, 15), np.uint8)) > 0
    rows, columns = np.nonzero(inside if inside.any() else mask > 0)
    at = np.rint(np.stack([y + (rows + 0.5) * scale, x + (columns + 0.5) * scale], -1)).astype(int)
    assert (filled[at[:, 0], at[:, 1]].astype(int) - picture[at[:, 0], at[:, 1]])[:, 0].mean() > 20
    page.keyboard.press("+")
    assert page.evaluate("view.scale") == pytest.approx(1.25 * scale)
    page.locator("#canvas").hover()
    page.mouse.wheel(0, -300)
    assert page.evaluate("view.scale") > 1.5 * scale
    before = page.evaluate("[view.x, view.y]")
    page.mouse.down()
    page.mouse.move(*(200 + value for value in (400, 300)))
    page.mouse.up()
    assert page.evaluate("[view.x, view.y]") != before
    page.keyboard.press("0")
    assert page.evaluate("view.scale") == pytest.approx(scale)
    expect(page.locator("#facts")).to_contain_text(found["label"])
    expect(page.locator("#facts")).to_contain_text(f"{found['lesion_area_px']:,} px")


def test_window_and_level_change_the_image(page):
    upload(page, ("a.png", png(scan())))
    until(page, "drawn?.shown")
    page.keyboard.press("m")
    whole = canvas(page)[0]
    page.locator("#window").fill("60")
    narrow = canvas(page)[0]
    assert narrow.std() > 1.3 * whole.std()
    page.locator("#level").fill("255")
    assert canvas(page)[0].mean() < narrow.mean() / 2
    page.keyboard.press("Escape")
    page.locator("#reset").click()
    np.testing.assert_array_equal(canvas(page)[0], whole)


def test_saved_files_contain_the_findings(page, server):
    data, found, mask = outlined(server)
    upload(page, ("a.png", data))
    until(page, "drawn?.layers")
    facts = page.locator("#facts")
    name, content = saved(page, facts.get_by_role("button", name="JSON"))
    assert name == "a.json" and json.loads(content) == {
        k: v for k, v in found.items() if not k.endswith("_png") and k != "size"
    }
    name, content = saved(page, facts.get_by_role("button", name="Mask"))
    assert name == "a.mask.png"
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED), mask)
    name, content = saved(page, facts.get_by_role("button", name="Image"))
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert name == "a.overlay.png" and picture.shape[:2] == mask.shape and yellow(picture) > 50
    _, content = saved(page, page.locator("#csv"))
    ours = ask(server, ("a.png", data), format="csv").text
    (row,), (other,) = (list(csv.DictReader(io.StringIO(text))) for text in (content.decode(), ours))
    assert list(row) == list(other)
    for key, value in row.items():
        assert value == other[key] or json.loads(value) == json.loads(other[key]), key
    _, content = saved(page, page.locator("#json"))
    assert json.loads(content)["findings"][0]["label"] == found["label"]
    assert "not a medical device" in json.loads(content)["notice"].lower()
    expect(facts.get_by_role("button", name="Segmentation")).to_have_count(0)


def test_a_dicom_file_is_measured_in_mm_and_saved_as_a_segmentation(page, server):
    data, _, mask = outlined(server)
    grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    file = io.BytesIO()
    window = {"WindowCenter": "128", "WindowWidth": "256", "PixelSpacing": ["0.5", "0.5"], "Modality": "US"}
    source = dataset(grey, **window)
    source.save_as(file, enforce_file_format=True)
    upload(page, ("scan.dcm", file.getvalue()))
    until(page, "drawn?.layers")
    expect(page.locator("#facts")).to_contain_text("mm²")
    expect(page.locator("#facts")).to_contain_text("burnt into its pixels")
    assert not re.search(CANARY.split("^")[1], page.content(), re.I)
    name, content = saved(page, page.locator("#facts").get_by_role("button", name="Segmentation"))
    found = pydicom.dcmread(io.BytesIO(content))
    assert name == "scan.seg.dcm" and found.Modality == "SEG" and CANARY.encode() not in content
    assert (found.Rows, found.Columns) == mask.shape
    np.testing.assert_array_equal(found.pixel_array.reshape(mask.shape) > 0, mask > 0)
    assert source.SOPInstanceUID in content.decode("latin-1")


def test_a_series_is_one_volume_and_saved_as_one_segmentation(page, server, tmp_path):
    data, _, mask = outlined(server)
    grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    shown = {"WindowCenter": "128", "WindowWidth": "256"}
    paths = write_series(tmp_path, [grey] * 3, spacing=(0.5, 0.5), step=3.0, order=(2, 0, 1), **shown)
    files = [(path.name, path.read_bytes()) for path in sorted(paths)]
    upload(page, *files)
    page.locator("#volumes button").click()
    facts = page.locator("#facts")
    expect(facts).to_contain_text("3 slices")
    volume = 3 * int((mask > 0).sum()) * 0.5 * 0.5 * 3 / 1000
    expect(facts).to_contain_text(f"{volume:.2f} cm³".replace(".00", "").replace("0 cm", " cm"))
    page.screenshot(path=SHOTS / "volume.png")
    _, content = saved(page, facts.get_by_role("button", name="Segmentation"))
    found = pydicom.dcmread(io.BytesIO(content))
    assert found.NumberOfFrames == 3 and len(found.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 3
    for frame in found.pixel_array:
        np.testing.assert_array_equal(frame > 0, mask > 0)


def test_an_unreadable_file_is_an_error_and_the_others_continue(page):
    upload(page, ("notes.png", b"no picture at all"), ("scan.png", png(scan())))
    rows = page.locator("#scans button")
    expect(rows.nth(0)).to_contain_text("not read")
    expect(rows.nth(1)).not_to_contain_text("not read")
    rows.nth(0).click()
    expect(page.locator("#facts")).to_contain_text("not a readable")
    expect(page.locator("#state")).to_contain_text("1 not read")
    page.screenshot(path=SHOTS / "error.png")


def test_fifty_scans_at_once(page):
    files = [(f"scan_{k:02}.png", png(scan(k, k % 3, (120 + k, 160)))) for k in range(50)]
    begun = time.monotonic()
    upload(page, *files)
    print(f"\n50 scans: {time.monotonic() - begun:.1f} s")
    names = page.locator("#scans .name").all_text_contents()
    assert names == [name for name, _ in files]
    assert page.locator("#scans .bad", has_text="not read").count() == 0
    first = page.locator("#facts b").first.text_content()
    page.keyboard.press("ArrowDown")
    assert page.locator("#facts b").first.text_content() != first
    page.screenshot(path=SHOTS / "fifty.png")


def test_archives_folders_drops_and_pages_of_a_file(page, tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../../escaped.png", png(scan(1)))
        archive.writestr("b/two.png", png(scan(2)))
        archive.writestr("read me.txt", "no scan")
        archive.writestr("broken.png", b"\x89PNG\r\n\x1a\n, cut short")
    upload(page, ("scans.zip", packed.getvalue()), done=3)
    assert page.locator("#scans .name").all_text_contents() == ["escaped.png", "two.png", "broken.png"]
    page.keyboard.press("h")
    until(page, "drawn?.heat")
    page.locator("#clear").click()
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    for name in ("a.png", "below/b.png", ".hidden.png"):
        (folder / name).write_bytes(png(scan(3)))
    page.set_input_files("#pickfolder", folder)
    expect(page.locator("#state")).to_contain_text("2 of 2 done", timeout=60_000)
    page.locator("#clear").click()
    page.evaluate(
        """async bytes => {
          const data = new DataTransfer();
          data.items.add(new File([Uint8Array.from(bytes)], "dropped.png"));
          document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        list(png(scan(4))),
    )
    expect(page.locator("#state")).to_contain_text("1 of 1 done", timeout=60_000)
    expect(page.locator("#scans .name")).to_have_text("dropped.png")
    page.locator("#clear").click()
    cv2.imwritemulti(str(tmp_path / "pages.tiff"), [scan(5), scan(6), scan(7)])
    upload(page, ("pages.tiff", (tmp_path / "pages.tiff").read_bytes()), done=3)
    assert page.locator("#scans .name").all_text_contents() == [f"pages.tiff \u00b7 {k}" for k in range(3)]


def test_file_names_are_escaped(page):
    name = "<img src=x onerror=document.title='taken'>.png"
    upload(page, (name, png(scan())), (f"x{name}", b"none"))
    until(page, "drawn?.shown")
    expect(page.locator("#facts")).to_contain_text(name)
    page.keyboard.press("ArrowDown")
    expect(page.locator("#facts")).to_contain_text("not a readable")
    assert page.title() == "mcis"


def test_the_saliency_map_is_drawn_over_the_scan(page, server):
    upload(page, ("a.png", outlined(server)[0]))
    until(page, "drawn?.shown")
    page.keyboard.press("m")
    without = canvas(page)[0].astype(int)
    begun = time.monotonic()
    page.keyboard.press("h")
    until(page, "drawn?.heat")
    print(f"\nsaliency map: {time.monotonic() - begun:.1f} s")
    until(page, "document.getElementById('heat').textContent === 'Saliency map'")
    redder = canvas(page)[0].astype(int) - without
    assert redder[..., 0].max() > 60 and redder[..., 0].sum() > redder[..., 2].sum()
    page.screenshot(path=SHOTS / "heat.png")
    page.keyboard.press("h")
    np.testing.assert_array_equal(canvas(page)[0], without)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_a_phone_and_has_a_light_and_a_dark_scheme(browser, server, width, scheme):  # noqa: F811
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme=scheme, has_touch=width < 500, is_mobile=width < 500
    )
    page = context.new_page()
    page.goto(server)
    page.screenshot(path=SHOTS / f"empty_{width}_{scheme}.png")
    upload(page, *((f"scan {k}.png", png(scan(k, k % 3))) for k in range(6)))
    until(page, "drawn?.shown")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (np.mean([int(part) for part in re.findall(r"\d+", ground)]) < 100) == (scheme == "dark")
    page.screenshot(path=SHOTS / f"six_{width}_{scheme}.png", full_page=True)
    context.close()


def test_all_controls_can_be_reached_by_keyboard(page):
    upload(page, ("a.png", png(scan())), ("b.png", png(scan(2))))
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {
        "files",
        "folder",
        "fill",
        "outline",
        "opacity",
        "window",
        "level",
        "heat",
        "in",
        "out",
        "reset",
        "canvas",
    } <= reached
    named = "(e.ariaLabel || e.textContent.trim() || e.labels?.length)"
    every = "[...document.querySelectorAll('button, input, select')]"
    names = page.evaluate(f"{every}.filter(e => !e.hidden && !{named}).map(e => e.id)")
    assert names == []


def test_other_addresses_than_loopback_require_a_token(browser):  # noqa: F811
    process, address = start("--host=0.0.0.0", MCIS_TOKEN=TOKEN)
    bare = re.sub(r"/#.*", "/", address).replace("0.0.0.0", "127.0.0.1")
    assert address.endswith(f"#token={TOKEN}")
    try:
        assert ask(bare, ("a.png", png(scan()))).status_code == 401
        context = browser.new_context()
        page = context.new_page()
        page.goto(bare)
        page.locator("#token").fill(TOKEN)
        page.keyboard.press("Enter")
        upload(page, ("a.png", png(scan())))
        context.close()
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{bare}#token={TOKEN}")
        upload(page, ("a.png", png(scan())))
        assert TOKEN not in page.url
        context.close()
    finally:
        assert TOKEN not in end(process)


def test_two_hundred_requests_of_eight_clients_have_correct_responses(server):
    pictures = [png(scan(k, k % 3, (200, 240 + k))) for k in range(20)]
    expected = [ask(server, ("a.png", data)).json()["findings"][0] for data in pictures]
    order = np.random.default_rng(0).integers(0, len(pictures), 200)

    def client(part):
        answers = []
        with httpx.Client(timeout=300) as session:
            for k in part:
                begun = time.monotonic()
                answer = session.post(f"{server}v1/findings", files=[("files", (f"{k}.png", pictures[k]))])
                answers.append((k, answer, time.monotonic() - begun))
        return answers

    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = [one for some in pool.map(client, np.array_split(order, 8)) for one in some]
    took = time.monotonic() - begun
    assert len(answers) == 200
    for k, answer, _ in answers:
        assert answer.status_code == 200
        (found,) = answer.json()["findings"]
        for key, value in expected[k].items():
            if key == "scan":
                assert found[key] == f"{k}.png"
            elif isinstance(value, float | dict):
                assert found[key] == pytest.approx(value, abs=1e-4), key
            elif key in ("lesion_area_px", "boxes"):  # rounding differs between batches
                assert np.allclose(np.ravel(found[key]), np.ravel(value), rtol=0.01, atol=2), key
            else:
                assert found[key] == value, key
    waited = np.percentile([seconds for *_, seconds in answers], (50, 95))
    print(f"\n200 requests of 8 clients: {took:.1f} s; each took {waited[0]:.2f} s (median), {waited[1]:.2f} s (95 %)")


def test_the_api_description_lists_the_routes(server):
    with urllib.request.urlopen(f"{server}openapi.json") as answer:
        described = json.load(answer)
    assert set(described["paths"]) == {
        "/v1/about",
        *(f"/v1/{name}" for name in ("findings", "heat", "segmentations", "volumes")),
    }
