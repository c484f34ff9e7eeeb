"""Scans of which a decoder filled a part, and pictures of few grey levels, are told from scans with margins."""

import cv2
import numpy as np
import pytest

from mcis.imaging import formats, phantom
from mcis.imaging.letterbox import content_box, letterbox
from mcis.imaging.whole_scans import empty_note, flaw_of
from mcis.inference.plausibility import picture_reason
from mcis.organs import ORGANS

SCANS = {
    f"{organ.name}-{label}": phantom.make_phantom(organ.name, label, seed=label, size=(240, 200)).image
    for organ in ORGANS
    for label in range(len(organ.classes))
}
LEVELS = {"black": 0, "nearly black": 10, "dark": 20, "a toolbar": 60, "a panel": 90, "white": 255}
MARGINS = {
    "left": (0, 0, 0.12, 0),
    "narrow left": (0, 0, 0.06, 0),
    "right": (0, 0, 0, 0.25),
    "bottom": (0, 0.2, 0, 0),
    "top": (0.15, 0, 0, 0),
    "top and less below": (0.15, 0.03, 0, 0),
    "right and bottom": (0, 0.2, 0, 0.2),
    "left and top": (0.2, 0, 0.2, 0),
    "left, top and bottom": (0.1, 0.05, 0.1, 0),
    "above and below": (0.2, 0.2, 0, 0),
    "all": (0.1, 0.1, 0.1, 0.1),
}


def filled(image, share, fill, turns=0):
    """`image` of which the lower part is filled, below `share`; or another side after quarter turns."""
    turned = np.rot90(image, turns).copy()
    turned[round(share * len(turned)) :] = fill
    return np.ascontiguousarray(np.rot90(turned, -turns))


def reason(image):
    return picture_reason(*letterbox(np.ascontiguousarray(image)))


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("sides", MARGINS.values(), ids=MARGINS)
def test_a_scan_with_margins_is_no_cut_one(name, sides):
    image = SCANS[name]
    pads = [round(share * size) for share, size in zip(sides, (240, 240, 200, 200), strict=True)]
    for level in (*LEVELS.values(), (120, 60, 20)):
        padded = cv2.copyMakeBorder(
            image, *pads, cv2.BORDER_CONSTANT, value=[level] * 3 if np.isscalar(level) else level
        )
        assert reason(padded) is None, level
        if level in (0, 60, (120, 60, 20)):
            assert reason(cv2.imdecode(cv2.imencode(".jpg", padded)[1], 1)) is None, level
    marked = cv2.copyMakeBorder(image, 0, 0, 30, 0, cv2.BORDER_CONSTANT, value=0)
    marked[5::25, 5:12] = 180  # a ruler
    assert reason(marked) is None


