"""A look at the student while it trains: held-out clips as strips and a short film, and a few numbers.

Small and quick on purpose; `training.evaluate` measures in earnest. Knows nothing about optimizers.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from adcvsr_core.degradation import degrade, to_levels
from adcvsr_core.errors import InputError
from adcvsr_core.metrics import psnr
from adcvsr_core.student import Student
from adcvsr_core.video import VideoWriter

from .average import Average
from .clips import Clip, Source, detail
from .config import TrainConfig
from .sampling import clean_of, to_frames, to_network
from .sources import open_source
from .teachers import Teacher

_NUM_CLIPS, _NUM_FRAMES, _LR_SIZE, _SEED = 4, 5, 48, 7
_DRAWS = 4  # of which one is shown
_FPS = 8


class Validator:
    """Writes `folder`/step-N.png and .mp4 and appends to `folder`/metrics.jsonl.

    Rows are clips, clean and degraded as the last stage's largest share; columns are LR, bicubic, the student, its
    average, the teacher where there is one, HR, and an x-t slice (one row of pixels over time) of average and HR.

    Args:
        config: the run's.
        data: its material; clips come from what is held out, or, where nothing is, from what is trained on.
        folder: where to write.
        teacher: shown beside the student, None = there is none.
        index: where the cuts of the user's videos are kept.
    """

    def __init__(self, config: TrainConfig, data: Path, folder: Path, teacher: Teacher | None, index: Path):
        self.config, self.folder, self.teacher = config, folder, teacher
        self.strength = config.stages[-1].temporal_strength
        heaviest = max(config.stages[-1].mixture, key=lambda item: item[1] if item[0] != "clean" else 0)[0]
        self.kinds = ("clean", heaviest) if heaviest != "clean" else ("clean",)
        self.cases = [
            Case(f"validation {number} {kind} {clip.name}", kind, _lr_of(clip, kind, number), clip.frames)
            for number, clip in enumerate(_draw_clips(config, data, index))
            for kind in self.kinds
        ]

    @torch.no_grad()
    def show(self, student: Student, average: Average, trained: nn.Module, step: int) -> None:
        """Look at the student as it is and with the averaged weights."""
        self.folder.mkdir(parents=True, exist_ok=True)
        student.eval()
        rows, gains, films = [], {kind: [] for kind in self.kinds}, []
        for case in self.cases:
            columns = self._columns(student, average, trained, case)
            gain = psnr(columns["average"], columns["hr"]) - psnr(columns["bicubic"], columns["hr"])
            gains[case.kind].append(gain.mean().item())
            rows.append(_row(columns))
            films.append(torch.cat([columns["lr"], columns["average"], columns["hr"]], dim=2))
        Image.fromarray(np.concatenate(rows)).save(self.folder / f"step-{step:08d}.png")
        _save_film(torch.cat(films), self.folder / f"step-{step:08d}.mp4")
        line = {"step": step} | {f"gain_{kind}_db": round(float(np.mean(v)), 4) for kind, v in gains.items()}
        with (self.folder / "metrics.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    def _columns(self, student: Student, average: Average, trained: nn.Module, case: "Case") -> dict[str, Tensor]:
        columns = {"lr": nearest_frames(case.lr), "bicubic": bicubic_frames(case.lr)}
        columns["student"] = run_student(student, case.lr, self.strength)
        with average.inside(trained):
            columns["average"] = run_student(student, case.lr, self.strength)
        if self.teacher is not None:
            sr = self.teacher(teacher_input(case, self.config)[None].to(student.device), [case.key])
            columns["teacher"] = to_frames(sr[0].cpu())
        columns["hr"] = case.hr
        return columns


@dataclass(frozen=True)
class Case:
    """What is looked at: a clip and one kind of damage.

    Attributes:
        key: identifies the LR clip for a teacher's cache.
        kind: of damage.
        lr: [T,h,w,3] in 0..1.
        hr: [T,4h,4w,3] in 0..1.
    """

    key: str
    kind: str
    lr: Tensor
    hr: Tensor


def teacher_input(case: Case, config: TrainConfig) -> Tensor:
    """Return what a run's teacher sees of a case, [T,3,h,w] in [-1, 1]."""
    return clean_of(to_network(case.hr)) if config.teacher.sees == "clean" else to_network(case.lr)


