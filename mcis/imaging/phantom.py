"""Phantoms: synthetic scans with exact masks, for tests, the demo and the docs. No JAX.

A phantom resembles a scan enough to exercise the whole program. Results on phantoms say nothing about patients.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

import cv2
import numpy as np

from mcis.imaging.phantom_painters import PAINTERS
from mcis.organs import ORGANS, organ_named

SIZES = ((225, 225), (256, 256), (256, 216), (303, 233), (320, 320), (300, 400), (334, 400), (400, 300))
"""Image sizes (H, W) to draw from; the same for every organ, so that they do not reveal the organ to a router."""
MIN_SIDE = 32
"""Shortest side of a phantom in pixels; a smaller lesion could have no pixels."""
FORMATS = (
    (".png", lambda image: image[..., 0]),
    (".jpg", lambda image: image),
    (".png", lambda image: image[..., 0].astype(np.uint16) * 257),
    (".tif", lambda image: image),
    (".png", lambda image: np.dstack([image, np.full_like(image[..., :1], 255)])),
    (".bmp", lambda image: image),
    (".png", lambda image: image),
)
"""File suffix, and conversion of uint8 (H, W, 3) to the stored array: grey, three channels, 16 bits or RGBA."""


@dataclasses.dataclass(frozen=True)
class Phantom:
    """A synthetic scan.

    Attributes:
      image: uint8 (H, W, 3), RGB with three equal channels, with minimum 0 and maximum 255.
      mask: uint8 {0,1} (H, W, 1), the lesion without oedema or shadow; all 0 if there is none.
      organ: a name in `organs.ORGAN_NAMES`.
      label: index into that organ's classes.
    """

    image: np.ndarray
    mask: np.ndarray
    organ: str
    label: int


def make_phantom(organ: str, label: int, seed: int, size: tuple[int, int] | None = None) -> Phantom:
    """A phantom; equal arguments give equal bytes (with equal versions of NumPy and OpenCV).

    Args:
      organ: a name in `organs.ORGAN_NAMES`.
      label: index into that organ's classes.
      seed: any integer from 0.
      size: (H, W) in pixels, each at least MIN_SIDE; None draws one of SIZES.

    Raises:
      ValueError: an invalid argument; the message says what is allowed.

    >>> made = make_phantom("brain", label=1, seed=0, size=(64, 80))
    >>> made.image.shape, made.image.dtype, made.mask.shape, bool(made.mask.any())
    ((64, 80, 3), dtype('uint8'), (64, 80, 1), True)
    >>> make_phantom("brain", label=2, seed=0)
    Traceback (most recent call last):
    ValueError: There is no label 2 for brain. The labels are 0 (no_tumor), 1 (tumor)
    """
    classes = organ_named(organ).classes
    if label not in range(len(classes)):
        allowed = ", ".join(f"{i} ({name})" for i, name in enumerate(classes))
        raise ValueError(f"There is no label {label!r} for {organ}. The labels are {allowed}")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be 0 or above")
    if size is not None and min(size) < MIN_SIDE:
        raise ValueError(f"size is {tuple(size)} (height, width); each must be at least {MIN_SIDE} pixels")
    key = [seed, *organ.encode()]  # not the index of the organ, which may change
    frame = np.random.default_rng(np.random.SeedSequence(key))
    rng = np.random.default_rng(np.random.SeedSequence([*key, label]))
    height, width = SIZES[frame.integers(len(SIZES))]
    if size is not None:
        height, width = size
    grey, mask = PAINTERS[organ](frame, rng, classes[label], (int(height), int(width)))
    # The full range: a 16-bit file is scaled from its own range when it is read.
    low, high = float(grey.min()), float(grey.max())
    grey = np.rint((grey - low) * (255.0 / max(high - low, 1e-6))).astype(np.uint8)
    return Phantom(np.repeat(grey[..., None], 3, axis=2), mask.astype(np.uint8)[..., None], organ, int(label))


def make_phantoms(per_class: int, seed: int = 0) -> Iterator[Phantom]:
    """`per_class` rounds of one phantom of every class of every organ; each round has its own seed."""
    for own_seed in seeds(per_class, seed):
        for organ in ORGANS:
            for label in range(len(organ.classes)):
                yield make_phantom(organ.name, label, own_seed)


def seeds(rounds: int, seed: int = 0) -> Iterator[int]:
    """The seed of each round of `make_phantoms`."""
    for i in range(rounds):
        yield int(np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0])


def write_examples(folder: str | pathlib.Path, per_class: int = 1, seed: int = 0) -> list[pathlib.Path]:
    """Write the images of `make_phantoms` to a folder, which is made if missing, in each of FORMATS in turn; no masks.

    Returns:
      The files in the order of `make_phantoms`, named organ_class_round, e.g. brain_tumor_00.png.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    classes = sum(len(organ.classes) for organ in ORGANS)
    paths = []
    for k, phantom in enumerate(make_phantoms(per_class, seed)):
        number, position = divmod(k, classes)
        suffix, convert = FORMATS[(number + position) % len(FORMATS)]  # over the rounds, each class gets each format
        name = organ_named(phantom.organ).classes[phantom.label]
        path = folder / f"{phantom.organ}_{name}_{number:02d}{suffix}"
        if not cv2.imwrite(str(path), convert(phantom.image)):
            raise OSError(f"{path}: cannot be written")
        paths.append(path)
    return paths
