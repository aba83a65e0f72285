"""One-step Stable Diffusion upscalers as a teacher: OSEDiff, by which AdcSR was distilled, and PiSA-SR.

Every frame alone: bicubic x4, the VAE's encoder, one call of the UNet, the VAE's decoder. Two departures from their
published programs: the text is one embedding from a file instead of tags that another network finds in every frame,
and colours are not moved towards the LR frame afterwards. As in AdcSR's training, latents are the encoder's mean.
Sources: see `one_step`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcvsr_core.errors import CheckpointError

from .base import SCALE, Teacher, compute_dtype, crop, identify, pad_repeating
from .fingerprint import fingerprint, fingerprints
from .one_step import merge_file
from .parts import load_part, load_scheduler
from .prompt import FILE, read_prompt_embedding

_FRAMES_AT_ONCE = 4
_PIXELS = 16  # LR edges; latents are half of that, which the UNet halves three times


class OSEDiffTeacher(Teacher):
    """Stable Diffusion 2.1 with the weights of a one-step upscaler.

    Args:
        folder: Stable Diffusion 2.1 base in diffusers' layout, with a prompt_embedding.safetensors (see `prompt`).
        weights: OSEDiff's, PiSA-SR's or AdcSR's file.
        device: where to compute, in float16 as their programs do; on a CPU in float32.

    Raises:
        CheckpointError: files are missing.
    """

    def __init__(self, folder: Path | str, weights: Path | str, device: torch.device):
        self.folder, self.weights, self.device = Path(folder), Path(weights), device
        # Not bfloat16: the noise is subtracted from the latents and the rest is enlarged 15 times, its rounding too.
        self.dtype = compute_dtype(device, torch.float16)
        self.prompt_file = self.folder / FILE
        if not self.prompt_file.is_file():
            raise CheckpointError(
                f"{self.prompt_file} is missing; make it once: python -m training.teachers.prompt {self.folder}"
            )
        self.unet = None
        files = fingerprints(self.folder, ("unet", "vae"))
        files |= {"weights": fingerprint(self.weights), "prompt_embedding": fingerprint(self.prompt_file)}
        self.identity = identify(kind="osediff", files=files, latents="mean", dtype=str(self.dtype))

    def load(self) -> None:
        if self.unet is not None:
            return
        unet = load_part(self.folder, "unet", "UNet2DConditionModel", torch.float32)
        vae = load_part(self.folder, "vae", "AutoencoderKL", torch.float32)
        self.form = merge_file(self.weights, unet, vae)
        embedding = read_prompt_embedding(self.prompt_file, (None, unet.config.cross_attention_dim))
        self.prompt = embedding.to(self.device, self.dtype)[None]
        scheduler = load_scheduler(self.folder, "DDPMScheduler", "epsilon")
        self.alpha = float(scheduler.alphas_cumprod[self.form.timestep])
        # Past diffusers' own `to`, which warns about every change of dtype.
        self.unet, self.vae = (nn.Module.to(each, self.device, self.dtype) for each in (unet, vae))

    def super_resolve(self, lr: Tensor, keys: Sequence[str]) -> Tensor:
        frames = pad_repeating(lr.flatten(0, 1), _PIXELS)
        sr = torch.cat([self.decode(self.restore(self.encode(part))) for part in frames.split(_FRAMES_AT_ONCE)])
        return crop(sr.unflatten(0, lr.shape[:2]), lr)

    def encode(self, frames: Tensor) -> Tensor:
        """Enlarge and encode frames: [N,3,h,w] -> latents [N,4,h/2,w/2], float32, scaled as the UNet knows them."""
        large = F.interpolate(frames, scale_factor=SCALE, mode="bicubic", align_corners=False)
        return self.vae.encode(large.to(self.dtype)).latent_dist.mean.float() * self.vae.config.scaling_factor

    def restore(self, latents: Tensor) -> Tensor:
        """Sharpen latents [N,4,h/2,w/2] in one step."""
        timestep = torch.full((len(latents),), self.form.timestep, dtype=torch.long, device=latents.device)
        prompt = self.prompt.expand(len(latents), -1, -1)
        predicted = self.unet(latents.to(self.dtype), timestep, encoder_hidden_states=prompt).sample.float()
        if self.form.residual:
            return latents - predicted
        return (latents - (1 - self.alpha) ** 0.5 * predicted) / self.alpha**0.5

    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents into frames [N,3,4h,4w] in about [-1, 1]."""
        return self.vae.decode((latents / self.vae.config.scaling_factor).to(self.dtype)).sample
