"""The bundled weights predict the masks of phantoms that they predicted when they were added.

So no upgrade of a library changes them unnoticed. The segmentation networks are run alone, without router and
classifier, so every phantom has a mask. New weights need new masks: run `python tests/checkpoints/test_bundled.py` and
look at them.
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


EVERY, SOME = slice(None), slice(None, None, 3)


def test_the_bundled_weights_list_the_names_of_the_published_scans_that_they_have_used():
    for name, weights in load_bundle().items():
        for use in ("train", "validation"):
            used, names = (weights.manifest[by][use] for by in ("fingerprints", "names"))
            if name == "route":  # some of its scans are out of distribution and have no such names
                assert len(used) > len(names) > 0.8 * len(used)
            else:  # two sources may hold the same picture
                assert len(used) <= len(names) < 1.01 * len(used)
        assert weights.manifest["names"]["train"]


def masks_of(organ, which=EVERY):
    """Masks of the bundled segmentation network at the phantoms' own size: bool (N, *SIZE)."""
    weights = load_bundle()[f"segment_{organ.name}"]
    squares, geometries = zip(*(letterbox(image) for image in phantoms(organ)[which]), strict=True)
    found = np.asarray(jax.jit(make_expert(weights.task))(weights.variables, np.stack(squares)).mask)
    probs = [unletterbox(mask[..., 0], geometry) for mask, geometry in zip(found, geometries, strict=True)]
    return np.stack(probs) > MASK_THRESHOLD


def file_of(organ):
    return GOLDEN / f"masks_{organ.name}.png"


@pytest.mark.parametrize("which", [SOME, pytest.param(EVERY, marks=pytest.mark.slow)], ids=["some", "every"])
@pytest.mark.parametrize("organ", ORGANS, ids=lambda organ: organ.name)
def test_the_bundled_weights_predict_the_same_masks_as_before(organ, which):
    found = masks_of(organ, which)
    wanted = cv2.imread(str(file_of(organ)), cv2.IMREAD_UNCHANGED).reshape(-1, *SIZE)[which] > 0
    assert (wanted.any((1, 2))).mean() > 0.5  # equal empty masks would prove nothing
    counts = mask_counts(found[..., None], wanted[..., None])
    overlaps = dice(counts["both"], counts["predicted"], counts["true"])
    assert overlaps.min() > 0.99, overlaps.round(3)


if __name__ == "__main__":
    for organ in ORGANS:  # one below the other in one image
        cv2.imwrite(str(file_of(organ)), np.concatenate(masks_of(organ)).astype(np.uint8) * 255)
