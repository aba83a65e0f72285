"""Clips in and out: every frame once, timestamps and sound kept, colours right, no broken file under a good name."""

import errno
import itertools
import signal
import struct
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from adcvsr_core import video_write
from adcvsr_core.errors import Cancelled, InputError, OutputError
from adcvsr_core.pixels import FULL, LIMITED, ColorTags, frame_to_rgb, rgb_to_frame
from adcvsr_core.video import CODECS, VideoWriter, read_image, read_video, save_png, write_image

if sys.platform != "win32":
    import resource
posix = pytest.mark.skipif(sys.platform == "win32", reason="asks the system in a POSIX way")
linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")

TICK = Fraction(1, 90_000)
COEFFICIENTS = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}


def moving_picture(index: int, width: int, height: int) -> np.ndarray:
    """Return RGB bytes: a smooth ramp that drifts, red above, so that turns and orders show."""
    across, down = np.meshgrid(np.linspace(0, 150, width), np.linspace(0, 50, height))
    picture = np.stack((across + down + index % 40, across[:, ::-1] + 20, down * 3 + 30), -1)
    picture[: height // 4, :, 0] = 230
    return picture.round().astype(np.uint8)


def make_clip(
    path,
    num_frames=12,
    *,
    size=(64, 48),
    fps=30,
    codec="libx264",
    pixel_format="yuv420p",
    pts=None,
    audio=None,
    options=None,
    before_header=lambda container, video: None,
):
    """Write a clip by PyAV alone, independent of the code under test. `audio` is a codec name."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=fps, options=options or ({"bf": "3"} if codec == "libx264" else {}))
        video.width, video.height, video.pix_fmt = *size, pixel_format
        video.time_base = video.codec_context.time_base = TICK
        sound = container.add_stream(audio, rate=48_000) if audio else None
        before_header(container, video)
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(moving_picture(index, *size), "rgb24").reformat(format=pixel_format)
            frame.pts = pts[index] if pts else round(index / fps / TICK)
            frame.time_base = TICK
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound:
            write_tone(container, sound, num_frames / fps)
    return path


def write_tone(container, stream, seconds):
    kind = stream.codec_context.format.name
    for first in range(0, int(48_000 * seconds), 1024):
        wave = np.sin(np.arange(first, first + 1024) / 20).astype(np.float32)
        samples = np.stack((wave, wave)) if kind.endswith("p") else np.stack((wave, wave), -1).reshape(1, -1)
        samples = samples if kind.startswith("flt") else (samples * 20_000).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples, kind, "stereo")
        frame.rate, frame.pts, frame.time_base = 48_000, first, Fraction(1, 48_000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def packets(path, kind="audio"):
    """Return (seconds, payload) of each packet of the first stream of a kind."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        return [(each.pts * each.time_base, bytes(each)) for each in container.demux(stream) if each.size]


def pts_of(path):
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def copy(source, target, *, scale=1, read=None, **write):
    """Send a clip through reader and writer, each pixel repeated `scale` times; return both."""
    with read_video(source, **(read or {})) as reader:
        info = reader.info
        with VideoWriter(
            target, width=info.width * scale, height=info.height * scale, source=reader, **write
        ) as writer:
            for frames in reader:
                frames = frames.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
                writer.write(frames, reader.take_pts(len(frames)))
    return reader, writer


def whole(path, **settings):
    return torch.cat(list(read_video(path, **settings)))


# Frames and timestamps


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_every_frame_comes_out_once(tmp_path, suffix):
    """n in == n out for n in 1..64, with B-frames."""
    for num_frames in range(1, 65) if suffix == ".mp4" else (7, 20, 64):
        clip = make_clip(
            tmp_path / f"in{suffix}", num_frames, size=(32, 32), options={"bf": "3", "preset": "ultrafast"}
        )
        reader = read_video(clip, chunk=7)
        chunks = list(reader)
        assert all(1 <= len(chunk) <= 7 for chunk in chunks)
        counted = sum(len(chunk) for chunk in chunks)
        times = reader.take_pts(counted)
        assert counted == num_frames, f"{num_frames} frames in, {counted} out"
        assert times == sorted(set(times)) and not reader.pts and not reader.warnings


def test_chunk_size_changes_nothing(tmp_path):
    clip = make_clip(tmp_path / "in.mp4", 20)
    expected = whole(clip, chunk=20)
    for chunk in (1, 3, 8, 50):
        assert torch.equal(whole(clip, chunk=chunk), expected), f"chunk {chunk}"


@pytest.mark.parametrize("num_frames", [1, 2, 3, 17, 64])
def test_written_frames_and_times_are_the_source_s(tmp_path, num_frames):
    clip = make_clip(tmp_path / "in.mp4", num_frames, audio="aac")
    copy(clip, tmp_path / "out.mp4")
    assert pts_of(tmp_path / "out.mp4") == pts_of(clip)


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_variable_rate_is_kept_exactly(tmp_path, suffix):
    steps = np.random.default_rng(0).integers(700, 9000, 40).cumsum()
    clip = make_clip(tmp_path / "in.mp4", 40, pts=[int(step - steps[0]) for step in steps])
    reader, _ = copy(clip, tmp_path / f"out{suffix}")
    assert reader.info.is_variable_rate
    assert pts_of(tmp_path / f"out{suffix}") == pts_of(clip)


def test_a_late_picture_stays_late(tmp_path):
    """Picture that starts half a second after the sound still does in the copy, without a second shift."""
    clip = make_clip(tmp_path / "in.mp4", 12, pts=[45_000 + 3000 * index for index in range(12)], audio="aac")
    copy(clip, tmp_path / "out.mp4")
    assert pts_of(tmp_path / "out.mp4") == pts_of(clip) and pts_of(clip)[0] == Fraction(1, 2)
    assert packets(tmp_path / "out.mp4") == packets(clip)


def test_timestamps_that_do_not_increase_are_mended_aloud(tmp_path):
    with VideoWriter(tmp_path / "out.mp4", width=32, height=32, fps=25) as writer:
        writer.write(torch.rand(3, 32, 32, 3), [Fraction(0), Fraction(1, 25), Fraction(1, 25)])
    assert len(pts_of(tmp_path / "out.mp4")) == 3 and len(writer.warnings) == 1


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_trim_is_exact(tmp_path, suffix):
    """start <= pts < end, and the frames are bit for bit those of the whole clip."""
    clip = make_clip(tmp_path / f"in{suffix}", 90, options={"bf": "3", "g": "24"})
    reader = read_video(clip)
    frames = torch.cat(list(reader))
    times = reader.take_pts(90)
    for start, end in [(1, None), (0.5, 2), (0, 0.1), (2.9, None), (1 / 30, 5 / 30), (2.2, 2.25)]:
        wanted = [
            index
            for index, seconds in enumerate(times)
            if seconds >= Fraction(start).limit_denominator(10**6)
            and (end is None or seconds < Fraction(end).limit_denominator(10**6))
        ]
        trimmed = read_video(clip, start=start, end=end)
        assert torch.equal(torch.cat(list(trimmed)), frames[wanted]), f"{suffix} {start}..{end}"
        moved = trimmed.take_pts(len(wanted))
        assert moved[0] >= 0 and {a - times[b] for a, b in zip(moved, wanted)} == {moved[0] - times[wanted[0]]}
        assert abs(trimmed.num_frames - len(wanted)) <= 1


def test_trimmed_sound_stays_in_step(tmp_path):
    clip = make_clip(tmp_path / "in.mp4", 90, audio="aac")
    copy(clip, tmp_path / "out.mp4", read={"start": 1, "end": 2})
    kept = packets(tmp_path / "out.mp4")
    expected = [(seconds - 1, payload) for seconds, payload in packets(clip) if 1 <= seconds < 2]
    assert [payload for _, payload in kept] == [payload for _, payload in expected]
    assert max(abs(a - b) for (a, _), (b, _) in zip(kept, expected)) < Fraction(1, 48_000)
    assert pts_of(tmp_path / "out.mp4") == [Fraction(index, 30) for index in range(30)]


# Geometry


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_picture_is_upright(tmp_path, degrees):
    """The red band, above in the stored picture, goes where the display matrix (clockwise) puts it."""
    clip = make_clip(tmp_path / "in.mp4", 2)
    matrices = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}
    a, b, c, d = (value << 16 for value in matrices[degrees])
    plain = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    content = clip.read_bytes()
    track = content.index(b"tkhd")
    clip.write_bytes(content[:track] + content[track:].replace(plain, turned, 1))
    reader = read_video(clip)
    frame = next(iter(reader))[0]
    reader.close()
    expected = {0: (1, 32), 90: (32, 46), 180: (46, 32), 270: (32, 1)}[degrees]
    assert reader.info.rotation == degrees
    assert frame.shape[:2] == ((64, 48) if degrees % 180 else (48, 64)) == (reader.info.height, reader.info.width)
    assert frame[expected][0] > 0.8 > frame[-1 - expected[0], -1 - expected[1]][0]
    copy(clip, tmp_path / "out.mp4")
    assert read_video(tmp_path / "out.mp4").info.rotation == 0


