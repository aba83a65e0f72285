"""What every teacher is: a call from LR clips to sharp clips, and a text that says exactly which teacher it is.

Knows nothing about any network; the kinds of teachers are one file each.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adcvsr_core.errors import InputError, NonFiniteError

SCALE = 4


class Teacher(ABC):
    """A frozen x4 upscaler. Cheap to make: it finds and identifies its files; `load` reads the weights.

    Attributes:
        identity: JSON of all that its output depends on beside the input: kind, files, options, seed. Two teachers of
            the same identity give the same targets, but for the rounding of different machines.
        device: where it computes.
    """

    identity: str
    device: torch.device

    @torch.no_grad()
    def __call__(self, lr: Tensor, keys: Sequence[str]) -> Tensor:
        """Super-resolve clips, each alone and each as a whole.

        Args:
            lr: [B,T,3,h,w] in [-1, 1], of any h and w.
            keys: what identifies each clip; a teacher with randomness draws it from its seed and the key.

        Returns:
            [B,T,3,4h,4w] in [-1, 1], float32, on the device of `lr`, without gradients.

        Raises:
            InputError: another shape, or not one key a clip.
            CheckpointError: the weights cannot be read (at the first call).
            NonFiniteError: NaN or infinity in the output.
        """
        if lr.ndim != 5 or lr.shape[2] != 3 or not lr.is_floating_point() or 0 in lr.shape:
            raise InputError(f"a teacher takes floating-point clips [B,T,3,h,w], got {lr.dtype} {list(lr.shape)}")
        if len(keys) != lr.shape[0]:
            raise InputError(f"a teacher takes one key a clip, got {len(keys)} for {lr.shape[0]} clips")
        self.load()
        # A training step's autocast must not reach into the teacher, or its targets would depend on the run.
        with torch.autocast(lr.device.type, enabled=False), torch.autocast(self.device.type, enabled=False):
            sr = self.super_resolve(lr.to(self.device, torch.float32), keys)
        if not sr.isfinite().all():
            raise NonFiniteError(f"the teacher made NaN or infinity of {', '.join(keys)}; teacher: {self.identity}")
        return sr.to(lr.device, torch.float32).clamp(-1, 1)

    @abstractmethod
    def load(self) -> None:
        """Read the weights, if that has not happened yet.

        Raises:
            CheckpointError: they cannot be read or do not fit.
            ConfigError: a package that this takes is missing.
        """

    @abstractmethod
    def super_resolve(self, lr: Tensor, keys: Sequence[str]) -> Tensor:
        """Do the work of the call on `device`: [B,T,3,h,w] float32 -> [B,T,3,4h,4w], not necessarily clamped."""


def identify(**facts: object) -> str:
    """Return an identity: JSON of the facts, the same for the same facts in any order."""
    return json.dumps(facts, sort_keys=True)


def one_line(error: Exception) -> str:
    """Return what another library said, short enough for a message of ours."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def compute_dtype(device: torch.device, low: torch.dtype) -> torch.dtype:
    """Return `low` on accelerators and float32 on a CPU, which gains nothing from fewer bits."""
    return torch.float32 if device.type == "cpu" else low


def generator_of(seed: int, key: str) -> torch.Generator:
    """Return a CPU generator for one clip: the same in any process, batch or order, and on any device."""
    digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def pad_repeating(frames: Tensor, multiple: int) -> Tensor:
    """Extend frames [N,3,h,w] at the right and the bottom to multiples of `multiple` by repeating the last pixels."""
    height, width = frames.shape[2:]
    return F.pad(frames, (0, -width % multiple, 0, -height % multiple), mode="replicate")


def crop(sr: Tensor, lr: Tensor) -> Tensor:
    """Cut [..., T', 3, H', W'] to the frames and four times the size of `lr` [..., T, 3, h, w]."""
    num_frames, height, width = lr.shape[-4], SCALE * lr.shape[-2], SCALE * lr.shape[-1]
    return sr[..., :num_frames, :, :height, :width]
