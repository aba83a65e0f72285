"""Frozen backbones that look at frames in [-1, 1], each frame alone, and keep a spatial map.

"convnext" is OpenCLIP's, as in the paper, and downloads its weights once; the two others work offline.
Sources: AdcVSR (arXiv 2603.00458), ConvNeXt (arXiv 2201.03545), ST-LPIPS (Ghildyal and Liu, ECCV 2022).
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from adcvsr_core.errors import ConfigError, InputError
from adcvsr_core.layers import per_frame

from ..perceptual import load_stlpips

# The paper says "ConvNeXt, OpenCLIP's" and no more: the base size, LAION-2B (OpenCLIP's convnext_base_w, Apache-2.0).
CONVNEXT = "convnext_base.clip_laion2b_augreg"
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Of the five feature maps of the offline backbones the one at a quarter of the frame's size: fine enough for slow
# motion and for sharpness.
_TAPS = {"vgg": 2, "alex": 1}
_OFFLINE = 'without it choose an offline one: --set stage.adversary.pixel_backbone="st-vgg"'


class ConvNeXt(nn.Module):
    """OpenCLIP's image tower up to its last feature map, a 32nd of the frame's size.

    Raises:
        ConfigError: timm is missing or broken.
        InputError: the weights are neither cached nor can they be downloaded.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            import timm
        except (ImportError, RuntimeError) as error:  # a torchvision of another build raises RuntimeError
            raise ConfigError(
                'the discriminator backbone "convnext" needs timm (open_clip brings it too): pip install timm '
                f"torchvision; {_OFFLINE} ({error})"
            ) from error
        try:
            self.trunk = timm.create_model(CONVNEXT, pretrained=True, features_only=True, out_indices=(3,))
        except OSError as error:
            raise InputError(f"the weights of {CONVNEXT} cannot be had; {_OFFLINE} ({error})") from error
        self.channels = self.trunk.feature_info.channels()[-1]
        self.register_buffer("mean", torch.tensor(_CLIP_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(_CLIP_STD)[:, None, None])

    def forward(self, clip: Tensor) -> Tensor:
        return per_frame(lambda frames: self.trunk(frames)[-1], ((clip + 1) / 2 - self.mean) / self.std)


class ShiftTolerant(nn.Module):
    """The blur-pooled VGG16 or AlexNet of ST-LPIPS, up to a feature map of a quarter of the frame's size.

    Args:
        name: "vgg" or "alex".
        features: folder of its weights, `features/` in a prepared data folder.
    """

    def __init__(self, name: str, features: Path):
        super().__init__()
        self.network = load_stlpips(features.parent, name)
        self.network.layers = _up_to(self.network.layers, _TAPS[name])
        self.channels = self.network.channels[_TAPS[name]]

    def forward(self, clip: Tensor) -> Tensor:
        return per_frame(lambda frames: self.network.features(frames)[-1], clip)


def make_pixel_backbone(name: str, features: Path) -> nn.Module:
    """Return "convnext", "st-vgg" or "st-alex"."""
    return ConvNeXt() if name == "convnext" else ShiftTolerant(name.removeprefix("st-"), features)


def identity_layer() -> nn.Conv2d:
    """Return a trainable 3x3 convolution that passes frames on unchanged as yet."""
    conv = nn.Conv2d(3, 3, 3, padding=1)
    nn.init.dirac_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


def _up_to(layers: tuple, tap: int) -> tuple:
    taps = [index for index, layer in enumerate(layers) if layer == "tap"]
    return layers[: taps[tap] + 1]
