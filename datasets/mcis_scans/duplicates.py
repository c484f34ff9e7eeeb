"""Near-duplicates: which scans show the same image, so that a split never separates them.

Candidate pairs are ranked in two ways: by the number of similar SIFT descriptors, which survives crops and rotations;
and by the correlation of thumbnails, which survives smoothing. A pair is confirmed by geometry and pixels: a transform
found by RANSAC, then the correlation of the band-passed images where they overlap. Text, callipers and borders cover
few pixels, so they cannot make a match; two brains share outlines, not folds, so they do not correlate. No JAX.
"""

import dataclasses
from collections.abc import Hashable, Iterable, Sequence

import cv2
import numpy as np

from mcis.imaging import scan
from mcis.imaging.letterbox import content_box

SIDE = 256
"""Long side, pixels, at which keypoints are found: recompression and rescaling have little effect at this size."""
POINTS = 150
"""Keypoints of an image, the strongest, that confirm a match."""
VOTERS = 64
"""Keypoints of an image, the strongest, that rank candidates. The cost of all pairs grows with its square."""
LINK_VOTERS = 48
"""The same between sources, of which there are far more pairs, and few of them crops or rotations of each other."""
VOTER_DIMENSIONS = 32
"""Principal components of a voter's descriptor: nearly nine tenths of its variance at an eighth of the cost."""
VOTE_COSINE, MATCH_COSINE = 0.92, 0.85
"""Cosine from which two descriptors may show the same spot: strict for ranking, since all brains have much in common;
lenient for confirming, where geometry removes chance matches."""
CANDIDATES = 4
"""Candidates tried for an image in a round, of either ranking: nearly every true pair is among the first four."""
THUMBNAIL = 32
"""Side of the thumbnails, pixels."""
ROUNDS = 3
"""Rounds of candidates. Each skips the clusters found so far; in a large cluster they would hide all others."""
MIN_INLIERS = 6
"""Fewer keypoints agree on a transform by chance."""
RANSAC_PIXELS = 2.5
"""Largest error of an inlier, in pixels at half of SIDE."""
MAX_SCALE = 2.5
MAX_STRETCH = 1.6
"""Largest ratio of the scales of the two axes: scans are resized to squares."""
MIN_OVERLAP = 0.4
"""Share of the smaller image that must overlap: in a strip, a line of text would decide."""
SAME_IMAGE = 0.65
"""Correlation that confirms a pair. In public breast and brain sets copies are above 0.8, two brains below 0.61."""
SAME_SWEEP = 0.32
"""Correlation that confirms a pair of ultrasound scans. It also finds neighbouring frames of one lesion: no two breasts
look alike, whereas two brains would reach it."""
SAME_PLACE, SAME_PLACE_INLIERS = 0.4, 20
"""Correlation that suffices with so many inliers: the same slice in another MRI sequence."""

_BINS = np.arange(128).reshape(4, 4, 8)
MIRROR = _BINS[::-1][:, :, -np.arange(8) % 8].ravel()
"""Permutation that turns a SIFT descriptor (row, column, orientation) into that of the mirrored image."""


@dataclasses.dataclass(frozen=True)
class _Features:
    """An image as it is compared.

    Attributes:
      band: float32 (h, w), the band-passed image at half of SIDE.
      points: float32 (POINTS, 2), x and y in pixels of `band`; strongest first.
      descriptors: float32 (POINTS, 128) of unit length; 0 where there are fewer keypoints.
    """

    band: np.ndarray
    points: np.ndarray
    descriptors: np.ndarray


def bytes_needed(count: int) -> int:
    """Approximate memory of `find_clusters`: descriptors of each image, rankings of each pair."""
    return count * 250_000 + 30 * count**2


def find_clusters(images: Iterable[np.ndarray], correlation: float = SAME_IMAGE) -> list[int]:
    """Group near-duplicates: an image shifted, cropped, resized, rotated, mirrored, re-encoded, brightened or marked.

    Deterministic; the partition does not depend on the order of the images. All pairs are compared, so time grows with
    the square: 600 images take some 30 s on one core, 2,200 under three minutes.

    Args:
      images: uint8 (H, W, 3) RGB scans; sizes may differ.
      correlation: smallest correlation of two aligned images that are the same; SAME_SWEEP for ultrasound alone.

    Returns:
      A cluster id for each image, numbered from 0 in order of first appearance.
    """
    prints, features = [], {}
    for image in images:
        prints.append(scan.fingerprint(image))
        if prints[-1] not in features:
            features[prints[-1]] = _describe(image)
    keys = sorted(features)  # ordered by content, so that the result does not depend on the order of the images
    parents = _join([features[key] for key in keys], correlation)
    clusters = dict(zip(keys, parents, strict=True))
    numbers: dict[int, int] = {}
    return [numbers.setdefault(clusters[key], len(numbers)) for key in prints]


