"""The pruned UNet: four levels down, a middle, four levels up, with 1D blocks over time in between.

Works on [B,T,C,h,w] at half the LR size and knows nothing about pixels or the decoder. Spatial layers see
single frames; only temporal blocks see neighbours, so every skip goes through a queue of the push and is
released with the frames it belongs to. Skips are taken before the temporal block of their level, as
inserting modules between AdcSR's blocks does. Source: AdcVSR (arXiv 2603.00458), AdcSR (arXiv 2411.13383).
"""

import torch
from torch import Tensor, nn

from .config import StudentConfig
from .fused import norm_silu
from .layers import Downsample, ResBlock, Transformer, Upsample, make_norm, per_frame
from .streaming import Push, TemporalBlock


def make_temporal(config: StudentConfig, channels: int, name: str, places: tuple[str, ...]) -> TemporalBlock | None:
    """Return the temporal block of a place, or None when the config's placement has none there."""
    if config.temporal not in places:
        return None
    return TemporalBlock(channels, max(1, round(channels * config.temporal_hidden)), config.temporal_kernel, name)


class Layer(nn.Module):
    """A residual block, then a transformer where the level has heads, each with its temporal block if placed."""

    def __init__(self, config: StudentConfig, channels_in: int, channels: int, heads: int, name: str, level: int):
        super().__init__()
        self.shrink = 2 << level  # LR pixels of one pixel here
        self.resnet = ResBlock(channels_in, channels, config.norm, config.norm_groups, 1e-5)
        self.resnet_temporal = make_temporal(config, channels, f"{name}.resnet", ("resnets", "layers"))
        self.transformer = Transformer(channels, heads, config.norm, config.norm_groups) if heads else None
        self.transformer_temporal = (
            make_temporal(config, channels, f"{name}.transformer", ("layers",)) if heads else None
        )

    def forward(self, x: Tensor, push: Push, skip: Tensor | None = None) -> Tensor:
        batch, inputs = push.frame_batch, (x,) if skip is None else (x, skip)
        x = per_frame(self.resnet, *inputs, batch=batch)
        if self.resnet_temporal is not None:
            x = self.resnet_temporal(x, push)
        if self.transformer is not None:
            x = per_frame(self.transformer, x, batch=batch, window=push.how.attention_window // self.shrink)
        if self.transformer_temporal is not None:
            x = self.transformer_temporal(x, push)
        return x


class Block(nn.Module):
    """One level: its layers, a resampling, a temporal block. The UNet wires the skips."""

    def __init__(
        self, config: StudentConfig, name: str, level: int, widths_in: list[int], width: int, heads: list[int]
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            Layer(config, w, width, h, f"{name}.{i}", level)
            for i, (w, h) in enumerate(zip(widths_in, heads, strict=True))
        )
        self.resample: nn.Module | None = None
        self.temporal = make_temporal(config, width, name, ("blocks",))


class TemporalInput(nn.Conv2d):
    """Take in the frame before, unshuffled to 192 channels.

    Starts at zero and draws no random numbers, so a fresh recurrent network is its plain twin from the same seed. It
    has no bias: the first frame of a stream, before which there is nothing but zeros, comes out as if alone.
    """

    def __init__(self, channels: int):
        super().__init__(192, channels, 3, padding=1, bias=False)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class UNet(nn.Module):
    """Map unshuffled LR frames to the decoder's features, [B,T,12,h,w] -> [B,T',decoder_channels[-1],h,w].

    Attributes:
        num_blocks: four down, the middle, four up.
    """

    num_blocks = 9

    def __init__(self, config: StudentConfig):
        super().__init__()
        channels, layers = config.channels, config.layers
        self.conv_in = nn.Conv2d(12, channels[0], 3, padding=1)
        self.temporal_in = TemporalInput(channels[0]) if config.recurrent else None
        self.down = nn.ModuleList()
        skips = [("skip.0.0", channels[0])]  # name and width, in the order in which they are made
        for level, width in enumerate(channels):
            widths_in = [skips[-1][1]] + [width] * (layers - 1)
            block = Block(config, f"down.{level}", level, widths_in, width, [config.heads[level]] * layers)
            if level < 3:
                block.resample = Downsample(width)
            self.down.append(block)
            num_points = layers + (level == 0) + (level < 3)
            skips += [(f"skip.{level}.{point}", width) for point in range(level == 0, num_points)]
        width = channels[-1]
        self.mid = Block(config, "mid", 3, [width, width], width, [config.mid_heads, 0])
        self.up = nn.ModuleList()
        self._skip_names = []  # of each up block's layers
        for level in reversed(range(4)):
            taken = [skips.pop() for _ in range(layers + 1)]
            widths_in = [width + taken[0][1], *(channels[level] + skip_width for _, skip_width in taken[1:])]
            width = channels[level]
            self._skip_names.append([name for name, _ in taken])
            block = Block(config, f"up.{level}", level, widths_in, width, [config.heads[level]] * (layers + 1))
            if level > 0:
                block.resample = Upsample(width)
            self.up.append(block)
        self.norm_out = make_norm(config.norm, config.norm_groups, channels[0], 1e-5)
        self.conv_out = nn.Conv2d(channels[0], config.decoder_channels[-1], 3, padding=1)

    def forward(self, x: Tensor, push: Push, drain: int | None = None) -> Tensor:
        """Run one push, or one frame of it, or let one temporal block out.

        Args:
            x: [B,T,12,h,w], T may be 0 in the push that ends the clip; [B,T,12+192,h,w] with the frame before each.
            push: the step of the stream that these frames belong to.
            drain: 0 to 8, the block after whose spatial layers to begin: its temporal block meets the clip's end and
                gives the frames that it still holds. `x` is not looked at. Only with `temporal` "blocks".

        Returns:
            features [B,T',C,h,w] of the frames that are final now, T' >= 1.

        Raises:
            Stalled: no frame is final yet.
        """
        h = x
        for index, block in enumerate((*self.down, self.mid, *self.up)):
            if index == drain:
                h = block.temporal.drain(push)
            elif drain is None or index > drain:
                h = self._spatial(index, h, push)
                h = h if block.temporal is None else block.temporal(h, push)
        return per_frame(self._leave, h, batch=push.frame_batch)

    def _spatial(self, index: int, h: Tensor, push: Push) -> Tensor:
        """Run a block's layers and its resampling."""
        if index < 4:
            stored = index > 0 or not push.recompute_skips
            if not stored:
                push.store("skip.input", h)
            return self._down(index, h, push, stored)
        if index == 4:
            for layer in self.mid.layers:
                h = layer(h, push)
            return h
        block = self.up[index - 5]
        if push.recompute_skips and block is self.up[2]:
            # The finest level's skips are first needed here, one level before the last.
            self._down(0, push.take("skip.input", h.shape[1], like=h), push, store=True)
        for layer, name in zip(block.layers, self._skip_names[index - 5], strict=True):
            h = layer(h, push, push.take(name, h.shape[1], like=h))
        return h if block.resample is None else per_frame(block.resample, h, batch=push.frame_batch)

    def _enter(self, x: Tensor) -> Tensor:
        if self.temporal_in is None:
            return self.conv_in(x)
        h = self.conv_in(x[:, :12])
        return h + self.temporal_in(x[:, 12:]) if x.shape[1] > 12 else h

    def _leave(self, h: Tensor) -> Tensor:
        return self.conv_out(norm_silu(self.norm_out, h))

    def _down(self, level: int, h: Tensor, push: Push, store: bool) -> Tensor:
        """Run a level up to its temporal block, storing the skip that leaves after each step."""
        block = self.down[level]
        steps = [lambda x, layer=layer: layer(x, push) for layer in block.layers]
        if level == 0:
            steps.insert(0, lambda x: per_frame(self._enter, x, batch=push.frame_batch))
        if block.resample is not None:
            steps.append(lambda x: per_frame(block.resample, x, batch=push.frame_batch))
        for index, step in enumerate(steps):
            h = step(h)
            if store:  # at once: a temporal block of a later step may stall
                push.store(f"skip.{level}.{index}", h)
        return h


def cat_channels(a: Tensor, b: Tensor) -> Tensor:
    """Concatenate [B,T,C,H,W] over channels."""
    # In four dimensions cat keeps channels_last.
    return torch.cat((a.flatten(0, 1), b.flatten(0, 1)), dim=1).unflatten(0, a.shape[:2])