@pytest.mark.parametrize("aspect, width", [(Fraction(4, 3), 85), (Fraction(8, 9), 57), (Fraction(1), 64)])
def test_pixels_become_square(tmp_path, aspect, width):
    def stretch(_, video):
        video.codec_context.sample_aspect_ratio = aspect

    clip = make_clip(tmp_path / "in.mp4", 2, before_header=stretch)
    reader = read_video(clip)
    assert reader.info.sample_aspect == aspect
    assert (reader.info.width, reader.info.height) == (width, 48)
    assert whole(clip).shape == (2, 48, width, 3)
    plain = torch.from_numpy(moving_picture(0, width, 48).astype(np.float32)) / 255
    assert (whole(clip)[0] - plain).abs().mean() < 0.02


@pytest.mark.parametrize("size", [(35, 27), (1, 1), (33, 16), (16, 33)])
def test_odd_sizes_survive(tmp_path, size):
    clip = make_clip(tmp_path / "in.mkv", 3, size=size, codec="ffv1", pixel_format="yuv420p")
    _, writer = copy(clip, tmp_path / "out.mp4", crf=1)
    before, after = whole(clip), whole(tmp_path / "out.mp4")
    assert after.shape == before.shape == (3, size[1], size[0], 3)
    assert (after - before).abs().mean() < 0.02
    assert writer.pixel_format == "yuv444p" and "odd" in writer.warnings[0]


