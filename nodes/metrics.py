"""AdcVSR Metrics."""

from comfy_api.latest import io, ui

from ..adcvsr_core.frames import require_clip
from ..adcvsr_core.metrics import measure
from .schema import schema


class Metrics(io.ComfyNode):
    """Measure a clip, with or without a reference."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Metrics",
            "Metrics",
            "Measures a clip: PSNR and SSIM against a reference; flicker, seams, colour drift, duplicate and broken "
            "frames without one. What cannot be measured is NaN.",
            ("psnr", "ssim", "flicker", "quality"),
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The frames to measure, in order."),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="The same frames as they should be, of the same size: for PSNR and SSIM, and so that "
                    "colour drift counts only what the reference does not do.",
                ),
                io.Int.Input(
                    "seam_period",
                    default=0,
                    min=0,
                    max=10000,
                    tooltip="Frames between the joins to look at, such as the core of Split Windows. 0 = no seam "
                    "score; 1 is not possible.",
                ),
            ],
            outputs=[
                io.String.Output("report", display_name="report", tooltip="All values with their units, as text."),
                io.Float.Output(
                    "psnr", display_name="psnr", tooltip="PSNR of the luma in dB, mean over frames; higher is closer."
                ),
                io.Float.Output(
                    "ssim",
                    display_name="ssim",
                    tooltip="SSIM of the luma, mean over frames; 1 = equal to the reference.",
                ),
                io.Float.Output(
                    "flicker", display_name="flicker", tooltip="Change to and fro in luma levels; lower is steadier."
                ),
                io.Float.Output(
                    "seam",
                    display_name="seam",
                    tooltip="Change at the joins over change beside them; 1 = they do not show.",
                ),
                io.Float.Output(
                    "drift",
                    display_name="drift",
                    tooltip="Rise or fall of the mean colour over the clip, in levels of 255.",
                ),
                io.Int.Output("duplicates", display_name="duplicates", tooltip="Frames equal to the frame before."),
                io.Int.Output("non_finite", display_name="non finite", tooltip="Frames that hold NaN or infinity."),
            ],
        )

    @classmethod
    def execute(cls, images, seam_period, reference=None):
        clip = require_clip(images, "images", finite=False)
        found = measure(clip, None if reference is None else require_clip(reference, "reference"), seam_period)
        values = (found.psnr_db, found.ssim, found.shimmer, found.seam, found.drift, found.duplicates, found.non_finite)
        report = "\n".join(f"- {line}" for line in str(found).splitlines())  # Preview Any shows it as Markdown
        return io.NodeOutput(report, *values, ui=ui.PreviewText(report))
