"""Pictures and folders of pictures as clips."""

import struct
import zlib
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from adcvsr_core.errors import InputError, OutputError
from adcvsr_core.video import read_image, read_video, save_png, write_image
from tests.clips import copy, everything_in, make_clip, moving_picture, start_writer, whole

# Pictures


def test_pictures_come_in_natural_order(tmp_path):
    for number in (10, 9, 1, 100):
        save_png(tmp_path / f"shot{number}.png", torch.full((8, 8, 3), number / 255))
    reader = read_video(tmp_path, image_fps=12.5, chunk=3)
    frames = torch.cat(list(reader))
    assert (frames[:, 0, 0, 0] * 255).round().tolist() == [1, 9, 10, 100]
    assert reader.take_pts(4) == [Fraction(2 * index, 25) for index in range(4)] and reader.num_frames == 4
    assert len(whole(tmp_path, start=0.16, image_fps=12.5)) == 2


def test_pictures_of_two_sizes_are_refused_by_name(tmp_path):
    save_png(tmp_path / "a.png", torch.rand(8, 8, 3))
    save_png(tmp_path / "b.png", torch.rand(8, 9, 3))
    with pytest.raises(InputError, match=r"b\.png is 9x8, but a\.png is 8x8"):
        list(read_video(tmp_path))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(moving_picture(0, 32, 16)).save(tmp_path / "a.png", exif=exif)
    write_image(tmp_path / "deep.png", torch.from_numpy(moving_picture(0, 32, 16) / 255.0), bit_depth=16)
    content, chunk = (tmp_path / "deep.png").read_bytes(), b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "deep.png").write_bytes(content[:33] + chunk + content[33:])  # after the 33 bytes of the header
    with Image.open(tmp_path / "a.png") as picture:
        turned = np.asarray(picture.convert("RGB"))
        turns = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
        turns |= {6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
        if orientation > 1:
            turned = np.asarray(picture.convert("RGB").transpose(Image.Transpose[turns[orientation]]))
    for name, depth in (("a.png", 8), ("deep.png", 16)):
        info = read_video(tmp_path / name).info
        assert (info.height, info.width) == turned.shape[:2] and info.bit_depth == depth
        assert np.array_equal(read_image(tmp_path / name).mul(255).round().numpy(), turned)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".bmp", ".jpg"])
def test_picture_round_trip(tmp_path, suffix):
    frame = torch.from_numpy(moving_picture(3, 31, 17).astype(np.float32)) / 255
    write_image(tmp_path / f"a{suffix}", frame)
    assert (read_image(tmp_path / f"a{suffix}") - frame).abs().mean() < (0.02 if suffix == ".jpg" else 1e-6)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_pictures_stay_exact(tmp_path, suffix):
    frame = (torch.rand(9, 13, 3, dtype=torch.float64) * 65535).round().div(65535).float()
    write_image(tmp_path / f"a{suffix}", frame, bit_depth=16)
    assert torch.equal(read_image(tmp_path / f"a{suffix}").mul(65535).round(), frame.mul(65535).round())
    copy(tmp_path / f"a{suffix}", tmp_path / f"b{suffix}")
    assert torch.equal(read_image(tmp_path / f"b{suffix}"), read_image(tmp_path / f"a{suffix}"))
    with pytest.raises(OutputError, match="16 bits"):
        write_image(tmp_path / "a.jpg", frame, bit_depth=16)


def test_clip_to_pictures_and_back(tmp_path):
    clip = make_clip(tmp_path / "in.mp4", 12)
    copy(clip, f"{tmp_path}/frames/")
    assert len(list((tmp_path / "frames").iterdir())) == 12
    frames = whole(tmp_path / "frames")
    assert (frames - whole(clip)).abs().max() <= 0.5 / 255 + 1e-6
    _, writer = copy(tmp_path / "frames", tmp_path / "back.mkv", codec="ffv1")
    assert torch.equal(whole(tmp_path / "back.mkv"), frames) and not writer.warnings


def test_one_picture_holds_one_frame(tmp_path):
    with pytest.raises(OutputError, match="use a pattern"), start_writer(tmp_path / "one.png") as writer:
        writer.write(torch.rand(2, 48, 64, 3))
    assert everything_in(tmp_path) == []
    with start_writer(tmp_path / "one.png") as writer:
        writer.write(torch.rand(1, 48, 64, 3))
    assert everything_in(tmp_path) == ["one.png"]


def test_alpha_is_dropped_and_said(tmp_path):
    Image.fromarray(np.full((8, 8, 4), 128, np.uint8), "RGBA").save(tmp_path / "a.png")
    reader = read_video(tmp_path / "a.png")
    assert reader.has_alpha and next(iter(reader)).shape == (1, 8, 8, 3)
