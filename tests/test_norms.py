"""GroupNorm statistics lent from clip to clip: what they change, what they leave alone, and what tiles gain by them."""

import contextlib
import itertools

import pytest
import torch
from torch import nn

from adcvsr_core import engine
from adcvsr_core.compiled import compile_layers
from adcvsr_core.config import StepConfig, UpscaleConfig
from adcvsr_core.engine import upscale
from adcvsr_core.norms import lending, noting
from adcvsr_core.streaming import StreamState
from adcvsr_core.student import Student
from adcvsr_core.tiling import plan_tiles
from benchmarks import tiling

LR = torch.rand((1, 20, 3, 16, 32), generator=torch.Generator().manual_seed(0)) * 2 - 1
HOWS = [StepConfig(), StepConfig(frame_batch=1), StepConfig(band=24)]


def pushes(student: Student, lr: torch.Tensor, sizes: list[int], how: StepConfig) -> list:
    """Return one function for each push of a stream, and for each bit of its end."""
    state = StreamState()
    calls = [lambda part=part: student(part, state, False, how=how) for part in lr.split(sizes, dim=1)]
    return [*calls, *[lambda: student.drain(lr[:, :0], state, how)] * student.unet.num_blocks]


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_a_clip_that_lends_to_itself_comes_out_the_same(exact_student, how):
    lr = LR.double()
    lender, borrower = (pushes(exact_student, lr, [3, 17], how) for _ in range(2))
    result = []
    for lend, borrow in zip(lender, borrower, strict=True):
        with noting(exact_student) as noted:
            lend()
        with lending(exact_student, noted):
            result.append(borrow())
    assert (torch.cat(result, dim=1) - exact_student(lr)).abs().max() < 1e-9


def test_what_is_lent_is_what_is_used(exact_student):
    """Brightness and contrast of a borrower count, as they do not where it normalises by itself."""
    lr = LR[:, :1].double()
    with noting(exact_student) as noted:
        exact_student(lr)
    brighter = 0.25 * lr + 0.5
    with lending(exact_student, noted):
        borrowed = exact_student(brighter)
    assert (borrowed - exact_student(brighter)).abs().mean() > 1e-2


def test_bands_note_what_whole_frames_note(exact_student):
    seen = []
    for how in (HOWS[0], HOWS[2]):
        with noting(exact_student) as noted:
            exact_student(LR[:, :2].double(), how=how)
        seen.append({norm: [torch.cat(each) for each in zip(*moments)] for norm, moments in noted.items()})
    assert seen[0].keys() == seen[1].keys() and len(seen[0]) > 20
    for norm, (mean, variance) in seen[0].items():
        assert mean.shape == (2, norm.num_groups)
        assert torch.allclose(mean, seen[1][norm][0]) and torch.allclose(variance, seen[1][norm][1])


@pytest.mark.parametrize("fails", [False, True])
def test_a_network_is_left_as_it_was(student, fails):
    norms = [module for module in student.modules() if isinstance(module, nn.GroupNorm)]
    before = student(LR[:, :1])
    for exchanging in (noting(student), lending(student, {})):
        with contextlib.suppress(ArithmeticError), exchanging:
            if fails:
                raise ArithmeticError
    assert not any(norm._forward_hooks or hasattr(norm, "exchange") for norm in norms)
    assert torch.equal(student(LR[:, :1]), before)


def test_compiled_layers_lend_and_borrow_as_well(student, tiny_config):
    twin = Student(tiny_config).eval().requires_grad_(False)
    twin.load_state_dict(student.state_dict())
    assert compile_layers(twin, backend="eager") is None
    results = []
    for network in (student, twin):
        with noting(network) as noted:
            network(LR[:, :1])
        with lending(network, noted):
            results.append(network(LR[:, 1:2]))
    assert (results[0] - results[1]).abs().max() < 1e-5


def test_a_sample_is_as_large_as_a_tile_and_made_of_the_frame():
    for height, width, tile in itertools.product((16, 96, 272, 544), (96, 480, 960), (64, 96, 256)):
        grid = plan_tiles(height, width, tile, 0, 16)
        places = torch.arange(height * width, dtype=torch.float64).view(1, height, width)
        sample = grid.sample(places, 16)
        assert tuple(sample.shape[1:]) == grid.tile_size and sample.unique().numel() == sample.numel()
        assert len(grid.tiles) > 1 or torch.equal(sample, places)
        # It is taken from everywhere: its mean place is the frame's.
        assert abs(float(sample.mean() - places.mean())) < 0.1 * height * width
        assert grid.sample(places[:0], 16).shape == (0, *grid.tile_size)


def test_the_engine_tiles_as_the_benchmark_measures_it(student):
    """Every tile with the statistics of one sample of the frame."""
    clip = torch.rand((1, 32, 96, 3), generator=torch.Generator().manual_seed(4))
    config = UpscaleConfig(cuts=0.0, color="none", attention_window=-1, tile=64)
    lr, grid = clip.permute(0, 3, 1, 2)[None] * 2 - 1, plan_tiles(32, 96, 64, 0, 16)
    with torch.no_grad(), noting(student) as noted:
        student(grid.sample(lr, 16))
    shared, alone = (tiling.run_tiles(student, lr, grid, each).clamp(0, 1) for each in (noted, None))
    (made,) = upscale([clip], student, config)
    assert (made - shared).abs().max() < 1e-4 < 1e-2 < (made - alone).abs().max()


def test_networks_without_norms_have_no_reference(monkeypatch, tiny_config, student):
    plain = Student(student.config.from_json(tiny_config.to_json().replace('"group"', '"none"'))).eval()
    calls = []
    forward = Student.forward

    def counted(network, lr, *arguments, **named):
        if lr.device.type != "meta":  # the planner counts without data
            calls.append(1)
        return forward(network, lr, *arguments, **named)

    monkeypatch.setattr(Student, "forward", counted)
    for network, num_streams in ((plain, 2), (student, 3)):
        calls.clear()
        config = UpscaleConfig(cuts=0.0, tile=64, temporal_strength=0.0)
        assert sum(map(len, upscale([torch.rand(1, 16, 96, 3)], network, config))) == 1
        assert len(calls) == num_streams
        assert engine.plan_run(16, 96, network, config).memory.num_streams == num_streams


def test_a_seam_is_scored_where_it_is():
    frames = torch.rand((1, 64, 64, 3), generator=torch.Generator().manual_seed(0)) * 0.2
    stepped = frames.clone()
    stepped[:, :, 32:] += 0.5
    assert tiling.seam_score(frames, [], [32]) == pytest.approx(1, abs=0.15)
    assert tiling.seam_score(stepped, [], [32]) > 5 and tiling.seam_score(stepped, [32], [16]) < 1.2


def test_a_shift_is_told_tile_by_tile():
    grid, error = plan_tiles(16, 48, 32, 0, 16), torch.zeros(2, 64, 192, 3)
    error[:, :, :64], error[:, :, 128:] = 1.0, -1.0  # in all there is none
    assert tiling.colour_shift(error, grid, 4) == pytest.approx(0.5)


def test_the_comparison_of_tiles_runs_to_its_table(capsys):
    assert tiling.main(["--tiny", "--frames", "1"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| from") or "alone" in line]
    errors = [float(row.split("|")[2]) for row in rows]
    assert len(rows) == 4 and all(error > 0 for error in errors)
    assert tiling.main(["--tiny", "--model", "nano"]) == 1 and "nothing to share" in capsys.readouterr().err
