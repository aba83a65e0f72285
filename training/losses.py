"""Loss terms as pure functions of clips [B,T,3,H,W] in [-1, 1]; each returns a float32 scalar.

Nothing here holds weights or state; networks that a term needs are passed in. All arithmetic is in float32, whatever
comes in. Adversarial terms live with the discriminators.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .flow import warp


def charbonnier(sr: Tensor, hr: Tensor, epsilon: float) -> Tensor:
    """mean(sqrt(d^2 + epsilon^2) - epsilon): squared for |d| << epsilon, absolute for |d| >> epsilon, 0 for equal.

    Args:
        sr, hr: of one shape, any; frames or features.
        epsilon: in their units; 0 is L1, whose gradient where both are equal is 0.
    """
    difference = sr.float() - hr.float()
    if epsilon == 0:  # the root of a square has no gradient at 0
        return difference.abs().mean()
    return (torch.sqrt(difference * difference + epsilon * epsilon) - epsilon).mean()


def root_mean_square(sr: Tensor, hr: Tensor, epsilon: float) -> Tensor:
    """Mean over the clips of sqrt(mean(d^2) + epsilon^2) - epsilon.

    Within a clip large errors count by their squares, so that the mean of what cannot be told apart is best; but a
    clip of hard contrasts counts no more than a soft one, as it does in a plain squared error.

    Args:
        sr, hr: [B,...] of one shape.
        epsilon: in their units; 0 is taken as 1e-6, for the root has no gradient at 0.
    """
    squares = (sr.float() - hr.float()).square().flatten(1).mean(1)
    return (torch.sqrt(squares + max(epsilon, 1e-6) ** 2) - epsilon).mean()


ERRORS = {"charbonnier": charbonnier, "rms": root_mean_square}


def frame_difference(sr: Tensor, hr: Tensor, epsilon: float, error: str = "charbonnier") -> Tensor:
    """One of `ERRORS` of the changes between neighbouring frames: what changes in sr and not in hr is flicker.

    0 for clips of one frame.
    """
    if sr.shape[1] < 2:
        return _nothing(sr)
    return ERRORS[error](sr.float().diff(dim=1), hr.float().diff(dim=1), epsilon)


def perceptual(sr: Tensor, hr: Tensor, distance: Callable[[Tensor, Tensor], Tensor], frames: list[int]) -> Tensor:
    """Mean of distance(sr, hr) over the chosen frames.

    Args:
        sr, hr: [B,T,3,H,W] in [-1, 1].
        distance: [N,3,H,W] pairs in [-1, 1] -> [N].
        frames: indices into T.
    """
    return distance(sr[:, frames].flatten(0, 1).float(), hr[:, frames].flatten(0, 1).float()).mean()


def flow_temporal(sr: Tensor, hr: Tensor, flow: Tensor, visible: Tensor) -> Tensor:
    """How far the error of a clip is from moving with the picture: mean |e_t - warp(e_t+1)|, e = sr - hr.

    The usual term, |sr_t - warp(sr_t+1)|, is smallest for a blurred or a flat clip, and asks for a flat one wherever
    the flow is wrong or the light changes. Since warping is linear, this is the same term with what the reference
    itself leaves taken off: 0 for sr = hr under any flow, blind to detail that sr adds or lacks as long as that moves
    with the picture, above 0 for flicker, boiling and detail that sticks to the screen.

    Args:
        sr: [B,T,3,H,W].
        hr: [B,T,3,H,W], the clip whose motion `flow` is. Give the real clip, not a teacher's, whose own flicker would
            be asked for.
        flow: [B,T-1,2,H,W], x and y in pixels from frame t to t + 1.
        visible: [B,T-1,1,H,W], 1 where frame t + 1 shows the point too, else 0; nothing else counts.

    Returns:
        the mean over the clips of each one's mean over its visible pixels, which is 0 where there are none; so a batch
        in parts gives what it gives as a whole. 0 for clips of one frame.
    """
    if sr.shape[1] < 2:
        return _nothing(sr)
    error = sr.float() - hr.float()
    fetched = warp(error[:, 1:].flatten(0, 1), flow.flatten(0, 1)).view_as(error[:, 1:])
    moved = (error[:, :-1] - fetched).abs() * visible
    return (moved.sum((1, 2, 3, 4)) / (error.shape[2] * visible.sum((1, 2, 3, 4))).clamp(min=1)).mean()


def straight_through_clamp(x: Tensor) -> Tensor:
    """Clamp to [-1, 1] with the gradient of the identity.

    What looks at finished frames should see what users see, but a pixel beyond white must still feel a pull back.
    """
    return _StraightThroughClamp.apply(x)


class _StraightThroughClamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clamp(-1, 1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient


def _nothing(sr: Tensor) -> Tensor:
    # A 0 that autograd can go through, for a sum of terms may hold no other.
    return (sr.float() * 0).sum()
