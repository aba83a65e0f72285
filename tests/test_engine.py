"""The engine: any size, any length, shots, tiles, faults in the middle; never another frame than asked for."""

import copy
import dataclasses

import hypothesis.strategies as st
import pytest
import torch
from conftest import awaken
from hypothesis import given, settings

from adcvsr_core import engine
from adcvsr_core.config import UpscaleConfig
from adcvsr_core.engine import plan_run, upscale
from adcvsr_core.errors import Cancelled, ConfigError, InputError
from adcvsr_core.student import Student

WHOLE = UpscaleConfig(cuts=0.0)


def run(frames, student, config=WHOLE, **callbacks):
    source = frames if isinstance(frames, list) else [frames]
    return torch.cat(list(upscale(source, student, config, **callbacks)))


def shots(*lengths: int, height: int = 20, width: int = 28) -> list[torch.Tensor]:
    """Return shots of slowly changing pictures, each quite unlike its neighbours."""
    clips = []
    for index, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(index)
        scene = torch.rand((1, height, width, 3), generator=generator) * 0.3 + (0.65 if index % 2 else 0.0)
        drift = torch.linspace(0, 0.05, length)[:, None, None, None]
        clips.append(scene + drift)
    return clips


@pytest.fixture(scope="module")
def bicubic_student(tiny_config) -> Student:
    """A network whose output is exactly its bicubic base."""
    config = dataclasses.replace(tiny_config, residual="bicubic", output_scale=0.0, color="none", norm="none")
    return Student(config).eval()


@pytest.mark.parametrize("chunk", [1, 3, 8, 50])
def test_chunk_never_changes_the_frames(student, chunk):
    clip = torch.cat(shots(5, 23, 1, 9))
    expected = run(clip, student, UpscaleConfig(chunk=64))
    result = run(clip, student, UpscaleConfig(chunk=chunk))
    assert result.shape == (38, 80, 112, 3)
    assert (result - expected).abs().max() < 1e-4


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8))
@settings(max_examples=8)
def test_pieces_of_the_source_never_change_the_frames(student, sizes):
    clip = torch.cat(shots(12, 13))
    expected = run(clip, student, UpscaleConfig(chunk=4))
    pieces = list(clip.split([*sizes, 25 - sum(sizes)])) if sum(sizes) < 25 else [clip]
    assert torch.equal(run(pieces, student, UpscaleConfig(chunk=4)), expected)


def test_a_cut_clip_equals_its_shots_run_alone(student):
    parts = shots(4, 21, 2, 10)
    config = UpscaleConfig(chunk=6)
    alone = torch.cat([run(part, student, config) for part in parts])
    assert (run(torch.cat(parts), student, config) - alone).abs().max() < 1e-4
    # Without cuts the shots bleed, or the test would show nothing.
    assert (run(torch.cat(parts), student, UpscaleConfig(chunk=6, cuts=0.0)) - alone).abs().max() > 1e-2


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (17, 3), (35, 27), (48, 33)])
@pytest.mark.parametrize("num_frames", [1, 2, 20])
def test_any_size_and_any_number_of_frames(student, height, width, num_frames):
    result = run(torch.rand(num_frames, height, width, 3), student, UpscaleConfig(cuts=0.0, chunk=7))
    assert result.shape == (num_frames, 4 * height, 4 * width, 3)
    assert result.dtype == torch.float32 and result.isfinite().all() and result.min() >= 0 and result.max() <= 1


@pytest.mark.parametrize(
    ("settings_", "work", "target"),
    [
        ({}, (90, 160), (360, 640)),
        ({"scale": 2.0}, (45, 80), (180, 320)),
        ({"scale": 1.5}, (34, 60), (135, 240)),
        ({"height": 2160}, (540, 960), (2160, 3840)),
        ({"height": 360, "work_size": 120}, (120, 213), (360, 640)),
        ({"height": 101}, (26, 46), (101, 180)),
    ],
    ids=str,
)
def test_sizes_follow_the_target(student, settings_, work, target):
    plan = plan_run(90, 160, student, UpscaleConfig(**settings_))
    assert (plan.work, plan.target) == (work, target)
    assert all(size % 16 == 0 for size in plan.padded)


def test_the_output_has_the_size_of_the_plan(student):
    for settings_ in ({"scale": 2.0}, {"height": 50}, {"work_size": 9}):
        config = UpscaleConfig(cuts=0.0, **settings_)
        assert run(torch.rand(2, 21, 33, 3), student, config).shape[1:3] == plan_run(21, 33, student, config).target


def test_padding_repeats_the_edge(bicubic_student):
    clip = torch.rand(1, 18, 22, 3)
    planes = torch.nn.functional.interpolate(clip.permute(0, 3, 1, 2), scale_factor=4, mode="bicubic").clamp(0, 1)
    # Repeated edges are what bicubic assumes beyond them, so the padding leaves no trace.
    assert (run(clip, bicubic_student) - planes.permute(0, 2, 3, 1)).abs().max() < 1e-5


def test_tiles_do_not_darken_the_border(bicubic_student, student):
    white = run(torch.ones(2, 50, 70, 3), bicubic_student, UpscaleConfig(tile=32, cuts=0.0))
    assert (white - 1).abs().max() < 1e-5
    clip = torch.rand(1, 50, 70, 3)
    tiled, whole = (run(clip, bicubic_student, UpscaleConfig(tile=tile, cuts=0.0)) for tile in (32, 0))
    assert (tiled - whole).abs()[:, (0, -1)].max() < 0.1 and (tiled - whole).abs().mean() < 1e-3
    assert run(clip, student, UpscaleConfig(tile=32, cuts=0.0)).shape == (1, 200, 280, 3)