def test_size_that_changes_midway_is_resized_aloud(tmp_path):
    first = make_clip(tmp_path / "a.ts", 5).read_bytes()
    second = make_clip(tmp_path / "b.ts", 5, size=(96, 80)).read_bytes()
    (tmp_path / "in.ts").write_bytes(first + second)
    reader = read_video(tmp_path / "in.ts")
    frames = torch.cat(list(reader))
    assert frames.shape == (10, 48, 64, 3) and any("96x80" in line for line in reader.warnings)


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


# Sound, subtitles, tags


@pytest.mark.parametrize(
    "audio, source, target",
    [("aac", ".mp4", ".mp4"), ("aac", ".mp4", ".mkv"), ("aac", ".mp4", ".mov"), ("pcm_s16le", ".mov", ".mkv"),
     ("libopus", ".mkv", ".webm"), ("libopus", ".mkv", ".mp4"), ("ac3", ".ts", ".mp4"), ("flac", ".mkv", ".mkv")],
)  # fmt: skip
def test_sound_is_copied_byte_for_byte(tmp_path, audio, source, target):
    clip = make_clip(tmp_path / f"in{source}", 40, audio=audio)
    _, writer = copy(clip, tmp_path / f"out{target}")
    before, after = packets(clip), packets(tmp_path / f"out{target}")
    assert [payload for _, payload in after] == [payload for _, payload in before] and not writer.warnings
    offset = pts_of(tmp_path / f"out{target}")[0] - pts_of(clip)[0]
    drift = max(abs((b - offset) - a) for (a, _), (b, _) in zip(before, after))
    assert drift <= Fraction(1, 900), f"sound moved by {float(drift)} s against the picture"


