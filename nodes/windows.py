"""AdcVSR Split Windows and AdcVSR Stitch Windows."""

from comfy_api.latest import io

from ..adcvsr_core.frames import require_clip
from ..adcvsr_core.needs import require_ram
from ..adcvsr_core.windows import JOINS, choose_join, split, stitch
from .schema import Model, Window, refusal, schema

_ADVICE = "upscale less, or fewer frames, or from file to file with AdcVSR Upscale Video"


class SplitWindows(io.ComfyNode):
    """Cut a clip into windows with a halo."""

    @classmethod
    def define_schema(cls):
        return schema(
            "SplitWindows",
            "Split Windows",
            "Cuts a clip into windows that overlap, as a list: whatever follows runs once per window. For loops, "
            "other upscalers and graphs over several GPUs; AdcVSR Upscale needs none of this by itself.",
            ("temporal window", "chunk", "batch"),
            inputs=[
                io.Image.Input("images", tooltip="The frames of one clip in order."),
                io.Int.Input(
                    "core",
                    default=48,
                    min=1,
                    max=10000,
                    tooltip="Frames that each window contributes. Larger wastes less work on halos and takes more "
                    "memory in the node that follows.",
                ),
                io.Int.Input(
                    "halo",
                    default=18,
                    min=0,
                    max=1000,
                    tooltip="Frames before and after the core that the upscaler sees and Stitch drops or fades over. "
                    "18, the look-ahead of AdcVSR models, makes stitching exact (never for recurrent ones); other "
                    "upscalers need fewer.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "windows", display_name="images", is_output_list=True, tooltip="One batch of frames per window."
                ),
                Window.Output(
                    "places",
                    display_name="windows",
                    is_output_list=True,
                    tooltip="Where each window lies, for Stitch Windows: start, core, halo and total, in frames.",
                ),
            ],
        )

    @classmethod
    def execute(cls, images, core, halo):
        require_clip(images, "images", finite=False)
        parts, windows = zip(*split(images, core, halo))
        return io.NodeOutput(list(parts), list(windows))


class StitchWindows(io.ComfyNode):
    """Join upscaled windows to one clip."""

    @classmethod
    def define_schema(cls):
        return schema(
            "StitchWindows",
            "Stitch Windows",
            "Joins the windows of Split Windows to one clip again, at any scale. Exact for AdcVSR Upscale when the "
            "halo covers the model's look-ahead and the model is not recurrent; otherwise it cross-fades, and says so.",
            ("temporal window", "merge", "crossfade"),
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="The upscaled windows, as many frames each as Split Windows gave."),
                Window.Input("windows", tooltip="From Split Windows, directly."),
                io.Combo.Input(
                    "join",
                    options=list(JOINS),
                    default="auto",
                    tooltip="cut = cores follow each other, halos are dropped: exact for AdcVSR Upscale with halo >= "
                    "look-ahead and a model that is not recurrent. fade = cross-fade over shared frames: hides seams "
                    "of other upscalers, softens a little. auto = cut when the model is connected and the halo "
                    "suffices, else fade.",
                ),
                Model.Input("model", optional=True, tooltip="The model that upscaled the windows, if it was AdcVSR's."),
            ],
            outputs=[
                io.Image.Output("stitched", display_name="images", tooltip="The whole clip."),
                io.String.Output(
                    "report", display_name="report", tooltip="How the windows were joined, and whether that is exact."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, join=None):
        return refusal(cls, join=join)

    @classmethod
    def execute(cls, images, windows, join, model=None):
        needed = model[0].student.halo if model else None
        fade, report = choose_join(windows, join[0], ours=bool(model), needed=needed)
        require_ram(windows[0].total, *images[0].shape[1:], images[0].itemsize, _ADVICE)
        return io.NodeOutput(stitch(images, windows, fade=fade), report)