def _lr_of(clip: Clip, kind: str, seed: int) -> Tensor:
    return clip.lr if clip.lr is not None else degrade(clip.frames, kind, seed)


def _draw_clips(config: TrainConfig, data: Path, index: Path) -> list[Clip]:
    targets = Path(config.teacher.path) if config.teacher.kind == "folder" else None
    size = 4 * min(_LR_SIZE, max(stage.lr_size for stage in config.stages))
    length = min(_NUM_FRAMES, max(stage.num_frames for stage in config.stages))
    for split in ("heldout", "train"):
        try:
            source = open_source(data, config.data, split, targets, index=index, report=_silent)
            return [_most_detailed(source, (_SEED, i), length, size) for i in range(_NUM_CLIPS)]
        except InputError:  # nothing is held out, or nothing of it is long and large enough
            if split == "train":
                raise
    raise AssertionError


def _most_detailed(source: Source, seed: tuple[int, int], length: int, size: int) -> Clip:
    """Draw some clips and return the one that shows most: in sky and blur every network looks alike."""
    rng = np.random.default_rng(seed)
    return max((source.draw_clip(rng, length, size) for _ in range(_DRAWS)), key=lambda clip: detail(clip.frames[0]))


def _silent(message: str) -> None:
    """The source that is trained on has said it."""


def run_student(student: Student, lr: Tensor, temporal_strength: float) -> Tensor:
    """[T,h,w,3] in 0..1 -> [T,4h,4w,3] in 0..1 on 8-bit levels; h and w are padded to the student's multiple."""
    height, width = lr.shape[1:3]
    pad = [-size % student.multiple_of for size in (width, height)]
    clip = F.pad(to_network(lr), (0, pad[0], 0, pad[1]), mode="replicate")
    with torch.no_grad():
        sr = student(clip[None].to(student.device), temporal_strength=temporal_strength)[0].cpu()
    return to_frames(sr[..., : 4 * height, : 4 * width]).mul(255).round() / 255


def bicubic_frames(lr: Tensor) -> Tensor:
    """[T,h,w,3] -> [T,4h,4w,3] in 0..1 on 8-bit levels by the bicubic of image viewers (Pillow's, a = -0.5)."""
    size = (4 * lr.shape[1], 4 * lr.shape[2])
    sr = F.interpolate(lr.permute(0, 3, 1, 2), size=size, mode="bicubic", antialias=True, align_corners=False)
    return sr.permute(0, 2, 3, 1).clamp(0, 1).mul(255).round() / 255


def nearest_frames(lr: Tensor) -> Tensor:
    """[T,h,w,3] -> [T,4h,4w,3], every pixel a square."""
    return lr.repeat_interleave(4, 1).repeat_interleave(4, 2)


def time_slice(frames: Tensor) -> Tensor:
    """Show the middle row of [T,H,W,3] over time: [H,W,3], time downwards, every frame a band of equal height."""
    num_frames, height = frames.shape[:2]
    which = torch.arange(height) * num_frames // height
    return frames[which, height // 2]


def strip(pictures: list[Tensor]) -> np.ndarray:
    """Put pictures [H,W,3] in 0..1 side by side with a white line between them: uint8 [H,W',3]."""
    line = np.full((pictures[0].shape[0], 4, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (to_levels(picture), line)]
    return np.concatenate(parts[:-1], axis=1)


def _row(columns: dict[str, Tensor]) -> np.ndarray:
    middle = [frames[len(frames) // 2] for frames in columns.values()]
    return strip([*middle, time_slice(columns["average"]), time_slice(columns["hr"])])


def _save_film(frames: Tensor, path: Path) -> None:
    height, width = frames.shape[1:3]
    with VideoWriter(path, width=width, height=height, fps=_FPS, overwrite=True) as writer:
        writer.write(frames)
