"""One clip through a model and bicubic, in lock step: what every method shows of one frame after the other.

The model runs in the engine that users run, scene cuts and all, so any length fits: no more than a few frames of each
method are held, beside the engine's own context. Knows nothing about what is measured.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from adcvsr_core.config import UpscaleConfig
from adcvsr_core.engine import upscale
from adcvsr_core.errors import ConfigError, InputError
from adcvsr_core.student import Student
from adcvsr_core.video import read_video

from .measures import Moment, Setting, Shown
from .testsets import ClipPair, count_frames
from .validation import bicubic_frames

BICUBIC, MODEL, WITHOUT_TIME, TRUTH = "bicubic", "model", "model_without_time", "ground_truth"
FEEDINGS = ("downscale", "full")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What of the clips is measured, and how they are fed.

    Attributes:
        frames: only the first so many, 0 = all. The AdcVSR paper: 25.
        crop: edge of a centre crop of the result in pixels, a multiple of 4, 0 = whole frames. The paper: 512. It is
            cut before the network, which therefore sees what a clip of that size would show it.
        feeding: how a student, which always enlarges 4 times, gets sets whose LR frames are as large as the ground
            truth (RealVSR, MVSR4x). "downscale": at a quarter of their size, as the engine does for such a target;
            detail finer than that is thrown away first. "full": as they are, and the result is scaled down again;
            nothing is thrown away, for 16 times the work and on pictures softer than those trained on. The papers do
            not say what they do. For these sets "bicubic" is the LR clip itself.
        without_time: also run the model without its temporal blocks.
    """

    frames: int = 0
    crop: int = 0
    feeding: str = "downscale"
    without_time: bool = False

    def __post_init__(self) -> None:
        if self.feeding not in FEEDINGS:
            raise ConfigError(f"feeding is {self.feeding!r}; expected one of {', '.join(FEEDINGS)}")
        if self.crop < 0 or self.crop % 4:
            raise ConfigError(f"crop is {self.crop}; expected a multiple of 4, 0 = whole frames")
        if self.frames < 0:
            raise ConfigError(f"frames is {self.frames}; expected 0 (all) or more")


class ClipRun:
    """One clip, ready to be shown.

    Args:
        pair: the clip.
        student: in eval mode; None = bicubic alone.
        config: what of the clip.
        setting: handed on to the metrics.

    Raises:
        InputError: a crop larger than the frames, or LR and ground truth of different lengths.
    """

    def __init__(self, pair: ClipPair, student: Student | None, config: EvaluationConfig, setting: Setting):
        self.pair, self.student, self.config, self.setting = pair, student, config, setting
        self._crop = _crop(pair, config.crop)
        counts = count_frames(pair.lr), None if pair.hr is None else count_frames(pair.hr)
        self._known_length = None if counts[0] is None else self._limited(counts[0])
        if None not in counts and self._limited(counts[0]) != self._limited(counts[1]):
            self._refuse_lengths(*counts)  # before the network runs

    @property
    def middle(self) -> int:
        """A frame to look at: the middle one where the length is known without decoding, else the thirteenth."""
        return 12 if self._known_length is None else self._known_length // 2

    def shown(self) -> Iterator[dict[str, Shown]]:
        """Yield what each method shows of one frame after the other; ground truth counts as one where it is known.

        Raises:
            InputError: LR and ground truth turn out to differ in length.
        """
        models = self._models()
        past: dict[str, tuple[Tensor, ...]] = {}
        moment = None
        for index, (lr, hr) in enumerate(self._frames()):
            pictures = {BICUBIC: lr if self.pair.scale == 1 else bicubic_frames(lr[None])[0]}
            pictures |= {name: next(frames) for name, frames in models.items()}
            if hr is not None:
                pictures[TRUTH] = hr
            moment = Moment(
                index=index,
                lr=lr,
                reference=pictures.get(TRUTH, pictures[BICUBIC]),
                before=None if moment is None else moment.reference,
                has_truth=hr is not None,
                motion=self._motion(index),
                perceptual=self.pair.perceptual is None or index in self.pair.perceptual,
                setting=self.setting,
            )
            yield {name: Shown(sr, past.get(name, ()), moment) for name, sr in pictures.items()}
            past = {name: (sr, *past.get(name, ()))[:2] for name, sr in pictures.items()}

    def _models(self) -> dict[str, Iterator[Tensor]]:
        if self.student is None:
            return {}
        models = {MODEL: self._upscaled(1.0)}
        return models | {WITHOUT_TIME: self._upscaled(0.0)} if self.config.without_time else models

    def _upscaled(self, strength: float) -> Iterator[Tensor]:
        """Yield the student's frames on 8-bit levels, as files would hold them."""
        work_size = 0
        if self.pair.scale == 1 and self.config.feeding == "full":
            work_size = self.config.crop or self.pair.size[0]
        config = UpscaleConfig(scale=float(self.pair.scale), work_size=work_size, temporal_strength=strength)
        frames = (frame[None] for frame in self._read(self.pair.lr, 1))
        for finished in upscale(frames, self.student, config):
            yield from finished.mul(255).round() / 255

    def _frames(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield LR and HR frames [H,W,3] together."""
        lr_frames = self._read(self.pair.lr, 1)
        if self.pair.hr is None:
            yield from ((lr, None) for lr in lr_frames)
            return
        hr_frames = self._read(self.pair.hr, self.pair.scale)
        for index in itertools.count():
            lr, hr = next(lr_frames, None), next(hr_frames, None)
            if lr is None and hr is None:
                return
            if lr is None or hr is None:
                lengths = (index + sum(1 for _ in itertools.chain([] if last is None else [last], frames))
                           for last, frames in ((lr, lr_frames), (hr, hr_frames)))  # fmt: skip
                self._refuse_lengths(*lengths)
            yield lr, hr

    def _read(self, source: Path | Tensor, scale: int) -> Iterator[Tensor]:
        rows, columns = (slice(scale * part.start, scale * part.stop) for part in self._crop)
        frames = iter(source) if isinstance(source, Tensor) else _frames_of(source)
        for frame in itertools.islice(frames, self.config.frames or None):
            yield frame[rows, columns]

    def _motion(self, index: int) -> Tensor | None:
        if self.pair.flow is None or index == 0:
            return None
        rows, columns = (slice(self.pair.scale * part.start, self.pair.scale * part.stop) for part in self._crop)
        return self.pair.flow[index - 1, rows, columns]

    def _limited(self, length: int) -> int:
        return min(length, self.config.frames or length)

    def _refuse_lengths(self, lr: int, hr: int) -> None:
        raise InputError(
            f"{self.pair.group}/{self.pair.name}: the LR clip has {lr} frames and the ground truth has {hr}; "
            "--frames measures what both begin with"
        )


def _crop(pair: ClipPair, edge: int) -> tuple[slice, slice]:
    """Return rows and columns of the LR frames."""
    height, width = pair.size
    if not edge:
        return slice(0, height), slice(0, width)
    small = edge // pair.scale
    if small > min(height, width):
        raise InputError(
            f"{pair.group}/{pair.name}: a crop of {edge}x{edge} does not fit into results of "
            f"{pair.scale * width}x{pair.scale * height}; choose a smaller --crop"
        )
    top, left = (height - small) // 2, (width - small) // 2
    return slice(top, top + small), slice(left, left + small)


def _frames_of(path: Path) -> Iterator[Tensor]:
    with read_video(path) as reader:
        for chunk in reader:
            yield from chunk
