"""Another upscaler as a teacher: a network in ncnn's format, as RealSR and Real-ESRGAN are published, frame by frame.

It invents more than a small student can, and anew in every frame: rich targets that flicker. Networks trained with
adversaries also drift in colour (RealSR makes pictures two to three levels darker), which nobody shall learn.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from adcvsr_core.color import match_color

from ..peers import NcnnNetwork, enlarge
from .base import Teacher, identify
from .fingerprint import fingerprint

_COLOR = "wavelet"  # the low frequencies are those of the LR frame


class PeerTeacher(Teacher):
    """What `training.peers` reads, in bfloat16: on a CPU twice as fast as float32, and within a level or two of it.

    Args:
        path: the `.param` file, such as `bundled_data/peers/REALSR_DF2K_UP4X.param`; the `.bin` file lies beside it.
        device: where to compute.

    Raises:
        CheckpointError: one of them is missing.
    """

    dtype = torch.bfloat16

    def __init__(self, path: str, device: torch.device):
        self.path, self.device = Path(path), device
        self.network: NcnnNetwork | None = None
        files = {part: fingerprint(self.path.with_suffix(part)) for part in (".param", ".bin")}
        self.identity = identify(kind="peer", files=files, dtype=str(self.dtype), color=_COLOR)

    def load(self) -> None:
        if self.network is None:
            network = NcnnNetwork(self.path).eval().requires_grad_(False)
            self.network = network.to(self.device, self.dtype, memory_format=torch.channels_last)

    def super_resolve(self, lr: Tensor, keys: Sequence[str]) -> Tensor:
        frames = lr.flatten(0, 1)
        made = enlarge(self.network, (frames * 0.5 + 0.5).to(self.dtype, memory_format=torch.channels_last))
        return match_color(made.float() * 2 - 1, frames, _COLOR).unflatten(0, lr.shape[:2])
