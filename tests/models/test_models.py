"""Every row of MODELS goes through every test here; a new row needs an entry in COUNTS and STRIDES."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError

from mcis.checkpoints.checkpoint import flatten
from mcis.models import MODELS, model_named
from mcis.ops.losses import binary_cross_entropy, cross_entropy, soft_dice
from tests.fixtures.networks import (
    BATCH,
    CLASSES,
    COARSE,
    SKIPS,
    answers,
    compiled,
    fresh,
    images,
    parts,
    quick_jit,
    shapes_of,
    tiny,
    variables_of,
)

COUNTS = {
    "cnn": 878_742,
    "cnn_attention": 879_465,
    "resnet18": 11_177_538,
    "resnet50": 23_512_130,
    "light": 1_343_176,
    "unet": 7_763_041,
    "unet_attention": 7_763_041,
    "unet_folded": 7_765_732,
    "sk_unet": 3_931_873,
    "deeplabv3": 39_633_729,
    "deeplabv3_resnet18": 15_898_945,
}
"""Parameters of each row as it stands in MODELS, for three channels."""

PUBLISHED = {  # (row, fields): parameters of the networks that others know
    ("unet", "features=32"): 7_763_041,
    ("resnet18", "classes=1000"): 11_689_512,
    ("resnet50", "classes=1000"): 25_557_032,
    ("resnet50", "depth=101 classes=1000"): 44_549_160,
    ("deeplabv3", "depth=50"): 39_633_729,
    ("deeplabv3", "depth=101"): 58_625_857,
}

STRIDES = {
    "cnn": 32,
    "cnn_attention": 32,
    "resnet18": 32,
    "resnet50": 32,
    "light": 32,
    "unet": 16,
    "unet_attention": 16,
    "unet_folded": 32,
    "sk_unet": 16,
    "deeplabv3": 16,
    "deeplabv3_resnet18": 16,
}

EVERY = pytest.mark.parametrize("name", MODELS)
SEGMENTING = pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.segments])


# Tables


def test_the_tables_here_have_every_row():
    assert COUNTS.keys() == STRIDES.keys() == MODELS.keys()


def test_model_named_knows_its_rows_and_lists_them():
    for name, model in MODELS.items():
        assert model_named(name) is model
    with pytest.raises(ValueError, match=f"resnet.*{', '.join(MODELS)}"):
        model_named("resnet")


@EVERY
def test_parameter_count(name):
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes_of(MODELS[name])["params"])) == COUNTS[name]


@pytest.mark.parametrize(("name", "fields"), PUBLISHED)
def test_published_networks_have_their_parameters(name, fields):
    changes = {key: int(value) for key, value in (field.split("=") for field in fields.split())}
    published = shapes_of(MODELS[name].clone(**changes), 1, 256, 256, 3)
    assert sum(leaf.size for leaf in jax.tree.leaves(published["params"])) == PUBLISHED[name, fields]


@EVERY
def test_every_submodule_has_a_name_of_its_own(name):
    for path in flatten(shapes_of(tiny(name))):
        for part in path.split("/"):
            assert re.fullmatch(r"[a-z][a-z0-9_]*", part), f"{path}: Linen named {part}, or it is no snake_case"


@EVERY
def test_parameters_are_float32_whatever_computes(name):
    for dtype in (jnp.float32, jnp.bfloat16):
        for path, leaf in flatten(shapes_of(tiny(name, dtype=dtype))).items():
            assert leaf.dtype == jnp.float32, path


# Shapes


@EVERY
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_shapes_of_outputs_for_any_channels_and_oblong_scans(name, channels):
    stride = STRIDES[name]
    image = jax.ShapeDtypeStruct((2, stride, 3 * stride, channels), jnp.float32)
    classes = channels + 1
    outputs, _ = jax.eval_shape(tiny(name, classes=classes).init_with_output, jax.random.key(0), image)
    assert outputs.label.shape == (2, classes)
    assert outputs.features.ndim == 2
    assert outputs.features.shape[0] == 2
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(outputs))
    if name in SKIPS.keys() | COARSE:
        assert outputs.mask.shape == (2, stride, 3 * stride, 1)
    else:
        assert outputs.mask is None


@SEGMENTING
def test_without_classes_there_is_no_label_head_and_nothing_of_it(name):
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    outputs, variables = jax.eval_shape(tiny(name, classes=0).init_with_output, jax.random.key(0), image)
    assert outputs.label is None
    assert not [path for path in flatten(variables) if "label" in path]


@EVERY
def test_a_size_that_does_not_divide_says_stride_and_shape(name):
    stride = STRIDES[name]
    for shape in ((1, stride + 1, stride, 3), (1, stride, 2 * stride - 4, 3), (stride, stride, 3)):
        with pytest.raises(ValueError, match=rf"{type(MODELS[name]).__name__}.*\b{stride}\b.*{re.escape(str(shape))}"):
            shapes_of(tiny(name), *shape)


@EVERY
def test_parameters_of_another_width_are_refused_by_name(name):
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    with pytest.raises(ScopeParamShapeError, match=r'"kernel" in "/\w+.*\b8\).*\b4\)'):
        jax.eval_shape(tiny(name, features=8).apply, shapes_of(tiny(name)), image)


# Numbers


@EVERY
def test_a_scan_in_a_batch_is_the_scan_alone(name):
    for i in range(BATCH):
        alone = parts(compiled(name)(variables_of(name), images()[i : i + 1]))
        for head, found in parts(answers(name)).items():
            np.testing.assert_allclose(found[i], alone[head][0], atol=2e-5 * np.abs(found).max())
        if i == 0:  # and scans do differ
            assert all(np.abs(found[0] - found[1]).max() > 1e-3 for found in parts(answers(name)).values())


@EVERY
def test_outputs_stay_finite_on_odd_scans(name):
    for scan in (0 * images(), 0 * images() + 1, 100 * images()):
        for found in parts(compiled(name)(variables_of(name), scan)).values():
            assert np.isfinite(found).all()


@EVERY
def test_bfloat16_is_close_to_float32(name):
    half = parts(quick_jit(tiny(name, dtype=jnp.bfloat16).apply)(variables_of(name), images()))
    for head, exact in parts(answers(name)).items():
        assert half[head].dtype == np.float32
        error = np.abs(half[head] - exact).mean() / exact.std()
        assert 1e-5 < error < 0.05, (head, error)


@functools.cache
def trained(name):
    """A function of a weight for the label's loss: gradients and new batch statistics of fresh variables."""
    model, side = tiny(name), 64
    mask = (np.random.default_rng(1).random((BATCH, side, side, 1)) < 0.3).astype(np.float32)
    variables = fresh(name)

    def loss(params, image, label_weight):
        rngs = {"dropout": jax.random.key(7)}
        outputs, updated = model.apply(
            variables | {"params": params}, image, train=True, mutable=["batch_stats"], rngs=rngs
        )
        total = label_weight * cross_entropy(outputs.label, jnp.arange(BATCH) % CLASSES).sum()
        if outputs.mask is not None:
            total += (soft_dice(outputs.mask, mask) + binary_cross_entropy(outputs.mask, mask)).sum()
        return total, updated

    gradient = quick_jit(jax.grad(loss, has_aux=True))
    return lambda label_weight: jax.device_get(gradient(variables["params"], images(side), label_weight))