def test_tiled_streams_are_exact_in_time(student):
    clip = torch.rand(24, 40, 40, 3)
    one, many = (run(clip, student, UpscaleConfig(tile=32, cuts=0.0, chunk=chunk)) for chunk in (5, 24))
    assert (one - many).abs().max() < 1e-4


def test_temporal_strength_reaches_the_network(student):
    clip = torch.rand(4, 16, 16, 3)
    alone = run(clip, student, UpscaleConfig(temporal_strength=0.0, cuts=0.0))
    frame = run(clip[2:3], student, UpscaleConfig(temporal_strength=0.0, cuts=0.0))
    assert (alone[2:3] - frame).abs().max() < 1e-5
    assert (alone - run(clip, student)).abs().max() > 1e-2


def test_frames_come_out_as_soon_as_they_are_final(student):
    lead, read = [], 0

    def source():
        nonlocal read
        for frame in torch.rand(60, 1, 16, 16, 3):
            read += 1
            yield frame

    emitted = 0
    for frames in upscale(source(), student, UpscaleConfig(chunk=2, cuts=0.0)):
        emitted += len(frames)
        lead.append(read - emitted)
    assert emitted == 60
    assert max(lead) <= student.lookahead + 2


def test_progress_counts_finished_frames(student):
    class Source(list):
        num_frames = 11

    seen = []
    run(Source([torch.rand(11, 16, 16, 3)]), student, UpscaleConfig(chunk=4), on_progress=lambda *a: seen.append(a))
    assert [total for _, total, _ in seen] == [11] * len(seen)
    assert [done for done, _, _ in seen] == sorted({done for done, _, _ in seen}) and seen[-1][0] == 11
    assert seen[0][2].shape == (64, 64, 3)


def test_cancel_stops_at_the_next_step(student):
    asked, out = [], []

    def cancelled():
        asked.append(len(out))
        return len(out) >= 2

    with pytest.raises(Cancelled, match="after 2 frames"):
        for frames in upscale([torch.rand(60, 16, 16, 3)], student, UpscaleConfig(chunk=1), cancelled=cancelled):
            out.extend(frames)
    assert len(out) == 2


def test_other_errors_are_not_taken_for_memory(monkeypatch, student):
    def broken(*_args, **_named):
        raise RuntimeError("a bug")

    monkeypatch.setattr(type(student), "forward", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run(torch.rand(4, 16, 16, 3), student)


def test_an_overflow_is_redone_in_float32_from_the_same_frame(student):
    loud = copy.deepcopy(student)
    loud.unet.conv_in.weight.data *= 6e5  # its output is beyond float16, and norms follow
    clip = torch.rand(25, 16, 16, 3)
    half = copy.deepcopy(loud).half()
    expected = run(clip, copy.deepcopy(half).float())
    with pytest.warns(UserWarning, match="NaN or infinity in torch.float16.*goes on in float32"):
        result = run(clip, half, UpscaleConfig(cuts=0.0, chunk=5))
    assert (result - expected).abs().max() < 1e-4


def test_an_overflow_in_float32_is_an_error(student):
    broken = copy.deepcopy(student)
    broken.decoder.conv_out.bias.data[0] = float("inf")
    with pytest.raises(engine.NonFiniteError, match=r"float32 around frame 0"):
        run(torch.rand(2, 16, 16, 3), broken, UpscaleConfig(temporal_strength=0.0))


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([], "no frames"),
        ([torch.rand(0, 16, 16, 3)], "no frames"),
        ([torch.rand(2, 16, 16, 4)], r"expected frames \[t,H,W,3\]"),
        ([torch.zeros(2, 16, 16, 3, dtype=torch.uint8)], "uint8"),
        (["frame"], "got str"),
        ([torch.rand(2, 16, 16, 3), torch.rand(2, 16, 18, 3)], "frame 2 is 18x16 after frames of 16x16"),
        ([torch.rand(2, 16, 16, 3) * 255], "expected 0..1"),
        ([torch.rand(2, 0, 16, 3)], "frame 0 is 16x0"),
    ],
)
def test_frames_that_cannot_be_used_are_refused(student, pieces, message):
    with pytest.raises(InputError, match=message):
        run(pieces, student)


def test_a_non_finite_input_frame_is_named(student):
    clip = torch.rand(12, 16, 16, 3)
    clip[10, 2, 2, 1] = float("nan")
    with pytest.raises(InputError, match="frame 10 holds NaN"):
        run(clip, student)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"tile": 500}, "tile 500 is not a multiple of 16 LR pixels; use 496 or 512"),
        ({"tile": 7}, "use 16"),
        ({"tile": 64, "overlap": 40}, "overlap 40 is more than half of tile 64"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_the_first_frame(student, settings_, message):
    with pytest.raises(ConfigError, match=message):
        upscale(iter(()), student, UpscaleConfig(**settings_))


def test_the_default_colour_match_is_the_students_own(tiny_config):
    adain = awaken(Student(dataclasses.replace(tiny_config, color="adain")))
    clip = torch.rand(3, 16, 16, 3) * 0.2 + 0.4
    result = run(clip, adain)
    assert (result.mean(dim=(1, 2)) - clip.mean(dim=(1, 2))).abs().max() < 1e-2
    forced = run(clip, adain, UpscaleConfig(color="none", cuts=0.0))
    assert (forced.mean(dim=(1, 2)) - clip.mean(dim=(1, 2))).abs().max() > 1e-2
