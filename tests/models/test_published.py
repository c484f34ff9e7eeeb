"""Published networks give the published numbers: tests/fixtures/golden/, which `make parity` made with PyTorch."""

import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcis.checkpoints.checkpoint import flatten, unflatten
from mcis.models import MODELS

GOLDEN = pathlib.Path(__file__).parents[1] / "fixtures" / "golden"
NETWORKS = ("unet", "sk_unet", "resnet18", "resnet50", "deeplabv3")
SIDE = 64


def image():
    return np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)


def variables_of(model):
    """Numbers for every array that depend on its path alone, scaled as an initialisation would."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32))
    found = {}
    for path, leaf in flatten(shapes).items():
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
    """Of masks (B, H, W, 1) every seventh pixel, so that what is kept is small."""
    return outputs[:, ::7, ::7, 0] if outputs.ndim == 4 else outputs


@pytest.mark.parametrize("name", NETWORKS)
def test_numbers_are_those_of_the_published_network(name):
    model = MODELS[name]
    outputs = jax.jit(model.apply, compiler_options={"xla_backend_optimization_level": 0})(variables_of(model), image())
    found = sample(np.asarray(outputs.label if outputs.mask is None else outputs.mask))
    wanted = np.load(GOLDEN / f"{name}.npy")
    assert wanted.std() > 1e-3
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
