"""Out of memory at any point: the run goes on at the same frame, says so, and exact rungs change no frame."""

import dataclasses
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from adcvsr_core import engine
from adcvsr_core.config import StepConfig, UpscaleConfig
from adcvsr_core.engine import upscale
from adcvsr_core.errors import OutOfMemory
from adcvsr_core.ladder import Footing, rungs
from adcvsr_core.student import Student

CUDA, TWIN = torch.device("cuda"), torch.device("cpu:0")
WHOLE = UpscaleConfig(cuts=0.0, attention_window=-1)
CLIP = torch.rand((40, 16, 144, 3), generator=torch.Generator().manual_seed(3))

# This network's loud weights lose 1e-4 to float32 alone, and bands merge the sums of norms, which round otherwise;
# tests/test_student.py compares them in float64.
CLOSE = 5e-4


def run(student: Student, config: UpscaleConfig = WHOLE, clip: Tensor = CLIP) -> Tensor:
    return torch.cat(list(upscale([clip], student, config)))


def on_a_card(footing: Footing, *arguments):
    """The ladder of a GPU, climbed on a CPU: the rung that leaves the GPU leads to the same CPU by another name."""
    if footing.device == TWIN:
        return
    for lower, meaning in rungs(dataclasses.replace(footing, device=CUDA), *arguments):
        yield dataclasses.replace(lower, device=footing.device if lower.device == CUDA else TWIN), meaning


class Memory:
    """Lets the student fail from a frame on, until the run stands low enough."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, student: Student, enough: Callable[[Footing], bool]):
        self.seen: list[Footing] = []
        self.enough, self.from_frame, self.calls = enough, 0, 0
        self.draining, self.stage = False, 0  # whether the call at hand ends a clip, and how far that is

        def failing(original: Callable) -> Callable:
            def call(network, lr, stream, *arguments):
                self.calls += 1
                self.draining, self.stage = original.__name__ == "drain", stream.drained
                if stream.frames_in >= self.from_frame and not self.enough(self.run.footing):
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return original(network, lr, stream, *arguments)

            return call

        begin = engine._Run.__init__

        def remember(run, *arguments):
            self.run = run
            begin(run, *arguments)

        monkeypatch.setattr(engine._Run, "__init__", remember)
        for name in ("forward", "drain"):
            monkeypatch.setattr(Student, name, failing(getattr(Student, name)))


def told(record: list[warnings.WarningMessage]) -> list[str]:
    return [str(each.message).removeprefix("out of memory: ") for each in record]


EXACT = {
    "frame_batch": lambda f: f.how.frame_batch == 1,
    "chunk": lambda f: f.chunk <= 2,
    "skips": lambda f: f.recompute_skips,
    "offload": lambda f: f.offload,
    "bands": lambda f: f.how.band == 256,
    "narrow bands": lambda f: f.how.band == 64,
}


@pytest.mark.parametrize("from_frame", [0, 32])
@pytest.mark.parametrize("rung", EXACT)
def test_exact_rungs_change_no_frame(monkeypatch, student, rung, from_frame):
    expected = run(student)
    monkeypatch.setattr(engine, "rungs", on_a_card)
    memory = Memory(monkeypatch, student, EXACT[rung])
    memory.from_frame = from_frame
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        result = run(student, dataclasses.replace(WHOLE, chunk=8))
    assert (result - expected).abs().max() < CLOSE
    told_so = told(record)
    assert len(told_so) >= (rung != "frame_batch") and len(set(told_so)) == len(told_so), told_so
    assert EXACT[rung](memory.run.footing)


@pytest.mark.parametrize("from_frame", [0, 8, 32])
def test_tiles_take_over_at_the_very_frame(monkeypatch, student, from_frame):
    """Before the switch frames are the whole frame's, from it on those of a clip that was tiled from the start."""
    whole = run(student)
    memory = Memory(monkeypatch, student, lambda f: f.tile != 0)
    memory.from_frame = from_frame
    with pytest.warns(UserWarning, match="tiles of 96 LR pixels"):
        result = run(student, dataclasses.replace(WHOLE, chunk=8))
    memory.enough = lambda f: True
    settings = {"attention_window": 128, "tile": memory.run.footing.tile}
    tiled = run(student, dataclasses.replace(WHOLE, **settings))
    switched = max(0, from_frame - student.lookahead)
    assert (result[:switched] - whole[:switched]).abs().max() < CLOSE if switched else True
    assert (result[switched:] - tiled[switched:]).abs().max() < CLOSE
    assert (tiled - whole).abs().max() > 1e-3, "or nothing was shown"


def two_shots() -> Tensor:
    """Return 34 frames, so narrow that windows of attention change nothing, with a cut before frame 28."""
    scenes = torch.rand((2, 16, 96, 3), generator=torch.Generator().manual_seed(5)) * 0.3
    drift = torch.linspace(0, 0.05, 28)[:, None, None, None]
    return torch.cat((scenes[:1] + drift, scenes[1:] + drift[:6] + 0.65))


