"""Convolutions in the forms that XLA compiles well on a CPU; the numbers are those of the plain convolutions.

XLA's CPU backend runs forward 3x3 convolutions near the machine's peak, but its convolution gradients with respect to
weights, its grouped convolutions, its strided transposed convolutions and its pooling gradients are 3 to 20 times
slower than the same arithmetic written as dot products or as shifted multiplies. Arrays are (B, H, W, C).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

LAYOUT = ("NHWC", "HWIO", "NHWC")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, dilation: int = 1) -> jax.Array:
    """Convolution with an odd square kernel: (B, H, W, I), (k, k, I, O) -> (B, ceil(H/stride), ceil(W/stride), O).

    The input is padded by dilation * (k // 2) zeros on every side, as PyTorch's layers of this shape do; with a stride
    of 2 that is not what "SAME" means. `dilation` is the step between the kernel's taps in pixels ("atrous").
    """
    pad = dilation * (kernel.shape[0] // 2)
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(pad, pad)] * 2, rhs_dilation=(dilation, dilation), dimension_numbers=LAYOUT
    )


def _conv_forward(x, kernel, stride, dilation):
    return conv(x, kernel, stride, dilation), (x, kernel)


def _conv_backward(stride, dilation, residual, dy):
    x, kernel = residual
    size, pad = kernel.shape[0], dilation * (kernel.shape[0] // 2)
    rows, columns = (range(0, n * stride, stride) for n in dy.shape[1:3])
    if stride == 1:
        dx = conv(dy, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), 1, dilation)
    else:
        dx = _strided_input_gradient(dy, kernel, stride, dilation, x.shape)
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    flat = dy.reshape(-1, dy.shape[-1])
    taps = []  # the weight gradient as one matrix product a kernel position
    for i in range(0, size * dilation, dilation):
        for j in range(0, size * dilation, dilation):
            window = padded[:, i : i + rows[-1] + 1 : stride, j : j + columns[-1] + 1 : stride]
            taps.append(
                lax.dot_general(
                    window.reshape(-1, x.shape[-1]),
                    flat,
                    (((0,), (0,)), ((), ())),
                    preferred_element_type=jnp.float32,
                )
            )
    return dx, jnp.stack(taps).reshape(kernel.shape).astype(kernel.dtype)


conv.defvjp(_conv_forward, _conv_backward)


def _strided_input_gradient(dy, kernel, stride, dilation, shape):
    """Gradient with respect to the input: every tap is a matrix product, added to the pixels that it read.

    Pixels are kept apart by their remainder modulo the stride, so that each tap's are contiguous.
    """
    size, pad = kernel.shape[0], dilation * (kernel.shape[0] // 2)
    reach = dilation * (size - 1) // stride
    height, width = (n + reach for n in dy.shape[1:3])
    total = [[jnp.zeros((shape[0], height, width, shape[3]), dy.dtype) for _ in range(stride)] for _ in range(stride)]
    for i in range(size):
        for j in range(size):
            (down, row), (right, column) = divmod(i * dilation, stride), divmod(j * dilation, stride)
            part = lax.dot_general(dy, kernel[i, j], (((3,), (1,)), ((), ())), preferred_element_type=dy.dtype)
            part = jnp.pad(part, ((0, 0), (down, reach - down), (right, reach - right), (0, 0)))
            total[row][column] = total[row][column] + part
    dx = jnp.stack([jnp.stack(row, 3) for row in total], 2)
    dx = dx.reshape(shape[0], height * stride, width * stride, shape[3])
    ends = [max(0, pad + n - m) for n, m in zip(shape[1:3], dx.shape[1:3], strict=True)]  # pixels that no tap reads
    dx = jnp.pad(dx, ((0, 0), (0, ends[0]), (0, ends[1]), (0, 0)))
    return dx[:, pad : pad + shape[1], pad : pad + shape[2]]


def _shifted_sum(x, kernel):
    size = kernel.shape[0]
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)))
    total = jnp.zeros_like(x)
    for i in range(size):
        for j in range(size):
            total = total + padded[:, i : i + height, j : j + width] * kernel[i, j, None, None, None]
    return total


@jax.custom_vjp
def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Depthwise convolution, odd square kernel, stride 1, zero padding: (B, H, W, C), (k, k, C) -> (B, H, W, C)."""
    return _shifted_sum(x, kernel)


def _depthwise_forward(x, kernel):
    return _shifted_sum(x, kernel), (x, kernel)


def _depthwise_backward(residual, dy):
    x, kernel = residual
    size = kernel.shape[0]
    dx = _shifted_sum(dy, jnp.flip(kernel, (0, 1)))
    padded = jnp.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)))

    def tap(index):
        window = lax.dynamic_slice(padded, (0, index // size, index % size, 0), dy.shape)
        return jnp.sum(window * dy, (0, 1, 2), dtype=jnp.float32)

    # a loop over the taps: unrolled, the sums take two to three times as long and compile more slowly
    taps = lax.map(tap, jnp.arange(size * size))
    return dx, taps.reshape(kernel.shape).astype(kernel.dtype)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


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
    x = jnp.where(left >= right, left, right)
    upper, lower = x[:, :, 0], x[:, :, 1]
    return jnp.where(upper >= lower, upper, lower)


def max_pool3x3(x: jax.Array) -> jax.Array:
    """Maximum over 3x3 windows of stride 2, padded by one: (B, H, W, C) with even H and W -> (B, H/2, W/2, C)."""
    for axis in (2, 1):  # along rows first: of equal pixels the first in reading order has the gradient
        # window k holds pixels 2k - 1, 2k and 2k + 1; chosen, not reduced, for the reason above
        even, odd = (lax.slice_in_dim(x, start, None, 2, axis) for start in (0, 1))
        before = lax.pad(
            lax.slice_in_dim(odd, 0, odd.shape[axis] - 1, 1, axis),
            jnp.array(-jnp.inf, x.dtype),
            [(1, 0, 0) if i == axis else (0, 0, 0) for i in range(4)],
        )
        x = jnp.where(before >= even, before, even)
        x = jnp.where(x >= odd, x, odd)
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
