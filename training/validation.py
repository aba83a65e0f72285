"""A look at the student while it trains: held-out frames as strips, and two numbers.

Small and quick on purpose; `training.evaluate` measures in earnest. Knows nothing about the optimizer.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from adcvsr_core.degradation import degrade, to_levels
from adcvsr_core.metrics import psnr
from adcvsr_core.student import Student

from .config import DataConfig
from .data import Corpus, to_frames, to_network

_NUM_CLIPS, _LR_SIZE, _SEED = 4, 48, 7


@torch.no_grad()
def validate(student: Student, data: Path, folder: Path, step: int) -> None:
    """Write `folder`/step-N.png (LR | bicubic | student | HR, one row a clip) and append to `folder`/metrics.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(data, "heldout")
    rows, gains = [], {"clean": [], "h264_crf30": []}
    for index in range(_NUM_CLIPS):
        rng = np.random.default_rng((_SEED, index))
        share = DataConfig(film_share=float(index % 2), transpose_probability=0.0)
        hr = corpus.draw_clip(rng, 3, 4 * _LR_SIZE, share)
        for kind, values in gains.items():
            lr = degrade(hr, kind, index)
            sr = run_student(student, lr, temporal_strength=0.0)
            bicubic = bicubic_frames(lr)
            values.append((psnr(sr, hr) - psnr(bicubic, hr)).mean().item())
            rows.append(strip([nearest_frames(lr[1:2])[0], bicubic[1], sr[1], hr[1]]))
    Image.fromarray(np.concatenate(rows)).save(folder / f"step-{step:08d}.png")
    line = {"step": step} | {f"gain_{kind}_db": round(float(np.mean(v)), 4) for kind, v in gains.items()}
    with (folder / "metrics.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")


@torch.no_grad()
def run_student(student: Student, lr: Tensor, temporal_strength: float) -> Tensor:
    """[T,h,w,3] in 0..1 -> [T,4h,4w,3] in 0..1 on 8-bit levels; h and w are padded to the student's multiple."""
    height, width = lr.shape[1:3]
    pad = [-size % student.multiple_of for size in (width, height)]
    clip = F.pad(to_network(lr), (0, pad[0], 0, pad[1]), mode="replicate")
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


def strip(pictures: list[Tensor]) -> np.ndarray:
    """Put pictures [H,W,3] in 0..1 side by side with a white line between them: uint8 [H,W',3]."""
    line = np.full((pictures[0].shape[0], 4, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (to_levels(picture), line)]
    return np.concatenate(parts[:-1], axis=1)
