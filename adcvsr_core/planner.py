"""How a run will use memory and what it will need, decided before its first frame.

Predictions are counted (footprint.py), never looked up; what a device adds to them is left as a margin of the free
memory. Knows nothing about frames' contents, files or nodes.
"""

import dataclasses
import itertools
from dataclasses import dataclass

import torch

from .config import StepConfig, StudentConfig, UpscaleConfig
from .cost import count_parameters
from .footprint import footprint
from .ladder import TRAINED_EDGE, Footing, rungs
from .memory import available_bytes
from .pipeline import waiting_bytes
from .tiling import TileGrid, plan_tiles

# Share of the free memory that a step may plan with; the rest is for convolutions' workspaces, blocks that allocators
# keep and other programs.
_SHARE = {"cpu": 0.6, "cuda": 0.8}
# Beyond this many frames a step gains no speed and the first picture comes later. A CPU gains nothing from the start.
_MAX_CHUNK = {"cpu": 4}
_MAX_CHUNK_ELSEWHERE = 8
# A network that attends at its finest level pays the square of the pixels for it: from here on it does so in windows.
_WHOLE_ATTENTION = 4 * TRAINED_EDGE**2


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What a run stands on and what that is predicted to take, in bytes.

    Attributes:
        footing: the settings.
        grid: the tiles of a frame; one when there are none.
        weights: the network's.
        num_streams: of the tiles, and of the sample that lends them its GroupNorms' statistics.
        state: the temporal state's between steps, of all streams, wherever it rests.
        frames: the RAM of frames on their way in and out, see pipeline.py.
        step: the most that is alive in a step on the device, beside the weights; on a CPU with `frames`.
        budget: what a step may take.
    """

    footing: Footing
    grid: TileGrid
    weights: int
    num_streams: int
    state: int
    frames: int
    step: int
    budget: int

    @property
    def fits(self) -> bool:
        return self.step <= self.budget


def plan_memory(
    student_config: StudentConfig,
    config: UpscaleConfig,
    size: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    multiple: int,
    available: int | None = None,
    frame_bytes: tuple[int, int] = (0, 0),
    graphs: bool = False,
) -> MemoryPlan:
    """Choose the first footing of the ladder that fits, or the one that takes least.

    Args:
        student_config, dtype: the network's.
        config: chunk, tile, overlap, attention window and memory that the user has set count.
        size: padded LR height and width.
        device: where the network will compute.
        multiple: what tiles' edges must be a multiple of.
        available: free bytes on the device beside the weights; None = as the device says now.
        frame_bytes: of a source frame and of a finished one.
        graphs: whether layers run as CUDA graphs, whose pool of memory nothing else can use.

    Raises:
        ConfigError: a tile or overlap that does not fit.
    """
    weights = count_parameters(student_config)[0] * dtype.itemsize
    if config.memory:
        budget = max(0, round(config.memory * 1e9) - weights)
    else:
        free = available_bytes(device) if available is None else available
        budget = round(free * _SHARE.get(device.type, _SHARE["cuda"]))
    window = config.attention_window or _automatic_window(student_config, *size)
    start = Footing(
        device=device,
        chunk=config.chunk or _MAX_CHUNK.get(device.type, _MAX_CHUNK_ELSEWHERE),
        # A CPU loses nothing by taking frame after frame, and holds less.
        how=StepConfig(attention_window=max(0, window), frame_batch=int(device.type == "cpu")),
        tile=config.tile,
    )
    best = None
    for footing in itertools.chain([start], (rung for rung, _ in rungs(start, student_config, *size, multiple))):
        if footing.device != device:
            break
        # Windows of attention save time, not memory: no reason to change frames here. What people set stays.
        how = dataclasses.replace(footing.how, attention_window=start.how.attention_window)
        footing = dataclasses.replace(
            footing, how=how, chunk=config.chunk or footing.chunk, tile=config.tile or footing.tile
        )
        plan = _predict(footing, student_config, config, size, dtype, multiple, weights, budget, frame_bytes, graphs)
        if best is None or plan.step < best.step:
            best = plan
        if plan.fits:
            break
    return best


def _predict(
    footing: Footing,
    student_config: StudentConfig,
    config: UpscaleConfig,
    size: tuple[int, int],
    dtype: torch.dtype,
    multiple: int,
    weights: int,
    budget: int,
    frame_bytes: tuple[int, int],
    graphs: bool,
) -> MemoryPlan:
    grid = plan_tiles(*size, footing.tile, config.overlap, multiple)
    counted = footprint(
        student_config,
        *grid.tile_size,
        dtype,
        temporal_strength=config.temporal_strength,
        band=footing.how.band,
        offload=footing.offload,
        recompute_skips=footing.recompute_skips,
    )
    num_streams = len(grid.tiles) + shares_norms(student_config, grid)
    others = (num_streams - 1) * counted.state
    chunk = 1 if student_config.recurrent and config.temporal_strength else footing.chunk
    frames = waiting_bytes(*frame_bytes, footing.chunk, footing.device)
    step = counted.peak(chunk, footing.how.frame_batch) + (0 if footing.offload else others)
    if graphs:
        step *= 2  # what layers return stays in the pool, and copies of it go on: as much again at the most
    return MemoryPlan(
        footing=footing,
        grid=grid,
        weights=weights,
        num_streams=num_streams,
        state=counted.state + others,
        frames=frames,
        step=step + (frames if footing.device.type == "cpu" else 0),
        budget=budget,
    )


def shares_norms(config: StudentConfig, grid: TileGrid) -> bool:
    """Tell whether tiles take their GroupNorms' statistics from a sample of the whole frame, as large as a tile."""
    return config.norm == "group" and len(grid.tiles) > 1


def _automatic_window(config: StudentConfig, height: int, width: int) -> int:
    """Return the window in which attention pays, -1 for the whole frame."""
    fine = config.heads[0] > 0 or config.decoder_attention
    return TRAINED_EDGE if fine and height * width > _WHOLE_ATTENTION else -1
