"""Exact streaming: time as a value that is passed down, never hidden in a module.

A clip may be pushed through the network in pieces of any size and gives the frames that one pass over
the whole clip gives. Every temporal module pads its own two edges once, emits only frames whose window
is complete (possibly none), and keeps what later windows need in its named slot of the `StreamState`.
Whatever bypasses a temporal module waits in a queue and leaves with the frames it belongs to. What a recurrent
network carries from frame to frame is kept in a slot too, so that a failed push does not advance it.

    push 0..7            push 8..15               push 16, last
    x  0 1 2 ... 7       x  8 ... 15              x  16 [0]
    h  0 1 ... 6         h  7 ... 14              h  15 16 [0]
    y  0 1 ... 5         y  6 ... 13              y  14 15 16

Zeros stand before and after both x and h, where a whole-clip convolution has them too, so that a clip's
edges are equal as well. Padding the clip itself would not be: h outside the clip is 0, not relu(bias).
Knows nothing about images, UNets or decoders. Source: AdcVSR (arXiv 2603.00458), the 1D part.
"""

import dataclasses
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import WHOLE_FRAMES, StepConfig
from .errors import NonFiniteError, StreamError


@dataclass(frozen=True)
class Binding:
    """What a stream is tied to by its first push."""

    batch: int
    height: int
    width: int
    dtype: torch.dtype
    strength: float


@dataclass(frozen=True)
class Slot:
    """Frames that one module keeps: `pieces` are [B,t,C,H,W] in order, `pad` counts leading edge zeros."""

    pieces: tuple[Tensor, ...] = ()
    pad: int = 0


@dataclass
class StreamState:
    """The temporal context of one stream; starts empty and binds at the first push.

    Tensors inside are never modified in place, so `copy` is cheap and a failed push changes nothing.

    Attributes:
        recompute_skips: keep the network's input instead of the finest level's skips and compute these
            again when they are needed: less memory, a second run of the first block.
        offload: keep everything in the CPU's memory between uses: no device memory, a copy to and fro each push.
        frames_in, frames_out: frames pushed and frames emitted so far.
        drained: temporal blocks that have met the clip's end, while it is drained bit by bit.
        closed: the clip's end was pushed.
    """

    recompute_skips: bool = False
    offload: bool = False
    slots: dict[str, Slot] = field(default_factory=dict)
    binding: Binding | None = None
    frames_in: int = 0
    frames_out: int = 0
    largest_push: int = 0
    drained: int = 0
    closed: bool = False

    def copy(self) -> "StreamState":
        """Return an independent state that shares the (immutable) tensors."""
        return dataclasses.replace(self, slots=dict(self.slots))

    def offloaded(self) -> "StreamState":
        """Return this state resting in the CPU's memory, for a student on another device."""
        return dataclasses.replace(self.to("cpu"), offload=True)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "StreamState":
        """Return this state on another device, or for a student of another floating dtype."""
        moved = self.copy()
        for name, slot in self.slots.items():
            moved.slots[name] = Slot(tuple(piece.to(device=device, dtype=dtype) for piece in slot.pieces), slot.pad)
        if dtype is not None and self.binding is not None:
            moved.binding = dataclasses.replace(self.binding, dtype=dtype)
        return moved

    @property
    def num_bytes(self) -> int:
        """Memory that the state holds, in bytes; tensors that share storage count once."""
        storages = {}
        for slot in self.slots.values():
            for piece in slot.pieces:
                storage = piece.untyped_storage()
                storages[(piece.device, storage.data_ptr())] = storage.nbytes()
        return sum(storages.values())


class Stalled(Exception):
    """A push whose frames all wait for later ones; nothing behind this point has anything to do."""


