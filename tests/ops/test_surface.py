import numpy as np
import pytest
from scipy.spatial.distance import cdist

from mcis.ops.surface import outline, surface_distances


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
    mask[1:4, 0:4] = True  # touches the left border, where the picture ends
    wanted = mask.copy()
    wanted[2, 1:3] = False
    assert (outline(mask) == wanted).all()


def test_equal_masks_have_no_distance_and_a_shift_has_its_length():
    square = np.zeros((30, 40), np.uint8)
    square[5:15, 5:15] = 1
    assert surface_distances(square, square) == (0, 0)
    farthest, mean = surface_distances(square, np.roll(square, 20, axis=1))
    assert farthest == pytest.approx(20, abs=0.5)
    assert 10 < mean < 20


@pytest.mark.parametrize("seed", range(6))
def test_distances_are_those_of_all_pairs_of_outline_pixels(seed):
    rng = np.random.default_rng(seed)
    a, b = (disc(rng.integers(0, 40, 2), rng.integers(1, 14)) | disc(rng.integers(0, 40, 2), 3) for _ in range(2))
    assert surface_distances(a, b) == pytest.approx(by_pairs(a, b))
    assert surface_distances(a, b) == pytest.approx(surface_distances(b, a))
    assert surface_distances(a.T, b.T) == pytest.approx(surface_distances(a, b))


def test_a_speck_hardly_moves_the_percentile_as_it_would_the_maximum():
    big = disc((20, 20), 12)
    speck = big.copy()
    speck[0, 49] = True
    assert surface_distances(speck, big)[0] == 0
    assert surface_distances(speck, big)[1] > 0


@pytest.mark.parametrize("empty", ["predicted", "true", "both"])
def test_an_empty_mask_has_no_distance(empty):
    masks = {name: np.zeros((9, 9)) if empty in (name, "both") else np.ones((9, 9)) for name in ("predicted", "true")}
    assert np.isnan(surface_distances(**masks)).all()
