"""Still pictures as float RGB: read one file, list a folder, write one file or many.

`PictureSink` collects a clip's frames as numbered files that appear together at the end.
8-bit files go through Pillow, which knows every variant in the wild; 16-bit PNG and TIFF go through
FFmpeg, because Pillow would cut them to 8 bits. EXIF orientation is applied. Knows nothing of containers.
"""

import os
import re
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .errors import InputError, OutputError
from .pixels import FULL, RGB_MATRIX, ColorTags, frame_to_rgb, rgb_to_frame

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
_DEEP_CODECS = {".png": "png", ".tif": "tiff", ".tiff": "tiff"}
_DEEP_FORMATS = {".png": "rgb48be", ".tif": "rgb48le", ".tiff": "rgb48le"}
_PILLOW_OPTIONS = {
    ".jpg": {"quality": 95, "subsampling": 0},
    ".jpeg": {"quality": 95, "subsampling": 0},
    ".webp": {"lossless": True},
}
_NUMBER = re.compile(r"%0?\d*d")
_RGB = ColorTags(matrix=RGB_MATRIX, range=FULL)


def is_image(path: Path) -> bool:
    """Return whether the name is that of a still picture."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def list_images(folder: Path) -> list[Path]:
    """Return the pictures of a folder in natural order (frame2 before frame10).

    Raises:
        InputError: the folder holds none.
    """
    found = [entry for entry in folder.iterdir() if is_image(entry) and entry.is_file() and entry.name[0] != "."]
    if not found:
        raise InputError(f"{folder} holds no images; expected {', '.join(IMAGE_SUFFIXES)} files")
    return sorted(
        found, key=lambda entry: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", entry.name.lower())]
    )


def image_layout(path: Path) -> tuple[int, int, int, bool]:
    """Return (height, width, bits, has_alpha) of an upright picture from its header.

    Raises:
        InputError: not a picture.
    """
    with _open(path) as picture:
        width, height = picture.size
        if picture.getexif().get(0x0112, 1) >= 5:
            width, height = height, width
        return height, width, _bits(path, picture), "A" in picture.getbands() or "transparency" in picture.info


def read_image(path: Path) -> Tensor:
    """Read one picture.

    Returns:
        `[H, W, 3]` float32 RGB in 0..1, upright, alpha dropped.

    Raises:
        InputError: not a picture, or cut short.
    """
    with _open(path) as picture:
        if _bits(path, picture) > 8:
            return _turn(_read_deep(path), picture.getexif().get(0x0112, 1))
        try:
            values = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{path} is damaged ({error}); export the picture again") from error
        return torch.from_numpy(values.astype(np.float32)).div_(255)


def write_image(path: str | os.PathLike, frame: Tensor, *, bit_depth: int = 8) -> None:
    """Write one picture; the suffix chooses the format.

    Args:
        path: .png, .tif (8 or 16 bit), .jpg, .webp (lossless) or .bmp (8 bit). Overwritten.
        frame: `[H, W, 3]` float RGB in 0..1, rounded to nearest.
        bit_depth: 8, or 16 for .png and .tif.

    Raises:
        OutputError: unknown suffix, missing folder, no space, no permission.
    """
    path = Path(path)
    check_image_suffix(path, bit_depth)
    try:
        if bit_depth > 8:
            path.write_bytes(_encode_deep(path.suffix.lower(), frame))
            return
        values = frame.detach().to("cpu", torch.float32).clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
        Image.fromarray(values, "RGB").save(path, **_PILLOW_OPTIONS.get(path.suffix.lower(), {}))
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def save_png(path: str | os.PathLike, frame: Tensor) -> None:
    """Write `[H, W, 3]` float RGB in 0..1 as an 8-bit PNG."""
    write_image(Path(path).with_suffix(".png"), frame)


def check_image_suffix(path: Path, bit_depth: int) -> None:
    """Raise OutputError where `write_image` could not write such a file."""
    if not is_image(path):
        raise OutputError(f"{path.name}: unknown image type; expected one of {', '.join(IMAGE_SUFFIXES)}")
    if bit_depth > 8 and path.suffix.lower() not in _DEEP_CODECS:
        raise OutputError(f"{path.name} cannot hold {bit_depth} bits; use .png or .tif, or 8 bits")


def matching_pictures(folder: Path, name: str) -> list[Path]:
    """Return the files of `folder` that the pattern `name` could have made."""
    if not folder.is_dir():
        return []
    parts = [re.escape(part) for part in _NUMBER.split(name)]
    return sorted(entry for entry in folder.iterdir() if re.fullmatch(r"\d+".join(parts), entry.name))


class PictureSink:
    """Numbered pictures, or one, gathered in a `.part` folder."""

    time_base = Fraction(1, 1_000_000)

    def __init__(self, pattern: str, depth: int, warnings: list[str]):
        target = Path(pattern)
        deep = target.suffix.lower() in (".png", ".tif", ".tiff")
        self._bit_depth = 16 if depth > 8 and deep else 8
        if depth > 8 and not deep:
            warnings.append(f"{target.suffix} holds 8 bits, the source has {depth}; .png and .tif keep them")
        check_image_suffix(target, self._bit_depth)
        self.pixel_format = "rgb24" if self._bit_depth == 8 else "rgb48"
        self._folder, self._name = target.parent, target.name
        self._made_folder = not self._folder.exists()
        self._folder.mkdir(exist_ok=True)
        self.part_path = self._folder / f"{target.stem}.part"
        shutil.rmtree(self.part_path, ignore_errors=True)
        self.part_path.mkdir()
        self._num_written = 0

    def put(self, frame: Tensor, tick: int) -> None:
        if self._num_written and not _NUMBER.search(self._name):
            raise OutputError(f"{self._name} is one picture, the clip has more; use a pattern such as frame_%06d.png")
        self._num_written += 1
        name = _NUMBER.sub(lambda match: match[0] % self._num_written, self._name)
        write_image(self.part_path / name, frame, bit_depth=self._bit_depth)

    def finish(self, *, with_rest: bool) -> None:
        """Every picture is complete already."""

    def publish(self, path: Path) -> None:
        for old in matching_pictures(self._folder, self._name):
            old.unlink()
        for file in sorted(self.part_path.iterdir()):
            os.replace(file, self._folder / file.name)
        self.part_path.rmdir()

    def discard(self) -> None:
        shutil.rmtree(self.part_path, ignore_errors=True)
        if self._made_folder and not any(self._folder.iterdir()):
            self._folder.rmdir()


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "not a picture that can be read"
        raise InputError(f"cannot read {path}: {reason}; expected {', '.join(IMAGE_SUFFIXES)}") from error


def _bits(path: Path, picture: Image.Image) -> int:
    if picture.format == "PNG":
        with open(path, "rb") as file:
            return 16 if file.read(25)[24:25] == b"\x10" else 8
    if picture.format == "TIFF":
        bits = picture.tag_v2.get(258, (8,))
        return 16 if max(bits if isinstance(bits, tuple) else (bits,)) > 8 else 8
    return 8


def _read_deep(path: Path) -> Tensor:
    try:
        frames = av.CodecContext.create(_DEEP_CODECS[path.suffix.lower()], "r").decode(av.Packet(path.read_bytes()))
    except (av.error.FFmpegError, OSError, KeyError) as error:
        raise InputError(f"{path} cannot be decoded ({error}); save it as an 8- or 16-bit integer PNG") from error
    if not frames:
        raise InputError(f"{path} is damaged: no picture in it; export it again")
    return frame_to_rgb(frames[0], ColorTags(range=FULL).resolve(frames[0].height))


def _turn(rgb: Tensor, orientation: int) -> Tensor:
    """Apply an EXIF orientation (1..8) to `[H, W, 3]`."""
    if orientation >= 5:
        rgb = rgb.transpose(0, 1)
    flips = {2: [1], 3: [0, 1], 4: [0], 6: [1], 7: [0, 1], 8: [0]}.get(orientation)
    return rgb.flip(flips) if flips else rgb


def _encode_deep(suffix: str, frame: Tensor) -> bytes:
    picture = rgb_to_frame(frame, _DEEP_FORMATS[suffix], _RGB)
    encoder = av.CodecContext.create(_DEEP_CODECS[suffix], "w")
    encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, picture.format.name
    encoder.time_base = Fraction(1)
    picture.pts = 0
    return b"".join(bytes(packet) for packet in (*encoder.encode(picture), *encoder.encode(None)))
