"""Pages of text to train on."""

from pathlib import Path

import numpy as np
from PIL import ImageFont

from training.pages import SIZE, draw_page


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
