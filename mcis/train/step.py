"""The training step and the evaluation step: pure functions of state and batch."""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from mcis.data.batches import WHOLE, Batch, evaluation_batches
from mcis.data.dataset import Scans
from mcis.models.pretrained import ENCODER
from mcis.ops import losses
from mcis.ops.augment import augment
from mcis.ops.image import resize
from mcis.ops.metrics import MASK_THRESHOLD, label_scores, mask_counts, mask_scores
from mcis.tasks.apply import make_expert, prepare, present
from mcis.tasks.config import Task

MUST_BE_FINITE = ("loss", "gradient_norm", "update_norm")
"""If one of these metrics is not finite, a step leaves the state unchanged."""
CANVAS = 1.4
"""Side of the scans that are augmented, as a multiple of the network's, so that a zoom shows detail."""
Metrics = dict[str, tuple[jax.Array, jax.Array]]
"""Name -> (sum, count), float32 scalars. Sums over examples: means depend neither on padding nor on devices."""


@flax.struct.dataclass
class TrainState:
    """Everything that training passes from step to step.

    Attributes:
      step: int32, optimiser steps taken.
      params: the network's parameters, float32.
      batch_stats: running statistics of batch normalisation; {} where there is none.
      opt_state: state of the optax optimiser.
      ema: {"params", "batch_stats"} averaged over steps: the variables that are evaluated and kept.
      key: random key of the run; each step folds its number into it.
      failed: int32, the first step whose loss or gradient was not finite, -1 if none was. From then on a step changes
        nothing else, so the state stays the one before the failure.
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

    The decay is half a cosine (Loshchilov & Hutter 2017) or "poly", (1 - progress)^0.9 (Liu et al. 2015, ParseNet).
    """
    warmup = max(1, round(steps * task.warmup))
    remaining = max(steps, warmup + 1) - warmup
    decay = {
        "cosine": optax.cosine_decay_schedule(task.learning_rate, remaining),
        "polynomial": optax.polynomial_schedule(task.learning_rate, 0.0, 0.9, remaining),
    }[task.schedule]
    return optax.join_schedules([optax.linear_schedule(0.0, task.learning_rate, warmup), decay], [warmup])


def make_optimizer(task: Task, steps: int) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) with clipping by global norm and `make_schedule`; it decays kernels only.

    Updates of the encoder are multiplied by `task.encoder_rate`. Clipping and Adam see all parameters as one vector:
    a network of 240 arrays would otherwise compile 240 copies of them.
    """

    def kernels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    def encoder(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == ENCODER, params)

    def others(params):
        return jax.tree.map(operator.not_, encoder(params))

    adamw = optax.chain(
        optax.flatten(optax.chain(optax.clip_by_global_norm(task.clip), optax.scale_by_adam())),
        optax.add_decayed_weights(task.weight_decay, kernels),
        optax.scale_by_learning_rate(make_schedule(task, steps)),
    )
    if task.encoder_rate == 1:
        return adamw
    if task.encoder_rate == 0:  # its gradient is zero, and clipping, moments and weight decay leave it out
        return optax.chain(optax.masked(adamw, others), optax.masked(optax.set_to_zero(), encoder))
    return optax.chain(adamw, optax.masked(optax.scale(task.encoder_rate), encoder))


def create_state(
    task: Task,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int,
    replace: Callable[[dict], dict] = lambda variables: variables,
) -> TrainState:
    """The state before the first step, a function of the seed.

    `replace` gets the variables as shapes, and may return arrays of trained weights for some of them. Only the others
    are drawn: of a network that starts from trained weights little is left to compile.
    """
    # the initialisation compiles several times faster with rbg than with the default generator
    key, run_key = jax.random.key(seed, impl="rbg"), jax.random.key(seed)

    @jax.jit
    def initialise(key):
        return model.init(key, jnp.zeros((1, task.size, task.size, task.channels)), train=False)

    given, structure = jax.tree.flatten(replace(jax.eval_shape(initialise, key)))
    is_drawn = [isinstance(leaf, jax.ShapeDtypeStruct) for leaf in given]

    @jax.jit
    def draw(key):
        return [leaf for leaf, drawn in zip(jax.tree.leaves(initialise(key)), is_drawn, strict=True) if drawn]

    @jax.jit
    def create(variables, run_key):
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        # a copy, because donated buffers must not be shared by two leaves
        ema = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
        key = jax.random.key_data(run_key)
        return TrainState(jnp.int32(0), params, batch_stats, optimizer.init(params), ema, key, jnp.int32(-1))

    drawn = iter(draw(key))
    leaves = [next(drawn) if new else leaf for new, leaf in zip(is_drawn, given, strict=True)]
    return create(jax.tree.unflatten(structure, leaves), run_key)


def mask_loss(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Dice + cross-entropy: logits (B, H, W, 1) and a mask in [0, 1] of the same shape -> (B,)."""
    return losses.soft_dice(logits, mask) + losses.binary_cross_entropy(logits, mask)


