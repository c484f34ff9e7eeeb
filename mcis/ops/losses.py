"""Losses: logits and targets in, one float32 number per example out; only the training step reduces."""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, label: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Softmax cross-entropy in nats: (B, K) logits, (B,) int labels in [0, K) -> (B,).

    Args:
      logits: unnormalised log-probabilities.
      label: a label outside [0, K) gives a finite, meaningless number: weight it with 0.
      smoothing: share of the target spread evenly over the classes (Szegedy et al. 2016, section 7).

    Who knows nothing pays the logarithm of the number of classes:

    >>> float(jnp.exp(cross_entropy(jnp.zeros((1, 3)), jnp.array([2])))[0].round(4))
    3.0
    """
    classes = logits.shape[-1]
    log_prob = jax.nn.log_softmax(logits.astype(jnp.float32))
    target = jax.nn.one_hot(label, classes) * (1.0 - smoothing) + smoothing / classes
    return -jnp.sum(target * log_prob, -1)


def binary_cross_entropy(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Sigmoid cross-entropy averaged over pixels: (B, H, W, 1) logits, {0,1} mask of that shape -> (B,)."""
    logits, mask = logits.astype(jnp.float32), mask.astype(jnp.float32)
    # log(1 + exp(-x)) inside the mask, log(1 + exp(x)) outside, without overflow and with its gradient at 0
    return jax.nn.softplus((1.0 - 2.0 * mask) * logits).mean((1, 2, 3))


def soft_dice(logits: jax.Array, mask: jax.Array, smooth: float = 1.0) -> jax.Array:
    """1 - (2 sum(p m) + s) / (sum(p) + sum(m) + s): (B, H, W, 1) logits, {0,1} mask -> (B,), in [0, 1].

    Per example (Milletari et al. 2016 with p unsquared), never over the batch: a batch Dice would depend on how many
    devices share it. With `smooth` pixels added to both sides an empty mask met by an empty answer costs 0.

    >>> mask = jnp.zeros((2, 8, 8, 1)).at[0, :4].set(1.0)  # half a picture, and none
    >>> sure = jnp.where(mask > 0, 50.0, -50.0)
    >>> soft_dice(sure, mask).tolist(), [round(cost, 2) for cost in soft_dice(-sure, mask).tolist()]
    ([0.0, 0.0], [0.98, 0.98])
    """
    prob, mask = jax.nn.sigmoid(logits.astype(jnp.float32)), mask.astype(jnp.float32)
    axes = (1, 2, 3)
    overlap = (prob * mask).sum(axes)
    return 1.0 - (2.0 * overlap + smooth) / (prob.sum(axes) + mask.sum(axes) + smooth)
