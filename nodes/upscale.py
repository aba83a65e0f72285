"""AdcVSR Upscale."""

from comfy_api.latest import io

from ..adcvsr_core import UpscaleConfig
from ..adcvsr_core.engine import plan_run
from ..adcvsr_core.finish import carry_alpha
from ..adcvsr_core.needs import require_ram
from . import comfy
from .media import Clip
from .schema import Model, refusal, schema
from .settings import memory_inputs, settings_inputs

_ADVICE = "use AdcVSR Upscale Video, which goes from file to file, or fewer frames, or a smaller scale"


class Upscale(io.ComfyNode):
    """Upscale a batch of frames as one clip, in chunks, with the result of one pass."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Upscale",
            "Upscale",
            "Upscales a clip held as IMAGE, in chunks that give the frames of one pass over the whole clip. The whole "
            "result is held in RAM: for long clips use AdcVSR Upscale Video.",
            ("video upscale", "super resolution", "vsr", "sampler"),
            inputs=[
                Model.Input("model", tooltip="From AdcVSR Load Model."),
                io.Image.Input(
                    "images",
                    tooltip="The frames of one clip in order, any size; scene cuts are found. An alpha channel is "
                    "resized along.",
                ),
                *settings_inputs(),
                *memory_inputs(),
            ],
            outputs=[
                io.Image.Output("upscaled", display_name="images", tooltip="As many frames as came in, upscaled.")
            ],
        )

    @classmethod
    def validate_inputs(cls, color=None):
        return refusal(cls, color=color)

    @classmethod
    def execute(cls, model, images, **settings):
        config, clip = UpscaleConfig(**settings), Clip(images)
        size = (clip.height, clip.width)
        target = plan_run(*size, model.student, config).target
        require_ram(clip.num_frames, *target, images.shape[3], comfy.image_dtype().itemsize, _ADVICE)
        pieces = carry_alpha(comfy.upscaled(model, clip, size, config), images)
        return io.NodeOutput(comfy.gather(pieces, clip.num_frames, _ADVICE))
