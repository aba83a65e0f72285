"""AdcSR's first stage: the student's decoder learns to read Stable Diffusion's latents at half the channels.

The frozen encoder of SD 2.1's VAE makes latents; a first layer that only training has (`conv_in`) brings them to the
width of the student's decoder. After the stage, `conv_in` and a frozen copy of the decoder's middle block are the
feature space of the next one. Source: AdcSR (arXiv 2411.13383) and the autoencoder of latent diffusion.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from adcvsr_core.errors import InputError
from adcvsr_core.student import Student


class HalfDecoder(nn.Module):
    """Stable Diffusion's encoder, frozen, before the student's decoder.

    Args:
        student: whose decoder trains; shared, not copied.
        stable_diffusion: folder of SD 2.1 in diffusers' layout; only its vae/ is read.

    Attributes:
        trained: `conv_in` and the student's decoder.
        last_layer: the weight at which gradients are compared for the adaptive adversarial weight.
    """

    def __init__(self, student: Student, stable_diffusion: Path | str):
        super().__init__()
        vae = load_vae(stable_diffusion).requires_grad_(False).eval()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv
        self.post_quant_conv = vae.post_quant_conv
        # The first channels of the original, as everywhere in the pruned decoder.
        width, original = student.config.decoder_channels[-1], vae.decoder.conv_in
        conv_in = nn.Conv2d(original.in_channels, width, 3, padding=1)
        conv_in.weight.data.copy_(original.weight.data[:width])
        conv_in.bias.data.copy_(original.bias.data[:width])
        self.trained = nn.ModuleDict({"conv_in": conv_in, "decoder": student.decoder})

    @property
    def last_layer(self) -> nn.Parameter:
        return self.trained["decoder"].conv_out.weight

    def forward(self, hr: Tensor) -> tuple[Tensor, Tensor]:
        """Map frames [B,T,3,H,W] in [-1, 1] to (features [B,T,C,H/8,W/8], frames [B,T,3,H,W])."""
        frames = hr.flatten(0, 1)
        with torch.no_grad():
            latents = self.post_quant_conv(self.quant_conv(self.encoder(frames)).chunk(2, dim=1)[0])
        decoder = self.trained["decoder"]
        features = decoder.mid(self.trained["conv_in"](latents))
        sr = decoder.conv_out(nn.functional.silu(decoder.norm_out(decoder.up(features))))
        return features.unflatten(0, hr.shape[:2]), sr.float().unflatten(0, hr.shape[:2])


def load_vae(stable_diffusion: Path | str) -> nn.Module:
    """Load the VAE of a Stable Diffusion folder.

    Raises:
        InputError: no such folder, or diffusers is not installed.
    """
    folder = Path(stable_diffusion) / "vae"
    if not folder.is_dir():
        raise InputError(f"{stable_diffusion} holds no vae/; expected Stable Diffusion 2.1 in diffusers' layout")
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise InputError("Stable Diffusion's features need diffusers: pip install diffusers") from error
    return AutoencoderKL.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32)
