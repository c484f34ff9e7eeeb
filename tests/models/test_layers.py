"""Layers that the networks share: batch normalisation, dropout, parameters, pooling over the lesion."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError

from mcis.models.layers import BatchNorm, Dropout, Layer, lesion_pooling
from mcis.models.sk_unet import SelectiveKernel
from mcis.ops.image import resize
from tests.fixtures.networks import quick_jit


def batch(*shape):
    return np.random.default_rng(0).normal(3, 2, shape).astype(np.float32)


def statistics(mean, var):
    channels = len(mean)
    params = {"scale": np.ones(channels, np.float32), "bias": np.zeros(channels, np.float32)}
    return {"params": params, "batch_stats": {"mean": np.float32(mean), "var": np.float32(var)}}


@functools.partial(jax.jit, static_argnames=("axis_name",))
def normalise(variables, x, axis_name=None):
    """The output and the new statistics in training."""
    layer = functools.partial(BatchNorm(axis_name=axis_name).apply, variables, mutable=["batch_stats"])
    return layer(x, True) if axis_name is None else jax.vmap(lambda x: layer(x, True), axis_name=axis_name)(x)


def test_batch_normalisation_in_training_uses_the_batch_and_keeps_its_unbiased_variance():
    x = batch(2, 3, 2, 2)
    y, updated = normalise(statistics([1, 2], [3, 4]), x)
    np.testing.assert_allclose(y, (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5), atol=1e-5)
    stats = updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.9 * np.float32([1, 2]) + 0.1 * x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 * np.float32([3, 4]) + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-5)


def test_batch_normalisation_of_shards_is_that_of_the_whole_batch():
    variables, x = statistics([1, 2], [3, 4]), batch(4, 3, 2, 2)
    whole, stats = normalise(variables, x)
    shards, shard_stats = normalise(variables, x.reshape(2, 2, 3, 2, 2), axis_name="data")
    np.testing.assert_allclose(shards.reshape(whole.shape), whole, atol=1e-5)
    for name, value in stats["batch_stats"].items():
        np.testing.assert_allclose(shard_stats["batch_stats"][name], np.stack([value] * 2), rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 2), (1, 1, 1, 2)])
def test_one_value_per_channel_is_normalised_by_the_running_statistics_and_leaves_them(shape):
    variables, x = statistics([1, 2], [3, 4]), batch(*shape)
    y, updated = normalise(variables, x)
    np.testing.assert_allclose(y, (x - np.float32([1, 2])) / np.sqrt(np.float32([3, 4]) + 1e-5), rtol=1e-5)
    for name, value in variables["batch_stats"].items():
        np.testing.assert_array_equal(updated["batch_stats"][name], value)


def test_dropout_of_shards_is_that_of_the_whole_batch_and_keeps_the_mean():
    x = np.ones((8, 500), np.float32)

    @jax.jit
    def both(x, key):
        def run(x, axis_name=None):
            return Dropout(0.25, axis_name).apply({}, x, True, rngs={"dropout": key})

        shards = jax.vmap(lambda x: run(x, "data"), axis_name="data")(x.reshape(2, 4, 500))
        return run(x), shards, Dropout(0.25).apply({}, x, False)

    whole, shards, evaluated = both(x, jax.random.key(0))
    np.testing.assert_array_equal(shards.reshape(x.shape), whole)
    np.testing.assert_array_equal(evaluated, x)
    np.testing.assert_allclose(np.unique(whole), [0, 4 / 3], rtol=1e-6)
    assert np.mean(whole == 0) == pytest.approx(0.25, abs=0.03)
    assert len(np.unique(whole, axis=0)) == 8  # each scan has a draw of its own


class OneParameter(Layer):
    shape: tuple[int, ...]
    init_fn: object = nn.initializers.ones

    @nn.compact
    def __call__(self):
        return self.param("p", self.init_fn, self.shape)


def test_a_parameter_that_exists_is_returned_without_tracing_its_initializer():
    def initializer(key, shape):
        raise AssertionError

    stored = {"params": {"p": np.arange(3.0)}}
    np.testing.assert_array_equal(OneParameter((3,), initializer).apply(stored), stored["params"]["p"])
    assert OneParameter((3,)).init(jax.random.key(0))["params"]["p"].shape == (3,)
    with pytest.raises(ScopeParamShapeError, match=r'"p" in "".*\(4,\).*\(3,\)'):
        OneParameter((4,)).apply(stored)


def test_every_parameter_of_a_selective_kernel_has_a_gradient():
    model, x, rng = SelectiveKernel(4, jnp.float32, None), batch(3, 6, 6, 3), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, True), x)
    variables = jax.tree.map(lambda leaf: rng.uniform(0.2, 1, leaf.shape).astype(np.float32), shapes)

    @quick_jit
    def gradients(params):
        def loss(params):
            y, _ = model.apply(variables | {"params": params}, x, True, mutable=["batch_stats"])
            return jnp.square(y).sum()

        return jax.grad(loss)(params)

    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients(variables["params"])):
        assert np.abs(gradient).max() > 1e-4, path


def test_lesion_pooling_by_hand():
    fine = np.zeros((1, 4, 4, 1), np.float32)
    fine[0, :2, :2] = 8.0
    coarse = np.array([3.0, 5, 7, 9], np.float32).reshape(1, 2, 2, 1)
    mask = np.full((1, 4, 4, 1), -30.0, np.float32)
    mask[0, :2, :2] = 30.0  # the lesion: the first quarter, four fine pixels, one coarse pixel

    @jax.jit
    def run(mask):
        return lesion_pooling([fine, coarse], mask), resize(jax.nn.sigmoid(mask), (2, 2))

    pooled, weight = jax.device_get(run(mask))
    weight = weight.ravel()  # the triangle of the resizing reaches over its own two pixels
    expected = [[4 * 8 / (4 + 1), (weight * [3, 5, 7, 9]).sum() / (weight.sum() + 1)]]
    np.testing.assert_allclose(pooled, expected, rtol=1e-6)
    np.testing.assert_allclose(run(mask - 60)[0], 0, atol=1e-6)
    assert pooled.dtype == jnp.float32
