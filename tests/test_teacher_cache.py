"""The cache of teachers' outputs, and the command that fills it."""

import dataclasses
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from adcvsr_core.checkpoint import save_student
from adcvsr_core.errors import OutputError
from tests.teacher_clips import clip
from training import cache_teacher
from training.overrides import override
from training.recipes import debug
from training.teachers import Teacher
from training.teachers.base import identify
from training.teachers.cached import CachedTeacher
from training.teachers.storage import read_clip, write_clip
from training.teachers.student import StudentTeacher
from training.trainer import Trainer

CPU = torch.device("cpu")


class Counting(Teacher):
    """A teacher that counts its clips; its output depends on the clip, the key and the number of the call."""

    def __init__(self, name: str = "counting"):
        self.identity, self.device, self.calls = identify(kind=name), CPU, []

    def load(self) -> None:
        pass

    def super_resolve(self, lr, keys):
        large = F.interpolate(lr.flatten(0, 1), scale_factor=4.0).unflatten(0, lr.shape[:2])
        for sr, key in zip(large, keys, strict=True):
            self.calls.append(key)
            sr -= 0.01 * len(self.calls)
        return large


def test_cache_computes_once_and_gives_the_same_ever_after(tmp_path):
    lr, keys = clip(3, 4, 3, 6, 10), ["a", "b", "c"]
    teacher, plain = Counting(), Counting()
    first = CachedTeacher(teacher, tmp_path)(lr, keys)
    again = CachedTeacher(teacher, tmp_path)
    torch.testing.assert_close(again(lr.flip(0), keys[::-1]).flip(0), first, rtol=0, atol=0)
    assert teacher.calls == keys and (again.num_read, again.num_computed, again.num_damaged) == (3, 0, 0)
    exact = torch.cat([plain(each[None], [key]) for each, key in zip(lr, keys)])
    assert (first - exact).abs().max() <= 1 / 255 + 1e-6, "8 bits"
    assert not list(tmp_path.rglob("*.part"))


def test_cache_tells_teachers_keys_and_sizes_apart(tmp_path):
    lr = clip(1, 3, 3, 6, 10)
    teacher, other = Counting(), Counting("other")
    cached = CachedTeacher(teacher, tmp_path)
    for _ in range(2):
        for clips, key in ((lr, "a"), (lr, "b"), (lr[:, :2], "a"), (lr[..., :6], "a")):
            assert cached(clips, [key]).shape[-1] == 4 * clips.shape[-1]
        CachedTeacher(other, tmp_path)(lr, ["a"])
    assert len(teacher.calls) == 4 and len(other.calls) == 1 and cached.num_damaged == 0
    identities = [json.loads(path.read_text()) for path in tmp_path.glob("*/identity.json")]
    assert sorted(each["kind"] for each in identities) == ["counting", "other"]


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.999, None])
def test_cache_recomputes_what_was_changed_or_cut(tmp_path, place, caplog):
    lr, teacher = clip(1, 4, 3, 8, 8), Counting()
    first = CachedTeacher(teacher, tmp_path)(lr, ["a"])
    (path,) = tmp_path.rglob("*.mkv")
    data = bytearray(path.read_bytes())
    if place is None:
        path.write_bytes(data[:-20])
    else:
        data[int(place * len(data))] ^= 1
        path.write_bytes(data)
    cached = CachedTeacher(teacher, tmp_path)
    second = cached(lr, ["a"])
    assert (cached.num_damaged, cached.num_computed, len(teacher.calls)) == (1, 1, 2)
    assert "damaged" in caplog.text
    assert (second - first).abs().max() > 0.005, "not what the file held"
    torch.testing.assert_close(CachedTeacher(teacher, tmp_path)(lr, ["a"]), second, rtol=0, atol=0)


def test_cache_is_shared_by_processes_that_fill_it_at_once(tmp_path):
    """Whoever comes first, every reader after them sees one and the same whole clip."""
    lr, teacher = clip(1, 3, 3, 8, 8), Counting()  # its output differs from call to call
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: CachedTeacher(teacher, tmp_path)(lr, ["a"]), range(16)))
    readers = [CachedTeacher(teacher, tmp_path) for _ in range(3)]
    seen = [reader(lr, ["a"]) for reader in readers]
    assert all(torch.equal(each, seen[0]) for each in seen) and all(reader.num_read == 1 for reader in readers)


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OutputError, match="No space left"):
        CachedTeacher(Counting(), tmp_path)(clip(1, 1, 3, 8, 8), ["a"])
    assert not list(tmp_path.rglob("*.mkv")) and not list(tmp_path.rglob("*.part"))


