"""Teachers of the true shapes with random weights, made in place: no files are written, and no weights needed.

They compute what `training.teachers` computes, in the same methods. Sources of the shapes: the configurations of
CogVideoX1.5-5B (see `training.teachers.random_dove`) and of Stable Diffusion 2.1 base, by which OSEDiff goes.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from training.teachers import random_dove
from training.teachers.dove import DoveTeacher
from training.teachers.one_step import OSEDIFF
from training.teachers.osediff import OSEDiffTeacher
from training.teachers.parts import load_diffusers

_UNET = {
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),  # which diffusers takes as numbers of heads
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
_TINY_UNET = {
    "block_out_channels": (8, 16, 16, 16),
    "attention_head_dim": (1, 2, 2, 2),
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "use_linear_projection": True,
}
_VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
_TINY_VAE = {"block_out_channels": (4, 4, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
_VAE_BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
_TOKENS = 77  # of CLIP's texts
_NOISE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class RandomDove(DoveTeacher):
    """DOVE's computation, its VAE untiled: the fastest way where memory allows it.

    Args:
        device: where to make the weights and to compute; "meta" = nothing is computed, only counted.
        dtype: of weights and activations.
        tiny: 101 thousand parameters instead of 5.8 billion.

    Raises:
        ConfigError: diffusers is missing.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, *, tiny: bool):
        self.device, self.dtype, self.seed = device, dtype, 0
        shapes = (random_dove.TINY_TRANSFORMER, random_dove.TINY_VAE) if tiny else None
        transformer, vae = shapes or (random_dove.TRANSFORMER, random_dove.VAE)
        with _made(device, dtype):
            self.transformer = _frozen(random_dove.build_transformer(transformer))
            self.vae = _frozen(random_dove.build_vae(vae))
            self.prompt = torch.zeros(1, transformer["max_text_seq_length"], transformer["text_embed_dim"])
        self.scheduler = load_diffusers().CogVideoXDPMScheduler(**random_dove.SCHEDULER)

    @property
    def networks(self) -> list[nn.Module]:
        return [self.transformer, self.vae]

    def compile(self) -> None:
        """Let torch compile what it spends its time in."""
        for network in (self.transformer, self.vae.encoder, self.vae.decoder):
            network.compile()


class RandomOSEDiff(OSEDiffTeacher):
    """OSEDiff's computation with merged weights, its text one embedding.

    Args:
        device, dtype, tiny: see `RandomDove`.

    Raises:
        ConfigError: diffusers is missing.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, *, tiny: bool):
        self.device, self.dtype, self.form = device, dtype, OSEDIFF
        diffusers = load_diffusers()
        unet, vae = (_TINY_UNET, _TINY_VAE) if tiny else (_UNET, _VAE)
        with _made(device, dtype):
            self.unet = _frozen(diffusers.UNet2DConditionModel(**unet))
            self.vae = _frozen(diffusers.AutoencoderKL(**vae, **_VAE_BLOCKS))
            self.prompt = torch.zeros(1, _TOKENS, unet["cross_attention_dim"])
        self.alpha = float(diffusers.DDPMScheduler(**_NOISE).alphas_cumprod[self.form.timestep])

    @property
    def networks(self) -> list[nn.Module]:
        return [self.unet, self.vae]

    def compile(self) -> None:
        """Let torch compile what it spends its time in."""
        for network in (self.unet, self.vae.encoder, self.vae.decoder):
            network.compile()


def _frozen(module: Any) -> Any:
    return module.eval().requires_grad_(False)


@contextlib.contextmanager
def _made(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Make weights on a device and in a dtype from the start: billions of them are never copied."""
    usual = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with torch.random.fork_rng(), device:
            torch.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(usual)
