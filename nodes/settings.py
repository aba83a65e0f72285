"""The inputs that Upscale and Upscale Video share: together one for every field of the engine's `UpscaleConfig`."""

from comfy_api.latest import io

from ..adcvsr_core.config import COLORS, UpscaleConfig
from .schema import made


def settings_inputs() -> list[io.Input]:
    """Return inputs named as the fields of `UpscaleConfig`; saved graphs rely on the order."""
    default = UpscaleConfig()
    return [
        io.Float.Input(
            "scale",
            default=default.scale,
            min=0.25,
            max=16.0,
            step=0.25,
            tooltip="Output size over input size. 4 is what the network makes; other sizes are resampled from it, so "
            "2 costs a quarter of 4. Ignored when height is set.",
        ),
        io.Int.Input(
            "height",
            default=default.height,
            min=0,
            max=8640,
            step=2,
            tooltip="Height of the output in pixels, for example 1080 or 2160; the width follows. 0 = use scale.",
        ),
        io.Float.Input(
            "detail",
            default=default.detail,
            min=0.0,
            max=4.0,
            step=0.05,
            tooltip="Gain on the fine detail that the network adds: 1 = its own, below 1 calmer, 0 = none, above 1 "
            "crisper. Costs little. The Finish node changes it later without running the network again.",
        ),
        io.Float.Input(
            "temporal_strength",
            default=default.temporal_strength,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="How much neighbouring frames steady each other: 1 = full, 0 = every frame alone, for pictures "
            "that are no clip. 0 also saves the memory that the look-ahead takes.",
        ),
        io.Combo.Input(
            "color",
            options=["auto", *COLORS],
            default=default.color,
            tooltip="Colour match of each frame to its source. auto = what the model was made for; adain matches the "
            "mean and contrast; wavelet takes the broad colours from the source; none leaves the network's.",
        ),
        made(
            io.Int.Input,
            "work_size",
            default=default.work_size,
            min=0,
            max=4320,
            step=2,
            advanced=True,
            tooltip="Height in pixels of the frames that the network sees. 0 = a quarter of the output height. Larger "
            "keeps more of a good source; time and memory grow with its square.",
        ),
        made(
            io.Float.Input,
            "cuts",
            default=default.cuts,
            min=0.0,
            max=1.0,
            step=0.05,
            advanced=True,
            tooltip="Sensitivity to scene cuts. Nothing bleeds over a cut. 0.5 suits films; 0 = never cut; raise it "
            "when a cut is missed.",
        ),
        made(
            io.Int.Input,
            "chunk",
            default=default.chunk,
            min=0,
            max=256,
            advanced=True,
            tooltip="Frames per step. 0 = automatic from free memory. Never changes the result, only memory, speed "
            "and how often preview and cancel come.",
        ),
        made(
            io.Int.Input,
            "tile",
            default=default.tile,
            min=0,
            max=4096,
            step=16,
            advanced=True,
            tooltip="Tile edge in pixels of the frames that the network sees, a multiple of 16. 0 = automatic: whole "
            "frames unless memory demands tiles. Tiles save memory and may change the picture slightly.",
        ),
        made(
            io.Int.Input,
            "overlap",
            default=default.overlap,
            min=0,
            max=1024,
            step=8,
            advanced=True,
            tooltip="Pixels that neighbouring tiles share and blend over, at most half a tile. 0 = automatic. More "
            "hides seams better and takes longer.",
        ),
    ]


def memory_inputs() -> list[io.Input]:
    """Return the fields that came later: behind a node's own and optional, so that old graphs and prompts still run."""
    default = UpscaleConfig()
    return [
        made(
            io.Int.Input,
            "attention_window",
            optional=True,
            default=default.attention_window,
            min=0,
            max=8192,
            step=32,
            advanced=True,
            tooltip="How far attention sees around a pixel, in pixels of the frames that the network sees, a multiple "
            "of 32. 0 = automatic: 128 for large frames of the full-size model, else the whole frame. As large as the "
            "frame = the whole frame, whose cost grows with the square of its pixels.",
        ),
        made(
            io.Float.Input,
            "memory",
            optional=True,
            default=default.memory,
            min=0.0,
            max=1024.0,
            step=0.5,
            advanced=True,
            tooltip="Gigabytes that the model and its steps may take on the device. 0 = what is free there. Less is "
            "slower, and only tiles, which come last, change the picture.",
        ),
    ]
