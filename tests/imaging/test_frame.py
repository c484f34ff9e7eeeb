"""Frames of linear and curved probes, drawn by hand."""

import cv2
import numpy as np
import pytest

from mcis.imaging.frame import is_sector
from mcis.imaging.letterbox import content_box


def frame(top_width, height=240, width=320, margin=0, seed=0):
    """Speckle between two straight edges: `top_width` of the width at the top, all of it at the bottom."""
    image = np.zeros((height + 2 * margin, width + 2 * margin, 3), np.uint8)
    inset = round(width * (1 - top_width) / 2)
    corners = np.array([[inset, 0], [width - 1 - inset, 0], [width - 1, height - 1], [0, height - 1]]) + margin
    inside = np.zeros(image.shape[:2], np.uint8)
    cv2.fillPoly(inside, [corners.astype(np.int32)], 1)
    speckle = np.random.default_rng(seed).integers(40, 200, (*image.shape[:2], 1), dtype=np.uint8)
    return image + speckle * inside[..., None]


@pytest.mark.parametrize("margin", [0, 30])
@pytest.mark.parametrize(("top_width", "sector"), [(1.0, False), (0.95, False), (0.7, True), (0.2, True)])
def test_a_sector_is_narrow_at_the_top(top_width, sector, margin):
    image = frame(top_width, margin=margin)
    assert is_sector(image, content_box(image)) == sector


def test_shadows_at_the_sides_and_dark_depths_are_no_sector():
    image = frame(1.0)
    image[60:, :100] = 0
    image[180:] = 0
    assert not is_sector(image, (0, 0, 320, 240))


def test_a_black_image_is_no_sector():
    assert not is_sector(np.zeros((50, 60, 3), np.uint8), (0, 0, 60, 50))
    assert not is_sector(np.zeros((1, 1, 3), np.uint8), (0, 0, 1, 1))
