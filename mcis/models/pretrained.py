"""Import of pretrained weights: PyTorch state dicts of published networks as variables of networks in MODELS.

    state = read_state_dict("deeplabv3_resnet50_coco.pth")
    variables, imported = import_state_dict(state, model.init(jax.random.key(0), image))
    print(imported)

Supported are the ResNets and DeepLabv3 of torchvision, EfficientNet-Lite0 of efficientnet-lite-pytorch and the U-Net of
mateuszbuda/brain-segmentation-pytorch, recognised by the names of their arrays. Layouts change (OIHW -> HWIO), numbers
do not. The networks of torchvision were trained on images normalised by the statistics of ImageNet; here each scan is
standardised by its own, which is similar.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

NAMES = (  # pattern of a name in a state dict without its last part -> path below the collection
    # torchvision's ResNet, alone or as DeepLabv3's backbone
    (r"(?:backbone\.)?conv1", "encoder/stem/conv"),
    (r"(?:backbone\.)?bn1", "encoder/stem/norm"),
    (r"(?:backbone\.)?layer(\d)\.(\d+)\.conv(\d)", "encoder/level{0}_block{1+}/layer{2}/conv"),
    (r"(?:backbone\.)?layer(\d)\.(\d+)\.bn(\d)", "encoder/level{0}_block{1+}/layer{2}/norm"),
    (r"(?:backbone\.)?layer(\d)\.(\d+)\.downsample\.0", "encoder/level{0}_block{1+}/shortcut/conv"),
    (r"(?:backbone\.)?layer(\d)\.(\d+)\.downsample\.1", "encoder/level{0}_block{1+}/shortcut/norm"),
    (r"fc", "label/dense"),
    # torchvision's DeepLabv3
    (r"classifier\.0\.convs\.([0-3])\.0", "aspp/branch{0+}/conv"),
    (r"classifier\.0\.convs\.([0-3])\.1", "aspp/branch{0+}/norm"),
    (r"classifier\.0\.convs\.4\.1", "aspp/pooling/conv"),
    (r"classifier\.0\.convs\.4\.2", "aspp/pooling/norm"),
    (r"classifier\.0\.project\.0", "aspp/project/conv"),
    (r"classifier\.0\.project\.1", "aspp/project/norm"),
    (r"classifier\.1", "head/conv"),
    (r"classifier\.2", "head/norm"),
    (r"classifier\.4", "mask"),
    (r"aux_classifier\.0", "auxiliary_head/conv"),
    (r"aux_classifier\.1", "auxiliary_head/norm"),
    (r"aux_classifier\.4", "auxiliary"),
    # Buda's U-Net
    (r"encoder(\d)\.enc\d(conv|norm)(\d)", "encoder{0}_{2}/layer/{1}"),
    (r"bottleneck\.bottleneck(conv|norm)(\d)", "bottleneck_{1}/layer/{0}"),
    (r"upconv(\d)", "upconv{0}"),
    (r"decoder(\d)\.dec\d(conv|norm)(\d)", "decoder{0}_{2}/layer/{1}"),
    (r"conv", "mask"),
    # EfficientNet-Lite of efficientnet-lite-pytorch
    (r"_conv_stem", "encoder/stem"),
    (r"_bn0", "encoder/stem_norm"),
    (r"_blocks\.(\d+)\._expand_conv", "encoder/block{0+}/expand"),
    (r"_blocks\.(\d+)\._bn0", "encoder/block{0+}/expand_norm"),
    (r"_blocks\.(\d+)\._depthwise_conv", "encoder/block{0+}/depthwise"),
    (r"_blocks\.(\d+)\._bn1", "encoder/block{0+}/depthwise_norm"),
    (r"_blocks\.(\d+)\._project_conv", "encoder/block{0+}/project"),
    (r"_blocks\.(\d+)\._bn2", "encoder/block{0+}/project_norm"),
    (r"_conv_head", "encoder/head"),
    (r"_bn1", "encoder/head_norm"),
    (r"_fc", "label/dense"),
)
KNOWN_NAMES = (
    "Known are the names of torchvision for ResNet and DeepLabv3 (conv1.weight, backbone.conv1.weight), of "
    "efficientnet-lite-pytorch (_conv_stem.weight) and of Buda's U-Net (encoder1.enc1conv1.weight), with or without "
    "'module.' in front"
)
HEAD = r"(label|mask\d*(_norm)?|auxiliary(_head)?)/"
"""Paths of the heads, which may be missing in a file or have another width: they are then newly initialised."""
ENCODER = "encoder"
"""The part that a classifier shares with a segmenter, whose parts that the file lacks are then newly initialised."""


IMAGENET = "imagenet"
"""The name of the bundled ImageNet weights."""
BUNDLED = {
    name: pathlib.Path(__file__).parent / IMAGENET / "efficientnet_lite0.safetensors"
    for name in ("efficientnet_lite0", "unet_efficientnet_lite0")
}
"""Network -> the state dict of its ImageNet weights, in half precision and without the label head."""


def imagenet_weights(model: str) -> pathlib.Path:
    """The file of a network's bundled ImageNet weights; ValueError if there is none."""
    if model not in BUNDLED:
        raise ValueError(f"init_from={IMAGENET}: {model} has no bundled weights; {', '.join(BUNDLED)} have")
    return BUNDLED[model]


