"""Where training material comes from: `open_source` recognises what a path holds.

A folder that `training.prepare_bundled_data` wrote (`Corpus`), or the user's own files (`training.footage`). Knows
nothing about what is drawn from it.
"""

import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adcvsr_core.errors import ConfigError, InputError

from .clips import BrokenFile, Clip, Report, Shot, Source, fingerprint, to_stderr
from .config import DataConfig
from .footage import open_footage

__all__ = ["HELD_OUT_FILE", "SPLITS", "BrokenFile", "Clip", "Corpus", "Shot", "Source", "open_source"]

HELD_OUT_FILE = Path(__file__).with_name("heldout.json")
"""What of the bundled model's material is never trained on, and what is evaluated."""
SPLITS = ("train", "heldout")


def open_source(
    folder: Path | str,
    data: DataConfig,
    split: str = "train",
    targets: Path | None = None,
    *,
    index: Path | None = None,
    report: Report = to_stderr,
) -> Source:
    """Open training material.

    Args:
        folder: what `prepare_bundled_data` wrote, or any folder of videos and pictures (with its subfolders), or one
            video, or a .txt file with one path a line.
        data: how clips are drawn, and the share that is held out.
        split: "train" or "heldout".
        targets: then `folder` is low resolution, and this folder holds super-resolved files of the same names (any
            suffix), four times as large, with as many frames.
        index: folder that keeps where the cuts of each video are, so that the next start need not decode them all;
            None = they are found again by every process.
        report: gets a line for every file that is left out, and for every video that was searched for cuts.

    Raises:
        ConfigError: another split.
        InputError: nothing usable there, nothing held out, or targets that do not fit.
    """
    if split not in SPLITS:
        raise ConfigError(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
    folder = Path(folder)
    if not (folder / "corpus.json").exists():
        return open_footage(folder, data, split, targets, index, report)
    if targets is not None:
        raise InputError(f"{folder} is prepared high-resolution material; targets go with low-resolution footage")
    return Corpus(folder, split, data, report)


class Corpus(Source):
    """The prepared folder: the film as a memory map, the photographs, and which of them are held out.

    Args:
        folder: what `training.prepare_bundled_data` wrote.
        split: "train" or "heldout"; the folder says which is which, `data.held_out` does not count.
        data, report: see `Source`; what is held out has no pages, whatever `data.page_share`.

    Attributes:
        film: [N,H,W,3] uint8, None = there is none.
        photographs: [H,W,3] uint8 of this split, by name.

    Raises:
        InputError: the folder lacks what is needed.
    """

    def __init__(
        self, folder: Path | str, split: str = "train", data: DataConfig | None = None, report: Report = to_stderr
    ):
        folder = Path(folder)
        described_file = folder / "corpus.json"
        if not described_file.exists():
            raise InputError(f"{folder} holds no corpus.json; make it with `python -m training.prepare_bundled_data`")
        described = json.loads(described_file.read_text())
        held_out, is_held_out = described["heldout"], split == "heldout"
        film = _Mapped(folder / "film.npy", "film") if described["shots"] else None
        shots = [
            Shot(
                file=film.file,
                name=film.name(),
                start=start,
                stop=stop,
                height=film.array.shape[1],
                width=film.array.shape[2],
                frames=film,
            )
            for start, stop in described["shots"]
            if _overlaps(start, stop, held_out["film"]) == is_held_out
        ]
        names = [name for name in described["photographs"] if (name in held_out["photographs"]) == is_held_out]
        stills = {name: _Mapped(folder / "photographs" / f"{name}.npy", name) for name in names}
        if not shots and not stills:
            raise InputError(f"{folder} holds no {split} material")
        data = data or DataConfig()
        if is_held_out:
            data = replace(data, page_share=0.0)  # no page is held out
        apart = set(described.get("pages", ())) if data.page_share else set()  # else they are photographs
        photographs, pages = ([stills[name] for name in names if (name in apart) == of] for of in (False, True))
        super().__init__(str(folder), shots, photographs, data, report, pages)
        self._film, self._photographs = film, stills

    @property
    def film(self) -> np.ndarray | None:
        return None if self._film is None else self._film.array

    @property
    def photographs(self) -> dict[str, np.ndarray]:
        return {name: still.load() for name, still in self._photographs.items()}


class _Mapped:
    """An array in a file: a photograph [H,W,3] or a film [N,H,W,3], uint8. Sent to another process, it opens there."""

    def __init__(self, path: Path, name: str):
        self.file, self._path = str(path), path
        try:
            self._name = f"{name} #{fingerprint(path)}"
            self.height, self.width = self.array.shape[-3:-1]
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {path} ({error}); run `python -m training.prepare_bundled_data`") from error

    @cached_property
    def array(self) -> np.ndarray:
        return np.load(self._path, mmap_mode="r")

    def name(self) -> str:
        return self._name

    def load(self) -> np.ndarray:
        return self.array

    def read(self, frames: range, top: int, left: int, size: int) -> Tensor:
        crops = self.array[frames.start : frames.stop : frames.step, top : top + size, left : left + size]
        return torch.from_numpy(np.ascontiguousarray(crops)).float() / 255

    def __getstate__(self) -> dict:
        return {key: value for key, value in vars(self).items() if key != "array"}


def _overlaps(start: int, stop: int, ranges: list[list[int]]) -> bool:
    return any(start < high and low < stop for low, high in ranges)
