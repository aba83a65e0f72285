"""Loss terms as pure functions of clips [B,T,3,H,W] in [-1, 1]; each returns a scalar.

Nothing here holds weights or state; networks that a term needs are passed in. All arithmetic is in float32.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def charbonnier(sr: Tensor, hr: Tensor, epsilon: float) -> Tensor:
    """mean(sqrt(d^2 + epsilon^2) - epsilon): squared for |d| << epsilon, absolute for |d| >> epsilon, 0 for equal."""
    difference = sr.float() - hr.float()
    return (torch.sqrt(difference * difference + epsilon * epsilon) - epsilon).mean()


def frame_difference(sr: Tensor, hr: Tensor, epsilon: float) -> Tensor:
    """Charbonnier of the changes between neighbouring frames: what changes in sr and not in hr is flicker.

    0 for clips of one frame.
    """
    if sr.shape[1] < 2:
        return sr.float().sum() * 0
    return charbonnier(sr[:, 1:] - sr[:, :-1], hr[:, 1:] - hr[:, :-1], epsilon)


def perceptual(sr: Tensor, hr: Tensor, distance: Callable[[Tensor, Tensor], Tensor], frames: list[int]) -> Tensor:
    """Mean of distance(sr, hr) over the chosen frames.

    Args:
        sr, hr: [B,T,3,H,W] in [-1, 1].
        distance: [N,3,H,W] pairs in [-1, 1] -> [N].
        frames: indices into T.
    """
    return distance(sr[:, frames].flatten(0, 1).float(), hr[:, frames].flatten(0, 1).float()).mean()
