import cv2
import numpy as np
import pytest

from mcis.imaging import phantom
from mcis.imaging.letterbox import content_box, letterbox, letterbox_mask, unletterbox
from mcis.organs import ORGANS

LESIONS = [(o.name, label) for o in ORGANS for label in range(len(o.classes)) if o.is_lesion(label)]
SHAPES = [  # (height, width) of the scan, side of the square: tall, wide, up, down, both odd, barely changed, narrow
    ((300, 140), 64),
    ((140, 300), 64),
    ((40, 31), 128),
    ((31, 40), 100),
    ((517, 389), 256),
    ((255, 256), 256),
    ((600, 21), 256),
    ((512, 512), 256),
    ((256, 256), 384),
]


def page(height, width, *, background=0, content=(), value=200):
    """A grey picture (H, W, 3) with bright rectangles (x, y, width, height)."""
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
def test_content_of_few_pixels_is_a_thumbnail(width, small):
    image = np.zeros((60, width, 3), np.uint8)
    image[20:40, 10:30] = 200  # the box is half of the scan at least
    assert letterbox(image)[1].thumbnail == small


def to_square(point, geometry):
    """Where a point of the scan must lie in the square."""
    (bx, by, bw, bh), (ix, iy, iw, ih) = geometry.box, geometry.inner
    return np.array([ix + (point[0] - bx) * iw / bw, iy + (point[1] - by) * ih / bh])


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_asymmetric_marker_lands_where_it_should_and_comes_back(shape, size, crop):
    height, width = shape
    unit = max(4, min(shape) // 6)
    corners = {  # of different sizes, none symmetric to another: a flip, a transposition or a shift shows
        "top left": (unit // 2, unit, unit, unit),
        "top right": (width - 2 * unit, unit // 2, unit, 2 * unit),
        "bottom left": (unit, height - 2 * unit, 2 * unit, unit),
    }
    geometry = None
    for x, y, w, h in corners.values():
        image = page(height, width, content=corners.values(), value=1 if crop else 0)
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
def test_mask_keeps_position_and_area_there_and_back(shape, size):
    rng = np.random.default_rng(0)
    ratios, offsets, back_ratios, back_offsets = [], [], [], []
    blank = np.zeros((*shape, 3), np.uint8)
    _, geometry = letterbox(blank, size)
    scale_x, scale_y = geometry.inner[2] / geometry.box[2], geometry.inner[3] / geometry.box[3]
    radius = min(shape) * 0.3
    for _ in range(40):
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
    small = radius * min(scale_x, 1) < 5  # a disc of some ten pixels: grid effects are larger than any bias
    assert abs(np.mean(ratios) - 1) < (0.05 if small else 0.02)
    assert abs(np.mean(back_ratios) - 1) < (0.05 if small else 0.02)
    assert np.abs(np.mean(offsets, 0)).max() < 0.1
    assert np.abs(np.mean(back_offsets, 0)).max() < 0.1 * max(1, 1 / scale_x)
    assert np.abs(back_offsets).max() < 0.5 * max(1, 1 / scale_x)


@pytest.mark.parametrize("shape", [(128, 128), (128, 90), (77, 128)])
def test_identity_where_nothing_is_scaled(shape):
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


def test_unfit_is_zero_outside_the_crop_and_keeps_probabilities_inside():
    image = page(200, 200, content=[(60, 40, 120, 110)])
    _, geometry = letterbox(image, 64)
    full = unletterbox(np.full((64, 64), 0.7, np.float32), geometry)
    x, y, w, h = geometry.box
    np.testing.assert_allclose(full[y : y + h, x : x + w], 0.7, rtol=1e-6)
    assert full.sum() == pytest.approx(0.7 * w * h, rel=1e-5)


def test_fit_mask_of_another_shape_fails_with_both_shapes():
    _, geometry = letterbox(page(40, 50), 32)
    with pytest.raises(ValueError, match=r"\(50, 40\).*\(40, 50\)"):
        letterbox_mask(np.zeros((50, 40, 1), np.uint8), geometry)


# Content


def assert_inside(inner, outer):
    assert outer[0] <= inner[0], (inner, outer)
    assert outer[1] <= inner[1], (inner, outer)
    assert inner[0] + inner[2] <= outer[0] + outer[2], (inner, outer)
    assert inner[1] + inner[3] <= outer[1] + outer[3], (inner, outer)


@pytest.mark.parametrize("background", [0, 255, 90])  # a brain on black, a white page, a grey user interface
@pytest.mark.parametrize("content", [(40, 30, 140, 120), (100, 20, 120, 170), (1, 1, 150, 150)])
def test_content_box_is_the_content_whatever_the_background(background, content):
    image = page(200, 240, background=background, content=[content], value=170)
    box = content_box(image)
    assert_inside(content, box)
    assert np.abs(np.array(box) - content).max() <= 4  # the blur's reach on either side


def test_content_box_of_a_brain_is_a_tight_box_round_all_of_it():
    image = np.zeros((240, 200, 3), np.uint8)
    cv2.ellipse(image, (110, 105), (75, 90), 0, 0, 360, (120, 120, 120), -1)
    cv2.ellipse(image, (110, 105), (70, 85), 0, 0, 360, (70, 70, 70), -1)
    x, y, w, h = cv2.boundingRect(np.ascontiguousarray(image[..., 0]))
    box = content_box(image)
    assert_inside((x, y, w, h), box)
    assert np.abs(np.array(box) - (x, y, w, h)).max() <= 6


def test_content_box_keeps_every_large_part_and_drops_specks():
    parts = [(30, 30, 60, 160), (150, 50, 70, 100)]
    box = content_box(page(220, 250, content=[*parts, (2, 200, 6, 6)]))
    assert_inside((30, 30, 190, 160), box)
    assert np.abs(np.array(box) - (30, 30, 190, 160)).max() <= 4


@pytest.mark.parametrize("value", [0, 255, 131])
@pytest.mark.parametrize("shape", [(100, 80), (15, 300), (1, 1), (3, 3)])
def test_a_picture_without_content_or_tiny_keeps_its_whole_frame(shape, value):
    assert content_box(np.full((*shape, 3), value, np.uint8)) == (0, 0, shape[1], shape[0])
    square, _ = letterbox(np.full((*shape, 3), value, np.uint8), 32)
    assert square.shape == (32, 32, 3)


@pytest.mark.parametrize("where", [(2, 3), (150, 3), (80, 80), (2, 170), (150, 170)])
def test_a_small_slice_is_magnified_at_most_twice_and_the_box_stays_in_the_picture(where):
    x, y = where
    image = page(201, 181, content=[(x, y, 26, 27)])
    box = content_box(image)
    assert_inside((x, y, 26, 27), box)
    assert_inside(box, (0, 0, 181, 201))
    assert box[2] >= 181 / 2
    assert box[3] >= 201 / 2
    _, geometry = letterbox(image, 201)
    assert geometry.inner[2] / geometry.box[2] <= 2


@pytest.mark.parametrize(("organ", "label"), LESIONS)
def test_content_is_never_cut_no_lesion_leaves_the_box(organ, label):
    for seed in range(12):
        made = phantom.make_phantom(organ, label, seed, (160, 190))
        x, y, w, h = content_box(made.image)
        assert made.mask[y : y + h, x : x + w].sum() == made.mask.sum(), seed


def test_a_picture_full_of_content_is_not_cut():
    noise = np.random.default_rng(0).integers(0, 256, (150, 170, 3), dtype=np.uint8)
    noise = cv2.GaussianBlur(noise, (0, 0), 4).astype(np.float32)
    image = np.clip((noise - noise.mean()) * 8 + 120, 0, 255).astype(np.uint8)
    *_, w, h = content_box(image)
    assert w * h > 0.9 * 150 * 170
