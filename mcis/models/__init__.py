"""The networks: one file each, one row each in MODELS. A row is a Linen module; `clone` changes its fields.

model = MODELS["unet"].clone(features=16)
variables = model.init(jax.random.key(0), jnp.zeros((1, 256, 256, 3)))
outputs = model.apply(variables, image)                         # Outputs: mask, label, features
"""

import flax.linen as nn

from mcis.models.cnn import CNN
from mcis.models.light import Light
from mcis.models.outputs import Outputs
from mcis.models.unet import UNet

__all__ = ["CNN", "MODELS", "Light", "Outputs", "UNet", "model_named"]

MODELS: dict[str, nn.Module] = {
    "cnn": CNN(),
    "cnn_attention": CNN(attention=True),
    "light": Light(),
    "unet": UNet(),
}


def model_named(name: str) -> nn.Module:
    """The row of MODELS called `name`; ValueError lists the names there are."""
    if name not in MODELS:
        raise ValueError(f"no model {name!r}; there are: {', '.join(MODELS)}")
    return MODELS[name]
