"""The planner's predictions against what a stream's steps really allocate, and the promises that rest on them."""

import dataclasses
import itertools

import pytest
import torch

from adcvsr_core import engine
from adcvsr_core.config import PRESETS, StepConfig, UpscaleConfig
from adcvsr_core.cost import count_flops
from adcvsr_core.engine import plan_run, upscale
from adcvsr_core.footprint import _Counter, _MetaRules, footprint
from adcvsr_core.planner import plan_memory
from adcvsr_core.streaming import StreamState
from adcvsr_core.student import Student

CUDA, GB, SIZE = torch.device("cuda"), 1e9, 64


def counted(config, chunk: int, how: StepConfig, offload: bool, recompute_skips: bool) -> int:
    """Run a whole stream without data, push by push, and return the most that was alive."""
    with torch.device("meta"):
        student = Student(config).to(torch.bfloat16).train()
    state = StreamState(recompute_skips=recompute_skips, offload=offload)
    pushes = [chunk] * (-(-24 // chunk)) + [0]
    with torch.no_grad(), _Counter(student.parameters()) as counter, _MetaRules(counter):
        for index, num_frames in enumerate(pushes):
            lr = torch.empty((1, num_frames, 3, SIZE, SIZE), device="meta")
            ends = index == len(pushes) - 1
            while not state.closed:
                before = state.copy()  # as the engine keeps it, for a step that fails
                student.drain(lr, state, how) if ends else student(lr, state, False, how=how)
                del before
                if not ends:
                    break
    return counter.peak


@pytest.mark.parametrize(
    ("chunk", "frame_batch", "band", "offload", "recompute_skips"),
    [
        (8, 0, 0, False, False),
        (8, 1, 0, False, False),
        (2, 1, 0, False, True),
        (1, 1, 0, True, False),
        (1, 1, 32, True, True),
    ],
)
@pytest.mark.parametrize("name", ["tiny", "default"])
def test_predictions_are_what_a_stream_allocates(tiny_config, name, chunk, frame_batch, band, offload, recompute_skips):
    config = {"tiny": tiny_config, "default": PRESETS["default"]}[name]
    how = StepConfig(frame_batch=frame_batch, band=band)
    real = counted(config, chunk, how, offload, recompute_skips)
    named = {"band": band, "offload": offload, "recompute_skips": recompute_skips}
    predicted = footprint(config, SIZE, SIZE, torch.bfloat16, **named).peak(chunk, frame_batch)
    assert 0.78 < predicted / real < 1.62, (predicted, real)


def test_every_way_to_save_memory_saves_it():
    def peak(chunk=8, frame_batch=1, **named):
        return footprint(PRESETS["adcvsr"], 256, 256, torch.bfloat16, **named).peak(chunk, frame_batch)

    steps = [peak(frame_batch=0), peak(), peak(1), peak(1, recompute_skips=True), peak(1, offload=True)]
    steps.append(peak(1, offload=True, band=64))
    assert all(less < more for more, less in itertools.pairwise(steps)), steps
    assert footprint(PRESETS["adcvsr"], 256, 256, torch.float32).peak(1, 1) > 1.8 * peak(1)
    assert peak(1, temporal_strength=0.0) < 0.6 * peak(1)


def plan(size: tuple[int, int], gigabytes: float, **settings):
    config = UpscaleConfig(memory=gigabytes, **settings)
    return plan_memory(PRESETS["adcvsr"], config, size, torch.bfloat16, CUDA, 16)


def test_the_full_size_network_goes_whole_where_people_need_it():
    """The job of InstaVSR's abstract, frames to 2048x2048 within 7 GB, in 5 and in 4; 4K on a card of 8 GB."""
    for size, gigabytes in (((512, 512), 5.0), ((512, 512), 4.0), ((544, 960), 8 * 0.9)):
        made = plan(size, gigabytes)
        assert made.fits and made.footing.tile == 0, made
        assert made.weights + made.step <= gigabytes * GB


def test_more_memory_never_means_smaller_steps():
    plans = [plan((256, 256), gigabytes) for gigabytes in (1.5, 2, 3, 4, 6, 8, 12, 24, 80)]
    assert [each.footing.chunk for each in plans] == sorted(each.footing.chunk for each in plans)
    assert all(each.fits for each in plans) and plans[-1].footing.how.frame_batch == 0
    tiles = [each.footing.tile for each in plans]
    assert not any(tiles[1:]), tiles


def test_what_people_set_stays():
    made = plan((256, 256), 2.0, chunk=5, tile=128, attention_window=-1)
    assert (made.footing.chunk, made.footing.tile, made.footing.how.attention_window) == (5, 128, 0)
    assert plan((256, 256), 80, attention_window=64).footing.how.attention_window == 64


def test_large_frames_of_a_finely_attending_network_get_windows():
    assert plan((256, 256), 80).footing.how.attention_window == 0
    assert plan((480, 832), 80).footing.how.attention_window == 128
    small = plan_memory(PRESETS["default"], UpscaleConfig(memory=80), (480, 832), torch.bfloat16, CUDA, 16)
    assert small.footing.how.attention_window == 0
    whole, windowed = (
        count_flops(PRESETS["adcvsr"], 480, 832, how=StepConfig(attention_window=window)) for window in (0, 128)
    )
    assert whole > 85e12 and windowed < 40e12, (whole, windowed)


def test_a_plan_that_cannot_fit_takes_the_least():
    made = plan((512, 512), 0.1)
    assert not made.fits and made.step <= min(plan((512, 512), g).step for g in (1.2, 2, 4))


def test_a_small_memory_gives_small_steps_and_then_tiles(monkeypatch, student):
    def chosen(free: int, size: int):
        monkeypatch.setattr("adcvsr_core.planner.available_bytes", lambda _: free)
        return plan_run(size, size, student, UpscaleConfig()).memory

    enough = chosen(2**40, 64)
    assert enough.footing.chunk == 4 and enough.fits
    less = chosen(round(enough.step / 0.6 * 0.97), 64)
    assert less.fits and less.footing.chunk < 4 and len(less.grid.tiles) == 1
    whole = chosen(2**40, 192)
    small = footprint(student.config, 144, 144, torch.float32, band=64, recompute_skips=True).peak(1, 1)
    monkeypatch.setattr("adcvsr_core.planner.available_bytes", lambda _: 0)
    assert small < whole.step
    with pytest.warns(UserWarning, match="does not fit the memory in one piece: tiles of"):
        frames = list(upscale([torch.rand(1, 192, 192, 3)], student, UpscaleConfig(memory=_tight(student))))
    assert sum(map(len, frames)) == 1


def _tight(student) -> float:
    """Return the gigabytes for which frames of 192x192 need tiles, by looking for them."""
    for gigabytes in (0.2, 0.1, 0.05, 0.03, 0.02, 0.01):
        memory = plan_run(192, 192, student, UpscaleConfig(memory=gigabytes)).memory
        if memory.footing.tile:
            return gigabytes
    raise AssertionError("no budget asks for tiles")


def test_a_plan_for_another_device_looks_there(student):
    config = dataclasses.replace(UpscaleConfig(), chunk=2)
    made = engine.plan_run(64, 64, student, config, CUDA, available=2**40).memory
    assert made.footing.device == CUDA and made.fits and made.budget == round(0.8 * 2**40)


def test_frames_on_their_way_are_counted_where_they_lie():
    """On a CPU with the step, where nothing is under way; a GPU's memory does not hold those that are."""
    sizes, arguments = (10, 1000), (PRESETS["default"], UpscaleConfig(memory=80), (64, 64), torch.float32)
    for device, read, steps in ((torch.device("cpu"), 8, 1), (CUDA, 16, 3)):
        with_frames, without = (plan_memory(*arguments, device, 16, frame_bytes=each) for each in (sizes, (0, 0)))
        chunk = with_frames.footing.chunk
        assert without.frames == 0 and with_frames.frames == read * 10 + steps * chunk * 1000
        assert with_frames.step - without.step == (with_frames.frames if device.type == "cpu" else 0)


def test_graphs_are_given_as_much_again(monkeypatch, student):
    config = UpscaleConfig(chunk=2)
    plain = engine.plan_run(64, 64, student, config, CUDA, available=2**40).memory
    monkeypatch.setattr(student, "reuses_memory", True)
    made = engine.plan_run(64, 64, student, config, CUDA, available=2**40).memory
    assert made.step == 2 * plain.step and made.footing == plain.footing


def test_large_finished_frames_make_smaller_steps_on_a_cpu(student):
    plans = [plan_run(64, 64, student, UpscaleConfig(memory=0.2, work_size=64, scale=scale)) for scale in (4, 32)]
    small, large = (each.memory for each in plans)
    assert small.fits and small.footing.chunk > large.footing.chunk
