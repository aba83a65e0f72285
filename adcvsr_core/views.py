"""Two versions of a clip as one picture after another, one frame in memory at a time.

`compare` draws a picture from two; this walks through two clips. Knows nothing about files or networks.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .compare import difference, fit, side_by_side, wipe
from .errors import ConfigError
from .frames import require_clip, require_equal_length

VIEWS = ("side by side", "wipe", "difference", "time slice")
_LEAST_ROWS = 256


def num_pictures(view: str, num_frames: int) -> int:
    """Return how many pictures a view of so many frames has."""
    return 1 if view == "time slice" else num_frames


def show(a: Tensor, b: Tensor, view: str, position: float, gain: float) -> Iterator[Tensor]:
    """Show A against B; A is brought to B's size.

    Args:
        a, b: [T,h,w,3 or 4] and [T,H,W,3 or 4] in 0..1, the same clip; alpha is not shown.
        view: one of `VIEWS`. "time slice" puts one row of every frame of A and of B below each other, oldest on top:
            flicker shows as noise from line to line.
        position: where the wipe's line is in 0..1 of the width, or the time slice's row in 0..1 of the height.
        gain: factor on the difference.

    Yields:
        [1,H',W',3] in 0..1, `num_pictures` times.
    """
    if view not in VIEWS or not 0 <= position <= 1 or gain <= 0:
        raise ConfigError(f"view {view!r} must be one of {', '.join(VIEWS)}, position {position} in 0..1, gain > 0")
    a, b = (require_clip(clip, name).detach() for clip, name in ((a, "A"), (b, "B")))
    require_equal_length(a, b, "A", "B")
    pairs = ((a[i : i + 1].to("cpu", torch.float32), b[i : i + 1].to("cpu", torch.float32)) for i in range(len(b)))
    if view == "time slice":
        return iter([_time_slices(pairs, round(position * (b.shape[1] - 1)), len(b))])
    draw = {
        "side by side": side_by_side,
        "wipe": lambda x, y: wipe(x, y, position),
        "difference": lambda x, y: difference(x, y, gain),
    }[view]
    return (draw(x, y) for x, y in pairs)


def _time_slices(pairs: Iterator[tuple[Tensor, Tensor]], row: int, num_frames: int) -> Tensor:
    lines = [torch.stack([fit(x, *y.shape[1:3])[0, row], y[0, row]]) for x, y in pairs]
    slices = torch.stack(lines, dim=1)  # [2,T,W,3]
    slices = slices.repeat_interleave(max(1, _LEAST_ROWS // num_frames), dim=1)  # a short clip would be a thin line
    return side_by_side(slices[:1], slices[1:])
