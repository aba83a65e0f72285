"""Recurrent students: each frame sees the output for the one before, and every law of streams holds for them too."""

import copy
import dataclasses
import json

import hypothesis.strategies as st
import pytest
import torch
from conftest import awaken
from hypothesis import given, settings

from adcvsr_core import UpscaleConfig, upscale
from adcvsr_core.checkpoint import load_student, save_student
from adcvsr_core.cli import main
from adcvsr_core.config import StudentConfig
from adcvsr_core.convert import key_table, with_recurrence, with_temporal
from adcvsr_core.cost import count_flops, count_parameters, state_bytes
from adcvsr_core.engine import plan_run
from adcvsr_core.errors import ConfigError, NonFiniteError
from adcvsr_core.streaming import StreamState
from adcvsr_core.student import Student
from adcvsr_core.video import VideoWriter, read_video
from adcvsr_core.windows import split, stitch


@pytest.fixture(scope="session")
def flat_config(tiny_config) -> StudentConfig:
    return dataclasses.replace(tiny_config, temporal="none")


@pytest.fixture(scope="session")
def config(flat_config) -> StudentConfig:
    return dataclasses.replace(flat_config, recurrent=True)


@pytest.fixture(scope="session")
def student(config) -> Student:
    """A tiny float32 student that makes much of the frame before, but not so much that rounding errors explode."""
    torch.manual_seed(3)
    student = awaken(Student(config))
    student.unet.temporal_in.weight.mul_(0.3)
    return student


@pytest.fixture(scope="session")
def exact(student) -> Student:
    return copy.deepcopy(student).double()


def clip(num_frames: int, batch: int = 1, width: int = 16) -> torch.Tensor:
    return torch.rand((batch, num_frames, 3, 16, width), dtype=torch.float64) * 2 - 1


def streamed(student, lr, sizes, state=None, strength=1.0):
    """Push a clip in pieces of the given sizes (repeated), the last piece with last=True."""
    state, parts, start = state or StreamState(), [], 0
    while start < lr.shape[1]:
        size = sizes[len(parts) % len(sizes)]
        last = start + size >= lr.shape[1]
        parts.append(student(lr[:, start : start + size], state, last, strength))
        start += size
    return torch.cat(parts, dim=1)


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


# The stream


def test_what_is_carried_moves_the_output(exact):
    lr = clip(6)
    with_time, alone = exact(lr), exact(lr, temporal_strength=0.0)
    assert (with_time - alone)[:, 1:].std() > 0.1 * with_time.std()
    assert torch.equal(with_time[:, 0], exact(lr[:, :1], temporal_strength=0.0)[:, 0]), "the first has none before it"


@pytest.mark.parametrize("changes", [{}, {"norm": "none", "residual": "bicubic", "output_scale": 0.1}], ids=str)
def test_chunked_equals_whole_clip(config, changes):
    student = awaken(Student(dataclasses.replace(config, **changes))).double()
    for num_frames in (1, 2, 7):
        lr = clip(num_frames, batch=2, width=32)
        whole = student(lr)
        for chunk in (1, 2, 3, 5):
            assert gap(streamed(student, lr, [chunk]), whole) < 1e-10, (num_frames, chunk)


def test_chunks_are_bit_equal(student):
    """One frame at a time has one shape however it was pushed, so not even the order of a sum can differ."""
    lr = clip(6).float()
    assert torch.equal(streamed(student, lr, [1]), student(lr)) and torch.equal(streamed(student, lr, [4]), student(lr))


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5), num_frames=st.integers(1, 11))
@settings(max_examples=10)
def test_any_chunking_equals_whole_clip(exact, sizes, num_frames):
    lr = clip(num_frames)
    assert gap(streamed(exact, lr, sizes), exact(lr)) < 1e-10


def test_every_frame_comes_out_at_once_and_an_empty_end_closes(exact):
    lr, state = clip(5), StreamState()
    parts = [exact(frame, state, last=False) for frame in lr.split(1, dim=1)]
    assert [part.shape[1] for part in parts] == [1] * 5 and exact.lookahead == 0
    assert exact(lr[:, :0], state, last=True).shape == (1, 0, 3, 64, 64)
    assert state.closed and state.num_bytes == 0
    assert gap(torch.cat(parts, dim=1), exact(lr)) < 1e-10


def test_a_frame_touches_itself_and_all_after_it(exact):
    lr = clip(9)
    changed = lr.clone()
    changed[:, 4] = torch.rand_like(changed[:, 4]) * 2 - 1
    touched = (exact(lr) != exact(changed)).flatten(2).any(dim=2)[0].nonzero().flatten().tolist()
    assert touched == [4, 5, 6, 7, 8]


