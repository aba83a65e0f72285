"""Perceptual distances by name: ST-LPIPS from its weight files, DISTS and LPIPS from torchmetrics.

ST-LPIPS (Ghildyal and Liu, ECCV 2022) tolerates small shifts. It is written here from the shapes in the published
weight files and the paper's description: blur-pooled AlexNet or VGG16, unit features, a learned weight per channel.
Its scores are not LPIPS: call them ST-LPIPS(Alex) and ST-LPIPS(VGG). The weights come with the stlpips-pytorch package
(BSD-2-Clause) and are unpacked by `training.prepare_bundled_data`. DISTS and LPIPS need torchmetrics, torchvision and
torchvision's ImageNet weights. Every distance maps [N,3,H,W] pairs in [-1, 1] to [N], is frozen, and knows nothing
about clips.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcvsr_core.errors import CheckpointError, ConfigError, InputError

from .config import PERCEPTUALS
from .packages import require_cached, unavailable

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

    Attributes:
        channels: widths of the five features that `features` returns.

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
        self.channels = tuple(self._weight(f"lin{index}.model.1.weight").shape[1] for index in range(5))
        self.to(memory_format=torch.channels_last)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Compare [N,3,H,W] pairs in [-1, 1]; returns [N], 0 for equal, lower is closer."""
        num = a.shape[0]
        features = self.features(torch.cat([a, b]))
        total = 0
        for index, feature in enumerate(features):
            feature = feature.float()
            unit = feature / (feature.square().sum(1, keepdim=True).add(1e-20).sqrt() + 1e-10)
            difference = (unit[:num] - unit[num:]).square()
            # Not a convolution, which autocast would round to bfloat16.
            total = total + (difference * self._weight(f"lin{index}.model.1.weight")).sum(1).mean((1, 2))
        return total

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the backbone's five features of [N,3,H,W] in [-1, 1], finest first, with gradients to x.

        They are rectified and [N,C,h,w], C as in `channels`; h and w are about H and W over 2, 4, 8, 8, 8 ("alex") or
        1, 2, 4, 8, 16 ("vgg").
        """
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


def make_distance(name: str, data: Path | str) -> nn.Module:
    """Make a distance: [N,3,H,W] pairs in [-1, 1] -> [N], 0 for equal.

    Args:
        name: one of `training.config.PERCEPTUALS`.
        data: the prepared data folder, which holds the weights of the "st-lpips" ones.

    Raises:
        ConfigError: an unknown name, a missing package, or backbone weights that are not in torch's cache.
        InputError: no ST-LPIPS weights in the folder.
    """
    if name not in PERCEPTUALS:
        raise ConfigError(f"unknown perceptual distance {name!r}; expected one of {', '.join(PERCEPTUALS)}")
    if name.startswith("st-lpips-"):
        return load_stlpips(data, name.removeprefix("st-lpips-"))
    return DISTS() if name == "dists" else LPIPS(name.removeprefix("lpips-"))


class DISTS(nn.Module):
    """DISTS (Ding et al., 2020) from torchmetrics, which brings its weights; about 0 to 1.

    Raises:
        ConfigError: see `make_distance`.
    """

    def __init__(self) -> None:
        super().__init__()
        _require_backbone("vgg", "DISTS")
        from torchmetrics.functional.image.dists import DISTSNetwork

        self.network = DISTSNetwork().eval().requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Compare [N,3,H,W] pairs in [-1, 1]; returns [N]."""
        with torch.autocast(a.device.type, enabled=False):  # its covariances cancel in bfloat16
            score = self.network(a.float() * 0.5 + 0.5, b.float() * 0.5 + 0.5, require_grad=True)
        return score.reshape(-1)


class LPIPS(nn.Module):
    """LPIPS 0.1 (Zhang et al., 2018) from torchmetrics, which brings its heads.

    Args:
        backbone: "alex" or "vgg".

    Raises:
        ConfigError: see `make_distance`.
    """

    def __init__(self, backbone: str) -> None:
        super().__init__()
        _require_backbone(backbone, f"LPIPS({backbone})")
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        self.network = LearnedPerceptualImagePatchSimilarity(net_type=backbone).net.requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Compare [N,3,H,W] pairs in [-1, 1]; returns [N]."""
        with torch.autocast(a.device.type, enabled=False):
            return self.network(a.float(), b.float()).reshape(-1)


def _require_backbone(backbone: str, wanted: str) -> None:
    """Refuse what torchmetrics would otherwise download while it is built."""
    instead = 'choose "st-lpips-alex" or "st-lpips-vgg" (offline)'
    try:
        import torchmetrics  # noqa: F401 - only to see whether it loads
    except (ImportError, RuntimeError) as error:
        raise unavailable("torchmetrics", wanted, instead, error) from error
    try:
        from torchvision.models import AlexNet_Weights, VGG16_Weights
    except (ImportError, RuntimeError) as error:
        raise unavailable("torchvision", wanted, instead, error) from error
    weights = AlexNet_Weights.DEFAULT if backbone == "alex" else VGG16_Weights.DEFAULT
    require_cached(weights.url, wanted, instead)
