"""From LR frames to finished frames: sizes, chunks, shots, tiles, colour, one generator.

    frames -> chunks -> shots -> to_lr -> per tile: student(lr, stream) -> blend -> finish -> frames

A frame is yielded as soon as it is final, and memory does not depend on the clip's length. Knows nothing about
files, nodes or checkpoints: it takes an iterable of frames and a Student.
"""

import contextlib
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
from .norms import lending, noting
from .pipeline import Landing
from .planner import MemoryPlan, plan_memory, shares_norms
from .shots import find_cuts
from .streaming import StreamState
from .student import Student
from .tiling import plan_tiles

OnProgress = Callable[[int, int | None, Tensor], None]
_FRAME_BYTES = 3 * torch.float32.itemsize  # a pixel of a frame outside the network


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
    frame_bytes = (_FRAME_BYTES * height * width, _FRAME_BYTES * target[0] * target[1])
    graphs = student.reuses_memory
    memory = plan_memory(
        student.config, config, padded, student.dtype, device, multiple, available, frame_bytes, graphs
    )
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
        self.landing: Landing | None = None  # finished frames that are being copied to the CPU

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
                yield from self._emit(shot.push(chunk[begin:end], ends=end < len(chunk)))
            previous = chunk[-1]
        yield from self._emit(shot.finish())
        yield from self._land()

    def _emit(self, finished: Iterator[Landing]) -> Iterator[Tensor]:
        """Yield frames as soon as they are there; what a GPU still copies waits while it is given its next step."""
        for landing in finished:
            yield from self._land()
            self.landing = landing
            if not landing.is_under_way:
                yield from self._land()

    def _land(self) -> Iterator[Tensor]:
        if self.landing is None:
            return
        frames, self.landing = self.landing.frames(), None
        self.done += len(frames)
        if self.on_progress is not None:
            self.on_progress(self.done, getattr(self.source, "num_frames", None), frames[-1])
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
        self.refuge: Footing | None = None  # where this shot ends when the run's next footing waits for the cut
        self.dtype = self._usual_dtype()
        self.waiting: deque[Tensor] = deque()  # [3,h,w], unpadded
        # What a stream must see again before it can go on with other tiles.
        self.past: deque[Tensor] = deque(maxlen=run.student.lookahead if run.config.temporal_strength else 0)
        self.num_pushed = 0  # of those that wait
        self.num_finished = 0
        self.ends = False  # whether the shot's last frame is known
        self.behind = False  # whether new streams have to be shown what was pushed before
        self.again = 0  # frames that new streams will make once more
        self._begin_streams()

    @property
    def footing(self) -> Footing:
        return self.refuge or self.run.footing

    def _usual_dtype(self) -> torch.dtype:
        student = self.run.student
        return student.dtype if self.run.footing.device == student.device else torch.float32

    def _begin_streams(self) -> None:
        footing, multiple = self.footing, self.run.student.multiple_of
        self.grid = plan_tiles(*self.plan.padded, footing.tile, self.run.config.overlap, multiple)
        fresh = StreamState(recompute_skips=footing.recompute_skips, offload=footing.offload)
        self.shares_norms = shares_norms(self.run.student.config, self.grid)
        # The picture that lends the tiles its statistics comes last.
        self.states = [fresh.copy() for _ in range(len(self.grid.tiles) + self.shares_norms)]

    def push(self, frames: Tensor, ends: bool) -> Iterator[Landing]:
        """Push frames [t,H,W,3] and yield the finished ones; `ends` tells that a cut follows."""
        self.ends = ends
        lr = _to_lr(frames, self.plan.work)
        self.waiting += lr.unbind()
        yield from self._step(lr, last=False)

    def finish(self) -> Iterator[Landing]:
        """End the shot and yield the frames that waited for it."""
        self.ends = True
        yield from self._step(torch.empty((0, 3, *self.plan.work)), last=True)

    def _step(self, lr: Tensor, last: bool) -> Iterator[Landing]:
        start = 0
        while True:
            part = lr[start : start + self.footing.chunk]
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
            for batch in sr.split(self.footing.chunk) if len(sr) else ():
                yield self._to_frames(batch)
            start += len(part)
            if ends and (not last or self.states[0].closed):
                return

    @torch.no_grad()
    def _push_tiles(self, lr: Tensor, last: bool) -> Tensor:
        """Move every tile's stream on by the same frames, or a bit on to its end, or none of them."""
        footing = self.footing
        student = self.run.student_in(footing.device, self.dtype)
        clip = _pad(lr, self.plan.padded).to(student.device)[None]
        states = [state.copy() for state in self.states]
        tiles, scale = self.grid.tiles, student.scale
        noted = None
        if self.shares_norms:
            with noting(student) as noted:
                self._advance(student, self.grid.sample(clip, student.multiple_of), states[-1], last)
        canvas = None
        for tile, state in zip(tiles, states, strict=False):
            with contextlib.nullcontext() if noted is None else lending(student, noted):
                sr = self._advance(student, tile.of(clip), state, last)
            if len(tiles) == 1:
                canvas = sr
                break
            if canvas is None:
                canvas = sr.new_zeros((len(sr), 3, *(size * scale for size in self.plan.padded)))
            self.grid.add(canvas, tile, sr, scale)
        self.states = states
        return canvas[..., : self.plan.work[0] * scale, : self.plan.work[1] * scale]

    def _advance(self, student: Student, lr: Tensor, state: StreamState, last: bool) -> Tensor:
        """Push LR frames [1,t,3,h,w] to one stream, or drain it by a bit; returns SR [t',3,4h,4w]."""
        self.run.check_cancelled()
        how = self.footing.how
        if last:
            return student.drain(lr, state, how)[0]
        return student(lr, state, False, self.run.config.temporal_strength, how)[0]

    def _catch_up(self) -> None:
        """Show new streams what the old ones had seen, as far back as it matters; drop what was finished already."""
        self._begin_streams()
        self.again = len(self.past)
        seen = [*self.past, *itertools.islice(self.waiting, self.num_pushed)]
        for part in torch.stack(seen).split(self.footing.chunk):
            self.again -= len(self._push_tiles(part, last=False))
        self.behind = False

    def _widen(self, error: NonFiniteError) -> None:
        """Go on in a type of the next larger range."""
        device = self.footing.device
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
        old, student = self.footing, self.run.student
        release_cached(old.device)
        if self.refuge is not None:
            self._leave_refuge()
            return
        ladder = list(rungs(old, student.config, *self.plan.padded, student.multiple_of))
        if not ladder:
            raise OutOfMemory(
                f"out of memory with one frame of {self.plan.work[1]}x{self.plan.work[0]} per step; "
                "choose a smaller work size, or another device"
            ) from error
        footing, meaning = ladder[0]
        self.run.footing = footing
        last = ladder[-1][0].device
        if footing.tile != old.tile and self.num_finished and self.ends and last != old.device:
            self.refuge = dataclasses.replace(old, device=last, offload=False)
            meaning = f"the CPU finishes the last {len(self.waiting)} frames of this shot; from the cut on {meaning}"
        warnings.warn(f"out of memory: {meaning}", stacklevel=2)
        if self.footing.device != old.device:
            self.dtype = torch.float32
            self.states = [dataclasses.replace(s.to("cpu", torch.float32), offload=False) for s in self.states]
        elif footing.offload != old.offload:
            self.states = [state.offloaded() for state in self.states]
        elif (footing.tile, footing.recompute_skips) != (old.tile, old.recompute_skips):
            self._rebuild()

    def _leave_refuge(self) -> None:
        """Stand where the run stands already: the CPU has too little memory as well."""
        self.refuge = None
        self.dtype = self._usual_dtype()
        warnings.warn("out of memory on the CPU too: the change does not wait for the cut", stacklevel=2)
        self._rebuild()

    def _rebuild(self) -> None:
        """Begin new streams, to be shown what the old ones had seen."""
        self.behind = self.num_pushed > 0
        self._begin_streams()

    def _to_frames(self, sr: Tensor) -> Landing:
        """Finish SR [t,3,4h,4w] in [-1, 1] as frames [t,sH,sW,3] in 0..1, as many at once as layers take."""
        lr = torch.stack([self.waiting.popleft() for _ in sr])
        self.num_pushed -= len(lr)
        self.num_finished += len(lr)
        self.past += lr.unbind()
        at_once = self.footing.how.frame_batch or len(sr)
        parts = zip(sr.split(at_once), lr.split(at_once), strict=True)
        return Landing((self._finish(*part) for part in parts), self.footing.device)

    @torch.no_grad()
    def _finish(self, sr: Tensor, lr: Tensor) -> Tensor:
        config, device = self.run.config, self.footing.device
        sr, lr = sr.to(device).float(), lr.to(device)
        color = self.run.student.config.color if config.color == "auto" else config.color
        sr = resize(scale_detail(match_color(sr, lr, color), lr, config.detail), *self.plan.target)
        return ((sr + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).contiguous()


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
