"""Weights that the world already has: state dicts of torchvision and of Buda's U-Net as variables of our networks.

    state = read_state_dict("deeplabv3_resnet50_coco.pth")
    variables, imported = import_state_dict(state, model.init(jax.random.key(0), image))
    print(imported)

Known are torchvision's ResNets and DeepLabv3 and the U-Net of mateuszbuda/brain-segmentation-pytorch, whose names say
which they are. Layouts change (OIHW -> HWIO), numbers do not. torchvision's networks learned from pictures normalised
by ImageNet's statistics; ours see each scan standardised by its own, which is near.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
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
FEW = 4
"""Arrays of one part that a report names one by one."""
KNOWN_NAMES = (
    "Known are torchvision's names of ResNet and DeepLabv3 (conv1.weight, backbone.conv1.weight) and Buda's of the "
    "U-Net (encoder1.enc1conv1.weight), bare or after 'module.'"
)
HEAD = r"(label|mask\d*(_norm)?|auxiliary(_head)?)/"
"""What may be missing or have another width: it is initialised anew."""
ENCODER = "encoder"
"""The part that a network shares with a classifier: where a file has all of it, the parts it knows nothing of are
initialised anew."""
PYTORCH = (".pth", ".pt", ".bin")
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
        parts: dict[tuple[str, str], list[str]] = {}
        for path, why in self.fresh.items():
            parts.setdefault((_part(path), why), []).append(path)
        listed = [
            f"{', '.join(paths) if len(paths) <= FEW else f'{len(paths)} arrays of {part}'} ({why})"
            for (part, why), paths in parts.items()
        ]
        fresh = "; ".join(listed) or "nothing"
        left = ", ".join(f"{name} {shape}" for name, shape in self.left_over.items()) or "nothing"
        return f"loaded: {len(self.loaded)} arrays\ninitialised anew: {fresh}\nleft over: {left}"


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a `.safetensors` or `.pth` file by name.

    PyTorch files need PyTorch and are opened with `weights_only=True`, which runs no code from them.

    Raises:
      ValueError: no such file, another kind of file, or one that holds no plain table of arrays.
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
        except (SafetensorError, AttributeError, TypeError) as error:  # the latter for types that NumPy lacks
            raise ValueError(f"{path} is no safetensors file that NumPy can hold ({error})") from None
    if suffix not in PYTORCH:
        raise ValueError(f"{path}: .safetensors, {', '.join(PYTORCH[:-1])} and {PYTORCH[-1]} files are read")
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"{path} is PyTorch's own format, which only PyTorch reads: install torch, or save it as .safetensors"
        ) from None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):
            found = found.get(key, found) if isinstance(found, dict) else found
        return {str(name): value.detach().to_dense().float().numpy() for name, value in found.items()}
    except Exception as error:  # torch has no class of its own for what is wrong with a file, and advice that is none
        raise ValueError(
            f"{path} holds no plain state dict, a table of names and tensors ({type(error).__name__}). A file that "
            "also holds code or objects is not opened: save the state dict alone, best as .safetensors"
        ) from None


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
      ValueError: as `import_variables`, or two names of the file mean the same array.
    """
    found: dict[str, tuple[str, np.ndarray]] = {}
    unknown = []
    for name, value in state.items():
        if name.rpartition(".")[2] in IGNORED:
            continue
        path = path_of(name, value.ndim)
        if path is None:
            unknown.append(name)
        elif path in found:
            raise ValueError(f"{found[path][0]} and {name} of the file are both {path}: one of them must go")
        else:
            _check_numbers(name, value, path)
            found[path] = (name, laid_out(path, value))
    return _merge(found, unknown, {name: tuple(value.shape) for name, value in state.items()}, variables)


