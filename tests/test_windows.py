"""Windows: cores cover the clip once, parts join to the whole clip, faults say what to do."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adcvsr_core import UpscaleConfig, upscale
from adcvsr_core.errors import ConfigError, InputError
from adcvsr_core.windows import JOINS, Window, choose_join, plan_windows, split, stitch

CLIP = st.tuples(st.integers(1, 60), st.integers(1, 25), st.integers(0, 30))


@given(CLIP)
def test_cores_cover_the_clip_once(shape):
    total, core, halo = shape
    windows = plan_windows(total, core, halo)
    assert [f for w in windows for f in range(w.start, w.start + w.core)] == list(range(total))
    for window in windows:
        assert window.first == max(0, window.start - halo) and window.num_frames <= core + 2 * halo


@given(CLIP, st.booleans())
def test_split_then_stitch_is_the_clip(shape, fade):
    total, core, halo = shape
    frames = torch.rand(total, 2, 3, 3)
    parts, windows = zip(*split(frames, core, halo))
    joined = stitch(parts, windows, fade=fade)
    assert (joined - frames).abs().max() < 1e-6
    assert fade or torch.equal(joined, frames)


def test_order_does_not_matter():
    frames = torch.rand(20, 2, 2, 3)
    parts, windows = zip(*split(frames, 6, 2))
    assert torch.equal(stitch(parts[::-1], windows[::-1], fade=False), frames)


def test_windows_with_a_halo_give_the_whole_clip(student):
    """The second oracle of exact streaming: 18 frames on both sides, dropped."""
    frames = torch.rand(50, 16, 16, 3)
    config = UpscaleConfig(cuts=0)
    whole = torch.cat(list(upscale([frames], student, config)))
    parts, windows = zip(*split(frames, 16, student.lookahead))
    joined = stitch([torch.cat(list(upscale([part], student, config))) for part in parts], windows, fade=False)
    assert (joined - whole).abs().max() < 1e-4


def test_a_fade_softens_the_step_between_windows_that_disagree():
    parts, windows = zip(*split(torch.zeros(40, 2, 2, 3), 10, 4))
    parts = [part + 0.1 * index for index, part in enumerate(parts)]
    step = {fade: stitch(parts, windows, fade=fade).diff(dim=0).abs().max() for fade in (False, True)}
    assert step[False] > 0.09 and step[True] < 0.02


@given(CLIP, st.sampled_from(JOINS), st.one_of(st.none(), st.integers(0, 30)), st.booleans())
def test_what_is_called_equal_to_the_whole_clip_is(shape, join, needed, ours):
    """Never a fade, another's upscaler, a halo that is too small, or a model that no halo suffices for."""
    windows = plan_windows(*shape)
    fade, report = choose_join(windows, join, ours=ours, needed=needed)
    exact = ours and needed is not None and shape[2] >= needed
    assert fade == {"cut": False, "fade": True, "auto": not exact}[join]
    assert ("equal to the whole clip" in report) == (exact and not fade)
    assert ("recurrent" in report) == (ours and needed is None)


def test_faults():
    parts, windows = zip(*split(torch.rand(20, 2, 2, 3), 6, 2))
    with pytest.raises(InputError, match="add or drop frames"):
        stitch([parts[0][1:], *parts[1:]], windows, fade=False)
    with pytest.raises(InputError, match="each once"):
        stitch([parts[0], *parts[2:]], [windows[0], *windows[2:]], fade=True)
    with pytest.raises(InputError, match="end at frame 18 of 20"):
        stitch(parts[:-1], windows[:-1], fade=True)
    with pytest.raises(InputError, match="one window each"):
        stitch([], [], fade=True)
    with pytest.raises(ConfigError, match="none of: auto, cut, fade"):
        choose_join(windows, "glue", ours=False, needed=None)
    with pytest.raises(ConfigError, match="halo"):
        plan_windows(10, 5, -1)
    with pytest.raises(ConfigError, match="no window"):
        Window(start=8, core=5, halo=0, total=10)
