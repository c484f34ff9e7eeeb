"""Published networks compute the published numbers: tests/fixtures/golden/, written by `make parity` with PyTorch."""

import pathlib
import zlib

import jax
import numpy as np

from mcis.models import MODELS
from tests.fixtures.networks import flatten, networks, shapes_of, unflatten

GOLDEN = pathlib.Path(__file__).parents[1] / "fixtures" / "golden"
NETWORKS = ("unet", "sk_unet", "resnet18", "resnet50", "deeplabv3", "efficientnet_lite0")
SIDE = 64


def image():
    return np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)


def variables_of(model):
    """Random variables, scaled as by an initialisation; the numbers of each array depend on its path alone."""
    found = {}
    for path, leaf in flatten(shapes_of(model)).items():
        rng = np.random.default_rng(zlib.crc32(path.encode()))
        if path.endswith("kernel"):
            value = rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        elif path.endswith(("scale", "var")):
            value = rng.uniform(0.5, 1.0, leaf.shape)
        else:
            value = rng.uniform(-0.2, 0.2, leaf.shape)
        found[path] = value.astype(np.float32)
    return unflatten(found)


def sample(outputs):
    """Every seventh pixel of masks (B, H, W, 1), so that the golden arrays are small; labels as they are."""
    return outputs[:, ::7, ::7, 0] if outputs.ndim == 4 else outputs


@networks(NETWORKS, slow={"resnet50", "efficientnet_lite0", "sk_unet"})  # others have two of their encoders
def test_outputs_are_those_of_the_published_network(name):
    model = MODELS[name].clone(texture=False) if name == "efficientnet_lite0" else MODELS[name]
    outputs = jax.jit(model.apply)(variables_of(model), image())
    found = sample(np.asarray(outputs.label if outputs.mask is None else outputs.mask))
    expected = np.load(GOLDEN / f"{name}.npy")
    assert expected.std() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
