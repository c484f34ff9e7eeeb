"""The CRF compared with its definition: kernels of all pixels with all pixels, in float64."""

import dataclasses
import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcis.calibration.tune_crf import DOUBT
from mcis.imaging import phantom
from mcis.ops.crf import CRF, gaussian_factor, mean_field

SIDE = 32
SCALED = CRF(steps=2, smooth_sigma=1.0, sigma=60 * SIDE / 256)


def exact(probability, image, crf):
    """Mean field with (H W)^2 kernels: (H, W), uint8 (H, W) -> (H, W)."""
    rows, columns = (axis.ravel().astype(float) for axis in np.indices(image.shape))
    grey, unary = image.ravel().astype(float), probability.ravel().astype(float)
    near = np.subtract.outer(rows, rows) ** 2 + np.subtract.outer(columns, columns) ** 2
    kernels = [
        (crf.smooth_weight, np.exp(-near / (2 * crf.smooth_sigma**2))),
        (
            crf.weight,
            np.exp(-near / (2 * crf.sigma**2) - np.subtract.outer(grey, grey) ** 2 / (2 * crf.grey_sigma**2)),
        ),
    ]
    scaled = []
    for weight, kernel in kernels:
        scale = 1 / np.sqrt(kernel.sum(1))
        scaled.append(weight * kernel * np.outer(scale, scale))
    kernel = sum(scaled)
    q = unary
    for _ in range(crf.steps):
        foreground = np.log(unary) + kernel @ q
        background = np.log(1 - unary) + kernel @ (1 - q)
        q = 1 / (1 + np.exp(background - foreground))
    return q.reshape(image.shape)


@functools.cache
def cases():
    """Three phantoms with a lesion, uint8 (3, H, W), and blurred, noisy and biased probabilities of it."""
    rng = np.random.default_rng(0)
    images, probabilities = [], []
    for one in [one for one in phantom.make_phantoms(2, seed=5) if one.mask.any()][:3]:
        image, mask = (cv2.resize(x, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for x in (one.image, one.mask[..., 0]))
        noise = rng.normal(0, 1.2, mask.shape)
        probability = np.clip(0.15 + 0.6 * cv2.GaussianBlur((mask > 0) + noise, (0, 0), 0.8), 0.03, 0.97)
        images.append(image.mean(-1).round().astype(np.uint8))
        probabilities.append(probability.astype(np.float32))
    return np.stack(images), np.stack(probabilities)


compiled = jax.jit(mean_field, static_argnums=2)


def run(probability, image, crf):
    return np.asarray(compiled(probability[..., None], image[..., None] / np.float32(255), crf))[..., 0]


def test_a_gaussian_matrix_is_the_product_of_its_narrow_factors():
    for positions, sigma in ((256, 13.0), (48, 11.0), (7, 100.0), (5, 0.2)):
        factor = gaussian_factor(positions, sigma, 1e-4)
        distance = np.subtract.outer(np.arange(positions), np.arange(positions))
        np.testing.assert_allclose(factor @ factor.T, np.exp(-0.5 * (distance / sigma) ** 2), atol=5e-4)
    assert gaussian_factor(256, 13.0).shape[1] < 25 and gaussian_factor(256, 60.0).shape[1] < 10


@pytest.mark.parametrize("change", [{}, {"weight": 0.0}, {"smooth_weight": 0.0, "grey_sigma": 5.0, "steps": 1}])
def test_probabilities_are_those_of_the_exact_kernels(change):
    crf = dataclasses.replace(SCALED, **change)
    images, probabilities = cases()
    flipped = 0
    for image, probability, found in zip(images, probabilities, run(probabilities, images, crf), strict=True):
        expected = exact(probability, image, crf)
        assert np.abs(found - expected).max() < 0.01
        flips = (expected > 0.5) != (probability > 0.5)
        assert ((found > 0.5) == (expected > 0.5))[flips].mean() > 0.98 or not flips.any()
        flipped += flips.sum()
    assert flipped > 20  # the CRF changes the mask


def test_a_scan_does_not_depend_on_its_batch_and_zero_steps_change_nothing():
    images, probabilities = cases()
    whole = run(probabilities, images, SCALED)
    np.testing.assert_allclose(run(probabilities[::-1], images[::-1], SCALED)[::-1], whole, atol=1e-6)
    np.testing.assert_array_equal(run(probabilities, images, dataclasses.replace(SCALED, steps=0)), probabilities)


@pytest.mark.parametrize(
    "strengths",
    [
        {},
        # wide in space and narrow in grey: the largest negative lobes
        {"weight": 10.0, "smooth_weight": 0.0, "sigma": 80.0, "grey_sigma": 3.0, "steps": 5},
    ],
)
def test_where_all_pixels_are_doubtful_none_becomes_lesion(strengths):
    crf = dataclasses.replace(SCALED, **strengths)
    rows, columns = np.indices((SIDE, SIDE)) - SIDE // 2
    disc = rows**2 + columns**2 < (SIDE // 4) ** 2
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
    images = np.stack([cases()[0][0], np.where(disc, np.uint8(204), np.uint8(51)), noise])
    probabilities = np.stack([cases()[1][0], np.where(disc, 1.0, 1e-4), 1.0 * disc])
    doubtful = DOUBT * probabilities / probabilities.max((1, 2), keepdims=True)
    assert run(doubtful.astype(np.float32), images, crf).max() <= 0.5


def test_the_edge_of_the_mask_moves_to_the_edge_of_the_image():
    image = np.full((1, SIDE, SIDE), 60, np.uint8)
    image[:, :, 20:] = 180
    probability = np.full((1, SIDE, SIDE), 0.2, np.float32)
    probability[:, :, 17:] = 0.7  # three pixels off
    found = run(probability, image, CRF())
    np.testing.assert_array_equal(found[0] > 0.5, image[0] > 100)


def test_the_gradient_is_that_of_finite_differences():
    images, probabilities = cases()
    image, probability = images[:1, :12, :12], probabilities[:1, :12, :12]
    rng = np.random.default_rng(1)
    weight, direction = rng.normal(size=(2, *probability.shape)).astype(np.float32)

    @jax.jit
    def value_and_gradient(p):
        def loss(p):
            return jnp.sum(mean_field(p[..., None], image[..., None] / np.float32(255), SCALED)[..., 0] * weight)

        return jax.value_and_grad(loss)(p)

    step = 1e-2
    (after, _), (before, _) = (value_and_gradient(probability + sign * step * direction) for sign in (1, -1))
    slope = np.sum(value_and_gradient(probability)[1] * direction)
    assert slope == pytest.approx(float(after - before) / (2 * step), rel=0.05)
