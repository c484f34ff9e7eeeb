"""Convolutions in the forms that XLA compiles well on a CPU; the numbers are those of the plain convolutions.

XLA's CPU backend runs plain convolutions near the machine's peak, but their gradients with respect to weights at full
resolution, grouped convolutions, widely dilated ones, transposed ones and the gradients of pooling are 2 to 20 times
slower than the same arithmetic written as matrix products of what is near. Elsewhere the plain forms are taken.
Arrays are (B, H, W, C). Figures: docs/performance.md.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from mcis.ops.lowering import by_platform

LAYOUT = ("NHWC", "HWIO", "NHWC")
FEW = 4
"""Channels that a picture has at most: its first convolution is one product of patches of two columns."""
STRIP = 2048
"""Pixels of a strip in the weight gradient: few enough that its copies stay in a core's cache."""


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, dilation: int = 1) -> jax.Array:
    """Convolution with an odd square kernel: (B, H, W, I), (k, k, I, O) -> (B, ceil(H/stride), ceil(W/stride), O).

    The input is padded by dilation * (k // 2) zeros on every side, as PyTorch's layers of this shape do; with a stride
    of 2 that is not what "SAME" means. `dilation` is the step between the kernel's taps in pixels ("atrous").
    """
    if kernel.shape[0] == 1:
        return pointwise(x[:, ::stride, ::stride], kernel[0, 0])
    plain = functools.partial(_plain, stride=stride, dilation=dilation)
    if stride > 1:
        return plain(x, kernel)
    # Where taps reach past the image many products are with zeros alone.
    wide = 4 * dilation >= min(x.shape[1:3]) and dilation > 1
    near = functools.partial(_by_taps if wide else _by_strips, dilation=dilation)
    return by_platform(x, kernel, cpu=near, plain=plain)


def _plain(x, kernel, stride, dilation):
    pad = dilation * (kernel.shape[0] // 2)
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(pad, pad)] * 2, rhs_dilation=(dilation, dilation), dimension_numbers=LAYOUT
    )


def _by_taps(x, kernel, dilation):
    """One matrix product a tap, of the pixels that it finds inside the image."""
    height, width = x.shape[1:3]
    reach = kernel.shape[0] // 2
    total = jnp.zeros((*x.shape[:3], kernel.shape[-1]), jnp.promote_types(x.dtype, jnp.float32))
    for i in range(-reach, reach + 1):
        for j in range(-reach, reach + 1):
            down, right = i * dilation, j * dilation
            if abs(down) >= height or abs(right) >= width:
                continue
            top, bottom, left, end = max(0, -down), max(0, down), max(0, -right), max(0, right)
            seen = x[:, top + down : height - bottom + down, left + right : width - end + right]
            part = pointwise(seen, kernel[i + reach, j + reach])
            total = total + jnp.pad(part, ((0, 0), (top, bottom), (left, end), (0, 0)))
    return total.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _by_strips(x, kernel, dilation):
    """A plain convolution whose weight gradient is summed over strips of rows."""
    if x.shape[-1] <= FEW and dilation == 1 and x.shape[2] % 2 == 0:
        return _by_pairs(x, kernel)
    return _plain(x, kernel, 1, dilation)


def _strips_forward(x, kernel, dilation):
    return _by_strips(x, kernel, dilation), (x, kernel)


def _strips_backward(dilation, residual, dy):
    x, kernel = residual
    dx = _plain(dy, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), 1, dilation)
    return dx, _weight_gradient(x, dy, kernel.shape[0], dilation).astype(kernel.dtype)


_by_strips.defvjp(_strips_forward, _strips_backward)


def _by_pairs(x, kernel):
    """A plain convolution of few channels as one matrix product that gives two columns of a row at a time.

    The pair shares its patch, `size` rows of `size + 1` columns: for a size of 3 two thirds of the copies that a patch
    for every pixel would need, and a product twice as wide.
    """
    (batch, height, width, _), (size, *_, outputs) = x.shape, kernel.shape
    reach = size // 2
    x = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    rows = [x[:, i : i + height] for i in range(size)]
    patches = jnp.concatenate([row[:, :, j : j + width : 2] for row in rows for j in range(size + 1)], -1)
    left, right = (jnp.pad(kernel, ((0, 0), (e, 1 - e), (0, 0), (0, 0))) for e in (0, 1))
    both = jnp.concatenate([left, right], -1).reshape(-1, 2 * outputs)
    return pointwise(patches, both).reshape(batch, height, width, outputs)


