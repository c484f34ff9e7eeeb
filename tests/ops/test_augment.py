"""Augmentation, part by part. The strengths are traced arguments, so that one compilation serves all tests."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from mcis.ops.augment import Augmentation, augment, bilinear
from mcis.ops.image import BLACK

SIDE, BATCH = 32, 8
# A strength for every part, large enough to show. A part that is missing here fails the test below.
GEOMETRY = {"flip": 1.0, "rotate": 30.0, "scale": 0.5, "stretch": 0.5, "shift": 0.2}
INTENSITY = {
    "brightness": 0.2,
    "contrast": 1.0,
    "gamma": 1.0,
    "tint": 1.0,
    "curve": 1.0,
    "bias": 1.0,
    "noise": 0.2,
    "blur": 1.0,
    "grey": 1.0,
    "missing": 1.0,
    "depth_gain": 1.0,
    "speckle": 0.5,
    "coarse": 1.0,
    "marks": 1.0,
}
CUT = {"sector": 1.0}
ZERO = {field.name: 0.0 for field in dataclasses.fields(Augmentation)}
CHANCES = ("flip", "blur", "grey", "missing", "coarse", "sector", "marks")
FULL = GEOMETRY | INTENSITY | dict.fromkeys(CHANCES, 0.5)


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def compiled(key, image, mask, strengths):
    return augment(jax.random.split(key, len(image)), image, mask, Augmentation(**strengths), SIDE)


def run(image, mask, seed=0, **strengths):
    """Image and mask with the given parts on and all others off."""
    return [np.asarray(a) for a in compiled(jax.random.key(seed), image, mask, ZERO | strengths)]


def batch(seed=0):
    """Colour noise in [0.1, 0.9], and an off-centre rectangle as mask."""
    image = np.random.default_rng(seed).uniform(0.1, 0.9, (BATCH, SIDE, SIDE, 3)).astype(np.float32)
    mask = np.zeros((BATCH, SIDE, SIDE, 1), np.float32)
    mask[:, 9:17, 6:20] = 1
    return image, mask


def marked(mask):
    """The mask as an image of three equal channels."""
    return np.repeat(mask, 3, -1)


def blob(x, y, radius=5):
    """BATCH masks of one disc about (x, y), in edge coordinates."""
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    disc = ((columns - x) ** 2 + (rows - y) ** 2 <= radius**2).astype(np.float32)
    return np.broadcast_to(disc[None, ..., None], (BATCH, SIDE, SIDE, 1))


def centroids(weights):
    """(B, 2) of (x, y) in edge coordinates from (B, S, S, 1)."""
    weights = weights[..., 0].astype(np.float64)
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    return np.stack([(weights * columns).sum((1, 2)), (weights * rows).sum((1, 2))], 1) / weights.sum((1, 2))[:, None]


def test_every_part_is_tested_here():
    assert GEOMETRY.keys() | INTENSITY.keys() | CUT.keys() == ZERO.keys()


def test_all_strengths_zero_change_nothing():
    image, mask = batch()
    same, same_mask = run(image, mask)
    np.testing.assert_allclose(same, image, atol=1e-5)
    np.testing.assert_array_equal(same_mask, mask)
    black, _ = run(image * 0, mask)
    np.testing.assert_allclose(black, 0, atol=2e-4)


@pytest.mark.parametrize("part", ZERO)
def test_each_part_changes_scans_within_their_range_and_depends_on_the_key_alone(part):
    image, mask = batch()
    changed, changed_mask = run(image, mask, **{part: FULL[part]})
    assert changed.shape == image.shape
    assert changed_mask.shape == mask.shape
    assert changed.dtype == changed_mask.dtype == np.float32
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert set(np.unique(changed_mask)) == {0, 1}
    assert (np.abs(changed - image).max((1, 2, 3)) > 1e-3).sum() >= BATCH // 4
    again, other = (run(image, mask, seed=seed, **{part: FULL[part]})[0] for seed in (0, 1))
    np.testing.assert_array_equal(again, changed)
    if part not in CHANCES:
        assert np.abs(other - changed).max() > 1e-3
        assert len({scan.tobytes() for scan in run(image[:1].repeat(BATCH, 0), mask, **{part: FULL[part]})[0]}) == BATCH


@pytest.mark.parametrize("part", GEOMETRY)
def test_geometry_moves_image_and_mask_alike(part):
    _, mask = batch()
    image, moved = run(marked(mask), mask, **{part: GEOMETRY[part]})
    assert np.abs(moved - mask).max() == 1
    np.testing.assert_array_equal(image[..., :1] >= 0.5, moved == 1)


def test_all_geometry_at_once_moves_image_and_mask_alike():
    _, mask = batch()
    image, moved = run(marked(mask), mask, **GEOMETRY)
    np.testing.assert_array_equal(image[..., :1] >= 0.5, moved == 1)


@pytest.mark.parametrize("part", INTENSITY)
def test_changes_of_intensity_leave_the_mask_as_it_is(part):
    image, mask = batch()
    np.testing.assert_array_equal(run(image, mask, **{part: INTENSITY[part]})[1], mask)


def test_flip_mirrors_left_and_right():
    image, mask = batch()
    mirrored, mirrored_mask = run(image, mask, flip=1.0)
    np.testing.assert_allclose(mirrored, image[:, :, ::-1], atol=1e-5)
    np.testing.assert_array_equal(mirrored_mask, mask[:, :, ::-1])
    half, _ = run(image, mask, flip=0.5)
    flipped = np.abs(half - image).max((1, 2, 3)) > 1e-3
    np.testing.assert_allclose(half[flipped], image[flipped, :, ::-1], atol=1e-5)
    assert 0 < flipped.sum() < BATCH


def test_shift_is_at_most_its_share_of_the_side():
    mask = blob(16, 16)
    moves = np.concatenate([centroids(run(marked(mask), mask, seed, shift=0.2)[0][..., :1]) for seed in range(8)]) - 16
    assert np.abs(moves).max() <= 0.2 * SIDE + 0.01
    assert (moves.max(0) > 0.1 * SIDE).all()  # both axes, either way
    assert (moves.min(0) < -0.1 * SIDE).all()


def test_rotation_is_about_the_centre_and_at_most_its_angle():
    mask = blob(24, 16)
    turned = [run(marked(mask), mask, seed, rotate=30.0)[0] for seed in range(8)]
    moved = np.concatenate([centroids(image[..., :1]) for image in turned]) - 16
    angle = np.rad2deg(np.arctan2(moved[:, 1], moved[:, 0]))
    np.testing.assert_allclose(np.hypot(*moved.T), 8, atol=0.1)
    assert np.abs(angle).max() < 30.5
    assert angle.max() > 15
    assert angle.min() < -15


def test_scale_zooms_both_axes_equally_and_stretch_changes_their_ratio_alone():
    mask = blob(16, 16, 6)
    area = mask[0].sum()

    def widths(**strength):
        images = np.concatenate([run(marked(mask), mask, seed, **strength)[0] for seed in range(8)])[..., 0]
        width, height = images[:, 15:17].sum((1, 2)), images[:, :, 15:17].sum((1, 2))
        return np.log2(images.sum((1, 2)) / area), np.log2(width / height)

    zoom, ratio = widths(scale=0.5)
    assert np.abs(zoom).max() < 2 * 0.5 + 0.05
    assert zoom.max() > 0.4
    assert zoom.min() < -0.4
    np.testing.assert_allclose(ratio, 0, atol=0.05)
    zoom, ratio = widths(stretch=0.5)
    np.testing.assert_allclose(zoom, 0, atol=0.05)
    assert np.abs(ratio).max() < 0.6
    assert ratio.max() > 0.2
    assert ratio.min() < -0.2


def test_the_augmentation_of_a_scan_does_not_depend_on_the_other_scans():
    image, mask = batch()
    whole = run(image, mask, **FULL)
    other_image, other_mask = batch(1)
    mixed_image, mixed_mask = other_image.copy(), other_mask.copy()
    mixed_image[3], mixed_mask[3] = image[3], mask[3]
    for found, expected in zip(run(mixed_image, mixed_mask, **FULL), whole, strict=True):
        np.testing.assert_array_equal(found[3], expected[3])


def test_grey_scans_stay_grey_and_colour_scans_become_a_mixture_of_their_channels():
    image, mask = batch()
    grey = image[..., :1].repeat(3, -1)
    changed, _ = run(grey, mask, **FULL | {"tint": 0.0})
    np.testing.assert_allclose(changed, changed[..., :1].repeat(3, -1), atol=1e-5)
    greyed, _ = run(image, mask, grey=1.0)
    np.testing.assert_allclose(greyed, greyed[..., :1].repeat(3, -1), atol=1e-5)
    for scan, grey in zip(image, greyed, strict=True):  # each channel's share is in [0, 1], and together they are 1
        share = np.linalg.lstsq(scan.reshape(-1, 3), grey[..., 0].ravel(), rcond=None)[0]
        np.testing.assert_allclose(grey[..., 0], scan @ share, atol=1e-4)
        np.testing.assert_allclose(share.sum(), 1, atol=1e-4)
        assert share.min() > -1e-4
    assert np.abs(greyed - image.mean(-1, keepdims=True)).max() > 0.1


def test_a_missing_channel_is_replaced_by_another():
    image, mask = batch()
    pairs = set()
    drawn = np.concatenate([run(image, mask, seed, missing=1.0)[0] for seed in range(4)])
    for scan, found in zip(np.concatenate([image] * 4), drawn, strict=True):
        shown = [int(np.abs(scan - found[..., c : c + 1]).max((0, 1)).argmin()) for c in range(3)]
        np.testing.assert_allclose(found, scan[..., shown], atol=1e-5)
        changed = [(c, i) for i, c in enumerate(shown) if c != i]
        assert len(changed) <= 1
        pairs |= set(changed)
    assert len(pairs) >= 4  # of six


def test_blur_is_the_binomial_kernel_twice_with_replicated_edges():
    point = np.zeros((BATCH, SIDE, SIDE, 3), np.float32)
    point[:, 10, 20] = 1
    weights = np.array([1, 4, 6, 4, 1]) / 16
    blurred, _ = run(point, batch()[1], blur=1.0)
    expected = np.zeros((SIDE, SIDE))
    expected[8:13, 18:23] = np.outer(weights, weights)
    np.testing.assert_allclose(blurred, np.broadcast_to(expected[None, ..., None], blurred.shape), atol=2e-4)
    flat, _ = run(point * 0 + 0.5, batch()[1], blur=1.0)
    np.testing.assert_allclose(flat, 0.5, atol=1e-5)


def test_depth_gain_is_one_factor_per_row_within_its_amplitude():
    image, mask = batch()
    gain = np.log2(run(image * 0.4, mask, depth_gain=1.0)[0] / (image * 0.4))  # small enough that nothing is clipped
    np.testing.assert_allclose(gain, gain[:, :, :1, :1] + 0 * gain, atol=1e-3)
    assert np.abs(gain).max() <= 1.001
    assert np.ptp(gain, axis=1).max() > 0.5


def test_speckle_is_proportional_to_the_signal_and_correlated_between_neighbours():
    image, mask = batch()
    flat = np.full_like(image, 0.4)
    flat[:, :, : SIDE // 2] = 0.2
    noise = run(flat, mask, speckle=0.3)[0] - flat
    left, right = noise[:, :, : SIDE // 2].std(), noise[:, :, SIDE // 2 :].std()
    assert 1.8 < right / left < 2.2
    across = noise[:, :, SIDE // 2 :, 0]
    assert np.corrcoef(across[:, :, 1:].ravel(), across[:, :, :-1].ravel())[0, 1] > 0.4


def test_coarse_keeps_means_and_removes_detail():
    image, mask = batch()
    stripes = np.zeros_like(image)
    stripes[:, :, ::2] = 1.0
    np.testing.assert_allclose(run(stripes, mask, coarse=1.0)[0][:, :, 4:-4], 0.5, atol=0.15)
    wide = np.zeros_like(image)
    wide[:, :, SIDE // 2 :] = 1.0
    np.testing.assert_allclose(run(wide, mask, coarse=1.0)[0].mean(), 0.5, atol=0.01)


def test_a_sector_is_cut_out_of_image_and_mask_alike_but_not_through_the_lesion():
    image, mask = np.ones((BATCH, SIDE, SIDE, 3), np.float32), blob(16, 16, 3)
    cut, kept = run(image, mask, sector=1.0)
    inside = cut[..., 0] > 0.5
    assert set(np.unique(cut.round(3))) <= {0, 1}
    np.testing.assert_array_equal(kept[..., 0], mask[..., 0] * inside)
    share = inside.mean((1, 2))
    assert (share > 0.3).all()
    assert (share < 0.99).all()
    assert not inside[:, 0, 0].any()  # both upper corners are beside every sector
    assert not inside[:, 0, -1].any()
    for rows in inside:  # one piece in every row, or two beside the arc of the probe
        assert (np.abs(np.diff(rows.astype(int), axis=1)).sum(1) <= 4).all()
    corner = np.zeros_like(mask)
    corner[:, 0, 0] = 1
    uncut, same = run(image, corner, sector=1.0)
    np.testing.assert_allclose(uncut, 1, atol=1e-5)
    np.testing.assert_array_equal(same, corner)


def test_a_tint_is_an_exponent_of_each_channel():
    image, mask = batch()
    exponents = np.log(run(image, mask, tint=1.0)[0]) / np.log(image)
    np.testing.assert_allclose(exponents, exponents[:, :1, :1] + 0 * exponents, rtol=1e-3)
    assert np.abs(np.log2(exponents)).max() < 1.001
    assert np.ptp(exponents[:, 0, 0], axis=-1).min() > 0.01


def test_a_curve_is_a_function_of_the_grey_level_that_keeps_black():
    levels = np.linspace(0, 1, SIDE, dtype=np.float32)
    image = np.broadcast_to(levels[None, None, :, None], (BATCH, SIDE, SIDE, 3)).copy()
    curved, _ = run(image, batch()[1], curve=1.0)
    np.testing.assert_allclose(curved, curved[:, :1, :, :1] + 0 * curved, atol=1e-5)
    np.testing.assert_allclose(curved[:, :, 0], 0, atol=1e-3)
    assert (np.diff(curved[:, 0, :, 0], axis=1) < -1e-3).any()  # bright and dark change places in some scan
    assert np.abs(curved - image).max() > 0.2


def test_a_smaller_side_shows_the_whole_scan_and_a_zoom_shows_its_detail():
    image, mask = batch()
    wide = jax.jit(lambda key, *scan: augment(jax.random.split(key, BATCH), *scan, Augmentation(**ZERO), SIDE // 2))
    small, small_mask = wide(jax.random.key(0), image, mask)
    np.testing.assert_allclose(small, image.reshape(BATCH, SIDE // 2, 2, SIDE // 2, 2, 3).mean((2, 4)), atol=1e-5)
    np.testing.assert_array_equal(small_mask[:, 5:8, 3:10], 1)
    assert np.asarray(small_mask).sum() < mask.sum() / 3


def test_marks_are_few_bright_pixels_and_leave_the_others_as_they_are():
    image, mask = batch()
    marked_, _ = run(image * 0.5, mask, marks=1.0)
    new = np.abs(marked_ - image * 0.5).max(-1) > 1e-5
    share = new.mean((1, 2))
    assert (share > 0.01).all()
    assert (share < 0.35).all()  # of a scan of 32 pixels the letters alone are a sixth
    for scan, where in zip(marked_, new, strict=True):
        assert len(np.unique(scan[where].round(4))) == 1
        assert scan[where].min() >= 0.6
    none, _ = run(image, mask, marks=0.0)
    np.testing.assert_allclose(none, image, atol=1e-5)


def test_padding_stays_black_under_every_change_of_intensity():
    image, mask = batch()
    image[:, :8] = 0
    strengths = ("gamma", "contrast", "brightness", "bias", "depth_gain", "speckle", "noise", "tint", "curve")
    changed, _ = run(image, mask, **dict.fromkeys(strengths, 0.5))
    assert not changed[:, :8].any()
    assert abs(changed[:, 8:] - image[:, 8:]).mean() > 0.1


def test_tissue_half_as_dark_as_black_changes_by_half():
    image, mask = batch()
    image[:, ::2], image[:, 1::2] = 0.5 * BLACK, BLACK
    changed, _ = run(image, mask, brightness=0.2)
    dark, shift = changed[:, ::2], changed[:, 1::2] - BLACK
    brighter = shift > 0
    assert brighter.any()
    np.testing.assert_allclose(dark[brighter], 0.5 * (BLACK + shift[brighter]), atol=1e-6)


def test_bilinear_by_hand():
    image = np.float32([[0, 1], [2, 3]])[..., None]
    y = np.float32([0, 0.5, 0.5, 1, -0.5, -1, 5, 1.25, 1, 1.5, 1])
    x = np.float32([0, 0.5, 0, 0.25, 0, 0, 5, 1, 1.5, 0, -0.5])
    # inside: averages; half a pixel outside: half of the edge; further out: 0
    expected = [0, 1.5, 1, 2.25, 0, 0, 0, 0.75 * 3, 1.5, 1, 1]
    np.testing.assert_allclose(jax.jit(bilinear)(image, y, x)[:, 0], expected, atol=1e-6)
