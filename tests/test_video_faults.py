"""What goes wrong with clips: clear errors, no broken file under a good name, memory that stays flat."""

import errno
import itertools
import signal
import struct
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from adcvsr_core import video_write
from adcvsr_core.errors import Cancelled, InputError, OutputError
from adcvsr_core.video import VideoWriter, read_video, save_png

if sys.platform != "win32":
    import resource

from tests.clips import copy, everything_in, linux, make_clip, packets, posix, pts_of, start_writer, whole, write_tone

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
