"""The frozen backbone that looks at features: the student's own UNet, as it is when the stage begins.

It sees whole clips, with its temporal blocks. Source: AdcVSR (arXiv 2603.00458).
"""

import copy

import torch
from torch import Tensor, nn

from adcvsr_core.streaming import Binding, Push, StreamState
from adcvsr_core.student import Student


class StudentBackbone(nn.Module):
    """A copy of a student's UNet between its first and its last convolution.

    Args:
        student: left as it is.
    """

    def __init__(self, student: Student):
        super().__init__()
        self.unet = copy.deepcopy(student.unet)
        self.unet.conv_in = self.unet.conv_out = nn.Identity()
        self.unet.temporal_in = None  # features have no frame before them
        self.channels = student.config.channels[0]

    def forward(self, clip: Tensor) -> Tensor:
        batch, num_frames, _, height, width = clip.shape
        binding = Binding(batch, height, width, clip.dtype, strength=1.0)
        return self.unet(clip, Push(StreamState(), binding, num_frames, last=True, check_finite=False))


def first_layer(student: Student) -> nn.Conv2d:
    """Return a trainable convolution from the student's features to what its UNet expects behind its own first one."""
    return widened(student.unet.conv_in, student.config.decoder_channels[-1])


def widened(conv: nn.Conv2d, channels_in: int) -> nn.Conv2d:
    """Return a 3x3 convolution made of another with fewer inputs: its weights repeated, and scaled to the same sum."""
    result = nn.Conv2d(channels_in, conv.out_channels, 3, padding=1)
    index = torch.arange(channels_in) % conv.in_channels
    result.weight.data.copy_(conv.weight.data[:, index] * (conv.in_channels / channels_in))
    result.bias.data.copy_(conv.bias.data)
    return result
