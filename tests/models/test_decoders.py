"""Decoders: every skip connection is used, and every level can be supervised."""

import numpy as np

from mcis.models import MODELS
from tests.fixtures.networks import (
    BATCH,
    COARSE,
    SKIP_CHANNELS,
    SKIPS,
    compiled,
    flatten,
    images,
    networks,
    outputs_of,
    quick_jit,
    replace,
    shapes_of,
    tiny,
    traced,
    training_step,
    unflatten,
    variables_of,
)

SKIPPING = networks(SKIPS)


def test_the_tables_here_have_every_network_with_a_mask():
    assert SKIPS.keys() | COARSE == {name for name in MODELS if traced(tiny(name))[0].mask is not None}
    assert SKIPS.keys() <= {name for name, model in MODELS.items() if model.segments} <= SKIPS.keys() | COARSE


# Skip connections


def without(name, variables, level, half):
    """Variables in which a level's kernels ignore one part of their input: 0 the level below, 1 the skip."""
    kernels, axis = SKIPS[name]

    def cut(kernel):
        inputs = kernel.shape[axis]
        middle = inputs - (SKIP_CHANNELS[name][level] if name in SKIP_CHANNELS else inputs // 2)
        rows = [slice(None)] * kernel.ndim
        rows[axis] = slice(middle, None) if half else slice(0, middle)
        assert np.abs(kernel[tuple(rows)]).min() > 0
        kernel[tuple(rows)] = 0
        return kernel

    for path in kernels[level]:
        variables = replace(variables, path, cut)
    return variables


def only_skip(name, level):
    """Variables with which an image reaches the mask through one skip connection alone."""
    variables = without(name, variables_of(name), level, 0)
    for other in range(len(SKIPS[name][0])):
        if other != level:
            variables = without(name, variables, other, 1)
    return variables


@SKIPPING
def test_cutting_any_skip_changes_the_mask_and_nothing_else(name):
    whole = outputs_of(name)
    label_follows_mask = name in ("unet_attention", "unet_folded", "unet_efficientnet_lite0")
    for level, kernel in enumerate(SKIPS[name][0]):
        cut = compiled(name)(without(name, variables_of(name), level, 1), images())
        # far above rounding; with few features the coarsest level contributes little
        assert np.abs(np.asarray(cut.mask) - whole.mask).mean() > 0.001 * whole.mask.std(), kernel
        if not label_follows_mask:
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
def test_without_any_skip_and_the_level_below_the_mask_does_not_depend_on_the_image(name):
    variables = without(name, variables_of(name), 0, 0)
    for level in range(len(SKIPS[name][0])):
        variables = without(name, variables, level, 1)
    alone = np.asarray(compiled(name)(variables, images()).mask)
    np.testing.assert_allclose(alone, alone[:1].repeat(BATCH, 0), atol=1e-6)


def test_the_finest_skip_of_the_unet_has_full_resolution():
    variables = only_skip("unet", 0)
    changed = images().copy()
    changed[:, 10, 20] += 1
    difference = np.asarray(compiled("unet")(variables, changed).mask - compiled("unet")(variables, images()).mask)
    rows, columns = np.nonzero(np.abs(difference[..., 0]).max(0) > 1e-6)
    # two 3x3 convolutions before the skip and two after it reach four pixels
    assert (rows.min(), rows.max()) == (6, 14)
    assert (columns.min(), columns.max()) == (16, 24)


# Deep supervision


SUPERVISED = {  # strides of the auxiliary masks, finest first
    "light": (8, 16),
    "unet": (2, 4, 8),
    "unet_attention": (2, 4, 8),
    "unet_folded": (4, 8, 16),
    "sk_unet": (2, 4, 8),
    "unet_efficientnet_lite0": (4, 8, 16),
    "deeplabv3": (8,),
    "deeplabv3_resnet18": (16,),
}


def test_the_table_here_has_every_network_with_auxiliary_masks():
    assert SUPERVISED.keys() == {name for name, model in MODELS.items() if model.has_auxiliary}


@networks(SUPERVISED)
def test_auxiliary_masks_add_parameters_of_their_own_and_change_no_others(name):
    outputs, variables = traced(tiny(name, supervise=True))
    shapes = [(1, 32 // stride, 32 // stride, 1) for stride in SUPERVISED[name]]
    assert [auxiliary.shape for auxiliary in outputs.auxiliary] == shapes
    assert flatten(shapes_of(tiny(name))).items() <= flatten(variables).items()


@networks(SUPERVISED, slow=SUPERVISED.keys() - {"unet_folded"})
def test_auxiliary_masks_leave_the_mask_as_it_is(name):
    model, plain = tiny(name, supervise=True), flatten(variables_of(name))
    rng = np.random.default_rng(0)
    full = {
        path: plain.get(path, np.abs(rng.normal(size=leaf.shape)).astype(np.float32))
        for path, leaf in flatten(shapes_of(model)).items()
    }
    found = quick_jit(model.apply)(unflatten(full), images())
    expected = outputs_of(name).mask
    np.testing.assert_allclose(found.mask, expected, atol=2e-5 * np.abs(expected).max())
    assert all(np.isfinite(auxiliary).all() and np.std(auxiliary) > 0 for auxiliary in found.auxiliary)


# Properties of single networks


def test_every_coarse_level_contributes_to_the_mask_and_the_label_follows_the_mask():
    whole = outputs_of("cnn_attention")
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
        change = np.asarray(compiled("unet_folded")(lifted, images()).mask - outputs_of("unet_folded").mask)[..., 0]
        expected = np.zeros_like(change)
        expected[:, channel // 2 :: 2, channel % 2 :: 2] = 1.0
        np.testing.assert_allclose(change, expected, atol=1e-5)


def test_the_label_depends_on_the_mask_but_its_loss_does_not_train_the_mask():
    variables = variables_of("unet_folded")
    moved = compiled("unet_folded")(replace(variables, "params/mask/bias", lambda b: b + 3), images())
    assert np.abs(np.asarray(moved.label) - outputs_of("unet_folded").label).max() > 1e-4
    gradients, _ = training_step("unet_folded")(1.0, 0.0)
    assert not np.any(gradients["mask"]["kernel"])
    assert np.abs(gradients["decoder1_2"]["layer"]["conv"]["kernel"]).max() > 1e-6  # the features below the mask
