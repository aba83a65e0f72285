"""The student: LR frames in, frames of four times the size out, as one pass or as a stream.

`student(lr)` is `student(lr, StreamState(), last=True)`: one code path. Knows nothing about files, tiles,
colour or sizes that do not fit; the engine does. Sources: AdcVSR (arXiv 2603.00458); the recurrent kind is our reading
of InstaVSR's abstract (arXiv 2603.26134).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .config import WHOLE_FRAMES, StepConfig, StudentConfig
from .decoder import Decoder
from .errors import ConfigError, InputError
from .layers import ResBlock
from .streaming import Binding, Push, Stalled, StreamState, TemporalBlock
from .unet import TemporalInput, UNet, cat_channels

_BEFORE = "before"  # the slot of the frame that a recurrent student carries


class Student(nn.Module):
    """A network of the AdcVSR family.

    Args:
        config: its shape.

    Attributes:
        scale: output pixels per input pixel along one edge (4).
        multiple_of: LR height and width must be multiples of this (16).
        lookahead: frames that must follow a frame before it can be emitted, when the temporal strength is above 0.
        halo: frames on either side that a part of a clip needs to come out as in the whole clip, or None when no number
            is enough: a recurrent student remembers all that came before.
        reuses_memory: whether what its layers return is overwritten in the next step, as by CUDA graphs (compiled.py).
    """

    scale = 4
    multiple_of = 16
    reuses_memory = False

    def __init__(self, config: StudentConfig):
        super().__init__()
        self.config = config
        self.unet = UNet(config)
        self.decoder = Decoder(config)
        if config.norm == "none":
            self._start_quiet()
        # Faster for small nets on a CPU, and what GPU convolutions want.
        self.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def _start_quiet(self) -> None:
        # Without norms a deep random net drowns Adam. Every residual block begins as the identity; what is left is a
        # chain of convolutions with nothing non-linear between them, which He's gain of sqrt(2) would make a hundred
        # times louder, so theirs is 1. The last one is small: the first output is close to the residual's base.
        blocks = [module for module in self.modules() if isinstance(module, ResBlock)]
        inside = {id(conv) for block in blocks for conv in (block.conv1, block.conv2)}
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not isinstance(module, TemporalInput):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu" if id(module) in inside else "linear")
                nn.init.zeros_(module.bias)
        for block in blocks:
            nn.init.zeros_(block.conv2.weight)
        self.decoder.conv_out.weight.mul_(0.1)

    @property
    def lookahead(self) -> int:
        return sum(module.lookahead for module in self.modules() if isinstance(module, TemporalBlock))

    @property
    def halo(self) -> int | None:
        return None if self.config.recurrent else self.lookahead

    def temporal_names(self) -> set[str]:
        """Return the names of the parameters through which a frame sees others."""
        kinds = (TemporalBlock, TemporalInput)
        modules = [(name, module) for name, module in self.named_modules() if isinstance(module, kinds)]
        return {f"{name}.{key}" for name, module in modules for key, _ in module.named_parameters()}

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    def forward(
        self,
        lr: Tensor,
        stream: StreamState | None = None,
        last: bool = True,
        temporal_strength: float = 1.0,
        how: StepConfig = WHOLE_FRAMES,
    ) -> Tensor:
        """Push frames and return those that are final.

        Args:
            lr: [B,T,3,H,W] in [-1, 1], H and W multiples of `multiple_of`; T may be 0 when `last` ends a stream.
                Its dtype is the output's; inside, the student's own is used.
            stream: the clip's state, changed only when the push succeeds; None = these frames are the whole clip.
            last: whether the clip ends with these frames.
            temporal_strength: factor on the temporal branch in [0, 1], fixed per stream: on the temporal blocks, or on
                what is carried from the frame before. 0 bypasses it: every frame alone, no look-ahead.
            how: how this step is computed; may differ from push to push of a stream.

        Returns:
            [B,T',3,4H,4W] in about [-1, 1], not clamped. Over a stream the T' add up to the T. A frame comes out
            as soon as `lookahead` frames follow it, or the clip ends. On the CPU when the stream is offloaded.

        Raises:
            InputError: a shape that does not fit, or no stream with last=False.
            ConfigError: a strength outside [0, 1], or skips to recompute that depend on time.
            StreamError: a push against the stream's rules.
            NonFiniteError: NaN or infinity in the result or the new state (not checked in training mode).
        """
        self._check(lr, stream, last, temporal_strength)
        stream = StreamState() if stream is None else stream
        if stream.recompute_skips and self.config.temporal in ("resnets", "layers"):
            raise ConfigError(
                f'temporal placement "{self.config.temporal}" puts time inside the finest level, so its skips '
                "cannot be recomputed from the input; use StreamState(recompute_skips=False)"
            )
        return self._push(lr, stream, last, temporal_strength, how, None)

    def drain(self, lr: Tensor, stream: StreamState, how: StepConfig = WHOLE_FRAMES) -> Tensor:
        """End a clip bit by bit: call it until `stream.closed`.

        Each call lets one more temporal block meet the end, and returns the few frames which that sets free, where
        `forward` with `last` holds `lookahead` frames of every level at once. Together they are the same frames.

        Args:
            lr: no frames, [B,0,3,H,W], of the clip's size, dtype and device.
            stream: the clip's state, changed only when the call succeeds.
            how: see `forward`.

        Returns:
            [B,T',3,4H,4W].

        Raises:
            see `forward`.
        """
        strength = 1.0 if stream.binding is None else stream.binding.strength
        self._check(lr, stream, True, strength)
        # Only blocks that lie between the UNet's blocks, and that were ever pushed to, can be drained one by one.
        by_stages = self.config.temporal == "blocks" and strength > 0 and stream.frames_in > 0
        return self._push(lr, stream, True, strength, how, stream.drained if by_stages else None)

    def _push(
        self, lr: Tensor, stream: StreamState, last: bool, strength: float, how: StepConfig, stage: int | None
    ) -> Tensor:
        batch, num_frames, _, height, width = lr.shape
        binding = Binding(batch, height, width, self.dtype, strength)
        if self.reuses_memory:
            torch.compiler.cudagraph_mark_step_begin()
        copies = self.reuses_memory
        push = Push(stream, binding, num_frames, last, check_finite=not self.training, how=how, copies=copies)
        push.ends = last and stage is None
        if self.config.recurrent and strength > 0:
            sr = self._run_in_turn(lr, push)
        else:
            sr = self._run_together(lr, push, stage)
        if stage is None:
            push.commit(sr)
        else:
            push.commit(sr, drained=stage + 1, closed=stage + 1 == self.unet.num_blocks)
        return sr

    def _run_together(self, lr: Tensor, push: Push, stage: int | None) -> Tensor:
        """Run frames, or let out one temporal block, as one batch."""
        if lr.shape[1] == 0 and push.state.frames_in == push.state.frames_out:
            return self._empty(lr, 0, push)
        has_base = self.config.residual == "bicubic"
        if has_base:
            push.store("lr", lr)
        try:
            features = self.unet(_unshuffle(lr.to(self.dtype), 2), push, stage)
        except Stalled:
            return self._empty(lr, 0, push)
        base = push.take("lr", features.shape[1], like=lr) if has_base else None
        sr = self._empty(lr, features.shape[1], push)
        self._decode_into(sr, 0, features, base, push)
        return sr

    def _run_in_turn(self, lr: Tensor, push: Push) -> Tensor:
        """Run frame after frame, showing each the output for the one before it."""
        sr = self._empty(lr, lr.shape[1], push)
        for index in range(lr.shape[1]):
            frame = lr[:, index : index + 1]
            x, before = _unshuffle(frame.to(self.dtype), 2), push.recall(_BEFORE, like=lr)
            if before is not None:
                x = cat_channels(x, push.strength * _unshuffle(before, 8))
            self._decode_into(sr, index, self.unet(x, push), frame if self.config.residual == "bicubic" else None, push)
            push.keep(_BEFORE, sr[:, index : index + 1].to(self.dtype, copy=True))
        return sr

    def _decode_into(self, sr: Tensor, first: int, features: Tensor, base: Tensor | None, push: Push) -> None:
        """Decode features into the frames of `sr` from `first` on."""
        # A CPU decodes frame by frame: its caches gain more than batching does.
        batch = 1 if features.device.type == "cpu" else push.frame_batch
        for start in range(0, features.shape[1], batch):
            part = slice(start, start + batch)
            frames = self._decode(features[:, part], None if base is None else base[:, part], push.how)
            sr[:, first + start : first + start + frames.shape[1]] = frames

    def _empty(self, lr: Tensor, num_frames: int, push: Push) -> Tensor:
        shape = (lr.shape[0], num_frames, 3, self.scale * lr.shape[3], self.scale * lr.shape[4])
        return lr.new_empty(shape, device="cpu" if push.state.offload else None)

    def _decode(self, features: Tensor, base: Tensor | None, how: StepConfig) -> Tensor:
        batch = features.shape[:2]
        sr = self.decoder(features.flatten(0, 1), how) * self.config.output_scale
        if base is not None:
            sr = sr + F.interpolate(base.flatten(0, 1), scale_factor=self.scale, mode="bicubic", align_corners=False)
        return sr.unflatten(0, batch)

    def _check(self, lr: Tensor, stream: StreamState | None, last: bool, strength: float) -> None:
        if lr.ndim != 5 or lr.shape[2] != 3 or not lr.is_floating_point():
            raise InputError(f"expected floating-point frames [B,T,3,H,W], got {lr.dtype} {list(lr.shape)}")
        if min(lr.shape[3:]) < 1 or any(size % self.multiple_of for size in lr.shape[3:]):
            raise InputError(
                f"LR frames of {lr.shape[4]}x{lr.shape[3]} do not fit; width and height must be multiples of "
                f"{self.multiple_of}: pad them, or use upscale(), which does"
            )
        if not 0 <= strength <= 1:
            raise ConfigError(f"temporal_strength {strength} is outside [0, 1]")
        if stream is None and not last:
            raise InputError("last=False needs a stream: pass the same StreamState() to every push of the clip")


def _unshuffle(frames: Tensor, factor: int) -> Tensor:
    # F.pixel_unshuffle returns an empty batch unchanged, and 0 frames are allowed here.
    folded = rearrange(frames, "b t c (h i) (w j) -> (b t) (c i j) h w", i=factor, j=factor)
    return folded.contiguous(memory_format=torch.channels_last).unflatten(0, frames.shape[:2])
