"""Convolutions in the forms that XLA compiles well on a CPU; the numbers are those of the plain convolutions.

XLA's CPU backend runs forward 3x3 convolutions near the machine's peak, but its convolution gradients with respect to
weights, its grouped convolutions, its strided transposed convolutions and its pooling gradients are 3 to 20 times
slower than the same arithmetic written as dot products or as shifted multiplies. Arrays are (B, H, W, C).
"""

import jax
import jax.numpy as jnp
from jax import lax

LAYOUT = ("NHWC", "HWIO", "NHWC")


@jax.custom_vjp
def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 convolution, stride 1, zero padding: (B, H, W, I), (3, 3, I, O) -> (B, H, W, O)."""
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)


def _conv3x3_forward(x, kernel):
    return conv3x3(x, kernel), (x, kernel)


def _conv3x3_backward(residual, dy):
    x, kernel = residual
    height, width = x.shape[1:3]
    rows = dy.reshape(-1, dy.shape[-1])
    dx = conv3x3(dy, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [  # the weight gradient as nine matrix products, one a kernel position
        lax.dot_general(
            padded[:, i : i + height, j : j + width].reshape(-1, x.shape[-1]),
            rows,
            (((0,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        for i in range(3)
        for j in range(3)
    ]
    return dx, jnp.stack(taps).reshape(kernel.shape).astype(kernel.dtype)


conv3x3.defvjp(_conv3x3_forward, _conv3x3_backward)


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
