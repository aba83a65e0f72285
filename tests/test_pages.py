"""Pages of text to train on: what they look like, and how they are drawn from."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFont

from adcvsr_core.errors import InputError
from tests.training_material import smooth_noise
from training.clips import Clip
from training.config import DataConfig
from training.motion import draw_motion
from training.pages import SIZE, draw_line_page, draw_page
from training.sources import Corpus


def test_pages_are_full_of_contrast_and_follow_from_their_seed(tmp_path: Path) -> None:
    font = tmp_path / "face.ttf"
    font.write_bytes(ImageFont.load_default(20).path.getvalue())  # the face that Pillow brings
    photo = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    pages = [draw_page(seed, [font], [photo]) for seed in (0, 1, 0)]
    assert np.array_equal(pages[0], pages[2]) and not np.array_equal(pages[0], pages[1])
    for page in pages[:2]:
        assert page.shape == (*SIZE, 3) and page.dtype == np.uint8
        bands = page.astype(float).reshape(6, SIZE[0] // 6, SIZE[1], 3)
        edges = np.abs(np.diff(bands, axis=2)).mean((1, 2, 3))
        assert edges.min() > 2, edges  # letters from the top to the bottom


def test_pages_of_lines_hold_lines_that_a_quarter_of_the_size_can_tell_apart() -> None:
    pages = [draw_line_page(seed, []).astype(float) for seed in (0, 1, 0)]
    assert np.array_equal(pages[0], pages[2]) and not np.array_equal(pages[0], pages[1])
    for page in pages[:2]:
        assert page.shape == (*SIZE, 3)
        small = page.reshape(SIZE[0] // 4, 4, SIZE[1] // 4, 4, 3).mean((1, 3))
        for axis in (0, 1):
            kept = np.abs(np.diff(small, axis=axis)).mean() / (4 * np.abs(np.diff(page, axis=axis)).mean())
            assert 0.3 < kept < 0.9, kept  # flat ground would keep all, stripes below a pixel nothing


def drawn_from(folder: Path, num_frames: int, **data: float) -> list[Clip]:
    source = Corpus(folder, data=DataConfig(video_share=0.0, **data))
    rng = np.random.default_rng(0)
    return [source.draw_clip(rng, num_frames, 64) for _ in range(200)]


@pytest.mark.parametrize("num_frames", [1, 3])
def test_pages_are_drawn_as_often_as_said_and_never_mirrored(folder: Path, num_frames: int) -> None:
    clips = drawn_from(folder, num_frames, page_share=0.6)
    pages = [clip for clip in clips if clip.name.startswith("p #")]
    assert 0.5 < len(pages) / len(clips) < 0.7
    turned = [clip for clip in clips if "mirrored" in clip.name or "transposed" in clip.name]
    assert turned and not any(clip.name.startswith("p #") for clip in turned)


def test_pages_are_hardly_reduced(folder: Path) -> None:
    """Else small letters would be past reading."""
    photo = smooth_noise(400, 400, 0)
    rng = np.random.default_rng(0)
    scales = [draw_motion(rng, 3, (64, 64), photo.shape[:2], 1.15).scale for _ in range(50)]
    assert np.min(scales) > 0.98 and np.max(scales) < 1.15 * 1.016


def test_pages_are_photographs_unless_their_share_is_said(folder: Path) -> None:
    names = {clip.name.split()[0] for clip in drawn_from(folder, 1)}
    assert names == {"a", "b", "p"}
    assert any("mirrored" in clip.name for clip in drawn_from(folder, 1) if clip.name.startswith("p #"))


def test_what_is_held_out_is_drawn_without_pages(folder: Path) -> None:
    """Else a run would measure itself on what it trains on, for want of held-out pages."""
    source = Corpus(folder, "heldout", DataConfig(video_share=0.0, page_share=0.5))
    assert {source.draw_clip(np.random.default_rng(seed), 1, 64).name.split()[0] for seed in range(9)} == {"c"}


def test_material_without_pages_says_so(folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(folder, tmp_path / "data")
    described = json.loads((folder / "corpus.json").read_text())
    (folder / "corpus.json").write_text(json.dumps(described | {"pages": []}))
    with pytest.raises(InputError, match="no pages of text .* set it to 0"):
        Corpus(folder, data=DataConfig(page_share=0.5))
