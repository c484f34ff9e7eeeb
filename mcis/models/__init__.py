"""The networks: one file each, one row each in MODELS. A row is a Linen module; `clone` changes its fields.

```python
model = MODELS["unet"].clone(features=16)
variables = model.init(jax.random.key(0), jnp.zeros((1, 256, 256, 3)))
outputs = model.apply(variables, image)                         # Outputs: mask, label, features
```
"""

from mcis.models.cnn import CNN
from mcis.models.deeplab import DeepLabV3
from mcis.models.efficientnet import EfficientNet
from mcis.models.light_unet import Light
from mcis.models.network import Network, Outputs
from mcis.models.resnet import ResNet
from mcis.models.sk_unet import SKUNet
from mcis.models.unet import FoldedUNet, UNet
from mcis.models.unet_efficientnet import EfficientUNet
from mcis.names import no_such

__all__ = ["MODELS", "Outputs"]

MODELS: dict[str, Network] = {
    "cnn": CNN(),
    "cnn_attention": CNN(attention=True),
    "resnet18": ResNet(depth=18),
    "resnet50": ResNet(depth=50),
    "efficientnet_lite0": EfficientNet(texture=True),
    "light": Light(),
    "unet": UNet(),
    "unet_attention": UNet(attention=True),
    "unet_folded": FoldedUNet(attention=True),
    "unet_efficientnet_lite0": EfficientUNet(),
    "sk_unet": SKUNet(),
    "deeplabv3": DeepLabV3(),
    "deeplabv3_resnet18": DeepLabV3(depth=18, output_stride=16),
}


def model_named(name: str) -> Network:
    """The network called `name`; ValueError lists the names there are."""
    if name not in MODELS:
        raise ValueError(no_such("model", name, MODELS))
    return MODELS[name]
