"""Test sets as they are published: which files belong together, at which scale, under which name.

Understood are, each at once or as subfolders of what is given:

    NAME/{LQ,GT}/CLIP/*.png, NAME/{LQ-Video,GT-Video}/CLIP.mkv   DOVE's test sets (UDM10, SPMCS, YouHQ40, RealVSR, ...)
    NAME/{BIx4,BDx4,GT}/CLIP/*.png                                mmagic's
    NAME/{test_LR,test_HR}/PICTURE.png                            DRealSR's and RealSR's crops, one frame each
    NAME/PICTURE_{LR4,HR}.png                                     RealSR's pairs in one folder
    NAME/CLIP/*.png, NAME/CLIP.mp4, NAME/PICTURE.png              LR alone (VideoLQ)
    corpus.json                                                   what `prepare_bundled_data` wrote: `held_out_pairs`

A folder of pictures below LQ or GT is a clip; pictures right in it are single frames. Reads file names and the first
frames' sizes; knows nothing about models or metrics.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adcvsr_core.degradation import degrade
from adcvsr_core.errors import InputError
from adcvsr_core.images import is_image, list_images
from adcvsr_core.video import read_video

from .motion import Scene, draw_motion
from .sources import HELD_OUT_FILE, Corpus

LR_NAMES = ("lq", "lr", "bix4", "bdx4", "test_lr")
HR_NAMES = ("gt", "hr", "test_hr")
VIDEO_SUFFIXES = (".mkv", ".mp4", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".y4m")
HELD_OUT_KINDS = ("clean", "h264_crf30", "noise10")
# Of every held-out clip these frames are compared by slow perceptual networks.
_HELD_OUT_PERCEPTUAL = frozenset((1, 6, 10))
_PAIR_SUFFIX = re.compile(r"(?:[_-](?:hr|gt|lr|lq|(?:lr)?x?[1234])|x[1234])$", re.IGNORECASE)
_IN_ONE_FOLDER = re.compile(r"(.+)_(hr|gt|lr4?|lq)$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipPair:
    """A clip to restore, and what it should become.

    Attributes:
        group: the test set.
        name: of the clip in it.
        lr: frames to restore: a file or folder that `read_video` takes, or [T,h,w,3] in 0..1.
        hr: as they should be, 4 times as large or as large as `lr`; None = not known.
        flow: exact motion [T-1,H,W,2] of hr in pixels, None = not known.
        perceptual: indices of the frames that slow perceptual networks look at, None = all.
        size: (height, width) of the LR frames, looked up when made.
        scale: 4, or 1 for sets whose LR frames are as large as the ground truth; 4 where there is none.
    """

    group: str
    name: str
    lr: Path | Tensor
    hr: Path | Tensor | None = None
    flow: Tensor | None = None
    perceptual: frozenset[int] | None = None
    size: tuple[int, int] = field(init=False)
    scale: int = field(init=False)

    def __post_init__(self) -> None:
        size = _size(self.lr)
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "scale", 4 if self.hr is None else _scale(f"{self.group}/{self.name}", size, self.hr))


def open_testsets(folder: Path) -> list[ClipPair]:
    """Find every clip of a test set, or of all test sets in a folder, in order of their names.

    Raises:
        InputError: nothing known there, clips without a partner, or sizes that do not fit.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; expected a test set, see training/testsets.py for the layouts")
    if (folder / "corpus.json").exists():
        return held_out_pairs(folder)
    if _folders(folder, LR_NAMES):
        return _read_set(folder)
    sets = [each for each in _subfolders(folder) if _folders(each, LR_NAMES)]
    if not sets:
        return _read_alone(folder)
    pairs = []
    for each in _subfolders(folder):
        pairs += _read_set(each) if each in sets else _read_alone(each)
    return pairs


def held_out_pairs(data: Path) -> list[ClipPair]:
    """Return the fixed clips of the bundled model's material, in three conditions.

    Twelve clips of 12 frames, 256x256: six shots of the film and six photographs in motion, none ever trained on.
    They are listed in heldout.json and do not change.
    """
    clips = _held_out_clips(data)
    return [
        ClipPair(group=kind, name=name, lr=degrade(hr, kind, index), hr=hr, flow=flow, perceptual=_HELD_OUT_PERCEPTUAL)
        for kind in HELD_OUT_KINDS
        for index, (name, hr, flow) in enumerate(clips)
    ]


def count_frames(source: Path | Tensor) -> int | None:
    """Return the number of frames, None for video files, which must be decoded to know."""
    if isinstance(source, Tensor):
        return len(source)
    if source.is_dir():
        return len(list_images(source))
    return 1 if is_image(source) else None