def assert_all_learn(gradients):
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    for path, gradient in gradients.items():
        assert np.isfinite(gradient).all(), path
        # more than rounding: a bias that batch normalisation takes out again would be about 1e-8
        assert np.abs(gradient).max() > 1e-6 * largest, path


@EVERY
def test_every_parameter_has_a_finite_gradient_that_is_not_zero(name):
    assert_all_learn(flatten(trained(name)(1.0)[0]))


@SEGMENTING
def test_every_parameter_of_a_network_without_label_head_learns_from_the_mask(name):
    kept = flatten(shapes_of(tiny(name, classes=0))["params"])
    assert_all_learn({path: gradient for path, gradient in flatten(trained(name)(0.0)[0]).items() if path in kept})


@EVERY
def test_training_updates_every_running_statistic(name):
    before, after = (flatten(v.get("batch_stats", {})) for v in (fresh(name), trained(name)(1.0)[1]))
    assert before.keys() == after.keys()
    for path, value in after.items():
        assert np.isfinite(value).all()
        assert (value != before[path]).all(), path


@EVERY
def test_a_batch_of_one_never_empties_a_running_variance(name):
    model, variables = tiny(name), fresh(name)
    image = jnp.asarray(images(64)[:1])

    @quick_jit
    def step(stats):
        keys = {"dropout": jax.random.key(0)}
        _, updated = model.apply(
            variables | {"batch_stats": stats}, image, train=True, mutable=["batch_stats"], rngs=keys
        )
        return updated["batch_stats"]

    stats = variables.get("batch_stats")
    if not stats:
        return  # it does not normalise over batches
    for _ in range(100):  # 0.9^100 = 3e-5
        stats = step(stats)
    assert min(value.min() for path, value in flatten(stats).items() if path.endswith("var")) > 1e-4


@EVERY
def test_axis_name_makes_shards_normalise_as_one_batch(name):
    """Two shards of two scans under a named axis have the statistics, and so the outputs, of the four together."""
    image = np.concatenate([images(64), images(64, 1)[:1]])
    variables = variables_of(name)

    def run(model, image):
        drawn = {"dropout": jax.random.key(1)}  # for the whole batch, of which a shard takes its part
        outputs, updated = model.apply(variables, image, train=True, mutable=["batch_stats"], rngs=drawn)
        return (outputs.mask, outputs.label, outputs.features), updated

    whole, whole_stats = quick_jit(functools.partial(run, tiny(name)))(image)
    split = jax.vmap(functools.partial(run, tiny(name, axis_name="data")), axis_name="data")
    shards, stats = quick_jit(split)(image.reshape(2, 2, *image.shape[1:]))
    for found, wanted in zip(jax.tree.leaves(shards), jax.tree.leaves(whole), strict=True):
        wanted = np.asarray(wanted)
        np.testing.assert_allclose(np.asarray(found).reshape(wanted.shape), wanted, atol=1e-4 * np.abs(wanted).max())
    for found, wanted in zip(jax.tree.leaves(stats), jax.tree.leaves(whole_stats), strict=True):
        np.testing.assert_allclose(found[0], wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[1], wanted, rtol=1e-4, atol=1e-5)
