"""One side of a network's comparison, in its own process with its users' settings; started by `bench.py`.

    python tests/lanes/bench/networks.py SIDE NETWORK DTYPE BATCH SIZE WHAT

prints "ready" and the milliseconds of the first run minus those of the second, then runs once for every line on
standard input and prints the milliseconds and the peak memory of the process so far, MiB.
"""

import functools
import os
import resource
import sys
import tempfile
import time

import numpy as np

from mcis.cli.common import keep_memory

NETWORKS = ("unet", "deeplabv3", "light")
OTHERS = ("torch", "torch, our malloc", "torch.compile")
SIDES = {"inference": (*OTHERS, "onnxruntime"), "training": OTHERS}
"""The other sides of each comparison."""


def scans(batch, size):
    """Images and masks, NHWC float32."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(batch, size, size, 3)).astype(np.float32)
    return image, (rng.random((batch, size, size, 1)) > 0.9).astype(np.float32)


def our_inference(name, image, dtype):
    """Our network, jitted."""
    import jax

    from mcis.models import MODELS

    model = MODELS[name].clone(dtype=dtype)
    variables = jax.jit(model.init)(jax.random.key(0, impl="rbg"), image[:1])
    run = jax.jit(lambda variables, image: model.apply(variables, image).mask)
    image = jax.device_put(image)
    return lambda: run(variables, image).block_until_ready()


def our_training(name, image, mask, dtype):
    """A training step with Adam on our network; its state is donated."""
    import jax
    import optax

    from mcis.models import MODELS
    from mcis.ops import losses

    model = MODELS[name].clone(dtype=dtype)
    variables = jax.jit(model.init)(jax.random.key(0, impl="rbg"), image[:1])
    optimizer = optax.adam(1e-3)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(variables, moments, image, mask):
        def loss(params):
            outputs, updated = model.apply(
                variables | {"params": params},
                image,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(0)},
            )
            return losses.binary_cross_entropy(outputs.mask, mask).mean(), updated

        (value, updated), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, moments = optimizer.update(gradient, moments)
        return {"params": optax.apply_updates(variables["params"], updates), **updated}, moments, value

    image, mask = jax.device_put((image, mask))
    state = [variables, jax.jit(optimizer.init)(variables["params"])]

    def run():
        *state[:], value = step(*state, image, mask)
        value.block_until_ready()

    return run


def twin(name):
    """PyTorch's network, channels last."""
    import torch

    from tests.lanes.parity import references

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    make = {
        "unet": lambda: references.UNet(32),
        "deeplabv3": lambda: references.torchvision.models.segmentation.deeplabv3_resnet50(
            weights=None, weights_backbone=None, num_classes=1
        ),
        "light": references.Light,
    }
    return make[name]().to(memory_format=torch.channels_last)


def mask_of(found):
    """The mask logits: torchvision's networks return a dictionary."""
    return found["out"] if isinstance(found, dict) else found


def channels_last(array):
    """NHWC NumPy -> NCHW PyTorch, without a copy."""
    import torch

    return torch.from_numpy(array).permute(0, 3, 1, 2)


def their_inference(net, image, half):
    """PyTorch's network."""
    import torch

    def run():
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            mask_of(net(image))

    return run


def their_training(net, image, mask, half):
    """A step of Adam on PyTorch's network."""
    import torch

    optimizer = torch.optim.Adam(net.parameters(), 1e-3)

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = mask_of(net(image))
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(found.float(), mask).backward()
        optimizer.step()

    return run


def onnx_inference(net, image):
    """PyTorch's network in ONNX Runtime, which has its own layout."""
    import onnxruntime
    import torch

    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "net.onnx")
        torch.onnx.export(net, (image,), file, dynamo=False)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: image.contiguous().numpy()}
    return lambda: session.run(None, feed)


def make(side, name, dtype, batch, size, what):
    """A function of nothing that runs once."""
    image, mask = scans(batch, size)
    if side == "ours":
        return our_inference(name, image, dtype) if what == "inference" else our_training(name, image, mask, dtype)
    import torch

    net = twin(name).train(what == "training")
    image, half = channels_last(image), dtype == "bfloat16"
    if side == "onnxruntime":
        return onnx_inference(net, image)
    net = torch.compile(net) if side == "torch.compile" else net
    return (
        their_inference(net, image, half)
        if what == "inference"
        else their_training(net, image, channels_last(mask), half)
    )


def main():
    """Serve."""
    side, name, dtype, batch, size, what = sys.argv[1:]
    if side in ("ours", "torch, our malloc"):
        keep_memory()
    run = make(side, name, dtype, int(batch), int(size), what)

    def clocked():
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)

    print("ready", clocked() - clocked(), flush=True)  # the first run compiles
    for _ in sys.stdin:
        print(clocked(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, flush=True)


if __name__ == "__main__":
    main()
