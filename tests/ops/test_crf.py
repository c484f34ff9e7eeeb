"""The CRF against its definition: all pixels with all pixels, in float64."""

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcis.calibration.tune_crf import DOUBT
from mcis.imaging import phantom
from mcis.ops.crf import CRF, gaussian_factor, mean_field

SIDE = 48
SCALED = CRF(smooth_sigma=1.0, sigma=60 * SIDE / 256)


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


def cases():
    """Phantoms with a lesion and what a network might say of them: blurred, noisy, biased."""
    rng = np.random.default_rng(0)
    lesions = [one for one in phantom.make_phantoms(4, seed=5) if one.mask.any()]
    for one in lesions[:6]:
        image, mask = (cv2.resize(x, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for x in (one.image, one.mask[..., 0]))
        noise = rng.normal(0, 1.2, mask.shape)
        probability = np.clip(0.15 + 0.6 * cv2.GaussianBlur((mask > 0) + noise, (0, 0), 0.8), 0.03, 0.97)
        yield image.mean(-1).round().astype(np.uint8), probability.astype(np.float32)


def run(probability, image, crf):
    found = jax.jit(mean_field, static_argnums=2)(probability[..., None], image[..., None] / np.float32(255), crf)
    return np.asarray(found)[..., 0]


def test_a_gaussian_matrix_is_its_narrow_factors_product():
    for positions, sigma in ((256, 13.0), (256, 60.0), (48, 11.0), (7, 100.0), (5, 0.2)):
        factor = gaussian_factor(positions, sigma, 1e-4)
        distance = np.subtract.outer(np.arange(positions), np.arange(positions))
        np.testing.assert_allclose(factor @ factor.T, np.exp(-0.5 * (distance / sigma) ** 2), atol=5e-4)
    assert gaussian_factor(256, 13.0).shape[1] < 25 and gaussian_factor(256, 60.0).shape[1] < 10


@pytest.mark.parametrize("change", [{}, {"weight": 0.0}, {"smooth_weight": 0.0}, {"steps": 1}, {"grey_sigma": 5.0}])
def test_probabilities_are_those_of_all_pixels_with_all_pixels(change):
    crf = dataclasses.replace(SCALED, **change)
    images, probabilities = (np.stack(x) for x in zip(*cases(), strict=True))
    found = run(probabilities, images, crf)
    flipped = 0
    for image, probability, one in zip(images, probabilities, found, strict=True):
        wanted = exact(probability, image, crf)
        assert np.abs(one - wanted).max() < 0.01
        flips = (wanted > 0.5) != (probability > 0.5)
        assert ((one > 0.5) == (wanted > 0.5))[flips].mean() > 0.98 or not flips.any()
        flipped += flips.sum()
    assert flipped > 100  # there was something to do


def test_one_scan_is_what_it_is_in_a_batch_and_zero_steps_change_nothing():
    images, probabilities = (np.stack(x) for x in zip(*cases(), strict=True))
    whole = run(probabilities, images, SCALED)
    np.testing.assert_allclose(run(probabilities[:1], images[:1], SCALED), whole[:1], atol=1e-5)
    still = run(probabilities, images, dataclasses.replace(SCALED, steps=0))
    np.testing.assert_array_equal(still, probabilities)


@pytest.mark.parametrize(
    "strengths",
    [
        {},
        {"weight": 10.0, "grey_sigma": 26.0},
        # wide in space and narrow in grey: the largest negative lobes
        {"weight": 10.0, "smooth_weight": 0.0, "sigma": 80.0, "grey_sigma": 3.0},
        {"weight": 10.0, "smooth_weight": 0.0, "sigma": 5.0, "grey_sigma": 1.5},
    ],
)
def test_where_all_is_doubtful_nothing_becomes_a_lesion(strengths):
    crf = dataclasses.replace(SCALED, **strengths)
    rows, columns = np.indices((SIDE, SIDE)) - SIDE // 2
    disc = rows**2 + columns**2 < (SIDE // 4) ** 2
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
    pictures = [*cases(), (np.where(disc, np.uint8(204), np.uint8(51)), np.where(disc, 1.0, 1e-4)), (noise, 1.0 * disc)]
    for image, probability in pictures:
        unsure = (DOUBT * probability / probability.max()).astype(np.float32)
        assert run(unsure[None], image[None], crf).max() <= 0.5


def test_two_halves_of_different_grey_pull_the_edge_of_the_mask_to_theirs():
    image = np.full((1, 40, 40), 60, np.uint8)
    image[:, :, 20:] = 180
    probability = np.full((1, 40, 40), 0.2, np.float32)
    probability[:, :, 17:] = 0.7  # three pixels off
    found = run(probability, image, CRF())
    np.testing.assert_array_equal(found[0] > 0.5, image[0] > 100)


def test_the_gradient_is_that_of_differences():
    image, probability = next(iter(cases()))
    image, probability = image[None, :12, :12], probability[None, :12, :12]
    weight = np.random.default_rng(1).normal(size=probability.shape).astype(np.float32)
    scaled = jnp.asarray(image[..., None] / np.float32(255))

    def loss(p):
        return jnp.sum(mean_field(p[..., None], scaled, SCALED)[..., 0] * weight)

    gradient = jax.jit(jax.grad(loss))(probability)
    direction = np.random.default_rng(2).normal(size=probability.shape).astype(np.float32)
    step = 1e-2
    difference = (loss(probability + step * direction) - loss(probability - step * direction)) / (2 * step)
    assert float(jnp.sum(gradient * direction)) == pytest.approx(float(difference), rel=0.05)
