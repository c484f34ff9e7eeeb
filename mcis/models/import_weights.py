"""Weights that the world already has: state dicts of torchvision and of Buda's U-Net as variables of our networks.

    state = read_state_dict("deeplabv3_resnet50_coco.pth")
    variables, imported = import_state_dict(state, model.init(jax.random.key(0), image))
    print(imported)

Known are torchvision's ResNets and DeepLabv3 and the U-Net of mateuszbuda/brain-segmentation-pytorch, whose names say
which they are. Layouts change (OIHW -> HWIO), numbers do not.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

NAMES = (  # pattern of a state dict's name without its last part -> path below the collection
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
)
HEADS = ("label/", "mask/", "auxiliary/")
"""What may have another width here: it is initialised anew."""
IGNORED = ("num_batches_tracked",)
"""Parts of a state dict that say nothing about what a network computes."""


@dataclasses.dataclass(frozen=True)
class Imported:
    """What became of a state dict.

    Attributes:
      loaded: paths of our variables whose numbers came from it.
      fresh: paths that kept their initialisation, each with the reason.
      left_over: names of the state dict that were not used, each with its shape.
    """

    loaded: tuple[str, ...]
    fresh: dict[str, str]
    left_over: dict[str, tuple[int, ...]]

    def __str__(self) -> str:
        """A line for each kind."""
        fresh = "; ".join(f"{path} ({why})" for path, why in self.fresh.items()) or "nothing"
        left = ", ".join(f"{name} {shape}" for name, shape in self.left_over.items()) or "nothing"
        return f"loaded: {len(self.loaded)} arrays\ninitialised anew: {fresh}\nleft over: {left}"


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a `.safetensors` or `.pth` file by name.

    PyTorch files need PyTorch and are opened with `weights_only=True`, which runs no code from them.

    Raises:
      ValueError: no such file, another kind of file, or one that holds no plain table of arrays.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file ({error})") from None
    if path.suffix not in (".pth", ".pt"):
        raise ValueError(f"{path}: .safetensors, .pth and .pt files are read")
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"{path} is PyTorch's own format, which only PyTorch reads: install torch, or save it as .safetensors"
        ) from None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no class of its own for what is wrong with a file
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} holds no plain state dict ({type(error).__name__}: {reason})") from None
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ValueError(f"{path} holds no plain state dict: a table of names and tensors is needed")
    return {name: value.numpy() for name, value in found.items()}


def path_of(name: str, dimensions: int) -> str | None:
    """Path in our variables of an entry of a state dict with so many dimensions; None where there is none."""
    place, _, leaf = name.removeprefix("module.").rpartition(".")
    for pattern, target in NAMES:
        if match := re.fullmatch(pattern, place):
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


def laid_out(path: str, value: np.ndarray) -> np.ndarray:
    """A PyTorch array in our layout, float32.

    OIHW -> HWIO, of transposed convolutions IOHW -> HWIO, of 1x1 masks and linear layers (O, I) -> (I, O).
    """
    value = np.asarray(value, np.float32)
    if value.ndim == 4:
        value = value.transpose(2, 3, 0, 1) if "/upconv" in path else value.transpose(2, 3, 1, 0)
        return value[0, 0] if path.startswith(("params/mask/", "params/auxiliary/")) else value
    return value.T if value.ndim == 2 else value


def import_state_dict(state: Mapping[str, np.ndarray], variables: dict[str, Any]) -> tuple[dict[str, Any], Imported]:
    """Variables with the numbers of a state dict.

    Args:
      state: as `read_state_dict` gives it.
      variables: the network's, as initialised; heads of another width keep these numbers.

    Raises:
      ValueError: the state dict is of another network; the message names the arrays that are missing or of another
        shape, with the shapes expected and found.
    """
    wanted = flatten_dict(variables, sep="/")
    found: dict[str, tuple[str, np.ndarray]] = {}
    left_over: dict[str, tuple[int, ...]] = {}
    for name, value in state.items():
        if name.rpartition(".")[2] in IGNORED:
            continue
        path = path_of(name, value.ndim)
        if path is not None and path in wanted:
            found[path] = (name, laid_out(path, value))
        else:
            left_over[name] = tuple(value.shape)
    fresh, wrong = {}, []
    for path in sorted(wanted, key=lambda path: path.startswith("batch_stats")):  # kernels say most
        value = wanted[path]
        head = path.partition("/")[2].startswith(HEADS)
        if path not in found:
            fresh[path] = "not in the file"
            if not head:
                wrong.append(f"{path} {tuple(value.shape)} is not in the file")
        elif found[path][1].shape != value.shape:
            name, array = found.pop(path)
            fresh[path] = f"{name} is {array.shape}, here {tuple(value.shape)}"
            left_over[name] = tuple(state[name].shape)
            if not head:
                wrong.append(f"{path} is {tuple(value.shape)}, {name} of the file {array.shape}")
    if wrong or not found:
        listed = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        spare = ", ".join(f"{name} {shape}" for name, shape in list(left_over.items())[:5])
        raise ValueError(
            f"these are another network's weights: {listed}. Of the file is not used: {spare or 'nothing'}"
        )
    merged = {path: found[path][1] if path in found else value for path, value in wanted.items()}
    return unflatten_dict(merged, sep="/"), Imported(tuple(found), fresh, left_over)
