"""Import of state dicts of published networks; `make parity` compares the numbers with those of PyTorch itself."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from mcis.models import MODELS
from mcis.models.pretrained import import_state_dict, import_variables, path_of, read_state_dict, to_our_layout
from tests.fixtures.networks import flatten, shapes_of, unflatten

MODEL = MODELS["unet"].clone(features=4, classes=2)


@pytest.fixture(scope="module")
def variables():
    """Other numbers in each array."""
    shapes = flatten(shapes_of(MODEL))
    return unflatten({path: np.full(leaf.shape, i, np.float32) for i, (path, leaf) in enumerate(shapes.items())})


def test_every_array_of_the_published_unet_is_imported(variables, buda, tmp_path):
    save_file(buda(), tmp_path / "unet.safetensors")
    state = read_state_dict(tmp_path / "unet.safetensors")
    loaded, report = import_state_dict(state, variables)
    assert not report.left_over
    assert set(report.fresh) == {"params/label/dense/kernel", "params/label/dense/bias"}
    assert len(report.loaded) == len([name for name in state if "num_batches" not in name])
    found, before = flatten(loaded), flatten(variables)
    for path in report.fresh:
        np.testing.assert_array_equal(found[path], before[path])
    kernel = state["decoder2.dec2conv1.weight"]
    np.testing.assert_array_equal(found["params/decoder2_1/layer/conv/kernel"][2, 1, 5, 3], kernel[3, 5, 2, 1])
    up = state["upconv3.weight"]
    np.testing.assert_array_equal(found["params/upconv3/kernel"][0, 1, 7, 2], up[7, 2, 0, 1])
    np.testing.assert_array_equal(
        found["batch_stats/bottleneck_2/layer/norm/var"], state["bottleneck.bottlenecknorm2.running_var"]
    )
    heads = "params/label/dense/bias, params/label/dense/kernel"
    loaded = f"loaded: {len(report.loaded)} arrays"
    assert str(report) == f"{loaded}\nnewly initialised: {heads} (not in the file)\nnot used: nothing"


def test_a_head_of_another_width_is_newly_initialised(variables, buda):
    state = buda() | {"conv.weight": np.zeros((5, 4, 1, 1), np.float32), "conv.bias": np.zeros(5, np.float32)}
    loaded, report = import_state_dict(state, variables)
    np.testing.assert_array_equal(loaded["params"]["mask"]["kernel"], variables["params"]["mask"]["kernel"])
    assert report.left_over == {"conv.weight": (5, 4, 1, 1), "conv.bias": (5,)}
    assert "conv.weight is (4, 5), here (4, 1)" in report.fresh["params/mask/kernel"]


def test_weights_of_another_network_are_rejected_with_the_shapes_expected_and_found(variables, buda):
    with pytest.raises(ValueError, match=r"encoder1_1/layer/conv/kernel is \(3, 3, 3, 4\).*\(3, 3, 1, 4\)"):
        import_state_dict(buda(channels=1), variables)
    with pytest.raises(
        ValueError, match=r"no array of the file has a known name.*layer9\.x \(3,\).*encoder1\.enc1conv1"
    ):
        import_state_dict({"layer9.x": np.zeros(3, np.float32)}, variables)
    with pytest.raises(ValueError, match="try another --features"):
        import_state_dict(buda(features=8), variables)
    short = {name: value for name, value in buda().items() if name != "decoder1.dec1norm2.running_var"}
    with pytest.raises(ValueError, match=r"batch_stats/decoder1_2/layer/norm/var \(4,\) is not in the file"):
        import_state_dict(short, variables)


def resnet18(prefix="", **changed):
    """A state dict of a ResNet-18 with four features, with the names of torchvision."""
    widths, state = [4, 8, 16, 32], {}

    def norm(name, channels):
        for leaf in ("weight", "bias", "running_mean"):
            state[f"{prefix}{name}.{leaf}"] = np.random.default_rng(len(state)).normal(size=channels)
        state[f"{prefix}{name}.running_var"] = np.full(channels, 0.5)

    def conv(name, outputs, inputs, size):
        state[f"{prefix}{name}.weight"] = np.random.default_rng(len(state)).normal(size=(outputs, inputs, size, size))

    conv("conv1", 4, 3, 7)
    norm("bn1", 4)
    for level, width in enumerate(widths, 1):
        before = widths[max(level - 2, 0)]
        for block in (0, 1):
            inputs = width if block else before
            for layer, channels in ((1, inputs), (2, width)):
                conv(f"layer{level}.{block}.conv{layer}", width, channels, 3)
                norm(f"layer{level}.{block}.bn{layer}", width)
            if not block and level > 1:
                conv(f"layer{level}.0.downsample.0", width, before, 1)
                norm(f"layer{level}.0.downsample.1", width)
    state |= {"fc.weight": np.zeros((1000, 32)), "fc.bias": np.zeros(1000)}
    return {name: value.astype(np.float32) for name, value in (state | changed).items()}


@pytest.fixture(scope="module")
def deeplab():
    model = MODELS["deeplabv3_resnet18"].clone(features=4, classes=2, supervise=True)
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 0.25, np.float32), shapes_of(model, 1, 32, 32, 4))


def test_the_encoder_of_a_classifier_is_imported_and_the_kernel_of_an_edge_map_starts_at_zero(deeplab):
    state = resnet18()
    loaded, report = import_state_dict(state, deeplab)
    assert set(report.left_over) == {"fc.weight", "fc.bias"}
    parts = {path.split("/")[1] for path in report.fresh}
    assert parts == {"encoder", "aspp", "head", "mask", "auxiliary_head", "auxiliary", "label"}
    assert [path for path in report.fresh if "encoder" in path] == ["params/encoder/stem/conv/kernel"]
    found = flatten(loaded)
    kernel = found["params/encoder/stem/conv/kernel"]
    np.testing.assert_array_equal(kernel[:, :, :3], state["conv1.weight"].transpose(2, 3, 1, 0))
    assert (kernel[:, :, 3] == 0).all()
    assert (found["params/aspp/project/conv/kernel"] == 0.25).all()
    np.testing.assert_array_equal(
        found["batch_stats/encoder/level4_block1/shortcut/norm/mean"], state["layer4.0.downsample.1.running_mean"]
    )


def test_half_an_encoder_or_half_of_a_part_is_rejected(deeplab):
    half = {name: value for name, value in resnet18().items() if not name.startswith("layer4.1")}
    with pytest.raises(ValueError, match=r"level4_block2/layer1/conv/kernel .* is not in the file"):
        import_state_dict(half, deeplab)
    some = resnet18("backbone.") | {"classifier.0.convs.0.1.weight": np.zeros(16, np.float32)}
    with pytest.raises(ValueError, match=r"aspp/branch2/norm/scale .* is not in the file"):
        import_state_dict(some, deeplab)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bn1.weight": np.full(4, np.nan)}, "bn1.weight .* not finite"),
        ({"bn1.running_var": np.full(4, -1.0)}, "bn1.running_var .* variance below 0"),
        ({"module.bn1.weight": np.ones(4)}, "bn1.weight and module.bn1.weight .* both params/encoder/stem/norm/scale"),
    ],
)
def test_numbers_that_no_network_can_use_are_rejected_by_name(deeplab, changed, message):
    with pytest.raises(ValueError, match=message):
        import_state_dict(resnet18(**changed), deeplab)


def test_complex_numbers_are_rejected(deeplab):
    with pytest.raises(ValueError, match=r"bn1\.bias of the file is of type complex64"):
        import_state_dict(resnet18() | {"bn1.bias": np.ones(4, np.complex64)}, deeplab)


def test_auxiliary_masks_are_newly_initialised_like_heads(buda):
    shapes = shapes_of(MODEL.clone(supervise=True))
    _, report = import_state_dict(buda(), jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes))
    assert {path.split("/")[1] for path in report.fresh} == {"label", "mask2", "mask3", "mask4"}


def test_stored_variables_of_another_task_are_imported_but_for_the_head(variables):
    wide = jax.tree.map(lambda leaf: leaf + 1, variables)
    wide["params"]["label"]["dense"]["kernel"] = np.zeros((64, 3), np.float32)
    loaded, report = import_variables(wide, variables)
    assert list(report.fresh) == ["params/label/dense/kernel"]
    assert report.left_over == {"params/label/dense/kernel": (64, 3)}
    np.testing.assert_array_equal(loaded["params"]["upconv1"]["bias"], variables["params"]["upconv1"]["bias"] + 1)


def test_files_of_another_kind_are_rejected(tmp_path):
    for name, content, message in (
        ("none.pth", None, "no such file"),
        ("a.npz", b"x", r"unknown type of file; use \.safetensors, \.pth, \.pt or \.bin"),
        ("a.safetensors", b"text", "no safetensors file"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_state_dict(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "dimensions", "path"),
    [
        ("conv1.weight", 4, "params/encoder/stem/conv/kernel"),
        ("backbone.layer3.5.bn2.running_mean", 1, "batch_stats/encoder/level3_block6/layer2/norm/mean"),
        ("layer1.0.downsample.1.weight", 1, "params/encoder/level1_block1/shortcut/norm/scale"),
        ("fc.weight", 2, "params/label/dense/kernel"),
        ("classifier.0.convs.3.0.weight", 4, "params/aspp/branch4/conv/kernel"),
        ("aux_classifier.4.bias", 1, "params/auxiliary/bias"),
        ("module.encoder4.enc4norm2.bias", 1, "params/encoder4_2/layer/norm/bias"),
        ("features.denseblock1.weight", 4, None),
    ],
)
def test_names_of_published_networks_become_our_paths(name, dimensions, path):
    assert path_of(name, dimensions) == path


def test_layouts_of_pytorch_become_ours():
    value = np.arange(24).reshape(4, 6, 1, 1)
    assert to_our_layout("params/mask/kernel", value).shape == (6, 4)
    assert to_our_layout("params/x/conv/kernel", value).shape == (1, 1, 6, 4)
    assert to_our_layout("params/label/dense/kernel", np.zeros((3, 8))).shape == (8, 3)
    assert to_our_layout("params/x/norm/scale", np.zeros(3)).dtype == np.float32
