"""Crops with and without a lesion, on drawn tissue."""

import dataclasses

import numpy as np
import pytest

from mcis.data import batches
from mcis.data.crops import crop_scan
from mcis.data.storage import Part, Pixels

SIDE = 64
TOP, LEFT, HEIGHT, WIDTH = 16, 40, 8, 10  # of the lesion


@pytest.fixture
def scan():
    """Grey levels that tell their row and column, with black bars of eight pixels and a lesion of 250."""
    row, column = np.indices((SIDE, SIDE))
    image = np.stack([row + 100, column + 100, row + 100], -1).astype(np.uint8)
    image[:8] = image[-8:] = 0
    mask = np.zeros((SIDE, SIDE, 1), np.uint8)
    mask[TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH] = 1
    return np.where(mask, np.uint8(250), image), mask


def crops(image, mask):
    found = [crop_scan(image, mask, np.random.default_rng(seed)) for seed in range(60)]
    assert sum(one is not None for one in found) > 40
    return [one for one in found if one is not None]


def test_a_lesion_is_shown_whole_or_not_at_all(scan):
    with_lesion = 0
    for image, mask in crops(*scan):
        assert image.shape == (SIDE, SIDE, 3) and mask.shape == (SIDE, SIDE, 1)
        assert image.dtype == mask.dtype == np.uint8
        if mask.any():
            with_lesion += 1
            rows, columns = np.ptp(np.argwhere(mask[..., 0]), axis=0) + 1
            assert rows / columns == pytest.approx(HEIGHT / WIDTH, rel=0.15)
            np.testing.assert_array_equal(np.median(image[mask[..., 0] > 0]), 250)
            side = SIDE * WIDTH / columns
        else:
            assert image.max() < 200
            seen = image[image.min(-1) >= 100].astype(int) - 100  # their rows and columns
            side = np.ptp(seen[:, 1]) + 1
            # neither at the lesion's edge nor in its shadow
            below, beside = seen[:, 0].max() >= TOP, (seen[:, 1].max() >= LEFT) & (seen[:, 1].min() < LEFT + WIDTH)
            assert not (below and beside)
        assert 0.3 * 48 < side < 0.8 * 48
    assert 10 < with_lesion < 50


def test_a_scan_without_a_lesion_is_cropped_too(scan):
    assert not any(mask.any() for _, mask in crops(scan[0], np.zeros_like(scan[1])))


def test_black_scans_and_lesions_everywhere_are_left(scan):
    image, mask = scan
    assert crop_scan(np.zeros_like(image), mask, np.random.default_rng(0)) is None
    assert all(crop_scan(image, np.ones_like(mask), np.random.default_rng(seed)) is None for seed in range(9))


def test_crops_without_a_lesion_get_the_class_without_one(scans, scan, monkeypatch):
    breast = scans[0].take(scans[0].organ == "breast")
    lesion = (breast.label > 0)[:, None, None, None]
    image, mask = np.where(lesion, scan[0], scan[0].min((0, 1)) + 120), np.where(lesion, scan[1], 0).astype(np.uint8)
    rows = np.arange(len(breast))
    pixels = Pixels((Part([], (image.astype(np.uint8), mask)),), np.zeros_like(rows), rows)
    breast = dataclasses.replace(breast, pixels=pixels, area=mask.sum((1, 2, 3)).astype(np.int32))
    monkeypatch.setattr(batches, "INPUT_SIZE", SIDE)
    label = breast.label.astype(np.int32)

    def batch(crop):
        weights, lesions = {0: 1.0, 1: 1.0, 2: 1.0}, (False, True, True)
        return batches.training_batches(breast, label, label, weights, 48, 3, crop=crop, lesion=lesions)[2]

    plain, some = batch(0.0), batch(1.0)
    changed = (plain.image != some.image).any((1, 2, 3))
    empty = ~some.mask.any((1, 2, 3))
    assert changed.sum() > 20 and (changed & empty & (plain.label > 0)).any() and (changed & ~empty).any()
    np.testing.assert_array_equal(some.label, np.where(empty, 0, plain.label))
