"""The pruned UNet: four levels down, a middle, four levels up, with 1D blocks over time in between.

Works on [B,T,C,h,w] at half the LR size and knows nothing about pixels or the decoder. Spatial layers see
single frames; only temporal blocks see neighbours, so every skip goes through a queue of the push and is
released with the frames it belongs to. Skips are taken before the temporal block of their level, as
inserting modules between AdcSR's blocks does. Source: AdcVSR (arXiv 2603.00458), AdcSR (arXiv 2411.13383).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import StudentConfig
from .layers import Downsample, ResBlock, Transformer, Upsample, make_norm, per_frame
from .streaming import Push, TemporalBlock


def make_temporal(config: StudentConfig, channels: int, name: str, places: tuple[str, ...]) -> TemporalBlock | None:
    """Return the temporal block of a place, or None when the config's placement has none there."""
    if config.temporal not in places:
        return None
    return TemporalBlock(channels, max(1, round(channels * config.temporal_hidden)), config.temporal_kernel, name)


class Layer(nn.Module):
    """A residual block, then a transformer where the level has heads, each with its temporal block if placed."""

    def __init__(self, config: StudentConfig, channels_in: int, channels: int, heads: int, name: str):
        super().__init__()
        self.resnet = ResBlock(channels_in, channels, config.norm, config.norm_groups, 1e-5)
        self.resnet_temporal = make_temporal(config, channels, f"{name}.resnet", ("resnets", "layers"))
        self.transformer = Transformer(channels, heads, config.norm, config.norm_groups) if heads else None
        self.transformer_temporal = (
            make_temporal(config, channels, f"{name}.transformer", ("layers",)) if heads else None
        )

    def forward(self, x: Tensor, push: Push) -> Tensor:
        x = per_frame(self.resnet, x)
        if self.resnet_temporal is not None:
            x = self.resnet_temporal(x, push)
        if self.transformer is not None:
            x = per_frame(self.transformer, x)
        if self.transformer_temporal is not None:
            x = self.transformer_temporal(x, push)
        return x


class Block(nn.Module):
    """One level: its layers, a resampling, a temporal block. The UNet wires the skips."""

    def __init__(self, config: StudentConfig, name: str, widths_in: list[int], width: int, heads: list[int]):
        super().__init__()
        self.layers = nn.ModuleList(
            Layer(config, w, width, h, f"{name}.{i}") for i, (w, h) in enumerate(zip(widths_in, heads, strict=True))
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
    """Map unshuffled LR frames to the decoder's features, [B,T,12,h,w] -> [B,T',decoder_channels[-1],h,w]."""

    def __init__(self, config: StudentConfig):
        super().__init__()
        channels, layers = config.channels, config.layers
        self.conv_in = nn.Conv2d(12, channels[0], 3, padding=1)
        self.temporal_in = TemporalInput(channels[0]) if config.recurrent else None
        self.down = nn.ModuleList()
        skips = [("skip.0.0", channels[0])]  # name and width, in the order in which they are made
        for level, width in enumerate(channels):
            widths_in = [skips[-1][1]] + [width] * (layers - 1)
            block = Block(config, f"down.{level}", widths_in, width, [config.heads[level]] * layers)
            if level < 3:
                block.resample = Downsample(width)
            self.down.append(block)
            num_points = layers + (level == 0) + (level < 3)
            skips += [(f"skip.{level}.{point}", width) for point in range(level == 0, num_points)]
        self._skip_names = [name for name, _ in skips]
        width = channels[-1]
        self.mid = Block(config, "mid", [width, width], width, [config.mid_heads, 0])
        self.up = nn.ModuleList()
        for level in reversed(range(4)):
            widths_in = []
            for _ in range(layers + 1):
                widths_in.append(width + skips.pop()[1])
                width = channels[level]
            block = Block(config, f"up.{level}", widths_in, width, [config.heads[level]] * (layers + 1))
            if level > 0:
                block.resample = Upsample(width)
            self.up.append(block)
        self.norm_out = make_norm(config.norm, config.norm_groups, channels[0], 1e-5)
        self.conv_out = nn.Conv2d(channels[0], config.decoder_channels[-1], 3, padding=1)

    def forward(self, x: Tensor, push: Push) -> Tensor:
        """Run one push, or one frame of it.

        Args:
            x: [B,T,12,h,w], T may be 0 in the push that ends the clip; [B,T,12+192,h,w] with the frame before each.
            push: the step of the stream that these frames belong to.

        Returns:
            features [B,T',C,h,w] of the frames that are final now, T' >= 1.

        Raises:
            Stalled: no frame is final yet.
        """
        h = x
        for level, block in enumerate(self.down):
            stored = level > 0 or not push.recompute_skips
            if not stored:
                push.store("skip.input", x)
            h = _temporal(block, self._down(level, h, push, stored), push)
        for layer in self.mid.layers:
            h = layer(h, push)
        h = _temporal(self.mid, h, push)
        names = list(self._skip_names)
        for block in self.up:
            if push.recompute_skips and block is self.up[2]:
                # The finest level's skips are first needed here, one level before the last.
                self._down(0, push.take("skip.input", h.shape[1], like=h), push, store=True)
            for layer in block.layers:
                skip = push.take(names.pop(), h.shape[1], like=h)
                h = layer(cat_channels(h, skip), push)
            if block.resample is not None:
                h = per_frame(block.resample, h)
            h = _temporal(block, h, push)
        return per_frame(self.conv_out, F.silu(per_frame(self.norm_out, h)))

    def _enter(self, x: Tensor) -> Tensor:
        if self.temporal_in is None:
            return self.conv_in(x)
        h = self.conv_in(x[:, :12])
        return h + self.temporal_in(x[:, 12:]) if x.shape[1] > 12 else h

    def _down(self, level: int, h: Tensor, push: Push, store: bool) -> Tensor:
        """Run a level up to its temporal block, storing the skip that leaves after each step."""
        block = self.down[level]
        steps = [lambda x, layer=layer: layer(x, push) for layer in block.layers]
        if level == 0:
            steps.insert(0, lambda x: per_frame(self._enter, x))
        if block.resample is not None:
            steps.append(lambda x: per_frame(block.resample, x))
        for index, step in enumerate(steps):
            h = step(h)
            if store:  # at once: a temporal block of a later step may stall
                push.store(f"skip.{level}.{index}", h)
        return h


def _temporal(block: Block, h: Tensor, push: Push) -> Tensor:
    return h if block.temporal is None else block.temporal(h, push)


def cat_channels(a: Tensor, b: Tensor) -> Tensor:
    """Concatenate [B,T,C,H,W] over channels."""
    # In four dimensions cat keeps channels_last.
    return torch.cat((a.flatten(0, 1), b.flatten(0, 1)), dim=1).unflatten(0, a.shape[:2])