@pytest.mark.parametrize("name", [name for name in SCANS if name.startswith("brain")])
@pytest.mark.parametrize("share", [0.15, 0.3])
def test_a_head_without_a_face_or_in_a_small_field_of_view_is_no_cut_one(name, share):
    image = SCANS[name]
    rows, columns = np.nonzero(image[..., 0] > 30)
    defaced = image.copy()
    defaced[: int(rows.min() + share * (rows.max() - rows.min()))] = 0
    width = columns.max() - columns.min()
    narrow = image[:, columns.min() + int(share * width / 3) : columns.max() - int(share * width / 3)]
    low = image[: int(rows.max() - share * (rows.max() - rows.min()))]
    for scan in (defaced, np.pad(narrow, ((0, 0), (0, 60), (0, 0))), np.pad(low, ((0, 40), (0, 0), (0, 0)))):
        assert reason(scan) is None


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.85])
def test_a_scan_whose_end_a_decoder_filled_is_cut(name, share):
    part = filled(SCANS[name], share, 128)
    found = reason(part)
    assert found.startswith(f"cut: its lower {1 - share:.0%} is plain grey") and "copy or export it again" in found
    for quality in (75, 95):
        again = cv2.imdecode(cv2.imencode(".jpg", part, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)
        assert reason(again).startswith("cut")
    for block in (8, 16):  # the file may end within a row of blocks
        stairs, at = part.copy(), round(share * len(part))
        stairs[at : at + block, :96] = SCANS[name][at : at + block, :96]
        assert reason(stairs).startswith("cut")
    if share == 0.7:
        large = cv2.resize(part, None, fx=12, fy=12, interpolation=cv2.INTER_LINEAR)
        assert reason(large).startswith("cut")


@pytest.mark.parametrize("name", SCANS)
def test_another_level_or_side_a_thin_area_or_a_frame_is_not_cut(name):
    image = SCANS[name]
    for fill in (0, 10, 60, 120, 136, 200, 255, (0, 135, 0), (128, 128, 0)):
        assert reason(filled(image, 0.7, fill)) is None, fill
    for turns in (1, 2, 3):
        assert reason(filled(image, 0.7, 128, turns)) is None
    assert reason(filled(image, 0.96, 128)) is None
    for pads in ((30, 30, 0, 0), (25, 60, 0, 0), (20, 20, 20, 20), (5, 30, 60, 60)):
        assert reason(cv2.copyMakeBorder(image, *pads, cv2.BORDER_CONSTANT, value=[128] * 3)) is None, pads


@pytest.mark.parametrize("levels", [2, 3, 4, 7])
@pytest.mark.parametrize("name", SCANS)
def test_a_label_map_or_a_scan_of_few_levels_is_none(name, levels):
    image = SCANS[name]
    step = 255 / (levels - 1)
    few = np.rint(np.rint(image / step) * step).astype(np.uint8)
    found = reason(few)
    assert found.startswith(("only ", "black and white only", "blank")), found
    assert int(found.split()[1]) <= levels if found.startswith("only") else levels == 2
    sixteen = np.rint(np.rint(image / 17) * 17).astype(np.uint8)
    assert reason(sixteen) is None and reason(image // 8) is None
    few[100, 80:90] = np.arange(10)[:, None] * 9  # a few other pixels change nothing
    assert reason(few) is not None


def test_a_map_of_labels_in_colours_has_few_levels():
    colours = np.random.default_rng(0).integers(0, 256, (6, 3), np.uint8)
    labels = np.zeros((200, 180), np.uint8)
    for label in range(1, 6):
        cv2.circle(labels, (30 * label, 35 * label), 25, label, -1)
    assert reason(colours[labels]).startswith("only ") and "grey levels: a mask, a label map" in reason(colours[labels])


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("turned", [False, True])
def test_a_black_part_that_ends_in_a_straight_line_is_noted(name, turned):
    image = SCANS[name][::-1] if turned else SCANS[name]
    side = "upper" if turned else "lower"
    part = filled(SCANS[name], 0.6, 0)
    found = empty_note(part[::-1] if turned else part)
    assert found == (
        f"the {side} 40% is one black area that ends in a straight line: if a part of the scan is missing, get a whole "
        "file"
    )
    for whole in (image, np.pad(image, ((70, 70), (0, 0), (0, 0))), np.pad(image, ((0, 20), (0, 0), (0, 0)))):
        assert empty_note(whole) is None
    assert empty_note(filled(SCANS[name], 0.6, 60)) is None


def test_the_note_reaches_the_loaded_scan(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), filled(SCANS["breast-1"], 0.6, 0))
    assert any("the lower 40% is one black area" in note for note in formats.load(str(tmp_path / "a.png"), None).notes)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_blank_and_tiny_pictures_are_not_cut(value):
    rng = np.random.default_rng(0)
    blank = np.full((200, 160, 3), value, np.uint8)
    line, spot = blank.copy(), blank.copy()
    line[120] = 90
    spot[100:110, 80:90] = 60
    for image in (blank, line, spot):
        assert reason(image).startswith(("blank", "only", "black"))
    for shape in ((1, 1), (1, 300), (3, 3), (2, 40)):
        for image in (rng.integers(0, 256, (*shape, 3), np.uint8), np.full((*shape, 3), value, np.uint8)):
            x, y, width, height = content_box(image)
            assert not (flaw_of(image, image[y : y + height, x : x + width]) or "").startswith("cut")
            assert empty_note(image) is None
