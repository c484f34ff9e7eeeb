"""Every row of MODELS goes through every test here; a new row needs an entry in COUNTS, STRIDES and SKIPS."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError

from mcis.checkpoint import flatten, unflatten
from mcis.models import MODELS, model_named
from mcis.models.cnn import lesion_pooling
from mcis.ops.image import resize
from mcis.ops.losses import binary_cross_entropy, cross_entropy, soft_dice

COUNTS = {
    "cnn": 878_742,
    "cnn_attention": 879_465,
    "resnet18": 11_177_538,
    "resnet50": 23_512_130,
    "light": 1_342_296,
    "unet": 7_763_041,
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
    "sk_unet": 16,
    "deeplabv3": 16,
    "deeplabv3_resnet18": 16,
}

SKIPS = {  # kernels that read each skip connection, finest first, and the axis of their input channels. Of these the
    # first half comes from below, the second is the skip
    "light": ([[f"params/decoder{level}_fuse/kernel"] for level in (1, 2, 3)], 0),
    "unet": ([[f"params/decoder{level}_1/layer/conv/kernel"] for level in (1, 2, 3, 4)], 2),
    "sk_unet": (
        [[f"params/decoder{level}_1/branch{branch}/conv/kernel" for branch in (1, 2)] for level in (1, 2, 3, 4)],
        2,
    ),
}

COARSE = {"cnn_attention", "deeplabv3", "deeplabv3_resnet18"}
"""Networks whose mask has no decoder, and so no skips."""

EVERY = pytest.mark.parametrize("name", MODELS)
SKIPPING = pytest.mark.parametrize("name", SKIPS)
SEGMENTING = pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.segments])
BATCH, SIDE, CLASSES = 3, 32, 3

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""For what is run once: compiling is what costs here. A second compiler is also less kind to a careless gradient."""


def tiny(name, **fields):
    return MODELS[name].clone(**{"features": 4, "classes": CLASSES} | fields)


@functools.cache
def fresh(name):
    """Tiny variables as the network initialises them, except that kernels come from NumPy, which has no compiler."""
    model = tiny(name)

    @quick_jit
    def rest(key):
        flat = flatten(model.init(key, jnp.zeros((1, SIDE, SIDE, 3))))
        return {path: value for path, value in flat.items() if not path.endswith("kernel")}

    rng = np.random.default_rng(0)
    found = jax.device_get(rest(jax.random.key(0)))
    for path, leaf in flatten(shapes_of(model)).items():
        if path not in found:
            inputs = np.prod(leaf.shape[: 2 if "depthwise" in path else -1])
            found[path] = rng.normal(0, np.sqrt(2 / inputs), leaf.shape).astype(np.float32)
    return unflatten(found)


@functools.cache
def variables_of(name):
    """Tiny variables in which nothing is zero or one: every bias and every running statistic counts."""
    rng = np.random.default_rng(1)
    flat = flatten(fresh(name))
    for path, value in flat.items():
        if path.endswith("var"):
            flat[path] = value * rng.uniform(0.5, 2, value.shape).astype(np.float32)
        elif not path.endswith("kernel"):
            flat[path] = value + 0.2 * rng.normal(size=value.shape).astype(np.float32)
    return unflatten(flat)


