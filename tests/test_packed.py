"""Packing the material and unpacking it elsewhere gives nearly the same material."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from adcvsr_core.errors import InputError
from tests.training_material import make_prepared_folder
from training.config import DataConfig
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


def test_faults_are_told(tmp_path: Path, capsys) -> None:
    with pytest.raises(InputError, match="prepare_bundled_data"):
        pack(tmp_path, tmp_path / "all.zip", film_megabytes=1, jpeg_quality=90)
    (tmp_path / "no.zip").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no packed material"):
        unpack(tmp_path / "no.zip", tmp_path)
    assert main(["--out", str(tmp_path / "c"), "--unpack", str(tmp_path / "no.zip")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
