"""The user's own files as training material: any videos and pictures, where they lie and as they are.

Every video is decoded once to find its cuts; broken files are named and left out; some shots are held out. With targets
the files are low resolution, and another program's super-resolved files give the high resolution. Nothing is written
beside the user's files. Knows nothing about what is drawn from them.
"""

import os
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adcvsr_core.errors import InputError
from adcvsr_core.images import IMAGE_SUFFIXES, is_image, read_image

from .clips import BrokenFile, Report, Shot, Source, fingerprint, name_some, split
from .config import DataConfig
from .seeking import VideoFile, VideoIndex, cached_index

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"),
    *(".wmv", ".flv", ".3gp", ".ogv", ".vob", ".mxf", ".y4m"),
)
_SCALE = 4
_ORIENTATION = 0x0112  # EXIF; from 5 on rows and columns are swapped


def open_footage(
    path: Path, data: DataConfig, split_name: str, targets: Path | None, index: Path | None, report: Report
) -> Source:
    """Open files; see `training.sources.open_source` for arguments and errors."""
    files = list_files(path, report)
    if not files:
        raise InputError(
            f"{path} holds no videos and no pictures ({', '.join(VIDEO_SUFFIXES)}, {', '.join(IMAGE_SUFFIXES)})"
        )
    reader = _Files(index, report)
    if targets is not None:
        shots, stills = reader.pairs(files, targets), []
    else:
        shots, stills = reader.shots(files), reader.stills(files)
    if not shots and not stills:
        raise InputError(f"none of the {len(files)} files of {path} can be used; each was named above with the reason")
    # A shot is told by its video's content, so that a renamed or copied file stays on its side.
    chosen_shots = _choose(shots, [f"{shot.name.rpartition('#')[2]} {shot.start}" for shot in shots], data, split_name)
    chosen_stills = _choose(stills, [still.label for still in stills], data, split_name)
    if not chosen_shots and not chosen_stills:
        reason = "data.held_out is 0" if data.held_out == 0 else "it is a single shot or picture, which is trained on"
        raise InputError(f"nothing of {path} is held out: {reason}")
    return Source(str(path), chosen_shots, chosen_stills, data, report)


def _choose(material: list, tokens: list[str], data: DataConfig, split_name: str) -> list:
    held_out = split(tokens, data.held_out)
    return [
        each for each, is_held_out in zip(material, held_out, strict=True) if is_held_out == (split_name == "heldout")
    ]


