"""Colours of clips: matrices, ranges, bit depths and tags, against the standards' formulas."""

import av
import numpy as np
import pytest
import torch
from PIL import Image

from adcvsr_core.pixels import FULL, LIMITED, ColorTags, frame_to_rgb, rgb_to_frame
from adcvsr_core.video import CODECS, VideoWriter, read_video, save_png
from tests.clips import copy, make_clip, moving_picture, whole

COEFFICIENTS = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}

# Colour


def patch_codes(rgb, matrix, code_range, depth):
    """The standard's formula in float64: RGB 0..1 to Y, Cb, Cr code values, unrounded."""
    kr, kb = COEFFICIENTS[matrix]
    red, green, blue = rgb
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = ((blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr))
    if code_range == LIMITED:
        unit = 2 ** (depth - 8)
        return unit * (16 + 219 * luma), *(unit * (128 + 224 * value) for value in chroma)
    top = 2**depth - 1
    return top * luma, *(2 ** (depth - 1) + top * value for value in chroma)


PATCHES = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.2, 0.5, 0.8), (0.5, 0.5, 0.5), (1, 1, 1), (0, 0, 0), (0.9, 0.3, 0.1)]


@pytest.mark.parametrize("matrix", COEFFICIENTS)
@pytest.mark.parametrize("code_range", [LIMITED, FULL])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv420p10le", "yuv422p10le"])
def test_patches_follow_the_standard(matrix, code_range, pixel_format):
    """Rounded to nearest on the way out, within half a code value on the way back."""
    tags = ColorTags(matrix=matrix, range=code_range, primaries=matrix, transfer=matrix)
    for rgb in PATCHES:
        frame = rgb_to_frame(torch.tensor(rgb).expand(6, 10, 3), pixel_format, tags)
        depth = frame.format.components[0].bits
        top = 2**depth - 1
        dtype = np.uint8 if depth == 8 else np.uint16
        found = [np.frombuffer(plane, dtype)[0] for plane in frame.planes]
        exact = [min(top, code) for code in patch_codes(rgb, matrix, code_range, depth)]
        assert np.abs(np.array(found, float) - exact).max() <= 0.5 + 1e-3, f"{rgb}: {found}, exact {exact}"
        back = frame_to_rgb(frame, tags)
        assert (back - torch.tensor(rgb)).abs().max() < 2.5 / top


@pytest.mark.parametrize("matrix", COEFFICIENTS)
@pytest.mark.parametrize("code_range", [LIMITED, FULL])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv420p10le"])
def test_tags_are_honoured_and_kept(tmp_path, matrix, code_range, pixel_format):
    """A tagged clip of known codes reads as the formula says, and its copy has the same tags and colours."""

    def tag(_, video):
        context = video.codec_context
        context.colorspace, context.color_range = matrix, code_range
        context.color_primaries, context.color_trc = matrix, matrix

    depth = 10 if "10" in pixel_format else 8
    rgb = (0.7, 0.4, 0.2)
    codes = [round(code) for code in patch_codes(rgb, matrix, code_range, depth)]
    clip = tmp_path / "in.mkv"
    with av.open(str(clip), "w") as container:
        video = container.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = 32, 32, pixel_format
        tag(container, video)
        frame = av.VideoFrame(32, 32, pixel_format)
        for plane, code in zip(frame.planes, codes):
            np.frombuffer(plane, np.uint8 if depth == 8 else np.uint16)[:] = code
        frame.pts = 0
        container.mux([*video.encode(frame), *video.encode(None)])
    read = whole(clip)
    assert (read - torch.tensor(rgb)).abs().max() < 2 / 255, read[0, 0, 0]
    reader, _ = copy(clip, tmp_path / "out.mp4", crf=1)
    copied = read_video(tmp_path / "out.mp4").info
    assert (
        copied.color
        == reader.info.color
        == ColorTags(matrix=matrix, range=code_range, primaries=matrix, transfer=matrix)
    )
    assert copied.bit_depth == depth
    assert (whole(tmp_path / "out.mp4") - read).mean((0, 1, 2)).abs().max() < 1 / 255


