"""The training step: pure, equal on one device and on several, blind to filling rows."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mcis.data.batches import Batch
from mcis.imaging.letterbox import INPUT_SIZE
from mcis.models import MODELS, Outputs
from mcis.models.layers import Conv, LabelHead, Pointwise
from mcis.ops.augment import Augmentation
from mcis.tasks.table import TASKS
from mcis.train import distributed, parallel, step

STILL = Augmentation(**{field.name: 0.0 for field in dataclasses.fields(Augmentation)})


class Few(nn.Module):
    """Two convolutions, a mask and a label with dropout: the step around it is ours, and compiles in seconds."""

    stride: ClassVar[int] = 1
    segments: ClassVar[bool] = True
    features: int = 8
    classes: int = 0
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image, train=False):
        x = nn.relu(Conv(self.features, dtype=self.dtype, name="conv1")(image.astype(self.dtype)))
        x = nn.relu(Conv(self.features, dtype=self.dtype, name="conv2")(x))
        mask, pooled = Pointwise(1, name="mask")(x.astype(jnp.float32)), x.mean((1, 2)).astype(jnp.float32)
        head = LabelHead(self.classes, axis_name=self.axis_name, name="label") if self.classes else None
        return Outputs(mask, head and head(pooled, train), pooled)


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setitem(MODELS, "few", Few())


def tiny(name, **changes):
    fields = {"features": 8, "size": 32, "batch_size": 4, "learning_rate": 1e-2, "augmentation": STILL}
    return dataclasses.replace(TASKS[name], **fields | changes)


def make_batch(task, rows=4, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (rows, INPUT_SIZE, INPUT_SIZE, 3), dtype=np.uint8)
    mask = np.zeros((rows, INPUT_SIZE, INPUT_SIZE, 1), np.uint8)
    mask[::2, 64:160, 80:200] = 1
    image[::2, 64:160, 80:200] //= 4
    label = (np.arange(rows) % len(task.classes)).astype(np.int32)
    return Batch(image, mask, label, np.ones(rows, bool), np.ones(rows, bool))


def build(task, steps=30):
    model = task.make_model()
    optimizer = step.make_optimizer(task, steps)
    return step.make_train_step(task, model, optimizer), step.create_state(task, model, optimizer, seed=0)


def close(tree, other, tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), tree, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_a_few_steps_lower_the_loss(name):
    task = tiny(name)
    train_step, state = build(task)
    train_step = jax.jit(train_step)
    batch, losses = make_batch(task), []
    for _ in range(30):
        state, metrics = train_step(state, batch)
        total, count = metrics["loss"]
        losses.append(float(total / count))
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.7 * losses[0]
    assert int(state.step) == 30


def test_the_step_is_pure():
    task = tiny("segment_brain", model="few", augmentation=Augmentation())
    train_step, state = build(task)
    train_step, batch = jax.jit(train_step), make_batch(task)
    close(train_step(state, batch)[0], train_step(state, batch)[0], 0.0)


SPREAD = {"jit": parallel.parallel_train_step, "pmap": parallel.pmap_train_step}


@pytest.mark.parametrize(
    ("name", "model", "accumulate", "spread"),
    [
        ("segment_breast", "few", 1, "jit"),
        ("segment_breast", "few", 1, "pmap"),
        ("segment_breast", "few", 2, "jit"),
        ("route", "cnn", 1, "jit"),
        pytest.param("segment_breast", "light", 1, "jit", marks=pytest.mark.slow),
        pytest.param("segment_breast", "light", 1, "pmap", marks=pytest.mark.slow),
        pytest.param("route", "cnn", 2, "pmap", marks=pytest.mark.slow),
        pytest.param("segment_breast", "unet", 1, "pmap", marks=pytest.mark.slow),
    ],
)
def test_twenty_steps_on_two_devices_are_those_on_one(name, model, accumulate, spread):
    """Augmented, with dropout, statistics of the batch and a filling row; by SGD: AdamW magnifies the last bits."""
    assert len(jax.devices()) == 2
    task = tiny(name, model=model, accumulate=accumulate, augmentation=Augmentation())
    rows = 16 if model in ("cnn", "unet") else 4 * accumulate  # statistics of a few scans magnify the last bits
    batch, mesh = make_batch(task, rows), parallel.make_mesh()
    batch = batch._replace(valid=np.arange(rows) < rows - 1)
    # U-Net's deepest level has four pixels a scan here, whose statistics magnify them all the same
    optimizer, found = optax.sgd(1e-4 if model == "unet" else 1e-3), []
    for axis_name, spread_out in ((None, jax.jit), (parallel.AXIS, lambda step_: SPREAD[spread](step_, mesh))):
        network = task.make_model(axis_name, train=True)
        state = step.create_state(task, network, optimizer, seed=0)
        one_step = spread_out(step.make_train_step(task, network, optimizer, axis_name))
        state = state if not found else parallel.put(state, mesh)
        for _ in range(20):
            state, metrics = one_step(state, batch)
        found.append((state, metrics))
    (one, one_metrics), (two, two_metrics) = found
    close(two.params, one.params, 1e-5)
    close(two.batch_stats, one.batch_stats, 1e-4)
    close(two.ema, one.ema, 1e-5)
    for name_, (total, count) in one_metrics.items():
        assert float(two_metrics[name_][0]) == pytest.approx(float(total), rel=1e-3), name_
        assert float(two_metrics[name_][1]) == float(count)


COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def summing(text):
    """Names of the computations of a compiled program in which devices wait for each other."""
    name, found = "", set()
    for line in text.splitlines():
        if line and not line.startswith(" "):
            name = "ENTRY" if line.startswith("ENTRY") else line.split(" ")[0]
        elif any(f" {word}(" in line or f" {word}-start(" in line for word in COLLECTIVES):
            found.add(name)
    return found


def test_devices_never_wait_for_each_other_within_a_loop():
    """On CPUs they pass a loop's sums and others in any order, and would wait for ever; jit alone puts sums there."""
    task, mesh = tiny("segment_breast"), parallel.make_mesh()
    model, optimizer = task.make_model(parallel.AXIS, train=True), optax.sgd(1e-3)
    state = parallel.put(step.create_state(task, model, optimizer, seed=0), mesh)
    given = make_batch(task), np.zeros((mesh.size, 2), bool)
    one = distributed.with_wishes(step.make_train_step(task, model, optimizer, parallel.AXIS), parallel.AXIS)
    plain = step.make_evaluation_step(task)
    for spread, argument, rows in (
        (parallel.parallel_train_step(one, mesh), state, given),
        (parallel.parallel_evaluation_step(plain, mesh), state.ema, given[0]),
    ):
        fed = parallel.make_feed(mesh)(rows)
        (over_mesh,) = (cell.cell_contents for cell in spread.__closure__ if hasattr(cell.cell_contents, "lower"))
        assert summing(over_mesh.lower(argument, fed).compile().as_text()) == {"ENTRY"}


