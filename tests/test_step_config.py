"""How a step is computed: bands, lone frames, offloaded state and drained ends change no frame; windows are lawful."""

import dataclasses
import itertools

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from conftest import awaken
from hypothesis import given

from adcvsr_core.attention import attend, plan_windows
from adcvsr_core.config import PRESETS, StepConfig
from adcvsr_core.cost import count_flops
from adcvsr_core.errors import ConfigError, StreamError
from adcvsr_core.streaming import StreamState
from adcvsr_core.student import Student


def clip(num_frames: int, height: int = 16, width: int = 32) -> torch.Tensor:
    return torch.rand((1, num_frames, 3, height, width), dtype=torch.float64) * 2 - 1


def stream(student, lr, chunk, how, **state):
    """Push in chunks and end with no frame, as the engine does."""
    stream, parts = StreamState(**state), []
    for part in lr.split(chunk, dim=1):
        parts.append(student(part, stream, last=False, how=how))
    calls = 0
    while not stream.closed:
        parts.append(student.drain(lr[:, :0], stream, how))
        calls += 1
    assert calls == 9 and not stream.slots
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("state", [{}, {"offload": True}, {"recompute_skips": True}], ids=str)
@pytest.mark.parametrize("how", [StepConfig(frame_batch=1), StepConfig(frame_batch=3, band=5)], ids=str)
@pytest.mark.parametrize("num_frames", [1, 2, 18, 19, 41])
def test_streams_give_the_frames_of_one_pass(exact_student, num_frames, how, state):
    lr = clip(num_frames)
    expected = exact_student(lr)
    for chunk in (1, 7, 64):
        assert (stream(exact_student, lr, chunk, how, **state) - expected).abs().max() < 1e-10


@pytest.mark.parametrize("band", [1, 3, 16, 50, 1000])
def test_bands_of_any_height_give_the_whole_frame(exact_student, band):
    lr = clip(2, 48, 16)
    assert (exact_student(lr, how=StepConfig(band=band)) - exact_student(lr)).abs().max() < 1e-10


def test_bands_see_the_statistics_of_the_whole_frame(exact_student):
    """A bright spot at the bottom changes the top row, through GroupNorm alone, and bands show the same change."""
    lr = clip(1, 64, 16)
    changed = lr.clone()
    changed[..., -4:, :] = 1.0
    one, two = (exact_student(each, temporal_strength=0.0, how=StepConfig(band=8)) for each in (lr, changed))
    assert (one - two)[..., 0, :].abs().max() > 1e-6
    assert (two - exact_student(changed, temporal_strength=0.0)).abs().max() < 1e-10


def test_how_may_change_from_push_to_push(exact_student):
    lr, state = clip(30), StreamState()
    ways = itertools.cycle([StepConfig(), StepConfig(band=7), StepConfig(frame_batch=1)])
    parts = [exact_student(part, state, False, 1.0, how) for part, how in zip(lr.split(4, dim=1), ways, strict=False)]
    state = state.offloaded()
    parts.append(exact_student(lr[:, :0], state, True, 1.0, StepConfig(frame_batch=1)))
    assert (torch.cat(parts, dim=1) - exact_student(lr)).abs().max() < 1e-10


def test_a_failing_drain_leaves_the_stream_as_it_was(exact_student, monkeypatch):
    lr, state = clip(25), StreamState()
    parts = [exact_student(lr, state, False)]
    original, calls = type(exact_student.decoder).forward, []

    def forward(decoder, *arguments):
        calls.append(1)
        if len(calls) == 5:
            raise MemoryError
        return original(decoder, *arguments)

    monkeypatch.setattr(type(exact_student.decoder), "forward", forward)
    while not state.closed:
        before = (state.frames_out, state.drained)
        try:
            parts.append(exact_student.drain(lr[:, :0], state))
        except MemoryError:
            assert (state.frames_out, state.drained) == before
    assert len(calls) > 5 and (torch.cat(parts, dim=1) - exact_student(lr)).abs().max() < 1e-10


