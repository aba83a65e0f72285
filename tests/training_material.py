"""Material for the tests of training: pictures, a small prepared folder, and a user's folder of videos."""

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch


def smooth_noise(height: int, width: int, seed: int) -> np.ndarray:
    """Return a picture [H,W,3] uint8 of soft blobs, eight pixels wide."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 8 + 1, width // 8 + 1, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    return (fine[0].permute(1, 2, 0) * 255).byte().numpy()


def make_prepared_folder(root: Path) -> Path:
    """Write what `prepare_bundled_data` would: 3 shots of a film, 3 photographs, the last of each held out; a page."""
    shots = [[0, 12], [12, 24], [24, 36]]
    film = np.concatenate([np.stack([smooth_noise(192, 220, s)[:, t : t + 200] for t in range(12)]) for s in range(3)])
    np.save(root / "film.npy", film)
    (root / "photographs").mkdir()
    for index, name in enumerate("abcp"):
        np.save(root / "photographs" / f"{name}.npy", smooth_noise(240, 300, 10 + index))
    held_out = {"film": [[24, 36]], "photographs": ["c"]}
    described = {"shots": shots, "photographs": list("abcp"), "pages": ["p"], "heldout": held_out}
    (root / "corpus.json").write_text(json.dumps(described))
    (root / "features").mkdir()
    torch.save(fake_alex_weights(), root / "features" / "alex_shift_tolerant.pth")
    return root


def fake_alex_weights() -> dict[str, torch.Tensor]:
    """Random weights of the published shapes, with the right blur filter."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "slice1.0": (64, 3, 11), "slice2.5": (192, 64, 5), "slice3.9": (384, 192, 3),
        "slice4.11": (256, 384, 3), "slice5.13": (256, 256, 3),
    }  # fmt: skip
    weights = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), "scaling_layer.scale": torch.ones(1, 3, 1, 1)}
    for key, (out, inputs, size) in shapes.items():
        weights[f"net.{key}.weight"] = torch.randn(out, inputs, size, size, generator=generator) / (inputs**0.5 * size)
        weights[f"net.{key}.bias"] = torch.zeros(out)
    blur = torch.tensor([1.0, 2.0, 1.0])
    for key, width in (("slice1.1", 64), ("slice2.4", 64), ("slice3.8", 192)):
        weights[f"net.{key}.filt"] = (blur[:, None] * blur / 16).expand(width, 1, 3, 3).clone()
    for index, width in enumerate((64, 192, 384, 256, 256)):
        weights[f"lin{index}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=generator)
    return weights


def drifting(seed: int, num_frames: int, height: int = 96, width: int = 128) -> np.ndarray:
    """Return a shot [T,H,W,3] uint8: a tinted picture that moves two pixels a frame to the left."""
    tint = np.random.default_rng(seed).permutation([1.0, 0.55, 0.15])
    picture = (smooth_noise(height, width + 2 * num_frames, seed) * tint).astype(np.uint8)
    return np.stack([picture[:, 2 * t : 2 * t + width] for t in range(num_frames)])


def write_video(
    path: Path,
    frames: np.ndarray,
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    pts: Sequence[int] | None = None,
    before_header: Callable = lambda video: None,
) -> Path:
    """Write [T,H,W,3] uint8 at 25 frames a second, nearly lossless; `pts` in thousandths of a second."""
    options = {"crf": "1", "g": "6", "bf": "2"} if options is None else options
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25, options=options)
        video.width, video.height, video.pix_fmt = frames.shape[2], frames.shape[1], pixel_format
        video.time_base = video.codec_context.time_base = Fraction(1, 1000)
        before_header(video)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pixel_format)
            frame.pts, frame.time_base = (40 * index if pts is None else pts[index]), Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return path


def make_footage(root: Path) -> Path:
    """Write a user's folder: one shot, three shots in a subfolder, a broken file, and a note that is neither."""
    write_video(root / "one shot.mp4", drifting(1, 30))
    (root / "more").mkdir()
    cuts = np.concatenate([drifting(2, 14), drifting(3, 20), drifting(4, 17)])
    write_video(root / "more" / "two cuts.mp4", cuts)
    whole = write_video(root / "broken.mp4", drifting(5, 30)).read_bytes()
    (root / "broken.mp4").write_bytes(whole[: len(whole) // 3])
    (root / "notes.md").write_text("about these clips")
    return root
