"""AdcVSR Finish."""

from comfy_api.latest import io

from ..adcvsr_core.config import COLORS
from ..adcvsr_core.finish import FinishConfig, carry_alpha, finish
from . import comfy
from .schema import refusal, schema

_ADVICE = "choose a smaller height or fewer frames, or detail and color in AdcVSR Upscale Video"


class Finish(io.ComfyNode):
    """Tune detail, colour, size and grain of upscaled frames without running a network."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Finish",
            "Finish",
            "Tunes upscaled frames: detail, colour, size, grain. Works on any upscaler's output and never runs the "
            "network, so its sliders answer fast.",
            ("detail strength", "color match", "grain", "resize"),
            inputs=[
                io.Image.Input("images", tooltip="Upscaled frames, from AdcVSR Upscale or any other upscaler."),
                io.Image.Input("source", tooltip="The same frames before upscaling, of any size and the same shape."),
                io.Float.Input(
                    "detail",
                    default=1.0,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    tooltip="Gain on the fine detail that upscaling added over the source: 1 = as it is, 0.6 calms "
                    "faces, 0 = none, above 1 crisper.",
                ),
                io.Combo.Input(
                    "color",
                    options=list(COLORS),
                    default="none",
                    tooltip="Colour match to the source, frame by frame. none = as it is; adain matches the mean and "
                    "contrast; wavelet takes the broad colours from the source.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=8640,
                    step=2,
                    tooltip="Final height in pixels, the width follows. 0 = as it is. RAM grows with the square.",
                ),
                io.Float.Input(
                    "grain",
                    default=0.0,
                    min=0.0,
                    max=64.0,
                    step=0.5,
                    tooltip="Film grain: standard deviation in levels of 255 in mid greys, less in shadows and "
                    "lights. 0 = none; 2 to 6 look like film and hide banding.",
                ),
                io.Float.Input(
                    "grain_size",
                    default=1.5,
                    min=1.0,
                    max=16.0,
                    step=0.1,
                    tooltip="Size of a grain in pixels of the final picture. No effect without grain.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    tooltip="Which grain. Every frame has its own; the same seed gives the same grain again.",
                ),
            ],
            outputs=[io.Image.Output("finished", display_name="images", tooltip="The finished frames.")],
        )

    @classmethod
    def validate_inputs(cls, color=None):
        return refusal(cls, color=color)

    @classmethod
    def execute(cls, images, source, **settings):
        pieces = comfy.watched(carry_alpha(finish(images, source, FinishConfig(**settings)), images), len(images))
        return io.NodeOutput(comfy.gather(pieces, len(images), _ADVICE))
