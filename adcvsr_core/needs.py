"""What a run will need, before it starts: memory, RAM for a result held whole, and time.

Knows nothing about files or nodes.
"""

import time

import torch

from .config import UpscaleConfig
from .cost import count_flops
from .engine import RunPlan, plan_run
from .errors import InputError
from .memory import available_bytes
from .streaming import StreamState
from .student import Student

_GIB = 2**30
_TRIAL_EDGE, _TRIAL_FRAMES = 64, 4


def step_bytes(
    height: int, width: int, student: Student, config: UpscaleConfig, device: torch.device, available: int
) -> int:
    """Return the predicted memory of a run on a device, beside the weights.

    Args:
        height, width: of the source frames, in pixels.
        student: the network; where it lies now does not matter.
        config: the run's settings.
        device: where it will compute.
        available: bytes that the run may have there beside the weights, once other models have made room.
    """
    return plan_run(height, width, student, config, device, available).memory.step


def require_ram(num_frames: int, height: int, width: int, channels: int, itemsize: int, advice: str) -> None:
    """Raise InputError, with both numbers and the advice, when a result held whole does not fit the free RAM.

    Args:
        num_frames, height, width, channels, itemsize: of the result.
        advice: what to do instead.
    """
    needed, free = num_frames * height * width * channels * itemsize, available_bytes(torch.device("cpu"))
    if needed > free:
        raise InputError(
            f"{num_frames} frames of {width}x{height} need {needed / _GIB:.1f} GiB of RAM and {free / _GIB:.1f} GiB "
            f"are free; {advice}"
        )


def describe_plan(plan: RunPlan, student: Student) -> str:
    """Return one line on how a run goes: sizes, steps, tiles, dtype, device, memory."""
    sizes = " -> ".join(f"{width}x{height}" for height, width in dict.fromkeys((plan.source, plan.work, plan.target)))
    memory, footing = plan.memory, plan.memory.footing
    parts = [f"{sizes}, {footing.chunk} frame{'s' * (footing.chunk > 1)} per step"]
    if footing.recompute_skips:
        parts.append("half of the temporal state computed twice")
    if footing.offload:
        parts.append("temporal state in RAM")
    if footing.how.band:
        parts.append(f"decoded in bands of {footing.how.band} rows")
    if 0 < footing.how.attention_window < max(plan.padded):
        parts.append(f"attention in windows of {footing.how.attention_window}")
    if len(memory.grid.tiles) > 1:
        parts.append(f"{len(memory.grid.tiles)} tiles")
    parts.append(f"{str(student.dtype).removeprefix('torch.')} on {footing.device}")
    return ", ".join(parts)


def describe_needs(plan: RunPlan, student: Student, num_frames: int | None, seconds: float) -> dict[str, str]:
    """Return what a plan predicts, as names and values for people.

    Args:
        plan, student: the run.
        num_frames: of the clip, None = unknown.
        seconds: a frame, from `trial_seconds`.
    """
    memory = plan.memory
    on_cpu = memory.footing.device.type == "cpu"
    total = memory.weights + memory.step
    rows = {
        "RAM" if on_cpu else f"memory of {memory.footing.device}": f"{_gib(total)}: weights {_gib(memory.weights)}, "
        f"steps {_gib(memory.step)} of the {_gib(memory.budget)} that they may take",
        "frames": f"{_gib(memory.frames)} {'of it' if on_cpu else 'of RAM'} for frames that are read ahead or wait to "
        "be written",
        "temporal state": f"{_gib(memory.state)} in all" + (", in RAM" if memory.footing.offload else ""),
        "speed": f"about {1 / seconds:.2f} frames a second (scaled from a trial of {_TRIAL_EDGE}x{_TRIAL_EDGE})",
    }
    if num_frames:
        whole = round(num_frames * seconds)
        rows["time"] = f"about {whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02} for {num_frames} frames"
    if not memory.fits:
        rows["warning"] = "even the smallest steps may not fit; the run goes on to the CPU when the device is full"
    return rows


@torch.no_grad()
def trial_seconds(plan: RunPlan, student: Student, temporal_strength: float) -> float:
    """Run a few small frames and return the seconds that one frame of the plan will take; 20 % off is usual.

    Time is taken to grow as FLOPs do, which flatters a device that small frames do not fill. Reading and writing of
    video is not in it.
    """
    frames = torch.zeros((1, _TRIAL_FRAMES, 3, _TRIAL_EDGE, _TRIAL_EDGE), device=student.device)
    state, best = StreamState(), float("inf")
    for _ in range(3 + student.lookahead // _TRIAL_FRAMES):
        started = time.perf_counter()
        student(frames, state, False, temporal_strength).sum().item()  # reading a value waits for the device
        best = min(best, time.perf_counter() - started) if state.frames_out >= _TRIAL_FRAMES else best
    small = count_flops(student.config, _TRIAL_EDGE, _TRIAL_EDGE, temporal_strength)
    large = count_flops(student.config, *plan.memory.grid.tile_size, temporal_strength, plan.memory.footing.how)
    return best / _TRIAL_FRAMES * large * plan.memory.num_streams / small


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f} GiB"