def shapes_of(model, *shape):
    image = jax.ShapeDtypeStruct(shape or (1, 64, 64, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)


@functools.cache
def compiled(name):
    return jax.jit(tiny(name).apply)


@functools.cache
def images(side=SIDE, seed=0):
    return np.random.default_rng(seed).normal(size=(BATCH, side, side, 3)).astype(np.float32)


@functools.cache
def answers(name):
    """Outputs of the tiny network for `images()`, compiled, in evaluation mode."""
    return jax.device_get(compiled(name)(variables_of(name), images()))


def parts(outputs):
    """The heads that there are, by name."""
    heads = {"mask": outputs.mask, "label": outputs.label, "features": outputs.features}
    return {head: np.asarray(value) for head, value in heads.items() if value is not None}


def replace(variables, path, change):
    """Variables with one array put through `change`."""
    flat = flatten(variables)
    return unflatten(flat | {path: change(np.array(flat[path]))})


# Tables


def test_the_tables_here_have_every_row():
    assert COUNTS.keys() == STRIDES.keys() == MODELS.keys()
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    outputs = {
        name: jax.eval_shape(model.init_with_output, jax.random.key(0), image)[0] for name, model in MODELS.items()
    }
    assert SKIPS.keys() | COARSE == {name for name, found in outputs.items() if found.mask is not None}
    assert SKIPS.keys() <= {name for name, model in MODELS.items() if model.segments} <= SKIPS.keys() | COARSE


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


def _no_dropout(call, args, kwargs, context):
    return args[0] if isinstance(context.module, nn.Dropout) else call(*args, **kwargs)


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
        with nn.intercept_methods(_no_dropout):  # which draws for a batch as a whole
            outputs, updated = model.apply(variables, image, train=True, mutable=["batch_stats"])
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


# Skip connections


def without(variables, paths, axis, half):
    """Variables in which kernels no longer read one half of their input channels: 0 from below, 1 the skip."""

    def cut(kernel):
        middle = kernel.shape[axis] // 2
        rows = [slice(None)] * kernel.ndim
        rows[axis] = slice(middle, None) if half else slice(0, middle)
        assert np.abs(kernel[tuple(rows)]).min() > 0
        kernel[tuple(rows)] = 0
        return kernel

    for path in paths:
        variables = replace(variables, path, cut)
    return variables


def only_skip(name, level):
    """Variables in which an image reaches the mask through one skip connection and no other way."""
    kernels, axis = SKIPS[name]
    variables = without(variables_of(name), kernels[level], axis, 0)
    for other, kernel in enumerate(kernels):
        if other != level:
            variables = without(variables, kernel, axis, 1)
    return variables


@SKIPPING
def test_cutting_any_skip_changes_the_mask_and_nothing_else(name):
    kernels, axis = SKIPS[name]
    whole = answers(name)
    for kernel in kernels:
        cut = compiled(name)(without(variables_of(name), kernel, axis, 1), images())
        # far above rounding; with few features little comes through the coarsest level
        assert np.abs(np.asarray(cut.mask) - whole.mask).mean() > 0.001 * whole.mask.std(), kernel
        np.testing.assert_array_equal(cut.label, whole.label)
        np.testing.assert_array_equal(cut.features, whole.features)


@SKIPPING
def test_every_skip_alone_carries_the_image(name):
    for level, kernel in enumerate(SKIPS[name][0]):
        alone = np.asarray(compiled(name)(only_skip(name, level), images()).mask)
        assert alone.std() > 0
        # far above rounding, as above
        assert np.abs(alone[0] - alone[1]).mean() > 0.001 * alone.std(), kernel


@SKIPPING
def test_without_its_skips_the_mask_comes_from_below_alone(name):
    kernels, axis = SKIPS[name]
    variables = without(variables_of(name), kernels[0], axis, 0)
    for kernel in kernels:
        variables = without(variables, kernel, axis, 1)
    alone = np.asarray(compiled(name)(variables, images()).mask)  # nothing of the image is left
    np.testing.assert_allclose(alone, alone[:1].repeat(BATCH, 0), atol=1e-6)


def test_the_finest_skip_of_the_unet_has_full_resolution():
    variables = only_skip("unet", 0)
    changed = images().copy()
    changed[:, 10, 20] += 1
    difference = np.asarray(compiled("unet")(variables, changed).mask - compiled("unet")(variables, images()).mask)
    rows, columns = np.nonzero(np.abs(difference[..., 0]).max(0) > 1e-6)
    # two 3x3 convolutions before the skip and two after it reach four pixels, not one further
    assert (rows.min(), rows.max()) == (6, 14)
    assert (columns.min(), columns.max()) == (16, 24)


# Deep supervision


SUPERVISED = {  # strides of the auxiliary masks, finest first
    "light": (8, 16),
    "unet": (2, 4, 8),
    "sk_unet": (2, 4, 8),
    "deeplabv3": (8,),
    "deeplabv3_resnet18": (16,),
}


def test_every_network_with_auxiliary_masks_is_tested_here():
    assert SUPERVISED.keys() == {name for name, model in MODELS.items() if "supervise" in vars(model)}


@pytest.mark.parametrize("name", SUPERVISED)
def test_auxiliary_masks_come_with_heads_of_their_own_and_change_nothing_else(name):
    image = jax.ShapeDtypeStruct((2, 32, 64, 3), jnp.float32)
    outputs, variables = jax.eval_shape(tiny(name, supervise=True).init_with_output, jax.random.key(0), image)
    shapes = [(2, 32 // stride, 64 // stride, 1) for stride in SUPERVISED[name]]
    assert [auxiliary.shape for auxiliary in outputs.auxiliary] == shapes
    plain = flatten(shapes_of(tiny(name)))
    more = flatten(variables)
    assert plain.items() <= more.items()
    rng = np.random.default_rng(0)
    given = flatten(variables_of(name))
    full = {path: given.get(path, rng.normal(size=leaf.shape).astype(np.float32)) for path, leaf in more.items()}
    full = {path: np.abs(value) if path.endswith("var") else value for path, value in full.items()}
    found = quick_jit(tiny(name, supervise=True).apply)(unflatten(full), images())
    np.testing.assert_allclose(found.mask, answers(name).mask, atol=2e-5 * np.abs(answers(name).mask).max())
    assert all(np.isfinite(auxiliary).all() and np.std(auxiliary) > 0 for auxiliary in found.auxiliary)


# Networks with something of their own


def test_lesion_pooling_of_values_computed_by_hand():
    fine = np.zeros((1, 4, 4, 1), np.float32)
    fine[0, :2, :2] = 8.0
    coarse = np.array([3.0, 5, 7, 9], np.float32).reshape(1, 2, 2, 1)
    vote = np.full((1, 4, 4, 1), -30.0, np.float32)
    vote[0, :2, :2] = 30.0  # the lesion: the first quarter, four fine pixels, one coarse pixel
    mask, pooled = lesion_pooling([fine, coarse], [vote, np.zeros((1, 2, 2, 1), np.float32)])
    np.testing.assert_array_equal(mask, vote)
    weight = np.asarray(resize(jax.nn.sigmoid(vote), (2, 2))).ravel()  # the triangle reaches over its own two pixels
    np.testing.assert_allclose(
        pooled, [[4 * 8 / (4 + 1), (weight * [3, 5, 7, 9]).sum() / (weight.sum() + 1)]], rtol=1e-6
    )
    _, nothing = lesion_pooling([fine, coarse], [vote - 60, np.zeros((1, 2, 2, 1), np.float32)])
    np.testing.assert_allclose(nothing, 0, atol=1e-6)


def test_every_level_votes_for_the_mask_and_the_label_looks_there():
    whole = answers("cnn_attention")
    for level in (2, 3, 4):
        cut = compiled("cnn_attention")(
            replace(variables_of("cnn_attention"), f"params/mask{level}/kernel", np.zeros_like), images()
        )
        assert np.abs(np.asarray(cut.mask) - whole.mask).mean() > 0.01 * whole.mask.std()
        assert np.abs(np.asarray(cut.label) - whole.label).max() > 1e-4
