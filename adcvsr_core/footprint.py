"""How many bytes a step takes, for any network, size and way of computing: counted on tensors without data.

One frame, then two run on PyTorch's meta device, where every operation tells shapes and computes nothing, while every
storage is counted from its first tensor to its last. What spatial layers hold for a moment grows with the frames that
they compute at once, everything else with the frames of the step; so two runs answer for every chunk, and the figures
follow the network's code. It knows nothing of what a device adds: workspaces of convolutions, blocks that an allocator
keeps. Attention counts as a fused kernel, which holds no matrix of scores.
"""

import contextlib
import dataclasses
import functools
import math
import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .config import StepConfig, StudentConfig
from .cost import state_bytes, window_bytes
from .decoder import Decoder
from .layers import Downsample, ResBlock, Transformer, Upsample
from .streaming import StreamState
from .student import Student

_REFERENCE = 64  # LR pixels along each edge of the frames that are counted


@dataclass(frozen=True)
class _Moment:
    """What was alive at some point of a step, in bytes: for the step, and in passing in a spatial layer."""

    held: float
    passing: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """The memory of a stream's steps on the device, beside the weights, in bytes.

    Attributes:
        state: what the stream keeps between steps, wherever that rests.
        renewed: the part of it that a step makes anew, while the old is kept for the case that the step fails.
        lookahead: frames that the end of a clip releases.
        drains: whether the end lets those out block by block.
        offload: whether the state, and frames that are finished, rest in the CPU's memory.
        one, two: a step of one frame, and the same moments of a step of two.
    """

    state: int
    renewed: int
    lookahead: int
    drains: bool
    offload: bool
    one: tuple[_Moment, ...]
    two: tuple[_Moment, ...]

    def peak(self, chunk: int, frame_batch: int = 0) -> int:
        """Return the most bytes alive in any step of a clip that is pushed in chunks.

        Args:
            chunk: frames per step.
            frame_batch: see StepConfig.
        """
        at_once = min(frame_batch, chunk) or chunk
        # The end sets two frames of a block free at a time; a network that cannot be drained lets all out at once.
        end = min(2, self.lookahead) if self.drains else self.lookahead
        peak = max(self._held(chunk, at_once), self._held(end, at_once))
        return round(peak + (0 if self.offload else self.state + self.renewed))

    def _held(self, num_frames: int, at_once: int) -> float:
        if len(self.one) != len(self.two):  # a recurrent network takes frame after frame
            peaks = (max(m.held + m.passing for m in moments) for moments in (self.one, self.two))
            return _line(*peaks, num_frames)
        pairs = zip(self.one, self.two, strict=True)
        return max(_line(a.held, b.held, num_frames) + _line(a.passing, b.passing, at_once) for a, b in pairs)

    def scaled(self, factor: float) -> "Footprint":
        """Return the footprint of frames with so many times the pixels."""
        one, two = (
            tuple(_Moment(m.held * factor, m.passing * factor) for m in moments) for moments in (self.one, self.two)
        )
        state, renewed = round(self.state * factor), round(self.renewed * factor)
        return dataclasses.replace(self, state=state, renewed=renewed, one=one, two=two)


def footprint(
    config: StudentConfig,
    height: int,
    width: int,
    dtype: torch.dtype,
    *,
    temporal_strength: float = 1.0,
    band: int = 0,
    offload: bool = False,
    recompute_skips: bool = False,
) -> Footprint:
    """Count what a stream of LR frames of height x width (multiples of 16) takes.

    Args:
        config: the network.
        height, width: LR pixels.
        dtype: of the weights, and so of everything inside.
        temporal_strength, offload, recompute_skips: the stream's; see Student.forward and StreamState.
        band: see StepConfig; what attention sees takes no memory.
    """
    # The nearest power of two, so that frames of many heights share a count.
    band = band and 2 ** max(0, round(math.log2(band * _REFERENCE / height)))
    counted = _count(config, dtype, temporal_strength > 0, band, offload, recompute_skips)
    # Every map is as large as the frame says, so one size answers for all.
    return counted.scaled(height * width / _REFERENCE**2)


