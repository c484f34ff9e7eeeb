"""Decoders: every skip connection is read, and every level can be supervised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcis.checkpoints.checkpoint import flatten, unflatten
from mcis.models import MODELS
from mcis.models.layers import lesion_pooling
from mcis.ops.image import resize
from tests.fixtures.networks import (
    BATCH,
    COARSE,
    SKIPS,
    answers,
    compiled,
    images,
    quick_jit,
    replace,
    shapes_of,
    tiny,
    variables_of,
)

SKIPPING = pytest.mark.parametrize("name", SKIPS)


def test_the_tables_here_have_every_network_with_a_mask():
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    outputs = {
        name: jax.eval_shape(model.init_with_output, jax.random.key(0), image)[0] for name, model in MODELS.items()
    }
    assert SKIPS.keys() | COARSE == {name for name, found in outputs.items() if found.mask is not None}
    assert SKIPS.keys() <= {name for name, model in MODELS.items() if model.segments} <= SKIPS.keys() | COARSE


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
        if not vars(MODELS[name]).get("attention"):  # a label that looks where the mask is follows it
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
    "unet_attention": (2, 4, 8),
    "unet_folded": (4, 8, 16),
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
    pooled = lesion_pooling([fine, coarse], vote)
    weight = np.asarray(resize(jax.nn.sigmoid(vote), (2, 2))).ravel()  # the triangle reaches over its own two pixels
    np.testing.assert_allclose(
        pooled, [[4 * 8 / (4 + 1), (weight * [3, 5, 7, 9]).sum() / (weight.sum() + 1)]], rtol=1e-6
    )
    nothing = lesion_pooling([fine, coarse], vote - 60)
    np.testing.assert_allclose(nothing, 0, atol=1e-6)


def test_every_level_votes_for_the_mask_and_the_label_looks_there():
    whole = answers("cnn_attention")
    for level in (2, 3, 4):
        cut = compiled("cnn_attention")(
            replace(variables_of("cnn_attention"), f"params/mask{level}/kernel", np.zeros_like), images()
        )
        assert np.abs(np.asarray(cut.mask) - whole.mask).mean() > 0.01 * whole.mask.std()
        assert np.abs(np.asarray(cut.label) - whole.label).max() > 1e-4


def test_each_unfolded_pixel_has_a_channel_of_its_own():
    for channel in range(4):
        lifted = replace(
            variables_of("unet_folded"), "params/mask/bias", lambda b, c=channel: b + np.eye(4, dtype=np.float32)[c]
        )
        change = np.asarray(compiled("unet_folded")(lifted, images()).mask - answers("unet_folded").mask)[..., 0]
        expected = np.zeros_like(change)
        expected[:, channel // 2 :: 2, channel % 2 :: 2] = 1.0
        np.testing.assert_allclose(change, expected, atol=1e-5)


def test_the_label_follows_the_mask_and_cannot_bend_it():
    variables = variables_of("unet_attention")
    moved = compiled("unet_attention")(replace(variables, "params/mask/bias", lambda b: b + 3), images())
    assert np.abs(np.asarray(moved.label) - answers("unet_attention").label).max() > 1e-4

    @quick_jit
    def gradient(variables):
        def label(params):
            return tiny("unet_attention").apply(variables | {"params": params}, images()).label.sum()

        return jax.grad(label)(variables["params"])

    found = gradient(variables)
    assert not np.any(found["mask"]["kernel"])
    assert np.abs(found["decoder1_2"]["layer"]["conv"]["kernel"]).max() > 1e-6  # but what lies below both
