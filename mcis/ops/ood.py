"""How far a scan lies from those a network was trained on, by its features (Lee et al. 2018, Mahalanobis distance)."""

import jax
import jax.numpy as jnp
import numpy as np


def fit_novelty(features: np.ndarray, label: np.ndarray, held_out: np.ndarray, share: float = 0.99) -> dict:
    """Class means and the shared covariance of training features, and the distance that most known scans stay within.

    Args:
      features: float (N, F) of training scans.
      label: int (N,) their classes.
      held_out: float (M, F) of known scans that were not trained on.
      share: of the held-out scans that lie within the limit.

    Returns:
      {"mean": (K, F), "whiten": (F, F), "limit": ()}, float32. `distance` takes it.
    """
    classes = np.unique(label)
    mean = np.stack([features[label == c].mean(0) for c in classes]).astype(np.float64)
    centred = features - mean[np.searchsorted(classes, label)]
    covariance = centred.T @ centred / len(features)
    # a little of the mean variance on the diagonal: dead features must not divide by nothing
    covariance += np.eye(len(covariance)) * (1e-3 * np.trace(covariance) / len(covariance) + 1e-12)
    values, vectors = np.linalg.eigh(covariance)
    novelty = {
        "mean": mean.astype(np.float32),
        "whiten": (vectors / np.sqrt(values)).astype(np.float32),
        "limit": np.float32(np.inf),
    }
    return novelty | {"limit": np.float32(np.quantile(np.asarray(distance(novelty, held_out)), share))}


def distance(novelty: dict, features: jax.Array | np.ndarray) -> jax.Array:
    """Mahalanobis distance to the nearest class mean: (B, F) -> (B,), at least 0."""
    offset = features[:, None, :] - novelty["mean"][None]
    return jnp.sqrt(jnp.square(offset @ novelty["whiten"]).sum(-1)).min(1)