@pytest.mark.parametrize("codec", CODECS)
def test_load_save_load(tmp_path, codec):
    """A copy looks like its source in every codec, and no channel drifts; lossless stays within rounding."""
    if CODECS[codec].encoder not in av.codecs_available:
        pytest.skip(f"this PyAV has no {CODECS[codec].encoder}")
    clip = make_clip(tmp_path / "in.mkv", 6, size=(64, 64), codec="ffv1")
    target = tmp_path / f"out{CODECS[codec].suffixes[-1]}"
    _, writer = copy(clip, target, codec=codec)
    before, after = whole(clip), whole(target)
    assert before.shape == after.shape and not writer.warnings
    assert (after - before).mean((0, 1, 2)).abs().max() < 1 / 255, "channel shift"
    assert (after - before).abs().mean() < (0.001 if codec == "ffv1" else 0.01)
    again = tmp_path / f"again{target.suffix}"
    if codec == "ffv1":
        copy(target, again, codec=codec)
        assert torch.equal(whole(again), after)


def test_untagged_clip_is_tagged_for_its_new_size(tmp_path):
    """What the source does not say is what players guess: BT.601 for 480 rows, BT.709 for 720; colours stay."""
    clip = make_clip(tmp_path / "in.mp4", 2, size=(320, 360))
    copy(clip, tmp_path / "out.mp4", scale=2)
    info = read_video(tmp_path / "out.mp4").info
    assert read_video(clip).info.color == ColorTags()
    assert info.color == ColorTags(matrix=1, range=LIMITED, primaries=1, transfer=1)
    assert (
        whole(tmp_path / "out.mp4") - whole(clip).repeat_interleave(2, 1).repeat_interleave(2, 2)
    ).abs().mean() < 0.01


@pytest.mark.parametrize("suffix, codec", [(".mp4", "auto"), (".mkv", "ffv1"), (".mov", "prores"), (".mp4", "h265")])
def test_ten_bits_stay_ten_bits(tmp_path, suffix, codec):
    """A ramp keeps more levels than 8 bits have."""
    ramp = torch.linspace(0, 1, 1024).repeat(64, 1)[None, ..., None].repeat(2, 1, 1, 3)
    target = tmp_path / f"ramp{suffix}"
    with VideoWriter(
        target, width=1024, height=64, fps=25, codec=codec, crf=1 if "p4" in suffix else None, bit_depth=10
    ) as writer:
        writer.write(ramp)
    copied = tmp_path / f"copied{suffix}"
    copy(target, copied, codec=codec)
    for path in (target, copied):
        assert read_video(path).info.bit_depth >= 10 and "10" in writer.pixel_format + "10" * (codec == "ffv1")
        frames = whole(path)
        assert len(frames[0, 32, :, 1].unique()) > 600, "levels lost"
        assert (frames - ramp).abs().mean() < 0.002


def test_rounding_is_to_nearest(tmp_path):
    """127.6/255 becomes 128, in pictures and in lossless video; truncation would give 127."""
    frames = torch.full((1, 16, 16, 3), 127.6 / 255)
    save_png(tmp_path / "one.png", frames[0])
    assert np.asarray(Image.open(tmp_path / "one.png")).min() == 128
    with VideoWriter(tmp_path / "one.mkv", width=16, height=16, fps=1, codec="ffv1") as writer:
        writer.write(frames)
    assert torch.equal(whole(tmp_path / "one.mkv"), torch.full((1, 16, 16, 3), 128.0) / 255)


@pytest.mark.parametrize(
    "pixel_format", ["gray", "rgb24", "bgra", "nv12", "yuv410p", "yuv411p", "yuv440p", "yuva444p", "pal8"]
)
def test_any_pixel_format_reads(tmp_path, pixel_format):
    frame = av.VideoFrame.from_ndarray(moving_picture(0, 64, 48), "rgb24")
    converted = frame.reformat(format="rgb8" if pixel_format == "pal8" else pixel_format)
    rgb = frame_to_rgb(converted, ColorTags(range=FULL if pixel_format == "gray" else LIMITED).resolve(48))
    expected = torch.from_numpy(moving_picture(0, 64, 48).astype(np.float32)) / 255
    if pixel_format == "gray":
        expected = (expected @ torch.tensor([0.299, 0.587, 0.114]))[..., None].expand(-1, -1, 3)
    assert rgb.shape == (48, 64, 3) and (rgb - expected).abs().mean() < (0.1 if pixel_format == "pal8" else 0.03)