def find_links(
    images: Iterable[np.ndarray],
    others: Iterable[np.ndarray],
    groups: Sequence[Hashable],
    correlation: float = SAME_IMAGE,
) -> list[list[int]]:
    """Near-duplicates, as `find_clusters` has them, between two sets: which of the others each image shows.

    Time grows with the product of the numbers: 2,200 and 2,700 images take some five minutes on one core.

    Args:
      images: as for `find_clusters`.
      others: of the same kind.
      groups: the group of each of the others. One link into a group is enough: its other images are skipped, since in
        a large group they would hide all other groups.
      correlation: as for `find_clusters`.

    Returns:
      For each image the indices of some of the others, at most one of each group, in ascending order.
    """
    mine, theirs = [_describe(image) for image in images], [_describe(image) for image in others]
    links: list[list[int]] = [[] for _ in mine]
    if not mine or not theirs:
        return links
    projections = np.ascontiguousarray(_projections([*mine, *theirs])[:, :LINK_VOTERS])
    own_voters, other_voters = projections[: len(mine)], projections[len(mine) :]
    votes = np.stack([_votes_for(one, other_voters) for one in own_voters])
    flat, mirrored = _thumbnails(theirs)
    own = _thumbnails(mine)[0]
    rankings = [votes, np.maximum(own @ flat.T, own @ mirrored.T)]
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    for i, links_of in enumerate(links):
        for _ in range(ROUNDS):
            found = False
            for ranking in rankings:
                for j in np.argsort(-ranking[i], kind="stable")[:CANDIDATES].tolist():
                    if ranking[i, j] <= 0:
                        continue
                    for tried in rankings:
                        tried[i, j] = 0
                    if _same(mine[i], theirs[j], correlation):
                        links_of.append(j)
                        found = True
                        for tried in rankings:
                            tried[i, index == index[j]] = 0
            if not found:
                break
    return [sorted(links_of) for links_of in links]


def _join(features: list[_Features], correlation: float) -> list[int]:
    """The cluster of each image. The best-ranked candidates are compared first, and joined where they are the same."""
    count = len(features)
    if count < 2:
        return [0] * count
    rankings = (_votes(features), _thumbnail_correlation(features))
    clusters = np.arange(count)
    for _ in range(ROUNDS):
        for ranking in rankings:
            ranking[clusters[:, None] == clusters] = 0
            best = np.argsort(-ranking, axis=1, kind="stable")[:, :CANDIDATES]
            pairs = {(min(i, j), max(i, j)) for i, row in enumerate(best.tolist()) for j in row if ranking[i, j] > 0}
            for i, j in sorted(pairs, key=lambda pair: (-ranking[pair], pair)):
                if clusters[i] == clusters[j]:
                    continue
                for tried in rankings:
                    tried[i, j] = tried[j, i] = 0
                if _same(features[i], features[j], correlation):
                    clusters[clusters == clusters[j]] = clusters[i]
    return clusters.tolist()


def _describe(image: np.ndarray) -> _Features:
    x, y, w, h = content_box(image)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[y : y + h, x : x + w]
    scale = SIDE / max(w, h)
    size = (max(16, round(w * scale)), max(16, round(h * scale)))
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    # Brightening and sharpening move fewer keypoints of the band-passed image than of the image itself.
    levelled = np.clip(np.rint(40 * _band_pass(grey, 0.8, 16, 24, 6) + 128), 0, 255).astype(np.uint8)
    sift = cv2.SIFT.create(nfeatures=POINTS, contrastThreshold=0.01)
    keypoints, found = sift.detectAndCompute(levelled, None)
    count = min(len(keypoints), POINTS)
    points, descriptors = np.zeros((POINTS, 2), np.float32), np.zeros((POINTS, 128), np.float32)
    if count:
        points[:count] = [((k.pt[0] - 0.5) / 2, (k.pt[1] - 0.5) / 2) for k in keypoints[:count]]
        descriptors[:count] = np.sqrt(found[:count] / np.maximum(found[:count].sum(1, keepdims=True), 1e-6))
    half = (size[0] // 2, size[1] // 2)
    band = cv2.resize(_band_pass(grey, 1.5, 8, 12, 3)[: 2 * half[1], : 2 * half[0]], half, interpolation=cv2.INTER_AREA)
    return _Features(band, points, descriptors)


def _band_pass(grey: np.ndarray, fine: float, coarse: float, window: float, floor: float) -> np.ndarray:
    """Difference of two blurs (sigmas, pixels) at equal local contrast, clipped so that drawn marks weigh little."""
    grey = grey.astype(np.float32)
    detail = cv2.GaussianBlur(grey, (0, 0), fine) - cv2.GaussianBlur(grey, (0, 0), coarse)
    contrast = np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), window))
    return np.clip(detail / (contrast + floor), -2.5, 2.5)


def _votes(features: list[_Features]) -> np.ndarray:
    """Number of keypoints of one image that have a similar one in the other, mirrored or not: int32 (n, n)."""
    projections = _projections(features)
    votes = np.zeros((len(features), len(features)), np.int32)
    for i in range(len(features) - 1):
        votes[i, i + 1 :] = _votes_for(projections[i], projections[i + 1 :])
    return votes + votes.T