@pytest.mark.parametrize(
    "audio, source, target, becomes",
    [("aac", ".mp4", ".webm", "opus"), ("libopus", ".mkv", ".mov", "aac"), ("pcm_s16le", ".mov", ".mp4", "aac")],
)
def test_sound_that_does_not_fit_is_encoded_again_aloud(tmp_path, audio, source, target, becomes):
    clip = make_clip(tmp_path / f"in{source}", 60, audio=audio)
    _, writer = copy(clip, tmp_path / f"out{target}")
    assert "re-encoded" in writer.warnings[0] and audio.removeprefix("lib") in writer.warnings[0]
    with av.open(str(tmp_path / f"out{target}")) as container:
        assert container.streams.audio[0].codec_context.name.removeprefix("lib") == becomes
        sounds = list(container.decode(audio=0))
    seconds = sum(sound.samples for sound in sounds) / 48_000
    assert abs(seconds - 2) < 0.1 and abs(sounds[0].time) < 0.05


def test_sound_longer_than_the_picture_is_kept_whole(tmp_path):
    clip = make_clip(tmp_path / "in.mp4", 10, audio="aac")
    with av.open(str(tmp_path / "long.mp4"), "w") as container:
        write_tone(container, container.add_stream("aac", rate=48_000), 3)
    with read_video(clip) as reader:
        with VideoWriter(
            tmp_path / "out.mp4", width=64, height=48, source=reader, audio_from=tmp_path / "long.mp4"
        ) as writer:
            for frames in reader:
                writer.write(frames, reader.take_pts(len(frames)))
    assert packets(tmp_path / "out.mp4") == packets(tmp_path / "long.mp4")


def subtitled(path):
    """Write a clip with one SubRip subtitle, chapters, a title and a language."""
    (path.parent / "lines.srt").write_text("1\n00:00:00,200 --> 00:00:00,900\nHello\n")
    clip = make_clip(path.parent / "bare.mkv", 60, audio="aac")
    with av.open(str(clip)) as video, av.open(str(path.parent / "lines.srt")) as lines, av.open(str(path), "w") as out:
        sources = [video.streams.video[0], video.streams.audio[0], lines.streams.subtitles[0]]
        streams = [out.add_stream_from_template(stream, opaque=True) for stream in sources]
        streams[1].metadata["language"] = "deu"
        out.metadata["title"] = "A title"
        if hasattr(out, "set_chapters"):  # PyAV 15
            entry = {"id": 1, "start": 0, "end": 1000, "time_base": Fraction(1, 1000), "metadata": {"title": "One"}}
            out.set_chapters([entry])
        for container, kept in ((video, sources[:2]), (lines, sources[2:])):
            for packet in container.demux(kept):
                if packet.size:
                    packet.stream = streams[sources.index(packet.stream)]
                    out.mux(packet)
    return path


def test_subtitles_chapters_and_tags_come_over(tmp_path):
    clip = subtitled(tmp_path / "in.mkv")
    _, writer = copy(clip, tmp_path / "out.mkv")
    assert not writer.warnings
    with av.open(str(tmp_path / "out.mkv")) as out:
        assert out.metadata["title"] == "A title" and out.streams.audio[0].language == "deu"
        if hasattr(out, "chapters"):
            assert [chapter["metadata"]["title"] for chapter in out.chapters()] == ["One"]
    for path in (clip, tmp_path / "out.mkv"):
        ((seconds, text),) = packets(path, "subtitles")
        assert text == b"Hello" and seconds - pts_of(path)[0] == Fraction(1, 5)


