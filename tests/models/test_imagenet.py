"""The bundled ImageNet weights: the published numbers, and networks that start from them."""

import hashlib
import pathlib
import re

import jax
import numpy as np
import pytest

from mcis.models import MODELS
from mcis.models.pretrained import BUNDLED, imagenet_weights, import_state_dict, read_state_dict
from tests.fixtures.networks import flatten, fresh, images, networks, quick_jit, shapes_of, tiny

FILE = imagenet_weights("efficientnet_lite0")
GOLDEN = pathlib.Path(__file__).parents[1] / "fixtures" / "golden" / "imagenet.npy"
"""Features of `image()` by the published network with its published weights, written by `make parity` with PyTorch."""

ENCODERS = [name for name, model in MODELS.items() if model.has_encoder]


def image():
    return np.random.default_rng(0).normal(size=(2, 64, 96, 3)).astype(np.float32)


def loaded(model):
    shapes = shapes_of(model)
    variables, report = import_state_dict(read_state_dict(FILE), jax.tree.map(lambda x: np.zeros(x.shape), shapes))
    assert not report.left_over
    return variables, report


def test_features_are_those_of_the_published_network():
    model = MODELS["efficientnet_lite0"].clone(texture=False)
    variables, report = loaded(model)
    assert set(report.fresh) == {"params/label/dense/kernel", "params/label/dense/bias"}
    found, expected = np.asarray(jax.jit(model.apply)(variables, image()).features), np.load(GOLDEN)
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-2 * np.abs(expected).max())  # bundled in half precision


def test_a_segmenter_starts_from_them_but_for_its_decoder_and_heads():
    _, report = loaded(MODELS["unet_efficientnet_lite0"].clone(classes=3))
    assert len(report.loaded) == 245
    assert not any("encoder" in path for path in report.fresh)


@networks(ENCODERS, slow={*ENCODERS} - {"resnet18"})
def test_a_frozen_encoder_has_no_gradient_and_keeps_its_statistics(name):
    variables = fresh(name)

    def run(params):
        rngs = {"dropout": jax.random.key(0)}
        model = tiny(name, frozen=True)
        outputs, updated = model.apply(
            variables | {"params": params}, images(), train=True, mutable=["batch_stats"], rngs=rngs
        )
        return outputs.label.sum(), updated["batch_stats"]

    gradient, statistics = quick_jit(jax.grad(run, has_aux=True))(variables["params"])
    assert np.abs(gradient["label"]["dense"]["kernel"]).max() > 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient["encoder"]))
    before = flatten(variables["batch_stats"]["encoder"])
    for path, value in flatten(statistics["encoder"]).items():
        np.testing.assert_array_equal(value, before[path])


def test_the_file_is_the_one_that_the_readme_describes():
    readme = (FILE.parent / "README.md").read_text()
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() in re.findall(r"[0-9a-f]{64}", readme)


def test_other_networks_have_none_and_the_message_lists_those_that_have():
    assert BUNDLED.keys() <= MODELS.keys()
    with pytest.raises(ValueError, match=r"resnet18 has no bundled weights; efficientnet_lite0, unet_eff.* have"):
        imagenet_weights("resnet18")
