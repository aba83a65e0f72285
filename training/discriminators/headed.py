"""The discriminator of AdcVSR: a trainable first convolution, a frozen backbone, a trainable tail with its heads.

Knows nothing about which backbone it is. Source: AdcVSR (arXiv 2603.00458). The paper gives the tail's three layers,
"alternating 2D and 1D", its 256 channels and the split of 192 and 64; kernels of 3, LeakyReLU and what stands at the
ends of a clip are ours.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcvsr_core.layers import per_frame
from adcvsr_core.streaming import TemporalConv

from ..config import AdversaryConfig
from .frozen import freeze
from .labels import Verdict


class Backbone(Protocol):
    """A network from clips [B,T,C,H,W] to features [B,T,channels,h,w].

    Attributes:
        channels: width of its features.
    """

    channels: int

    def __call__(self, clip: Tensor) -> Tensor: ...


class Tail(nn.Module):
    """Three layers over space, time and space, then one head for everything or one each for detail and consistency.

    Args:
        channels_in: the backbone's width.
        config: widths and heads.
    """

    def __init__(self, channels_in: int, config: AdversaryConfig):
        super().__init__()
        width, dual = config.channels, config.heads == "dual"
        self.space1 = nn.Conv2d(channels_in, width, 3, padding=1)
        self.time = TemporalConv(width, width, 3)
        self.space2 = nn.Conv2d(width, width, 3, padding=1)
        self.split = [config.detail_channels, width - config.detail_channels] if dual else [width, 0]
        self.detail = nn.Conv2d(self.split[0], 1, 1)
        self.consistency = nn.Conv2d(self.split[1], 1, 1) if dual else None

    def forward(self, features: Tensor) -> Verdict:
        """Map [B,T,C,h,w] to logits of the same height and width."""
        h = F.leaky_relu(per_frame(self.space1, features), 0.2)
        # The outer frames stand beside themselves: a still clip gets in every frame what one frame alone gets.
        h = F.leaky_relu(self.time(torch.cat([h[:, :1], h, h[:, -1:]], dim=1)), 0.2)
        h = F.leaky_relu(per_frame(self.space2, h), 0.2)
        detail, consistency = h.split(self.split, dim=2)
        if self.consistency is None:
            return Verdict(per_frame(self.detail, detail).float(), None)
        return Verdict(per_frame(self.detail, detail).float(), per_frame(self.consistency, consistency).float())


class HeadedDiscriminator(nn.Module):
    """Judge clips [B,T,C,H,W].

    Args:
        conv_in: the trainable first layer, from the clip's channels to the backbone's input.
        backbone: a `Backbone`; frozen here.
        config: of the tail.
    """

    def __init__(self, conv_in: nn.Conv2d, backbone: nn.Module, config: AdversaryConfig):
        super().__init__()
        self.conv_in = conv_in
        self.backbone = freeze(backbone)
        self.tail = Tail(backbone.channels, config)

    def forward(self, clip: Tensor) -> Verdict:
        return self.tail(self.backbone(per_frame(self.conv_in, clip)))

    def train(self, mode: bool = True) -> "HeadedDiscriminator":
        """Set the mode of what trains; the backbone stays in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self