@functools.lru_cache(maxsize=64)
def _count(
    config: StudentConfig, dtype: torch.dtype, temporal: bool, band: int, offload: bool, recompute_skips: bool
) -> Footprint:
    how, state = StepConfig(band=band), StreamState(recompute_skips=recompute_skips, offload=offload)
    with torch.device("meta"):
        student = Student(config).to(dtype).train()  # in training mode nothing looks at values
    lookahead = student.lookahead if temporal else 0
    one, two = (_record(student, num_frames, state.copy(), float(temporal), how) for num_frames in (1, 2))
    reference = (config, _REFERENCE, _REFERENCE, dtype)
    return Footprint(
        state=state_bytes(*reference, recompute_skips=recompute_skips) if temporal else 0,
        renewed=window_bytes(*reference) if temporal else 0,
        lookahead=lookahead,
        drains=config.temporal == "blocks",
        offload=offload,
        one=one,
        two=two,
    )


def _record(
    student: Student, num_frames: int, state: StreamState, strength: float, how: StepConfig
) -> tuple[_Moment, ...]:
    """Run a whole clip without data and return its moments."""
    counter = _Counter(student.parameters())
    with torch.device("meta"), torch.no_grad(), _Recorder(student, counter) as recorder:
        frames = torch.empty((1, num_frames, 3, _REFERENCE, _REFERENCE))
        with counter, _MetaRules(counter):
            student(frames, state, True, strength, how)
    return recorder.moments()


def _line(one: float, two: float, count: int) -> float:
    """Return what `count` take when 1 and 2 take so much, and the rest grows evenly."""
    return one + (two - one) * (count - 1)


class _Recorder(contextlib.ExitStack):
    """Splits a run at its spatial layers: what each holds in passing, and what is held between them."""

    def __init__(self, student: Student, counter: "_Counter"):
        super().__init__()
        self.counter = counter
        self._moments: list[_Moment] = []
        self._before = 0
        for module in (*student.unet.modules(), student.decoder):
            if isinstance(module, (ResBlock, Transformer, Downsample, Upsample, Decoder)):
                self.callback(module.register_forward_pre_hook(self._enter).remove)
                self.callback(module.register_forward_hook(self._leave).remove)

    def _enter(self, *_: object) -> None:
        self._moments.append(_Moment(self.counter.restart()))
        self._before = self.counter.live

    def _leave(self, *_: object) -> None:
        result = self.counter.live - self._before
        peak = self.counter.restart()
        self._moments.append(_Moment(self._before + result, max(0, peak - self._before - result)))

    def moments(self) -> tuple[_Moment, ...]:
        return (*self._moments, _Moment(self.counter.restart()))


class _Counter(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, while they live."""

    def __init__(self, weights: Iterable[Tensor]):
        super().__init__()
        self.live = self.peak = 0
        self.elsewhere = False  # whether what is made now lies in the CPU's memory
        # A view shares its storage: views of weights, and of what lies elsewhere, are no new memory.
        self._known = {weight.untyped_storage()._cdata for weight in weights}
        self._elsewhere: set[int] = set()

    def restart(self) -> int:
        """Return the peak since the last restart, and begin a new one at what is alive now."""
        peak, self.peak = self.peak, self.live
        return peak

    def lies_elsewhere(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._elsewhere

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, num_bytes = storage._cdata, 0 if self.elsewhere else storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            if self.elsewhere:
                self._elsewhere.add(key)
            weakref.finalize(storage, self._forget, key, num_bytes)
            self.live += num_bytes
            self.peak = max(self.peak, self.live)

    def _forget(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self._elsewhere.discard(key)
        self.live -= num_bytes


class _MetaRules(TorchFunctionMode):
    """What differs without data: attention is one fused kernel, and what goes to the CPU lies elsewhere."""

    def __init__(self, counter: _Counter):
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        if str(kwargs.get("device")) == "cpu":
            self.counter.elsewhere = True
            try:
                return args[0].clone() if func is Tensor.to else func(*args, **kwargs | {"device": "meta"})
            finally:
                self.counter.elsewhere = False
        if func is Tensor.to and self.counter.lies_elsewhere(args[0]):
            return args[0].clone()
        return func(*args, **kwargs)
