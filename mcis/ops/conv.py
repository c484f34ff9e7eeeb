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

    The input is padded by dilation * (k // 2) zeros on every side, as in PyTorch; `conv_same` pads otherwise at a
    stride of 2. `dilation` is the step between the taps of the kernel in pixels ("atrous").
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


def conv_same(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolution of few channels, padded as TensorFlow's "SAME": (B, H, W, I), (k, k, I, O) -> (B, H/s, W/s, O).

    Where the padding is odd, the further row is below and the further column to the right.
    """
    plain = functools.partial(
        lax.conv_general_dilated, window_strides=(stride, stride), padding="SAME", dimension_numbers=LAYOUT
    )
    return by_platform(x, kernel, cpu=functools.partial(_conv_of_patches, stride=stride), plain=plain)


def _conv_of_patches(x, kernel, stride):
    """One product of patches: the weight gradient is then one product too."""
    size, outputs = kernel.shape[0], kernel.shape[-1]
    patches = jnp.concatenate([tap for row in _taps(_padded_same(x, size, stride), size, stride) for tap in row], -1)
    return pointwise(patches, kernel.reshape(-1, outputs))


def _padded_same(x, size, stride):
    """(B, H, W, C) with the zeros around it that TensorFlow's "SAME" adds."""
    missing = [max((-(-side // stride) - 1) * stride + size - side, 0) for side in x.shape[1:3]]
    return jnp.pad(x, ((0, 0), *((n // 2, n - n // 2) for n in missing), (0, 0)))


def _taps(padded, size, stride):
    """Rows of the pixels (B, H, W, C) that the taps of a kernel meet."""
    height, width = ((side - size) // stride * stride + 1 for side in padded.shape[1:3])
    return [[padded[:, i : i + height : stride, j : j + width : stride] for j in range(size)] for i in range(size)]


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


def depthwise(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Depthwise convolution with an odd square kernel: (B, H, W, C), (k, k, C) -> (B, ceil(H/s), ceil(W/s), C).

    Padded with zeros as TensorFlow's "SAME": where the padding is odd, the further row is below.
    """
    fast, plain = (functools.partial(form, stride=stride) for form in (_depthwise_as_sum, _plain_depthwise))
    return by_platform(x, kernel, cpu=fast, plain=plain)


def _plain_depthwise(x, kernel, stride):
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (stride, stride),
        "SAME",
        dimension_numbers=LAYOUT,
        feature_group_count=x.shape[-1],
    )


@functools.partial(jax.custom_vjp, nondiff_argnames=("stride",))
def _depthwise_as_sum(x, kernel, stride):
    """Sum of shifted images times their taps: one fused loop, while XLA's grouped convolution is not vectorised."""
    size, exact = kernel.shape[0], jnp.promote_types(x.dtype, jnp.float32)
    taps = _taps(_padded_same(x, size, stride), size, stride)
    total = jnp.zeros(taps[0][0].shape, exact)
    for i in range(size):
        for j in range(size):
            total = total + taps[i][j] * kernel[i, j, None, None, None]
    return total.astype(x.dtype)


def _depthwise_backward(stride, inputs, cotangent):
    x, kernel = inputs
    dx = _depthwise_dx(cotangent, kernel, x.shape, stride).astype(x.dtype)
    return dx, _depthwise_wgrad(x, cotangent, kernel.shape[0], stride).astype(kernel.dtype)


_depthwise_as_sum.defvjp(
    lambda x, kernel, stride: (_depthwise_as_sum(x, kernel, stride), (x, kernel)), _depthwise_backward
)


def _depthwise_dx(cotangent, kernel, shape, stride):
    """Gradient with respect to the input of `shape`, in at least float32.

    The rows of the padded input that are a multiple of the stride apart meet the same taps. Each such set is a sum of
    shifted cotangents times their taps, as in the forward pass; the sets are interleaved at the end.
    """
    size, exact = kernel.shape[0], jnp.promote_types(cotangent.dtype, jnp.float32)
    steps = -(-size // stride)
    missing = [max((-(-side // stride) - 1) * stride + size - side, 0) for side in shape[1:3]]
    rows, columns = (-(-(side + n) // stride) for side, n in zip(shape[1:3], missing, strict=True))
    after = (rows - cotangent.shape[1], columns - cotangent.shape[2])
    padded = jnp.pad(cotangent, ((0, 0), *((steps - 1, n) for n in after), (0, 0)))
    sets = []
    for a in range(stride):
        for b in range(stride):
            total = jnp.zeros((shape[0], rows, columns, shape[3]), exact)
            for i in range(a, size, stride):
                for j in range(b, size, stride):
                    top, left = steps - 1 - i // stride, steps - 1 - j // stride
                    total = total + padded[:, top : top + rows, left : left + columns] * kernel[i, j, None, None, None]
            sets.append(total)
    whole = depth_to_space(jnp.concatenate(sets, -1), stride) if stride > 1 else sets[0]
    top, left = (n // 2 for n in missing)
    return whole[:, top : top + shape[1], left : left + shape[2]]


def _depthwise_wgrad(x, cotangent, size, stride):
    """Gradient with respect to the kernel, (size, size, C), in at least float32.

    Each row of the cotangent is multiplied with the pixels that each tap meets and added to a row of sums of that tap;
    the sums are reduced at the end. All of them fit into the cache of a core. A reduction of the whole array per tap is
    scalar in XLA, and reads both arrays once per tap.
    """
    batch, height, width, channels = cotangent.shape
    padded = _padded_same(x, size, stride)
    taps = [(i, j) for i in range(size) for j in range(size)]
    exact = jnp.promote_types(x.dtype, jnp.float32)
    span = (width - 1) * stride + 1

    def add_row(index, sums):
        scan, row = index // height, index % height
        patch = lax.dynamic_slice(padded, (scan, stride * row, 0, 0), (1, size, *padded.shape[2:]))[0].astype(exact)
        part = lax.dynamic_slice(cotangent, (scan, row, 0, 0), (1, 1, width, channels))[0, 0].astype(exact)
        return [total + patch[i, j : j + span : stride] * part for total, (i, j) in zip(sums, taps, strict=True)]

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


def upsample2x2(x: jax.Array) -> jax.Array:
    """Each pixel as a window of 2x2 (nearest neighbour): (B, H, W, C) -> (B, 2H, 2W, C)."""
    batch, height, width, channels = x.shape
    windows = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return windows.reshape(batch, 2 * height, 2 * width, channels)


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
