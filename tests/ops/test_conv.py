"""Each convolution has the values and the gradients of the plain convolution of `lax`, each pooling those of flax."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mcis.ops import conv

LAYOUT = ("NHWC", "HWIO", "NHWC")


def plain_conv(x, kernel, stride=1, dilation=1):
    pad = dilation * (kernel.shape[0] // 2)
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(pad, pad)] * 2, rhs_dilation=(dilation, dilation), dimension_numbers=LAYOUT
    )


def strided(op, stride, dilation=1):
    return lambda x, kernel: op(x, kernel, stride, dilation)


def conv_case(x, kernel, stride=1, dilation=1):
    return strided(conv.conv, stride, dilation), strided(plain_conv, stride, dilation), x, kernel


def depthwise_case(x, kernel, stride=1):
    def plain(x, kernel):
        groups = x.shape[-1]
        return lax.conv_general_dilated(
            x, kernel[:, :, None, :], (stride, stride), "SAME", dimension_numbers=LAYOUT, feature_group_count=groups
        )

    return functools.partial(conv.depthwise, stride=stride), plain, x, kernel


def same_case(x, kernel, stride):
    plain = functools.partial(
        lax.conv_general_dilated, window_strides=(stride, stride), padding="SAME", dimension_numbers=LAYOUT
    )
    return functools.partial(conv.conv_same, stride=stride), plain, x, kernel


def plain_pointwise(x, kernel):
    return jnp.matmul(x, kernel)


def plain_conv_transpose2x2(x, kernel):
    # lax correlates the dilated input, so its kernel is flipped
    return lax.conv_transpose(x, jnp.flip(kernel, (0, 1)), (2, 2), "SAME", dimension_numbers=LAYOUT)


CASES = {  # name: (ours, plain, shape of x, shape of kernel)
    "conv 3": conv_case((2, 7, 5, 3), (3, 3, 3, 4)),
    "conv 3 of column pairs": conv_case((2, 7, 10, 3), (3, 3, 3, 4)),
    "conv 7 of column pairs on a smaller image": conv_case((1, 3, 2, 1), (7, 7, 1, 3)),
    "conv 3 one pixel": conv_case((2, 1, 1, 5), (3, 3, 5, 3)),
    "conv 1 stride 2": conv_case((2, 8, 5, 3), (1, 1, 3, 4), 2),
    "conv 3 stride 2": conv_case((2, 7, 6, 3), (3, 3, 3, 4), 2),
    "conv 7 stride 2 on a smaller image": conv_case((1, 4, 2, 3), (7, 7, 3, 4), 2),
    "conv 3 stride 2 dilation 2": conv_case((1, 9, 8, 2), (3, 3, 2, 3), 2, 2),
    "conv 3 dilation 2": conv_case((2, 12, 20, 3), (3, 3, 3, 4), 1, 2),
    "conv 3 of many tiles": conv_case((1, 36, 100, 2), (3, 3, 2, 3)),
    "conv 3 dilation 2 as products": conv_case((2, 7, 8, 3), (3, 3, 3, 4), 1, 2),
    "conv 3 dilation 6 on a smaller image": conv_case((1, 5, 4, 2), (3, 3, 2, 3), 1, 6),
    "conv 3 same stride 2": same_case((2, 8, 6, 3), (3, 3, 3, 4), 2),
    "conv 3 same stride 2 of odd sides": same_case((2, 7, 5, 3), (3, 3, 3, 4), 2),
    "depthwise 3": depthwise_case((2, 7, 5, 3), (3, 3, 3)),
    "depthwise 5 on a smaller image": depthwise_case((1, 2, 4, 2), (5, 5, 2)),
    "depthwise 3 stride 2": depthwise_case((2, 8, 6, 3), (3, 3, 3), 2),
    "depthwise 5 stride 2": depthwise_case((2, 8, 12, 2), (5, 5, 2), 2),
    "depthwise 5 stride 2 of odd sides": depthwise_case((1, 7, 5, 2), (5, 5, 2), 2),
    "pointwise": (conv.pointwise, plain_pointwise, (2, 5, 3, 4), (4, 6)),
    "transposed": (conv.conv_transpose2x2, plain_conv_transpose2x2, (2, 3, 5, 4), (2, 2, 4, 3)),
}


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def values_and_gradients(*ops, inputs):
    """Of each op: op(*inputs) and the gradients for one fixed cotangent, all in one compilation."""
    shape = jax.eval_shape(ops[0], *inputs)

    @jax.jit
    def run(cotangent, *inputs):
        results = []
        for op in ops:
            value, pull = jax.vjp(op, *inputs)
            results.append((value, *pull(cotangent)))
        return results

    return run(arrays(shape.shape)[0].astype(shape.dtype), *inputs)


def assert_close(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    scale = np.abs(np.asarray(expected, np.float64)).max()
    np.testing.assert_allclose(np.asarray(found, np.float64), np.asarray(expected, np.float64), atol=tolerance * scale)


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_plain_convolution(case):
    ours, plain, *shapes = CASES[case]
    for found, expected in zip(*values_and_gradients(ours, plain, inputs=arrays(*shapes)), strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("case", ["conv 3", "conv 3 dilation 6 on a smaller image", "depthwise 3"])
def test_values_and_gradients_of_bfloat16_are_bfloat16_and_close(case):
    ours, plain, *shapes = CASES[case]
    inputs = arrays(*shapes)
    (half,) = values_and_gradients(ours, inputs=[x.astype(jnp.bfloat16) for x in inputs])
    (exact,) = values_and_gradients(plain, inputs=inputs)
    for found, expected in zip(half, exact, strict=True):
        assert found.dtype == jnp.bfloat16
        assert_close(np.asarray(found, np.float32), expected, 0.04)


@jax.jit
def pooled(x):
    return conv.max_pool2x2(x), conv.max_pool3x3(x)


def test_the_maximum_of_a_window_with_nan_is_nan():
    for at in ((0, 0), (0, 1), (1, 0), (1, 1)):
        x = np.zeros((1, 4, 4, 1), np.float32)
        x[0, at[0], at[1], 0] = np.nan
        for found in pooled(x):
            assert np.isnan(found[0, 0, 0, 0]), at


@pytest.mark.parametrize(("ours", "window"), [(conv.max_pool2x2, 2), (conv.max_pool3x3, 3)])
def test_max_pooling_has_the_values_and_gradients_of_flax(ours, window):
    padding = [(window // 2 * (window % 2),) * 2] * 2
    (x,) = arrays((2, 6, 8, 2))
    x = np.concatenate([x, np.sign(x)])  # of equal pixels the first gets the gradient
    of_flax = functools.partial(nn.max_pool, window_shape=(window, window), strides=(2, 2), padding=padding)
    (value, gradient), (expected, expected_gradient) = values_and_gradients(ours, of_flax, inputs=[x])
    np.testing.assert_array_equal(value, expected)
    assert_close(gradient, expected_gradient)


def test_space_to_depth_by_hand():
    x = np.arange(2 * 4 * 2).reshape(1, 2, 4, 2)  # rows, columns, channels
    folded = conv.space_to_depth(x, 2)
    assert folded.shape == (1, 1, 2, 8)
    # window by window, within it row by row, then the channels of each pixel
    np.testing.assert_array_equal(folded[0, 0, 0], [0, 1, 2, 3, 8, 9, 10, 11])
    np.testing.assert_array_equal(folded[0, 0, 1], [4, 5, 6, 7, 12, 13, 14, 15])


@pytest.mark.parametrize("block", [1, 2, 4])
def test_depth_to_space_is_the_inverse_of_space_to_depth(block):
    (x,) = arrays((2, 8, 12, 3))
    folded = conv.space_to_depth(x, block)
    assert folded.shape == (2, 8 // block, 12 // block, 3 * block**2)
    np.testing.assert_array_equal(conv.depth_to_space(folded, block), x)
    (y,) = arrays((2, 3, 5, 2 * block**2))
    np.testing.assert_array_equal(conv.space_to_depth(conv.depth_to_space(y, block), block), y)
