"""The bundled model's material in one small file, for a machine without network: `pack` here, `unpack` there.

The film is compressed again (x264, all of its frames), photographs become JPEG, the perceptual network that training
uses is kept in half precision, and pages are drawn again from their fonts. What is unpacked is therefore a little worse
than what was packed, and the larger network, which only measures, is left out. Knows nothing about registries.
"""

import io
import json
import os
import tempfile
import zipfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from adcvsr_core.degradation import rgb_to_yuv420, yuv420_to_rgb
from adcvsr_core.errors import InputError

from .array_files import save_array
from .drawn_pages import PAGES, draw_missing_pages

FEATURES = "features/alex_shift_tolerant.pth"
_FILM, _CORPUS = "film.mp4", "corpus.json"
_FPS = 24


def pack(data: Path, file: Path, *, film_megabytes: float, jpeg_quality: int) -> None:
    """Write everything that training needs into one file.

    Args:
        data: folder of `training.prepare_bundled_data`.
        file: to write, a zip archive.
        film_megabytes: what the film may take.
        jpeg_quality: of the photographs, 1 to 95.

    Raises:
        InputError: the folder is not complete.
    """
    _require(data / _CORPUS)
    _require(data / FEATURES)
    described = json.loads((data / _CORPUS).read_text())
    if PAGES.keys() & set(described["photographs"]):
        _require(data / "fonts")
    partial = file.with_name(f"{file.name}.part")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive, tempfile.TemporaryDirectory() as folder:
        archive.writestr(_CORPUS, json.dumps(described))
        archive.writestr(FEATURES, _half_weights(data / FEATURES))
        for name in _not_drawn(described):
            archive.writestr(f"photographs/{name}.jpg", _jpeg(data / "photographs" / f"{name}.npy", jpeg_quality))
        for path in sorted((data / "fonts").glob("*.ttf")):
            archive.write(path, f"fonts/{path.name}", zipfile.ZIP_DEFLATED)
        if described["shots"]:
            film = np.load(data / "film.npy", mmap_mode="r")
            num_frames = max(stop for _, stop in described["shots"])
            _encode(film[:num_frames], Path(folder) / _FILM, film_megabytes)
            archive.write(Path(folder) / _FILM, _FILM)
    os.replace(partial, file)


def unpack(file: Path, data: Path) -> None:
    """Write the folder that training reads; parts that are there are left as they are.

    Raises:
        InputError: not such a file.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            described = json.loads(archive.read(_CORPUS))
            (data / "photographs").mkdir(parents=True, exist_ok=True)
            for name in _not_drawn(described):
                path = data / "photographs" / f"{name}.npy"
                if not path.exists():
                    picture = Image.open(io.BytesIO(archive.read(f"photographs/{name}.jpg")))
                    save_array(path, np.asarray(picture.convert("RGB")))
            archive.extractall(data, [name for name in archive.namelist() if name.startswith("fonts/")])
            _write_weights(archive.read(FEATURES), data / FEATURES)
            if described["shots"] and not (data / "film.npy").exists():
                _decode(archive.read(_FILM), data / "film.npy")
    except (zipfile.BadZipFile, KeyError, OSError, ValueError) as error:
        raise InputError(f"{file} is no packed material, or broken: {error}") from error
    draw_missing_pages(
        data,
        [name for name in described["photographs"] if name in PAGES],
        [name for name in _not_drawn(described) if name not in described["heldout"]["photographs"]],
    )
    (data / _CORPUS).write_text(json.dumps(described, indent=1))


def _require(path: Path) -> None:
    if not path.exists():
        raise InputError(f"{path} is missing; make it with `python -m training.prepare_bundled_data`")


def _not_drawn(described: dict) -> list[str]:
    return [name for name in described["photographs"] if name not in PAGES]


def _half_weights(path: Path) -> bytes:
    weights = torch.load(path, map_location="cpu", weights_only=True)
    buffer = io.BytesIO()
    torch.save({key: value.half() for key, value in weights.items()}, buffer)
    return buffer.getvalue()


def _write_weights(content: bytes, path: Path) -> None:
    if path.exists():
        return
    weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    torch.save({key: value.float() for key, value in weights.items()}, partial)
    os.replace(partial, path)


def _jpeg(path: Path, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.load(path)).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def _encode(film: np.ndarray, path: Path, megabytes: float) -> None:
    """Write frames [N,H,W,3] uint8 at the mean rate that fills so many megabytes."""
    bits = int(8e6 * megabytes * _FPS / len(film))
    with av.open(str(path), "w") as container:
        # Without mbtree, which is not deterministic; see adcvsr_core.degradation.codecs.
        stream = container.add_stream("libx264", rate=_FPS, options={"preset": "medium", "x264-params": "mbtree=0"})
        stream.height, stream.width = film.shape[1:3]
        stream.pix_fmt, stream.bit_rate = "yuv420p", bits
        for index, levels in enumerate(film):
            frame = av.VideoFrame.from_ndarray(rgb_to_yuv420(levels[None])[0], "yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, _FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _decode(content: bytes, path: Path) -> None:
    """Write the film's frames as a memory map [N,H,W,3] uint8."""
    partial = path.with_suffix(".part.npy")
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        frames = np.lib.format.open_memmap(partial, "w+", np.uint8, (stream.frames, stream.height, stream.width, 3))
        num_frames = 0
        for frame in container.decode(stream):
            frames[num_frames] = yuv420_to_rgb(frame.to_ndarray()[None])[0]
            num_frames += 1
        if num_frames != len(frames):
            raise ValueError(f"the film has {num_frames} frames, its header says {len(frames)}")
        frames.flush()
    os.replace(partial, path)
