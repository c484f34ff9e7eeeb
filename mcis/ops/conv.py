"""Convolutions in forms that are fast on a CPU, with the numbers of the plain convolutions.

XLA's CPU backend runs plain convolutions near the peak of the machine. Gradients with respect to weights at full
resolution, grouped, widely dilated and transposed convolutions and gradients of pooling are 2 to 20 times slower than
the same arithmetic written as matrix products of neighbouring pixels. Those have forms of their own here; other
platforms get the plain forms. Arrays are (B, H, W, C). Measurements: docs/performance.md.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from mcis.ops.lowering import by_platform

LAYOUT = ("NHWC", "HWIO", "NHWC")
FEW_CHANNELS = 4
"""Most input channels for which a convolution is one product of patches of two columns: those of an image."""
TILE_PIXELS = 2048
"""Pixels of a tile of the weight gradient: few enough that its copies stay in the cache of a core."""


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, dilation: int = 1) -> jax.Array:
    """Convolution with an odd square kernel: (B, H, W, I), (k, k, I, O) -> (B, ceil(H/stride), ceil(W/stride), O).

    The input is padded by dilation * (k // 2) zeros on every side, as in PyTorch; "SAME" pads otherwise at a stride
    of 2. `dilation` is the step between the taps of the kernel in pixels ("atrous").
    """
    if kernel.shape[0] == 1:
        return pointwise(x[:, ::stride, ::stride], kernel[0, 0])
    plain = functools.partial(_plain_conv, stride=stride, dilation=dilation)
    if stride > 1:
        return plain(x, kernel)
    mostly_padding = dilation > 1 and 4 * dilation >= min(x.shape[1:3])
    fast = functools.partial(_conv_as_matmuls if mostly_padding else _conv_tiled_wgrad, dilation=dilation)
    return by_platform(x, kernel, cpu=fast, plain=plain)


def _plain_conv(x, kernel, stride, dilation):
    pad = dilation * (kernel.shape[0] // 2)
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(pad, pad)] * 2, rhs_dilation=(dilation, dilation), dimension_numbers=LAYOUT
    )


def _conv_as_matmuls(x, kernel, dilation):
    """Sum of one matrix product per tap, with the pixels that the tap meets inside the image.

    Fast where the dilation is wide: the plain form then multiplies mostly zeros of the padding.
    """
    height, width = x.shape[1:3]
    reach = kernel.shape[0] // 2
    total = jnp.zeros((*x.shape[:3], kernel.shape[-1]), jnp.promote_types(x.dtype, jnp.float32))
    for i in range(-reach, reach + 1):
        for j in range(-reach, reach + 1):
            down, right = i * dilation, j * dilation
            if abs(down) >= height or abs(right) >= width:
                continue
            top, bottom, before, after = max(0, -down), max(0, down), max(0, -right), max(0, right)
            patch = x[:, bottom : height - top, after : width - before]
            product = pointwise(patch, kernel[i + reach, j + reach])
            total = total + jnp.pad(product, ((0, 0), (top, bottom), (before, after), (0, 0)))
    return total.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv_tiled_wgrad(x, kernel, dilation):
    """A plain convolution whose weight gradient is computed tile by tile."""
    if x.shape[-1] <= FEW_CHANNELS and dilation == 1 and x.shape[2] % 2 == 0:
        return _conv_of_column_pairs(x, kernel)
    return _plain_conv(x, kernel, 1, dilation)


def _conv_tiled_wgrad_backward(dilation, inputs, cotangent):
    x, kernel = inputs
    dx = _plain_conv(cotangent, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), 1, dilation)
    return dx, _tiled_wgrad(x, cotangent, kernel.shape[0], dilation).astype(kernel.dtype)


_conv_tiled_wgrad.defvjp(
    lambda x, kernel, dilation: (_conv_tiled_wgrad(x, kernel, dilation), (x, kernel)), _conv_tiled_wgrad_backward
)


def _conv_of_column_pairs(x, kernel):
    """A plain convolution of few channels as one matrix product that gives two columns of a row at a time.

    Two columns share a patch of `size` rows and `size + 1` columns. For a size of 3 that takes two thirds of the copies
    that one patch per pixel would take, and makes the product twice as wide.
    """
    (batch, height, width, _), (size, *_, outputs) = x.shape, kernel.shape
    reach = size // 2
    x = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    rows = [x[:, i : i + height] for i in range(size)]
    patches = jnp.concatenate([row[:, :, j : j + width : 2] for row in rows for j in range(size + 1)], -1)
    left, right = (jnp.pad(kernel, ((0, 0), (shift, 1 - shift), (0, 0), (0, 0))) for shift in (0, 1))
    both = jnp.concatenate([left, right], -1).reshape(-1, 2 * outputs)
    return pointwise(patches, both).reshape(batch, height, width, outputs)


def _tiled_wgrad(x, cotangent, size, dilation):
    """Gradient with respect to the kernel, (size, size, I, O), in at least float32, summed over tiles of rows.

    The pixels of a tile are copied once for each column of taps, channels first. Each row of taps is then one matrix
    product of these copies with the rows of the cotangent that lie as far above or below.
    """
    (batch, height, width, inputs), outputs = x.shape, cotangent.shape[-1]
    pad = dilation * (size // 2)
    rows = next(n for n in range(max(1, min(height, TILE_PIXELS // (batch * width))), 0, -1) if height % n == 0)
    cotangent = jnp.pad(cotangent, ((0, 0), (pad, pad), (0, 0), (0, 0)))

    def add_tile(tile, total):
        first = tile * rows
        patch = lax.dynamic_slice_in_dim(x, first, rows, 1).transpose(3, 0, 1, 2)
        patch = jnp.pad(patch, ((0, 0), (0, 0), (0, 0), (pad, pad)))
        patch = jnp.concatenate([patch[..., j * dilation : j * dilation + width] for j in range(size)])
        patch = patch.reshape(size * inputs, -1)
        products = []
        for i in range(size):
            part = lax.dynamic_slice_in_dim(cotangent, first + 2 * pad - i * dilation, rows, 1).reshape(-1, outputs)
            products.append(jnp.dot(patch, part, preferred_element_type=total.dtype))
        return total + jnp.stack(products)

    zero = jnp.zeros((size, size * inputs, outputs), jnp.promote_types(x.dtype, jnp.float32))
    return lax.fori_loop(0, height // rows, add_tile, zero).reshape(size, size, inputs, outputs)


def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Depthwise convolution, odd square kernel, stride 1, zero padding: (B, H, W, C), (k, k, C) -> (B, H, W, C)."""
    return by_platform(x, kernel, cpu=_depthwise_as_sum, plain=_plain_depthwise)


def _plain_depthwise(x, kernel):
    pad, channels = kernel.shape[0] // 2, x.shape[-1]
    return lax.conv_general_dilated(
        x, kernel[:, :, None], (1, 1), [(pad, pad)] * 2, dimension_numbers=LAYOUT, feature_group_count=channels
    )


@jax.custom_vjp
def _depthwise_as_sum(x, kernel):
    """Sum of shifted images times their taps: one fused loop, while XLA's grouped convolution is not vectorised."""
    size = kernel.shape[0]
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)))
    total = jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))
    for i in range(size):
        for j in range(size):
            total = total + padded[:, i : i + height, j : j + width] * kernel[i, j, None, None, None]
    return total.astype(x.dtype)


