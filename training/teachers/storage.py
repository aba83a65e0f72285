"""Clips in small verified files: 8-bit FFV1 in Matroska, which any player shows.

Lossless but for rounding to 8 bits, 1/255 at most in [-1, 1] units, which is also all that footage has. A file's name
ends with the hash of its contents, so one rename both finishes and certifies it: whatever is cut short, changed, or
written twice at once by several processes is told from what is whole without a second file.
"""

import contextlib
import hashlib
import io
import os
import tempfile
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from adcvsr_core.errors import OutputError

_DIGITS = 32


def find_clips(folder: Path, name: str) -> list[Path]:
    """Return the files that `write_clip` made for this name, in the same order for everyone."""
    return sorted(folder.glob(f"{name}-{'?' * _DIGITS}.mkv"))


def write_clip(folder: Path, name: str, clip: Tensor, comment: str) -> Path:
    """Write FOLDER/NAME-HASH.mkv, whole or not at all.

    Args:
        folder: made if it is not there.
        name: letters and digits.
        clip: [T,3,H,W] in [-1, 1].
        comment: a text to store in the file, for people.

    Raises:
        OutputError: the file cannot be written.
    """
    data = _encode(clip, comment)
    path = folder / f"{name}-{_hash(data)}.mkv"
    partial = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as file:
            partial = file.name
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o666 & ~_umask())  # a temporary file is for its maker alone, a cache for all of a lab
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if partial is not None:
            with contextlib.suppress(OSError):
                os.unlink(partial)
    return path


def read_clip(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """Return the clip [T,3,H,W] in [-1, 1] of a file, or None if it is not whole or has another shape than `shape`."""
    try:
        data = path.read_bytes()
        if _hash(data) != path.stem[-_DIGITS:]:
            return None
        with av.open(io.BytesIO(data)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (OSError, av.error.FFmpegError):
        return None
    if not frames or (len(frames), 3, *frames[0].shape[:2]) != tuple(shape):
        return None
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _encode(clip: Tensor, comment: str) -> bytes:
    levels = ((clip.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    frames = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGITS]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
