"""The discriminator of AdcVSR: a trainable first convolution, a frozen backbone, a trainable tail with its heads.

Knows nothing about which backbone it is. Source: AdcVSR (arXiv 2603.00458), which gives the tail's three layers,
"alternating 2D and 1D", its 256 channels and their split into 192 for detail and 64 for consistency. Ours are the
kernels of 3, LeakyReLU, the norms, and where the split begins: behind the first layer, so that only the consistency
channels see other frames. With a shared second layer the labels would teach the detail head to look for motion: the
student's clips move, as real video does, and are called fake; still and stacked ones do not and are called real.
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
    """Layers over space, time and space, then a head each for detail and consistency, or one for everything.

    The detail head judges every frame alone, unless the backbone has looked at others. A single head sees time.

    Args:
        channels_in: the backbone's width.
        config: widths and heads.
    """

    def __init__(self, channels_in: int, config: AdversaryConfig):
        super().__init__()
        dual = config.heads == "dual"
        num_detail = config.detail_channels if dual else 0
        self.split = [num_detail, config.channels - num_detail]
        self.space = nn.Conv2d(channels_in, config.channels, 3, padding=1)
        self.time = TemporalConv(self.split[1], self.split[1], 3)
        if dual:
            _start_with_changes(self.time)
        self.detail = _head(num_detail) if dual else None
        self.last = _head(self.split[1])

    def forward(self, features: Tensor) -> Verdict:
        """Map [B,T,C,h,w] to logits of the same height and width."""
        h = F.leaky_relu(per_frame(self.space, _unit(features, 1e-6)), 0.2)
        frames, clip = h.split(self.split, dim=2)
        # The outer frames stand beside themselves: a still clip gets in every frame what one frame alone gets.
        clip = self.time(torch.cat([clip[:, :1], clip, clip[:, -1:]], dim=1))
        last = per_frame(self.last, F.leaky_relu(_unit(clip, 1e-3), 0.2)).float()
        return Verdict(last, None) if self.detail is None else Verdict(per_frame(self.detail, frames).float(), last)


def _head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(channels, 1, 1))


def _unit(h: Tensor, eps: float) -> Tensor:
    """Scale every pixel of [B,T,C,h,w] to a mean square of 1 over its channels, or less where it is below `eps`.

    Frozen backbones differ by a factor of a hundred in how loud they are, and slow motion must look like fast motion:
    what gives a wrong order away is not how much changes, but that frames apart differ less than neighbours do.
    """
    h = h.float()
    return h * torch.rsqrt(h.square().mean(2, keepdim=True) + eps)


@torch.no_grad()
def _start_with_changes(time: TemporalConv) -> None:
    """Let every channel begin as one mixture's change: since the frame before, until the next, or between these two.

    Neighbouring frames are so alike that random kernels see little but what all three have in common.
    """
    changes = torch.tensor([[-1.0, 1, 0], [0, -1, 1], [-1, 0, 1]])
    mixtures = torch.randn(time.out_channels, time.in_channels, 1) / time.in_channels**0.5
    time.weight.copy_(mixtures * changes[torch.arange(time.out_channels) % 3, None])
    time.bias.zero_()


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