def _depthwise_backward(inputs, cotangent):
    x, kernel = inputs
    dx = _depthwise_as_sum(cotangent, jnp.flip(kernel, (0, 1)))
    return dx, _depthwise_wgrad(x, cotangent, kernel.shape[0]).astype(kernel.dtype)


_depthwise_as_sum.defvjp(lambda x, kernel: (_depthwise_as_sum(x, kernel), (x, kernel)), _depthwise_backward)


def _depthwise_wgrad(x, cotangent, size):
    """Gradient with respect to the kernel, (size, size, C), in at least float32.

    Each row of the cotangent is multiplied with the pixels that each tap meets and added to a row of sums of that tap;
    the sums are reduced at the end. All of them fit into the cache of a core. A reduction of the whole array per tap is
    scalar in XLA, and reads both arrays once per tap.
    """
    batch, height, width, channels = cotangent.shape
    reach = size // 2
    padded = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    taps = [(i, j) for i in range(size) for j in range(size)]
    exact = jnp.promote_types(x.dtype, jnp.float32)

    def add_row(index, sums):
        scan, row = index // height, index % height
        patch = lax.dynamic_slice(padded, (scan, row, 0, 0), (1, size, *padded.shape[2:]))[0].astype(exact)
        part = lax.dynamic_slice(cotangent, (scan, row, 0, 0), (1, 1, width, channels))[0, 0].astype(exact)
        return [total + patch[i, j : j + width] * part for total, (i, j) in zip(sums, taps, strict=True)]

    zero = jnp.zeros((width, channels), exact)
    sums = lax.fori_loop(0, batch * height, add_row, [zero] * len(taps))
    return jnp.stack([total.sum(0) for total in sums]).reshape(size, size, channels)


