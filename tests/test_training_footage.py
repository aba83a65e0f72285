"""A user's own files as training material: cuts, broken files, seeks, targets, pictures, and what is held out."""

import re
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adcvsr_core.errors import InputError
from adcvsr_core.video import read_video
from tests.training_material import drifting, make_footage, smooth_noise, write_video
from training import seeking
from training.clips import Source
from training.config import DataConfig, StageConfig
from training.sampling import Batches, make_loader
from training.seeking import VideoFile, find_cuts, index_video
from training.sources import open_source

THREE_SHOTS = [(0, 14), (14, 34), (34, 51)]


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips: one shot, three shots, a broken file; and a note."""
    return make_footage(tmp_path_factory.mktemp("footage"))


@pytest.fixture(scope="module")
def three_shots() -> np.ndarray:
    return np.concatenate([drifting(seed, stop - start) for seed, (start, stop) in enumerate(THREE_SHOTS, 2)])


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test finds the cuts by itself."""
    monkeypatch.setattr(seeking, "_known", {})


def open_quietly(path: Path, split: str = "train", targets: Path | None = None, **options) -> tuple[Source, list[str]]:
    """Return a source, and what it said."""
    said: list[str] = []
    index = options.pop("index", None)
    return open_source(path, DataConfig(**options), split, targets, index=index, report=said.append), said


def draw(source: Source, seed: int, num_frames: int = 5, size: int = 64):
    return source.draw_clip(np.random.default_rng(seed), num_frames, size)


def frames_of(name: str) -> tuple[str, int, int]:
    """Return the file, the first and the last frame of a clip's name."""
    file, first, last = re.match(r"(.*) #\w+ frames (\d+) to (\d+) by", name).groups()
    return file, int(first), int(last)