def test_no_frame_follows_a_drain(exact_student):
    lr, state = clip(25), StreamState()
    parts = [exact_student(lr, state, False)]
    parts.append(exact_student.drain(lr[:, :0], state))
    with pytest.raises(StreamError, match="being drained"):
        exact_student(lr[:, :1], state, False)
    parts += [exact_student.drain(lr[:, :0], state) for _ in range(8)]
    assert state.closed and all(part.shape[1] <= 3 for part in parts[1:])
    with pytest.raises(StreamError, match="has ended"):
        exact_student.drain(lr[:, :0], state)
    assert (torch.cat(parts, dim=1) - exact_student(lr)).abs().max() < 1e-10


@pytest.mark.parametrize("num_frames", [0, 1, 20])
def test_a_drain_ends_what_it_cannot_end_bit_by_bit(tiny_config, num_frames):
    """Single frames, an empty clip, blocks inside the levels: one call, the same frames."""
    lr = clip(num_frames)
    inner = awaken(Student(dataclasses.replace(tiny_config, temporal="resnets"))).double()
    for student, strength in ((inner, 1.0), (inner, 0.0)):
        state, parts = StreamState(), []
        if num_frames:
            parts.append(student(lr, state, False, strength))
        parts.append(student.drain(lr[:, :0], state))
        assert state.closed
        if num_frames:
            assert (torch.cat(parts, dim=1) - student(lr, temporal_strength=strength)).abs().max() < 1e-10


@given(size=st.integers(1, 200), half=st.integers(1, 20))
def test_windows_cover_every_pixel_once_and_surround_it(size, half):
    window, covered = 2 * half, []
    for (start, stop), (first, last) in plan_windows(size, window):
        covered += range(start, stop)
        assert 0 <= first <= start and stop <= last <= size
        assert last - first == min(window, size)
        # At least a quarter of a window lies on each side, but where the frame ends.
        assert start - first >= min(half // 2, start) and last - stop >= min(half // 2 - 1, size - stop)
    assert covered == list(range(size))


@given(height=st.integers(1, 9), width=st.integers(1, 9), half=st.integers(1, 5))
def test_windowed_attention_is_attention_over_the_window(height, width, half):
    window, generator = 2 * half, torch.Generator().manual_seed(height * 100 + width)
    q, k, v = torch.randn((3, 2, 3, height * width, 4), generator=generator, dtype=torch.float64)
    out = attend(q, k, v, (height, width), window)
    seen = torch.zeros(height * width, height * width, dtype=torch.bool)
    for rows, key_rows in plan_windows(height, window):
        for columns, key_columns in plan_windows(width, window):
            for y, x in itertools.product(range(*rows), range(*columns)):
                mask = seen[y * width + x].view(height, width)
                mask[slice(*key_rows), slice(*key_columns)] = True
    assert (out - F.scaled_dot_product_attention(q, k, v, attn_mask=seen)).abs().max() < 1e-12
    if max(height, width) <= window:
        assert torch.equal(out, F.scaled_dot_product_attention(q, k, v))


def test_a_window_as_large_as_the_frame_is_the_whole_frame(exact_student):
    lr = clip(3, 64, 96)
    whole = exact_student(lr)
    assert torch.equal(exact_student(lr, how=StepConfig(attention_window=96)), whole)
    assert (exact_student(lr, how=StepConfig(attention_window=32)) - whole).abs().max() > 1e-3


def test_windows_cost_what_the_pixels_cost():
    """In windows twice the frame is twice the work; over whole frames attention grows with the square."""
    windowed = StepConfig(attention_window=128)

    def flops(height, width, how):
        return count_flops(PRESETS["adcsr"], height, width, how=how)

    assert flops(256, 512, windowed) / flops(256, 256, windowed) == pytest.approx(2, rel=1e-3)
    assert flops(256, 512, StepConfig()) / flops(256, 256, StepConfig()) > 2.5


@pytest.mark.parametrize("change", [{"attention_window": 48}, {"band": -1}, {"frame_batch": 1.5}], ids=str)
def test_settings_that_make_no_step_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        StepConfig(**change)
