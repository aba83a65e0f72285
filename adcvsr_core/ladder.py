"""What a run stands on, and the way down when memory is short.

The planner walks the ladder ahead of a run until a step is predicted to fit; the engine walks on from there when an
allocation fails all the same. First come the rungs that leave every frame as it is, then those that do not. Knows
nothing about networks beyond their configuration, and nothing about frames.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from .config import WHOLE_FRAMES, StepConfig, StudentConfig

_BANDS = (256, 64)  # rows of the decoder at once
# Edge in LR pixels that AdcSR was trained at (512 / 4): what attention sees, and the smallest sensible tile's double.
TRAINED_EDGE = 128
_SMALLEST_TILE = 64


@dataclass(frozen=True, kw_only=True)
class Footing:
    """How a run uses memory.

    Attributes:
        device: where the network computes.
        chunk: frames per step.
        how: how steps are computed.
        recompute_skips, offload: of the streams, see StreamState.
        tile: edge in LR pixels, 0 = whole frames.
    """

    device: torch.device
    chunk: int
    how: StepConfig = WHOLE_FRAMES
    recompute_skips: bool = False
    offload: bool = False
    tile: int = 0


def rungs(
    footing: Footing, config: StudentConfig, height: int, width: int, multiple: int
) -> Iterator[tuple[Footing, str]]:
    """Yield ever smaller footings for LR frames of height x width, each with what it means for people.

    Args:
        footing: where to begin; never yielded itself.
        config: the network's.
        height, width: padded LR pixels.
        multiple: what a tile's edge must be a multiple of.
    """
    on_cpu = footing.device.type == "cpu"
    if footing.how.frame_batch != 1:
        footing = replace(footing, how=replace(footing.how, frame_batch=1))
        yield footing, "frames are computed one by one"
    while footing.chunk > 1:
        footing = replace(footing, chunk=footing.chunk // 2)
        yield footing, f"going on with {footing.chunk} frame{'s' * (footing.chunk > 1)} per step"
    if not footing.recompute_skips and config.temporal == "blocks":
        footing = replace(footing, recompute_skips=True)
        yield footing, "half of the temporal state is computed twice instead of being kept"
    if not footing.offload and not on_cpu:
        footing = replace(footing, offload=True)
        yield footing, "the temporal state waits in RAM"
    for band in _BANDS:
        if not footing.how.band or footing.how.band > band:
            footing = replace(footing, how=replace(footing.how, band=band))
            yield footing, f"frames are decoded in bands of {band} rows"
    window = footing.how.attention_window
    if attends(config) and max(height, width) > TRAINED_EDGE and not 0 < window <= TRAINED_EDGE:
        footing = replace(footing, how=replace(footing.how, attention_window=TRAINED_EDGE))
        yield footing, f"attention looks {TRAINED_EDGE} LR pixels far, which changes frames a little"
    edge = min(footing.tile or max(height, width), max(height, width))
    while edge > _SMALLEST_TILE:
        edge = max(_SMALLEST_TILE, edge * 3 // 4 // multiple * multiple)
        footing = replace(footing, tile=edge)
        yield footing, f"tiles of {edge} LR pixels, whose seams may show"
    if not on_cpu:
        footing = replace(footing, device=torch.device("cpu"), offload=False)
        yield footing, "the CPU takes over in float32, which is much slower"


def attends(config: StudentConfig) -> bool:
    """Tell whether a network has attention anywhere."""
    return any(config.heads) or config.mid_heads > 0 or config.decoder_attention