def test_subtitles_that_do_not_fit_are_left_out_aloud(tmp_path):
    _, writer = copy(subtitled(tmp_path / "in.mkv"), tmp_path / "out.mp4")
    assert len(writer.warnings) == 1 and "subtitle" in writer.warnings[0] and ".mkv" in writer.warnings[0]
    info = read_video(tmp_path / "out.mp4").info
    assert info.has_audio and info.num_subtitles == 0


def test_timecode_is_kept(tmp_path):
    clip = make_clip(
        tmp_path / "in.mov", 10, before_header=lambda _, video: video.metadata.update(timecode="01:02:03:04")
    )
    copy(clip, tmp_path / "out.mov")
    with av.open(str(tmp_path / "out.mov")) as out:
        assert out.streams.video[0].metadata["timecode"] == "01:02:03:04"


def test_silence_on_request(tmp_path):
    """Only the sound goes: subtitles and tags stay."""
    copy(subtitled(tmp_path / "in.mkv"), tmp_path / "out.mkv", audio_from=None)
    with av.open(str(tmp_path / "out.mkv")) as out:
        assert not out.streams.audio and len(out.streams.subtitles) == 1 and out.metadata["title"] == "A title"


def test_length_is_kept(tmp_path):
    """The last frame lasts as long as it did."""
    clip = make_clip(tmp_path / "in.mp4", 12)
    copy(clip, tmp_path / "out.mp4")
    assert (
        read_video(tmp_path / "out.mp4").info.duration_seconds
        == read_video(clip).info.duration_seconds
        == Fraction(2, 5)
    )


@pytest.mark.parametrize("codec", [codec for codec in CODECS if ".mp4" in CODECS[codec].suffixes])
@pytest.mark.parametrize("num_frames", [1, 2, 3, 5])
def test_short_clips_in_every_codec(tmp_path, codec, num_frames):
    """Shorter than any encoder's delay, still every frame at its time."""
    if CODECS[codec].encoder not in av.codecs_available:
        pytest.skip(f"this PyAV has no {CODECS[codec].encoder}")
    with VideoWriter(tmp_path / "out.mp4", width=64, height=64, fps=Fraction(30000, 1001), codec=codec) as writer:
        writer.write(torch.rand(num_frames, 64, 64, 3))
    assert pts_of(tmp_path / "out.mp4") == [Fraction(1001 * index, 30000) for index in range(num_frames)]


def test_h265_in_mp4_is_tagged_for_every_player(tmp_path):
    if "libx265" not in av.codecs_available:
        pytest.skip("this PyAV has no libx265")
    copy(make_clip(tmp_path / "in.mp4", 3), tmp_path / "out.mp4", codec="h265")
    with av.open(str(tmp_path / "out.mp4")) as out:
        assert out.streams.video[0].codec_context.codec_tag == "hvc1"


# What goes wrong on the way in


@pytest.mark.parametrize("suffix", [".mp4", ".ts", ".mkv"])
def test_damage_in_the_middle_costs_only_its_frames(tmp_path, suffix):
    clip = make_clip(tmp_path / f"in{suffix}", 120, options={"g": "12"})
    content = bytearray(clip.read_bytes())
    middle, noise = len(content) // 2, np.random.default_rng(1).integers(0, 256, 600).astype(np.uint8)
    content[middle : middle + 600] = noise.tobytes()
    clip.write_bytes(content)
    reader = read_video(clip)
    counted = sum(len(frames) for frames in reader)
    with av.open(str(clip)) as container:
        decodable = 0
        for packet in container.demux(video=0):
            try:
                decodable += len(packet.decode())
            except av.error.FFmpegError:
                continue
    assert 60 <= decodable <= counted == len(reader.pts) <= 120
    assert reader.warnings, f"{120 - counted} frames lost in silence"


