"""The training step: pure, the same on one device and on several, unaffected by padding rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mcis.data.batches import Batch
from mcis.imaging.letterbox import INPUT_SIZE
from mcis.models import MODELS
from mcis.ops.augment import Augmentation, augment
from mcis.ops.image import resize
from mcis.tasks.apply import prepare, present
from mcis.tasks.table import TASKS
from mcis.train import distributed, parallel, step
from tests.fixtures.runs import Tiny, flip, unaugmented
from tests.fixtures.tasks import small_task


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    """Networks that compile fast, and no augmentation."""
    monkeypatch.setitem(MODELS, "tiny", Tiny())
    monkeypatch.setitem(MODELS, "plain", Tiny(norm=False))
    monkeypatch.setattr(step, "augment", unaugmented)


def small(name, **changes):
    return small_task(name, **{"batch_size": 4, "learning_rate": 1e-2} | changes)


def make_batch(task, rows=4, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (rows, INPUT_SIZE, INPUT_SIZE, 3), dtype=np.uint8)
    mask = np.zeros((rows, INPUT_SIZE, INPUT_SIZE, 1), np.uint8)
    mask[::2, 64:160, 80:200] = 1
    image[::2, 64:160, 80:200] //= 4
    label = (np.arange(rows) % len(task.classes)).astype(np.int32)
    return Batch(image, mask, label, np.ones(rows, bool), np.ones(rows, bool))


@functools.cache
def build(task, steps=30):
    """A training step and its first state; tests of equal tasks and batch sizes share its compilation."""
    model = task.make_model()
    optimizer = step.make_optimizer(task, steps)
    return jax.jit(step.make_train_step(task, model, optimizer)), step.create_state(task, model, optimizer, seed=0)


def close(tree, other, tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), tree, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_a_few_steps_lower_the_loss(name):
    own = {"features": 8, "size": 64, "batch_size": 4, "learning_rate": 1e-2, "encoder_rate": 1.0}
    task = dataclasses.replace(TASKS[name], **own)
    train_step, state = build(task)
    batch, losses = make_batch(task), []
    for _ in range(30):
        state, metrics = train_step(state, batch)
        total, count = metrics["loss"]
        losses.append(float(total / count))
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.7 * losses[0]
    assert int(state.step) == 30


@pytest.mark.parametrize(("side", "canvas"), [(INPUT_SIZE, 45), (40, 40)])
def test_scans_are_augmented_larger_than_the_network_but_never_enlarged_for_that(side, canvas, monkeypatch):
    """A canvas of 1.4 times 32 pixels, for scans that have so many; nothing is compiled."""
    seen = []

    def record(keys, image, mask, settings, size):
        seen.append((keys.shape, image.shape, mask.shape, mask.dtype, settings, size))
        return unaugmented(keys, image, mask, settings, size)

    monkeypatch.setattr(step, "augment", record)
    task = small("segment_breast", augmentation=Augmentation(rotate=7.0))
    model, optimizer = task.make_model(train=True), optax.sgd(1e-3)
    state = jax.eval_shape(lambda: step.create_state(task, model, optimizer, seed=0))
    batch = make_batch(task)
    batch = batch._replace(image=batch.image[:, :side, :side], mask=batch.mask[:, :side, :side])
    _, metrics = jax.eval_shape(step.make_train_step(task, model, optimizer), state, batch)
    assert seen == [((4,), (4, canvas, canvas, 3), (4, canvas, canvas, 1), jnp.float32, task.augmentation, 32)]
    assert {"mask_loss", "label_loss"} <= metrics.keys()  # of the network's masks and of those at its size


SPREAD = {"jit": parallel.parallel_train_step, "pmap": parallel.pmap_train_step}


@pytest.mark.parametrize(
    ("name", "model", "accumulate", "spread", "augmentation"),
    [
        ("route", "tiny", 2, "pmap", flip),
        pytest.param("route", "tiny", 1, "jit", flip, marks=pytest.mark.slow),
        pytest.param("segment_breast", "plain", 2, "jit", flip, marks=pytest.mark.slow),
        pytest.param("segment_breast", "plain", 1, "pmap", augment, marks=pytest.mark.slow),
        pytest.param("segment_breast", "plain", 2, "jit", augment, marks=pytest.mark.slow),
        pytest.param("segment_breast", "light", 1, "jit", augment, marks=pytest.mark.slow),
        pytest.param("segment_breast", "light", 1, "pmap", augment, marks=pytest.mark.slow),
        pytest.param("route", "cnn", 1, "jit", augment, marks=pytest.mark.slow),
        pytest.param("route", "cnn", 2, "pmap", augment, marks=pytest.mark.slow),
        pytest.param("segment_breast", "unet", 1, "pmap", augment, marks=pytest.mark.slow),
    ],
)
def test_steps_on_two_devices_are_those_on_one(name, model, accumulate, spread, augmentation, monkeypatch):
    """Augmented, with dropout, batch statistics and a padding row; by SGD, because AdamW magnifies rounding."""
    assert len(jax.devices()) == 2
    monkeypatch.setattr(step, "augment", augmentation)
    task = small(name, model=model, features=8, accumulate=accumulate, augmentation=Augmentation())
    rows = 16 if model in ("tiny", "cnn", "unet") else 4 * accumulate  # statistics of a few scans magnify rounding
    batch, mesh = make_batch(task, rows), parallel.make_mesh()
    batch = batch._replace(valid=np.arange(rows) < rows - 1)
    # the deepest levels have a few pixels a scan here, whose statistics magnify it all the same
    optimizer, found = optax.sgd(1e-4 if model in ("cnn", "unet") else 1e-3), []
    for axis_name, compile_step in ((None, jax.jit), (parallel.AXIS, lambda one: SPREAD[spread](one, mesh))):
        network = task.make_model(axis_name, train=True)
        state = step.create_state(task, network, optimizer, seed=0)
        one_step = compile_step(step.make_train_step(task, network, optimizer, axis_name))
        state = state if not found else parallel.put(state, mesh)
        for _ in range(5 if augmentation is flip else 20):
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


def with_collectives(text):
    """Names of the computations of a compiled program in which devices wait for each other."""
    name, found = "", set()
    for line in text.splitlines():
        if line and not line.startswith(" "):
            name = "ENTRY" if line.startswith("ENTRY") else line.split(" ")[0]
        elif any(f" {word}(" in line or f" {word}-start(" in line for word in COLLECTIVES):
            found.add(name)
    return found


@pytest.mark.parametrize("model", ["tiny", pytest.param("unet_attention", marks=pytest.mark.slow)])
def test_devices_never_wait_for_each_other_inside_a_loop(model):
    """CPU devices may reach a loop's collective and others in different orders; jit alone would put some in loops."""
    task, mesh = small("segment_breast", model=model, size=64), parallel.make_mesh()
    network, optimizer = task.make_model(parallel.AXIS, train=True), optax.sgd(1e-3)
    state = parallel.put(step.create_state(task, network, optimizer, seed=0), mesh)
    inputs = make_batch(task), np.zeros((mesh.size, 2), bool)
    plain = step.make_train_step(task, network, optimizer, parallel.AXIS)
    train_step = parallel.parallel_train_step(distributed.with_control_flags(plain, parallel.AXIS), mesh)
    evaluation_step = parallel.parallel_evaluation_step(step.make_evaluation_step(task), mesh)
    for spread, argument, rows, loops in (
        (train_step, state, inputs, True),  # the weight gradient of a convolution is a loop over strips
        (evaluation_step, state.ema, inputs[0], False),
    ):
        (compiled,) = (cell.cell_contents for cell in spread.__closure__ if hasattr(cell.cell_contents, "lower"))
        text = compiled.lower(argument, parallel.feed(rows, mesh)).compile().as_text()
        assert with_collectives(text) == {"ENTRY"}
        assert " while(" in text or not loops


