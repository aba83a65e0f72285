"""Feature spaces: real frames to what a student's decoder reads, so that features can be compared, not only frames.

`StableDiffusionFeatures` for students from AdcSR's family, `LearnedFeatures` for small students, which have no VAE.
Knows nothing about discriminators. Sources: AdcSR (arXiv 2411.13383), AdcVSR (arXiv 2603.00458); the learned one is
ours.
"""

from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcvsr_core.config import PRESETS, StudentConfig
from adcvsr_core.convert import key_table
from adcvsr_core.decoder import DecoderMid
from adcvsr_core.errors import CheckpointError, ConfigError
from adcvsr_core.layers import Downsample, ResBlock, make_norm, per_frame
from adcvsr_core.pickles import TorchArchive
from adcvsr_core.student import Student

from .discriminators.frozen import freeze, held
from .generator import Generator
from .half_decoder import load_vae


class FeatureSpace(Protocol):
    """Frames to features that are comparable with what `student.decoder.mid` returns."""

    def encode(self, x: Tensor, base: Tensor) -> Tensor:
        """Map frames [B,T,3,H,W] in [-1, 1] to [B,T,C,H/8,W/8].

        Args:
            x: the frames.
            base: [B,T,3,H,W], what the student would have added its output to, see `base_of`.
        """


class StableDiffusionFeatures(nn.Module):
    """The mean of Stable Diffusion's VAE, then the first layers of AdcSR's half decoder. Frozen; ignores the base.

    Args:
        stable_diffusion: folder of SD 2.1 in diffusers' layout; its vae/ is read.
        half_decoder: AdcSR's halfDecoder.ckpt.

    Raises:
        ConfigError: one of the two is not set.
        InputError: the folder holds no vae/, or diffusers is missing.
        CheckpointError: halfDecoder.ckpt is something else or broken.
    """

    def __init__(self, stable_diffusion: str, half_decoder: str):
        super().__init__()
        if not stable_diffusion or not half_decoder:
            raise ConfigError(
                "Stable Diffusion's features need both stable_diffusion=FOLDER and half_decoder=FILE (AdcSR's "
                f'halfDecoder.ckpt); found "{stable_diffusion}" and "{half_decoder}"'
            )
        vae = load_vae(stable_diffusion)
        self.encoder, self.quant_conv, self.post_quant_conv = vae.encoder, vae.quant_conv, vae.post_quant_conv
        self.conv_in, self.mid = _read_half_decoder(Path(half_decoder))
        freeze(self)

    def train(self, mode: bool = True) -> "StableDiffusionFeatures":
        """Do nothing: there is nothing to train."""
        return self

    @torch.no_grad()
    def encode(self, x: Tensor, base: Tensor) -> Tensor:
        """See `FeatureSpace`. One frame at a time, because the encoder is the largest thing in memory."""
        return torch.stack([self._encode(frames) for frames in x.unbind(1)], dim=1)

    def _encode(self, frames: Tensor) -> Tensor:
        # No scaling factor: AdcSR divides by it again before the decoder.
        mean, _ = self.quant_conv(self.encoder(frames)).chunk(2, dim=1)
        return self.mid(self.conv_in(self.post_quant_conv(mean)))


class LearnedFeatures(nn.Module):
    """A small encoder that mirrors a student's decoder; a stage of task "features" trains it.

    Args:
        config: of the student.
    """

    def __init__(self, config: StudentConfig):
        super().__init__()
        self.scale = config.output_scale
        channels, norm, groups = config.decoder_channels, config.norm, config.norm_groups
        layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 3, padding=1)]
        for level, width in enumerate(channels):
            widths_in = [channels[max(level - 1, 0)]] + [width] * config.decoder_layers
            layers += [ResBlock(width_in, width, norm, groups, 1e-6) for width_in in widths_in]
            if level < 3:
                layers.append(Downsample(width))
        layers += [make_norm(norm, groups, channels[-1], 1e-6), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], channels[-1], 3, padding=1))
        self.to(memory_format=torch.channels_last)

    def encode(self, x: Tensor, base: Tensor) -> Tensor:
        """See `FeatureSpace`."""
        return per_frame(self.layers, (x - base) / self.scale)


def features_loss(space: FeatureSpace, student: Student, hr: Tensor, lr: Tensor) -> Tensor:
    """Return how badly a learned space agrees with a student's decoder; gradients reach the space alone.

    The decoder shall make of the features of real frames these frames, and the features of what the student made
    shall be those it was made from.

    Args:
        space: the one to train.
        student: as it is.
        hr: [B,T,3,4h,4w] in [-1, 1].
        lr: [B,T,3,h,w] in [-1, 1].
    """
    with torch.no_grad():
        made = Generator(student)(lr, 1.0)
        base = base_of(lr, student)
    with held(student):
        missed = base + decode(student, space.encode(hr, base)) - hr
    disagreement = space.encode(made.sr, base) - made.features
    return missed.abs().mean() / student.config.output_scale + disagreement.abs().mean()


def base_of(lr: Tensor, student: Student) -> Tensor:
    """Return what the student adds its output to, [B,T,3,4h,4w]: the bicubic upscale, or zeros."""
    frames = lr.flatten(0, 1).float()
    if student.config.residual == "bicubic":
        base = F.interpolate(frames, scale_factor=student.scale, mode="bicubic", align_corners=False)
    else:
        base = frames.new_zeros((*frames.shape[:2], *(student.scale * size for size in frames.shape[2:])))
    return base.unflatten(0, lr.shape[:2])


def decode(student: Student, features: Tensor) -> Tensor:
    """Run the decoder's levels on features [B,T,C,h/2,w/2]; returns what is added to the base, [B,T,3,4h,4w]."""
    decoder = student.decoder
    out = per_frame(lambda h: decoder.conv_out(F.silu(decoder.norm_out(decoder.up(h)))), features)
    return out.float() * student.config.output_scale


def _read_half_decoder(path: Path) -> tuple[nn.Conv2d, DecoderMid]:
    with TorchArchive(path) as archive:
        theirs = archive.state_dict(containing="decoder.")
        names = {key: ours for key, ours in key_table(PRESETS["adcsr"]).items() if key.startswith("decoder.mid.")}
        wanted = {"decoder.conv_in.weight", "decoder.conv_in.bias"}.union(*names.values())
        if missing := sorted(wanted - theirs.keys()):
            raise CheckpointError(f"{path} is not AdcSR's halfDecoder.ckpt: {missing[0]} is missing")
        weight = theirs["decoder.conv_in.weight"].read().float()
        width, channels_in = weight.shape[:2]
        conv_in = nn.Conv2d(channels_in, width, 3, padding=1)
        mid = DecoderMid(StudentConfig(decoder_channels=(width,) * 4))
        state = {
            key.removeprefix("decoder.mid."): torch.cat([theirs[name].read().float() for name in group])
            for key, group in names.items()
        }
        try:
            conv_in.load_state_dict({"weight": weight, "bias": theirs["decoder.conv_in.bias"].read().float()})
            mid.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(f"{path} is not AdcSR's halfDecoder.ckpt: {error}") from error
    return conv_in, mid
