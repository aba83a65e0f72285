"""Discriminators: networks that tell real clips from made ones. `make_discriminator` is the door.

Each maps clips [B,T,C,H,W], of frames or of features, to a `Verdict`. Knows nothing about training steps.
"""

from pathlib import Path

from torch import nn

from adcvsr_core.errors import ConfigError
from adcvsr_core.student import Student

from ..config import AdversaryConfig
from .feature import StudentBackbone, first_layer
from .headed import HeadedDiscriminator
from .labels import Verdict
from .patch import PatchDiscriminator
from .pixel import identity_layer, make_pixel_backbone
from .stable_diffusion import StableDiffusionDiscriminator

__all__ = ["Verdict", "make_discriminator"]


def make_discriminator(
    domain: str, config: AdversaryConfig, *, student: Student, features: Path, stable_diffusion: str
) -> nn.Module:
    """Return the discriminator of one domain.

    Args:
        domain: "pixel" (clips of 3 channels in [-1, 1]) or "feature" (what `student.decoder.mid` returns).
        config: which backbone, widths, heads.
        student: the one to judge, as it is when the stage begins; left as it is.
        features: folder of the offline backbones' weights, `features/` in a prepared data folder.
        stable_diffusion: folder in diffusers' layout, read only for the feature backbone "sd-unet".

    Raises:
        ConfigError: a backbone that has no two heads, or whose package or folder is missing.
        InputError, CheckpointError: weights that are missing or broken.
    """
    backbone = config.pixel_backbone if domain == "pixel" else config.feature_backbone
    if backbone in ("patch", "sd-unet") and config.heads != "single":
        raise ConfigError(
            f'the {domain} backbone "{backbone}" gives one verdict for everything; set adversary.heads to "single", or '
            "choose another backbone"
        )
    if backbone == "patch":
        return PatchDiscriminator(config.channels)
    if backbone == "sd-unet":
        width = student.config.decoder_channels[-1]
        return StableDiffusionDiscriminator(stable_diffusion, width, config)
    if backbone == "student":
        return HeadedDiscriminator(first_layer(student), StudentBackbone(student), config)
    return HeadedDiscriminator(identity_layer(), make_pixel_backbone(backbone, features), config)