def test_padding_rows_change_nothing():
    # without what depends on the position in the batch or on other examples: dropout, batch statistics
    task = small("segment_breast", model="plain", label_loss=0.0)
    train_step, state = build(task)
    batch = make_batch(task, rows=8)
    twice = Batch(*(np.concatenate([x[:4], x[:4]]) for x in batch))  # the same mean as of four scans alone
    padded = batch._replace(valid=np.arange(8) < 4)
    noise = np.random.default_rng(1).integers(0, 256, batch.image[4:].shape, dtype=np.uint8)
    padded = padded._replace(image=np.concatenate([batch.image[:4], noise]))
    (plain, plain_metrics), (full, full_metrics) = train_step(state, twice), train_step(state, padded)
    close(jax.tree.leaves(full.opt_state), jax.tree.leaves(plain.opt_state), 1e-5)
    norms = [float(metrics["gradient_norm"][0]) for metrics in (plain_metrics, full_metrics)]  # before clipping
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    assert float(plain_metrics["mask_loss"][1]) == 8.0
    assert float(full_metrics["mask_loss"][1]) == 4.0


def test_the_step_is_pure_and_missing_masks_and_unknown_labels_give_no_gradient():
    task = small("segment_breast", model="plain", ema=0.5)
    train_step, state = build(task)
    batch = make_batch(task)
    nothing = batch._replace(has_mask=np.zeros(4, bool), label=np.full(4, -1, np.int32))
    _, metrics = train_step(state, nothing)
    assert float(metrics["gradient_norm"][0]) == 0.0
    assert float(metrics["loss"][0]) == 0.0
    after, _ = train_step(state, batch)
    close(train_step(state, batch)[0], after, 0.0)
    # the first step has a learning rate of 0; the decay of the average at step 1 is min(0.5, 2/11)
    last, _ = train_step(after, batch)
    expected = jax.tree.map(lambda old, new: (2 * old + 9 * new) / 11, after.ema["params"], last.params)
    close(last.ema["params"], expected, 1e-6)
    moved = jax.tree.map(lambda old, new: float(jnp.abs(new - old).max()), after.ema["params"], last.ema["params"])
    assert max(jax.tree.leaves(moved)) > 1e-4


