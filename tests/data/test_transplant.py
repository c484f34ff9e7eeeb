"""Lesions transplanted into other scans: on drawn tissue, where brightness and place can be computed by hand."""

import dataclasses

import numpy as np
import pytest

from mcis.data import batches
from mcis.data.storage import Part, Pixels
from mcis.data.transplant import donors, transplant_lesion

SIDE = 64
GRID = np.indices((SIDE, SIDE))


def disc(y, x, radius):
    return np.hypot(GRID[0] - y, GRID[1] - x) <= radius


def tissue(level, seed, radius=28):
    """Grey tissue with a grain of 5 grey values on black."""
    grain = np.random.default_rng(seed).normal(0, 5, (SIDE, SIDE))
    image = np.where(disc(32, 32, radius), level + grain, 0)
    return np.repeat(image.round().astype(np.uint8)[..., None], 3, -1)


@pytest.fixture
def donor():
    lesion = disc(28, 36, 6)
    return (tissue(120, 1) + 50 * lesion[..., None]).astype(np.uint8), lesion.astype(np.uint8)[..., None]


def test_a_lesion_keeps_its_contrast_and_lies_on_tissue(donor):
    image, before = tissue(60, 2), tissue(60, 2)
    found = [transplant_lesion(image, *donor, np.random.default_rng(seed)) for seed in range(40)]
    assert sum(one is None for one in found) < 20  # at the edge of the tissue it does not fit
    places = []
    for changed, mask in filter(None, found):
        inside = mask[..., 0] > 0
        assert changed.dtype == mask.dtype == np.uint8 and mask.shape == (SIDE, SIDE, 1)
        assert (inside <= disc(32, 32, 29)).all()
        assert 0.4 * donor[1].sum() < mask.sum() < 2.1 * donor[1].sum()
        assert 20 < changed[inside].mean() - 60 < 55  # 50 brighter, less at the feathered edge
        far = ~inside & (np.abs(changed.astype(int) - image).max(-1) > 0)
        assert far.sum() < mask.sum() + 120  # a feathered edge alone
        places.append(tuple(np.argwhere(inside).mean(0).round()))
    assert len(set(places)) > 10
    np.testing.assert_array_equal(image, before)


def test_it_depends_on_the_generator_alone(donor):
    one, two = (transplant_lesion(tissue(60, 2), *donor, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])


def test_a_scan_without_tissue_gets_none(donor):
    assert transplant_lesion(np.zeros((SIDE, SIDE, 3), np.uint8), *donor, np.random.default_rng(0)) is None


def test_a_grey_scan_stays_grey(donor):
    coloured = (donor[0] * [1.0, 0.5, 0.7]).astype(np.uint8)
    found = [transplant_lesion(tissue(60, 2), coloured, donor[1], np.random.default_rng(seed)) for seed in range(9)]
    assert all(not np.ptp(image.astype(int), -1).any() for image, _ in filter(None, found))


def test_donors_are_drawn_evenly_over_sources():
    area = np.array([0, 50, 60, 70, 80, 900, 1])
    source = np.array(["a", "a", "a", "a", "b", "b", "b"])
    found = donors(area, source, np.array([1, 1, 1, 0, 1, 1, 1], bool), 2000)
    assert [rows.tolist() for rows in found.by_source] == [[1, 2], [4]]  # not the empty, unmasked, huge and tiny ones
    rng = np.random.default_rng(0)
    drawn = np.bincount([found.draw(rng) for _ in range(400)], minlength=5)
    assert 170 < drawn[4] < 230 and 70 < drawn[1] < 130


@pytest.fixture
def breasts(scans, donor, monkeypatch):
    """Scans of SIDE px: the lesion of `donor` where the class has one, else tissue of another level."""
    breast = scans[0].take(scans[0].organ == "breast")
    lesion = breast.label > 0
    image = np.where(lesion[:, None, None, None], donor[0], tissue(60, 2))
    mask = np.where(lesion[:, None, None, None], donor[1], 0).astype(np.uint8)
    monkeypatch.setattr(batches, "INPUT_SIZE", SIDE)
    rows = np.arange(len(breast))
    pixels = Pixels((Part([], (image, mask)),), np.zeros_like(rows), rows)
    return dataclasses.replace(breast, pixels=pixels, area=mask.sum((1, 2, 3)).astype(np.int32))


def batch_of(breasts, transplant, share=batches.WHOLE):
    label = breasts.label.astype(np.int32)
    options = {"transplant": transplant, "lesion": (False, True, True), "share": share}
    return batches.training_batches(breasts, label, label, {0: 1.0, 1: 1.0, 2: 1.0}, 24, 3, **options)[7]


def test_scans_without_a_lesion_get_one_and_its_class(breasts):
    plain, some = batch_of(breasts, 0.0), batch_of(breasts, 0.7)
    free = plain.label == 0
    changed = (plain.image != some.image).any((1, 2, 3))
    assert free.sum() == 8 and 1 <= changed.sum() < 8 and not changed[~free].any()
    np.testing.assert_array_equal(some.mask.any((1, 2, 3)), changed | ~free)
    assert set(some.label[changed]) <= {1, 2} and (some.label == np.where(changed, some.label, plain.label)).all()


def test_every_process_makes_the_same_rows(breasts):
    whole, half = batch_of(breasts, 0.7), batch_of(breasts, 0.7, slice(12, None))
    for x, y in zip(whole, half, strict=True):
        np.testing.assert_array_equal(x[12:], y)