@dataclasses.dataclass(frozen=True)
class Imported:
    """Report of an import.

    Attributes:
      loaded: paths of our variables that were read from the file.
      fresh: paths that kept their initialisation, each with the reason.
      left_over: names in the file that were not used, each with its shape.
    """

    loaded: tuple[str, ...]
    fresh: dict[str, str]
    left_over: dict[str, tuple[int, ...]]

    def __str__(self) -> str:
        """One line for each attribute; more than four arrays of one part of the network are counted, not listed."""
        parts: dict[tuple[str, str], list[str]] = {}
        for path, reason in self.fresh.items():
            parts.setdefault((_part(path), reason), []).append(path)
        fresh = "; ".join(
            f"{', '.join(paths) if len(paths) <= 4 else f'{len(paths)} arrays of {part}'} ({reason})"
            for (part, reason), paths in parts.items()
        )
        unused = _listed(self.left_over) or "nothing"
        return f"loaded: {len(self.loaded)} arrays\nnewly initialised: {fresh or 'nothing'}\nnot used: {unused}"


@dataclasses.dataclass(frozen=True)
class _Entry:
    """An array of a file: its name and shape there, and its numbers in our layout."""

    name: str
    shape: tuple[int, ...]
    array: np.ndarray


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a `.safetensors` or `.pth` file by name.

    PyTorch files need PyTorch and are opened with `weights_only=True`, which runs no code from them.

    Raises:
      ValueError: no such file, another kind of file, or a file without a plain table of arrays.
    """
    path = pathlib.Path(path)
    suffix = path.suffix.lower()
    if not path.is_file():
        raise ValueError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    if suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return load_file(path)
        except (SafetensorError, AttributeError, TypeError) as error:  # the last two for types that NumPy lacks
            raise ValueError(f"{path} is no safetensors file that NumPy can hold ({error})") from None
    if suffix not in (".pth", ".pt", ".bin"):
        raise ValueError(f"{path}: unknown type of file; use .safetensors, .pth, .pt or .bin")
    try:
        import torch
    except ImportError:
        raise ValueError(f"{path} is a PyTorch file: install torch to read it, or save it as .safetensors") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):
            state = state.get(key, state) if isinstance(state, dict) else state
        return {str(name): value.detach().to_dense().float().numpy() for name, value in state.items()}
    except Exception as error:  # torch has no exception of its own for damaged files, and its advice does not apply
        raise ValueError(
            f"{path} holds no plain state dict, a table of names and tensors ({type(error).__name__}). A file that "
            "also holds code or objects is not opened: save the state dict alone, best as .safetensors"
        ) from None


def path_of(name: str, dimensions: int) -> str | None:
    """The path in our variables of an array of a state dict with so many dimensions; None for an unknown name."""
    prefix, _, leaf = name.removeprefix("module.").rpartition(".")
    for pattern, target in NAMES:
        if match := re.fullmatch(pattern, prefix):
            for index, group in enumerate(match.groups()):
                target = target.replace(f"{{{index}}}", group)
                if group.isdigit():
                    target = target.replace(f"{{{index}+}}", str(int(group) + 1))
            break
    else:
        return None
    if leaf in ("running_mean", "running_var"):
        return f"batch_stats/{target}/{leaf.removeprefix('running_')}"
    if leaf == "bias":
        return f"params/{target}/bias"
    return f"params/{target}/{'scale' if dimensions == 1 else 'kernel'}" if leaf == "weight" else None


def to_our_layout(path: str, value: np.ndarray) -> np.ndarray:
    """A PyTorch array in our layout, float32.

    OIHW -> HWIO, for transposed convolutions IOHW -> HWIO, for depthwise ones -> HWC, for 1x1 masks and linear layers
    (O, I) -> (I, O).
    """
    value = np.asarray(value, np.float32)
    if value.ndim == 4:
        value = value.transpose(2, 3, 0, 1) if "/upconv" in path else value.transpose(2, 3, 1, 0)
        if "/depthwise/" in path:
            return value[:, :, 0]
        return value[0, 0] if path.startswith(("params/mask/", "params/auxiliary/")) else value
    return value.T if value.ndim == 2 else value


def import_state_dict(state: Mapping[str, np.ndarray], variables: dict[str, Any]) -> tuple[dict[str, Any], Imported]:
    """Variables with the numbers of a state dict.

    Args:
      state: as `read_state_dict` returns it.
      variables: of the network, as initialised; heads of another width keep these numbers.

    Raises:
      ValueError: as `import_variables`, or two names of the file mean the same array.
    """
    entries: dict[str, _Entry] = {}
    unknown: dict[str, tuple[int, ...]] = {}
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):  # does not affect what a network computes
            continue
        path = path_of(name, value.ndim)
        if path is None:
            unknown[name] = value.shape
        elif path in entries:
            raise ValueError(f"{entries[path].name} and {name} of the file are both {path}: remove one of them")
        else:
            _check_numbers(name, value, path)
            entries[path] = _Entry(name, value.shape, to_our_layout(path, value))
    return _merge(entries, unknown, variables)


def import_variables(stored: dict[str, Any], variables: dict[str, Any]) -> tuple[dict[str, Any], Imported]:
    """Variables with the numbers of stored ones (of `checkpoint.load`), which may be of another task.

    Raises:
      ValueError: they are of another network; the message lists the arrays that are missing or have another shape. Or
        an array holds numbers that no network can use.
    """
    entries = {}
    for path, value in flatten_dict(stored, sep="/").items():
        _check_numbers(path, value, path)
        entries[path] = _Entry(path, value.shape, np.asarray(value))
    return _merge(entries, {}, variables)


def _check_numbers(name: str, value: np.ndarray, path: str) -> None:
    """ValueError unless an array has real, finite numbers, and no variance below 0."""
    if not np.issubdtype(value.dtype, np.number) or np.iscomplexobj(value):
        raise ValueError(f"{name} of the file is of type {value.dtype}: real numbers are needed")
    if not np.isfinite(value.astype(np.float32)).all():
        raise ValueError(f"{name} of the file is not finite: the training of these weights failed")
    if path.endswith("/var") and (value < 0).any():
        raise ValueError(f"{name} of the file is a variance below 0")


def _merge(
    entries: Mapping[str, _Entry], unknown: Mapping[str, tuple[int, ...]], variables: dict[str, Any]
) -> tuple[dict[str, Any], Imported]:
    """A network's variables with the entries of a file (by path) in place; `unknown` are names without a path."""
    expected = flatten_dict(variables, sep="/")
    left_over = {**unknown, **{entry.name: entry.shape for path, entry in entries.items() if path not in expected}}
    parts = {_part(path) for path in entries if path in expected}
    new_parts = {_part(path) for path in expected} - parts if ENCODER in parts else set()
    loaded: dict[str, np.ndarray] = {}
    fresh, wrong = {}, []
    for path in sorted(expected, key=lambda path: path.startswith("batch_stats")):  # kernels first in the message
        entry, shape = entries.get(path), tuple(expected[path].shape)
        if entry is None:
            fresh[path] = "not in the file"
            problem = f"{path} {shape} is not in the file"
        elif entry.array.shape == shape:
            loaded[path] = entry.array
            continue
        elif len(shape) == 4 and entry.array.shape == (*shape[:2], 3, shape[3]) and shape[2] == 4:  # has an edge map
            loaded[path] = np.concatenate([entry.array, np.zeros_like(entry.array[:, :, :1])], 2)
            fresh[path] = "the channel of the edge map, zero"
            continue
        else:
            fresh[path] = f"{entry.name} is {entry.array.shape}, here {shape}"
            left_over[entry.name] = entry.shape
            problem = f"{path} is {shape}, {entry.name} of the file {entry.array.shape}"
        if not re.match(HEAD, path.partition("/")[2]) and _part(path) not in new_parts:
            wrong.append(problem)
    if wrong or not loaded:
        unused = _listed(dict(list(left_over.items())[:5]))
        if not entries:
            raise ValueError(f"no array of the file has a known name; its arrays are {unused or 'none'}. {KNOWN_NAMES}")
        listed = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        other_width = len(wrong) > len(expected) / 2 and not any("not in the file" in problem for problem in wrong)
        advice = ". The same network of another width: try another --features" if other_width else ""
        raise ValueError(f"the weights are of another network: {listed}. Not used: {unused or 'nothing'}{advice}")
    return unflatten_dict({**expected, **loaded}, sep="/"), Imported(tuple(loaded), fresh, left_over)


def _part(path: str) -> str:
    """The part of a network that an array belongs to: the first name below its collection."""
    return path.split("/")[1]


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())