def _held_out_clips(data: Path) -> list[tuple[str, Tensor, Tensor | None]]:
    listed = json.loads(HELD_OUT_FILE.read_text())
    chosen = listed["evaluation"]
    corpus = Corpus(data, "heldout")
    num_frames, size, (y, x) = chosen["num_frames"], chosen["size"], chosen["film_corner"]
    clips = []
    for name, start in chosen["film"].items():
        frames = corpus.film[start : start + num_frames, y : y + size, x : x + size]
        clips.append((f"film {name}", torch.from_numpy(np.ascontiguousarray(frames)).float() / 255, None))
    for index, name in enumerate(listed["photographs"]):
        photo = corpus.photographs[name]
        # Of six paths the one with most detail: the others show sky or blur, where every method is alike.
        rng = np.random.default_rng((chosen["photograph_seed"], index, chosen["photograph_paths"][name]))
        frames, flow, _ = Scene(photo, draw_motion(rng, num_frames, (size, size), photo.shape[:2])).render()
        clips.append((f"photograph {name}", frames.mul(255).round() / 255, flow))
    return clips


def _read_set(folder: Path) -> list[ClipPair]:
    """Read a set with LR folders and perhaps one GT folder."""
    truths = _folders(folder, HR_NAMES)
    if len(truths) > 1:
        raise InputError(f"{folder} holds {' and '.join(each.name for each in truths)}; expected one ground truth")
    inputs = _folders(folder, LR_NAMES)
    pairs = []
    for lr_folder in inputs:
        group = folder.name if len(inputs) == 1 else f"{folder.name} {lr_folder.name}"
        lr = _entries(lr_folder)
        if not truths:
            pairs += [ClipPair(group=group, name=name, lr=path) for name, path in lr.items()]
            continue
        lr, hr = _matched(lr_folder, lr, truths[0], _entries(truths[0]))
        pairs += [ClipPair(group=group, name=name, lr=path, hr=hr[name]) for name, path in lr.items()]
    return pairs


def _read_alone(folder: Path) -> list[ClipPair]:
    """Read a folder that holds clips itself: pairs told apart by their names' ends, or LR alone."""
    found = _entries(folder)
    ends = {name: match for name in found if (match := _IN_ONE_FOLDER.match(name))}
    if not ends:
        return [ClipPair(group=folder.name, name=name, lr=path) for name, path in found.items()]
    lr = {match[1]: found[name] for name, match in ends.items() if match[2].lower().startswith("l")}
    hr = {match[1]: found[name] for name, match in ends.items() if not match[2].lower().startswith("l")}
    if len(lr) + len(hr) < len(found):
        raise InputError(f"{folder}: some names end like {next(iter(ends))} and others do not, or two mean the same")
    lr, hr = _matched(folder, lr, folder, hr)
    return [ClipPair(group=folder.name, name=name, lr=path, hr=hr[name]) for name, path in lr.items()]


def _matched(
    lr_folder: Path, lr: dict[str, Path], hr_folder: Path, hr: dict[str, Path]
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return both under the same names, if need be without endings such as _LR4."""
    if set(lr) != set(hr):
        lr, hr = _without_endings(lr), _without_endings(hr)
    alone = sorted(set(lr) - set(hr)), sorted(set(hr) - set(lr))
    if any(alone):
        found = [
            f"{len(names)} in {where} have no partner ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for names, where in zip(alone, (lr_folder, hr_folder), strict=True)
            if names
        ]
        raise InputError(f"clips are matched by name, but {'; '.join(found)}")
    return lr, hr


def _without_endings(entries: dict[str, Path]) -> dict[str, Path]:
    short = {_PAIR_SUFFIX.sub("", name): path for name, path in entries.items()}
    return short if len(short) == len(entries) else entries


def _entries(folder: Path) -> dict[str, Path]:
    """Return the clips of a folder by name: subfolders of pictures, videos, pictures."""
    entries: dict[str, Path] = {}
    for each in sorted(folder.iterdir()):
        if each.name.startswith("."):
            continue
        if each.is_dir() and any(is_image(file) for file in each.iterdir()):
            name = each.name
        elif each.is_file() and (is_image(each) or each.suffix.lower() in VIDEO_SUFFIXES):
            name = each.stem
        else:
            continue
        if name in entries:
            raise InputError(f"{folder} holds {entries[name].name} and {each.name}: one name for two clips")
        entries[name] = each
    if not entries:
        raise InputError(
            f"{folder} holds no clips: no videos, no pictures, no folders of pictures; see training/testsets.py"
        )
    return entries


def _folders(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Return the subfolders of these names; of LQ and LQ-Video, which hold the same, the one with pictures."""
    found = {each.name.lower(): each for each in _subfolders(folder)}
    chosen = [found.get(name) or found.get(f"{name}-video") for name in names]
    return [each for each in chosen if each is not None]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))


def _scale(name: str, size: tuple[int, int], hr: Path | Tensor) -> int:
    wanted = _size(hr)
    for scale in (4, 1):
        if wanted == (scale * size[0], scale * size[1]):
            return scale
    raise InputError(
        f"{name}: the LR frames are {size[1]}x{size[0]} and the ground truth is {wanted[1]}x{wanted[0]}; expected 4 "
        "times as large, or as large"
    )


def _size(source: Path | Tensor) -> tuple[int, int]:
    if isinstance(source, Tensor):
        return tuple(source.shape[1:3])
    with read_video(source) as reader:
        return reader.info.height, reader.info.width