@pytest.mark.slow
def test_auxiliary_masks_noise_removal_and_edges_are_learned_with():
    task = small("segment_breast", model="unet", auxiliary_loss=0.5, denoise="median", edges="sobel")
    train_step, state = build(task)
    assert state.params["encoder1_1"]["layer"]["conv"]["kernel"].shape[2] == 4
    after, metrics = train_step(state, make_batch(task))
    after, metrics = train_step(after, make_batch(task))  # the first step's learning rate is 0
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after.params, state.params)
    assert all(value > 0 for name in moved if name.startswith("mask") for value in jax.tree.leaves(moved[name]))
    assert len([name for name in moved if name.startswith("mask")]) == 4
    without = dataclasses.replace(task, auxiliary_loss=0.0)
    plain_step, plain_state = build(without)
    _, plain = plain_step(plain_state, make_batch(without))
    assert float(metrics["mask_loss"][0]) > 1.3 * float(plain["mask_loss"][0])


def test_weight_decay_affects_kernels_only():
    task = small("route", weight_decay=0.5, learning_rate=1.0, warmup=0.0)
    optimizer = step.make_optimizer(task, 10)
    params = {"dense": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}, "norm": {"scale": jnp.ones(3)}}
    zero, update = jax.tree.map(jnp.zeros_like, params), jax.jit(optimizer.update)
    _, state = update(zero, optimizer.init(params), params)  # the first step of the warm-up has learning rate 0
    updates, _ = update(zero, state, params)
    assert (updates["dense"]["kernel"] < 0).all()
    assert (updates["dense"]["bias"] == 0).all() and (updates["norm"]["scale"] == 0).all()


@pytest.mark.parametrize("rate", [0.25, 0.0])
def test_the_encoder_learns_at_its_own_rate(rate):
    task = small("segment_breast", encoder_rate=rate, warmup=0.0, weight_decay=0.1)
    params = {part: {"kernel": jnp.ones((2, 3))} for part in ("encoder", "mask")}
    optimizer = step.make_optimizer(task, 10)
    state = optimizer.init(params)
    for _ in range(2):  # the learning rate of the first step is 0
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    assert (np.abs(updates["mask"]["kernel"]) > 0).all()
    np.testing.assert_allclose(updates["encoder"]["kernel"], rate * updates["mask"]["kernel"], rtol=1e-6)