def _weight_gradient(x, dy, size, dilation):
    """Gradient with respect to the kernel, (size, size, I, O), in at least float32.

    In a strip of rows the columns that the taps see are laid out once, channels first; each row of taps is then one
    matrix product with the rows of `dy` that lie as far above or below.
    """
    (batch, height, width, inputs), outputs = x.shape, dy.shape[-1]
    pad = dilation * (size // 2)
    rows = next(n for n in range(max(1, min(height, STRIP // (batch * width))), 0, -1) if height % n == 0)
    dy = jnp.pad(dy, ((0, 0), (pad, pad), (0, 0), (0, 0)))

    def add_strip(strip, total):
        first = strip * rows
        seen = lax.dynamic_slice_in_dim(x, first, rows, 1).transpose(3, 0, 1, 2)
        seen = jnp.pad(seen, ((0, 0), (0, 0), (0, 0), (pad, pad)))
        seen = jnp.concatenate([seen[..., j * dilation : j * dilation + width] for j in range(size)])
        seen = seen.reshape(size * inputs, -1)
        parts = []
        for i in range(size):
            given = lax.dynamic_slice_in_dim(dy, first + 2 * pad - i * dilation, rows, 1).reshape(-1, outputs)
            parts.append(jnp.dot(seen, given, preferred_element_type=total.dtype))
        return total + jnp.stack(parts)

    zero = jnp.zeros((size, size * inputs, outputs), jnp.promote_types(x.dtype, jnp.float32))
    return lax.fori_loop(0, height // rows, add_strip, zero).reshape(size, size, inputs, outputs)


def _shifted_sum(x, kernel):
    size = kernel.shape[0]
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)))
    total = jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))
    for i in range(size):
        for j in range(size):
            total = total + padded[:, i : i + height, j : j + width] * kernel[i, j, None, None, None]
    return total.astype(x.dtype)


def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Depthwise convolution, odd square kernel, stride 1, zero padding: (B, H, W, C), (k, k, C) -> (B, H, W, C)."""
    return by_platform(x, kernel, cpu=_depthwise_by_taps, plain=_plain_depthwise)


def _plain_depthwise(x, kernel):
    pad, channels = kernel.shape[0] // 2, x.shape[-1]
    return lax.conv_general_dilated(
        x, kernel[:, :, None], (1, 1), [(pad, pad)] * 2, dimension_numbers=LAYOUT, feature_group_count=channels
    )


@jax.custom_vjp
def _depthwise_by_taps(x, kernel):
    return _shifted_sum(x, kernel)


def _depthwise_forward(x, kernel):
    return _shifted_sum(x, kernel), (x, kernel)


def _depthwise_backward(residual, dy):
    x, kernel = residual
    dx = _shifted_sum(dy, jnp.flip(kernel, (0, 1)))
    return dx, _depthwise_weight_gradient(x, dy, kernel.shape[0]).astype(kernel.dtype)


def _depthwise_weight_gradient(x, dy, size):
    """Gradient with respect to the kernel, (size, size, C), in at least float32.

    Row after row of `dy` is multiplied with what each tap sees and added to that tap's own row of sums, which are added
    up at the end. All of them fit into a core's cache; a sum over the whole array for each tap is scalar in XLA, and
    reads both arrays once a tap.
    """
    batch, height, width, channels = dy.shape
    reach = size // 2
    padded = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    taps = [(i, j) for i in range(size) for j in range(size)]
    exact = jnp.promote_types(x.dtype, jnp.float32)

    def add_row(index, sums):
        scan, row = index // height, index % height
        seen = lax.dynamic_slice(padded, (scan, row, 0, 0), (1, size, *padded.shape[2:]))[0]
        given = lax.dynamic_slice(dy, (scan, row, 0, 0), (1, 1, width, channels))[0, 0]
        seen, given = seen.astype(exact), given.astype(exact)
        return [total + seen[i, j : j + width] * given for total, (i, j) in zip(sums, taps, strict=True)]

    zero = jnp.zeros((width, channels), exact)
    sums = lax.fori_loop(0, batch * height, add_row, [zero] * len(taps))
    return jnp.stack([total.sum(0) for total in sums]).reshape(size, size, channels)


_depthwise_by_taps.defvjp(_depthwise_forward, _depthwise_backward)


@jax.custom_vjp
def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """1x1 convolution as one matrix product: (..., I), (I, O) -> (..., O)."""
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=x.dtype)


def _pointwise_forward(x, kernel):
    return pointwise(x, kernel), (x, kernel)


def _pointwise_backward(residual, dy):
    x, kernel = residual
    dx = lax.dot_general(dy, kernel, (((dy.ndim - 1,), (1,)), ((), ())), preferred_element_type=x.dtype)
    dkernel = lax.dot_general(
        x.reshape(-1, x.shape[-1]),
        dy.reshape(-1, dy.shape[-1]),
        (((0,), (0,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    return dx, dkernel.astype(kernel.dtype)


pointwise.defvjp(_pointwise_forward, _pointwise_backward)


def conv_transpose2x2(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """2x2 transposed convolution of stride 2: (B, H, W, I), (2, 2, I, O) -> (B, 2H, 2W, O).

    Output pixel (2h + j, 2w + k) is x[h, w] @ kernel[j, k]: the windows do not overlap, so that one product does it.
    """
    batch, height, width, _ = x.shape
    y = jnp.einsum("bhwi,jkio->bhjwko", x, kernel)
    return y.reshape(batch, 2 * height, 2 * width, kernel.shape[-1])


def max_pool2x2(x: jax.Array) -> jax.Array:
    """Maximum over 2x2 windows of stride 2: (B, H, W, C) with even H and W -> (B, H/2, W/2, C)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    # Chosen, not reduced: a reduction's gradient asks which pixels equal the maximum and divides by their number. Where
    # XLA computes the pixels a second time and rounds otherwise, that is none of them, and the gradient NaN.
    left, right = x[:, :, :, :, 0], x[:, :, :, :, 1]
    x = _larger(left, right)
    return _larger(x[:, :, 0], x[:, :, 1])


def _larger(first, second):
    """The larger one of each pair, the first of equal ones, NaN where one of them is."""
    return jnp.where((first >= second) | jnp.isnan(first), first, second)


def max_pool3x3(x: jax.Array) -> jax.Array:
    """Maximum over 3x3 windows of stride 2, padded by one: (B, H, W, C) with even H and W -> (B, H/2, W/2, C)."""
    for axis in (2, 1):  # along rows first: of equal pixels the first in reading order has the gradient
        # window k holds pixels 2k - 1, 2k and 2k + 1; chosen, not reduced, for the reason above
        even, odd = (lax.slice_in_dim(x, start, None, 2, axis) for start in (0, 1))
        before = jnp.pad(
            lax.slice_in_dim(odd, 0, odd.shape[axis] - 1, 1, axis),
            [(1, 0) if i == axis else (0, 0) for i in range(4)],
            constant_values=-jnp.inf,
        )
        x = _larger(_larger(before, even), odd)
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
