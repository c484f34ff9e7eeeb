"""Layer normalisation has the values and gradients of flax, and its precision does not depend on the mean."""

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


@jax.jit
def values_and_gradients(cotangent, *inputs):
    results = []
    for norm in (layer_norm, flax_norm):
        value, pull = jax.vjp(norm, *inputs)
        results.append((value, *pull(cotangent)))
    return results


@pytest.mark.parametrize("shape", [(2, 5, 3, 7), (4, 6)])
def test_values_and_gradients_are_those_of_flax(shape):
    cotangent = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    for found, expected in zip(*values_and_gradients(cotangent, *arrays(shape)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_a_large_mean_costs_no_digits():
    x, scale, bias = arrays((5, 64), mean=1000.0)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
    np.testing.assert_allclose(jax.jit(layer_norm)(x, scale, bias), exact * scale + bias, atol=2e-3)


def test_bfloat16_is_normalised_in_float32_and_has_a_bfloat16_gradient():
    x, scale, bias = arrays((6, 16))

    @jax.jit
    def both(half):
        value, pull = jax.vjp(layer_norm, half, scale, bias)
        return value, pull(value), layer_norm(half.astype(jnp.float32), scale, bias)

    value, gradients, exact = both(x.astype(jnp.bfloat16))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, exact, atol=2e-5)
    assert [gradient.dtype for gradient in gradients] == [jnp.bfloat16, jnp.float32, jnp.float32]
