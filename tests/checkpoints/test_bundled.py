"""What ships finds on phantoms what it found when it was put there: an upgrade of a library changes nothing unnoticed.

Organ and segmentation are forced, so that every phantom has a mask whatever router and classifier say of it. New
weights need new masks: `python tests/checkpoints/test_bundled.py`, and a look at them.
"""

import pathlib

import cv2
import jax
import numpy as np
import pytest

from mcis.checkpoints.bundle import load_bundle
from mcis.imaging.letterbox import letterbox, unletterbox
from mcis.imaging.phantom import make_phantom
from mcis.ops.metrics import MASK_THRESHOLD, dice, mask_counts
from mcis.organs import ORGANS
from mcis.tasks.apply import make_expert

GOLDEN = pathlib.Path(__file__).parents[1] / "fixtures" / "golden"
PER_CLASS, SIZE = 6, (200, 240)


def phantoms(organ):
    return [
        make_phantom(organ.name, label, seed, SIZE).image
        for label in map(organ.classes.index, organ.lesions)
        for seed in range(PER_CLASS)
    ]


def test_what_ships_knows_the_published_scans_it_has_used_by_name():
    for name, weights in load_bundle().items():
        for use in ("train", "validation"):
            used, called = (weights.manifest[by][use] for by in ("fingerprints", "names"))
            # of the router's some are foreign, which have no such names
            assert len(called) == len(used) or (name == "route" and len(used) > len(called) > 0.8 * len(used))
        assert weights.manifest["names"]["train"]


def masks_of(organ):
    """Masks of the shipped segmentation network on the phantoms' own grid: bool (N, *SIZE)."""
    weights = load_bundle()[f"segment_{organ.name}"]
    squares, geometries = zip(*(letterbox(image) for image in phantoms(organ)), strict=True)
    found = np.asarray(jax.jit(make_expert(weights.task))(weights.variables, np.stack(squares)).mask)
    probs = [unletterbox(mask[..., 0], geometry) for mask, geometry in zip(found, geometries, strict=True)]
    return np.stack(probs) > MASK_THRESHOLD


def file_of(organ):
    return GOLDEN / f"masks_{organ.name}.png"


@pytest.mark.parametrize("organ", ORGANS, ids=lambda organ: organ.name)
def test_shipped_weights_outline_phantoms_as_they_did(organ):
    found = masks_of(organ)
    wanted = cv2.imread(str(file_of(organ)), cv2.IMREAD_UNCHANGED).reshape(found.shape) > 0
    assert (wanted.any((1, 2))).mean() > 0.5  # empty masks would be equal, and say little
    counts = mask_counts(found[..., None], wanted[..., None])
    overlaps = dice(counts["both"], counts["predicted"], counts["true"])
    assert overlaps.min() > 0.99, overlaps.round(3)


if __name__ == "__main__":
    for organ in ORGANS:  # one below the other in one picture
        cv2.imwrite(str(file_of(organ)), np.concatenate(masks_of(organ)).astype(np.uint8) * 255)