def test_bare_stream_without_times_or_length(tmp_path):
    """Raw H.264: no timestamps, no duration, no frame count; still each frame once, evenly spaced, and copyable."""
    clip = make_clip(tmp_path / "in.h264", 20, options={"bf": "0"})
    reader, _ = copy(clip, tmp_path / "out.mp4")
    assert reader.info.num_frames is None and reader.num_frames is None
    times = pts_of(tmp_path / "out.mp4")
    assert len(times) == 20 and len({b - a for a, b in itertools.pairwise(times)}) == 1


def test_edit_list_hides_what_it_hides(tmp_path):
    """Frames that the container says not to show are not delivered; the first shown one is at 0."""
    clip = make_clip(tmp_path / "in.mp4", 30, options={"bf": "0", "g": "30"})
    content = bytearray(clip.read_bytes())
    entry = content.index(b"elst") + 12  # after version, flags and count: duration, media time, rate
    content[entry + 4 : entry + 8] = struct.pack(">i", 10 * 3000)
    clip.write_bytes(content)
    with av.open(str(clip)) as container:
        shown = sum(1 for packet in container.demux(video=0) if packet.size and not packet.is_discard)
    reader = read_video(clip)
    assert sum(len(frames) for frames in reader) == shown == 20
    assert reader.pts[0] == 0 and whole(clip).allclose(whole(clip, chunk=3))


@posix
@pytest.mark.parametrize("name", ["a:b.mp4", "50% off #1?.mp4", "lächeln 笑.mp4", "%03d.mp4"])
def test_any_file_name(tmp_path, monkeypatch, name):
    make_clip(tmp_path / "in.mp4", 3).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    copy(name, f"out {name}")
    assert len(whole(f"out {name}")) == 3


def test_cut_short_file_gives_what_it_has(tmp_path):
    clip = make_clip(tmp_path / "in.ts", 60)
    content = clip.read_bytes()
    clip.write_bytes(content[: len(content) * 2 // 3])
    assert 20 < len(whole(clip)) < 60


def text_file(path):
    path.write_text("not a video " * 100)
    return path


def empty_file(path):
    path.touch()
    return path


def sound_only(path):
    with av.open(str(path), "w") as container:
        write_tone(container, container.add_stream("aac", rate=48_000), 1)
    return path


def no_frames(path):
    with av.open(str(path), "w") as container:
        container.add_stream("libx264", rate=25)
        container.start_encoding()
    return path


def empty_folder(path):
    path.mkdir()
    return path


@pytest.mark.parametrize(
    "make, name, words",
    [
        (lambda path: path, "missing.mp4", "does not exist"),
        (text_file, "text.mp4", "not a video"),
        (empty_file, "empty.mp4", "not a video"),
        (text_file, "text.png", "not a picture"),
        (sound_only, "sound.mp4", "no video stream"),
        (no_frames, "none.mp4", "no "),
        (empty_folder, "folder", "no images"),
    ],
)
def test_unusable_input_is_one_clear_line(tmp_path, make, name, words):
    with pytest.raises(InputError, match=words) as caught:
        read_video(make(tmp_path / name))
    assert name.split(".")[0] in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"start": -1}, {"start": 2, "end": 1}, {"chunk": 0}, {"start": float("nan")}])
def test_senseless_range_is_refused(tmp_path, settings):
    with pytest.raises(InputError):
        read_video(make_clip(tmp_path / "in.mp4", 2), **settings)


def test_start_beyond_the_end_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"0\.\d+ s long"):
        list(read_video(make_clip(tmp_path / "in.mp4", 6), start=5))


@linux
def test_abandoned_reader_lets_go_of_the_file(tmp_path):
    def open_files():
        return [link for link in Path("/proc/self/fd").iterdir() if link.exists() and clip.samefile(link)]

    clip = make_clip(tmp_path / "in.mp4", 30)
    with read_video(clip, chunk=2) as reader:
        next(iter(reader))
        assert open_files()
    assert not open_files()
    frames = iter(read_video(clip, chunk=2))
    next(frames)
    frames.close()
    assert not open_files()


