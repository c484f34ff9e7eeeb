"""Scans of which a part is missing are told from those with borders."""

import cv2
import numpy as np
import pytest

from mcis.imaging import phantom
from mcis.imaging.cut_scans import is_cut
from mcis.imaging.letterbox import letterbox
from mcis.organs import ORGANS

SCANS = {
    f"{organ.name}-{label}": phantom.make_phantom(organ.name, label, seed=label, size=(240, 200)).image
    for organ in ORGANS
    for label in range(len(organ.classes))
}
FILLS = (0, 10, 20, 60, 128, 200, 255, (0, 135, 0))
every_scan = pytest.mark.parametrize("name", SCANS)


def cut(image, share, fill, turns=0):
    """`image` of which the lower part is filled, below `share`; or another side after quarter turns."""
    turned = np.rot90(image, turns).copy()
    turned[round(share * len(turned)) :] = fill
    return np.ascontiguousarray(np.rot90(turned, -turns))


@every_scan
def test_a_whole_scan_is_not_cut_in_any_frame(name):
    image = SCANS[name]
    for whole in (image, 255 - image, np.rot90(image), image[::2, ::2], image // 3 + 100):
        assert not is_cut(whole)
    for whole in (image, 255 - image):
        for border in (0, 16, 255, (30, 60, 120)):
            for pads in ((30, 30, 0, 0), (25, 60, 0, 0), (20, 20, 20, 20), (5, 5, 60, 60)):
                assert not is_cut(cv2.copyMakeBorder(whole, *pads, cv2.BORDER_CONSTANT, value=border)), (border, pads)


@pytest.mark.parametrize("fill", FILLS, ids=str)
def test_a_scan_without_a_part_is_cut_whatever_fills_it(fill):
    for name, image in SCANS.items():
        for share in (0.3, 0.5, 0.75):
            for turns in range(4) if np.max(fill) > 16 else (0, 2):  # black on one side may be a frame
                part = cut(image, share, fill, turns)
                assert is_cut(part), (name, share, turns)
                assert letterbox(part, 32)[1].cut


@pytest.mark.parametrize("fill", [0, 128, 255])
def test_a_cut_scan_that_is_stored_as_jpeg_again_is_cut(fill):
    for image in SCANS.values():
        for quality in (75, 95):
            data = cv2.imencode(".jpg", cut(image, 0.5, fill), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
            assert is_cut(cv2.imdecode(data, 1))


@pytest.mark.parametrize("fill", [0, 128, 255])
@pytest.mark.parametrize("block", [8, 16])
def test_a_jpeg_may_end_within_a_row_of_blocks(fill, block):
    for image in SCANS.values():
        part = image.copy()
        part[128:] = fill
        part[128 : 128 + block, :96] = image[128 : 128 + block, :96]
        assert is_cut(part)


@pytest.mark.parametrize("fill", FILLS, ids=str)
def test_a_cut_scan_between_bars_of_the_same_level_is_cut(fill):
    image = cut(SCANS["brain-1"], 0.5, fill)
    level = fill if isinstance(fill, tuple) else [fill] * 3
    assert is_cut(cv2.copyMakeBorder(image, 0, 0, 30, 30, cv2.BORDER_CONSTANT, value=level))


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_blank_picture_and_one_with_a_line_or_a_spot_are_not_cut(value):
    blank = np.full((200, 160, 3), value, np.uint8)
    line, spot = blank.copy(), blank.copy()
    line[120] = 90
    spot[100:110, 80:90] = 60
    assert not is_cut(blank) and not is_cut(line) and not is_cut(spot)


@pytest.mark.parametrize("fill", [0, 128])
def test_a_large_scan_is_cut_or_whole_as_a_small_one(fill):
    for image in SCANS.values():
        large = cv2.resize(image, None, fx=12, fy=12, interpolation=cv2.INTER_LINEAR)
        assert not is_cut(large) and is_cut(cut(large, 0.6, fill))


def test_tiny_pictures_are_not_cut():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (1, 300), (3, 3), (2, 40)):
        assert not is_cut(rng.integers(0, 256, (*shape, 3), np.uint8))
        assert not is_cut(np.zeros((*shape, 3), np.uint8))
