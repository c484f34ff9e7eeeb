import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcis.imaging.letterbox import INPUT_SIZE
from mcis.ops.crf import CRF
from mcis.ops.image import EDGES
from mcis.tasks.apply import MEMBERS, make_expert, make_network, on_canvas, place, prepare, present
from mcis.tasks.table import TASKS

EVERY = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def test_prepare_by_hand():
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[0, :, 1] = 255
    found = np.asarray(jax.jit(prepare, static_argnums=1)(image, 4))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0, 0, :, 0], [0, 0.25, 0.75, 1], atol=1e-6)


def test_networks_are_shown_channels_standardised_as_their_task_says():
    image = np.random.default_rng(0).random((2, 16, 16, 3), np.float32) * np.float32([0.1, 0.5, 1.0]).reshape(
        1, 1, 1, 3
    )
    np.testing.assert_allclose(present(image, each_channel=True).std((1, 2)), 1, atol=1e-4)
    assert np.ptp(present(image).std((1, 2)), axis=-1).min() > 0.1
    base = dataclasses.replace(TASKS["segment_brain"], features=2, size=32)
    variables = base.make_model().init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32), train=False)
    scans = np.uint8(np.random.default_rng(1).integers(0, 256, (1, 32, 32, 3)) * np.float32([0.2, 0.5, 1.0]))
    masks = []
    for each in (False, True):
        task = dataclasses.replace(base, each_channel=each)
        dim = [make_network(task)(variables, x)[0].mask for x in (scans, scans // 4 * np.uint8([1, 2, 4]))]
        masks.append(float(jnp.abs(dim[0] - dim[1]).max()))
    assert masks[1] < 0.2 * masks[0]  # equal but for rounding to whole grey values


@pytest.mark.parametrize("edges", [name for name in EDGES if name != "none"])
def test_an_edge_map_is_a_further_channel_beside_the_same_three(edges):
    image = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    found = present(image, edges)
    assert found.shape == (2, 16, 16, 4)
    np.testing.assert_array_equal(found[..., :3], present(image))
    edge_map = np.asarray(found[..., 3])
    np.testing.assert_allclose(edge_map.mean((1, 2)), 0, atol=1e-5)  # a scan of little contrast has a map of as much
    np.testing.assert_allclose(edge_map.std((1, 2)), 1, atol=1e-4)
    task = dataclasses.replace(TASKS["segment_brain"], model="unet", edges=edges, features=2)
    shapes = jax.eval_shape(task.make_model().init, jax.random.key(0), np.zeros((1, 32, 32, task.channels), np.float32))
    assert shapes["params"]["encoder1_1"]["layer"]["conv"]["kernel"].shape[2] == 4


def test_noise_removal_takes_a_lone_pixel_away():
    image = np.full((1, 8, 8, 3), 100, np.uint8)
    image[0, 4, 4] = 255
    plain, gaussian, median = (np.asarray(prepare(image, 8, name)) for name in ("none", "gaussian", "median"))
    np.testing.assert_allclose(plain, image / 255, atol=1e-6)
    np.testing.assert_allclose(median, 100 / 255, atol=1e-6)
    assert 100 / 255 < gaussian.max() < 0.55


def test_an_experts_mask_goes_through_its_crf():
    plain = dataclasses.replace(TASKS["segment_brain"], features=2, size=32)
    refined = dataclasses.replace(plain, crf=CRF(weight=8.0))
    image = np.random.default_rng(0).integers(0, 256, (2, INPUT_SIZE // 4, INPUT_SIZE // 4, 3), dtype=np.uint8)
    variables = jax.jit(plain.make_model().init)(jax.random.key(0, impl="rbg"), np.zeros((1, 32, 32, 3), np.float32))
    outputs, prepared = jax.jit(make_network(plain))(variables, image)
    found = jax.jit(make_expert(refined))(variables, image).mask
    np.testing.assert_allclose(found, on_canvas(outputs.mask, prepared, refined.crf, image.shape[1:3]), atol=1e-5)
    assert np.abs(found - jax.jit(make_expert(plain))(variables, image).mask).max() > 0.05


@EVERY
def test_an_expert_answers_on_the_canvas_with_probabilities(task):
    small = dataclasses.replace(task, features=2, size=32)
    image = np.random.default_rng(0).integers(0, 256, (2, INPUT_SIZE // 4, INPUT_SIZE // 4, 3), dtype=np.uint8)
    shapes = jax.eval_shape(small.make_model().init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda leaf: rng.uniform(0.1, 0.3, leaf.shape).astype(np.float32), shapes)
    outputs = jax.jit(make_expert(small))(variables, image)
    if small.segments:
        assert outputs.mask.shape == (*image.shape[:3], 1)
        assert outputs.mask.min() >= 0
        assert outputs.mask.max() <= 1
    else:
        assert outputs.mask is None
    assert outputs.label.shape == (2, len(task.classes))
    np.testing.assert_allclose(outputs.label.sum(-1), 1, rtol=1e-5)


def test_an_ensemble_answers_with_the_mean_however_its_networks_are_laid_out():
    task = dataclasses.replace(TASKS["segment_breast"], features=2, size=32)
    init = jax.jit(task.make_model().init)
    members = [init(jax.random.key(seed, impl="rbg"), np.zeros((1, 32, 32, 3), np.float32)) for seed in range(3)]
    variables = {MEMBERS: jax.tree.map(lambda *leaves: np.stack(leaves), *members)}
    image = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    expert = jax.jit(make_expert(task))
    each = [expert(member, image) for member in members]
    mean = jax.tree.map(lambda *one: np.mean(one, 0), *each)
    assert np.ptp([one.label for one in each], axis=0).max() > 1e-4
    for laid in (variables, place(variables)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), mean, expert(laid, image))
