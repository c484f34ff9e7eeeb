"""The letterbox: positions, areas and values there and back, and the box of the content."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcis.imaging import phantom
from mcis.imaging.letterbox import content_box, letterbox, letterbox_mask, unletterbox
from mcis.organs import ORGANS

LESIONS = [(o.name, label) for o in ORGANS for label in range(len(o.classes)) if o.is_lesion(label)]
SHAPES = [  # (height, width) of the scan, side of the square
    ((300, 140), 64),  # tall, reduced
    ((140, 300), 64),  # wide, reduced
    ((40, 31), 128),  # magnified
    ((31, 40), 100),  # magnified, odd padding
    ((259, 195), 128),  # odd sides
    ((127, 128), 128),  # nearly unchanged
    ((600, 21), 256),  # narrow
    ((256, 256), 128),  # halved
    ((128, 128), 192),  # magnified by half
]


def image_with(height, width, *, background=0, content=(), value=200):
    """A grey image (H, W, 3) with bright rectangles (x, y, width, height)."""
    image = np.full((height, width, 3), background, np.uint8)
    for x, y, w, h in content:
        image[y : y + h, x : x + w] = value
    return image


def disc(height, width, cx, cy, radius):
    """uint8 {0,1} (H, W, 1): pixels whose centre lies within `radius` of (cx, cy), in edge coordinates."""
    y, x = np.mgrid[:height, :width] + 0.5
    return ((x - cx) ** 2 + (y - cy) ** 2 <= radius**2).astype(np.uint8)[..., None]


def centroid(weights):
    """(x, y) in edge coordinates of a map (H, W)."""
    weights = weights.astype(np.float64)
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]] + 0.5
    return np.array([(weights * x).sum(), (weights * y).sum()]) / weights.sum()


@pytest.mark.parametrize(("width", "small"), [(158, True), (160, False)])
def test_a_scan_with_few_pixels_of_content_is_a_thumbnail(width, small):
    image = np.zeros((60, width, 3), np.uint8)
    image[20:40, 10:30] = 200  # the box is at least half as wide as the scan
    assert letterbox(image)[1].thumbnail == small


def to_square(point, geometry):
    """The position in the square of a point (x, y) of the scan."""
    (bx, by, bw, bh), (ix, iy, iw, ih) = geometry.box, geometry.inner
    return np.array([ix + (point[0] - bx) * iw / bw, iy + (point[1] - by) * ih / bh])


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_markers_have_the_right_position_in_the_square_and_back(shape, size, crop):
    height, width = shape
    unit = max(4, min(shape) // 6)
    corners = {  # of different sizes, without symmetry: a flip, transposition or shift is detected
        "top left": (unit // 2, unit, unit, unit),
        "top right": (width - 2 * unit, unit // 2, unit, 2 * unit),
        "bottom left": (unit, height - 2 * unit, 2 * unit, unit),
    }
    geometry = None
    for x, y, w, h in corners.values():
        image = image_with(height, width, content=corners.values(), value=1 if crop else 0)
        image[y : y + h, x : x + w] = 255
        square, geometry = letterbox(image, size, crop=crop)
        assert square.shape == (size, size, 3)
        assert geometry.shape == shape
        true = np.array([x + w / 2, y + h / 2])
        there = centroid(np.where(square[..., 0] > 5, square[..., 0], 0))
        scale = geometry.inner[2] / geometry.box[2]
        assert np.abs(there - to_square(true, geometry)).max() < 0.5 * min(scale, 1), (there, geometry)
        back = unletterbox(np.where(square[..., 0] > 5, square[..., 0], 0) / 255.0, geometry)
        assert back.shape == shape
        assert back.dtype == np.float32
        assert np.abs(centroid(back) - true).max() < 0.5
    x, y, w, h = geometry.inner
    assert max(w, h) == size  # the longer side fills the square, the rest is centred
    assert abs(2 * x + w - size) <= 1
    assert abs(2 * y + h - size) <= 1


@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_a_mask_keeps_its_position_and_area_there_and_back(shape, size):
    rng = np.random.default_rng(0)
    ratios, offsets, back_ratios, back_offsets = [], [], [], []
    blank = np.zeros((*shape, 3), np.uint8)
    _, geometry = letterbox(blank, size)
    scale_x, scale_y = geometry.inner[2] / geometry.box[2], geometry.inner[3] / geometry.box[3]
    radius = min(shape) * 0.3
    for _ in range(30):
        centre = [rng.uniform(radius + 1, side - radius - 1) for side in shape[::-1]]
        mask = disc(*shape, *centre, radius)
        there = letterbox_mask(mask, geometry)
        assert there.shape == (size, size, 1)
        assert there.dtype == np.uint8
        assert set(np.unique(there)) <= {0, 1}
        ratios.append(there.sum() / (mask.sum() * scale_x * scale_y))
        offsets.append(centroid(there[..., 0]) - to_square(centroid(mask[..., 0]), geometry))
        back = unletterbox(there[..., 0].astype(np.float32), geometry) >= 0.5
        back_ratios.append(back.sum() / mask.sum())
        back_offsets.append(centroid(back) - centroid(mask[..., 0]))
    small = radius * min(scale_x, 1) < 5  # in a disc of some ten pixels, grid effects are larger than a bias
    assert abs(np.mean(ratios) - 1) < (0.05 if small else 0.02)
    assert abs(np.mean(back_ratios) - 1) < (0.05 if small else 0.02)
    assert np.abs(np.mean(offsets, 0)).max() < 0.1
    assert np.abs(np.mean(back_offsets, 0)).max() < 0.1 * max(1, 1 / scale_x)
    assert np.abs(back_offsets).max() < 0.5 * max(1, 1 / scale_x)


@pytest.mark.parametrize("shape", [(128, 128), (128, 90), (77, 128)])
def test_without_scaling_image_and_mask_stay_identical(shape):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    mask = rng.integers(0, 2, (*shape, 1), dtype=np.uint8)
    square, geometry = letterbox(image, 128, crop=False)
    x, y, w, h = geometry.inner
    assert (w, h) == shape[::-1]
    np.testing.assert_array_equal(square[y : y + h, x : x + w], image)
    assert square.sum() == image.sum()  # the rest is black
    there = letterbox_mask(mask, geometry)
    np.testing.assert_array_equal(unletterbox(there[..., 0], geometry), mask[..., 0])


def test_unletterbox_keeps_probabilities_in_the_box_and_is_zero_outside():
    image = image_with(200, 200, content=[(60, 40, 120, 110)])
    _, geometry = letterbox(image, 64)
    full = unletterbox(np.full((64, 64), 0.7, np.float32), geometry)
    x, y, w, h = geometry.box
    np.testing.assert_allclose(full[y : y + h, x : x + w], 0.7, rtol=1e-6)
    assert full.sum() == pytest.approx(0.7 * w * h, rel=1e-5)


def test_a_mask_of_another_shape_is_an_error_with_both_shapes():
    _, geometry = letterbox(image_with(40, 50), 32)
    with pytest.raises(ValueError, match=r"\(50, 40\).*\(40, 50\)"):
        letterbox_mask(np.zeros((50, 40, 1), np.uint8), geometry)


@st.composite
def scans(draw):
    """An image of any size with a bright ellipse on a background, and a generator for what else is random."""
    height, width = draw(st.integers(1, 300)), draw(st.integers(1, 300))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    image = np.full((height, width, 3), rng.integers(0, 120), np.uint8)
    centre = (int(rng.integers(width)), int(rng.integers(height)))
    axes = (int(rng.integers(1, width + 1)), int(rng.integers(1, height + 1)))
    cv2.ellipse(image, centre, axes, 0, 0, 360, (200, 180, 220), -1)
    return image, rng


properties = settings(max_examples=60, deadline=None, derandomize=True)
given_a_scan = given(scan=scans(), size=st.integers(16, 128), crop=st.booleans())


@properties
@given_a_scan
def test_the_box_is_in_the_image_the_inner_box_in_the_square_and_the_rest_is_black(scan, size, crop):
    image, _ = scan
    height, width = image.shape[:2]
    square, geometry = letterbox(image, size, crop)
    assert square.shape == (size, size, 3) and square.dtype == np.uint8 and geometry.shape == (height, width)
    assert_inside(geometry.box, (0, 0, width, height))
    assert 2 * geometry.box[2] >= width and 2 * geometry.box[3] >= height
    assert crop or geometry.box == (0, 0, width, height)
    x, y, w, h = geometry.inner
    assert_inside(geometry.inner, (0, 0, size, size))
    assert max(w, h) == size and min(w, h) >= 1 and abs(2 * x + w - size) <= 1 and abs(2 * y + h - size) <= 1
    content = square[y : y + h, x : x + w]
    assert image.min() <= content.min() and content.max() <= image.max()
    assert square.sum(dtype=np.int64) == content.sum(dtype=np.int64)


@properties
@given_a_scan
def test_probabilities_stay_in_range_and_are_zero_outside_the_box(scan, size, crop):
    image, rng = scan
    _, geometry = letterbox(image, size, crop)
    back = unletterbox(rng.random((size, size)), geometry)
    x, y, w, h = geometry.box
    assert back.shape == image.shape[:2] and back.dtype == np.float32
    assert back.min() >= 0 and back.max() <= 1
    assert back.sum(dtype=np.float64) == pytest.approx(back[y : y + h, x : x + w].sum(dtype=np.float64))
    np.testing.assert_allclose(unletterbox(np.ones((size, size)), geometry)[y : y + h, x : x + w], 1, rtol=1e-5)


@properties
@given_a_scan
def test_a_mask_brought_back_differs_only_at_its_border(scan, size, crop):
    image, rng = scan
    height, width = image.shape[:2]
    _, geometry = letterbox(image, size, crop)
    x, y, w, h = geometry.box
    mask = np.zeros((height, width), np.uint8)
    corners = np.sort(rng.integers(0, (width + 1, height + 1), (2, 2)), axis=0)
    mask[corners[0, 1] : corners[1, 1], corners[0, 0] : corners[1, 0]] = 1
    there = letterbox_mask(mask[..., None], geometry)
    assert there.shape == (size, size, 1) and there.dtype == np.uint8 and there.max() <= 1
    back = (unletterbox(there[..., 0], geometry) >= 0.5).astype(np.uint8)
    coarsest = max(1, w / geometry.inner[2], h / geometry.inner[3])  # pixels of the scan in one of the square
    border = np.ones((2 * int(np.ceil(coarsest)) + 1,) * 2, np.uint8)
    inside, original = back[y : y + h, x : x + w], mask[y : y + h, x : x + w]
    assert (inside <= cv2.dilate(original, border)).all() and (inside >= cv2.erode(original, border)).all()
    assert back.sum() == inside.sum()


# Content


def assert_inside(inner, outer):
    assert outer[0] <= inner[0], (inner, outer)
    assert outer[1] <= inner[1], (inner, outer)
    assert inner[0] + inner[2] <= outer[0] + outer[2], (inner, outer)
    assert inner[1] + inner[3] <= outer[1] + outer[3], (inner, outer)


@pytest.mark.parametrize("background", [0, 255, 90])  # a brain on black, a white page, a grey user interface
@pytest.mark.parametrize("content", [(40, 30, 140, 120), (100, 20, 120, 170), (1, 1, 150, 150)])
def test_the_content_box_fits_the_content_on_any_background(background, content):
    image = image_with(200, 240, background=background, content=[content], value=170)
    box = content_box(image)
    assert_inside(content, box)
    assert np.abs(np.array(box) - content).max() <= 4  # of blur on either side


def test_the_content_box_of_a_brain_is_tight_and_complete():
    image = np.zeros((240, 200, 3), np.uint8)
    cv2.ellipse(image, (110, 105), (75, 90), 0, 0, 360, (120, 120, 120), -1)
    cv2.ellipse(image, (110, 105), (70, 85), 0, 0, 360, (70, 70, 70), -1)
    x, y, w, h = cv2.boundingRect(np.ascontiguousarray(image[..., 0]))
    box = content_box(image)
    assert_inside((x, y, w, h), box)
    assert np.abs(np.array(box) - (x, y, w, h)).max() <= 6


def test_the_content_box_keeps_every_large_part_and_no_small_ones():
    parts = [(30, 30, 60, 160), (150, 50, 70, 100)]
    box = content_box(image_with(220, 250, content=[*parts, (2, 200, 6, 6)]))
    assert_inside((30, 30, 190, 160), box)
    assert np.abs(np.array(box) - (30, 30, 190, 160)).max() <= 4


@pytest.mark.parametrize("value", [0, 255, 131])
@pytest.mark.parametrize("shape", [(100, 80), (15, 300), (1, 1), (3, 3)])
def test_a_tiny_or_uniform_image_is_kept_whole(shape, value):
    assert content_box(np.full((*shape, 3), value, np.uint8)) == (0, 0, shape[1], shape[0])
    square, _ = letterbox(np.full((*shape, 3), value, np.uint8), 32)
    assert square.shape == (32, 32, 3)


@pytest.mark.parametrize("where", [(2, 3), (150, 3), (80, 80), (2, 170), (150, 170)])
def test_a_small_slice_is_magnified_at_most_twice_and_the_box_stays_in_the_image(where):
    x, y = where
    image = image_with(201, 181, content=[(x, y, 26, 27)])
    box = content_box(image)
    assert_inside((x, y, 26, 27), box)
    assert_inside(box, (0, 0, 181, 201))
    assert box[2] >= 181 / 2
    assert box[3] >= 201 / 2
    _, geometry = letterbox(image, 201)
    assert geometry.inner[2] / geometry.box[2] <= 2


@pytest.mark.parametrize(("organ", "label"), LESIONS)
def test_the_content_box_contains_every_lesion(organ, label):
    for seed in range(12):
        made = phantom.make_phantom(organ, label, seed, (160, 190))
        x, y, w, h = content_box(made.image)
        assert made.mask[y : y + h, x : x + w].sum() == made.mask.sum(), seed


def test_an_image_full_of_content_is_not_cropped():
    noise = np.random.default_rng(0).integers(0, 256, (150, 170, 3), dtype=np.uint8)
    noise = cv2.GaussianBlur(noise, (0, 0), 4).astype(np.float32)
    image = np.clip((noise - noise.mean()) * 8 + 120, 0, 255).astype(np.uint8)
    *_, w, h = content_box(image)
    assert w * h > 0.9 * 150 * 170