def test_the_optimizer_on_one_vector_is_optax_adamw_on_every_array():
    task = small("segment_breast", encoder_rate=0.3, warmup=0.1, weight_decay=0.1, clip=0.5)
    rng = np.random.default_rng(0)
    shapes = {"encoder": {"kernel": (3, 2), "bias": (2,)}, "mask": {"kernel": (2, 4), "scale": (4,)}}
    drawn = [
        jax.tree.map(lambda n: rng.normal(size=n), shapes, is_leaf=lambda n: isinstance(n, tuple)) for _ in range(4)
    ]
    params, *gradients = jax.tree.map(jnp.float32, drawn)
    kernels = {part: {name: name == "kernel" for name in arrays} for part, arrays in shapes.items()}
    wanted = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(step.make_schedule(task, 10), weight_decay=0.1, mask=kernels),
        optax.masked(optax.scale(0.3), {"encoder": True, "mask": False}),
    )
    ours = step.make_optimizer(task, 10)
    state, wanted_state = ours.init(params), wanted.init(params)
    for gradient in gradients:
        updates, state = ours.update(gradient, state, params)
        wanted_updates, wanted_state = wanted.update(gradient, wanted_state, params)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-9), updates, wanted_updates)


def test_the_optimizer_keeps_nothing_of_a_frozen_encoder():
    params = {"encoder": {"kernel": jnp.ones((50, 50))}, "mask": {"kernel": jnp.ones(7)}}
    sizes = [
        leaf.size for leaf in jax.tree.leaves(step.make_optimizer(small("route", encoder_rate=0.0), 9).init(params))
    ]
    assert sorted(sizes)[-2:] == [7, 7]


def test_arrays_without_trained_weights_are_drawn_as_if_none_had_any():
    task = small("segment_brain", model="tiny")
    network, optimizer = task.make_model(train=True), step.make_optimizer(task, 9)
    drawn = step.create_state(task, network, optimizer, seed=3)
    seen = []

    def replace(variables):
        seen.extend(jax.tree.leaves(variables))
        part = sorted(variables["params"])[0]
        trained = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), variables["params"][part])
        return variables | {"params": variables["params"] | {part: trained}}

    state = step.create_state(task, network, optimizer, 3, replace)
    assert seen and all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in seen)
    trained, *others = sorted(drawn.params)
    assert others and all((leaf == 0.5).all() for leaf in jax.tree.leaves(state.params[trained]))
    for name in others:
        jax.tree.map(np.testing.assert_array_equal, state.params[name], drawn.params[name])


def test_a_batch_that_does_not_divide_among_the_devices_is_an_error():
    with pytest.raises(ValueError, match="choose a multiple of 2"):
        parallel.check_batch(7, parallel.make_mesh())
    with pytest.raises(ValueError, match="among 2 devices in 2 parts: choose a multiple of 4"):
        parallel.check_batch(6, parallel.make_mesh(), 2)


@pytest.mark.parametrize(
    ("name", "model"),
    [("route", "tiny"), ("segment_brain", "tiny")]
    + [pytest.param(name, None, marks=pytest.mark.slow) for name in TASKS],
)
def test_the_evaluation_step_gives_one_result_per_scan(name, model):
    task = small(name, model=model or TASKS[name].model)
    _, state = build(task)
    batch = make_batch(task)
    evaluate = jax.jit(step.make_evaluation_step(task))
    results = evaluate(state.ema, batch)
    assert {len(value) for value in results.values()} == {4}
    single = evaluate(state.ema, Batch(*(x[[0] * 4] for x in batch)))  # the result of a scan depends on no other
    for key, value in single.items():
        np.testing.assert_allclose(value[0], results[key][0], rtol=1e-4, atol=1e-4, err_msg=key)
    if task.segments:
        np.testing.assert_array_equal(results["true"], batch.mask.sum((1, 2, 3)))
    np.testing.assert_allclose(results["probs"].sum(-1), 1.0, rtol=1e-5)