def test_stored_clips_keep_all_levels(tmp_path):
    levels = torch.arange(256.0).repeat(3).view(1, 3, 16, 16) / 127.5 - 1
    path = write_clip(tmp_path, "ab", levels, "a comment")
    torch.testing.assert_close(read_clip(path, (1, 3, 16, 16)), levels)
    assert read_clip(path, (1, 3, 16, 8)) is None


# The command that fills it


def settings(cache: Path, weights: Path, pool: int) -> list[str]:
    """Return the settings of a short run that a student teaches."""
    return [
        "teacher.kind=checkpoint",
        f"teacher.path={weights}",
        f"teacher.cache={cache}",
        f"data.pool={pool}",
        "stage.num_frames=3",
        "stage.steps=2",
    ]


def fill(data: Path, values: list[str], capsys) -> tuple[int, int, int]:
    """Run the command; returns how many clips it read, computed and found damaged."""
    assert cache_teacher.main(["--recipe", "debug", "--data", str(data), *(f"--set={each}" for each in values)]) == 0
    counts = re.search(r": (\d+) clips .*, (\d+) computed, .* (\d+) had", capsys.readouterr().out)
    return tuple(map(int, counts.groups()))


@pytest.fixture
def weights(student, tmp_path) -> Path:
    save_student(student, tmp_path / "teacher.safetensors")
    return tmp_path / "teacher.safetensors"


def test_a_filled_cache_is_all_that_a_run_asks_its_teacher(folder, weights, tmp_path, capsys, monkeypatch):
    """Three stages of 4 samples follow the teacher (one does not), and 4 held-out clips are shown in two ways."""
    values = settings(tmp_path / "cache", weights, 4)
    assert fill(folder, values, capsys) == (0, 3 * 4 + 8, 0)
    assert fill(folder, values, capsys) == (3 * 4 + 8, 0, 0)

    def refuse(teacher):
        raise AssertionError("the run loads its teacher although everything is stored")

    monkeypatch.setattr(StudentTeacher, "load", refuse)
    config = override(debug(), values)
    config = dataclasses.replace(config, stages=config.stages[:2])  # the third does not ask the teacher
    lines = []
    assert Trainer(config, tmp_path / "run", folder).run(lines.append)
    assert [line["stage"] for line in lines] == ["frames", "frames", "clips", "clips"]


def test_filling_goes_on_where_it_stopped(folder, weights, tmp_path, capsys):
    cache = tmp_path / "cache"
    fill(folder, settings(cache, weights, 2), capsys)
    stored = sorted(cache.rglob("*.mkv"))
    stored[0].unlink()
    stored[1].write_bytes(stored[1].read_bytes()[:-1])
    read, computed, damaged = fill(folder, settings(cache, weights, 3), capsys)
    assert (read, computed, damaged) == (len(stored) - 2, 2 + 3, 1), "a gap, a cut file and one more of three stages"


def test_processes_share_the_work(folder, tmp_path):
    config = override(debug(), settings(tmp_path, Path("default"), 5))

    def keys(rank: int, num: int) -> list[str]:
        items, total = cache_teacher._share(config, folder, SimpleNamespace(rank=rank, num=num, is_main=rank == 0))
        found = [key for key, _ in items]
        assert len(found) == total
        return found

    alone, shared = keys(0, 1), [keys(rank, 3) for rank in range(3)]
    assert sorted(alone) == sorted(key for share in shared for key in share)
    assert max(map(len, shared[1:])) - min(map(len, shared[1:])) <= 3, "one a stage at most"


@pytest.mark.parametrize(
    "values, message",
    [
        (["data.pool=3"], "computes nothing that could be stored"),
        (["teacher.kind=checkpoint", "teacher.path=default", "data.pool=3"], "teacher.cache=FOLDER"),
        (["teacher.kind=checkpoint", "teacher.path=default", "teacher.cache=x"], "data.pool=N"),
        (["teacher.kind=checkpoint", "teacher.cache=x", "data.pool=3"], "needs teacher.path"),
    ],
)
def test_the_command_says_what_is_missing(folder, tmp_path, monkeypatch, capsys, values, message):
    monkeypatch.chdir(tmp_path)
    assert cache_teacher.main(["--recipe", "debug", "--data", str(folder), *(f"--set={v}" for v in values)]) == 1
    assert message in capsys.readouterr().err
