"""From LR frames to finished frames: sizes, chunks, shots, tiles, colour, one generator.

    frames -> chunks -> shots -> to_lr -> per tile: student(lr, stream) -> blend -> finish -> frames

A frame is yielded as soon as it is final, and memory does not depend on the clip's length. Knows nothing about
files, nodes or checkpoints: it takes an iterable of frames and a Student.
"""

import dataclasses
import itertools
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .color import match_color, resize, scale_detail
from .config import UpscaleConfig
from .errors import Cancelled, InputError, NonFiniteError, OutOfMemory
from .ladder import Footing, rungs
from .memory import is_out_of_memory, release_cached
from .planner import MemoryPlan, plan_memory
from .shots import find_cuts
from .streaming import StreamState
from .student import Student
from .tiling import plan_tiles

OnProgress = Callable[[int, int | None, Tensor], None]


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What one run does, decided from the first frame: sizes (height, width) in pixels, and the use of memory."""

    source: tuple[int, int]
    work: tuple[int, int]
    padded: tuple[int, int]
    target: tuple[int, int]
    memory: MemoryPlan


def plan_run(
    height: int,
    width: int,
    student: Student,
    config: UpscaleConfig,
    device: torch.device | None = None,
    available: int | None = None,
) -> RunPlan:
    """Decide sizes, chunk and tiles for frames of height x width.

    Args:
        height, width: of the source frames, in pixels.
        student: the network.
        config: the run's settings.
        device: where the network will compute, None = where it is.
        available: free bytes there beside the weights, None = as the device says now.

    Raises:
        ConfigError: a tile or overlap that does not fit.
    """
    target = _target_size(height, width, config)
    work_height = config.work_size or -(-target[0] // student.scale)
    work = (work_height, max(1, round(target[1] * work_height / target[0])))
    multiple = student.multiple_of
    padded = tuple(-(-size // multiple) * multiple for size in work)
    device = device or student.device
    memory = plan_memory(student.config, config, padded, student.dtype, device, multiple, available)
    return RunPlan(source=(height, width), work=work, padded=padded, target=target, memory=memory)


def upscale(
    frames: Iterable[Tensor],
    student: Student,
    config: UpscaleConfig | None = None,
    on_progress: OnProgress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[Tensor]:
    """Upscale a clip, yielding frames as soon as they are final.

    Args:
        frames: pieces [t,H,W,3] of any length, RGB in 0..1, floating point, all of one size. When the iterable has
            a `num_frames`, progress reports it as the total.
        student: the network; its device and dtype are used.
        config: how to run; None = defaults.
        on_progress: called as (frames done, frames in all or None, last frame [sH,sW,3] in 0..1).
        cancelled: asked before every step.

    Yields:
        [t',sH,sW,3] float32 on the CPU in 0..1; the t' add up to the t.

    Raises:
        ConfigError: settings that do not fit each other.
        InputError: frames of a wrong shape, type or size, non-finite values, or no frame at all.
        Cancelled: `cancelled` said so.
    """
    config = config or UpscaleConfig()
    # Settings that no frame can make valid are refused here, before the first frame is read.
    plan_tiles(student.multiple_of, student.multiple_of, config.tile, config.overlap, student.multiple_of)
    return _Run(frames, student, config, on_progress, cancelled).frames()


class _Run:
    """The state of one `upscale` call."""

    def __init__(
        self,
        source: Iterable[Tensor],
        student: Student,
        config: UpscaleConfig,
        on_progress: OnProgress | None,
        cancelled: Callable[[], bool] | None,
    ):
        self.source = source
        self.student = student
        self.config = config
        self.on_progress = on_progress
        self.cancelled = cancelled
        self.done = 0
        self.students = {(student.device.type, student.dtype): student}
        self.footing: Footing  # where the run stands now; it only goes down

    def frames(self) -> Iterator[Tensor]:
        pieces = _checked(self.source)
        first = next(pieces, None)
        if first is None:
            raise InputError("the clip has no frames; expected at least one")
        plan = plan_run(first.shape[1], first.shape[2], self.student, self.config)
        self.footing = plan.memory.footing
        if self.footing.tile and not self.config.tile:
            edge = max(plan.memory.grid.tile_size)
            warnings.warn(f"a frame does not fit the memory in one piece: tiles of {edge} are used", stacklevel=2)
        shot, previous = _Shot(self, plan), None
        for chunk in _rechunk(itertools.chain((first,), pieces), self.footing.chunk):
            chunk = chunk.detach().to("cpu", torch.float32)
            starts = find_cuts(chunk, previous, self.config.cuts)
            for begin, end in itertools.pairwise(sorted({0, *starts, len(chunk)})):
                if begin in starts:
                    yield from self._emit(shot.finish())
                    shot = _Shot(self, plan)
                yield from self._emit(shot.push(chunk[begin:end]))
            previous = chunk[-1]
        yield from self._emit(shot.finish())

    def _emit(self, finished: Iterator[Tensor]) -> Iterator[Tensor]:
        total = getattr(self.source, "num_frames", None)
        for frames in finished:
            self.done += len(frames)
            if self.on_progress is not None:
                self.on_progress(self.done, total, frames[-1])
            yield frames

    def check_cancelled(self) -> None:
        if self.cancelled is not None and self.cancelled():
            raise Cancelled(f"cancelled after {self.done} frames")

    def student_in(self, device: torch.device, dtype: torch.dtype) -> Student:
        """Return the network on a device in a dtype; a copy, made once, where it is not there already."""
        key = (device.type, dtype)
        if key not in self.students:
            with torch.device("meta"):
                twin = Student(self.student.config)
            # Tensor by tensor, because a whole copy where the network lies may be what does not fit.
            weights = {name: weight.to(device, dtype) for name, weight in self.student.state_dict().items()}
            twin.load_state_dict(weights, assign=True)
            self.students[key] = twin.requires_grad_(False).train(self.student.training)
        return self.students[key]


class _Shot:
    """One shot: a stream per tile, and the LR frames that wait for their SR frames."""

    def __init__(self, run: _Run, plan: RunPlan):
        self.run = run
        self.plan = plan
        at_home = run.footing.device == run.student.device
        self.dtype = run.student.dtype if at_home else torch.float32
        self.waiting: deque[Tensor] = deque()  # [3,h,w], unpadded
        # What a stream must see again before it can go on with other tiles.
        self.past: deque[Tensor] = deque(maxlen=run.student.lookahead if run.config.temporal_strength else 0)
        self.num_pushed = 0  # of those that wait
        self.behind = False  # whether new streams have to be shown what was pushed before
        self.again = 0  # frames that new streams will make once more
        self._begin_streams()

    def _begin_streams(self) -> None:
        footing, multiple = self.run.footing, self.run.student.multiple_of
        self.grid = plan_tiles(*self.plan.padded, footing.tile, self.run.config.overlap, multiple)
        fresh = StreamState(recompute_skips=footing.recompute_skips, offload=footing.offload)
        self.states = [fresh.copy() for _ in self.grid.tiles]

    def push(self, frames: Tensor) -> Iterator[Tensor]:
        """Push frames [t,H,W,3] and yield the finished ones."""
        lr = _to_lr(frames, self.plan.work)
        self.waiting += lr.unbind()
        yield from self._step(lr, last=False)

    def finish(self) -> Iterator[Tensor]:
        """End the shot and yield the frames that waited for it."""
        yield from self._step(torch.empty((0, 3, *self.plan.work)), last=True)

    def _step(self, lr: Tensor, last: bool) -> Iterator[Tensor]:
        start = 0
        while True:
            part = lr[start : start + self.run.footing.chunk]
            ends = start + len(part) == len(lr)
            try:
                if self.behind:
                    self._catch_up()
                sr = self._push_tiles(part, last and ends)
            except NonFiniteError as error:
                self._widen(error)
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._step_down(error)
                continue
            self.num_pushed += len(part)
            again, sr = sr[: self.again], sr[self.again :]
            self.again -= len(again)
            for batch in sr.split(self.run.footing.chunk) if len(sr) else ():
                yield self._to_frames(batch)
            start += len(part)
            if ends and (not last or self.states[0].closed):
                return

    @torch.no_grad()
    def _push_tiles(self, lr: Tensor, last: bool) -> Tensor:
        """Move every tile's stream on by the same frames, or a bit on to its end, or none of them."""
        footing = self.run.footing
        student = self.run.student_in(footing.device, self.dtype)
        clip = _pad(lr, self.plan.padded).to(student.device)[None]
        states = [state.copy() for state in self.states]
        tiles, scale = self.grid.tiles, student.scale
        canvas = None
        for tile, state in zip(tiles, states, strict=True):
            self.run.check_cancelled()
            if last:
                sr = student.drain(tile.of(clip), state, footing.how)[0]
            else:
                sr = student(tile.of(clip), state, False, self.run.config.temporal_strength, footing.how)[0]
            if len(tiles) == 1:
                canvas = sr
                break
            if canvas is None:
                canvas = sr.new_zeros((len(sr), 3, *(size * scale for size in self.plan.padded)))
            self.grid.add(canvas, tile, sr, scale)
        self.states = states
        return canvas[..., : self.plan.work[0] * scale, : self.plan.work[1] * scale]

    def _catch_up(self) -> None:
        """Show new streams what the old ones had seen, as far back as it matters; drop what was finished already."""
        self._begin_streams()
        self.again = len(self.past)
        seen = [*self.past, *itertools.islice(self.waiting, self.num_pushed)]
        for part in torch.stack(seen).split(self.run.footing.chunk):
            self.again -= len(self._push_tiles(part, last=False))
        self.behind = False

    def _widen(self, error: NonFiniteError) -> None:
        """Go on in a type of the next larger range."""
        device = self.run.footing.device
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        wider = torch.bfloat16 if self.dtype == torch.float16 and has_bf16 else torch.float32
        if self.dtype in (torch.float32, torch.float64):
            raise error
        name = str(wider).removeprefix("torch.")
        warnings.warn(f"{error}; this shot goes on in {name}", stacklevel=2)
        self.dtype = wider
        self.states = [state.to(dtype=wider) for state in self.states]

    def _step_down(self, error: Exception) -> None:
        """Take the ladder's next rung, or raise OutOfMemory below the last."""
        old, student = self.run.footing, self.run.student
        release_cached(old.device)
        footing, meaning = next(rungs(old, student.config, *self.plan.padded, student.multiple_of), (None, ""))
        if footing is None:
            raise OutOfMemory(
                f"out of memory with one frame of {self.plan.work[1]}x{self.plan.work[0]} per step; "
                "choose a smaller work size, or another device"
            ) from error
        warnings.warn(f"out of memory: {meaning}", stacklevel=2)
        self.run.footing = footing
        if footing.device != old.device:
            self.dtype = torch.float32
            self.states = [dataclasses.replace(s.to("cpu", torch.float32), offload=False) for s in self.states]
        elif footing.offload != old.offload:
            self.states = [state.offloaded() for state in self.states]
        elif (footing.tile, footing.recompute_skips) != (old.tile, old.recompute_skips):
            self.behind = self.num_pushed > 0
            self._begin_streams()

    def _to_frames(self, sr: Tensor) -> Tensor:
        """Finish SR [t,3,4h,4w] in [-1, 1] as frames [t,sH,sW,3] in 0..1 on the CPU, as many at once as layers take."""
        lr = torch.stack([self.waiting.popleft() for _ in sr])
        self.num_pushed -= len(lr)
        self.past += lr.unbind()
        at_once = self.run.footing.how.frame_batch or len(sr)
        return torch.cat([self._finish(*part) for part in zip(sr.split(at_once), lr.split(at_once), strict=True)])

    @torch.no_grad()
    def _finish(self, sr: Tensor, lr: Tensor) -> Tensor:
        config, device = self.run.config, self.run.footing.device
        sr, lr = sr.to(device).float(), lr.to(device)
        color = self.run.student.config.color if config.color == "auto" else config.color
        sr = resize(scale_detail(match_color(sr, lr, color), lr, config.detail), *self.plan.target)
        return ((sr + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).contiguous().cpu()


def _to_lr(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring frames [t,H,W,3] in 0..1 to LR frames [t,3,h,w] in [-1, 1]."""
    return resize(frames.permute(0, 3, 1, 2), *size).clamp(0, 1) * 2 - 1


def _pad(lr: Tensor, size: tuple[int, int]) -> Tensor:
    missing = (0, size[1] - lr.shape[3], 0, size[0] - lr.shape[2])
    return F.pad(lr, missing, mode="replicate") if any(missing) else lr


def _target_size(height: int, width: int, config: UpscaleConfig) -> tuple[int, int]:
    if not config.height:
        return max(1, round(height * config.scale)), max(1, round(width * config.scale))
    # Even, because most video formats store colour at half the size.
    return config.height, max(2, 2 * round(width * config.height / height / 2))


def _checked(pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    size, num_read = None, 0
    for piece in pieces:
        if not isinstance(piece, Tensor) or piece.ndim != 4 or piece.shape[3] != 3 or not piece.is_floating_point():
            found = f"{piece.dtype} {list(piece.shape)}" if isinstance(piece, Tensor) else type(piece).__name__
            raise InputError(f"expected frames [t,H,W,3] of a floating-point type in 0..1, got {found}")
        if not len(piece):
            continue
        if min(piece.shape[1:3]) < 1 or size not in (None, piece.shape[1:3]):
            was = "" if size is None else f" after frames of {size[1]}x{size[0]}"
            raise InputError(f"frame {num_read} is {piece.shape[2]}x{piece.shape[1]}{was}; all must have one size")
        size = piece.shape[1:3]
        yield piece
        num_read += len(piece)


def _check_values(chunk: Tensor, first: int) -> None:
    low, high = (float(v) for v in torch.aminmax(chunk))
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = first + int((~chunk.isfinite()).flatten(1).any(dim=1).nonzero()[0])
        raise InputError(f"frame {bad} holds NaN or infinity; repair the input first")
    if high > 2 or low < -1:
        raise InputError(f"frames from {first} on have values from {low:g} to {high:g}; expected 0..1 (divide by 255?)")


def _rechunk(pieces: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Regroup pieces into chunks of `size` frames; only the last may be shorter."""
    rest, first = None, 0
    for piece in pieces:
        piece = piece if rest is None else torch.cat((rest, piece))
        whole = len(piece) // size * size
        for chunk in piece[:whole].split(size):
            if len(chunk):
                _check_values(chunk, first)
                yield chunk
                first += len(chunk)
        rest = piece[whole:] if whole < len(piece) else None
    if rest is not None:
        _check_values(rest, first)
        yield rest
