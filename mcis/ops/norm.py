"""Layer normalisation in a form that XLA compiles well on a CPU."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from mcis.ops.lowering import by_platform

EPSILON = 1e-6


@jax.custom_vjp
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Layer normalisation over the last axis (Ba et al. 2016): (..., C), (C,), (C,) -> (..., C), at least float32.

    The variance is the mean square of what the mean leaves: E[x^2] - E[x]^2 loses every digit where the mean is large.
    """
    wide = tuple(range(x.ndim - 1))
    return _normalised(x)[0] * jnp.expand_dims(scale, wide) + jnp.expand_dims(bias, wide)


def _normalised(x):
    """Zero mean, unit variance over the last axis; and the reciprocal of the standard deviation."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = x - _mean(x)
    inverse = lax.rsqrt(_mean(jnp.square(centred)) + EPSILON)
    return centred * inverse, inverse


def _mean(x):
    """Mean over the last axis, which stays as 1.

    On a CPU a product with a column of 1/C: XLA's reduction over an axis that lies together in memory is scalar, and
    computes what is reduced anew for each of its readers, the depthwise convolution before the layer included.
    """
    channels = x.shape[-1]

    def product(x):
        column = jnp.full((channels, 1), 1 / channels, x.dtype)
        return lax.dot_general(x, column, (((x.ndim - 1,), (0,)), ((), ())))

    return by_platform(x, cpu=product, plain=functools.partial(jnp.mean, axis=-1, keepdims=True))


def _forward(x, scale, bias):
    return layer_norm(x, scale, bias), (x, scale, bias)


def _backward(residual, dy):
    x, scale, bias = residual
    normalised, inverse = _normalised(x)
    rows = tuple(range(x.ndim - 1))
    scaled = dy * jnp.expand_dims(scale, rows)
    dx = inverse * (scaled - _mean(scaled) - normalised * _mean(scaled * normalised))
    dscale, dbias = (dy * normalised).sum(rows), dy.sum(rows)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


layer_norm.defvjp(_forward, _backward)
