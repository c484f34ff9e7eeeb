"""Out-of-distribution (OOD) score: Mahalanobis distance of features to the training scans (Lee et al. 2018)."""

import jax
import jax.numpy as jnp
import numpy as np


def fit_novelty(features: np.ndarray, label: np.ndarray, held_out: np.ndarray, share: float = 0.99) -> dict:
    """Fit the class means and the shared covariance of features, and the limit of the distance.

    Args:
      features: float (N, F) of training scans.
      label: int (N,) their classes.
      held_out: float (M, F) of in-distribution scans that were not trained on.
      share: of the held-out scans that lie within the limit.

    Returns:
      {"mean": (K, F), "whiten": (F, F), "limit": ()}, float32, as `distance` takes it.
    """
    classes = np.unique(label)
    mean = np.stack([features[label == c].mean(0) for c in classes]).astype(np.float64)
    centred = features - mean[np.searchsorted(classes, label)]
    covariance = centred.T @ centred / len(features)
    # A small share of the mean variance is added to the diagonal: constant features have no variance of their own.
    covariance += np.eye(len(covariance)) * (1e-3 * np.trace(covariance) / len(covariance) + 1e-12)
    values, vectors = np.linalg.eigh(covariance)
    novelty = {"mean": mean.astype(np.float32), "whiten": (vectors / np.sqrt(values)).astype(np.float32)}
    return novelty | {"limit": np.float32(np.quantile(np.asarray(distance(novelty, held_out)), share))}


def distance(novelty: dict, features: jax.Array | np.ndarray) -> jax.Array:
    """Mahalanobis distance to the nearest class mean: (B, F) -> (B,), at least 0."""
    offset = features[:, None, :] - novelty["mean"][None]
    return jnp.sqrt(jnp.square(offset @ novelty["whiten"]).sum(-1)).min(1)
