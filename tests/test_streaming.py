"""The law of the project: however a clip is cut into pushes, its frames are those of one pass over all of it."""

import dataclasses

import hypothesis.strategies as st
import pytest
import torch
from conftest import awaken
from hypothesis import given, settings

from adcvsr_core.config import PRESETS
from adcvsr_core.errors import ConfigError, InputError, NonFiniteError, StreamError
from adcvsr_core.streaming import StreamState, TemporalBlock
from adcvsr_core.student import Student

LENGTHS = (1, 2, 18, 19, 20, 37, 64)
CHUNKS = (1, 2, 5, 8, 33)


def clip(num_frames: int, dtype: torch.dtype = torch.float64, batch: int = 1, height: int = 16, width: int = 16):
    return torch.rand((batch, num_frames, 3, height, width), dtype=dtype) * 2 - 1


def streamed(student, lr, sizes, state=None, strength=1.0):
    """Push a clip in pieces of the given sizes (repeated), the last piece with last=True."""
    state, parts, start = state or StreamState(), [], 0
    while start < lr.shape[1]:
        size = sizes[len(parts) % len(sizes)]
        last = start + size >= lr.shape[1]
        parts.append(student(lr[:, start : start + size], state, last, strength))
        start += size
    return torch.cat(parts, dim=1)


def assert_equal_frames(actual, expected, tolerance, what):
    assert actual.shape == expected.shape, f"{what}: {list(actual.shape)} instead of {list(expected.shape)}"
    worst = (actual - expected).abs().amax(dim=(0, 2, 3, 4))
    wrong = (worst > tolerance).nonzero().flatten().tolist()
    assert not wrong, f"{what}: {len(wrong)} frames differ, first {wrong[0]}, by up to {worst.max():.3g}"


def test_temporal_branch_moves_the_output(exact_student):
    lr = clip(24)
    with_time, without = exact_student(lr), exact_student(lr, temporal_strength=0.0)
    assert (with_time - without).std() > 0.1 * with_time.std()


@pytest.mark.parametrize("num_frames", LENGTHS)
def test_chunked_equals_whole_clip(exact_student, student, num_frames):
    lr = clip(num_frames)
    whole, whole32 = exact_student(lr), student(lr.float())
    for chunk in CHUNKS:
        what = f"{num_frames} frames in chunks of {chunk}"
        assert_equal_frames(streamed(exact_student, lr, [chunk]), whole, 1e-10, what)
        assert_equal_frames(streamed(student, lr.float(), [chunk]), whole32, 1e-4, f"float32, {what}")


@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6), num_frames=st.integers(1, 40))
@settings(max_examples=12)
def test_any_chunking_equals_whole_clip(exact_student, sizes, num_frames):
    lr = clip(num_frames)
    assert_equal_frames(streamed(exact_student, lr, sizes), exact_student(lr), 1e-10, f"{num_frames} in {sizes}")


@pytest.mark.parametrize(
    "changes",
    [
        {"temporal": "resnets"},
        {"temporal": "layers"},
        {"temporal_kernel": 5},
        {"temporal_kernel": 1},
        {"temporal_hidden": 2.0},
        {"norm": "none", "residual": "bicubic", "output_scale": 0.1},
        {"temporal": "none"},
    ],
    ids=str,
)
def test_every_member_of_the_family_streams_exactly(tiny_config, changes):
    student = awaken(Student(dataclasses.replace(tiny_config, **changes))).double()
    num_frames = min(student.lookahead, 40) + 3
    lr = clip(num_frames, batch=2, width=32)
    assert_equal_frames(streamed(student, lr, [3]), student(lr), 1e-9, str(changes))


def test_ending_with_zero_frames_equals_ending_with_the_last(exact_student):
    lr, state = clip(21), StreamState()
    parts = [exact_student(lr, state, last=False), exact_student(lr[:, :0], state, last=True)]
    assert [part.shape[1] for part in parts] == [21 - exact_student.lookahead, exact_student.lookahead]
    assert_equal_frames(torch.cat(parts, dim=1), exact_student(lr), 1e-10, "closed by an empty push")


