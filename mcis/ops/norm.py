"""Layer normalisation in a form that is fast on a CPU."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from mcis.ops.lowering import by_platform

EPSILON = 1e-6
"""Added to the variance."""


@jax.custom_vjp
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Layer normalisation over the last axis (Ba et al. 2016): (..., C), (C,), (C,) -> (..., C), at least float32."""
    axes = tuple(range(x.ndim - 1))
    return _normalised(x)[0] * jnp.expand_dims(scale, axes) + jnp.expand_dims(bias, axes)


def _normalised(x):
    """`x` with zero mean and unit variance over the last axis, and the reciprocal of its standard deviation."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = x - _mean(x)  # E[x^2] - E[x]^2 would lose every digit where the mean is large
    inverse = lax.rsqrt(_mean(jnp.square(centred)) + EPSILON)
    return centred * inverse, inverse


def _mean(x):
    """Mean over the last axis, which stays as 1; on a CPU a product with a column of 1/C.

    XLA's reduction over the innermost axis is scalar, and recomputes its input, the depthwise convolution before the
    layer included, for each reader.
    """
    channels = x.shape[-1]

    def product(x):
        column = jnp.full((channels, 1), 1 / channels, x.dtype)
        return lax.dot_general(x, column, (((x.ndim - 1,), (0,)), ((), ())))

    return by_platform(x, cpu=product, plain=functools.partial(jnp.mean, axis=-1, keepdims=True))


def _backward(inputs, cotangent):
    x, scale, bias = inputs
    normalised, inverse = _normalised(x)
    axes = tuple(range(x.ndim - 1))
    scaled = cotangent * jnp.expand_dims(scale, axes)
    dx = inverse * (scaled - _mean(scaled) - normalised * _mean(scaled * normalised))
    dscale, dbias = (cotangent * normalised).sum(axes), cotangent.sum(axes)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


layer_norm.defvjp(lambda x, scale, bias: (layer_norm(x, scale, bias), (x, scale, bias)), _backward)