def test_filling_rows_change_nothing():
    # dropout draws by position in the batch, so the label head is off; `few` has no statistics of the batch
    task = tiny("segment_breast", model="few", label_loss=0.0)
    train_step, state = build(task)
    train_step, batch = jax.jit(train_step), make_batch(task)
    twice = Batch(*(np.concatenate([x[:2], x[:2]]) for x in batch))  # the same mean as of two scans and nothing else
    filled = batch._replace(valid=np.array([True, True, False, False]))
    noise = np.random.default_rng(1).integers(0, 256, batch.image[2:].shape, dtype=np.uint8)
    filled = filled._replace(image=np.concatenate([batch.image[:2], noise]))
    (plain, plain_metrics), (full, full_metrics) = train_step(state, twice), train_step(state, filled)
    close(jax.tree.leaves(full.opt_state), jax.tree.leaves(plain.opt_state), 1e-5)
    norms = [float(metrics["gradient_norm"][0]) for metrics in (plain_metrics, full_metrics)]  # before they are clipped
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    assert float(plain_metrics["mask_loss"][1]) == 4.0
    assert float(full_metrics["mask_loss"][1]) == 2.0


def test_a_missing_mask_and_an_unknown_label_give_no_gradient():
    task = tiny("segment_breast", model="few")
    train_step, state = build(task)
    batch = make_batch(task)._replace(has_mask=np.zeros(4, bool), label=np.full(4, -1, np.int32))
    _, metrics = jax.jit(train_step)(state, batch)
    assert float(metrics["gradient_norm"][0]) == 0.0
    assert float(metrics["loss"][0]) == 0.0