@pytest.mark.parametrize("cpu_has_room", [True, False])
def test_tiles_wait_for_a_cut_that_is_near(monkeypatch, student, cpu_has_room):
    """The CPU finishes the shot in whole frames, so that nothing changes within it, where it can."""
    clip, config = two_shots(), UpscaleConfig(chunk=8)
    whole, tiled = (run(student, dataclasses.replace(config, tile=tile), clip) for tile in (0, 64))
    monkeypatch.setattr(engine, "rungs", on_a_card)
    on_tiles = []
    memory = Memory(
        monkeypatch, student, lambda f: f.tile and (on_tiles.append(f) or cpu_has_room or len(on_tiles) > 1)
    )
    memory.from_frame = 24  # of the first shot, when 6 frames are finished and the cut is in hand
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        result = run(student, config, clip)
    switched = 28 if cpu_has_room else 24 - student.lookahead
    assert (result[:switched] - whole[:switched]).abs().max() < CLOSE
    assert (result[switched:] - tiled[switched:]).abs().max() < CLOSE
    assert (tiled - whole).abs().amax(dim=(1, 2, 3)).min() > 1e-3, "or nothing was shown"
    last = told(record)[-1]
    assert ("finishes the last 22 frames of this shot; from the cut on tiles of 64" in last) == cpu_has_room
    assert ("does not wait for the cut" in last) != cpu_has_room


@pytest.mark.parametrize("drained", [0, 1, 5, 8])
@pytest.mark.parametrize("cpu_has_room", [True, False])
def test_tiles_wait_for_the_end_of_a_shot_that_is_drained(monkeypatch, student, drained, cpu_has_room):
    """Memory fails when some temporal blocks have met the end already."""
    clip, config = two_shots(), UpscaleConfig(chunk=8)
    whole, tiled = (run(student, dataclasses.replace(config, tile=tile), clip) for tile in (0, 64))
    monkeypatch.setattr(engine, "rungs", on_a_card)
    finished, on_tiles = [], []

    def enough(footing: Footing) -> bool:
        if not memory.draining or (memory.stage < drained and not finished):
            return True
        finished.append(memory.run.done)
        return bool(footing.tile and (on_tiles.append(footing) or cpu_has_room or len(on_tiles) > 1))

    memory = Memory(monkeypatch, student, enough)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        result = run(student, config, clip)
    assert len(result) == len(clip) and 0 < finished[0] < 28
    switched = 28 if cpu_has_room else finished[0]
    assert (result[:switched] - whole[:switched]).abs().max() < CLOSE
    assert (result[switched:] - tiled[switched:]).abs().max() < CLOSE
    assert ("does not wait for the cut" in told(record)[-1]) != cpu_has_room


def test_windows_of_attention_come_before_tiles(monkeypatch, student):
    memory = Memory(monkeypatch, student, lambda f: f.how.attention_window == 128)
    with pytest.warns(UserWarning, match="attention looks 128 LR pixels far"):
        result = run(student, dataclasses.replace(WHOLE, chunk=8))
    assert memory.run.footing.tile == 0
    memory.enough = lambda f: True
    assert (result - run(student, dataclasses.replace(WHOLE, attention_window=128))).abs().max() < CLOSE


def test_the_last_rung_is_the_cpu(monkeypatch, student):
    expected = run(student)
    monkeypatch.setattr(engine, "rungs", on_a_card)
    memory = Memory(monkeypatch, student, lambda f: f.device == TWIN)
    memory.from_frame = 24
    with pytest.warns(UserWarning, match="the CPU takes over in float32"):
        result = run(student, dataclasses.replace(WHOLE, chunk=8))
    assert result.shape == expected.shape and memory.run.footing.device == TWIN
    assert (result[:6] - expected[:6]).abs().max() < CLOSE


def test_below_the_last_rung_is_an_error_that_says_what_to_do(monkeypatch, student):
    Memory(monkeypatch, student, lambda f: False)
    with pytest.raises(OutOfMemory, match="144x16.*choose a smaller work size"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(student)


def test_a_later_tile_that_fails_leaves_all_tiles_in_step(monkeypatch, student):
    config = dataclasses.replace(WHOLE, tile=96, chunk=4)
    expected = run(student, config)
    memory = Memory(monkeypatch, student, lambda f: memory.calls != 4)
    with pytest.warns(UserWarning, match="out of memory"):
        assert (run(student, config) - expected).abs().max() < CLOSE
    assert memory.calls > 4


def test_failures_at_every_call_of_a_run(monkeypatch, student):
    """One failure, at whichever call: frames stay, also while streams are caught up."""
    clip, config = CLIP[:23, :, :48], dataclasses.replace(WHOLE, chunk=6)
    expected = run(student, config, clip)
    memory = Memory(monkeypatch, student, lambda f: True)
    run(student, config, clip)
    for failing in range(1, memory.calls + 1):
        memory.calls = 0
        memory.enough = lambda f, failing=failing: memory.calls not in (failing, failing + 1, failing + 2, failing + 4)
        with pytest.warns(UserWarning, match="out of memory"):
            assert (run(student, config, clip) - expected).abs().max() < CLOSE, failing


def test_rungs_lead_down_and_end(student):
    start = Footing(device=CUDA, chunk=8, how=StepConfig())
    steps = [footing for footing, _ in rungs(start, student.config, 96, 512, 16)]
    assert [f.chunk for f in steps[:4]] == [8, 4, 2, 1] and steps[0].how.frame_batch == 1
    order = ["recompute_skips", "offload"]
    first = {name: next(i for i, f in enumerate(steps) if getattr(f, name)) for name in order}
    banded = next(i for i, f in enumerate(steps) if f.how.band)
    windowed = next(i for i, f in enumerate(steps) if f.how.attention_window)
    tiled = next(i for i, f in enumerate(steps) if f.tile)
    assert 3 < first["recompute_skips"] < first["offload"] < banded < windowed < tiled < len(steps) - 1
    assert steps[-1].device.type == "cpu" and [f.tile for f in steps[tiled:-1]][-1] == 64
    for index, footing in enumerate(steps[:-1]):
        rest = [each for each, _ in rungs(footing, student.config, 96, 512, 16)]
        assert rest == steps[index + 1 :], "the way down does not depend on where one begins"
