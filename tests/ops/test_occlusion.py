"""Occlusion maps of classifiers whose decisions depend on known pixels."""

import jax
import jax.numpy as jnp
import numpy as np

from mcis.ops.occlusion import CELLS, REACH, occlusion_map

SIDE = 48


def brightness_of_a_square(images):
    """A classifier of two classes that depends on the brightness of one small square alone."""
    probability = images[:, 12:20, 28:36, 0].astype(jnp.float32).mean((1, 2)) / 255
    return jnp.stack([1 - probability, probability], 1)


def scan():
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[12:20, 28:36] = 255
    return image


def constant(images):
    return jnp.full((images.shape[0], 3), 1 / 3)


def test_the_map_peaks_where_the_classifier_looks_and_is_zero_for_a_constant_classifier():
    @jax.jit
    def maps(image):
        square = [occlusion_map(brightness_of_a_square, image, label) for label in (1, 0)]
        return [*square, occlusion_map(constant, image, 2)]

    drops, opposite, nothing = map(np.asarray, maps(scan()))
    assert drops.shape == (SIDE, SIDE) and drops.dtype == np.float32
    row, column = np.unravel_index(drops.argmax(), drops.shape)
    assert 12 <= row < 20 and 28 <= column < 36
    assert drops.max() > 0.4
    far = np.hypot(*np.meshgrid(np.arange(SIDE) - 31.5, np.arange(SIDE) - 15.5)) > 1.5 * REACH * SIDE / CELLS
    assert np.abs(drops[far]).max() < 1e-6
    np.testing.assert_allclose(opposite, -drops, atol=1e-6)  # the other class
    assert not nothing.any()


def test_mean_drop_by_hand():
    """Of the nine windows over the corner pixel exactly one hides the square on which this classifier depends."""
    step = SIDE // CELLS
    square = slice(step * (REACH - 1), step * REACH)

    def all_bright(images):
        probability = (images[:, square, square] == 200).all((1, 2, 3)).astype(jnp.float32)
        return jnp.stack([1 - probability, probability], 1)

    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[square, square] = 200
    drops = np.asarray(jax.jit(lambda image: occlusion_map(all_bright, image, 1))(image))
    np.testing.assert_allclose(drops[0, 0], 1 / REACH**2, rtol=1e-5)
    np.testing.assert_allclose(drops[square.start, square.start], 1.0, rtol=1e-5)