def list_files(path: Path, report: Report) -> list[tuple[str, Path]]:
    """Return (name, file) of every video and picture, sorted by name.

    Args:
        path: a folder (subfolders are searched, links followed), a video or picture, or a .txt file with a path of any
            of these a line, relative to it; empty lines and such that begin with # are skipped.
        report: gets a line for files that are neither, and for paths that are not there.

    Raises:
        InputError: there is nothing at `path`.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; expected a folder of videos and pictures, or a list of them")
    if path.is_dir():
        found, others = [], []
        for file in _walk(path):
            kind = found if file.suffix.lower() in VIDEO_SUFFIXES or is_image(file) else others
            kind.append((file.relative_to(path).as_posix(), file))
        if others:
            report(f"{path}: left out, neither videos nor pictures: {name_some([name for name, _ in others])}")
        return sorted(found)
    if path.suffix.lower() != ".txt":
        return [(path.name, path)]
    found = []
    for line in path.read_text("utf-8-sig").splitlines():
        entry = line.strip()
        if entry and not entry.startswith("#"):
            file = path.parent / Path(entry).expanduser()
            if not file.exists():
                report(f"{file}, listed in {path}, does not exist; left out")
            elif file.is_dir():
                found += [(f"{entry.rstrip('/')}/{name}", each) for name, each in list_files(file, report)]
            else:
                found.append((entry, file))
    return sorted(set(found))


def _walk(folder: Path) -> list[Path]:
    """Return the files below a folder, without hidden ones; a folder that links lead to twice is walked once."""
    files, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(root) / name for name in names if not name.startswith(".")]
    return files


class _Files:
    """Opens files and names those that cannot be used."""

    def __init__(self, index: Path | None, report: Report):
        self._index, self._report = index, report

    def shots(self, files: Sequence[tuple[str, Path]]) -> list[Shot]:
        """Return the shots of all videos."""
        shots = []
        for name, path in files:
            found = None if is_image(path) else self._index_of(path)
            if found is not None:
                video = VideoFile(path, found)
                shots += [
                    _shot(path, f"{name} #{found.fingerprint}", found, span, frames=video) for span in found.shots
                ]
        return shots

    def stills(self, files: Sequence[tuple[str, Path]]) -> list["Picture"]:
        """Return all pictures."""
        opened = [self._picture(name, path) for name, path in files if is_image(path)]
        return [picture for picture in opened if picture is not None]

    def pairs(self, files: Sequence[tuple[str, Path]], targets: Path) -> list[Shot]:
        """Return the shots of all files that have a target; pictures are shots of one frame.

        Raises:
            InputError: a target of another size or length.
        """
        shots = []
        partners = _Partners(list_files(targets, self._report), targets)
        for name, path in files:
            partner = partners.find(name)
            if partner is None:
                self._report(f"{path} has no file of its name in {targets}; left out")
            elif is_image(path) != is_image(partner):
                raise InputError(f"{path} and its target {partner} must both be videos or both be pictures")
            else:
                shots += (self._paired_pictures if is_image(path) else self._paired_videos)(name, path, partner)
        return shots

    def _paired_videos(self, name: str, path: Path, target: Path) -> list[Shot]:
        lr, hr = self._index_of(path), self._index_of(target)
        if lr is None or hr is None:
            return []
        _check_size(path, lr, target, hr)
        if lr.num_frames != hr.num_frames:
            raise InputError(
                f"{target} has {hr.num_frames} frames, {path} has {lr.num_frames}; a target must show the same frames"
            )
        frames, lr_frames = VideoFile(target, hr), VideoFile(path, lr)
        name = f"{name} #{lr.fingerprint} to #{hr.fingerprint}"
        return [_shot(target, name, hr, span, frames=frames, lr=lr_frames) for span in _overlaps(lr.shots, hr.shots)]

    def _paired_pictures(self, name: str, path: Path, target: Path) -> list[Shot]:
        lr, hr = self._picture(name, path), self._picture(name, target)
        if lr is None or hr is None:
            return []
        _check_size(path, lr, target, hr)
        name = f"{lr.name()} to #{fingerprint(target)}"
        return [_shot(target, name, hr, (0, 1), frames=hr, lr=lr)]

    def _index_of(self, path: Path) -> VideoIndex | None:
        try:
            index, is_new = cached_index(path, self._index)
        except (InputError, OSError, av.error.FFmpegError) as error:
            self._report(f"{error}; {path.name} is left out")
            return None
        for note in index.notes:
            self._report(note)
        if is_new:
            self._report(f"{path}: frames {index.num_frames}, shots {len(index.shots)}")
        return index

    def _picture(self, name: str, path: Path) -> "Picture | None":
        try:
            return Picture(name, path)
        except (InputError, OSError) as error:
            self._report(f"{error}; {path.name} is left out")
            return None


class _Partners:
    """Files by their name without suffix; where folders hold several of one name, by their whole path."""

    def __init__(self, files: Sequence[tuple[str, Path]], folder: Path):
        self._folder = folder
        self._by_stem: dict[str, list[tuple[str, Path]]] = {}
        for name, path in files:
            self._by_stem.setdefault(Path(name).stem, []).append((name, path))

    def find(self, name: str) -> Path | None:
        found = self._by_stem.get(Path(name).stem, [])
        if len(found) > 1:
            whole = Path(name).with_suffix("")
            found = [(other, path) for other, path in found if Path(other).with_suffix("") == whole] or found
        if len(found) > 1:
            names = ", ".join(other for other, _ in found)
            raise InputError(f"{self._folder} holds several targets for {name}: {names}; keep one")
        return found[0][1] if found else None


class Picture:
    """A picture file as a photograph, or as a video of one frame. Decoded when it is drawn.

    Args:
        label: what it is called.
        path: its file.

    Raises:
        InputError: its header cannot be read.
    """

    def __init__(self, label: str, path: Path):
        self.label, self.file, self._path = label, str(path), path
        self.height, self.width = _layout(path)

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self._path)

    def name(self) -> str:
        return f"{self.label} #{self._fingerprint}"

    def load(self) -> np.ndarray:
        try:
            pixels = _decode(self._path, self._fingerprint)
        except (InputError, OSError) as error:
            raise BrokenFile(str(error)) from error
        if pixels.shape[:2] != (self.height, self.width):
            raise BrokenFile(f"{self._path} is not {self.width}x{self.height}, as its header said; save it anew")
        return pixels

    def read(self, frames: range, top: int, left: int, size: int) -> Tensor:
        crop = self.load()[top : top + size, left : left + size]
        return torch.from_numpy(crop.copy()).float()[None] / 255


def _layout(path: Path) -> tuple[int, int]:
    """Return (height, width) of an upright picture from its header."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            # Pillow would decode a whole PNG to look for an orientation behind its pixels.
            has_header = picture.format != "PNG" or "exif" in picture.info
            is_turned = has_header and picture.getexif().get(_ORIENTATION, 1) >= 5
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read {path}: {error}; expected {', '.join(IMAGE_SUFFIXES)}") from error
    return (width, height) if is_turned else (height, width)


@lru_cache(maxsize=3)
def _decode(path: Path, content: str) -> np.ndarray:
    """Return a picture [H,W,3] uint8; `content` keeps a changed file from being taken for the one in memory."""
    return read_image(path).mul_(255).round_().to(torch.uint8).numpy()


def _shot(file: Path, name: str, layout: VideoIndex | Picture, span: tuple[int, int], **stores: object) -> Shot:
    start, stop = span
    return Shot(file=str(file), name=name, start=start, stop=stop, height=layout.height, width=layout.width, **stores)


def _check_size(path: Path, lr: VideoIndex | Picture, target: Path, hr: VideoIndex | Picture) -> None:
    if (hr.height, hr.width) != (_SCALE * lr.height, _SCALE * lr.width):
        raise InputError(
            f"{target} is {hr.width}x{hr.height}, {path} is {lr.width}x{lr.height}; a target must be {_SCALE} times as "
            f"large, {_SCALE * lr.width}x{_SCALE * lr.height}"
        )


def _overlaps(a: Sequence[tuple[int, int]], b: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return where shots of both overlap."""
    pairs = [(max(x[0], y[0]), min(x[1], y[1])) for x in a for y in b]
    return [(start, stop) for start, stop in pairs if start < stop]
