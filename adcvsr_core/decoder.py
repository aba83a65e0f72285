"""The half VAE decoder: features at half the LR size to frames at four times it.

Works on single frames [N,C,h,w] and knows nothing about time or the UNet. Its middle block is the one that
AdcSR trains with the UNet, not the one in the pretrained decoder file. Source: AdcSR (arXiv 2411.13383).
"""

from torch import Tensor, nn

from .banding import run_head, run_levels
from .config import WHOLE_FRAMES, StepConfig, StudentConfig
from .fused import norm_silu
from .layers import FrameAttention, ResBlock, Upsample, make_norm

_EPS = 1e-6


class DecoderMid(nn.Module):
    """Residual block, attention (where the config has it), residual block."""

    def __init__(self, config: StudentConfig):
        super().__init__()
        width, norm, groups = config.decoder_channels[-1], config.norm, config.norm_groups
        self.resnet1 = ResBlock(width, width, norm, groups, _EPS)
        self.attention = FrameAttention(width, norm, groups) if config.decoder_attention else None
        self.resnet2 = ResBlock(width, width, norm, groups, _EPS)

    def forward(self, x: Tensor, window: int = 0) -> Tensor:
        h = self.resnet1(x)
        return self.resnet2(h if self.attention is None else self.attention(h, window))


class DecoderLevel(nn.Module):
    """Residual blocks, then twice the size (but at the last level)."""

    def __init__(self, config: StudentConfig, width_in: int, width: int, upsample: bool):
        super().__init__()
        widths_in = [width_in] + [width] * config.decoder_layers
        self.resnets = nn.Sequential(*(ResBlock(w, width, config.norm, config.norm_groups, _EPS) for w in widths_in))
        self.upsample = Upsample(width) if upsample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(self.resnets(x))


class Decoder(nn.Module):
    """Map features [N,decoder_channels[-1],h,w] to pictures [N,3,8h,8w] in about [-1, 1], not clamped."""

    def __init__(self, config: StudentConfig):
        super().__init__()
        self.mid = DecoderMid(config)
        widths = (config.decoder_channels[-1], *reversed(config.decoder_channels))
        self.up = nn.Sequential(*(DecoderLevel(config, widths[i], widths[i + 1], upsample=i < 3) for i in range(4)))
        self.norm_out = make_norm(config.norm, config.norm_groups, widths[-1], _EPS)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, features: Tensor, how: StepConfig = WHOLE_FRAMES) -> Tensor:
        h = self.mid(features, how.attention_window // 2)
        if how.band:
            return run_head(self.norm_out, self.conv_out, run_levels(self.up, h, how.band), how.band)
        return self.conv_out(norm_silu(self.norm_out, self.up(h), own=True))
