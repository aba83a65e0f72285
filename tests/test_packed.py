"""Packing the material and unpacking it elsewhere gives nearly the same material."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageFont

from adcvsr_core.errors import InputError
from tests.training_material import make_prepared_folder
from training.config import DataConfig
from training.drawn_pages import draw_missing_pages
from training.packed import FEATURES, pack, unpack
from training.prepare_bundled_data import main
from training.sources import open_source


def test_unpacked_material_is_nearly_the_packed_one(tmp_path: Path, capsys) -> None:
    (tmp_path / "a").mkdir()
    data = make_prepared_folder(tmp_path / "a")
    pack(data, tmp_path / "all.zip", film_megabytes=0.5, jpeg_quality=95)
    assert main(["--out", str(tmp_path / "b"), "--unpack", str(tmp_path / "all.zip")]) == 0
    assert "3 shots, 4 photographs" in capsys.readouterr().out
    assert json.loads((tmp_path / "b" / "corpus.json").read_text()) == json.loads((data / "corpus.json").read_text())
    for name in ("film.npy", *(f"photographs/{each}.npy" for each in "abc")):
        before, after = (np.load(folder / name).astype(int) for folder in (data, tmp_path / "b"))
        assert before.shape == after.shape, name
        change = (before - after) @ np.array([0.2126, 0.7152, 0.0722])  # of luma: this material's colours are noise
        assert np.abs(change).mean() < 3 and abs(change.mean()) < 0.5, name
    weights, halved = (torch.load(folder / FEATURES, weights_only=True) for folder in (data, tmp_path / "b"))
    assert all(torch.equal(value.half().float(), halved[key]) for key, value in weights.items())
    for split in ("train", "heldout"):
        clip = open_source(tmp_path / "b", DataConfig(), split).draw_clip(np.random.default_rng(0), 5, 64)
        assert clip.frames.shape == (5, 64, 64, 3)


def test_drawn_pages_are_drawn_again_from_their_fonts(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    data = make_prepared_folder(tmp_path / "a")
    (data / "fonts").mkdir()
    (data / "fonts" / "face.ttf").write_bytes(ImageFont.load_default(20).path.getvalue())  # Pillow's own
    described = json.loads((data / "corpus.json").read_text())
    drawn = ["page-003", "lines-01"]
    described |= {"photographs": [*described["photographs"], *drawn], "pages": ["p", *drawn]}
    (data / "corpus.json").write_text(json.dumps(described))
    draw_missing_pages(data, drawn, ["a", "b", "p"])
    pack(data, tmp_path / "all.zip", film_megabytes=0.5, jpeg_quality=95)
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        assert not [name for name in archive.namelist() if "page-" in name or "lines-" in name]
    unpack(tmp_path / "all.zip", tmp_path / "b")
    for name in drawn:
        before, after = (
            np.load(folder / "photographs" / f"{name}.npy").astype(int) for folder in (data, tmp_path / "b")
        )
        assert np.abs(before - after).mean() < 3, name  # the photograph behind them was packed, no more


def test_faults_are_told(tmp_path: Path, capsys) -> None:
    with pytest.raises(InputError, match="prepare_bundled_data"):
        pack(tmp_path, tmp_path / "all.zip", film_megabytes=1, jpeg_quality=90)
    (tmp_path / "data").mkdir()
    data = make_prepared_folder(tmp_path / "data")
    described = json.loads((data / "corpus.json").read_text())
    (data / "corpus.json").write_text(json.dumps(described | {"photographs": [*described["photographs"], "page-000"]}))
    with pytest.raises(InputError, match="fonts is missing; make it with .*prepare_bundled_data"):
        pack(data, tmp_path / "all.zip", film_megabytes=1, jpeg_quality=90)
    (tmp_path / "no.zip").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no packed material"):
        unpack(tmp_path / "no.zip", tmp_path)
    assert main(["--out", str(tmp_path / "c"), "--unpack", str(tmp_path / "no.zip")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