class Push:
    """One step of one stream: reads the committed state, collects the new one, commits at the end.

    Until `commit` nothing of the state has changed, so an exception anywhere in the step (out of memory,
    cancel, a non-finite value) leaves the stream as it was.

    Args:
        state: the stream.
        binding: what this push is like; must equal the first push's.
        num_frames: frames given.
        last: whether the clip ends with them.
        check_finite: whether `commit` refuses new state that holds NaN or infinity.
        how: how spatial layers compute; may differ from push to push.
        copies: whether to copy what layers return before it is kept, because the next step overwrites it.

    Attributes:
        ends: whether temporal blocks meet the clip's end now; `last`, unless they are drained one after the other.

    Raises:
        StreamError: the stream is closed, is bound to something else, or 0 frames come before the end.
    """

    def __init__(
        self,
        state: StreamState,
        binding: Binding,
        num_frames: int,
        last: bool,
        check_finite: bool,
        how: StepConfig = WHOLE_FRAMES,
        copies: bool = False,
    ):
        if state.closed:
            raise StreamError("this stream has ended (a push said last=True); start a new StreamState()")
        if state.drained and num_frames:
            raise StreamError("the end of this stream is being drained, no frame can follow; call drain() until closed")
        if num_frames == 0 and not last:
            raise StreamError("0 frames were pushed before the end; give at least one frame, or last=True")
        if state.binding not in (None, binding):
            raise StreamError(f"the stream began as {state.binding} and now got {binding}; start a new StreamState()")
        self.state = state
        self.binding = binding
        self.last = self.ends = last
        self.how = how
        largest = max(1, num_frames, state.largest_push)
        self.frame_batch = min(how.frame_batch, largest) or largest
        self.strength = binding.strength
        self.recompute_skips = state.recompute_skips
        self.num_frames = num_frames
        self._copies = copies
        self._device = "cpu" if state.offload else None  # where new state rests; None = where it was made
        self._slots = dict(state.slots)
        self._sums: list[Tensor] | None = [] if check_finite else None

    def watch(self, frames: Tensor) -> None:
        """Let `commit` look at these new frames: one sum each, read back once per push."""
        if self._sums is not None:
            self._sums.append(frames.detach().sum(dtype=torch.promote_types(frames.dtype, torch.float32)))

    def window(self, name: str, frames: Tensor, radius: int) -> tuple[Tensor, int]:
        """Extend a convolution's window by new frames and keep what the next push needs.

        Args:
            name: the module's slot.
            frames: [B,T,C,H,W], T may be 0.
            radius: frames on each side of a window.

        Returns:
            window: [B,L,C,H,W]; a kernel of 2 * radius + 1 gives max(0, L - 2 * radius) outputs.
            pad: how many leading frames of the window are edge zeros.
        """
        self.watch(frames)
        slot = self._slots.get(name)
        begins, pad = slot is None, radius if slot is None else slot.pad
        edge = frames.new_zeros((frames.shape[0], radius, *frames.shape[2:])) if begins or self.ends else None
        kept = (edge,) if begins else _onto(slot.pieces, frames)
        window = cat_frames((*kept, frames, *((edge,) if self.ends else ())))
        num_outputs = max(0, window.shape[1] - 2 * radius)
        rest = () if self.ends else (self._resting(window[:, num_outputs:]),)
        self._slots[name] = Slot(rest, max(0, pad - num_outputs))
        return window, pad

    def no_frames(self, name: str, like: Tensor) -> Tensor:
        """Return no frames [B,0,C,H,W] of the kind that a window's slot keeps, on the device of `like`."""
        return self._slots[name].pieces[0][:, :0].to(like.device)

    def store(self, name: str, frames: Tensor) -> None:
        """Append frames [B,T,C,H,W] to a queue."""
        if frames.shape[1]:
            self.watch(frames)
            resting = frames.to(device=self._device, copy=self._copies)
            self._slots[name] = Slot((*self._slots.get(name, Slot()).pieces, resting))

    def take(self, name: str, num_frames: int, like: Tensor) -> Tensor:
        """Remove the first `num_frames` (1 or more) of a queue, onto the device of `like`."""
        taken, pieces = [], list(self._slots.get(name, Slot()).pieces)
        missing = num_frames
        while missing:
            piece = pieces.pop(0)
            taken.append(piece[:, :missing])
            if piece.shape[1] > missing:
                pieces.insert(0, _compact(piece[:, missing:]))
            missing -= taken[-1].shape[1]
        self._slots[name] = Slot(tuple(pieces))
        return cat_frames(_onto(taken, like))

    def keep(self, name: str, frames: Tensor) -> None:
        """Put frames [B,T,C,H,W] into a slot, in place of what it held."""
        self.watch(frames)
        self._slots[name] = Slot((frames.to(device=self._device),))

    def recall(self, name: str, like: Tensor) -> Tensor | None:
        """Return the frames that `keep` put into a slot, onto the device of `like`, or None when it never did."""
        pieces = _onto(self._slots.get(name, Slot()).pieces, like)
        return pieces[0] if pieces else None

    def _resting(self, frames: Tensor) -> Tensor:
        return _compact(frames.to(device=self._device))

    def commit(self, output: Tensor, drained: int = 0, closed: bool | None = None) -> None:
        """Make the new state the stream's state.

        Args:
            output: what this push returns.
            drained: temporal blocks that have met the end, when the clip is drained.
            closed: whether the stream has ended; None = when this push was the last.

        Raises:
            NonFiniteError: new state or output holds NaN or infinity; the stream is unchanged.
        """
        self.watch(output)
        if self._sums and not bool(torch.stack([s.to(output.device) for s in self._sums]).isfinite().all()):
            raise NonFiniteError(
                f"the network gave NaN or infinity in {self.binding.dtype} around frame {self.state.frames_in}; "
                "use bf16 or fp32, and check the weights and the input"
            )
        state = self.state
        state.closed = self.last if closed is None else closed
        state.drained = drained
        state.slots = {} if state.closed else self._slots
        state.binding = self.binding
        state.frames_in += self.num_frames
        state.frames_out += output.shape[1]
        state.largest_push = max(state.largest_push, self.num_frames)


