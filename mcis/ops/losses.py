"""Losses: logits and targets in, one float32 number per example out; the training step reduces them."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, label: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Softmax cross-entropy in nats: (B, K) logits, (B,) int labels in [0, K) -> (B,).

    A label outside [0, K) gives a finite number without a meaning: weight it with 0. `smoothing` is the share of the
    target that is spread evenly over the classes (Szegedy et al. 2016, section 7).

    Equal logits cost the logarithm of the number of classes:

    >>> float(jnp.exp(cross_entropy(jnp.zeros((1, 3)), jnp.array([2])))[0].round(4))
    3.0
    """
    target = optax.smooth_labels(jax.nn.one_hot(label, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), target)


def binary_cross_entropy(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Sigmoid cross-entropy averaged over pixels: (B, H, W, 1) logits, {0,1} mask of that shape -> (B,)."""
    pixels = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), mask.astype(jnp.float32))
    return pixels.mean((1, 2, 3))


def soft_dice(logits: jax.Array, mask: jax.Array, smooth: float = 1.0) -> jax.Array:
    """1 - (2 sum(p m) + s) / (sum(p) + sum(m) + s): (B, H, W, 1) logits, {0,1} mask -> (B,), in [0, 1].

    Per example (Milletari et al. 2016, with p not squared): a Dice over the batch would depend on the number of
    devices. `smooth` pixels are added to both sides, so that an empty prediction of an empty mask costs 0.

    >>> mask = jnp.zeros((2, 8, 8, 1)).at[0, :4].set(1.0)  # one mask of half the image, one empty mask
    >>> confident = jnp.where(mask > 0, 50.0, -50.0)
    >>> soft_dice(confident, mask).tolist(), [round(cost, 2) for cost in soft_dice(-confident, mask).tolist()]
    ([0.0, 0.0], [0.98, 0.98])
    """
    prob, mask = jax.nn.sigmoid(logits.astype(jnp.float32)), mask.astype(jnp.float32)
    axes = (1, 2, 3)
    overlap = (prob * mask).sum(axes)
    return 1.0 - (2.0 * overlap + smooth) / (prob.sum(axes) + mask.sum(axes) + smooth)