@linux
def test_memory_is_flat(tmp_path):
    """600 frames through reader and writer need no more than 200 did."""
    clip = make_clip(tmp_path / "in.mp4", 600, audio="aac", options={"preset": "ultrafast"})
    resident = []
    with read_video(clip, chunk=4) as reader:
        with VideoWriter(tmp_path / "out.mp4", width=64, height=48, source=reader) as writer:
            for frames in reader:
                writer.write(frames, reader.take_pts(len(frames)))
                if writer.num_frames % 100 == 0:
                    pages = int(Path("/proc/self/statm").read_text().split()[1])
                    resident.append(pages * resource.getpagesize() / 2**20)
    assert writer.num_frames == 600 and max(resident[2:]) - resident[1] < 24, f"MiB every 100 frames: {resident}"


# What goes wrong on the way out


def start_writer(path, **settings):
    return VideoWriter(path, width=64, height=48, fps=25, **settings)


def everything_in(folder):
    return sorted(entry.name for entry in folder.rglob("*"))


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Cancelled])
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "frames/"])
def test_interrupt_leaves_a_playable_part(tmp_path, stop, name):
    clip = make_clip(tmp_path / "in.mp4", 60, audio="aac")
    with pytest.raises(stop):
        with read_video(clip, chunk=10) as reader:
            with VideoWriter(f"{tmp_path}/{name}", width=64, height=48, source=reader) as writer:
                for frames in reader:
                    writer.write(frames, reader.take_pts(len(frames)))
                    if writer.num_frames == 30:
                        raise stop
    assert len(whole(writer.part_path)) == 30
    if name != "frames/":
        assert not (tmp_path / name).exists()
        assert abs(packets(writer.part_path)[-1][0] - 1) < 0.1, "sound as long as the picture"


@pytest.mark.parametrize("name", ["out.mp4", "frames/", "one.png"])
@pytest.mark.parametrize("num_frames", [0, 1])
def test_failure_leaves_nothing(tmp_path, name, num_frames):
    with pytest.raises(RuntimeError):
        with start_writer(f"{tmp_path}/{name}") as writer:
            writer.write(torch.rand(num_frames, 48, 64, 3))
            raise RuntimeError("the network failed")
    assert everything_in(tmp_path) == [] and writer.part_path is None


def test_interrupt_before_the_first_frame_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), start_writer(tmp_path / "out.mp4"):
        raise KeyboardInterrupt
    assert everything_in(tmp_path) == []


def test_no_frames_is_no_file(tmp_path):
    with pytest.raises(OutputError, match="no frame"), start_writer(tmp_path / "out.mp4"):
        pass
    assert everything_in(tmp_path) == []


@pytest.mark.parametrize("name", ["out.mp4", "out.png", "frames/", "seq_%03d.png"])
def test_existing_files_are_safe(tmp_path, name):
    """Refused before any work; a failed overwrite keeps the old file; an asked one replaces it."""
    path = f"{tmp_path}/{name}"
    frame = torch.rand(1, 48, 64, 3)
    with start_writer(path) as writer:
        writer.write(frame)
    before = {entry: entry.read_bytes() for entry in tmp_path.rglob("*") if entry.is_file()}
    assert len(before) == 1
    with pytest.raises(OutputError, match="exists; allow overwriting"):
        start_writer(path)
    with pytest.raises(RuntimeError), start_writer(path, overwrite=True) as writer:
        writer.write(1 - frame)
        raise RuntimeError
    assert {entry: entry.read_bytes() for entry in tmp_path.rglob("*") if entry.is_file()} == before
    with start_writer(path, overwrite=True) as writer:
        writer.write(1 - frame)
    after = {entry: entry.read_bytes() for entry in tmp_path.rglob("*") if entry.is_file()}
    assert after.keys() == before.keys() and after != before


@posix
def test_input_is_never_the_output(tmp_path):
    clip = make_clip(tmp_path / "in.mp4", 3)
    part = make_clip(tmp_path / "out.part.mp4", 3)
    (tmp_path / "link.mp4").symlink_to(clip)
    for source, target in [(clip, clip), (clip, tmp_path / "link.mp4"), (part, tmp_path / "out.mp4")]:
        content = source.read_bytes()
        with read_video(source) as reader, pytest.raises(OutputError, match="the input itself"):
            start_writer(target, source=reader, overwrite=True)
        assert source.read_bytes() == content


