"""The patch discriminator of AdcSR's decoder stage: five convolutions, one verdict for every 8x8 pixels.

Trained from nothing, frame by frame. As in latent diffusion's autoencoder, but for the norms: groups of channels in
one frame instead of the batch, so that a clip's verdict does not depend on who shares its batch. Source: AdcSR (arXiv
2411.13383), after pix2pix (arXiv 1611.07004).
"""

from itertools import pairwise

from torch import Tensor, nn

from adcvsr_core.layers import make_norm, per_frame

from .labels import Verdict


class PatchDiscriminator(nn.Module):
    """Judge frames of clips [B,T,3,H,W] in [-1, 1].

    Args:
        channels: width of the third of the five convolutions (256 in latent diffusion), a multiple of 4.
    """

    def __init__(self, channels: int):
        super().__init__()
        widths = (3, channels // 4, channels // 2, channels, 2 * channels)
        layers: list[nn.Module] = []
        for index, (width_in, width) in enumerate(pairwise(widths)):
            layers.append(nn.Conv2d(width_in, width, 4, stride=2 if index < 3 else 1, padding=1))
            layers += [make_norm("group" if index else "none", 32, width, 1e-5), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, clip: Tensor) -> Verdict:
        return Verdict(per_frame(self.layers, clip).float(), None)
