"""Each convolution against the plain one of `lax` and `flax`: the same values and the same gradients."""

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


def plain_depthwise(x, kernel):
    channels = x.shape[-1]
    return lax.conv_general_dilated(
        x, kernel[:, :, None, :], (1, 1), "SAME", dimension_numbers=LAYOUT, feature_group_count=channels
    )


def plain_pointwise(x, kernel):
    return jnp.matmul(x, kernel)


def plain_conv_transpose2x2(x, kernel):
    # lax correlates the dilated input, so that its kernel is ours turned round
    return lax.conv_transpose(x, jnp.flip(kernel, (0, 1)), (2, 2), "SAME", dimension_numbers=LAYOUT)


CASES = {  # name: (ours, plain, shape of x, shape of kernel)
    "conv 3": conv_case((2, 7, 5, 3), (3, 3, 3, 4)),
    "conv 3 one channel": conv_case((3, 6, 9, 1), (3, 3, 1, 2)),
    "conv 3 of pairs": conv_case((2, 7, 10, 3), (3, 3, 3, 4)),
    "conv 5 of pairs": conv_case((2, 6, 8, 4), (5, 5, 4, 3)),
    "conv 7 of pairs on less": conv_case((1, 3, 2, 1), (7, 7, 1, 3)),
    "conv 3 one pixel": conv_case((2, 1, 1, 5), (3, 3, 5, 3)),
    "conv 3 one row": conv_case((1, 1, 8, 2), (3, 3, 2, 2)),
    "conv 3 stride 2": conv_case((2, 8, 6, 3), (3, 3, 3, 4), 2),
    "conv 3 stride 2 odd": conv_case((2, 7, 5, 3), (3, 3, 3, 4), 2),
    "conv 1 stride 2": conv_case((2, 8, 5, 3), (1, 1, 3, 4), 2),
    "conv 7 stride 2": conv_case((1, 14, 16, 3), (7, 7, 3, 4), 2),
    "conv 7 stride 2 on less": conv_case((1, 4, 2, 3), (7, 7, 3, 4), 2),
    "conv 3 dilation 2": conv_case((2, 9, 8, 3), (3, 3, 3, 4), 1, 2),
    "conv 3 dilation 2 in strips": conv_case((2, 12, 20, 3), (3, 3, 3, 4), 1, 2),
    "conv 3 of many strips": conv_case((1, 36, 100, 2), (3, 3, 2, 3)),
    "conv 5": conv_case((2, 9, 7, 2), (5, 5, 2, 3)),
    "conv 1": conv_case((2, 5, 4, 3), (1, 1, 3, 4)),
    "conv 3 dilation 6 on less": conv_case((1, 5, 4, 2), (3, 3, 2, 3), 1, 6),
    "conv 3 stride 2 dilation 2": conv_case((1, 9, 8, 2), (3, 3, 2, 3), 2, 2),
    "conv 3 stride 3": conv_case((1, 10, 8, 2), (3, 3, 2, 3), 3),
    "depthwise 3": (conv.depthwise, plain_depthwise, (2, 7, 5, 3), (3, 3, 3)),
    "depthwise 5": (conv.depthwise, plain_depthwise, (2, 9, 11, 4), (5, 5, 4)),
    "depthwise 7 on less": (conv.depthwise, plain_depthwise, (1, 3, 5, 2), (7, 7, 2)),
    "pointwise": (conv.pointwise, plain_pointwise, (2, 5, 3, 4), (4, 6)),
    "pointwise rows": (conv.pointwise, plain_pointwise, (7, 3), (3, 5)),
    "transposed": (conv.conv_transpose2x2, plain_conv_transpose2x2, (2, 3, 5, 4), (2, 2, 4, 3)),
    "transposed one pixel": (conv.conv_transpose2x2, plain_conv_transpose2x2, (1, 1, 1, 2), (2, 2, 2, 5)),
}


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def value_and_gradients(op, *inputs):
    """op(*inputs) and the pullback of one fixed cotangent, compiled as one."""

    @jax.jit
    def run(cotangent, *inputs):
        value, pull = jax.vjp(op, *inputs)
        return value, *pull(cotangent)

    shape = jax.eval_shape(op, *inputs)
    return run(arrays(shape.shape)[0].astype(shape.dtype), *inputs)


def assert_close(found, wanted, tolerance=1e-5):
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    scale = np.abs(np.asarray(wanted, np.float64)).max()
    np.testing.assert_allclose(np.asarray(found, np.float64), np.asarray(wanted, np.float64), atol=tolerance * scale)


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_are_those_of_the_plain_convolution(case):
    ours, plain, x_shape, kernel_shape = CASES[case]
    x, kernel = arrays(x_shape, kernel_shape)
    pairs = zip(value_and_gradients(ours, x, kernel), value_and_gradients(plain, x, kernel), strict=True)
    for found, wanted in pairs:
        assert_close(found, wanted)


@pytest.mark.parametrize("case", ["conv 3", "conv 3 dilation 6 on less", "depthwise 5", "pointwise", "transposed"])
def test_bfloat16_in_bfloat16_out_forward_and_back(case):
    ours, _, x_shape, kernel_shape = CASES[case]
    x, kernel = arrays(x_shape, kernel_shape)
    half = value_and_gradients(ours, x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    for found, wanted in zip(half, value_and_gradients(ours, x, kernel), strict=True):
        assert found.dtype == jnp.bfloat16
        assert_close(found.astype(np.float32), wanted, 0.04)


@pytest.mark.parametrize("ours", [conv.max_pool2x2, conv.max_pool3x3])
def test_max_pool_hides_no_nan(ours):
    for at in ((0, 0), (0, 1), (1, 0), (1, 1)):
        x = np.zeros((1, 4, 4, 1), np.float32)
        x[0, at[0], at[1], 0] = np.nan
        assert np.isnan(ours(x)[0, 0, 0, 0]), at


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("shape", [(1, 2, 2, 1), (3, 10, 14, 2)])
@pytest.mark.parametrize(("ours", "window"), [(conv.max_pool2x2, 2), (conv.max_pool3x3, 3)])
def test_max_pool_is_flax_max_pool_with_its_gradient(ours, window, shape, ties):
    (x,) = arrays(shape)
    x = np.sign(x) if ties else x  # of equal pixels the first has the gradient
    padding = [(window // 2 * (window % 2),) * 2] * 2
    value, gradient = value_and_gradients(ours, x)
    wanted, wanted_gradient = value_and_gradients(lambda x: nn.max_pool(x, (window, window), (2, 2), padding), x)
    np.testing.assert_array_equal(value, wanted)
    assert_close(gradient, wanted_gradient)


def test_space_to_depth_by_hand():
    x = np.arange(2 * 4 * 2).reshape(1, 2, 4, 2)  # rows, columns, channels
    folded = conv.space_to_depth(x, 2)
    assert folded.shape == (1, 1, 2, 8)
    # one window after the other; in it row by row, each pixel's channels side by side
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
