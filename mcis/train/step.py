"""The training step and the evaluation step: pure functions of state and batch."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mcis.data.batches import WHOLE, Batch, evaluation_batches
from mcis.data.dataset import Scans
from mcis.imaging.letterbox import INPUT_SIZE
from mcis.ops import losses
from mcis.ops.augment import augment
from mcis.ops.image import resize
from mcis.ops.metrics import MASK_THRESHOLD, label_scores, mask_counts, mask_scores
from mcis.tasks.apply import make_expert, prepare, present
from mcis.tasks.config import Task

MUST_BE_FINITE = ("loss", "gradient_norm", "update_norm")
"""Metrics without which a step changes nothing."""
Metrics = dict[str, tuple[jax.Array, jax.Array]]
"""Name -> (sum, count), float32 scalars: sums over examples, so that padding and devices never bias a mean."""


@flax.struct.dataclass
class TrainState:
    """All that training carries from step to step.

    Attributes:
      step: int32, optimiser steps taken.
      params: the network's parameters, float32.
      batch_stats: running statistics of batch normalisation; {} where there is none.
      opt_state: optax's.
      ema: {"params", "batch_stats"} averaged over steps: the variables that are evaluated and kept.
      key: random key of the run; a step folds its number into it.
      failed: int32, the step whose loss or gradient was not finite, -1 where there was none. From then on a step
        changes nothing, so that the state stays what it was before the step that failed.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: dict[str, Any]
    key: jax.Array
    failed: jax.Array


def make_schedule(task: Task, steps: int) -> optax.Schedule:
    """The learning rate by step: a linear warm-up to `task.learning_rate`, then a decay to 0 at `steps`.

    It follows half a cosine (Loshchilov & Hutter 2017), or (1 - progress)^0.9, "poly" (Liu et al. 2015, ParseNet).
    """
    warmup = max(1, round(steps * task.warmup))
    left = max(steps, warmup + 1) - warmup
    decay = {
        "cosine": optax.cosine_decay_schedule(task.learning_rate, left),
        "polynomial": optax.polynomial_schedule(task.learning_rate, 0.0, 0.9, left),
    }[task.schedule]
    return optax.join_schedules([optax.linear_schedule(0.0, task.learning_rate, warmup), decay], [warmup])


def make_optimizer(task: Task, steps: int) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) with global-norm clipping, and the learning rate of `make_schedule`."""

    def kernels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    return optax.chain(
        optax.clip_by_global_norm(task.clip),
        optax.adamw(make_schedule(task, steps), weight_decay=task.weight_decay, mask=kernels),
    )


def create_state(
    task: Task,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int,
    start: Callable[[dict], dict] = lambda variables: variables,
) -> TrainState:
    """A fresh TrainState; the same seed gives the same state.

    `start` may put other numbers into the variables of the initialisation, weights that somebody has trained.
    """

    @jax.jit
    def initialise(key):
        return model.init(key, jnp.zeros((1, task.size, task.size, task.channels)), train=False)

    @jax.jit
    def create(variables, run_key):
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        # a copy, because donated buffers must not be shared between two leaves
        ema = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
        key = jax.random.key_data(run_key)
        return TrainState(jnp.int32(0), params, batch_stats, optimizer.init(params), ema, key, jnp.int32(-1))

    # rbg: the initialisation compiles several times faster than with the default generator
    return create(start(initialise(jax.random.key(seed, impl="rbg"))), jax.random.key(seed))


def mask_loss(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Dice + cross-entropy: (B, H, W, 1) logits, mask in [0, 1] of that shape -> (B,)."""
    return losses.soft_dice(logits, mask) + losses.binary_cross_entropy(logits, mask)


