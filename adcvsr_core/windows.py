"""A clip in windows, and back: where they lie, which frames each gives, how they join.

    total  |--------------------------------------|
    window        | halo | core       | halo |           the halo is seen by the upscaler and not emitted
    next                      | halo | core       | halo |

A student whose `halo` is no larger than the windows' gives every core frame its whole-clip value, so cores simply
follow each other. Anything else is cross-faded over the frames that windows share, which hides a seam and is not
exact; so is a recurrent student, which remembers all that came before. Works for any scale; knows nothing about
networks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ConfigError, InputError

JOINS = ("auto", "cut", "fade")


@dataclass(frozen=True, kw_only=True)
class Window:
    """One window; all numbers count frames of the whole clip.

    Attributes:
        start: first frame of the core.
        core: frames that this window contributes.
        halo: frames read on either side where the clip has them.
        total: length of the whole clip.
    """

    start: int
    core: int
    halo: int
    total: int

    def __post_init__(self) -> None:
        if self.core < 1 or self.halo < 0 or self.start < 0 or self.start + self.core > self.total:
            raise ConfigError(f"{self} is no window of its clip; core >= 1, halo >= 0, inside 0..total")

    @property
    def first(self) -> int:
        """First frame that the window shows, halo included."""
        return max(0, self.start - self.halo)

    @property
    def stop(self) -> int:
        """One past the last frame that the window shows."""
        return min(self.total, self.start + self.core + self.halo)

    @property
    def num_frames(self) -> int:
        return self.stop - self.first


def plan_windows(total: int, core: int, halo: int) -> list[Window]:
    """Lay windows over a clip of `total` frames; their cores cover it once, only the last may be shorter."""
    if total < 1 or core < 1 or halo < 0:
        raise ConfigError(f"cannot lay windows: total {total} and core {core} must be >= 1, halo {halo} >= 0")
    return [
        Window(start=start, core=min(core, total - start), halo=halo, total=total) for start in range(0, total, core)
    ]


def split(frames: Tensor, core: int, halo: int) -> list[tuple[Tensor, Window]]:
    """Cut a clip [T,...] into windows; the parts are views and cost no memory."""
    return [(frames[window.first : window.stop], window) for window in plan_windows(len(frames), core, halo)]


def choose_join(windows: Sequence[Window], join: str, *, ours: bool, needed: int | None) -> tuple[bool, str]:
    """Decide how upscaled windows join, and say what that is worth.

    Args:
        windows: all windows of one clip.
        join: one of `JOINS`; "auto" cuts where that is exact and fades elsewhere.
        ours: whether a student upscaled the windows.
        needed: that student's `halo`; None = no halo makes its windows exact.

    Returns:
        whether to cross-fade, as `stitch` takes it, and one line for the user.

    Raises:
        ConfigError: no such join.
    """
    if join not in JOINS:
        raise ConfigError(f"join {join!r} is none of: {', '.join(JOINS)}")
    halo = min(window.halo for window in windows)
    exact = ours and needed is not None and halo >= needed
    fade = not exact if join == "auto" else join == "fade"
    report = f"{len(windows)} windows with a halo of {halo} frames, "
    if fade:
        report += "cross-faded over the frames they share: seams are softened, the result is not exact"
    else:
        report += "joined where cores meet: " + ("equal to the whole clip" if exact else "seams are possible")
    if ours and needed is None:
        report += "; this model is recurrent and remembers all frames before, so no halo makes windows exact"
    return fade, report


def stitch(parts: Sequence[Tensor], windows: Sequence[Window], *, fade: bool) -> Tensor:
    """Join upscaled windows.

    Args:
        parts: what became of each window, [its num_frames,H,W,C], all of one size, in any order.
        windows: the windows, in the order of `parts`.
        fade: cross-fade over shared frames; otherwise cores follow each other and halos are dropped.

    Returns:
        [total,H,W,C] in one allocation.

    Raises:
        InputError: parts that do not fit their windows, or windows that do not make up one clip.
    """
    if not parts or len(parts) != len(windows):
        raise InputError(f"{len(parts)} parts came with {len(windows)} windows; expected one window each")
    order = sorted(range(len(windows)), key=lambda index: windows[index].start)
    windows, parts = [windows[index] for index in order], [parts[index] for index in order]
    _check_cover(windows)
    for part, window in zip(parts, windows):
        if len(part) != window.num_frames or part.shape[1:] != parts[0].shape[1:]:
            raise InputError(
                f"the window of frames {window.first}..{window.stop - 1} came back as {list(part.shape)}; expected "
                f"{window.num_frames} frames of {list(parts[0].shape[1:])}: nothing between may add or drop frames"
            )
    joined = torch.zeros if fade else torch.empty
    result = joined((windows[0].total, *parts[0].shape[1:]), dtype=parts[0].dtype, device=parts[0].device)
    for index, (part, window) in enumerate(zip(parts, windows)):
        if not fade:
            begin = window.start - window.first
            result[window.start : window.start + window.core] = part[begin : begin + window.core]
            continue
        for frame, share, target in zip(part, _shares(windows, index), range(window.first, window.stop)):
            result[target] += frame * share
    return result


def _shares(windows: Sequence[Window], index: int) -> list[float]:
    """Return a window's share of each of its frames; over all windows they add up to 1."""
    window, weights = windows[index], torch.zeros(windows[0].total, dtype=torch.float64)
    own = None
    for other_index, other in enumerate(windows):
        if other.stop <= window.first or other.first >= window.stop:
            continue
        ramp = torch.ones(other.num_frames, dtype=torch.float64)
        position = torch.arange(other.num_frames, dtype=torch.float64) + 0.5
        before = windows[other_index - 1].stop - other.first if other_index else 0
        after = other.stop - windows[other_index + 1].first if other_index + 1 < len(windows) else 0
        if before > 0:
            ramp = torch.minimum(ramp, position / before)
        if after > 0:
            ramp = torch.minimum(ramp, position.flip(0) / after)
        weights[other.first : other.stop] += ramp
        own = ramp if other_index == index else own
    return (own / weights[window.first : window.stop]).tolist()


def _check_cover(windows: Iterable[Window]) -> None:
    reached, total = 0, None
    for window in windows:
        total = window.total if total is None else total
        if window.start != reached or window.total != total:
            raise InputError(
                f"after frame {reached} of {total} comes a window of frames {window.start}.. of {window.total}; "
                "connect every window of one Split, each once"
            )
        reached = window.start + window.core
    if reached != total:
        raise InputError(f"the windows end at frame {reached} of {total}; connect every window of the Split")
