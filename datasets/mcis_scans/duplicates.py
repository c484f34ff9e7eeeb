"""Near-duplicate scans: which pictures show the same picture, so that a split never separates them.

Candidates come from local features (every picture against every other, by the number of SIFT descriptors that find a
near-equal), proof from geometry and pixels: a similarity transform by RANSAC, then the correlation of the band-passed
pictures where they overlap. Text, callipers and frames cover few pixels, so they cannot make a match; two slices of a
brain share outlines, not texture, so they do not correlate. NumPy, OpenCV and SciPy; no JAX.
"""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from mcis import scan

SIDE = 256
"""Long side of the working picture: speckle and gyri survive, recompression and rescaling hardly show."""
POINTS = 150
"""Keypoints a picture. The strongest; more cost time and add few true matches."""
VOTERS = 100
"""Keypoints a picture that vote for candidates."""
VOTER_DIMENSIONS = 32
"""Principal components of a voter: 87 % of the variance at a quarter of the multiplications."""
VOTE_COSINE = 0.85
CANDIDATES = 12
"""Candidates a picture; in a public breast set 95 % of the true pairs rank among the first four."""
MATCH_COSINE = 0.85
MIN_INLIERS = 4
MIN_OVERLAP = 0.2
"""Share of the smaller picture that must lie on the other."""
MIN_CORRELATION = 0.6
"""Of the overlap, band-passed. True pairs crowd above 0.9, unrelated ones below 0.2; few lie between."""


@dataclasses.dataclass(frozen=True)
class _Features:
    band: np.ndarray
    points: np.ndarray
    descriptors: np.ndarray


def find_clusters(images: Sequence[np.ndarray]) -> list[int]:
    """Group near-duplicates: the same picture shifted, cropped, rescaled, mirrored, recompressed, brightened or marked.

    Deterministic, and as a partition independent of the order of the pictures.

    Args:
      images: uint8 (H, W, 3) RGB scans; sizes may differ.

    Returns:
      A cluster id for each picture, numbered from 0 in order of first appearance.
    """
    prints = [scan.fingerprint(image) for image in images]
    first = {}
    for index, key in enumerate(prints):
        first.setdefault(key, index)
    keys = sorted(first)  # an order of content: no result can depend on the order of the pictures
    features = [_describe(images[first[key]]) for key in keys]
    edges = [(i, j) for i, j in _candidates(features) if _same(features[i], features[j])]
    rows, columns = np.array(edges, int).reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(edges)), (rows, columns)), shape=(len(keys), len(keys)))
    labels = dict(zip(keys, connected_components(graph, directed=False)[1].tolist(), strict=True))
    renumber = {}
    return [renumber.setdefault(labels[key], len(renumber)) for key in prints]


def _describe(image: np.ndarray) -> _Features:
    x, y, w, h = scan.content_box(image)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[y : y + h, x : x + w]
    scale = SIDE / max(w, h)
    size = (max(16, round(w * scale)), max(16, round(h * scale)))
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    sift = cv2.SIFT_create(nfeatures=POINTS, contrastThreshold=0.01)
    keypoints, descriptors = sift.detectAndCompute(cv2.GaussianBlur(grey, (0, 0), 0.8), None)
    points = np.zeros((POINTS, 2), np.float32)
    roots = np.zeros((POINTS, 128), np.float32)
    count = min(len(keypoints), POINTS)
    if count:
        points[:count] = [k.pt for k in keypoints[:count]]
        roots[:count] = np.sqrt(descriptors[:count] / np.maximum(descriptors[:count].sum(1, keepdims=True), 1e-6))
    return _Features(_band(grey), points, roots)


def _band(grey: np.ndarray) -> np.ndarray:
    """Band-passed to details of about 3 to 15 pixels, at equal contrast everywhere, clipped so that marks weigh little."""
    grey = grey.astype(np.float32)
    detail = cv2.GaussianBlur(grey, (0, 0), 1.5) - cv2.GaussianBlur(grey, (0, 0), 8)
    return np.clip(detail / (np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), 12)) + 3), -2.5, 2.5)


def _candidates(features: list[_Features]) -> list[tuple[int, int]]:
    count = len(features)
    if count < 2:
        return []
    voters = np.concatenate([f.descriptors[:VOTERS] for f in features])
    filled = voters.any(1)
    mean = voters[filled].mean(0) if filled.any() else 0
    centred = voters - mean
    _, axes = np.linalg.eigh(centred[filled].T @ centred[filled])
    voters = centred @ axes[:, : -VOTER_DIMENSIONS - 1 : -1]
    voters *= filled[:, None] / np.maximum(np.linalg.norm(voters, axis=1, keepdims=True), 1e-6)
    voters = voters.astype(np.float32).reshape(count, VOTERS, -1)
    votes = np.zeros((count, count), np.int32)
    for i in range(count - 1):
        cosines = voters[i] @ voters[i + 1 :].reshape(-1, voters.shape[2]).T
        votes[i, i + 1 :] = (cosines.reshape(VOTERS, -1, VOTERS).max(2) > VOTE_COSINE).sum(0)
    votes += votes.T
    best = np.argsort(-votes, axis=1, kind="stable")[:, :CANDIDATES]
    return sorted({(min(i, j), max(i, j)) for i in range(count) for j in best[i].tolist() if i != j and votes[i, j]})


def _same(a: _Features, b: _Features) -> bool:
    cosines = a.descriptors @ b.descriptors.T
    there, back = cosines.argmax(1), cosines.argmax(0)
    own = np.arange(POINTS)
    matched = (back[there] == own) & (cosines[own, there] > MATCH_COSINE)
    if matched.sum() < MIN_INLIERS:
        return False
    cv2.setRNGSeed(0)
    transform, inliers = cv2.estimateAffinePartial2D(
        b.points[there[matched]], a.points[matched], ransacReprojThreshold=4, maxIters=300, refineIters=5
    )
    if transform is None or inliers.sum() < MIN_INLIERS:
        return False
    scale = np.hypot(*transform[:, 0])
    return 0.4 < scale < 2.5 and _correlation(a.band, b.band, transform) >= MIN_CORRELATION


def _correlation(a: np.ndarray, b: np.ndarray, transform: np.ndarray) -> float:
    """Correlation of a with b laid on it, where both are; 0 where too little overlaps."""
    size = a.shape[::-1]
    laid = cv2.warpAffine(b, transform, size)
    both = cv2.warpAffine(np.ones_like(b), transform, size) > 0.99
    smaller = min(a.size, b.size * abs(np.linalg.det(transform[:, :2])))
    if both.sum() < MIN_OVERLAP * smaller:
        return 0.0
    x, y = a[both] - a[both].mean(), laid[both] - laid[both].mean()
    return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum() + 1e-9))