def test_the_learning_rate_rises_and_decays_as_its_name_says():
    for name, decay in (
        ("cosine", lambda share: 0.5 * (1 + np.cos(np.pi * share))),
        ("polynomial", lambda share: (1 - share) ** 0.9),
    ):
        rate = step.make_schedule(small("route", schedule=name, learning_rate=0.5, warmup=0.1), 100)
        assert [float(rate(at)) for at in (0, 5, 10)] == pytest.approx([0.0, 0.25, 0.5])
        for at in (40, 77, 100):
            assert float(rate(at)) == pytest.approx(0.5 * decay((at - 10) / 90), abs=1e-6)


def test_a_batch_in_parts_has_the_gradient_of_the_whole():
    # without batch statistics; dropout, which is drawn by position, is in the label head alone
    task = small("segment_breast", model="plain", label_loss=0.0)
    train_step, state = build(task)
    batch = make_batch(task, rows=8)
    batch = batch._replace(has_mask=np.array([True] * 5 + [False] * 3), valid=np.array([True] * 7 + [False]))
    in_parts, _ = build(dataclasses.replace(task, accumulate=4))
    (whole, metrics), (split, split_metrics) = train_step(state, batch), in_parts(state, batch)
    close(jax.tree.leaves(split.opt_state), jax.tree.leaves(whole.opt_state), 1e-5)
    for name, (total, count) in metrics.items():
        assert float(split_metrics[name][0]) == pytest.approx(float(total), rel=1e-4), name
        assert float(split_metrics[name][1]) == float(count)


def test_each_part_of_a_batch_adds_to_the_running_statistics():
    task, optimizer = small("route", model="tiny", accumulate=2, batch_size=8), optax.sgd(1e-3)
    model = task.make_model(train=True)
    state = step.create_state(task, model, optimizer, seed=0)
    batch = make_batch(task, rows=8)
    after, _ = jax.jit(step.make_train_step(task, model, optimizer))(state, batch)

    @jax.jit
    def forward(batch_stats, image):
        shown = present(resize(prepare(image, round(step.CANVAS * task.size)), (task.size, task.size)))
        variables = {"params": state.params, "batch_stats": batch_stats}
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(variables, shown, train=True, mutable=["batch_stats"], rngs=rngs)[1]["batch_stats"]

    first = forward(state.batch_stats, batch.image[0::2])  # a part is every other scan
    both = forward(first, batch.image[1::2])
    close(after.batch_stats, both, 1e-5)
    for one, other in ((state.batch_stats, first), (first, both)):
        moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), one, other)
        assert min(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.slow
def test_each_part_of_a_batch_has_the_statistics_of_all_devices():
    task = small("route", model="tiny", accumulate=2, batch_size=8)
    train_step, state = build(task)
    batch = make_batch(task, rows=8)
    one, metrics = train_step(state, batch)
    mesh, axis = parallel.make_mesh(), parallel.AXIS
    over_devices = step.make_train_step(task, task.make_model(axis, train=True), step.make_optimizer(task, 30), axis)
    two, both = parallel.parallel_train_step(over_devices, mesh)(parallel.put(state, mesh), batch)
    close(two.batch_stats, one.batch_stats, 1e-4)
    assert float(both["gradient_norm"][0]) == pytest.approx(float(metrics["gradient_norm"][0]), rel=2e-4)


@pytest.mark.parametrize("model", ["plain", pytest.param("unet", marks=pytest.mark.slow)])
def test_half_precision_is_used_for_the_computation_alone(model):
    task = small("segment_breast", model=model, precision="bfloat16", ema=0.5)
    optimizer = step.make_optimizer(task, 30)
    half = jax.jit(step.make_train_step(task, task.make_model(train=True), optimizer))
    state = step.create_state(task, task.make_model(train=True), optimizer, seed=0)
    batch = make_batch(task)
    assert "bf16" in str(jax.make_jaxpr(half)(state, batch))
    assert "bf16" not in str(jax.make_jaxpr(step.make_evaluation_step(task))(state.ema, batch))
    full, _ = build(dataclasses.replace(task, precision="float32"))
    (after, metrics), (_, exact) = half(state, batch), full(state, batch)
    types = {leaf.dtype for leaf in jax.tree.leaves(after) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    assert types == {jnp.dtype("float32")}
    assert float(metrics["loss"][0]) == pytest.approx(float(exact["loss"][0]), rel=0.05)
    assert float(metrics["loss"][0]) != float(exact["loss"][0])