def make_train_step(
    task: Task, model: nn.Module, optimizer: optax.GradientTransformation, axis_name: str | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step: augmentation, forward pass, loss per example, AdamW, moving average. Pure: jit it or spread it.

    The loss is the mean over the whole batch, also where its gradient is accumulated over `task.accumulate` parts; only
    batch normalisation sees a part by itself, and dropout differs from part to part. With `axis_name`, which the model
    must be made with too, each device has its part of the batch, and sums go over all devices. Each of these sums
    depends on the one before it: a CPU's devices may run independent sums in different orders.
    """

    def over_devices(tree: Any) -> Any:
        return tree if axis_name is None else jax.lax.psum(tree, axis_name)

    def keys_of_rows(key: jax.Array, rows: int) -> jax.Array:
        """A key for each row, the same for any number of devices."""
        if axis_name is None:
            return jax.random.split(key, rows)
        keys = jax.random.split(key, rows * jax.lax.axis_size(axis_name))
        return jax.lax.dynamic_slice_in_dim(keys, rows * jax.lax.axis_index(axis_name), rows)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        augment_key, dropout_key = jax.random.split(key)
        canvas = min(batch.image.shape[1], round(CANVAS * task.size))
        image = prepare(batch.image, canvas, task.denoise)
        mask = resize(batch.mask.astype(jnp.float32), (canvas, canvas))
        image, mask = augment(keys_of_rows(augment_key, len(image)), image, mask, task.augmentation, task.size)
        valid = batch.valid.astype(jnp.float32)
        with_mask = valid * batch.has_mask
        with_label = valid * (batch.label >= 0)
        masks, labels = (jnp.maximum(over_devices(rows.sum()), 1.0) for rows in (with_mask, with_label))

        def loss_of(params, batch_stats, part, key):
            image, mask, label, with_mask, with_label = part
            outputs, updated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                present(image, task.edges, task.each_channel, task.inside, task.grey),
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )
            total, metrics = jnp.float32(0.0), {}
            if outputs.mask is not None and task.mask_loss:
                loss = mask_loss(outputs.mask, mask)
                for level, auxiliary in enumerate(outputs.auxiliary):
                    coarse = resize(mask, auxiliary.shape[1:3])
                    loss += task.auxiliary_loss / 2**level * mask_loss(auxiliary, coarse)
                total += task.mask_loss * jnp.sum(loss * with_mask) / masks
                metrics["mask_loss"] = (jnp.sum(loss * with_mask), jnp.sum(with_mask))
            if outputs.label is not None and task.label_loss:
                loss = losses.cross_entropy(outputs.label, label, task.label_smoothing)
                total += task.label_loss * jnp.sum(loss * with_label) / labels
                correct = (outputs.label.argmax(-1) == label) * with_label
                metrics["label_loss"] = (jnp.sum(loss * with_label), jnp.sum(with_label))
                metrics["accuracy"] = (jnp.sum(correct), jnp.sum(with_label))
            return total, (updated.get("batch_stats", {}), metrics)

        whole = (image, mask, batch.label, with_mask, with_label)
        gradient = functools.partial(jax.value_and_grad(loss_of, has_aux=True), state.params)
        (total, (batch_stats, metrics)), grads = _accumulate(
            gradient, state.batch_stats, whole, dropout_key, task.accumulate
        )
        total, metrics, grads = over_devices((total, metrics, grads))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # a short average at first, so that it forgets the initialisation
        decay = jnp.minimum(task.ema, (1.0 + state.step) / (10.0 + state.step))
        latest = {"params": params, "batch_stats": batch_stats}
        ema = jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, state.ema, latest)
        norms = {"gradient_norm": _norm(grads), "update_norm": _norm(updates)}
        metrics |= {name: (value, jnp.float32(1.0)) for name, value in ({"loss": total} | norms).items()}
        good = (state.failed < 0) & jnp.isfinite(jnp.stack([metrics[name][0] for name in MUST_BE_FINITE])).all()
        failed = jnp.where((state.failed < 0) & ~good, state.step, state.failed)
        after = TrainState(state.step + 1, params, batch_stats, opt_state, ema, state.key, failed)
        before = dataclasses.replace(state, failed=failed)
        return jax.tree.map(lambda new, old: jnp.where(good, new, old), after, before), metrics

    return step


def _norm(tree: Any) -> jax.Array:
    """The norm of all arrays together, as one vector: `optax.global_norm` compiles a sum for each."""
    return jnp.linalg.norm(ravel_pytree(tree)[0])


def _accumulate(gradient: Callable, batch_stats: Any, whole: Any, key: jax.Array, parts: int) -> Any:
    """((loss, (batch_stats, metrics)), gradient) of a batch, added up over its parts one after the other.

    A part is every `parts`-th example, so that each device has its share of every part (`training_batches` arranges
    them so).
    """
    if parts == 1:
        return gradient(batch_stats, whole, key)
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), whole)

    def add(carry, item):
        number, part = item
        batch_stats, sums = carry
        (loss, (batch_stats, metrics)), grads = gradient(batch_stats, part, jax.random.fold_in(key, number))
        return (batch_stats, jax.tree.map(jnp.add, sums, (loss, metrics, grads))), None

    (loss, (_, metrics)), grads = jax.eval_shape(gradient, batch_stats, jax.tree.map(lambda x: x[0], split), key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (loss, metrics, grads))
    (batch_stats, (loss, metrics, grads)), _ = jax.lax.scan(add, (batch_stats, zeros), (jnp.arange(parts), split))
    return (loss, (batch_stats, metrics)), grads


def make_evaluation_step(task: Task) -> Callable[[dict, Batch], dict[str, jax.Array]]:
    """A function of (variables, Batch) to results per scan: probs (B, K), features (B, F), `mask_counts` (B,).

    Rows that are not valid are computed like the others; the caller drops them.
    """
    expert = make_expert(task)

    def evaluate(variables: dict, batch: Batch) -> dict[str, jax.Array]:
        outputs = expert(variables, batch.image)
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
    """Results of a jitted evaluation step for all scans, (N, ...) each; padding rows are dropped.

    `share` selects the rows of each batch that are passed to the step, which returns the results of all rows.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for rows, batch in evaluation_batches(scans, label, batch_size, share):
        for name, value in step(variables, batch).items():
            parts.setdefault(name, []).append(np.asarray(value)[: len(rows)])
    return {name: np.concatenate(values) for name, values in parts.items()}


def scores(task: Task, results: dict[str, np.ndarray], scans: Scans, label: np.ndarray) -> dict[str, float]:
    """The task's metrics from the results of `collect`: of labels, of masks at the size of the model input, or both."""
    found: dict[str, float] = {}
    known = label >= 0
    if "probs" in results and known.any():
        found |= label_scores(results["probs"][known], label[known])
    masked = scans.has_mask
    if task.segments and masked.any():
        both, predicted, true = (results[name][masked] for name in ("both", "predicted", "true"))
        found |= mask_scores(both, predicted, true, scans.group[masked])
    return found
