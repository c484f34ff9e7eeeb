import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcis.imaging import phantom
from mcis.ops import image
from mcis.ops.image import resize, resize_matrix, standardise, to_float

SIZES = [  # from, to: smaller, an odd ratio in either direction, to and from one pixel
    ((16, 12), (8, 6)),
    ((7, 13), (20, 9)),
    ((9, 4), (1, 1)),
    ((1, 3), (5, 5)),
]


standardised = jax.jit(standardise, static_argnames=("each_channel", "inside"))


def random(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


def test_to_float_by_hand():
    found = to_float(jnp.array([0, 51, 255], jnp.uint8))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [0.0, 0.2, 1.0], rtol=1e-7)


@pytest.mark.parametrize(("size", "target"), SIZES)
def test_resize_is_that_of_jax_image(size, target):
    x = random(2, *size, 3)
    found, expected = jax.jit(lambda x: (resize(x, target), jax.image.resize(x, (2, *target, 3), "linear")))(x)
    assert found.dtype == x.dtype
    np.testing.assert_allclose(found, expected, atol=2e-6)


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
    x, y = (np.arange(n, dtype=np.float32).reshape(1, 1, n, 1) for n in (2, 4))
    larger, smaller = jax.jit(lambda x, y: (resize(x, (1, 4)), resize(y, (1, 2))))(x, y)
    np.testing.assert_allclose(larger.ravel(), [0, 0.25, 0.75, 1], atol=1e-7)
    np.testing.assert_allclose(smaller.ravel(), [5 / 7, 16 / 7], atol=1e-6)  # triangles of half-width 2 at 1 and 3


def test_resize_to_the_same_size_returns_its_input():
    x = jnp.ones((1, 4, 6, 2))
    assert resize(x, (4, 6)) is x


def test_no_mean_of_a_few_grey_levels_is_at_the_limit_of_black():
    """There a compiler's rounding would decide: XLA and ONNX Runtime differed by 3.6e-4 in a label."""
    assert min(abs(image.BLACK * 255 * of - round(image.BLACK * 255 * of)) / of for of in range(1, 65)) > 1e-4


def test_standardise_gives_each_scan_zero_mean_and_unit_variance():
    x = random(3, 8, 9, 3) * np.float32([1.0, 0.1, 5.0]).reshape(3, 1, 1, 1)
    found = np.asarray(standardised(x))
    np.testing.assert_allclose(found.mean((1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(found.std((1, 2, 3)), 1, rtol=1e-4)


def test_standardise_removes_gain_and_offset_of_a_scan_or_of_each_channel():
    x, gain = random(3, 8, 9, 3), np.float32([0.2, 1.0, 3.0]).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(standardised(0.4 * x + 0.3), standardised(x), atol=1e-4)
    found = np.asarray(standardised(x, each_channel=True))
    np.testing.assert_allclose(found.std((1, 2)), 1, rtol=1e-4)
    np.testing.assert_allclose(standardised(gain * x + 0.1, each_channel=True), found, atol=1e-3)
    assert np.abs(standardised(gain * x) - standardised(x)).max() > 0.1
    grey = x[..., :1].repeat(3, -1)
    np.testing.assert_allclose(standardised(grey, each_channel=True), standardised(grey), atol=1e-5)


@pytest.mark.parametrize("each_channel", [False, True])
def test_standardise_inside_does_not_depend_on_the_black_around_a_scan(each_channel):
    x = 0.1 + 0.9 * random(2, 8, 9, 3) * np.float32([1.0, 0.5, 0.2])
    framed = np.pad(x, ((0, 0), (3, 5), (0, 7), (0, 0)))
    found = np.asarray(standardised(framed, each_channel, inside=True))
    np.testing.assert_allclose(found[:, 3:11, :9], standardised(x, each_channel), atol=1e-5)
    assert (found[:, :3] < found[:, 3:11, :9].min()).all()  # black stays darker than all else
    assert not np.asarray(standardised(0 * x, each_channel, inside=True)).any()


def test_a_constant_scan_or_channel_becomes_zeros():
    x = random(3, 8, 9, 3)
    x[..., 1] = 0.5
    assert not np.asarray(standardised(x, each_channel=True))[..., 1].any()
    x[:] = np.float32([0.0, 0.3, 1.0]).reshape(3, 1, 1, 1)
    np.testing.assert_allclose(standardised(x), 0, atol=1e-3)


# Noise removal and edges, compared with OpenCV


@functools.cache
def picture(channels=3):
    """A phantom as float32 (H, W, C) of the whole numbers that OpenCV has as uint8."""
    return next(iter(phantom.make_phantoms(1, seed=3))).image[20:140, 20:170, :channels].astype(np.float32)


@jax.jit
def filtered(x):
    blurs = [image.gaussian_blur(x, sigma) for sigma in SIGMAS]
    return {"blurs": blurs, "median": image.median3x3(x), "sobel": image.sobel(x)}


SIGMAS = (0.7, 3.0)


def test_filters_are_those_of_opencv():
    found = jax.device_get(filtered(picture()[None]))
    for sigma, blurred in zip(SIGMAS, found["blurs"], strict=True):
        side = 2 * int(np.ceil(3 * sigma)) + 1
        expected = cv2.GaussianBlur(picture(), (side, side), sigma, borderType=cv2.BORDER_REPLICATE)
        np.testing.assert_allclose(blurred[0], expected, atol=1e-3)
    np.testing.assert_array_equal(found["median"][0], cv2.medianBlur(picture().astype(np.uint8), 3))
    for derivative, order in zip(found["sobel"], ((1, 0), (0, 1)), strict=True):
        expected = cv2.Sobel(picture(), cv2.CV_32F, *order, ksize=3, borderType=cv2.BORDER_REPLICATE)
        np.testing.assert_allclose(derivative[0], expected, atol=1e-3)


def test_canny_is_that_of_opencv():
    grey = cv2.GaussianBlur(picture(1)[..., 0], (9, 9), 1.4).round().astype(np.uint8)
    expected = cv2.Canny(grey, 30, 80, L2gradient=True) > 0
    found = np.asarray(jax.jit(image.canny)(grey[None, ..., None].astype(np.float32), 30.0, 80.0))[0, ..., 0]
    assert expected.mean() > 0.01
    assert (found != expected).mean() < 1e-3


def test_edge_maps_are_those_of_the_grey_image():
    flat = np.full((24, 24, 3), 0.3, np.float32)
    step = flat.copy()
    step[:, 12:] += np.float32([0.6, 0.3, 0.0])  # 0.3 in the mean of the channels
    scans = np.stack([step, 0.2 * step + 0.1, flat])
    sobel, canny, (dx, dy) = jax.jit(lambda x: (image.sobel_edges(x), image.canny_edges(x), image.sobel(x)))(scans)
    sobel, canny = np.asarray(sobel), np.asarray(canny)
    assert sobel.shape == (3, 24, 24, 1)
    np.testing.assert_allclose(sobel[0, :, 11:13], 0.3, atol=1e-6)
    assert sobel[0, :, :11].max() < 1e-5 and sobel[2].max() < 1e-5
    assert np.asarray(dx)[0].max() == pytest.approx(4 * 0.6) and not np.asarray(dy)[0].any()
    assert canny.dtype == np.float32 and set(np.unique(canny)) == {0.0, 1.0}
    for edge in canny[:2, ..., 0]:  # one pixel wide on either side of the step, whatever the brightness and contrast
        assert (edge[:, 11:13].sum(1) == 1).all() and edge.sum() == 24