@pytest.mark.parametrize(
    "name, settings, words",
    [
        ("missing/out.mp4", {}, "is no folder"),
        ("out.xyz", {}, "unknown file type"),
        ("out", {}, "unknown file type"),
        ("out.mp4", {"codec": "prores"}, r"prores does not fit \.mp4; use \.mov or \.mkv"),
        ("out.webm", {"codec": "h264"}, "does not fit"),
        ("out.mp4", {"codec": "mpeg1"}, "unknown codec"),
        ("out.mp4", {"fps": 0}, "above 0"),
        ("out.mp4", {"crf": 999}, "outside 0"),
        ("seq_%03d.jpg", {"width": 0}, "above 0"),
        ("out.mp4", {"codec": "av1", "width": 65}, "even"),
    ],
)
def test_impossible_output_is_refused_at_once(tmp_path, name, settings, words):
    with pytest.raises(OutputError, match=words) as caught:
        VideoWriter(tmp_path / name, **{"width": 64, "height": 48, "fps": 25, **settings})
    assert "\n" not in str(caught.value) and everything_in(tmp_path) == []


def test_codec_that_this_build_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(video_write.av, "codecs_available", {"libx264"})
    with pytest.raises(OutputError, match="no libx265 for h265; choose one of h264"):
        start_writer(tmp_path / "out.mp4", codec="h265")


@pytest.mark.parametrize("name, words", [("out.part.mp4", "cannot write"), ("out.mp4", "is a folder")])
def test_folder_in_place_of_the_file(tmp_path, name, words):
    (tmp_path / name).mkdir()
    with pytest.raises(OutputError, match=words):
        start_writer(tmp_path / "out.mp4", overwrite=True)
    assert everything_in(tmp_path) == [name]


def test_video_may_go_beside_its_pictures(tmp_path):
    save_png(tmp_path / "1.png", torch.rand(48, 64, 3))
    copy(tmp_path, tmp_path / "out.mp4")
    with read_video(tmp_path) as reader, pytest.raises(OutputError, match="the input itself"):
        start_writer(f"{tmp_path}/", source=reader, overwrite=True)
    assert everything_in(tmp_path) == ["1.png", "out.mp4"]


@pytest.mark.parametrize("code, words", [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission")])
def test_disk_errors_are_explained(tmp_path, monkeypatch, code, words):
    def refuse(*_):
        raise OSError(code, "refused")

    monkeypatch.setattr(video_write.os, "replace", refuse)
    with pytest.raises(OutputError, match=words), start_writer(tmp_path / "out.mp4") as writer:
        writer.write(torch.rand(3, 48, 64, 3))
    assert everything_in(tmp_path) == []


@posix
@pytest.mark.parametrize("name", ["out.mkv", "out.mp4", "frames/"])
def test_full_disk_leaves_nothing(tmp_path, name):
    """A real refusal by the system: files may not grow beyond 100 kB."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = 320 if name == "frames/" else 64
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(OutputError, match="cannot write"):
            with VideoWriter(f"{tmp_path}/{name}", width=size, height=size, fps=25, crf=0) as writer:
                for _ in range(20):
                    writer.write(torch.rand(10, size, size, 3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert everything_in(tmp_path) == []


def test_wrong_frames_are_refused(tmp_path):
    with start_writer(tmp_path / "out.mp4") as writer:
        for frames in (torch.rand(1, 3, 48, 64), torch.rand(48, 64, 3), torch.zeros(1, 48, 64, 3, dtype=torch.uint8)):
            with pytest.raises(InputError, match="expected float"):
                writer.write(frames)
        with pytest.raises(InputError, match="timestamps"):
            writer.write(torch.rand(2, 48, 64, 3), [0])
        writer.write(torch.rand(1, 48, 64, 3))


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
