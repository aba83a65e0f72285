"""Metrics that need large optional packages: pyiqa's without reference, FID, and EvalCrafter's warping error.

They are off unless asked for by name. None of their packages is imported before that.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from adcvsr_core.errors import ConfigError, InputError

from .flow import load_raft, warp
from .packages import require_cached, unavailable

# pyiqa's names and which way is better. "maniqa" was trained on KonIQ, "maniqa-pipal" on PIPAL: not the same.
NO_REFERENCE = {
    "musiq": "higher",
    "maniqa": "higher",
    "maniqa-pipal": "higher",
    "clipiqa": "higher",
    "brisque": "lower",
}
_INCEPTION = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)


def build_no_reference(name: str, device: torch.device, download: bool) -> Callable[[Tensor], float]:
    """Make a metric of pyiqa with its default options.

    Args:
        name: of `NO_REFERENCE`.
        device: where to compute.
        download: consent, since pyiqa fetches weights by itself when they are not in its cache.

    Returns:
        a function of frames [N,3,H,W] in 0..1.

    Raises:
        ConfigError: no consent, or pyiqa is missing.
    """
    if not download:
        raise ConfigError(
            f"{name} is pyiqa's, which fetches its weights from the network unless they are in its cache: "
            "add --download to allow that"
        )
    try:
        import pyiqa
    except (ImportError, RuntimeError) as error:
        raise unavailable("pyiqa", name, "leave it out", error) from error
    metric = pyiqa.create_metric(name, device=device)

    @torch.no_grad()
    def score(frames: Tensor) -> float:
        return float(metric(frames.to(device)).mean())

    return score


class FrechetDistance:
    """FID between the frames of a method and the true ones, over a whole test set; torchmetrics' implementation.

    It is meant for thousands of pictures; over few it is biased upwards, and only numbers over as many compare.

    Args:
        device: where Inception runs.

    Raises:
        ConfigError: a missing package, or Inception's weights are not in torch's cache.
    """

    def __init__(self, device: torch.device):
        try:
            import torch_fidelity  # noqa: F401 - torchmetrics builds Inception from it
            from torchmetrics.image.fid import FrechetInceptionDistance
        except (ImportError, RuntimeError) as error:
            raise unavailable("torch-fidelity torchmetrics torchvision", "fid", "leave it out", error) from error
        require_cached(_INCEPTION, "fid", "leave it out")
        self._metric = FrechetInceptionDistance().to(device)
        self._device = device
        self.num_frames = 0

    def add(self, sr: Tensor, hr: Tensor) -> None:
        """Count one frame [H,W,3] in 0..1 and its true counterpart."""
        for frame, real in ((sr, False), (hr, True)):
            levels = frame.permute(2, 0, 1)[None].mul(255).round().byte()
            self._metric.update(levels.to(self._device), real=real)
        self.num_frames += 1

    def score(self) -> float:
        """Return the distance; nan for fewer than two frames."""
        return float(self._metric.compute()) if self.num_frames > 1 else float("nan")


def compatible_warping_error(device: torch.device) -> Callable[[Tensor, Tensor], float]:
    """Make EvalCrafter's warping error (arXiv 2310.11440; its optical_flow_scores.py), the E*warp of published tables.

    Kept with its quirks: half size, RAFT trained on FlyingThings with 20 iterations and fed 0..1 where it expects
    0..255, squared differences summed over the channels but divided by the pixels in sight, occlusion by
    forward-backward check and by gradients of the flow. Rewards blur and stillness; never compare it with `ewarp`.

    Returns:
        a function of two frames [1,3,H,W] in 0..1, times 1000 as published.

    Raises:
        ConfigError: torchvision or these very weights of RAFT are missing.
    """
    network = load_raft("C_T_V1", device)  # the authors' raft-things, as torchvision converted it

    @torch.no_grad()
    def between(first: Tensor, second: Tensor) -> float:
        first, second = (_half_size(frame.to(device)) for frame in (first, second))
        forward, backward = (
            network(a * 2 / 255 - 1, b * 2 / 255 - 1, num_flow_updates=20)[-1]
            for a, b in ((first, second), (second, first))
        )
        seen = ~_occluded(forward, backward)
        error = ((warp(second, forward) - first) * seen).square().sum()
        return 1000 * float(error / (seen.sum() if seen.any() else first.numel()))

    return between


def _half_size(frame: Tensor) -> Tensor:
    """Halve by plain bilinear and repeat the edges up to multiples of 8."""
    half = F.interpolate(frame, scale_factor=0.5, mode="bilinear", align_corners=False)
    height, width = half.shape[2:]
    if min(height, width) < 128:
        raise InputError(f"ewarp_compat needs frames of 256x256 or more, got {frame.shape[3]}x{frame.shape[2]}")
    x, y = -width % 8, -height % 8
    return F.pad(half, (x // 2, x - x // 2, y // 2, y - y // 2), mode="replicate")


def _occluded(forward: Tensor, backward: Tensor) -> Tensor:
    back = warp(backward, forward)
    length = forward.square().sum(1, keepdim=True)
    hidden = (forward + back).square().sum(1, keepdim=True) > 0.01 * (length + back.square().sum(1, keepdim=True)) + 0.5
    down = F.pad(forward.diff(dim=2), (0, 0, 0, 1)).square().sum(1, keepdim=True)
    across = F.pad(forward.diff(dim=3), (0, 1)).square().sum(1, keepdim=True)
    return hidden | (down + across > 0.01 * length + 0.002)