class TemporalConv(nn.Conv1d):
    """A symmetric convolution over time, the same at every pixel, without padding of its own.

    Args:
        channels_in, channels_out: width.
        kernel: odd size in frames.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int):
        super().__init__(channels_in, channels_out, kernel)

    @property
    def radius(self) -> int:
        return self.kernel_size[0] // 2

    def forward(self, window: Tensor) -> Tensor:
        """Map [B,L,C,H,W] to [B,max(0, L - 2 * radius),C',H,W]."""
        batch, length, _, height, width = window.shape
        if length <= 2 * self.radius:
            return window.new_empty((batch, 0, self.out_channels, height, width))
        # Time and flattened space form one picture: a (kernel, 1) convolution that copies no channels_last input.
        picture = window.permute(0, 2, 1, 3, 4).flatten(3)  # [B,C,L,HW]
        result = F.conv2d(picture, self.weight[..., None], self.bias)
        return result.unflatten(3, (height, width)).permute(0, 2, 1, 3, 4)


class TemporalBlock(nn.Module):
    """x + strength * conv(relu(conv(x))) over time; identity at initialisation.

    Only the second convolution starts at zero: with both at zero, h and with it every gradient would vanish.

    Args:
        channels: width of x.
        hidden: width between the convolutions.
        kernel: odd size in frames.
        name: the block's slot in a StreamState, unique in the network.
    """

    def __init__(self, channels: int, hidden: int, kernel: int, name: str):
        super().__init__()
        self.name = name
        self.conv1 = TemporalConv(channels, hidden, kernel)
        self.conv2 = TemporalConv(hidden, channels, kernel)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    @property
    def lookahead(self) -> int:
        """Frames that must follow a frame before it can be emitted."""
        return self.conv1.radius + self.conv2.radius

    def forward(self, x: Tensor, push: Push) -> Tensor:
        """Map [B,T,C,H,W] to [B,T',C,H,W]: the frames that are final now, 1 <= T' <= T + lookahead.

        Raises:
            Stalled: no frame is final yet and the clip goes on.
        """
        if push.strength == 0:
            return x
        return self._advance(x, push)

    def drain(self, push: Push) -> Tensor:
        """Meet the clip's end, of which the blocks behind shall not know yet; returns the frames that waited."""
        push.ends = True
        try:
            return self._advance(push.no_frames(f"{self.name}.x", like=self.conv1.weight), push)
        finally:
            push.ends = False

    def _advance(self, x: Tensor, push: Push) -> Tensor:
        x_window, pad = push.window(f"{self.name}.x", x, self.conv1.radius)
        hidden = F.relu(self.conv1(x_window))
        h_window, _ = push.window(f"{self.name}.h", hidden, self.conv2.radius)
        branch = self.conv2(h_window)
        if branch.shape[1] == 0 and not push.ends:
            raise Stalled
        # The x window reaches back to the next frame to be emitted, so the residual needs no queue of its own.
        return torch.add(x_window[:, pad : pad + branch.shape[1]], branch, alpha=push.strength)


def cat_frames(pieces: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """Concatenate [B,T,C,H,W] pieces over time; the result is channels_last in memory."""
    if len(pieces) == 1:
        return pieces[0]
    # cat keeps no 5-D channels_last layout by itself, so it is shown one that is contiguous.
    return torch.cat([piece.permute(0, 1, 3, 4, 2) for piece in pieces], dim=1).permute(0, 1, 4, 2, 3)


def _onto(pieces: tuple[Tensor, ...] | list[Tensor], like: Tensor) -> tuple[Tensor, ...]:
    return tuple(piece.to(like.device) for piece in pieces)


def _compact(frames: Tensor) -> Tensor:
    """Drop the rest of the storage that a view keeps alive, when that rest is the larger part."""
    wasteful = frames.untyped_storage().nbytes() > 2 * frames.numel() * frames.element_size()
    return frames.clone() if wasteful else frames