def test_frames_come_out_as_soon_as_the_lookahead_allows(exact_student):
    state, emitted = StreamState(), []
    for frame in clip(25).split(1, dim=1):
        emitted.append(exact_student(frame, state, last=False).shape[1])
    assert emitted == [0] * exact_student.lookahead + [1] * (25 - exact_student.lookahead)


def test_a_frame_touches_exactly_the_frames_within_the_lookahead(exact_student):
    assert exact_student.lookahead == 18
    lr = clip(45)
    changed = lr.clone()
    changed[:, 22] = torch.rand_like(changed[:, 22]) * 2 - 1
    # Bit for bit: with one chunk shape, frames out of reach see the same arithmetic.
    touched = (exact_student(lr) != exact_student(changed)).flatten(2).any(dim=2)[0].nonzero().flatten().tolist()
    assert touched == list(range(22 - 18, 22 + 18 + 1))


def test_halo_of_the_lookahead_is_enough_and_one_less_is_not(exact_student):
    lr = clip(60)
    whole = exact_student(lr)
    error = {}
    for halo in (18, 17):
        parts = []
        for start in range(0, 60, 12):
            low, high = max(0, start - halo), min(60, start + 12 + halo)
            parts.append(exact_student(lr[:, low:high])[:, start - low : start - low + 12])
        error[halo] = (torch.cat(parts, dim=1) - whole).abs().max().item()
    assert error[18] < 1e-12
    assert error[17] > 100 * max(error[18], 1e-15), error


def test_strength_zero_is_every_frame_alone_without_lookahead(exact_student):
    lr, state = clip(7), StreamState()
    alone = torch.cat([exact_student(frame, temporal_strength=0.0) for frame in lr.split(1, dim=1)], dim=1)
    at_once = exact_student(lr, state, last=False, temporal_strength=0.0)
    assert_equal_frames(at_once, alone, 1e-12, "strength 0")
    assert state.num_bytes == 0


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_strength_scales_the_branch_in_a_stream_too(exact_student, strength):
    lr = clip(22)
    whole = exact_student(lr, temporal_strength=strength)
    assert_equal_frames(streamed(exact_student, lr, [4], strength=strength), whole, 1e-10, f"strength {strength}")
    assert not torch.equal(whole, exact_student(lr, temporal_strength=0.6))


def test_interleaved_streams_do_not_mix(exact_student):
    clips, states, parts = [clip(23), clip(23)], [StreamState(), StreamState()], ([], [])
    for start in range(0, 23, 4):
        for index in (0, 1):
            piece = clips[index][:, start : start + 4]
            parts[index].append(exact_student(piece, states[index], start + 4 >= 23))
    for index in (0, 1):
        assert_equal_frames(torch.cat(parts[index], dim=1), exact_student(clips[index]), 1e-10, f"stream {index}")


def test_recomputed_skips_give_the_same_frames_from_less_memory(exact_student):
    lr = clip(40)
    stored, recomputed = StreamState(), StreamState(recompute_skips=True)
    for start in range(0, 36, 4):
        for state in (stored, recomputed):
            exact_student(lr[:, start : start + 4], state, last=False)
    assert recomputed.num_bytes < stored.num_bytes
    whole = exact_student(lr)
    for chunk in (1, 7):
        state = StreamState(recompute_skips=True)
        assert_equal_frames(streamed(exact_student, lr, [chunk], state), whole, 1e-10, f"recomputed, chunk {chunk}")


def test_skips_that_depend_on_time_are_not_recomputed(tiny_config):
    student = Student(dataclasses.replace(tiny_config, temporal="resnets")).eval()
    with pytest.raises(ConfigError, match="resnets.*cannot be recomputed"):
        student(clip(1, torch.float32), StreamState(recompute_skips=True), last=False)


class _Fails(Exception):
    pass