def save_picture(path: Path, picture: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


# A folder


def test_cuts_are_never_inside_a_clip_and_broken_files_are_named(footage: Path) -> None:
    train, said = open_quietly(footage)
    held_out, _ = open_quietly(footage, "heldout")
    assert any("broken.mp4" in line and "left out" in line for line in said)
    assert any("notes.md" in line for line in said)
    assert any("two cuts.mp4" in line and "shots 3" in line for line in said)
    shots = {(Path(shot.file).name, shot.start, shot.stop) for shot in (*train.shots, *held_out.shots)}
    assert shots == {("one shot.mp4", 0, 30), *(("two cuts.mp4", *span) for span in THREE_SHOTS)}
    for seed in range(120):
        file, first, last = frames_of(draw(train, seed).name)
        assert any(file.endswith(name) and start <= first and last < stop for name, start, stop in shots)


def test_held_out_shots_are_never_trained_on(footage: Path) -> None:
    train, held_out = (open_quietly(footage, split)[0] for split in ("train", "heldout"))
    spans = [{(shot.file, shot.start) for shot in source.shots} for source in (train, held_out)]
    assert len(spans[0]) == 3 and len(spans[1]) == 1 and not spans[0] & spans[1]
    (file, start), stop = next(iter(spans[1])), held_out.shots[0].stop
    drawn = [frames_of(draw(train, seed).name) for seed in range(80)]
    assert not any(file.endswith(name) and first < stop and start <= last for name, first, last in drawn)
    assert all(file.endswith(frames_of(draw(held_out, seed).name)[0]) for seed in range(10))


def test_renamed_and_further_files_change_no_side(footage: Path, tmp_path: Path) -> None:
    held = open_quietly(footage, "heldout", held_out=0.3)[0].shots
    contents = {(shot.name.rpartition("#")[2], shot.start) for shot in held}
    for file in footage.rglob("*.mp4"):
        (tmp_path / f"renamed {file.name}").write_bytes(file.read_bytes())
    renamed = open_quietly(tmp_path, "heldout", held_out=0.3)[0].shots
    assert {(shot.name.rpartition("#")[2], shot.start) for shot in renamed} == contents


def test_frames_are_the_file_s(footage: Path) -> None:
    """What a clip's name says is what it shows."""
    source, _ = open_quietly(footage, transpose_probability=0.0)
    for seed in range(6):
        clip = draw(source, seed)
        file, first, last = frames_of(clip.name)
        stride, left, top = map(int, re.search(r"by (\d+) at (\d+),(\d+)", clip.name).groups())
        whole = torch.cat(list(read_video(footage / file)))[first : last + 1 : stride]
        expected = whole[:, top : top + 64, left : left + 64]
        expected = expected.flip(0) if "backwards" in clip.name else expected
        assert torch.equal(clip.frames, expected.flip(2) if "mirrored" in clip.name else expected)


def test_a_list_of_files(footage: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"# mine\n\n{footage / 'one shot.mp4'}\nmissing.mp4\n{footage / 'more'}\n")
    source, said = open_quietly(listed, held_out=0.0)
    assert {Path(shot.file).name for shot in source.shots} == {"one shot.mp4", "two cuts.mp4"}
    assert any("missing.mp4" in line and "does not exist" in line for line in said)


def test_one_video_is_a_source_too(footage: Path) -> None:
    source, _ = open_quietly(footage / "more" / "two cuts.mp4", held_out=0.0)
    assert [(shot.start, shot.stop) for shot in source.shots] == THREE_SHOTS


def test_what_holds_nothing_is_refused(footage: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no videos and no pictures"):
        open_quietly(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        open_quietly(tmp_path / "nowhere")
    (tmp_path / "a.mp4").write_bytes((footage / "broken.mp4").read_bytes())
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n")
    said: list[str] = []
    with pytest.raises(InputError, match="none of the 2 files"):
        open_source(tmp_path, DataConfig(), report=said.append)
    assert len(said) == 2 and "a.mp4" in said[0] and "b.png" in said[1]
    with pytest.raises(InputError, match="single shot"):
        open_quietly(footage / "one shot.mp4", "heldout")
    with pytest.raises(InputError, match="held_out is 0"):
        open_quietly(footage, "heldout", held_out=0.0)


def test_what_is_too_small_or_too_short_is_named(footage: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "large.mp4", drifting(6, 12, 128, 160))
    write_video(tmp_path / "small.mp4", drifting(7, 12))
    source, said = open_quietly(tmp_path, held_out=0.0)
    source.check(5, 112)
    assert "small.mp4 (128x96)" in said[-1] and "large.mp4" not in said[-1]
    assert all("large.mp4" in draw(source, seed, size=112).name for seed in range(8))
    with pytest.raises(InputError, match="longest shot has 12 frames"):
        source.check(13, 112)
    with pytest.raises(InputError, match="128 pixels"):
        source.draw_clip(np.random.default_rng(0), 5, 160)


def test_batches_of_footage_need_no_particular_process(footage: Path) -> None:
    """Workers open the files by themselves, also where this process has them open already."""
    source, _ = open_quietly(footage)
    stage = StageConfig(
        name="x", steps=6, batch=2, num_frames=5, lr_size=16, mixture=(("clean", 1.0),), temporal_strength=1.0
    )
    batches = Batches(source, stage, source.data, 0)
    alone = [batch for _, _, batch in make_loader(batches, 0, workers=0)]
    helped = [batch for _, _, batch in make_loader(batches, 0, workers=2)]
    again = [batches[step] for step in reversed(range(6))][::-1]
    for a, b, c in zip(alone, helped, again, strict=True):
        assert a["keys"] == b["keys"] == c["keys"]
        assert torch.equal(a["hr"], b["hr"]) and torch.equal(a["hr"], c["hr"])


# The index


def test_cuts_are_found_once_and_a_changed_file_is_noticed(
    footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = tmp_path / "clips" / "a.mp4"
    video.parent.mkdir()
    video.write_bytes((footage / "more" / "two cuts.mp4").read_bytes())
    fresh, said = open_quietly(video, index=tmp_path / "index")
    assert len(said) == 1 and sorted(tmp_path.iterdir()) == [tmp_path / "clips", tmp_path / "index"]
    assert list(video.parent.iterdir()) == [video]

    monkeypatch.setattr(seeking, "_known", {})
    with monkeypatch.context() as patch:
        patch.setattr(seeking, "index_video", lambda path: pytest.fail("decoded again"))
        stored, said = open_quietly(video, index=tmp_path / "index")
    assert not said and [(s.name, s.start, s.stop) for s in stored.shots] == [
        (s.name, s.start, s.stop) for s in fresh.shots
    ]
    assert stored.shots[0].frames.index == fresh.shots[0].frames.index

    video.write_bytes((footage / "one shot.mp4").read_bytes())
    with pytest.raises(InputError, match="changed or removed while"):
        draw(fresh, 0)
    changed, said = open_quietly(video, index=tmp_path / "index")
    assert len(said) == 1 and [(shot.start, shot.stop) for shot in changed.shots] == [(0, 30)]


def test_a_cut_is_a_high_score_or_one_that_stands_out() -> None:
    scores = np.full(40, 0.02)
    scores[[5, 20]], scores[30:34] = (0.3, 0.9), (0.2, 0.3, 0.25, 0.2)
    assert find_cuts(scores) == [6, 21], "motion was taken for a cut, or a quiet cut for motion"
    assert find_cuts(scores[:0]) == [] and find_cuts(np.array([0.5])) == [1]


def test_an_index_of_another_version_is_made_anew(footage: Path, tmp_path: Path) -> None:
    open_quietly(footage / "one shot.mp4", index=tmp_path)
    (file,) = tmp_path.iterdir()
    content = file.read_text()
    file.write_text(content.replace('"version": 1', '"version": 0'))
    seeking._known.clear()
    _, said = open_quietly(footage / "one shot.mp4", index=tmp_path)
    assert len(said) == 1 and file.read_text() == content


def test_damaged_frames_are_left_out(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", drifting(1, 40), options={"crf": "1", "g": "10", "bf": "0"})
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    path.write_bytes(content)
    index = index_video(path)
    assert "damaged" in index.notes[0] and len(index.shots) >= 1
    used = {frame for start, stop in index.shots for frame in range(start, stop)}
    assert 10 <= len(used) < 40
    truth = torch.from_numpy(drifting(1, 40)).float() / 255
    for start, stop in index.shots:
        got = VideoFile(path, index).read(range(start, stop), 0, 0, 96)
        # Frames are counted as they are displayed; the lost ones are not, so the shot may lie later in the original.
        errors = [(got - truth[s : s + stop - start, :96, :96]).abs().mean() for s in range(40 - (stop - start) + 1)]
        assert min(errors) < 0.03


# Random access

CODECS = {
    "h264.mp4": {},
    "open groups.mp4": {"options": {"crf": "1", "x264-params": "open-gop=1:keyint=12:bframes=3:scenecut=0"}},
    "intra refresh.mp4": {"options": {"crf": "9", "x264-params": "intra-refresh=1:keyint=12:scenecut=0"}},
    "one keyframe.mov": {"options": {"crf": "1", "g": "250", "x264-params": "scenecut=0"}},
    "stream.ts": {},
    "h265.mkv": {"codec": "libx265", "options": {"crf": "5", "x265-params": "log-level=none:keyint=12"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "12", "crf": "10", "cpu-used": "8"}},
    "counted.avi": {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}},
    "ten bits.mov": {"codec": "prores_ks", "pixel_format": "yuv422p10le", "options": {}},
    "varying rate.mp4": {"pts": [40 * index + index % 3 * 11 for index in range(51)]},
}


@pytest.mark.parametrize("name", CODECS)
def test_a_seek_gives_what_playing_gives(name: str, three_shots: np.ndarray, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, three_shots, **CODECS[name])
    index = index_video(path)
    truth = torch.cat(list(read_video(path)))
    assert index.num_frames == len(truth) == 51 and list(index.shots) == THREE_SHOTS
    assert (not index.pts) == (name == "counted.avi") == bool(index.notes)
    video, rng = VideoFile(path, index), np.random.default_rng(0)
    for _ in range(25):
        first, stride = int(rng.integers(48)), int(rng.integers(1, 4))
        frames = range(first, min(51, first + 3 * stride), stride)
        top, left = int(rng.integers(96 - 33)), int(rng.integers(128 - 33))
        expected = truth[frames.start : frames.stop : stride, top : top + 33, left : left + 33]
        assert torch.equal(video.read(frames, top, left, 33), expected), f"{frames} at {left},{top}"


def test_a_seek_decodes_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", drifting(1, 80), options={"crf": "1", "g": "10", "bf": "2"})
    video, numbers = VideoFile(path, index_video(path)), []
    number_of = seeking._OpenVideo._number
    monkeypatch.setattr(seeking._OpenVideo, "_number", lambda *args: numbers.append(number_of(*args)) or numbers[-1])
    video.read(range(68, 72), 0, 0, 32)
    assert numbers[-4:] == [68, 69, 70, 71] and len(numbers) < 24, "decoded from far before the keyframe"
    numbers.clear()
    video.read(range(73, 79, 2), 0, 0, 32)
    assert numbers == list(range(72, 78)), "did not go on where it stood"


def test_a_forked_process_opens_files_anew(footage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = footage / "one shot.mp4"
    index = index_video(path)
    mine = seeking._borrow(path, index)
    assert seeking._borrow(path, index) is mine
    monkeypatch.setattr(seeking, "_owner", -1)
    assert seeking._borrow(path, index) is not mine


def turned(degrees: int) -> Callable[[Path], Path]:
    def turn(path: Path) -> Path:
        a, b, c, d = (n << 16 for n in {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees])
        plain = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
        content = path.read_bytes()
        track = content.index(b"tkhd")
        matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        path.write_bytes(content[:track] + content[track:].replace(plain, matrix, 1))
        return path

    return turn


@pytest.mark.parametrize("size", [(57, 75), (58, 76)])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_turned_and_odd_frames(degrees: int, size: tuple[int, int], tmp_path: Path) -> None:
    pixel_format = "yuv444p" if size[0] % 2 else "yuv420p"
    path = write_video(tmp_path / "a.mp4", drifting(1, 6, *size), pixel_format=pixel_format)
    path = turned(degrees)(path) if degrees else path
    index = index_video(path)
    truth = torch.cat(list(read_video(path)))
    assert (index.height, index.width) == truth.shape[1:3] == (size if degrees % 180 == 0 else size[::-1])
    for top, left in ((0, 0), (7, 3), (index.height - 32, index.width - 32)):
        crop = VideoFile(path, index).read(range(1, 4), top, left, 32)
        assert torch.equal(crop, truth[1:4, top : top + 32, left : left + 32])


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    def stretch(video) -> None:
        video.codec_context.sample_aspect_ratio = Fraction(4, 3)

    path = write_video(tmp_path / "a.mp4", drifting(1, 6), before_header=stretch)
    index = index_video(path)
    truth = torch.cat(list(read_video(path)))
    assert (index.height, index.width) == truth.shape[1:3] == (96, 171)
    assert torch.equal(VideoFile(path, index).read(range(2, 4), 9, 100, 64), truth[2:4, 9:73, 100:164])


# Targets


def make_pair(root: Path, name: str, frames: np.ndarray, target_name: str | None = None) -> None:
    for folder in ("low", "high"):
        (root / folder).mkdir(exist_ok=True)
    small = frames.reshape(len(frames), frames.shape[1] // 4, 4, frames.shape[2] // 4, 4, 3).mean((2, 4))
    write_video(root / "low" / name, small.round().astype(np.uint8), pixel_format="yuv444p")
    write_video(root / "high" / (target_name or name), frames, pixel_format="yuv444p")


def test_targets_give_lr_and_hr_of_the_same_place(three_shots: np.ndarray, tmp_path: Path) -> None:
    make_pair(tmp_path, "a.mp4", three_shots, "a.mkv")
    write_video(tmp_path / "low" / "alone.mp4", drifting(9, 8))
    source, said = open_quietly(tmp_path / "low", targets=tmp_path / "high", transpose_probability=0.5, held_out=0.0)
    assert any("alone.mp4" in line and "left out" in line for line in said)
    assert [(shot.start, shot.stop) for shot in source.shots] == THREE_SHOTS and source.has_lr
    names = set()
    for seed in range(16):
        clip = draw(source, seed)
        assert clip.frames.shape == (5, 64, 64, 3) and clip.lr.shape == (5, 16, 16, 3)
        small = torch.nn.functional.avg_pool2d(clip.frames.permute(0, 3, 1, 2), 4).permute(0, 2, 3, 1)
        assert (small - clip.lr).abs().mean() < 0.01, clip.name
        names |= {word for word in ("mirrored", "transposed", "backwards") if word in clip.name}
    assert names == {"mirrored", "transposed", "backwards"}, "the flips were not tried"
    mixture = (("light", 1.0),)
    stage = StageConfig(name="x", steps=1, batch=2, num_frames=1, lr_size=16, mixture=mixture, temporal_strength=1.0)
    batch = Batches(source, stage, source.data, 0)[0]
    assert all(key.endswith("; as it is") for key in batch["keys"])
    small = torch.nn.functional.avg_pool2d(batch["hr"].flatten(0, 1), 4)
    assert (small - batch["lr"].flatten(0, 1)).abs().mean() < 0.02, "degraded once more"


def test_targets_that_do_not_fit_are_refused(three_shots: np.ndarray, tmp_path: Path) -> None:
    make_pair(tmp_path, "a.mp4", three_shots[:14])
    write_video(tmp_path / "high" / "a.mp4", three_shots[:13], pixel_format="yuv444p")
    with pytest.raises(InputError, match="has 13 frames.*has 14"):
        open_quietly(tmp_path / "low", targets=tmp_path / "high")
    write_video(tmp_path / "high" / "a.mp4", three_shots[:14, :, :96], pixel_format="yuv444p")
    with pytest.raises(InputError, match="96x96.*must be 4 times as large, 128x96"):
        open_quietly(tmp_path / "low", targets=tmp_path / "high")
    write_video(tmp_path / "high" / "a.mkv", three_shots[:14], pixel_format="yuv444p")
    with pytest.raises(InputError, match="several targets"):
        open_quietly(tmp_path / "low", targets=tmp_path / "high")


def test_pictures_have_targets_too(tmp_path: Path) -> None:
    for seed in range(3):
        picture = smooth_noise(96, 128, seed)
        save_picture(tmp_path / "high" / f"{seed}.png", picture)
        small = picture.reshape(24, 4, 32, 4, 3).mean((1, 3)).round().astype(np.uint8)
        save_picture(tmp_path / "low" / f"{seed}.png", small)
    source, _ = open_quietly(tmp_path / "low", targets=tmp_path / "high", held_out=0.0)
    clip = draw(source, 0, num_frames=1)
    small = torch.nn.functional.avg_pool2d(clip.frames.permute(0, 3, 1, 2), 4).permute(0, 2, 3, 1)
    assert (small - clip.lr).abs().max() < 0.003
    with pytest.raises(InputError, match="longest shot has 1 frames"):
        draw(source, 0, num_frames=2)


# Pictures


def test_a_folder_of_pictures_moves(tmp_path: Path) -> None:
    for seed in range(4):
        save_picture(tmp_path / "photos" / f"{seed}.png", smooth_noise(160, 200, seed))
    train, held_out = (open_quietly(tmp_path, split)[0] for split in ("train", "heldout"))
    assert (len(train.stills), len(held_out.stills)) == (3, 1) and not train.shots
    clip = train.draw_clip(np.random.default_rng(0), 4, 64, video=True)
    assert clip.flow is not None and clip.visible.any()
    assert train.draw_crop(np.random.default_rng(0), 64).shape == (64, 64, 3)
    assert held_out.stills[0].label not in {still.label for still in train.stills}


def test_a_broken_picture_is_named_once_and_changes_no_other_draw(tmp_path: Path) -> None:
    for seed in range(4):
        save_picture(tmp_path / f"{seed}.png", smooth_noise(160, 200, seed))
    content = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(content[: len(content) // 2])
    source, said = open_quietly(tmp_path, held_out=0.0)
    first = [draw(source, seed, num_frames=2) for seed in range(12)]
    assert len(said) == 1 and "2.png" in said[0]
    assert not any("2.png" in clip.name for clip in first)
    again = [draw(open_quietly(tmp_path, held_out=0.0)[0], seed, num_frames=2) for seed in reversed(range(12))][::-1]
    assert all(a.name == b.name and torch.equal(a.frames, b.frames) for a, b in zip(first, again, strict=True))
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[: len(content) // 2])
    with pytest.raises(InputError, match="broken pictures in a row"):
        draw(open_quietly(tmp_path, held_out=0.0)[0], 0)


def test_a_picture_is_drawn_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("jpg", "png"):
        Image.fromarray(smooth_noise(80, 200, 1)).save(tmp_path / f"a.{suffix}", exif=exif)
    source, said = open_quietly(tmp_path, held_out=0.0)
    for still in source.stills:
        assert (still.height, still.width) == still.load().shape[:2] == (200, 80)
    draw(source, 0, num_frames=1)
    assert not said


def test_videos_alone_give_crops_and_both_together_give_both(footage: Path, tmp_path: Path) -> None:
    source, _ = open_quietly(footage, held_out=0.0)
    crop = source.draw_crop(np.random.default_rng(0), 64)
    assert crop.shape == (64, 64, 3) and 0 <= crop.min() < crop.max() <= 1
    assert source.draw_clip(np.random.default_rng(0), 5, 64, video=False).flow is None
    (tmp_path / "a.mp4").write_bytes((footage / "one shot.mp4").read_bytes())
    save_picture(tmp_path / "a.png", smooth_noise(160, 200, 0))
    both, _ = open_quietly(tmp_path)
    rngs = [np.random.default_rng(seed) for seed in range(40)]
    assert all(both.draw_clip(rng, 2, 64, video=True).flow is None for rng in rngs[:5])
    assert all(both.draw_clip(rng, 2, 64, video=False).flow is not None for rng in rngs[:5])
    assert {both.draw_clip(rng, 2, 64).flow is None for rng in rngs} == {True, False}
