"""Distances between outlines by hand, against all pairs of outline pixels, and properties for any masks."""

import hypothesis
import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import strategies
from scipy.spatial.distance import cdist

from mcis.ops.surface import outline, surface_scores, tolerance

properties = hypothesis.settings(max_examples=25, deadline=None, derandomize=True)


def surface_distances(predicted, true):
    """The scores that need no tolerance."""
    return surface_scores(predicted, true, 1.0)[:2]


@strategies.composite
def two_masks(draw):
    """Two bool masks of one shape (H, W); empty and full ones are frequent."""
    shape = (draw(strategies.integers(1, 6)), draw(strategies.integers(1, 6)))
    pixels = arrays.arrays(bool, shape)
    mask = strategies.one_of(pixels, strategies.sampled_from([np.zeros(shape, bool), np.ones(shape, bool)]))
    return draw(mask), draw(mask)


def disc(centre, radius, shape=(40, 50)):
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


def by_pairs(predicted, true):
    """The definition: all pairs of outline pixels."""
    pairs = cdist(np.argwhere(outline(predicted)), np.argwhere(outline(true)))
    there, back = pairs.min(1), pairs.min(0)
    return max(np.percentile(there, 95), np.percentile(back, 95)), np.concatenate([there, back]).mean()


def test_an_outline_by_hand():
    mask = np.zeros((5, 6), bool)
    mask[1:4, 0:4] = True  # touches the left border of the image
    expected = mask.copy()
    expected[2, 1:3] = False
    assert (outline(mask) == expected).all()


def test_the_distance_of_a_shifted_square_is_the_length_of_the_shift():
    square = np.zeros((30, 40), np.uint8)
    square[5:15, 5:15] = 1
    farthest, mean = surface_distances(square, np.roll(square, 20, axis=1))
    assert farthest == pytest.approx(20, abs=0.5)
    assert 10 < mean < 20


@pytest.mark.parametrize("seed", range(3))
def test_surface_distances_are_those_of_all_pairs_of_outline_pixels(seed):
    rng = np.random.default_rng(seed)
    a, b = (disc(rng.integers(0, 40, 2), rng.integers(1, 14)) | disc(rng.integers(0, 40, 2), 3) for _ in range(2))
    assert surface_distances(a, b) == pytest.approx(by_pairs(a, b))


def test_a_single_pixel_far_away_hardly_changes_the_95th_percentile():
    big = disc((20, 20), 12)
    speck = big.copy()
    speck[0, 49] = True
    assert surface_distances(speck, big)[0] == 0
    assert surface_distances(speck, big)[1] > 0


@properties
@hypothesis.given(two_masks())
def test_surface_distances_are_symmetric_and_exist_where_no_mask_is_empty(masks):
    a, b = masks
    found = surface_distances(a, b)
    np.testing.assert_allclose(found, surface_distances(b, a))
    np.testing.assert_allclose(found, surface_distances(a.T, b.T))
    assert np.isnan(found).all() == (not (a.any() and b.any()))
    if a.any():
        assert surface_distances(a, a) == (0, 0)
    if a.any() and b.any():
        assert 0 <= found[0] <= np.hypot(*a.shape)
        assert found == pytest.approx(by_pairs(a, b))


def square(shift=0):
    mask = np.zeros((30, 40), np.uint8)
    mask[5:15, 5 + shift : 15 + shift] = 1
    return mask


def test_the_normalised_surface_distance_of_a_shifted_square_by_hand():
    """An outline of 36 pixels, and the same one 3 pixels to the right.

    Within one pixel of the other outline are 18: of the upper edge the 7 shared columns and the next one, the same of
    the lower edge, and of the edge inside the other square the pixels next to these edges. Within two, one more each.
    """
    a, b = square(), square(3)
    assert surface_scores(a, b, 1.0).nsd == pytest.approx(18 / 36)
    assert surface_scores(a, b, 3.0).nsd == 1
    assert surface_scores(a, b, 2.99).nsd == pytest.approx(22 / 36)
    assert surface_scores(b, a, 1.0) == surface_scores(a, b, 1.0)
    assert surface_scores(a, square(20), 3.0).nsd == 0


def test_empty_masks_have_one_rule():
    a, empty = square(), np.zeros((30, 40), np.uint8)
    assert surface_scores(empty, empty, 1.0).nsd == 1
    for pair in ((a, empty), (empty, a)):
        found = surface_scores(*pair, 100.0)
        assert found.nsd == 0 and np.isnan(found[:2]).all()
    assert np.isnan(surface_scores(empty, empty, 1.0)[:2]).all()


def test_the_tolerance_is_a_share_of_the_diagonal():
    assert tolerance(1200, 500) == pytest.approx(13)
    assert tolerance(60, 80) == tolerance(10, 10) == 1