def import_variables(stored: dict[str, Any], variables: dict[str, Any]) -> tuple[dict[str, Any], Imported]:
    """Variables with the numbers of others of ours, as `checkpoint.load` gives them, which may be of another task.

    Raises:
      ValueError: they are of another network; the message names the arrays that are missing or of another shape, with
        the shapes expected and found. Or an array holds what no network can use.
    """
    flat = flatten_dict(stored, sep="/")
    for path, value in flat.items():
        _check_numbers(path, value, path)
    given = {path: (path, np.asarray(value)) for path, value in flat.items()}
    return _merge(given, [], {path: array.shape for path, (_, array) in given.items()}, variables)


def _check_numbers(name: str, value: np.ndarray, path: str) -> None:
    """ValueError unless an array is of real, finite numbers, a variance of none below 0."""
    if not np.issubdtype(value.dtype, np.number) or np.iscomplexobj(value):
        raise ValueError(f"{name} of the file is of type {value.dtype}: real numbers are needed")
    if not np.isfinite(value.astype(np.float32)).all():
        raise ValueError(f"{name} of the file is not finite: such weights are of a training that failed")
    if path.endswith("/var") and (value < 0).any():
        raise ValueError(f"{name} of the file is a variance below 0")


def _merge(
    given: Mapping[str, tuple[str, np.ndarray]],
    unknown: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
    variables: dict[str, Any],
) -> tuple[dict[str, Any], Imported]:
    """Put arrays in the place of a network's own.

    Args:
      given: path -> (its name in the file, the array laid out as ours).
      unknown: names in the file that mean no path.
      shapes: name in the file -> its shape there.
      variables: the network's own.
    """
    wanted = flatten_dict(variables, sep="/")
    found = {path: one for path, one in given.items() if path in wanted}
    left_over = {name: shapes[name] for name in [*unknown, *(given[path][0] for path in given if path not in wanted)]}
    parts = {_part(path) for path in found}
    lacking = {_part(path) for path in wanted} - parts if ENCODER in parts else set()
    fresh, wrong = {}, []
    for path in sorted(wanted, key=lambda path: path.startswith("batch_stats")):  # kernels say most
        value = wanted[path]
        free = re.match(HEAD, path.partition("/")[2]) or _part(path) in lacking
        if path not in found:
            fresh[path] = "not in the file"
            if not free:
                wrong.append(f"{path} {tuple(value.shape)} is not in the file")
            continue
        name, array = found[path]
        if array.shape != value.shape and _but_for_an_edge_map(array, value):
            fresh[path] = "the edge map's channel, zero"
            found[path] = (name, np.concatenate([array, np.zeros_like(array[:, :, :1])], 2))
        elif array.shape != value.shape:
            del found[path]
            fresh[path] = f"{name} is {array.shape}, here {tuple(value.shape)}"
            left_over[name] = shapes[name]
            if not free:
                wrong.append(f"{path} is {tuple(value.shape)}, {name} of the file {array.shape}")
    if wrong or not found:
        listed = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        spare = ", ".join(f"{name} {shape}" for name, shape in list(left_over.items())[:5])
        if not given:
            raise ValueError(f"no array has a name that is known here; there are {spare or 'none'}. {KNOWN_NAMES}")
        width = len(wrong) > len(wanted) / 2 and not any("not in the file" in one for one in wrong)
        advice = ". The same network of another width: another --features fits" if width else ""
        raise ValueError(
            f"these are another network's weights: {listed}. Of the file is not used: {spare or 'nothing'}{advice}"
        )
    merged = {path: found[path][1] if path in found else value for path, value in wanted.items()}
    return unflatten_dict(merged, sep="/"), Imported(tuple(found), fresh, left_over)


def _part(path: str) -> str:
    """The part of a network that an array is of: the first name below its collection."""
    return path.split("/")[1]


def _but_for_an_edge_map(array: np.ndarray, value: np.ndarray) -> bool:
    """Whether a first kernel is for three channels where ours sees an edge map as a fourth."""
    return array.ndim == 4 and array.shape[2] == 3 and value.shape == (*array.shape[:2], 4, array.shape[3])
