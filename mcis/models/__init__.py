"""The networks: one file each, one row each in MODELS. A row is a Linen module; `clone` changes its fields.

Every network has the fields features, classes, dtype and axis_name and the class attributes `stride`, by which H and W
must be divisible, and `segments`, whether its mask is fine enough to outline a lesion.

```python
model = MODELS["unet"].clone(features=16)
variables = model.init(jax.random.key(0), jnp.zeros((1, 256, 256, 3)))
outputs = model.apply(variables, image)                         # Outputs: mask, label, features
```
"""

import flax.linen as nn

from mcis.models.cnn import CNN
from mcis.models.deeplab import DeepLabV3
from mcis.models.light_unet import Light
from mcis.models.outputs import Outputs
from mcis.models.resnet import ResNet
from mcis.models.sk_unet import SKUNet
from mcis.models.unet import FoldedUNet, UNet

__all__ = ["MODELS", "Outputs"]

MODELS: dict[str, nn.Module] = {
    "cnn": CNN(),
    "cnn_attention": CNN(attention=True),
    "resnet18": ResNet(depth=18),
    "resnet50": ResNet(depth=50),
    "light": Light(),
    "unet": UNet(),
    "unet_attention": UNet(attention=True),
    "unet_folded": FoldedUNet(attention=True),
    "sk_unet": SKUNet(),
    "deeplabv3": DeepLabV3(),
    "deeplabv3_resnet18": DeepLabV3(depth=18, output_stride=16),
}


def model_named(name: str) -> nn.Module:
    """The row of MODELS called `name`; ValueError lists the names there are."""
    if name not in MODELS:
        raise ValueError(f"no model {name!r}; there are: {', '.join(MODELS)}")
    return MODELS[name]