def _votes_for(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Number of voters, float32 (k, dimensions), that have a similar one in each of others (n, k, dimensions): (n,)."""
    cosines = others.reshape(-1, VOTER_DIMENSIONS) @ one.T
    return (cosines.reshape(len(others), -1, len(one)).max(1) > VOTE_COSINE).sum(1)


def _projections(features: Sequence[_Features]) -> np.ndarray:
    """The voters' descriptors in their principal components, of unit length: float32 (n, VOTERS, dimensions)."""
    total, square, count = np.zeros(256), np.zeros((256, 256)), 0
    for f in features:
        voters = _mirror_invariant(f)
        total, square, count = total + voters.sum(0), square + voters.T @ voters, count + len(voters)
    mean = total / max(count, 1)
    axes = np.linalg.eigh(square / max(count, 1) - np.outer(mean, mean))[1][:, : -VOTER_DIMENSIONS - 1 : -1]
    projections = np.zeros((len(features), VOTERS, VOTER_DIMENSIONS), np.float32)
    for i, f in enumerate(features):
        projected = (_mirror_invariant(f) - mean) @ axes
        length = np.linalg.norm(projected, axis=1, keepdims=True)
        projections[i, : len(projected)] = projected / np.maximum(length, 1e-6)
    return projections


def _thumbnail_correlation(features: list[_Features]) -> np.ndarray:
    """Correlation of the images' thumbnails, mirrored or not: float32 (n, n)."""
    flat, mirrored = _thumbnails(features)
    return np.maximum(flat @ flat.T, flat @ mirrored.T)


def _thumbnails(features: Sequence[_Features]) -> tuple[np.ndarray, np.ndarray]:
    """Thumbnails of mean 0 and unit length, and mirrored: float32 (n, THUMBNAIL ** 2) each."""
    size = (THUMBNAIL, THUMBNAIL)
    plain = np.stack([cv2.resize(f.band, size, interpolation=cv2.INTER_AREA) for f in features])
    plain = plain - plain.mean((1, 2), keepdims=True)
    plain = plain / np.maximum(np.linalg.norm(plain, axis=(1, 2), keepdims=True), 1e-6)
    return plain.reshape(len(plain), -1), plain[:, :, ::-1].reshape(len(plain), -1)


def _mirror_invariant(f: _Features) -> np.ndarray:
    """Descriptors of the voters that are equal for an image and its mirror image: float32 (k, 256)."""
    plain = f.descriptors[:VOTERS][f.descriptors[:VOTERS].any(1)]
    return np.concatenate([plain + plain[:, MIRROR], np.abs(plain - plain[:, MIRROR])], axis=1)


def _same(a: _Features, b: _Features, correlation: float) -> bool:
    if _match(a, b, correlation):
        return True
    points = b.points * np.array([-1, 1], np.float32) + np.array([b.band.shape[1] - 1, 0], np.float32)
    mirrored = _Features(np.ascontiguousarray(b.band[:, ::-1]), points, b.descriptors[:, MIRROR])
    return _match(a, mirrored, correlation)


def _match(a: _Features, b: _Features, correlation: float) -> bool:
    # Of unit vectors, or 0. NumPy's product would wait for its other threads longer than it computes.
    cosines = cv2.gemm(a.descriptors, b.descriptors, 1.0, np.empty(0), 0.0, flags=cv2.GEMM_2_T)
    there = cosines.argmax(1)
    mutual = (cosines.argmax(0)[there] == np.arange(POINTS)) & (cosines.max(1) > MATCH_COSINE)
    if mutual.sum() < MIN_INLIERS:
        return False
    source, target = b.points[there[mutual]], a.points[mutual]
    # A similarity needs fewer keypoints; only an affine transform fits an image that was resized to a square.
    for estimate in (cv2.estimateAffinePartial2D, cv2.estimateAffine2D):
        cv2.setRNGSeed(0)
        transform, inliers = estimate(source, target, ransacReprojThreshold=RANSAC_PIXELS, maxIters=300)
        count = 0 if transform is None else int(inliers.sum())
        if count < MIN_INLIERS or not _is_plausible(transform):
            return False
        aligned = _correlate(a.band, b.band, transform)
        if aligned > correlation or (aligned > SAME_PLACE and count >= SAME_PLACE_INLIERS):
            return True
    return False


def _is_plausible(transform: np.ndarray) -> bool:
    large, small = np.linalg.svd(transform[:, :2], compute_uv=False)
    mirrors = np.linalg.det(transform[:, :2]) < 0
    return not mirrors and large < MAX_SCALE and small > 1 / MAX_SCALE and large < MAX_STRETCH * small


def _correlate(a: np.ndarray, b: np.ndarray, transform: np.ndarray) -> float:
    """Correlation of a and the transformed b where they overlap; 0 where they overlap too little."""
    size = a.shape[::-1]
    moved = cv2.warpAffine(b, transform, size)
    both = cv2.warpAffine(np.ones_like(b), transform, size) > 0.99
    smaller = min(a.size, b.size * np.linalg.det(transform[:, :2]))
    if both.sum() < max(MIN_OVERLAP * smaller, 100):
        return 0.0
    x, y = a[both] - a[both].mean(), moved[both] - moved[both].mean()
    return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum() + 1e-9))
