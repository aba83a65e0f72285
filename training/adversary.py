"""The adversary of a stage: one discriminator per domain, what the student hears from them, and how they learn.

Turns batches into losses; knows nothing about optimizers or which network a discriminator is. Source: AdcVSR (arXiv
2603.00458); the adaptive weight is that of latent diffusion's autoencoder (arXiv 2112.10752).
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from adcvsr_core.student import Student

from .config import AdversaryConfig
from .discriminators import make_discriminator
from .discriminators.frozen import held
from .discriminators.labels import labelled_loss, lessons, realness_loss
from .discriminators.stable_diffusion import StableDiffusionDiscriminator


class Adversary(nn.Module):
    """The discriminators of one stage.

    Its state dict holds everything, the frozen backbones too: build it from any weights of the same student, then load.

    Args:
        config: domains, heads, weights.
        student: as it is when the stage begins; left as it is.
        features: folder of the offline backbones' weights.
        stable_diffusion: folder in diffusers' layout, for the feature backbone "sd-unet".

    Raises:
        ConfigError, InputError, CheckpointError: as `make_discriminator`.
    """

    def __init__(self, config: AdversaryConfig, student: Student, *, features: Path, stable_diffusion: str):
        super().__init__()
        self.config = config
        self.discriminators = nn.ModuleDict(
            {
                domain: make_discriminator(
                    domain, config, student=student, features=features, stable_diffusion=stable_diffusion
                )
                for domain in config.domains
            }
        )

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return what the discriminators' optimizer moves."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def set_step(self, step: int) -> None:
        """Tell the discriminators that add noise which step this is."""
        for discriminator in self.discriminators.values():
            if isinstance(discriminator, StableDiffusionDiscriminator):
                discriminator.step = step

    def student_loss(self, sr: Tensor, sr_features: Tensor) -> dict[str, Tensor]:
        """Return how unreal the student's clips look, without the domains' weights.

        Args:
            sr: [B,T,3,H,W] in [-1, 1].
            sr_features: [B,T,C,H/8,W/8].

        Returns:
            "adversarial_pixel" and "adversarial_feature", of the domains that there are. Their gradients reach the
            clips, not the discriminators.
        """
        clips, terms = {"pixel": sr, "feature": sr_features}, {}
        for domain, discriminator in self.discriminators.items():
            with held(discriminator):
                terms[f"adversarial_{domain}"] = realness_loss(discriminator(clips[domain]), self.config)
        return terms

    def discriminator_loss(
        self, batch: dict, sr: Tensor, sr_features: Tensor, encode: Callable[[Tensor], Tensor] | None
    ) -> tuple[Tensor, dict[str, float]]:
        """Return what the discriminators minimise.

        Args:
            batch: `real` [B,T,3,H,W] in [-1, 1], `order` [B,T] and `crops` [B,T,3,H,W]; only what the weighted kinds
                of clips need.
            sr, sr_features: what the student made; no gradient reaches them.
            encode: real clips to features, None where there is no feature domain.

        Returns:
            the loss, and "logit_DOMAIN_KIND_HEAD": mean logits, those of silent heads too.
        """
        loss, logits = 0, {}
        for kind, (weight, labels) in lessons(self.config).items():
            frames = sr.detach() if kind == "student" else real_clip(kind, batch)
            for domain, discriminator in self.discriminators.items():
                clip = frames
                if domain == "feature":
                    clip = sr_features.detach() if kind == "student" else _without_gradient(encode, frames)
                verdict = discriminator(clip)
                loss = loss + weight * labelled_loss(verdict, labels)
                for head, value in verdict._asdict().items():
                    if value is not None:
                        logits[f"logit_{domain}_{kind}_{head}"] = value.detach().mean()
        return loss, dict(zip(logits, torch.stack(list(logits.values())).tolist(), strict=True))


def real_clip(kind: str, batch: dict) -> Tensor:
    """Return one kind of real clip [B,T,3,H,W] from a batch: "real", "shuffled", "still" or "stacked"."""
    if kind == "real":
        return batch["real"]
    if kind == "shuffled":
        real, order = batch["real"], batch["order"]
        return real[torch.arange(len(order), device=order.device)[:, None], order]
    crops = batch["crops"]
    return crops if kind == "stacked" else crops[:, :1].expand_as(crops)


def adaptive_weight(regression: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Return the weight at which the adversarial term pulls as hard at the last layer as the regression does.

    Args:
        regression, adversarial: scalars whose graphs stay.
        last_layer: the weight at which both gradients are taken.

    Returns:
        |gradient of regression| / (|gradient of adversarial| + 1e-4), at most 1e4, without gradient.
    """
    norms = [torch.autograd.grad(term, last_layer, retain_graph=True)[0].norm() for term in (regression, adversarial)]
    return (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4).detach()


@torch.no_grad()
def _without_gradient(encode: Callable[[Tensor], Tensor], clip: Tensor) -> Tensor:
    return encode(clip)