def make_train_step(
    task: Task, model: nn.Module, optimizer: optax.GradientTransformation, axis_name: str | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step: augment, forward, Dice + cross-entropy per example, AdamW, EMA. Pure: jit it or spread it.

    A batch may be taken in `task.accumulate` parts, whose gradients are added: the loss is the mean over the whole
    batch either way. What looks at other examples, batch normalisation, sees a part alone, and dropout draws anew for
    each. Where `axis_name` is given, with which the model is made too, each device has its share of the batch, and
    they sum over it as they go. What they sum within the loop over the parts depends on what they have summed before,
    and all that they sum after depends on it: a CPU's devices would come by two independent sums in any order.
    """

    def over_all(tree: Any) -> Any:
        return tree if axis_name is None else jax.lax.psum(tree, axis_name)

    def each_ones(key: jax.Array, rows: int) -> jax.Array:
        """Keys for the rows of a share, those that they have in the whole batch."""
        if axis_name is None:
            return jax.random.split(key, rows)
        keys = jax.random.split(key, rows * jax.lax.axis_size(axis_name))
        return jax.lax.dynamic_slice_in_dim(keys, rows * jax.lax.axis_index(axis_name), rows)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        augment_key, dropout_key = jax.random.split(key)
        image = prepare(batch.image, task.size, task.denoise)
        mask = resize(batch.mask.astype(jnp.float32), (task.size, task.size))
        image, mask = augment(each_ones(augment_key, len(image)), image, mask, task.augmentation)
        valid = batch.valid.astype(jnp.float32)
        with_mask = valid * batch.has_mask
        with_label = valid * (batch.label >= 0)
        masks, labels = (jnp.maximum(over_all(each.sum()), 1.0) for each in (with_mask, with_label))

        def loss_of(params, batch_stats, part, key):
            image, mask, label, with_mask, with_label = part
            outputs, updated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                present(image, task.edges, task.each_channel),
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )
            total, metrics = jnp.float32(0.0), {}
            if outputs.mask is not None and task.mask_loss:
                each = mask_loss(outputs.mask, mask)
                for level, auxiliary in enumerate(outputs.auxiliary):
                    coarse = resize(mask, auxiliary.shape[1:3])
                    each += task.auxiliary_loss / 2**level * mask_loss(auxiliary, coarse)
                total += task.mask_loss * jnp.sum(each * with_mask) / masks
                metrics["mask_loss"] = (jnp.sum(each * with_mask), jnp.sum(with_mask))
            if outputs.label is not None and task.label_loss:
                each = losses.cross_entropy(outputs.label, label, task.label_smoothing)
                total += task.label_loss * jnp.sum(each * with_label) / labels
                correct = (outputs.label.argmax(-1) == label) * with_label
                metrics["label_loss"] = (jnp.sum(each * with_label), jnp.sum(with_label))
                metrics["accuracy"] = (jnp.sum(correct), jnp.sum(with_label))
            return total, (updated.get("batch_stats", {}), metrics)

        whole = (image, mask, batch.label, with_mask, with_label)
        gradient = functools.partial(jax.value_and_grad(loss_of, has_aux=True), state.params)
        (total, (batch_stats, metrics)), grads = _in_parts(
            gradient, state.batch_stats, whole, dropout_key, task.accumulate
        )
        total, metrics, grads = over_all((total, metrics, grads))
        metrics["loss"] = (total, jnp.float32(1.0))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # the average starts short, so that it does not remember the initialisation
        decay = jnp.minimum(task.ema, (1.0 + state.step) / (10.0 + state.step))
        fresh = {"params": params, "batch_stats": batch_stats}
        ema = jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, state.ema, fresh)
        metrics["gradient_norm"] = (optax.global_norm(grads), jnp.float32(1.0))
        metrics["update_norm"] = (optax.global_norm(updates), jnp.float32(1.0))
        good = (state.failed < 0) & jnp.isfinite(jnp.stack([metrics[name][0] for name in MUST_BE_FINITE])).all()
        failed = jnp.where((state.failed < 0) & ~good, state.step, state.failed)
        after = TrainState(state.step + 1, params, batch_stats, opt_state, ema, state.key, failed)
        before = dataclasses.replace(state, failed=failed)
        return jax.tree.map(lambda new, old: jnp.where(good, new, old), after, before), metrics

    return step


def _in_parts(gradient: Callable, batch_stats: Any, whole: Any, key: jax.Array, parts: int) -> Any:
    """((loss, (batch_stats, metrics)), gradient) of a batch, summed over `parts` parts of it, one after the other.

    Every `parts`-th example is in the same part, so that each device has its share of every part (`training_batches`
    has laid them out so).
    """
    if parts == 1:
        return gradient(batch_stats, whole, key)
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), whole)

    def add(carried, item):
        number, part = item
        batch_stats, sums = carried
        (loss, (batch_stats, metrics)), grads = gradient(batch_stats, part, jax.random.fold_in(key, number))
        return (batch_stats, jax.tree.map(jnp.add, sums, (loss, metrics, grads))), None

    (loss, (_, metrics)), grads = jax.eval_shape(gradient, batch_stats, jax.tree.map(lambda x: x[0], split), key)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (loss, metrics, grads))
    (batch_stats, (loss, metrics, grads)), _ = jax.lax.scan(add, (batch_stats, nothing), (jnp.arange(parts), split))
    return (loss, (batch_stats, metrics)), grads


def make_evaluation_step(task: Task) -> Callable[[dict, Batch], dict[str, jax.Array]]:
    """Per-scan results on the canvas, (B, ...) each: probs (B, K), features (B, F), and the mask counts of `metrics`.

    Rows that are not valid are computed like the rest; the caller drops them.
    """
    expert = make_expert(task)

    def evaluate(variables: dict, batch: Batch) -> dict[str, jax.Array]:
        outputs = expert(variables, batch.image.reshape(-1, INPUT_SIZE, INPUT_SIZE, 3))
        result: dict[str, jax.Array] = {}
        if outputs.label is not None and outputs.features is not None:
            result["probs"], result["features"] = outputs.label, outputs.features
        if outputs.mask is not None:
            result |= mask_counts(outputs.mask > MASK_THRESHOLD, batch.mask)
        return result

    return evaluate


def collect(
    step: Any, variables: dict, scans: Scans, label: np.ndarray, batch_size: int, share: slice = WHOLE
) -> dict[str, np.ndarray]:
    """Per-scan results of a jitted evaluation step over all scans, each (N, ...); filling rows are dropped.

    Of each batch it gives the step a share, and takes the results of all.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for rows, batch in evaluation_batches(scans, label, batch_size, share):
        for name, value in step(variables, batch).items():
            parts.setdefault(name, []).append(np.asarray(value)[: len(rows)])
    return {name: np.concatenate(values) for name, values in parts.items()}


def scores(task: Task, results: dict[str, np.ndarray], scans: Scans, label: np.ndarray) -> dict[str, float]:
    """The task's metrics on the canvas from `collect`'s results: those of its labels, of its masks, or of both."""
    found: dict[str, float] = {}
    known = label >= 0
    if "probs" in results and known.any():
        found |= label_scores(results["probs"][known], label[known])
    masked = scans.has_mask
    if task.segments and masked.any():
        both, predicted, true = (results[name][masked] for name in ("both", "predicted", "true"))
        found |= mask_scores(both, predicted, true, scans.group[masked])
    return found