@pytest.mark.slow
def test_auxiliary_masks_noise_removal_and_edges_are_learned_with():
    task = tiny("segment_breast", model="unet", features=4, auxiliary_loss=0.5, denoise="median", edges="sobel")
    train_step, state = build(task)
    assert state.params["encoder1_1"]["layer"]["conv"]["kernel"].shape[2] == 4
    after, metrics = jax.jit(train_step)(state, make_batch(task))
    after, metrics = jax.jit(train_step)(after, make_batch(task))  # the first step's learning rate is 0
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after.params, state.params)
    assert all(value > 0 for name in moved if name.startswith("mask") for value in jax.tree.leaves(moved[name]))
    assert len([name for name in moved if name.startswith("mask")]) == 4
    without = dataclasses.replace(task, auxiliary_loss=0.0)
    plain_step, plain_state = build(without)
    _, plain = jax.jit(plain_step)(plain_state, make_batch(without))
    assert float(metrics["mask_loss"][0]) > 1.3 * float(plain["mask_loss"][0])


def test_the_average_follows_the_parameters():
    task = tiny("segment_breast", model="few", ema=0.5)
    train_step, state = build(task)
    batch = make_batch(task)
    after, _ = jax.jit(train_step)(state, batch)
    # at step 0 the decay is min(0.5, 1/10)
    expected = jax.tree.map(lambda old, new: 0.1 * old + 0.9 * new, state.params, after.params)
    close(after.ema["params"], expected, 1e-6)


def test_weight_decay_touches_kernels_only():
    task = tiny("route", weight_decay=0.5, learning_rate=1.0, warmup=0.0)
    optimizer = step.make_optimizer(task, 10)
    params = {"dense": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}, "norm": {"scale": jnp.ones(3)}}
    state = optimizer.init(params)
    zero = jax.tree.map(jnp.zeros_like, params)
    for _ in range(2):  # the first step of the warm-up has learning rate 0
        updates, state = optimizer.update(zero, state, params)
    assert (updates["dense"]["kernel"] < 0).all()
    assert (updates["dense"]["bias"] == 0).all() and (updates["norm"]["scale"] == 0).all()


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="choose a multiple of 2"):
        parallel.check_batch(7, parallel.make_mesh())


@pytest.mark.parametrize("name", TASKS)
def test_the_evaluation_step_gives_one_result_a_scan(name):
    task = tiny(name)
    _, state = build(task)
    batch = make_batch(task)
    evaluate = jax.jit(step.make_evaluation_step(task))
    results = evaluate(state.ema, batch)
    assert {len(value) for value in results.values()} == {4}
    alone = evaluate(state.ema, Batch(*(x[:1] for x in batch)))
    for key, value in alone.items():
        np.testing.assert_allclose(value[0], results[key][0], rtol=1e-4, atol=1e-4, err_msg=key)
    if task.segments:
        np.testing.assert_array_equal(results["true"], batch.mask.sum((1, 2, 3)))
    np.testing.assert_allclose(results["probs"].sum(-1), 1.0, rtol=1e-5)