def test_strength_zero_is_every_frame_alone_without_state(exact):
    lr, state = clip(5), StreamState()
    alone = torch.cat([exact(frame) for frame in lr.split(1, dim=1)], dim=1)
    assert gap(exact(lr, state, last=False, temporal_strength=0.0), alone) < 1e-12
    assert state.num_bytes == 0


def test_strength_scales_what_is_carried_in_a_stream_too(exact):
    lr = clip(5)
    half = exact(lr, temporal_strength=0.5)
    assert gap(streamed(exact, lr, [2], strength=0.5), half) < 1e-10
    scaled = copy.deepcopy(exact)
    scaled.unet.temporal_in.weight.mul_(0.5)
    assert gap(scaled(lr), half) < 1e-10 < gap(exact(lr), half)


def test_recomputed_skips_give_the_same_frames(exact):
    lr = clip(5)
    assert gap(streamed(exact, lr, [2], StreamState(recompute_skips=True)), exact(lr)) < 1e-10


@pytest.mark.parametrize("where", ["unet.temporal_in", "unet.mid.layers.0", "decoder"])
def test_a_push_that_fails_in_its_third_frame_leaves_the_stream_as_it_was(exact, where):
    lr, state, calls = clip(10), StreamState(), []
    parts = [exact(lr[:, :4], state, last=False)]

    def fail(*_):
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError

    hook = exact.get_submodule(where).register_forward_hook(fail)
    with pytest.raises(MemoryError):
        exact(lr[:, 4:], state, last=True)
    hook.remove()
    assert state.frames_in == state.frames_out == 4 and not state.closed
    parts.append(exact(lr[:, 4:], state, last=True))
    assert gap(torch.cat(parts, dim=1), exact(lr)) < 1e-10


def test_a_non_finite_frame_is_refused_and_not_carried(exact):
    lr, state = clip(6), StreamState()
    before = exact(lr[:, :3], state, last=False)
    poisoned = lr[:, 3:4].clone()
    poisoned[0, 0, 0, 3, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="frame 3"):
        exact(poisoned, state, last=False)
    assert gap(torch.cat((before, exact(lr[:, 3:], state)), dim=1), exact(lr)) < 1e-10


def test_state_moves_to_another_dtype_and_goes_on(student, exact):
    lr, state = clip(6), StreamState()
    first = student(lr[:, :3].float(), state, last=False)
    assert {piece.dtype for slot in state.slots.values() for piece in slot.pieces} == {torch.float32}
    rest = exact(lr[:, 3:], state.to("cpu", torch.float64), last=True)
    whole = exact(lr)
    assert gap(torch.cat((first.double(), rest), dim=1), whole) < 0.01 < 0.1 * gap(exact(lr[:, 3:]), whole[:, 3:])


def test_the_carried_frame_has_the_weights_dtype(student):
    state = StreamState()
    sr = copy.deepcopy(student).bfloat16()(clip(2).float(), state, last=False)
    assert sr.dtype == torch.float32 and state.num_bytes == 3 * 64 * 64 * 2


# Weights and counts


def test_a_fresh_one_is_its_plain_twin(flat_config, config):
    for changes in ({}, {"norm": "none"}):
        twins = []
        for each in (flat_config, config):
            torch.manual_seed(5)
            twins.append(Student(dataclasses.replace(each, **changes)).eval().double())
        plain, recurrent = (twin.state_dict() for twin in twins)
        assert set(recurrent) - set(plain) == {"unet.temporal_in.weight"} == twins[1].temporal_names()
        assert all(torch.equal(plain[key], recurrent[key]) for key in plain)
        lr = clip(4)
        with torch.no_grad():
            assert gap(twins[0](lr), twins[1](lr)) < 1e-10


def test_a_2d_student_becomes_recurrent(flat_config, config):
    flat = awaken(Student(flat_config))
    student = with_recurrence(flat.double())
    lr = clip(4)
    assert student.config == config and student.dtype == torch.float64 and not student.training
    assert gap(student(lr), flat(lr)) < 1e-10
    with pytest.raises(ConfigError, match="recurrent already"):
        with_recurrence(student)
    with pytest.raises(ConfigError, match="recurrent already"):
        with_temporal(student)
    with pytest.raises(ConfigError, match="already has temporal blocks"):
        with_recurrence(with_temporal(flat))


def test_recurrence_and_temporal_blocks_exclude_each_other():
    with pytest.raises(ConfigError, match="needs a finished frame"):
        StudentConfig(recurrent=True)


