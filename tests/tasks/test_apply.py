import dataclasses
import functools
import math
from typing import ClassVar

import flax.linen as nn
import jax
import numpy as np
import pytest

from mcis.imaging.letterbox import INPUT_SIZE
from mcis.models import MODELS
from mcis.models.network import Network, Outputs
from mcis.ops.crf import CRF
from mcis.ops.image import EDGES
from mcis.tasks.apply import MEMBERS, make_expert, make_network, place, prepare, present, refined_mask
from mcis.tasks.table import TASKS
from tests.fixtures.tasks import small_task

SIDE = 32
IMAGE = np.random.default_rng(0).integers(0, 256, (2, 2 * SIDE, 2 * SIDE, 3), np.uint8)
jit_present = jax.jit(present, static_argnums=(1, 2))
jit_prepare = jax.jit(prepare, static_argnums=(1, 2))


class Tiny(Network):
    """One convolution and every head: it compiles in no time."""

    stride: ClassVar[int] = 1
    segments: ClassVar[bool] = True

    @nn.compact
    def __call__(self, image, train=False):
        x = nn.relu(nn.Conv(self.features, (3, 3), name="conv")(image))
        features = x.mean((1, 2))
        return Outputs(nn.Conv(1, (1, 1), name="mask")(x), nn.Dense(self.classes, name="label")(features), features)


@pytest.fixture
def tiny(monkeypatch):
    """`small_task`, with this network."""
    monkeypatch.setitem(MODELS, "tiny", Tiny())
    return small_task


