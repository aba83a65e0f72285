"""Clips and test sets for the tests of the evaluation: pans over soft blobs, written in every published layout.

Each `make_*` writes a tree and returns what should be found there: (set, clip, scale, whether there is ground truth).
"""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from adcvsr_core.video import VideoWriter
from tests.training_material import smooth_noise


def moving(num_frames: int, height: int = 64, width: int = 96, seed: int = 0, step: int = 2) -> Tensor:
    """A pan over soft blobs, [T,H,W,3] in 0..1 on 8-bit levels."""
    field = torch.from_numpy(smooth_noise(height, width + num_frames * step, seed)).float() / 255
    return torch.stack([field[:, t * step : t * step + width] for t in range(num_frames)])


def small(hr: Tensor) -> Tensor:
    """A quarter of the size, on 8-bit levels."""
    lr = torch.nn.functional.interpolate(hr.permute(0, 3, 1, 2), scale_factor=0.25, mode="area")
    return lr.permute(0, 2, 3, 1).mul(255).round() / 255


def softened(frames: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(frames.permute(0, 3, 1, 2), (2, 2, 2, 2), mode="replicate")
    return torch.nn.functional.avg_pool2d(padded, 5, 1).permute(0, 2, 3, 1)


def write_pictures(folder: Path, frames: Tensor) -> None:
    folder.mkdir(parents=True)
    for index, frame in enumerate(frames):
        save(folder / f"{index:04d}.png", frame)


def save(path: Path, frame: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(frame.mul(255).round().byte().numpy()).save(path)


def write_film(path: Path, frames: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, width=frames.shape[2], height=frames.shape[1], fps=8, codec="ffv1") as writer:
        writer.write(frames)


HR = moving(3)
LR = small(HR)


def make_dove(root: Path) -> list:
    for clip in ("a", "b"):
        write_pictures(root / "UDM10" / "GT" / clip, HR)
        write_pictures(root / "UDM10" / "LQ" / clip, LR)
        write_film(root / "UDM10" / "LQ-Video" / f"{clip}.mkv", LR)
    write_pictures(root / "RealVSR" / "GT" / "0", HR)
    write_pictures(root / "RealVSR" / "LQ" / "0", softened(HR))
    write_pictures(root / "VideoLQ" / "LQ" / "7", LR)
    return [("RealVSR", "0", 1, True), ("UDM10", "a", 4, True), ("UDM10", "b", 4, True), ("VideoLQ", "7", 4, False)]


def make_dove_videos(root: Path) -> list:
    write_film(root / "GT-Video" / "a.mkv", HR)
    write_film(root / "LQ-Video" / "a.mkv", LR)
    return [(root.name, "a", 4, True)]


def make_mmagic(root: Path) -> list:
    for lr in ("BIx4", "BDx4"):
        write_pictures(root / "UDM10" / lr / "archpeople", LR)
    write_pictures(root / "UDM10" / "GT" / "archpeople", HR)
    write_pictures(root / "VideoLQ" / "000", LR)
    return [
        ("UDM10 BIx4", "archpeople", 4, True),
        ("UDM10 BDx4", "archpeople", 4, True),
        ("VideoLQ", "000", 4, False),
    ]


def make_crops(root: Path) -> list:
    for name in ("DSC_1", "DSC_2"):
        save(root / "test_HR" / f"{name}_x4.png", HR[0])
        save(root / "test_LR" / f"{name}_x1.png", LR[0])
    return [(root.name, "DSC_1", 4, True), (root.name, "DSC_2", 4, True)]


def make_realsr(root: Path) -> list:
    for name in ("Canon_001", "Canon_002"):
        save(root / f"{name}_HR.png", HR[0])
        save(root / f"{name}_LR4.png", HR[0])
    return [(root.name, "Canon_001", 1, True), (root.name, "Canon_002", 1, True)]


def make_any_pairs(root: Path) -> list:
    write_film(root / "hr" / "one.mkv", HR)
    write_pictures(root / "lr" / "one", LR)
    save(root / "hr" / "two.png", HR[0])
    save(root / "lr" / "two.png", LR[0])
    return [(root.name, "one", 4, True), (root.name, "two", 4, True)]


def make_inputs_alone(root: Path) -> list:
    write_film(root / "holiday.mkv", LR)
    save(root / "photo.png", LR[0])
    return [(root.name, "holiday", 4, False), (root.name, "photo", 4, False)]
