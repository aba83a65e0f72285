"""AdcVSR Degrade."""

import dataclasses

from comfy_api.latest import io

from ..adcvsr_core.degradation import DEGRADATIONS, degrade
from ..adcvsr_core.errors import InputError
from ..adcvsr_core.frames import require_clip
from .schema import refusal, require_offered, schema


class Degrade(io.ComfyNode):
    """Make a good clip bad in the way that training does."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Degrade",
            "Degrade",
            "Makes test input from good frames with the degradations of training: blur, downscale, noise, "
            "compression. The original is then the reference for AdcVSR Metrics.",
            ("downscale", "noise", "compression", "old film", "test input"),
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="Good frames. What is left over when width or height is divided by scale is cut off at "
                    "the right and the bottom; alpha is dropped.",
                ),
                io.Combo.Input(
                    "kind",
                    options=list(DEGRADATIONS),
                    default="light",
                    tooltip="clean = bicubic only; light = mild blur, noise and JPEG by chance; h264 = video "
                    "compression of random strength; h264_crf30 = always strong; noise10 = noise alone; realbasicvsr, "
                    "dove, realesrgan_adcsr = the hard mixtures of these papers; film = old film; aigen = AI-generated "
                    "video.",
                ),
                io.Int.Input(
                    "scale",
                    default=4,
                    min=1,
                    max=8,
                    tooltip="How many times smaller the result is. 1 keeps the size.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    tooltip="Decides what happens and how strongly; equal seeds give equal frames.",
                ),
            ],
            outputs=[io.Image.Output("degraded", display_name="images", tooltip="The degraded frames, smaller.")],
        )

    @classmethod
    def validate_inputs(cls, kind=None):
        return refusal(cls, kind=kind)

    @classmethod
    def execute(cls, images, kind, scale, seed):
        require_offered(cls, kind=kind)
        clip = require_clip(images, "images")
        height, width = clip.shape[1:3]
        if min(height, width) < scale:
            raise InputError(f"frames of {width}x{height} leave nothing at scale {scale}; choose a smaller scale")
        config = dataclasses.replace(DEGRADATIONS[kind], scale=scale)
        return io.NodeOutput(degrade(clip[:, : height // scale * scale, : width // scale * scale], config, seed))
