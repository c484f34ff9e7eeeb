"""Losses by hand, compared with optax, and at the limits of floating-point numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcis.ops import losses

cross_entropy, binary_cross_entropy, soft_dice = (
    jax.jit(loss) for loss in (losses.cross_entropy, losses.binary_cross_entropy, losses.soft_dice)
)
MASK_LOSSES = [binary_cross_entropy, soft_dice]


@jax.jit
def mask_gradients(logits, mask):
    """The value and the gradient of each mask loss."""
    return [jax.value_and_grad(lambda x, loss=loss: loss(x, mask).sum())(logits) for loss in MASK_LOSSES]


@jax.jit
def label_gradient(logits, label, smoothing):
    return jax.value_and_grad(lambda x: cross_entropy(x, label, smoothing).sum())(logits)


def masks(batch=3):
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(batch, 5, 4, 1))
    return logits.astype(np.float32), (rng.random((batch, 5, 4, 1)) < 0.4).astype(np.float32)


def four_pixels(values):
    return np.array(values, np.float32).reshape(1, 2, 2, 1)


def test_cross_entropy_by_hand():
    logits = np.log(np.float32([[3, 1], [1, 1]]))
    found = cross_entropy(logits, np.array([0, 1]), 0.0)
    np.testing.assert_allclose(found, [-np.log(0.75), np.log(2)], rtol=1e-6)
    # a tenth of the target spread over both: 0.95 and 0.05
    smooth = cross_entropy(logits, np.array([0, 1]), 0.1)
    np.testing.assert_allclose(smooth, [-0.95 * np.log(0.75) - 0.05 * np.log(0.25), np.log(2)], rtol=1e-6)


def test_binary_cross_entropy_by_hand():
    logits = four_pixels([0, np.log(3), -np.log(3), 0])
    found = binary_cross_entropy(logits, four_pixels([1, 1, 1, 0]))
    np.testing.assert_allclose(found, [(2 * np.log(2) - np.log(0.75) - np.log(0.25)) / 4], rtol=1e-6)
    logits, mask = masks()
    expected = np.logaddexp(0, (1 - 2 * mask) * logits.astype(np.float64)).mean((1, 2, 3))
    np.testing.assert_allclose(binary_cross_entropy(logits, mask), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("logits", "mask", "expected"),
    [
        ([0, 0, 0, 0], [1, 1, 0, 0], 1 - 3 / 5),  # 2 * 1 + 1 over 2 + 2 + 1
        ([1e4, 1e4, -1e4, -1e4], [1, 1, 0, 0], 0.0),
        ([-1e4, -1e4, 1e4, 1e4], [1, 1, 0, 0], 1 - 1 / 5),
        ([-1e4, -1e4, -1e4, -1e4], [0, 0, 0, 0], 0.0),  # an empty mask, predicted empty
        ([1e4, -1e4, -1e4, -1e4], [0, 0, 0, 0], 1 - 1 / 2),
        ([np.log(3), -1e4, -1e4, -1e4], [1, 0, 0, 0], 1 - 2.5 / 2.75),
    ],
)
def test_soft_dice_by_hand(logits, mask, expected):
    np.testing.assert_allclose(soft_dice(four_pixels(logits), four_pixels(mask)), [expected], atol=1e-6)


@pytest.mark.parametrize("loss", MASK_LOSSES)
def test_a_mask_loss_is_one_number_per_example_that_does_not_depend_on_the_others(loss):
    logits, mask = masks()
    found = loss(logits, mask)
    assert found.shape == (3,)
    assert found.dtype == jnp.float32
    reversed_order = loss(logits[::-1], mask[::-1])
    np.testing.assert_allclose(found, reversed_order[::-1], rtol=1e-6)
    np.testing.assert_allclose(loss(logits, mask.astype(np.uint8)), found, rtol=1e-6)
    logits[1:] += 3
    np.testing.assert_allclose(loss(logits, mask)[0], found[0], rtol=1e-6)


def test_cross_entropy_is_one_number_per_example_that_does_not_depend_on_the_others():
    logits, label = masks(1)[0].reshape(4, 5), np.array([2, 0, 1, 1])
    found = cross_entropy(logits, label)
    assert found.shape == (4,)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, cross_entropy(logits[::-1], label[::-1])[::-1], rtol=1e-6)
    logits[1:] *= 2
    np.testing.assert_allclose(cross_entropy(logits, label)[0], found[0], rtol=1e-6)


def test_bfloat16_logits_give_float32_losses():
    logits, mask = masks()
    for loss in MASK_LOSSES:
        found = loss(logits.astype(jnp.bfloat16), mask)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, loss(logits, mask), atol=0.02)
    assert cross_entropy(np.ones((4, 5), jnp.bfloat16), np.array([0, 2, 1, 1])).dtype == jnp.float32


@pytest.mark.parametrize("size", [1e4, -1e4, 1e30, 0.0])
def test_extreme_logits_have_finite_losses_and_gradients(size):
    logits = np.full((4, 5, 4, 1), size, np.float32)
    mask = np.stack([np.zeros((5, 4, 1)), np.ones((5, 4, 1)), *masks(2)[1]]).astype(np.float32)
    for value, gradient in mask_gradients(logits, mask):
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
    rows = np.float32([[size, -size, 0.0]] * 4)
    for label in (np.array([0, 1, 2, 0]), np.array([-1, 3, -1, 7])):  # the second ones are outside [0, K)
        for smoothing in (0.0, 0.1):
            value, gradient = label_gradient(rows, label, smoothing)
            assert np.isfinite(value)
            assert np.isfinite(gradient).all()


@pytest.mark.parametrize("size", [1e4, -1e4, 30.0])
def test_a_confident_wrong_prediction_keeps_its_gradient(size):
    wrong = np.full((4, 5, 4, 1), float(size < 0), np.float32)
    (value, gradient), _ = mask_gradients(np.full(wrong.shape, size, np.float32), wrong)
    assert value == pytest.approx(4 * abs(size), rel=1e-5)
    np.testing.assert_allclose(gradient, np.sign(size) / 20, rtol=1e-5)


def test_losses_fall_as_the_prediction_improves():
    _, mask = masks(4)
    correct = 2 * mask - 1
    values = [[value for value, _ in mask_gradients(scale * correct, mask)] for scale in np.float32([-4, -1, 0, 1, 4])]
    assert (np.diff(values, axis=0) < 0).all()
    gradients = [gradient for _, gradient in mask_gradients(np.zeros_like(mask), mask)]
    for gradient in gradients:
        np.testing.assert_array_equal(np.sign(gradient), -correct)
    np.testing.assert_allclose(gradients[0], (0.5 - mask) / 20, rtol=1e-6)  # sigmoid(0) - m
