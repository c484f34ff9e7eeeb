import jax
import jax.numpy as jnp
import numpy as np

from mcis.ops.occlusion import CELLS, REACH, occlusion_map

SIDE = 48


def bright_share(images):
    """A classifier of two classes that sees nothing but the brightness of one small square."""
    seen = images[:, 12:20, 28:36, 0].astype(jnp.float32).mean((1, 2)) / 255
    return jnp.stack([1 - seen, seen], 1)


def scan():
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[12:20, 28:36] = 255
    return image


def test_the_peak_lies_where_the_classifier_looks():
    heat = np.asarray(jax.jit(lambda x: occlusion_map(bright_share, x, 1))(scan()))
    assert heat.shape == (SIDE, SIDE) and heat.dtype == np.float32
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert 12 <= row < 20 and 28 <= column < 36
    assert heat.max() > 0.4
    far = np.hypot(*np.meshgrid(np.arange(SIDE) - 31.5, np.arange(SIDE) - 15.5)) > 1.5 * REACH * SIDE / CELLS
    assert np.abs(heat[far]).max() < 1e-6


def test_for_the_other_class_it_is_the_opposite():
    one, other = (np.asarray(occlusion_map(bright_share, jnp.asarray(scan()), label)) for label in (0, 1))
    np.testing.assert_allclose(one, -other, atol=1e-6)


def test_a_classifier_that_sees_nothing_has_no_heat():
    heat = occlusion_map(lambda x: jnp.full((x.shape[0], 3), 1 / 3), jnp.asarray(scan()), 2)
    assert not np.asarray(heat).any()


def test_mean_drop_by_hand():
    """Of all windows over the corner pixel exactly one of nine hides what this classifier looks at."""
    step = SIDE // CELLS

    def corner(images):
        seen = images[:, step * (REACH - 1) : step * REACH, step * (REACH - 1) : step * REACH].astype(jnp.float32)
        right = (seen == 200).all((1, 2, 3)).astype(jnp.float32)
        return jnp.stack([1 - right, right], 1)

    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[step * (REACH - 1) : step * REACH, step * (REACH - 1) : step * REACH] = 200
    heat = np.asarray(occlusion_map(corner, jnp.asarray(image), 1))
    np.testing.assert_allclose(heat[0, 0], 1 / REACH**2, rtol=1e-5)
    np.testing.assert_allclose(heat[step * (REACH - 1), step * (REACH - 1)], 1.0, rtol=1e-5)