@jax.custom_vjp
def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """1x1 convolution as one matrix product: (..., I), (I, O) -> (..., O).

    The gradient with respect to the kernel is summed in float32, as one product over all pixels.
    """
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=x.dtype)


def _pointwise_backward(inputs, cotangent):
    x, kernel = inputs
    last = cotangent.ndim - 1
    dx = lax.dot_general(cotangent, kernel, (((last,), (1,)), ((), ())), preferred_element_type=x.dtype)
    pixels, cotangents = x.reshape(-1, x.shape[-1]), cotangent.reshape(-1, cotangent.shape[-1])
    dkernel = lax.dot_general(pixels, cotangents, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return dx, dkernel.astype(kernel.dtype)


pointwise.defvjp(lambda x, kernel: (pointwise(x, kernel), (x, kernel)), _pointwise_backward)


def conv_transpose2x2(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """2x2 transposed convolution of stride 2: (B, H, W, I), (2, 2, I, O) -> (B, 2H, 2W, O).

    Output pixel (2h + j, 2w + k) is x[h, w] @ kernel[j, k]. The windows do not overlap, so one product is enough.
    """
    batch, height, width, _ = x.shape
    y = jnp.einsum("bhwi,jkio->bhjwko", x, kernel)
    return y.reshape(batch, 2 * height, 2 * width, kernel.shape[-1])


def _larger(first, second):
    """The larger one of each pair, the first of equal ones, NaN where one of them is NaN.

    Pooling selects with it instead of reducing. The gradient of a reduction compares the pixels with their maximum and
    divides by the number of equal ones; where XLA computes the pixels again with another rounding, none is equal and
    the gradient is NaN.
    """
    return jnp.where((first >= second) | jnp.isnan(first), first, second)


def max_pool2x2(x: jax.Array) -> jax.Array:
    """Maximum over 2x2 windows of stride 2: (B, H, W, C) with even H and W -> (B, H/2, W/2, C)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    x = _larger(x[:, :, :, :, 0], x[:, :, :, :, 1])
    return _larger(x[:, :, 0], x[:, :, 1])


def max_pool3x3(x: jax.Array) -> jax.Array:
    """Maximum over 3x3 windows of stride 2, padded by one: (B, H, W, C) with even H and W -> (B, H/2, W/2, C)."""
    for axis in (2, 1):  # along rows first: of equal pixels the first in reading order gets the gradient
        # window k holds pixels 2k - 1, 2k and 2k + 1
        even, odd = (lax.slice_in_dim(x, start, None, 2, axis) for start in (0, 1))
        padding = [(1, 0) if i == axis else (0, 0) for i in range(4)]
        before = lax.slice_in_dim(odd, 0, odd.shape[axis] - 1, 1, axis)
        x = _larger(_larger(jnp.pad(before, padding, constant_values=-jnp.inf), even), odd)
    return x


def space_to_depth(x: jax.Array, block: int) -> jax.Array:
    """Fold each block x block window into channels: (B, H, W, C) -> (B, H/block, W/block, block * block * C)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // block, block, width // block, block, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // block, width // block, block * block * channels)


def depth_to_space(x: jax.Array, block: int) -> jax.Array:
    """Unfold channels into block x block windows, the inverse of `space_to_depth`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, block, block, channels // block**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height * block, width * block, channels // block**2)
