"""AdcVSR Compare."""

from comfy_api.latest import io

from ..adcvsr_core.views import VIEWS, num_pictures, show
from . import comfy
from .schema import refusal, schema


class Compare(io.ComfyNode):
    """Show two versions of a clip against each other."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Compare",
            "Compare",
            "Shows two versions of a clip against each other: side by side, as a wipe, as their difference, or as "
            "slices through time, where flicker is visible as noise.",
            ("side by side", "wipe", "difference", "before after"),
            inputs=[
                io.Image.Input("a", tooltip="The clip before, of any size; it is brought to B's size by bicubic."),
                io.Image.Input("b", tooltip="The clip after, as many frames as A."),
                io.Combo.Input(
                    "view",
                    options=list(VIEWS),
                    default="wipe",
                    tooltip="wipe = A left of a line and B right of it; side by side = A left, B right; difference = "
                    "|A - B| times gain; time slice = one row of every frame, oldest on top, A left, B right.",
                ),
                io.Float.Input(
                    "position",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where the line of the wipe is, 0..1 of the width, or the row of the time slice, 0..1 of "
                    "the height.",
                ),
                io.Float.Input(
                    "gain",
                    default=4.0,
                    min=0.1,
                    max=100.0,
                    step=0.1,
                    tooltip="Factor on the difference, so that small ones are seen. No effect on other views.",
                ),
            ],
            outputs=[
                io.Image.Output("picture", display_name="images", tooltip="As many frames as B; one for a time slice.")
            ],
        )

    @classmethod
    def validate_inputs(cls, view=None):
        return refusal(cls, view=view)

    @classmethod
    def execute(cls, a, b, view, position, gain):
        count = num_pictures(view, len(b))
        pieces = comfy.watched(show(a, b, view, position, gain), count)
        return io.NodeOutput(comfy.gather(pieces, count, "compare fewer or smaller frames"))