def variables_of(task, seed=0):
    shapes = jax.eval_shape(task.make_model().init, jax.random.key(0), np.zeros((1, SIDE, SIDE, task.channels)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)


def test_scans_are_resized_to_the_network():
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[0, :, 1] = 255
    prepared = jit_prepare(image, 4)
    assert prepared.dtype == np.float32
    np.testing.assert_allclose(prepared[0, 0, :, 0], [0, 0.25, 0.75, 1], atol=1e-6)


def test_noise_removal_removes_a_single_bright_pixel():
    image = np.full((1, 8, 8, 3), 100, np.uint8)
    image[0, 4, 4] = 255
    plain, gaussian, median = (np.asarray(jit_prepare(image, 8, name)) for name in ("none", "gaussian", "median"))
    np.testing.assert_allclose(plain, image / 255, atol=1e-6)
    np.testing.assert_allclose(median, 100 / 255, atol=1e-6)
    assert 100 / 255 < gaussian.max() < 0.55


def test_channels_are_standardised_together_or_each_by_itself(tiny):
    contrast = np.float32([0.1, 0.5, 1.0])
    image = np.random.default_rng(0).random((2, 16, 16, 3), np.float32) * contrast
    np.testing.assert_allclose(jit_present(image, "none", True).std((1, 2)), 1, atol=1e-4)
    assert np.ptp(jit_present(image, "none", False).std((1, 2)), axis=-1).min() > 0.1
    scans = 4 * np.uint8(IMAGE // 4 * np.float32([0.2, 0.5, 1.0]))
    dimmed = scans // 4 * np.uint8([1, 2, 4])
    changes = []
    for each_channel in (False, True):
        task = tiny("segment_brain", each_channel=each_channel)
        network = jax.jit(lambda *args, task=task: make_network(task)(*args)[0].mask)
        changes.append(np.abs(network(variables_of(task), scans) - network(variables_of(task), dimmed)).max())
    assert changes[1] < 0.2 * changes[0]


def test_the_black_beside_a_scan_counts_unless_scans_are_standardised_inside(tiny):
    """A scan beside as much black, and twice side by side: away from the border the network sees the same scan."""
    scan = np.random.default_rng(1).integers(60, 256, (SIDE, SIDE // 2, 3), np.uint8)
    images = np.stack([np.concatenate([scan, other], 1) for other in (0 * scan, scan)])
    found = []
    for inside in (False, True):
        task = tiny("segment_brain", inside=inside, each_channel=True)
        both = np.asarray(jax.jit(make_network(task))(variables_of(task), images)[0].mask)[:, :, : SIDE // 2 - 1]
        found.append(np.abs(both[0] - both[1]).max())
    assert found[0] > 0.05
    assert found[1] < 1e-4


@pytest.mark.parametrize("edges", [name for name in EDGES if name != "none"])
def test_an_edge_map_is_a_fourth_channel(tiny, edges):
    image = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    shown = np.asarray(jit_present(image, edges, False))
    assert shown.shape == (2, 16, 16, 4)
    np.testing.assert_allclose(shown[..., :3], jit_present(image, "none", False), atol=1e-5)
    np.testing.assert_allclose(shown[..., 3].mean((1, 2)), 0, atol=1e-5)  # standardised, whatever the scan's contrast
    np.testing.assert_allclose(shown[..., 3].std((1, 2)), 1, atol=1e-4)
    task = tiny("segment_brain", edges=edges)
    shapes = jax.eval_shape(make_network(task), variables_of(task), IMAGE)[0]
    assert shapes.mask.shape == (2, SIDE, SIDE, 1)
    assert variables_of(task)["params"]["conv"]["kernel"].shape[2] == 4


def test_the_crf_refines_an_experts_mask(tiny):
    plain = tiny("segment_brain")
    refined = dataclasses.replace(plain, crf=CRF(steps=1, weight=8.0))
    variables = variables_of(plain)

    @jax.jit
    def masks(variables, image):
        outputs, prepared = make_network(plain)(variables, image)
        by_hand = refined_mask(outputs.mask, prepared, refined.crf, image.shape[1:3])
        return by_hand, *(make_expert(task)(variables, image).mask for task in (refined, plain))

    expected, mask, unrefined = masks(variables, IMAGE)
    np.testing.assert_allclose(mask, expected, atol=1e-5)
    assert np.abs(mask - unrefined).max() > 0.05


@pytest.mark.parametrize("name", ["segment_breast", "classify_breast"])
def test_an_expert_returns_probabilities(tiny, name):
    task = tiny(name)
    outputs = jax.jit(make_expert(task))(variables_of(task), IMAGE)
    np.testing.assert_allclose(outputs.label.sum(-1), 1, rtol=1e-5)
    assert outputs.label.min() >= 0 and outputs.features.shape == (2, 4)
    if task.segments:
        assert outputs.mask.shape == (*IMAGE.shape[:3], 1)
        assert outputs.mask.min() >= 0 and outputs.mask.max() <= 1
    else:
        assert outputs.mask is None  # a classifier's coarse mask is not an output


OWN = {task.model: task for task in TASKS.values()}
"""Network -> a task of which it is the own one: tracing a deep network takes seconds."""


@pytest.mark.parametrize("task", OWN.values(), ids=OWN)
def test_a_tasks_own_network_has_the_heads_that_the_task_needs(task):
    image = jax.ShapeDtypeStruct((1, task.size, task.size, task.channels), np.float32)
    variables = jax.eval_shape(functools.partial(task.make_model().init, train=False), jax.random.key(0), image)
    scans = jax.ShapeDtypeStruct((2, INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
    outputs = jax.eval_shape(make_expert(task), variables, scans)
    assert outputs.label.shape == (2, len(task.classes))
    assert outputs.features.ndim == 2
    assert (outputs.mask is None) is not task.segments
    assert outputs.mask is None or outputs.mask.shape == (2, INPUT_SIZE, INPUT_SIZE, 1)


def test_an_ensembles_outputs_are_the_mean_of_its_networks_stacked_or_not(tiny):
    task = tiny("segment_breast")
    members = [variables_of(task, seed) for seed in range(3)]
    variables = {MEMBERS: jax.tree.map(lambda *leaves: np.stack(leaves), *members)}
    expert = jax.jit(make_expert(task))
    each = [expert(member, IMAGE) for member in members]
    mean = jax.tree.map(lambda *one: np.mean(one, 0), *each)
    assert np.ptp([one.label for one in each], axis=0).max() > 1e-3
    for ensemble in (variables, place(variables)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), mean, expert(ensemble, IMAGE))


def test_the_label_is_corrected_for_transplanted_lesions():
    """Of even draws 0.35 of the lesion-free become lesions: 0.65 to 1.35, which the probabilities must not show."""
    plain = TASKS["segment_brain"]
    changed = dataclasses.replace(plain, transplant=0.35)
    assert plain.excess == (0.0, 0.0) and TASKS["route"].excess == (0.0, 0.0, 0.0)
    assert changed.excess == pytest.approx((0.0, math.log(1.35 / 0.65)))
    small = [small_task("segment_brain", model="unet", transplant=share) for share in (0.0, 0.35)]
    variables = jax.jit(small[0].make_model().init)(jax.random.key(0), np.zeros((1, SIDE, SIDE, 3), np.float32))
    before, after = (np.asarray(jax.jit(make_expert(task))(variables, IMAGE).label) for task in small)
    odds = (after[:, 1] / after[:, 0]) / (before[:, 1] / before[:, 0])
    np.testing.assert_allclose(odds, 0.65 / 1.35, rtol=1e-4)