def test_the_learning_rate_rises_and_decays_as_its_name_says():
    for name, decay in (
        ("cosine", lambda share: 0.5 * (1 + np.cos(np.pi * share))),
        ("polynomial", lambda share: (1 - share) ** 0.9),
    ):
        rate = step.make_schedule(tiny("route", schedule=name, learning_rate=0.5, warmup=0.1), 100)
        assert [float(rate(at)) for at in (0, 5, 10)] == pytest.approx([0.0, 0.25, 0.5])
        for at in (40, 77, 100):
            assert float(rate(at)) == pytest.approx(0.5 * decay((at - 10) / 90), abs=1e-6)


def test_a_batch_in_parts_gives_the_gradient_of_the_whole():
    # `few` has no statistics of the batch, and dropout, which is drawn by position, is in the label head alone
    task = tiny("segment_breast", model="few", label_loss=0.0, augmentation=Augmentation())
    train_step, state = build(task)
    batch = make_batch(task, rows=8)
    batch = batch._replace(has_mask=np.array([True] * 5 + [False] * 3), valid=np.array([True] * 7 + [False]))
    in_parts, _ = build(dataclasses.replace(task, accumulate=4))
    (whole, metrics), (split, split_metrics) = jax.jit(train_step)(state, batch), jax.jit(in_parts)(state, batch)
    close(jax.tree.leaves(split.opt_state), jax.tree.leaves(whole.opt_state), 1e-5)
    for name, (total, count) in metrics.items():
        assert float(split_metrics[name][0]) == pytest.approx(float(total), rel=1e-4), name
        assert float(split_metrics[name][1]) == float(count)


def test_each_part_of_a_batch_adds_to_the_running_statistics_and_two_devices_share_it():
    task = tiny("route", accumulate=2, batch_size=8, augmentation=Augmentation())
    train_step, state = build(task)
    batch = make_batch(task, rows=8)
    one, metrics = jax.jit(train_step)(state, batch)
    whole, _ = jax.jit(build(dataclasses.replace(task, accumulate=1))[0])(state, batch)
    means = [jax.tree.leaves(found.batch_stats)[0] for found in (state, whole, one)]
    moved = [np.abs(mean - means[0]).mean() for mean in means[1:]]
    assert moved[1] == pytest.approx(1.9 * moved[0], rel=0.3)  # momentum 0.9 twice: 1 - 0.81 against 1 - 0.9
    mesh = parallel.make_mesh()
    axis = parallel.AXIS
    over_all = step.make_train_step(task, task.make_model(axis, train=True), step.make_optimizer(task, 30), axis)
    two, both = parallel.parallel_train_step(over_all, mesh)(parallel.put(state, mesh), batch)
    close(two.batch_stats, one.batch_stats, 1e-4)
    assert float(both["gradient_norm"][0]) == pytest.approx(float(metrics["gradient_norm"][0]), rel=2e-4)
    with pytest.raises(ValueError, match="among 2 devices in 2 parts: choose a multiple of 4"):
        parallel.check_batch(6, mesh, 2)


@pytest.mark.slow
def test_half_precision_computes_in_it_and_keeps_all_else_in_float32():
    task = tiny("segment_breast", model="unet", precision="bfloat16")
    optimizer = step.make_optimizer(task, 30)
    half = step.make_train_step(task, task.make_model(train=True), optimizer)
    state = step.create_state(task, task.make_model(train=True), optimizer, seed=0)
    batch = make_batch(task)
    assert "bf16" in str(jax.make_jaxpr(half)(state, batch))
    assert "bf16" not in str(jax.make_jaxpr(step.make_evaluation_step(task))(state.ema, batch))
    full, _ = build(task)
    (after, metrics), (_, exact) = jax.jit(half)(state, batch), jax.jit(full)(state, batch)
    types = {leaf.dtype for leaf in jax.tree.leaves(after) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    assert types == {jnp.dtype("float32")}
    assert float(metrics["loss"][0]) == pytest.approx(float(exact["loss"][0]), rel=0.05)
    assert float(metrics["loss"][0]) != float(exact["loss"][0])
