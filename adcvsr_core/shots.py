"""Scene cuts, each decided from two neighbouring frames only.

Nothing else may be looked at: a decision that depended on earlier frames would differ between the whole clip, a
resumed run and a window. A cut shows as a picture whose layout and colours both change; motion changes the first,
a flash the second. Knows nothing about streams.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_THUMBNAIL = (18, 32)
_LEVELS = 8


def describe(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Return what cuts are decided on: small pictures and colour histograms.

    Args:
        frames: [T,H,W,3] in 0..1.

    Returns:
        thumbnails [T,3,18,32] and histograms [T,3 * 8], each channel's adding up to 1.
    """
    thumbnails = F.adaptive_avg_pool2d(frames.permute(0, 3, 1, 2), _THUMBNAIL)
    bins = (thumbnails.clamp(0, 1 - 1e-6) * _LEVELS).long().flatten(2)  # [T,3,pixels]
    histograms = F.one_hot(bins, _LEVELS).float().mean(dim=2)
    return thumbnails, histograms.flatten(1)


def cut_scores(thumbnails: Tensor, histograms: Tensor) -> Tensor:
    """Return how much each neighbouring pair looks like a cut, [T-1] in 0..1, from what `describe` gives."""
    centred = (thumbnails - thumbnails.mean(dim=(2, 3), keepdim=True)).flatten(1)
    contrast = centred.square().sum(dim=1) + 1e-3
    # Correlation: a flash or a fade scales the picture, a cut replaces it.
    layout = (1 - (centred[1:] * centred[:-1]).sum(dim=1) / (contrast[1:] * contrast[:-1]).sqrt()).clamp(0, 1)
    colours = (histograms[1:] - histograms[:-1]).abs().sum(dim=1) / 6
    return (layout * colours.clamp(max=1)).sqrt()


def find_cuts(frames: Tensor, previous: Tensor | None, sensitivity: float) -> list[int]:
    """Return the indices of frames that begin a new shot.

    Args:
        frames: [T,H,W,3] in 0..1.
        previous: the frame before them [H,W,3], None at the clip's start (which is not a cut).
        sensitivity: in [0, 1]; 0 = never, 1 = at any change. 0.5 cuts above a score of .4, where hard cuts and motion
            part in the one film that it was tuned on.
    """
    offset = 0 if previous is None else 1
    if sensitivity == 0 or len(frames) + offset < 2:
        return []
    joined = frames if previous is None else torch.cat((previous[None], frames))
    scores = cut_scores(*describe(joined))
    return [int(i) + 1 - offset for i in (scores > 0.8 * (1 - sensitivity)).nonzero()]
