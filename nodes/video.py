"""AdcVSR Upscale Video."""

import contextlib

from comfy_api.latest import InputImpl, io

from ..adcvsr_core import UpscaleConfig
from ..adcvsr_core.engine import plan_run
from ..adcvsr_core.pipeline import beside
from ..adcvsr_core.video import CODECS, VideoWriter
from . import comfy
from .media import open_video, whole
from .schema import Model, refusal, require_offered, schema
from .settings import memory_inputs, settings_inputs


class UpscaleVideo(io.ComfyNode):
    """Upscale from file to file; memory does not depend on the clip's length."""

    @classmethod
    def define_schema(cls):
        return schema(
            "UpscaleVideo",
            "Upscale Video",
            "Upscales a VIDEO of any length from file to file: memory stays flat, sound and timing are kept. The "
            "result lies in ComfyUI's temp folder until Save Video stores it.",
            ("long video upscale", "super resolution", "vsr", "4k"),
            is_output_node=True,  # what is no MP4 needs no other
            inputs=[
                Model.Input("model", tooltip="From AdcVSR Load Model."),
                io.Video.Input("video", tooltip="From Load Video or Create Video. Trims, sound and timing are kept."),
                *settings_inputs(),
                io.Combo.Input(
                    "codec",
                    options=list(CODECS),
                    default="h264",
                    tooltip="How the result is stored. h264 plays everywhere; h265 and av1 are smaller; vp9 is for the "
                    "web; prores suits editing; ffv1 is lossless and large. prores and ffv1 are no MP4 for Save Video: "
                    "they go into the output folder by themselves. The source's bit depth is kept where the codec can.",
                ),
                io.Int.Input(
                    "crf",
                    default=-1,
                    min=-1,
                    max=63,
                    tooltip="Quality of h264, h265, vp9 and av1: lower is better and larger. -1 = the codec's own "
                    "default (17 for h264). prores and ffv1 have none.",
                ),
                *memory_inputs(),
            ],
            outputs=[io.Video.Output("upscaled", display_name="video", tooltip="For Save Video or a preview.")],
        )

    @classmethod
    def validate_inputs(cls, color=None, codec=None):
        return refusal(cls, color=color, codec=codec)

    @classmethod
    def execute(cls, model, video, codec, crf, **settings):
        require_offered(cls, codec=codec)
        config, suffixes = UpscaleConfig(**settings), CODECS[codec].suffixes
        # ComfyUI stores nothing but MP4, so what does not fit into that is put where it stays.
        path = (comfy.temporary_file if ".mp4" in suffixes else comfy.output_file)(suffixes[0])
        with open_video(video) as (clip, like):
            size = (clip.height, clip.width)
            height, width = plan_run(*size, model.student, config).target
            quality = None if crf < 0 else crf
            writer = VideoWriter(path, width=width, height=height, codec=codec, crf=quality, **like)
            with (
                whole(writer),
                beside(model.patcher.load_device, clip, writer.write) as (read, write),
                contextlib.closing(comfy.upscaled(model, read, size, config)) as pieces,
            ):
                for frames in pieces:
                    write(frames, clip.take_pts(len(frames)))
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)))
