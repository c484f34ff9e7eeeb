import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcis.imaging import phantom
from mcis.ops import image
from mcis.ops.image import resize, resize_matrix, standardise, to_float

SIZES = [  # from, to: up, down, either way along one axis, odd ratios, to and from one pixel
    ((8, 6), (16, 12)),
    ((16, 12), (8, 6)),
    ((7, 13), (20, 9)),
    ((64, 64), (48, 40)),
    ((5, 5), (17, 3)),
    ((9, 4), (1, 1)),
    ((1, 3), (5, 5)),
]


def random(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


def test_to_float_by_hand():
    found = to_float(jnp.array([0, 51, 255], jnp.uint8))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [0.0, 0.2, 1.0], rtol=1e-7)


@pytest.mark.parametrize(("size", "target"), SIZES)
def test_resize_is_that_of_jax_image(size, target):
    x = random(2, *size, 3)
    found, wanted = jax.jit(lambda x: (resize(x, target), jax.image.resize(x, (2, *target, 3), "linear")))(x)
    assert found.dtype == x.dtype
    np.testing.assert_allclose(found, wanted, atol=2e-6)


@pytest.mark.parametrize(("length", "target"), [(4, 8), (8, 4), (5, 7), (256, 192), (192, 256), (1, 9), (9, 1)])
def test_resize_matrix_keeps_constants_and_straight_lines_inside(length, target):
    matrix = resize_matrix(length, target)
    assert matrix.shape == (target, length)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)
    # a ramp stays the same ramp in the coordinates of half-pixel centres, away from the edges
    ramp = matrix @ (np.arange(length) + 0.5) * target / length
    reach = int(np.ceil(max(target / length, 1)))
    np.testing.assert_allclose(ramp[reach:-reach], (np.arange(target) + 0.5)[reach:-reach], atol=0.03)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-6)  # no side is preferred


def test_resize_by_hand():
    x = jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(resize(x, (1, 4)).ravel(), [0, 0.25, 0.75, 1], atol=1e-7)
    y = jnp.array([0.0, 1.0, 2.0, 3.0]).reshape(1, 1, 4, 1)  # triangles of half-width 2 at 1 and 3, held at the edges
    np.testing.assert_allclose(resize(y, (1, 2)).ravel(), [5 / 7, 16 / 7], atol=1e-6)


def test_resize_to_the_same_size_does_nothing():
    x = jnp.ones((1, 4, 6, 2))
    assert resize(x, (4, 6)) is x


def test_standardise_gives_zero_mean_and_unit_variance_per_scan():
    x = random(3, 8, 9, 3) * np.float32([1.0, 0.1, 5.0]).reshape(3, 1, 1, 1)
    found = np.asarray(jax.jit(standardise)(x))
    np.testing.assert_allclose(found.mean((1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(found.std((1, 2, 3)), 1, rtol=1e-4)
    for i in range(3):  # each scan by itself
        np.testing.assert_allclose(found[i], jax.jit(standardise)(x[i : i + 1])[0], atol=1e-5)


def test_standardise_takes_gain_and_offset_out():
    x = random(2, 8, 8, 3)
    np.testing.assert_allclose(jax.jit(standardise)(0.4 * x + 0.3), jax.jit(standardise)(x), atol=1e-4)


def test_each_channel_can_have_a_gain_and_offset_of_its_own():
    x, gain = random(2, 8, 8, 3), np.float32([0.2, 1.0, 3.0]).reshape(1, 1, 1, 3)
    by_channel = jax.jit(functools.partial(standardise, each_channel=True))
    found = np.asarray(by_channel(x))
    np.testing.assert_allclose(found.std((1, 2)), 1, rtol=1e-4)
    np.testing.assert_allclose(by_channel(gain * x + 0.1), found, atol=1e-3)
    assert np.abs(jax.jit(standardise)(gain * x) - jax.jit(standardise)(x)).max() > 0.1  # not so for all together
    one = x[..., :1].repeat(3, -1)
    np.testing.assert_allclose(by_channel(one), jax.jit(standardise)(one), atol=1e-5)  # a grey scan is the same
    x[..., 1] = 0.5
    assert not np.asarray(by_channel(x))[..., 1].any()


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_constant_scan_becomes_zeros(value):
    np.testing.assert_allclose(jax.jit(standardise)(np.full((1, 8, 8, 3), value, np.float32)), 0, atol=1e-3)


# Noise removal and edges, against OpenCV


def picture(channels=3):
    """Float32 of whole numbers, as OpenCV's uint8 would be: a phantom, so that there are edges."""
    one = next(iter(phantom.make_phantoms(1, seed=3))).image[20:140, 20:170, :channels]
    return one.astype(np.float32)


def test_gaussian_blur_is_opencvs():
    for sigma in (0.7, 1.4, 3.0):
        side = 2 * int(np.ceil(3 * sigma)) + 1
        wanted = cv2.GaussianBlur(picture(), (side, side), sigma, borderType=cv2.BORDER_REPLICATE)
        np.testing.assert_allclose(image.gaussian_blur(picture()[None], sigma)[0], wanted, atol=1e-3)


def test_median_is_opencvs():
    wanted = cv2.medianBlur(picture().astype(np.uint8), 3)
    np.testing.assert_array_equal(image.median3x3(picture()[None])[0], wanted)


def test_sobel_is_opencvs_and_a_unit_step_gives_four():
    for found, order in zip(image.sobel(picture()[None]), ((1, 0), (0, 1)), strict=True):
        wanted = cv2.Sobel(picture(), cv2.CV_32F, *order, ksize=3, borderType=cv2.BORDER_REPLICATE)
        np.testing.assert_allclose(found[0], wanted, atol=1e-3)
    step = np.zeros((1, 5, 6, 1), np.float32)
    step[:, :, 3:] = 1
    assert np.asarray(image.sobel(step)[0]).max() == 4 and not np.asarray(image.sobel(step)[1]).any()


def test_canny_is_opencvs():
    grey = cv2.GaussianBlur(picture(1)[..., 0], (9, 9), 1.4).round().astype(np.uint8)
    wanted = cv2.Canny(grey, 30, 80, L2gradient=True) > 0
    found = np.asarray(jax.jit(image.canny)(grey[None, ..., None].astype(np.float32), 30.0, 80.0))[0, ..., 0]
    assert wanted.mean() > 0.01
    assert (found != wanted).mean() < 1e-3


def test_edge_maps_are_found_on_the_grey_picture():
    flat = np.full((1, 24, 24, 3), 0.3, np.float32)
    step = flat.copy()
    step[:, :, 12:] += np.float32([0.6, 0.3, 0.0])  # 0.3 in the mean of the channels
    sobel = np.asarray(image.sobel_edges(step))
    assert sobel.shape == (1, 24, 24, 1)
    np.testing.assert_allclose(sobel[0, :, 11:13], 0.3, atol=1e-6)
    assert sobel[0, :, :11].max() < 1e-5 and image.sobel_edges(flat).max() < 1e-5
    canny = np.asarray(image.canny_edges(step))
    assert canny.dtype == np.float32 and set(np.unique(canny)) == {0.0, 1.0}
    assert (canny[0, ..., 0].sum(1) == 1).all()
    # brightness and contrast leave it where it is
    np.testing.assert_array_equal(image.canny_edges(0.2 * step + 0.1), canny)
