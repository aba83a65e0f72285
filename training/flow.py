"""Motion between frames: fetch along a flow, estimate one, and tell where a point stays in sight.

A flow is [N,2,H,W]: x and y, in pixels, from each pixel of one frame to where its point is in the next. OpenCV ("dis")
and torchvision ("raft") are optional and imported only when asked for. Knows nothing about losses or datasets.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcvsr_core.errors import ConfigError, InputError

from .packages import require_cached, unavailable

ESTIMATORS = ("dis", "raft")
# RAFT looks at a quarter of an eighth of the picture; below this nothing is left to look at.
_RAFT_LEAST, _RAFT_MULTIPLE = 128, 8


def warp(frames: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """Fetch every pixel from where the flow leads: result(p) = frames(p + flow(p)).

    Args:
        frames: [N,C,H,W].
        flow: [N,2,H,W] in pixels.
        mode: "bilinear" or "bicubic", which is less blurred.

    Returns:
        [N,C,H,W] float32; beyond the edges the edge is repeated (`inside` tells where).
    """
    size = flow.new_tensor([flow.shape[3], flow.shape[2]], dtype=torch.float32)
    grid = (2 * _targets(flow) + 1) / size - 1
    return F.grid_sample(frames.float(), grid, mode=mode, padding_mode="border", align_corners=False)


def inside(flow: Tensor) -> Tensor:
    """Return [N,1,H,W] in {0, 1}: where the flow leads to a point inside the frame."""
    last = flow.new_tensor([flow.shape[3] - 1, flow.shape[2] - 1], dtype=torch.float32)
    targets = _targets(flow)
    return ((targets >= 0) & (targets <= last)).all(-1)[:, None].float()


def visibility(forward: Tensor, backward: Tensor) -> Tensor:
    """Return [N,1,H,W] in {0, 1}: where going there and back ends near the start, and inside the frame.

    Args:
        forward: [N,2,H,W], from the first frame to the second.
        backward: [N,2,H,W], from the second to the first.

    The threshold is that of Sundaram, Brox and Keutzer (ECCV 2010): .01 of both squared lengths, plus .5.
    """
    back = warp(backward, forward)
    gap = (forward.float() + back).square().sum(1, keepdim=True)
    length = forward.float().square().sum(1, keepdim=True) + back.square().sum(1, keepdim=True)
    return (gap <= 0.01 * length + 0.5).float() * inside(forward)


@torch.no_grad()
def estimate(clip: Tensor, source: str) -> tuple[Tensor, Tensor]:
    """Estimate the motion from every frame to the next.

    Args:
        clip: [B,T,3,H,W] in [-1, 1].
        source: "dis" (OpenCV's, on the CPU) or "raft" (torchvision's large model, on the clip's device).

    Returns:
        flow [B,T-1,2,H,W] in pixels and visible [B,T-1,1,H,W] in {0, 1}, float32, on the clip's device.

    Raises:
        ConfigError: an unknown source, or one whose package or weights are missing.
        InputError: not a clip.
    """
    if clip.ndim != 5 or clip.shape[2] != 3:
        raise InputError(f"expected a clip [B,T,3,H,W], got {list(clip.shape)}")
    if source not in ESTIMATORS:
        raise ConfigError(f"flow can be estimated by {' or '.join(ESTIMATORS)}, not by {source!r}")
    between = _dis if source == "dis" else _raft
    pairs = [(clip[:, t].float(), clip[:, t + 1].float()) for t in range(clip.shape[1] - 1)]
    flows = [between(first, second) for first, second in pairs]
    visible = [visibility(flow, between(second, first)) for flow, (first, second) in zip(flows, pairs, strict=True)]
    batch, _, _, height, width = clip.shape
    nothing = clip.new_empty((batch, 0, 1, height, width), dtype=torch.float32)
    if not flows:
        return nothing.expand(-1, -1, 2, -1, -1), nothing
    return torch.stack(flows, 1), torch.stack(visible, 1)


def load_raft(weights_name: str, device: torch.device | str) -> nn.Module:
    """Load torchvision's large RAFT, frozen.

    Args:
        weights_name: of torchvision's `Raft_Large_Weights`, such as "DEFAULT".
        device: where to put it.

    Raises:
        ConfigError: torchvision is missing, or its weights are not in torch's cache.
    """
    return _load_raft(weights_name, str(device))


def _targets(flow: Tensor) -> Tensor:
    """Return where each pixel's point goes, [N,H,W,2]."""
    height, width = flow.shape[2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return flow.float().permute(0, 2, 3, 1) + torch.stack([x, y], -1).to(flow.device)


def _dis(first: Tensor, second: Tensor) -> Tensor:
    try:
        import cv2
    except ImportError as error:
        instead = 'choose "known" (generated motion) in training, "raft" in either'
        raise unavailable("opencv-python-headless", 'flow "dis"', instead, error) from error
    matcher = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flows = [matcher.calc(a, b, None) for a, b in zip(_gray(first), _gray(second), strict=True)]
    return torch.from_numpy(np.stack(flows)).permute(0, 3, 1, 2).to(first.device)


def _gray(frames: Tensor) -> np.ndarray:
    weights = frames.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    levels = ((frames * weights).sum(1) * 127.5 + 127.5).round().clamp(0, 255)
    return levels.to("cpu", torch.uint8).numpy()


def _raft(first: Tensor, second: Tensor) -> Tensor:
    height, width = first.shape[2:]
    pad_x, pad_y = (max(_RAFT_LEAST, -(-size // _RAFT_MULTIPLE) * _RAFT_MULTIPLE) - size for size in (width, height))
    first, second = (F.pad(frames.clamp(-1, 1), (0, pad_x, 0, pad_y), mode="replicate") for frames in (first, second))
    network = load_raft("DEFAULT", first.device)
    with torch.autocast(first.device.type, enabled=False):
        flow = network(first, second)[-1]
    return flow[..., :height, :width]


@functools.cache
def _load_raft(weights_name: str, device: str) -> nn.Module:
    instead = 'choose "dis" (OpenCV, offline)'
    try:
        from torchvision.models.optical_flow import Raft_Large_Weights, raft_large
    except (ImportError, RuntimeError) as error:
        raise unavailable("torchvision", "RAFT", instead, error) from error
    weights = Raft_Large_Weights[weights_name]
    path = require_cached(weights.url, "RAFT", instead)
    network = raft_large(weights=None)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.to(device).eval().requires_grad_(False)
