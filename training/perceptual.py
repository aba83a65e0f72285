"""ST-LPIPS: a perceptual distance that tolerates small shifts (Ghildyal and Liu, ECCV 2022).

Written from the shapes in the published weight files and the paper's description: blur-pooled AlexNet or VGG16, unit
features, a learned weight per channel. The scores are not LPIPS: call them ST-LPIPS(Alex) and ST-LPIPS(VGG). The
weights come with the stlpips-pytorch package (BSD-2-Clause) and are unpacked by `training.prepare_bundled_data`.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcvsr_core.errors import CheckpointError, InputError

BACKBONES = ("alex", "vgg")

# Layers in order: ("conv", key, padding) | "relu" | ("max", kernel) | ("blur", key) | "tap".
# Position 2 of the AlexNet table (after slice1's blur) is where the first feature is taken.
_ALEX = (
    ("conv", "slice1.0", 2), ("blur", "slice1.1"), "relu", "tap",
    ("max", 3), ("blur", "slice2.4"), ("conv", "slice2.5", 2), "relu", "tap",
    ("max", 3), ("blur", "slice3.8"), ("conv", "slice3.9", 1), "relu", "tap",
    ("conv", "slice4.11", 1), "relu", "tap",
    ("conv", "slice5.13", 1), "relu", "tap",
)  # fmt: skip
_VGG = (
    ("conv", "slice1.0", 1), "relu", ("conv", "slice1.2", 1), "relu", "tap",
    ("max", 2), ("blur", "slice2.5"), ("conv", "slice2.6", 1), "relu", ("conv", "slice2.8", 1), "relu", "tap",
    ("max", 2), ("blur", "slice3.11"), ("conv", "slice3.12", 1), "relu", ("conv", "slice3.14", 1), "relu",
    ("conv", "slice3.16", 1), "relu", "tap",
    ("max", 2), ("blur", "slice4.19"), ("conv", "slice4.20", 1), "relu", ("conv", "slice4.22", 1), "relu",
    ("conv", "slice4.24", 1), "relu", "tap",
    ("max", 2), ("blur", "slice5.27"), ("conv", "slice5.28", 1), "relu", ("conv", "slice5.30", 1), "relu",
    ("conv", "slice5.32", 1), "relu", "tap",
)  # fmt: skip


class STLPIPS(nn.Module):
    """The distance as a frozen module.

    Args:
        backbone: "alex" or "vgg".
        weights: the file's state dict; every key must be used.

    Raises:
        CheckpointError: keys that do not fit this backbone.
    """

    def __init__(self, backbone: str, weights: dict[str, Tensor]):
        super().__init__()
        self.layers = _ALEX if backbone == "alex" else _VGG
        expected = _expected_keys(self.layers)
        if set(weights) != expected:
            raise CheckpointError(
                f"not the ST-LPIPS({backbone}) weights: missing {sorted(expected - set(weights))[:3]}, "
                f"unknown {sorted(set(weights) - expected)[:3]}"
            )
        for key, value in weights.items():
            self.register_buffer(key.replace(".", "_"), value.float())
        self.to(memory_format=torch.channels_last)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Compare [N,3,H,W] pairs in [-1, 1]; returns [N], 0 for equal, lower is closer."""
        num = a.shape[0]
        features = self._features(torch.cat([a, b]))
        total = 0
        for index, feature in enumerate(features):
            feature = feature.float()
            unit = feature / (feature.square().sum(1, keepdim=True).add(1e-20).sqrt() + 1e-10)
            difference = (unit[:num] - unit[num:]).square()
            # Not a convolution, which autocast would round to bfloat16.
            total = total + (difference * self._weight(f"lin{index}.model.1.weight")).sum(1).mean((1, 2))
        return total

    def _features(self, x: Tensor) -> list[Tensor]:
        x = (x - self._weight("scaling_layer.shift")) / self._weight("scaling_layer.scale")
        x = x.contiguous(memory_format=torch.channels_last)
        taps = []
        for layer in self.layers:
            if layer == "relu":
                x = F.relu(x)
            elif layer == "tap":
                taps.append(x)
            elif layer[0] == "max":
                x = F.max_pool2d(x, layer[1], stride=1)
            elif layer[0] == "blur":
                x = F.pad(x, (2, 2, 2, 2), mode="reflect")
                x = F.conv2d(x, self._weight(f"net.{layer[1]}.filt"), stride=2, groups=x.shape[1])
            else:
                _, key, padding = layer
                x = F.conv2d(x, self._weight(f"net.{key}.weight"), self._weight(f"net.{key}.bias"), padding=padding)
        return taps

    def _weight(self, key: str) -> Tensor:
        return getattr(self, key.replace(".", "_"))


def _expected_keys(layers: tuple) -> set[str]:
    keys = {"scaling_layer.shift", "scaling_layer.scale", *(f"lin{i}.model.1.weight" for i in range(5))}
    for layer in layers:
        if layer[0] == "conv":
            keys |= {f"net.{layer[1]}.weight", f"net.{layer[1]}.bias"}
        elif layer[0] == "blur":
            keys.add(f"net.{layer[1]}.filt")
    return keys


def load_stlpips(folder: Path | str, backbone: str) -> STLPIPS:
    """Load the distance from a prepared data folder (its `features/`).

    Raises:
        InputError: the file is not there.
    """
    path = Path(folder) / "features" / f"{backbone}_shift_tolerant.pth"
    if not path.exists():
        raise InputError(f"{path} is missing; make it with `python -m training.prepare_bundled_data`")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return STLPIPS(backbone, weights).eval().requires_grad_(False)
