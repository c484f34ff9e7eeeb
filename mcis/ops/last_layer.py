"""The last layer fitted to convergence on fixed features: multinomial logistic regression.

Features of a frozen or trained encoder need no augmentation and no gradient steps to fit a linear layer on them, and a
regularised optimum generalises better to groups that are rare (Kirichenko et al. 2023, Last layer re-training is
sufficient for robustness to spurious correlations).
"""

import numpy as np

FLOOR = 1e-6
"""Smallest standard deviation of a feature, for those that are constant."""
ITERATIONS = 300


def group_weights(label: np.ndarray, source: np.ndarray) -> np.ndarray:
    """The weight of each scan, float64 (N,) of mean 1: classes count alike, sources by the square root of their scans.

    `label` int (N,), `source` str (N,).
    """
    weight = np.ones(len(label))
    for name in np.unique(source):
        weight[source == name] /= np.sqrt((source == name).sum())
    for k in np.unique(label):
        weight[label == k] /= weight[label == k].sum()
    return weight * (len(label) / weight.sum())


def fit_last_layer(
    features: np.ndarray, label: np.ndarray, weight: np.ndarray, decay: float, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel float32 (F, K) and bias (K,) of the softmax regression of labels on features.

    Minimised is the weighted mean of the cross-entropy plus decay / 2 times the squared norm of the kernel for
    standardised features; the standardisation is part of the returned layer.

    Args:
      features: float (N, F).
      label: int (N,) in [0, K).
      weight: float (N,), of mean 1.
      decay: above 0.
      classes: K.
    """
    from scipy.optimize import minimize  # takes 0.2 s to import, which inference need not wait for

    mean, scale = features.mean(0, dtype=np.float64), np.maximum(features.std(0, dtype=np.float64), FLOOR)
    scans = ((features - mean) / scale).astype(np.float32)
    share = (weight / weight.sum()).astype(np.float32)
    shape = (scans.shape[1] + 1, classes)

    def cost(flat: np.ndarray) -> tuple[float, np.ndarray]:
        kernel, bias = np.split(flat.reshape(shape), [-1])
        logits = scans @ kernel.astype(np.float32) + bias.astype(np.float32)
        logits -= logits.max(1, keepdims=True)
        odds = np.exp(logits)
        total = odds.sum(1, keepdims=True)
        log = (logits - np.log(total))[np.arange(len(label)), label]
        error = odds / total
        error[np.arange(len(label)), label] -= 1
        error *= share[:, None]
        slope = np.concatenate([scans.T @ error + decay * kernel, error.sum(0, keepdims=True)])
        return float(-(share * log).sum() + decay / 2 * np.square(kernel).sum()), slope.ravel().astype(np.float64)

    found = minimize(cost, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS})
    kernel, bias = np.split(found.x.reshape(shape), [-1])
    kernel = kernel / scale[:, None]
    return kernel.astype(np.float32), (bias[0] - mean @ kernel).astype(np.float32)
