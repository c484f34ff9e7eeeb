"""Layer normalisation: flax's numbers, and what defines it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcis.ops.norm import layer_norm


def arrays(shape, mean=0.0):
    rng = np.random.default_rng(0)
    x = rng.normal(mean, 1, shape)
    return [a.astype(np.float32) for a in (x, rng.normal(1, 0.3, shape[-1]), rng.normal(size=shape[-1]))]


def flax_norm(x, scale, bias):
    return nn.LayerNorm(use_fast_variance=False).apply({"params": {"scale": scale, "bias": bias}}, x)


@pytest.mark.parametrize("shape", [(2, 5, 3, 7), (4, 6), (1, 1, 1, 2), (3, 40)])
def test_value_and_gradients_are_flax_own(shape):
    inputs = arrays(shape)
    cotangent = np.random.default_rng(1).normal(size=shape).astype(np.float32)

    def both(norm):
        value, pull = jax.vjp(norm, *inputs)
        return value, *pull(cotangent)

    for found, wanted in zip(jax.jit(both, static_argnums=0)(layer_norm), both(flax_norm), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


def test_a_large_mean_costs_no_digits():
    x, scale, bias = arrays((5, 64), mean=1000.0)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
    np.testing.assert_allclose(jax.jit(layer_norm)(x, scale, bias), exact * scale + bias, atol=2e-3)


def test_half_precision_is_normalised_in_float32_and_its_gradient_is_half():
    x, scale, bias = arrays((6, 16))
    half = jnp.asarray(x, jnp.bfloat16)
    value, pull = jax.vjp(layer_norm, half, scale, bias)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, flax_norm(half.astype(jnp.float32), scale, bias), atol=2e-5)
    assert [gradient.dtype for gradient in pull(value)] == [jnp.bfloat16, jnp.float32, jnp.float32]
