"""What the discriminators are told: the kinds of clips with their labels, and the losses that follow from them.

A label is -1 (fake), +1 (real) or 0 (silent: no loss, no gradient). Pure functions of logits; knows nothing about
networks. Source of the table: AdcVSR (arXiv 2603.00458).
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ..config import AdversaryConfig


class Verdict(NamedTuple):
    """A discriminator's logits, float32, above 0 = real.

    Attributes:
        detail: [B,T,K,h,w]: whether these frames have the detail of real ones. K is 1, but 4 for "sd-unet", whose four
            output channels are four verdicts. With heads "single" the one verdict on everything.
        consistency: [B,T,1,h,w]: whether the frames follow one another as in real video; None with heads "single".
    """

    detail: Tensor
    consistency: Tensor | None


class Labels(NamedTuple):
    """What the heads should say to one kind of clip."""

    detail: int
    consistency: int


# kind -> labels of the two heads, label of a single head.
TABLE: dict[str, tuple[Labels, int]] = {
    "student": (Labels(-1, -1), -1),  # what the student made
    "real": (Labels(0, 1), 1),  # real video
    "shuffled": (Labels(0, -1), 0),  # real video, its frames in another order
    "still": (Labels(1, 1), 1),  # a real image repeated
    "stacked": (Labels(1, -1), 0),  # unrelated crops of real images
}


def lessons(config: AdversaryConfig) -> dict[str, tuple[float, Labels]]:
    """Return kind -> (weight, labels) of every kind that teaches anything under this configuration."""
    chosen = {}
    for kind, (labels, single) in TABLE.items():
        if config.heads == "single":
            labels = Labels(single, 0)
        elif kind == "stacked":
            labels = Labels(config.stacked_detail, labels.consistency)
        weight = 1.0 if kind == "student" else getattr(config, kind)
        if weight > 0 and any(labels):
            chosen[kind] = weight, labels
    return chosen


def labelled_loss(verdict: Verdict, labels: Labels) -> Tensor:
    """Return the sum over the heads of mean softplus(-label * logits), without the silent ones."""
    return sum(
        F.softplus(-label * logits.float()).mean() for logits, label in zip(verdict, labels, strict=True) if label
    )


def realness_loss(verdict: Verdict, config: AdversaryConfig) -> Tensor:
    """Return what the student minimises: softplus(-logits), the heads weighted as configured."""
    detail = F.softplus(-verdict.detail.float()).mean()
    if verdict.consistency is None:
        return detail
    consistency = F.softplus(-verdict.consistency.float()).mean()
    return config.detail_weight * detail + config.consistency_weight * consistency
