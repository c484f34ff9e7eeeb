"""Every network of MODELS is tested by every test here; a new network needs an entry in COUNTS and STRIDES."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError

from mcis.models import MODELS, model_named
from tests.fixtures.networks import (
    COARSE,
    REDUNDANT,
    SKIPS,
    WITHOUT_GRADIENT,
    WITHOUT_MEAN,
    compiled,
    flatten,
    fresh,
    heads,
    images,
    networks,
    outputs_of,
    quick_jit,
    shapes_of,
    tiny,
    traced,
    training_step,
    variables_of,
)

COUNTS = {
    "cnn": 878_742,
    "cnn_attention": 879_465,
    "resnet18": 11_177_538,
    "resnet50": 23_512_130,
    "light": 1_343_176,
    "efficientnet_lite0": 3_373_794,
    "unet_efficientnet_lite0": 3_574_916,
    "unet": 7_763_041,
    "unet_attention": 7_763_041,
    "unet_folded": 7_765_732,
    "sk_unet": 3_931_873,
    "deeplabv3": 39_633_729,
    "deeplabv3_resnet18": 15_898_945,
}
"""Parameters of each network as in MODELS, for three channels; `unet` and `deeplabv3` have the published numbers."""

STRIDES = {
    "cnn": 32,
    "cnn_attention": 32,
    "resnet18": 32,
    "resnet50": 32,
    "light": 32,
    "efficientnet_lite0": 32,
    "unet_efficientnet_lite0": 32,
    "unet": 16,
    "unet_attention": 16,
    "unet_folded": 32,
    "sk_unet": 16,
    "deeplabv3": 16,
    "deeplabv3_resnet18": 16,
}

SEGMENTING = [name for name, model in MODELS.items() if model.segments]
EVERY = networks(slow=())
COMPILED = networks()
SLOW_TO_TRAIN = REDUNDANT | {
    *("cnn_attention", "resnet18", "light", "unet", "unet_efficientnet_lite0", "sk_unet", "deeplabv3")
}
"""Networks whose training steps are compiled in slow tests alone: each takes more than five seconds."""


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


# Tables


def test_the_tables_here_have_every_network():
    assert COUNTS.keys() == STRIDES.keys() == MODELS.keys()


def test_model_named_returns_a_network_or_lists_the_names():
    for name, model in MODELS.items():
        assert model_named(name) is model
    with pytest.raises(ValueError, match=f"resnet.*{', '.join(MODELS)}"):
        model_named("resnet")


@EVERY
def test_attributes_of_a_network_describe_it(name):
    model = MODELS[name]
    assert model.stride == STRIDES[name]
    assert model.has_auxiliary == ("supervise" in vars(model))
    assert model.segments or not model.has_auxiliary


@EVERY
def test_parameter_count(name):
    assert count(shapes_of(MODELS[name])) == COUNTS[name]


def test_efficientnet_lite0_of_1000_classes_has_the_published_number_of_parameters():
    assert count(shapes_of(MODELS["efficientnet_lite0"].clone(classes=1000, texture=False))) == 4_652_008


@pytest.mark.parametrize(
    ("depth", "published"), [(18, 11_689_512), pytest.param(101, 44_549_160, marks=pytest.mark.slow)]
)
def test_resnets_of_1000_classes_have_the_published_number_of_parameters(depth, published):
    assert count(shapes_of(MODELS["resnet18"].clone(depth=depth, classes=1000))) == published


@EVERY
def test_every_submodule_has_an_explicit_name(name):
    for path in flatten(shapes_of(tiny(name))):
        for part in path.split("/"):
            assert re.fullmatch(r"[a-z][a-z0-9_]*", part), f"{path}: {part} is named by Linen, or is not snake_case"


# Shapes


@COMPILED
def test_shapes_types_and_axis_names_for_a_rectangular_image_of_two_channels_in_bfloat16(name):
    """Every layer with an axis name gets that of its network; `test_layers.py` tests what the layers do with it."""
    stride, seen = STRIDES[name], []

    def record(call, args, kwargs, context):
        if "axis_name" in vars(context.module):
            seen.append((context.module.path, context.module.axis_name))
        return call(*args, **kwargs)

    model = tiny(name, classes=5, dtype=jnp.bfloat16, axis_name="data")
    image = jax.ShapeDtypeStruct((2, stride, 3 * stride, 2), jnp.float32)
    with nn.intercept_methods(record):  # in evaluation mode, which needs no axis
        outputs, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    normalised = {path.rpartition("/")[0] for path in flatten(variables.get("batch_stats", {}))}
    assert len(seen) > 1 and normalised <= {"/".join(path) for path, _ in seen}
    assert {axis_name for _, axis_name in seen} == {"data"}
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    assert outputs.label.shape == (2, 5)
    assert outputs.features.ndim == 2
    assert outputs.features.shape[0] == 2
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(outputs))
    if name in SKIPS.keys() | COARSE:
        assert outputs.mask.shape == (2, stride, 3 * stride, 1)
    else:
        assert outputs.mask is None


@networks(SEGMENTING)
def test_without_classes_there_is_no_label_head(name):
    outputs, variables = traced(tiny(name, classes=0))
    assert outputs.label is None
    assert not [path for path in flatten(variables) if "label" in path]


@EVERY
def test_a_size_not_divisible_by_the_stride_is_rejected_with_stride_and_shape(name):
    stride = STRIDES[name]
    for shape in ((1, stride + 1, stride, 3), (1, stride, 2 * stride - 4, 3), (stride, stride, 3)):
        with pytest.raises(ValueError, match=rf"{type(MODELS[name]).__name__}.*\b{stride}\b.*{re.escape(str(shape))}"):
            shapes_of(tiny(name), *shape)


@EVERY
def test_parameters_of_another_width_are_rejected_by_name(name):
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    with pytest.raises(ScopeParamShapeError, match=r'"kernel" in "/\w+.*\b8\).*\b4\)'):
        jax.eval_shape(tiny(name, features=8).apply, shapes_of(tiny(name)), image)


# Numbers


@COMPILED
def test_outputs_of_a_scan_do_not_depend_on_the_other_scans_of_its_batch(name):
    whole = heads(outputs_of(name))
    others = images().copy()
    others[[0, 2]] = images(seed=1)[:2]
    for head, found in heads(compiled(name)(variables_of(name), others)).items():
        np.testing.assert_allclose(found[1], whole[head][1], atol=2e-5 * np.abs(found).max())
        assert np.abs(found[0] - whole[head][0]).max() > 1e-3
        assert np.abs(found[0] - found[1]).max() > 1e-3


@COMPILED
def test_outputs_are_finite_for_constant_and_bright_scans(name):
    for scan in (0 * images(), 0 * images() + 1, 100 * images()):
        for found in heads(compiled(name)(variables_of(name), scan)).values():
            assert np.isfinite(found).all()


@networks(slow=MODELS.keys() - {"cnn_attention"})
def test_bfloat16_is_close_to_float32(name):
    half = heads(quick_jit(tiny(name, dtype=jnp.bfloat16).apply)(variables_of(name), images()))
    for head, exact in heads(outputs_of(name)).items():
        assert half[head].dtype == np.float32
        error = np.abs(half[head] - exact).mean() / exact.std()
        assert 1e-5 < error < 0.05, (head, error)


def assert_all_learn(name, gradients):
    if name in WITHOUT_GRADIENT:
        gradients = {path: value for path, value in gradients.items() if not re.fullmatch(WITHOUT_GRADIENT[name], path)}
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    for path, gradient in gradients.items():
        assert np.isfinite(gradient).all(), path
        # more than rounding: that of a bias which batch normalisation removes would be about 1e-8
        assert np.abs(gradient).max() > 1e-6 * largest, path


@networks(slow=SLOW_TO_TRAIN)
def test_every_parameter_has_a_finite_gradient_that_is_not_zero(name):
    assert_all_learn(name, flatten(training_step(name)(1.0, 1.0)[0]))


@networks(SEGMENTING, slow=SLOW_TO_TRAIN)
def test_every_parameter_of_a_network_without_a_label_head_learns_from_the_mask(name):
    kept = flatten(shapes_of(tiny(name, classes=0))["params"])
    gradients = flatten(training_step(name)(0.0, 1.0)[0])
    assert_all_learn(name, {path: gradient for path, gradient in gradients.items() if path in kept})


@networks(slow=SLOW_TO_TRAIN)
def test_training_updates_every_running_statistic(name):
    before, after = (flatten(v.get("batch_stats", {})) for v in (fresh(name), training_step(name)(1.0, 1.0)[1]))
    assert before.keys() == after.keys()
    for path, value in after.items():
        assert np.isfinite(value).all()
        if not re.fullmatch(WITHOUT_MEAN.get(name, ""), path):
            assert (value != before[path]).all(), path


@pytest.mark.slow
def test_shards_normalise_as_one_batch():
    """Two shards of two scans under a named axis have the statistics, and so the outputs, of the four together."""
    name = "sk_unet"
    image = np.concatenate([images(), images(seed=1)[:1]])
    variables = variables_of(name)

    def run(model, image):
        rngs = {"dropout": jax.random.key(1)}  # one draw for the whole batch, of which each shard takes its part
        outputs, updated = model.apply(variables, image, train=True, mutable=["batch_stats"], rngs=rngs)
        return (outputs.mask, outputs.label, outputs.features), updated

    @quick_jit
    def both(image):
        sharded = jax.vmap(lambda shard: run(tiny(name, axis_name="data"), shard), axis_name="data")
        return run(tiny(name), image), sharded(image.reshape(2, 2, *image.shape[1:]))

    (whole, whole_stats), (shards, stats) = both(image)
    for found, expected in zip(jax.tree.leaves(shards), map(np.asarray, jax.tree.leaves(whole)), strict=True):
        atol = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(np.asarray(found).reshape(expected.shape), expected, atol=atol)
    for found, expected in zip(jax.tree.leaves(stats), jax.tree.leaves(whole_stats), strict=True):
        np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[1], expected, rtol=1e-4, atol=1e-5)
