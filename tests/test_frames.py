"""The leaves that work on single frames: tiles, colour, detail, cuts, memory figures, comparisons."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from adcvsr_core.color import blur, match_color, resize, scale_detail
from adcvsr_core.compare import difference, sheet, side_by_side, wipe
from adcvsr_core.errors import InputError
from adcvsr_core.shots import find_cuts
from adcvsr_core.tiling import plan_tiles
from adcvsr_core.video import read_video

multiples = st.integers(1, 20).map(lambda n: 16 * n)


@given(height=multiples, width=multiples, tile=multiples, overlap=st.integers(0, 160))
def test_tiles_cover_the_picture_with_shares_that_add_up_to_one(height, width, tile, overlap):
    grid = plan_tiles(height, width, tile, min(overlap, tile // 2), 16)
    total = torch.zeros(height * 2, width * 2, dtype=torch.float64)
    for part in grid.tiles:
        share = grid.weight(part, 2)
        assert share.min() > 0
        total[2 * part.rows[0] : 2 * part.rows[1], 2 * part.columns[0] : 2 * part.columns[1]] += share
    assert (total - 1).abs().max() < 1e-9
    assert all(size % 16 == 0 for size in grid.tile_size)


@given(height=multiples, tile=multiples)
def test_neighbouring_tiles_share_at_least_the_overlap(height, tile):
    grid = plan_tiles(height, 16, tile, min(16, tile // 2), 16)
    for (_, stop), (start, _) in zip(grid.row_spans, grid.row_spans[1:]):
        assert stop - start >= min(16, tile // 2)


@pytest.mark.parametrize("method", ["adain", "wavelet"])
def test_colour_match_takes_the_colours_and_keeps_the_detail(method):
    sharp = resize(torch.rand(2, 3, 6, 8) * 1.6 - 0.8, 96, 128)
    lr = resize(sharp, 24, 32)
    tinted = sharp * 0.7 + torch.tensor([0.2, -0.1, 0.05])[:, None, None]
    matched = match_color(tinted, lr, method)
    assert (matched.mean(dim=(2, 3)) - lr.mean(dim=(2, 3))).abs().max() < 0.02
    assert (matched - sharp).abs().mean() < 0.5 * (tinted - sharp).abs().mean()
    assert match_color(tinted, lr, "none") is tinted


@pytest.mark.parametrize("size", [1, 16])
def test_flat_frames_stay_flat_and_finite(size):
    for sr_value, lr_value in ((0.0, 0.5), (1.0, -1.0), (-1.0, -1.0)):
        sr = torch.full((1, 3, 4 * size, 4 * size), sr_value) + 6e-8 * torch.randn(1, 3, 4 * size, 4 * size)
        lr = torch.full((1, 3, size, size), lr_value)
        for method in ("adain", "wavelet"):
            matched = match_color(sr, lr, method)
            assert matched.isfinite().all() and (matched - lr_value).abs().max() < 1e-3, method


def test_colour_match_equals_adcsrs_formula_on_normal_content():
    lr, sr = torch.rand(2, 3, 40, 40) - 0.5, torch.rand(2, 3, 160, 160) * 1.4 - 0.6
    plain = (sr - sr.mean((2, 3), keepdim=True)) / sr.std((2, 3), keepdim=True)
    plain = plain * lr.std((2, 3), keepdim=True) + lr.mean((2, 3), keepdim=True)
    assert (match_color(sr, lr, "adain") - plain).abs().max() < 1e-3


def test_detail_gain_scales_only_what_is_finer_than_the_lr():
    lr = torch.rand(1, 3, 32, 32) - 0.5
    base = resize(lr, 128, 128)
    fine, tint = 0.1 * torch.randn(1, 3, 128, 128), 0.2
    sr = base + fine + tint
    assert scale_detail(sr, lr, 1.0) is sr
    none, double = scale_detail(sr, lr, 0.0), scale_detail(sr, lr, 2.0)
    assert (none - base - tint).abs().mean() < 0.3 * fine.abs().mean()
    assert torch.allclose(double - sr, sr - none, atol=1e-5)
    assert abs(none.mean() - sr.mean()) < 1e-3


def test_blur_keeps_constants_and_works_on_one_pixel():
    assert torch.allclose(blur(torch.full((1, 3, 1, 1), 0.3), 5), torch.full((1, 3, 1, 1), 0.3))


def test_the_bundled_clips_cut_is_found_at_its_frame(sample):
    with read_video(sample, chunk=100) as reader:
        frames = torch.cat(list(reader))
    assert find_cuts(frames, None, 0.5) == [31]
    # However the clip is cut into chunks: each decision looks at two frames only.
    for chunk in (1, 7, 31):
        found, previous = [], None
        for start in range(0, len(frames), chunk):
            piece = frames[start : start + chunk]
            found += [start + index for index in find_cuts(piece, previous, 0.5)]
            previous = piece[-1]
        assert found == [31], chunk
    assert find_cuts(frames, None, 0.0) == []


def test_a_flash_and_a_pan_are_no_cuts(sample):
    with read_video(sample, chunk=40) as reader:
        frames = next(iter(reader))[:20]
    flash = frames.clone()
    flash[10] = (flash[10] * 1.5 + 0.1).clamp(0, 1)
    assert find_cuts(flash, None, 0.5) == []
    wide = frames[:1].repeat(12, 1, 1, 1)
    pan = torch.stack([frame.roll(6 * index, dims=1) for index, frame in enumerate(wide)])[:, :, 70:]
    assert find_cuts(pan, None, 0.5) == []


def test_comparisons_have_the_size_of_b():
    a, b = torch.rand(3, 10, 12, 3), torch.rand(3, 40, 48, 3)
    assert side_by_side(a, b).shape == (3, 40, 104, 3)
    assert wipe(a, b, 0.5).shape == difference(a, b).shape == b.shape
    assert torch.equal(wipe(a, b, 0.5)[:, :, 30:], b[:, :, 30:])
    assert difference(b, b).max() == 0
    with pytest.raises(InputError, match="A has 2 frames and B has 3"):
        wipe(a[:2], b, 0.5)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (40, 48), (720, 1280), (300, 90)])
def test_a_sheet_is_made_for_any_size(height, width):
    pairs = [(torch.rand(max(1, height // 4), max(1, width // 4), 3), torch.rand(height, width, 3)) for _ in range(2)]
    picture = sheet(pairs, ("before", "after"))
    assert picture.ndim == 3 and picture.shape[2] == 3 and picture.isfinite().all()
