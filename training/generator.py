"""The student as training sees it: frames and the features they are decoded from, in one pass over whole clips.

Adds nothing to the network: features are taken on their way into the decoder's levels, activations may be computed
twice instead of kept, and frames pass a clamp that lets gradients through. Knows nothing about losses.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adcvsr_core.layers import ResBlock, Transformer
from adcvsr_core.student import Student

from .losses import straight_through_clamp


@dataclass(frozen=True)
class Made:
    """What a student made of a clip.

    Attributes:
        sr: [B,T,3,4h,4w] in [-1, 1].
        features: [B,T,C,h/2,w/2], what the decoder's middle block returned.
    """

    sr: Tensor
    features: Tensor


class Generator(nn.Module):
    """A student that also returns its features.

    Args:
        student: shared, not copied.
        checkpoint_activations: compute the activations of residual blocks and transformers again in the backward pass.
    """

    def __init__(self, student: Student, checkpoint_activations: bool = False):
        super().__init__()
        self.student = student
        if checkpoint_activations:
            _checkpoint_activations(student)

    def forward(self, lr: Tensor, temporal_strength: float) -> Made:
        """Map [B,T,3,h,w] in [-1, 1] to frames and features."""
        taken: list[Tensor] = []  # one clip may be decoded in several parts
        handle = self.student.decoder.mid.register_forward_hook(
            lambda module, inputs, output: taken.append(output.unflatten(0, (lr.shape[0], -1)))
        )
        try:
            sr = self.student(lr, temporal_strength=temporal_strength)
        finally:
            handle.remove()
        return Made(straight_through_clamp(sr), torch.cat(taken, dim=1))


def _checkpoint_activations(student: Student) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        apply_activation_checkpointing,
        checkpoint_wrapper,
    )

    apply_activation_checkpointing(
        student,
        checkpoint_wrapper_fn=checkpoint_wrapper,
        check_fn=lambda module: isinstance(module, (ResBlock, Transformer)),
    )
