"""Every row of MODELS, four features wide: variables, scans and answers that tests of networks share.

A new network with a mask needs an entry in SKIPS or COARSE.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mcis.checkpoints.checkpoint import flatten, unflatten
from mcis.models import MODELS

SKIPS = {  # kernels that read each skip connection, finest first, and the axis of their input channels. Of these the
    # first half comes from below, the second is the skip
    "light": ([[f"params/decoder{level}_fuse/expand/kernel"] for level in (1, 2, 3)], 0),
    **dict.fromkeys(
        ("unet", "unet_attention", "unet_folded"),
        ([[f"params/decoder{level}_1/layer/conv/kernel"] for level in (1, 2, 3, 4)], 2),
    ),
    "sk_unet": (
        [[f"params/decoder{level}_1/branch{branch}/conv/kernel" for branch in (1, 2)] for level in (1, 2, 3, 4)],
        2,
    ),
}

COARSE = {"cnn_attention", "deeplabv3", "deeplabv3_resnet18"}
"""Networks whose mask has no decoder, and so no skips."""

BATCH, SIDE, CLASSES = 3, 32, 3

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""For what is run once: compiling is what costs here. A second compiler is also less kind to a careless gradient."""


def tiny(name, **fields):
    return MODELS[name].clone(**{"features": 4, "classes": CLASSES} | fields)


@functools.cache
def fresh(name):
    """Tiny variables as the network initialises them, except that kernels come from NumPy, which has no compiler."""
    model = tiny(name)

    @quick_jit
    def rest(key):
        flat = flatten(model.init(key, jnp.zeros((1, SIDE, SIDE, 3))))
        return {path: value for path, value in flat.items() if not path.endswith("kernel")}

    rng = np.random.default_rng(0)
    found = jax.device_get(rest(jax.random.key(0)))
    for path, leaf in flatten(shapes_of(model)).items():
        if path not in found:
            inputs = np.prod(leaf.shape[: 2 if "depthwise" in path else -1])
            found[path] = rng.normal(0, np.sqrt(2 / inputs), leaf.shape).astype(np.float32)
    return unflatten(found)


@functools.cache
def variables_of(name):
    """Tiny variables in which nothing is zero or one: every bias and every running statistic counts."""
    rng = np.random.default_rng(1)
    flat = flatten(fresh(name))
    for path, value in flat.items():
        if path.endswith("var"):
            flat[path] = value * rng.uniform(0.5, 2, value.shape).astype(np.float32)
        elif not path.endswith("kernel"):
            flat[path] = value + 0.2 * rng.normal(size=value.shape).astype(np.float32)
    return unflatten(flat)


def shapes_of(model, *shape):
    image = jax.ShapeDtypeStruct(shape or (1, 64, 64, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)


@functools.cache
def compiled(name):
    return jax.jit(tiny(name).apply)


@functools.cache
def images(side=SIDE, seed=0):
    return np.random.default_rng(seed).normal(size=(BATCH, side, side, 3)).astype(np.float32)


@functools.cache
def answers(name):
    """Outputs of the tiny network for `images()`, compiled, in evaluation mode."""
    return jax.device_get(compiled(name)(variables_of(name), images()))


def parts(outputs):
    """The heads that there are, by name."""
    heads = {"mask": outputs.mask, "label": outputs.label, "features": outputs.features}
    return {head: np.asarray(value) for head, value in heads.items() if value is not None}


def replace(variables, path, change):
    """Variables with one array put through `change`."""
    flat = flatten(variables)
    return unflatten(flat | {path: change(np.array(flat[path]))})