def test_files_keep_it_and_old_files_have_none(tmp_path, student, flat_config):
    save_student(student, tmp_path / "r.safetensors")
    loaded = load_student(tmp_path / "r.safetensors")
    assert loaded.config.recurrent
    lr = clip(3).float()
    assert torch.equal(loaded(lr), student(lr))
    old = json.loads(flat_config.to_json())
    del old["recurrent"]
    assert StudentConfig.from_json(json.dumps(old)) == flat_config


def test_conversion_knows_no_recurrence(flat_config, config):
    """Other programs' weights have none: what is converted is the plain twin."""
    assert key_table(config) == key_table(flat_config)


def test_counts(config, flat_config, student):
    weights = 192 * config.channels[0] * 3 * 3
    assert count_parameters(config) == (count_parameters(flat_config)[0] + weights, weights)
    assert count_flops(config, 32, 48) - count_flops(flat_config, 32, 48) == 2 * weights * 16 * 24
    assert count_flops(config, 32, 48, temporal_strength=0.0) == count_flops(flat_config, 32, 48)
    assert state_bytes(config, 32, 48, torch.float16) == 3 * 128 * 192 * 2
    one, many = (plan_run(32, 48, student, UpscaleConfig(chunk=chunk)).memory for chunk in (1, 8))
    assert one.step - one.frames == many.step - many.frames, "frames of a step run one by one"


def test_gradients_flow_through_time(config):
    student = Student(config).double().train()
    torch.nn.init.normal_(student.unet.temporal_in.weight, std=0.1)
    lr = clip(5).requires_grad_()
    student(lr)[:, 3].square().mean().backward()
    reached = lr.grad.abs().flatten(2).amax(dim=2)[0]
    assert (reached[:4] > 0).all() and reached[4] == 0, reached
    assert student.unet.temporal_in.weight.grad.abs().max() > 0
    student.zero_grad()
    detached = student(lr, temporal_strength=0.0)[:, 3].square().mean()
    assert torch.autograd.grad(detached, lr)[0].abs().flatten(2).amax(dim=2)[0].nonzero().flatten().tolist() == [3]


def test_a_fresh_one_learns_to_carry(config):
    """Starting at zero stops no gradient: the first step moves the carrying layer."""
    student = Student(config).train()
    student(clip(3).float()).square().mean().backward()
    assert student.unet.temporal_in.weight.grad.abs().max() > 0


# In use


def frames(num_frames: int, height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.rand(num_frames, height, width, 3)


def upscaled(pieces, student, **changed) -> torch.Tensor:
    return torch.cat(list(upscale(pieces, student, UpscaleConfig(**({"cuts": 0.0} | changed)))))


@pytest.mark.parametrize("tile", [0, 32])
def test_upscaling_does_not_depend_on_chunks_or_pieces(student, tile):
    source = frames(7)
    whole = upscaled([source], student, chunk=7, tile=tile)
    for pieces, chunk in (([source], 1), (source.split(2), 3)):
        assert gap(upscaled(pieces, student, chunk=chunk, tile=tile), whole) < 1e-5
    assert gap(upscaled([source], student, temporal_strength=0.0, tile=tile), whole) > 0.01


def test_a_cut_starts_anew(student):
    dark, light = frames(4) * 0.1, 0.9 + frames(3) * 0.1
    whole = upscaled([torch.cat((dark, light))], student, cuts=0.5)
    assert gap(whole[4:], upscaled([light], student)) < 1e-5
    assert gap(upscaled([torch.cat((dark, light))], student, cuts=0.0)[4:], whole[4:]) > 1e-3


def test_no_halo_makes_windows_exact(student):
    """What `halo` says is true: nothing short of the whole past gives the whole clip's frames."""
    assert student.halo is None
    source = frames(16, 16, 16)
    whole = upscaled([source], student)
    parts, windows = zip(*split(source, 8, 6))
    joined = stitch([upscaled([part], student) for part in parts], windows, fade=False)
    assert gap(joined[:8], whole[:8]) < 1e-5 < gap(joined[8:], whole[8:])


def test_the_command_line_runs_it(tmp_path, student):
    save_student(student, tmp_path / "r.safetensors")
    source, out = tmp_path / "in.mkv", tmp_path / "out.mkv"
    with VideoWriter(source, width=32, height=16, fps=24, codec="ffv1") as writer:
        writer.write(frames(6, 16, 32))
    options = ["--model", str(tmp_path / "r.safetensors"), "--codec", "ffv1", "--chunk", "4", "--cuts", "0"]
    assert main(["upscale", str(source), str(out), *options]) == 0
    with read_video(source) as before, read_video(out) as after:
        expected = upscaled([torch.cat(list(before))], student)
        assert gap(torch.cat(list(after)), expected) < 0.51 / 255