@pytest.mark.parametrize("where", ["unet.down.1", "unet.mid.layers.0", "unet.up.2", "decoder"])
def test_a_push_that_fails_leaves_the_stream_as_it_was(exact_student, where):
    lr, state = clip(30), StreamState()
    parts = [exact_student(lr[:, :20], state, last=False)]

    def fail(*_):
        raise _Fails

    module = exact_student.get_submodule(where)
    target = module.layers[0] if hasattr(module, "layers") else module
    hook = target.register_forward_hook(fail)
    with pytest.raises(_Fails):
        exact_student(lr[:, 20:], state, last=True)
    hook.remove()
    assert state.frames_in == 20 and not state.closed
    parts.append(exact_student(lr[:, 20:], state, last=True))
    assert_equal_frames(torch.cat(parts, dim=1), exact_student(lr), 1e-10, f"after a failure in {where}")


def test_a_non_finite_value_is_seen_before_it_reaches_the_output(exact_student):
    """A NaN in the newest frame reaches the output 18 frames later: new state is checked, not only output."""
    lr, state = clip(24), StreamState()
    before = exact_student(lr[:, :20], state, last=False)
    poisoned = lr[:, 20:21].clone()
    poisoned[0, 0, 0, 3, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="frame 20"):
        exact_student(poisoned, state, last=False)
    rest = exact_student(lr[:, 20:], state, last=True)
    assert_equal_frames(torch.cat((before, rest), dim=1), exact_student(lr), 1e-10, "after a poisoned push")


def test_a_stream_refuses_what_it_is_not_bound_to(exact_student):
    state = StreamState()
    exact_student(clip(2), state, last=False)
    for lr, strength in ((clip(1, width=32), 1.0), (clip(1, batch=2), 1.0), (clip(1), 0.5)):
        with pytest.raises(StreamError, match="start a new StreamState"):
            exact_student(lr, state, last=False, temporal_strength=strength)
    with pytest.raises(StreamError, match="0 frames"):
        exact_student(clip(2)[:, :0], state, last=False)
    exact_student(clip(1), state, last=True)
    with pytest.raises(StreamError, match="ended"):
        exact_student(clip(1), state, last=True)


def test_a_clip_without_frames_is_only_an_end(exact_student):
    assert exact_student(clip(1)[:, :0]).shape == (1, 0, 3, 64, 64)
    with pytest.raises(InputError, match="last=False needs a stream"):
        exact_student(clip(1), None, last=False)


def test_state_moves_to_another_dtype_and_goes_on(student, exact_student):
    lr, state = clip(26, torch.float32), StreamState()
    first = student(lr[:, :20], state, last=False)
    state = state.to("cpu", torch.float64)
    rest = exact_student(lr[:, 20:].double(), state, last=True)
    joined = torch.cat((first.double(), rest), dim=1)
    assert_equal_frames(joined, exact_student(lr.double()), 1e-4, "float32, then float64")


def test_state_stays_small_however_large_the_pushes_were(exact_student):
    lr, small, large = clip(64), StreamState(), StreamState()
    for frame in lr.split(1, dim=1):
        exact_student(frame, small, last=False)
    exact_student(lr, large, last=False)
    assert large.num_bytes < 2.5 * small.num_bytes
    exact_student(lr[:, :0], large, last=True)
    assert large.num_bytes == 0


def test_lookahead_is_declared_from_the_placement():
    expected = {"none": 0, "blocks": 18, "resnets": 44, "layers": 76}
    with torch.device("meta"):
        for placement, lookahead in expected.items():
            student = Student(dataclasses.replace(PRESETS["adcvsr"], temporal=placement))
            assert student.lookahead == lookahead, placement
        assert Student(dataclasses.replace(PRESETS["adcvsr"], temporal_kernel=11)).lookahead == 90


def test_a_fresh_temporal_block_is_the_identity_and_learns():
    block = TemporalBlock(4, 4, 3, "block").double()
    assert not block.conv2.weight.any() and block.conv1.weight.any()
    student = Student(dataclasses.replace(PRESETS["nano"], channels=(8, 8, 8, 8), decoder_channels=(4, 4, 4, 4)))
    lr = clip(3, torch.float32)
    assert torch.allclose(student(lr), student(lr, temporal_strength=0.0), atol=1e-6)
    torch.nn.init.normal_(student.decoder.conv_out.weight, std=0.1)
    student(lr).square().mean().backward()
    assert all(b.conv2.weight.grad.any() for b in student.modules() if isinstance(b, TemporalBlock))
