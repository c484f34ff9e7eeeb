"""Networks in PyTorch, for `make parity`: those of torchvision, two written from papers, and a version of `light`."""

import functools
import re
import sys

import torch
from torch import nn


def import_torchvision():
    """torchvision with the CPU build of PyTorch: the compiled operators of its wheel are declared without code."""
    library = torch.library.Library("torchvision", "DEF")
    while True:
        for name in [k for k in sys.modules if k == "torchvision" or k.startswith("torchvision.")]:
            del sys.modules[name]
        try:
            import torchvision
            import torchvision.models.segmentation

            return torchvision, library
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if not missing:
                raise
            library.define(f"{missing.group(1)}() -> Tensor")


torchvision, _library = import_torchvision()


class UNet(nn.Module):
    """The U-Net of Buda et al. 2019, with the names of the published weights."""

    def __init__(self, features=32, channels=3, layer=None):
        """`layer` makes the named modules of a layer, by default `conv_norm_relu`."""
        super().__init__()
        self.layer = layer or self.conv_norm_relu
        widths = [features * 2**level for level in range(5)]
        for level in range(1, 5):
            before = channels if level == 1 else widths[level - 2]
            self.add_module(f"encoder{level}", self.pair(before, widths[level - 1], f"enc{level}"))
            self.add_module(f"upconv{level}", nn.ConvTranspose2d(widths[level], widths[level - 1], 2, 2))
            self.add_module(f"decoder{level}", self.pair(widths[level], widths[level - 1], f"dec{level}"))
        self.bottleneck = self.pair(widths[3], widths[4], "bottleneck")
        self.conv = nn.Conv2d(features, 1, 1)
        self.pool = nn.MaxPool2d(2, 2)

    def pair(self, before, after, name):
        """Two named layers."""
        pair = nn.Sequential()
        for i, width in ((1, before), (2, after)):
            for part, module in self.layer(width, after, name, i):
                pair.add_module(part, module)
        return pair

    @staticmethod
    def conv_norm_relu(before, after, name, i):
        """The published layer."""
        yield f"{name}conv{i}", nn.Conv2d(before, after, 3, padding=1, bias=False)
        yield f"{name}norm{i}", nn.BatchNorm2d(after)
        yield f"{name}relu{i}", nn.ReLU()

    def forward(self, x):
        """Logits; the published network ends in a sigmoid."""
        skips = []
        for level in range(1, 5):
            x = getattr(self, f"encoder{level}")(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottleneck(x)
        for level in (4, 3, 2, 1):
            x = torch.cat([getattr(self, f"upconv{level}")(x), skips[level - 1]], 1)
            x = getattr(self, f"decoder{level}")(x)
        return self.conv(x)


class SelectiveKernel(nn.Module):
    """Byra et al. 2020: two branches mixed by attention weights computed from the scan."""

    def __init__(self, before, after):
        """The attention has half the width in between."""
        super().__init__()
        self.branch1, self.branch2 = (
            nn.Sequential(
                nn.Conv2d(before, after, 3, padding=d, dilation=d, bias=False), nn.BatchNorm2d(after), nn.ReLU()
            )
            for d in (1, 2)
        )
        self.squeeze = nn.Linear(after, after // 2, bias=False)
        self.squeeze_norm = nn.BatchNorm1d(after // 2)
        self.excite = nn.Linear(after // 2, after)

    def forward(self, x):
        """A x1 + (1 - a) x2."""
        x1, x2 = self.branch1(x), self.branch2(x)
        a = self.squeeze_norm(self.squeeze((x1 + x2).mean((2, 3)))).relu()
        a = self.excite(a).sigmoid()[:, :, None, None]
        return a * x1 + (1 - a) * x2


def sk_unet(features=16):
    """The U-Net with selective kernels."""
    return UNet(features, layer=lambda before, after, name, i: [(f"{name}sk{i}", SelectiveKernel(before, after))])


def sk_names(state):
    """The state dict of `sk_unet` by our paths; its names are not published, and so unknown to the importer."""
    renamed = {}
    for name, value in state.items():
        path = re.sub(r"(encoder\d|decoder\d|bottleneck)\.\w+sk(\d)", r"\1_\2", name)
        path = re.sub(r"\.branch(\d)\.0\.", r".branch\1.conv.", path)
        path = re.sub(r"\.branch(\d)\.1\.", r".branch\1.norm.", path)
        renamed[re.sub(r"^conv\.", "mask.", path)] = value
    return renamed


gelu = functools.partial(nn.functional.gelu, approximate="tanh")


class LayerNorm(nn.LayerNorm):
    """Over the channels of (B, C, H, W)."""

    def __init__(self, channels):
        """With our epsilon."""
        super().__init__(channels, eps=1e-6)

    def forward(self, x):
        """Channels last and back."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """The block of the light network."""

    def __init__(self, channels, kernel):
        """Depthwise, normalised, expanded by 2."""
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
        self.norm = LayerNorm(channels)
        self.expand, self.project = nn.Conv2d(channels, 2 * channels, 1), nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x):
        """Residual."""
        return x + self.project(gelu(self.expand(self.norm(self.depthwise(x)))))


class SkipFusion(nn.Module):
    """The skip fusion of the light network."""

    def __init__(self, features):
        """Normalised separately, mixed, expanded by 2."""
        super().__init__()
        self.norm_below, self.norm_skip = LayerNorm(features), LayerNorm(features)
        self.depthwise_below, self.depthwise_skip = (
            nn.Conv2d(features, features, 3, padding=1, groups=features, bias=False) for _ in range(2)
        )
        self.expand, self.project = nn.Conv2d(2 * features, 2 * features, 1), nn.Conv2d(2 * features, features, 1)

    def forward(self, below, skip):
        """(B, C, H, W), (B, C, H, W) -> (B, C, H, W)."""
        below, skip = self.norm_below(below), self.norm_skip(skip)
        below, skip = below + gelu(self.depthwise_below(below)), skip + gelu(self.depthwise_skip(skip))
        return self.project(gelu(self.expand(torch.cat([below, skip], 1))))


class Light(nn.Module):
    """Our light network in PyTorch."""

    def __init__(self, features=40, widths=(1, 2, 4, 5), kernels=(5, 5, 3, 3)):
        """The same widths and kernels."""
        super().__init__()
        widths = [features * width for width in widths]
        before = [3 * 16] + [4 * width for width in widths]
        self.down = nn.ModuleList(nn.Conv2d(before[i], widths[i], 1) for i in range(4))
        self.encoder = nn.ModuleList(
            nn.Sequential(Block(widths[i], kernels[i]), Block(widths[i], kernels[i])) for i in range(4)
        )
        self.up = nn.ModuleList(nn.Conv2d(widths[i + 1], 4 * widths[i], 1) for i in range(3))
        self.fuse = nn.ModuleList(SkipFusion(widths[i]) for i in range(3))
        self.decoder = nn.ModuleList(Block(widths[i], kernels[i]) for i in range(3))
        self.norm, self.mask = LayerNorm(widths[0]), nn.Conv2d(widths[0], 16, 1)

    def forward(self, x):
        """Logits."""
        skips = []
        for i in range(4):
            x = self.encoder[i](self.down[i](nn.functional.pixel_unshuffle(x, 2 if i else 4)))
            skips.append(x)
        for i in (2, 1, 0):
            x = self.fuse[i](nn.functional.pixel_shuffle(self.up[i](x), 2), skips[i])
            x = self.decoder[i](x)
        return nn.functional.pixel_shuffle(self.mask(self.norm(x)), 4)


def light_arrays(state):
    """The state dict of `Light` as our arrays by path.

    Where pixels are folded into channels, PyTorch orders them by channel first, we by pixel first.
    """

    side = {"down": "encoder", "up": "decoder", "fuse": "decoder"}

    def path_of(name):
        name = re.sub(r"^(down|up|fuse)\.(\d)", lambda m: f"{side[m[1]]}{int(m[2]) + 1}_{m[1]}", name)
        name = re.sub(r"^encoder\.(\d)\.(\d)", lambda m: f"encoder{int(m[1]) + 1}_block{int(m[2]) + 1}", name)
        name = re.sub(r"^decoder\.(\d)", lambda m: f"decoder{int(m[1]) + 1}_block", name)
        return "params/" + re.sub(r"^norm\.", "mask_norm.", name).replace(".", "/")

    found = {}
    for name, value in state.items():
        path, value = path_of(name), value.numpy()
        if value.ndim == 4 and "depthwise" in path:
            value = value[:, 0].transpose(1, 2, 0)
        elif value.ndim == 4:
            value = value[:, :, 0, 0].T
        if path.endswith("_down/weight"):
            pixels = 16 if "encoder1" in path else 4
            value = value.reshape(-1, pixels, value.shape[-1]).swapaxes(0, 1).reshape(value.shape)
        elif "_up/" in path:
            value = value.reshape(*value.shape[:-1], -1, 4).swapaxes(-1, -2).reshape(value.shape)
        found[path.replace("weight", "scale" if value.ndim == 1 else "kernel")] = value
    return found


def efficientnet_lite0(classes=1000):
    """EfficientNet-Lite0 of efficientnet-lite-pytorch, without layers that draw other numbers than JAX."""
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name(
        "efficientnet-lite0", num_classes=classes, batch_norm_momentum=0.9, dropout_rate=0.0, drop_connect_rate=0.0
    )
