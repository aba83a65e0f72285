"""Clips in and out: every frame once, timestamps and sound kept, colours right, no broken file under a good name."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from adcvsr_core.video import CODECS, VideoWriter, read_video
from tests.clips import copy, make_clip, moving_picture, packets, pts_of, whole, write_tone

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


@pytest.mark.parametrize("codec", CODECS)
def test_encoders_hold_few_frames_back(tmp_path, monkeypatch, codec):
    """What they hold is memory: 12 MB for every frame of 4K."""
    if CODECS[codec].encoder not in av.codecs_available:
        pytest.skip(f"this PyAV has no {CODECS[codec].encoder}")
    picture, num_out, held = torch.rand(1, 128, 128, 3), [], []
    writer = VideoWriter(tmp_path / f"out{CODECS[codec].suffixes[-1]}", width=128, height=128, fps=24, codec=codec)
    monkeypatch.setattr(writer._sink, "_mux", lambda packets: num_out.append(len(packets)))
    for num_in in range(1, 121):
        writer.write(picture.roll(num_in, 2))
        held.append(num_in - sum(num_out))
    writer.abort(keep=False)
    assert held[-1] < 120, "nothing came out"
    assert max(held) <= 45


def test_h265_in_mp4_is_tagged_for_every_player(tmp_path):
    if "libx265" not in av.codecs_available:
        pytest.skip("this PyAV has no libx265")
    copy(make_clip(tmp_path / "in.mp4", 3), tmp_path / "out.mp4", codec="h265")
    with av.open(str(tmp_path / "out.mp4")) as out:
        assert out.streams.video[0].codec_context.codec_tag == "hvc1"
