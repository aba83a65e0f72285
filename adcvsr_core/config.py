"""Two frozen configurations: what the weights are, and how to run them.

`StudentConfig` travels inside the checkpoint and fixes the network's shape; `UpscaleConfig` belongs to
one run and never touches the weights. Source of the full-size numbers: AdcSR (arXiv 2411.13383) and
AdcVSR (arXiv 2603.00458); where the papers are silent or disagree with the count, see docs/network.md.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError

TEMPORAL_PLACEMENTS = ("none", "blocks", "resnets", "layers")
NORMS = ("group", "none")
RESIDUALS = ("none", "bicubic")
COLORS = ("adain", "wavelet", "none")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The shape of one student network (x4, four UNet levels, four decoder levels).

    Attributes:
        channels: UNet width at each of the four levels, finest first.
        layers: residual blocks per down level; an up level has one more.
        heads: attention heads at each level, 0 = no attention there.
        mid_heads: attention heads of the UNet's middle block, 0 = none.
        decoder_channels: decoder width at each of the four levels, finest first.
        decoder_layers: residual blocks per decoder level, less one (0 = one block a level).
        decoder_attention: whether the decoder's middle block attends over the frame.
        temporal: where the 1D blocks sit. "blocks": after each of the nine UNet blocks (AdcVSR);
            "resnets": after every residual block; "layers": after every residual block and every
            transformer; "none": the 2D network (AdcSR).
        temporal_kernel: odd kernel size of each temporal convolution, in frames.
        temporal_hidden: width between a block's two convolutions, as a multiple of its channels.
        recurrent: whether the network also sees its own output for the frame before; only with `temporal` "none".
        norm: "group" as in Stable Diffusion, or "none" (small nets learn faster without).
        norm_groups: most groups a GroupNorm may have.
        residual: "bicubic" adds the network's output to the bicubic upscale; "none" does not.
        output_scale: factor on the network's output before the residual (neutral: 1).
        color: the colour match these weights were made for ("adain" | "wavelet" | "none").
    """

    channels: tuple[int, int, int, int] = (240, 480, 960, 960)
    layers: int = 2
    heads: tuple[int, int, int, int] = (5, 10, 20, 0)
    mid_heads: int = 20
    decoder_channels: tuple[int, int, int, int] = (64, 128, 256, 256)
    decoder_layers: int = 2
    decoder_attention: bool = True
    temporal: str = "blocks"
    temporal_kernel: int = 3
    temporal_hidden: float = 1.0
    recurrent: bool = False
    norm: str = "group"
    norm_groups: int = 32
    residual: str = "none"
    output_scale: float = 1.0
    color: str = "adain"

    def __post_init__(self) -> None:
        for name in ("channels", "heads", "decoder_channels"):
            value = getattr(self, name)
            _require(
                isinstance(value, (tuple, list)) and len(value) == 4 and all(isinstance(v, int) for v in value),
                f"{name} is {value!r}; expected four whole numbers, finest level first",
            )
            object.__setattr__(self, name, tuple(value))
        _require(min(self.channels + self.decoder_channels) > 0, "channels and decoder_channels must be above 0")
        _require(self.layers >= 1 and self.decoder_layers >= 0, "layers must be >= 1 and decoder_layers >= 0")
        for width, heads in (*zip(self.channels, self.heads), (self.channels[-1], self.mid_heads)):
            _require(
                heads >= 0 and (heads == 0 or width % heads == 0),
                f"{heads} heads do not divide a width of {width}; choose a divisor, or 0 for no attention",
            )
        for name, allowed in (
            ("temporal", TEMPORAL_PLACEMENTS),
            ("norm", NORMS),
            ("residual", RESIDUALS),
            ("color", COLORS),
        ):
            value = getattr(self, name)
            _require(value in allowed, f"{name} is {value!r}; expected one of {', '.join(allowed)}")
        _require(
            self.temporal_kernel >= 1 and self.temporal_kernel % 2 == 1,
            f"temporal_kernel {self.temporal_kernel} has no centre frame; use an odd number such as 3",
        )
        _require(self.temporal_hidden > 0, "temporal_hidden must be above 0")
        _require(
            not self.recurrent or self.temporal == "none",
            f'recurrent does not go with temporal "{self.temporal}": a recurrent network needs a finished frame before '
            'it begins the next, and temporal blocks finish none before later ones are there; use temporal "none"',
        )
        _require(self.norm_groups >= 1, "norm_groups must be >= 1")

    def to_json(self) -> str:
        """Return the configuration as one line of JSON, keys sorted."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "StudentConfig":
        """Read what `to_json` wrote.

        Raises:
            ConfigError: not JSON, or a field that this version does not know.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            known = {field.name for field in dataclasses.fields(cls)}
            unknown = sorted(set(fields) - known)
            _require(not unknown, f"unknown StudentConfig fields {unknown}: the file may come from a newer version")
            return cls(**fields)
        except (TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ConfigError(f"not a StudentConfig: {error}") from error


_TINY = dict(
    heads=(0, 0, 4, 0), decoder_attention=False, norm="none", residual="bicubic", output_scale=0.1, color="none"
)

PRESETS: dict[str, StudentConfig] = {
    "adcsr": StudentConfig(temporal="none"),
    "adcvsr": StudentConfig(),
    "recurrent": StudentConfig(temporal="none", recurrent=True),
    "default": StudentConfig(
        channels=(32, 48, 64, 64), mid_heads=4, decoder_channels=(12, 24, 32, 48), decoder_layers=0, **_TINY
    ),
    "nano": StudentConfig(
        channels=(32, 48, 48, 48), layers=1, mid_heads=4, decoder_channels=(8, 16, 24, 32), decoder_layers=0, **_TINY
    ),
}


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """How a step is computed: what it costs in time and memory. Only `attention_window` changes the frames.

    Attributes:
        attention_window: edge in LR pixels of what attention sees around a pixel, a multiple of 32; 0 = the whole
            frame. A frame that is no larger comes out the same.
        frame_batch: frames that the spatial layers compute at once, 0 = all of a step; the end of a clip, which
            releases more frames than that, takes as many as the largest step had.
        band: rows that the decoder computes at once, 0 = all; GroupNorm still sees the whole frame.
    """

    attention_window: int = 0
    frame_batch: int = 0
    band: int = 0

    def __post_init__(self) -> None:
        for name in ("attention_window", "frame_batch", "band"):
            value = getattr(self, name)
            _require(isinstance(value, int) and value >= 0, f"{name} is {value!r}; expected a whole number >= 0")
        _require(
            self.attention_window % 32 == 0,
            f"attention_window {self.attention_window} is not a multiple of 32 LR pixels; use e.g. 128, or 0",
        )


WHOLE_FRAMES = StepConfig()


@dataclass(frozen=True, kw_only=True)
class UpscaleConfig:
    """How one run goes; every default works without reading.

    Attributes:
        scale: output size over input size, above 0. Ignored when `height` is set.
        height: output height in pixels, 0 = use `scale`. The width follows the aspect.
        work_size: height in pixels of the frames the network sees, 0 = a quarter of the output height.
            Larger keeps more of a good source and costs its square.
        chunk: frames per step, 0 = automatic. Never changes the result, only memory and speed.
        tile: tile edge in LR pixels, a multiple of the student's `multiple_of`, 0 = automatic.
            Tiling is not exact: use it only when memory demands.
        overlap: LR pixels shared by neighbouring tiles, 0 = automatic.
        color: "auto" (the student's own) | "adain" | "wavelet" | "none".
        detail: gain on the detail that the network added, 1 = the network's own, 0 = none.
        temporal_strength: 0 = every frame alone, 1 = the full temporal branch.
        cuts: scene-cut sensitivity in [0, 1], 0 = never cut.
        attention_window: edge in LR pixels of what attention sees around a pixel, a multiple of 32; 0 = automatic
            (128 for large frames of networks that attend at their finest level), -1 = the whole frame.
        memory: gigabytes (1e9 bytes) that weights and steps may take on the device, 0 = what is free there.
    """

    scale: float = 4.0
    height: int = 0
    work_size: int = 0
    chunk: int = 0
    tile: int = 0
    overlap: int = 0
    color: str = "auto"
    detail: float = 1.0
    temporal_strength: float = 1.0
    cuts: float = 0.5
    attention_window: int = 0
    memory: float = 0.0

    def __post_init__(self) -> None:
        _require(0 < self.scale <= 64, f"scale {self.scale} is outside (0, 64]")
        for name in ("height", "work_size", "chunk", "tile", "overlap"):
            value = getattr(self, name)
            _require(
                isinstance(value, int) and value >= 0,
                f"{name} is {value!r}; expected a whole number >= 0 (0 = automatic)",
            )
        _require(self.color in ("auto", *COLORS), f"color is {self.color!r}; expected one of auto, {', '.join(COLORS)}")
        _require(0 <= self.detail <= 4, f"detail {self.detail} is outside [0, 4]")
        _require(0 <= self.temporal_strength <= 1, f"temporal_strength {self.temporal_strength} is outside [0, 1]")
        _require(0 <= self.cuts <= 1, f"cuts {self.cuts} is outside [0, 1]")
        _require(self.memory >= 0, f"memory {self.memory} is below 0; give gigabytes, or 0 for what is free")
        _require(self.attention_window >= -1, f"attention_window {self.attention_window} is below -1")
        StepConfig(attention_window=max(0, self.attention_window))
