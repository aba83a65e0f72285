"""`python -m training.cache_teacher --recipe NAME --data DIR --set data.pool=N --set teacher...`: fill the cache.

Super-resolves once every sample that a run with the same settings will train on, and the clips that it will show; the
run then needs no memory for its teacher. Goes on where it was stopped, and checks what is there. Under `accelerate
launch -m training.cache_teacher ...` each process takes its share. Knows nothing about the student.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path

import torch
from torch import Tensor

from adcvsr_core.errors import AdcvsrError, ConfigError

from .clips import to_stderr
from .config import LossConfig, StageConfig, TrainConfig
from .overrides import override
from .processes import Processes
from .recipes import MEMORY_PRESETS, RECIPES, fit_memory, get_recipe
from .sampling import Batches
from .sources import Source, open_source
from .teachers import make_teacher
from .teachers.cached import CachedTeacher
from .validation import Validator, teacher_input

_SECONDS_BETWEEN_LINES = 10.0
# A teacher that moves its parts on and off a small GPU does so once a call.
_CLIPS_AT_ONCE = 4

Item = tuple[str, Tensor]  # key, LR clip [T,3,h,w] in [-1, 1]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 = complete, 3 = interrupted, 1 = failed."""
    options = _parser().parse_args(arguments)
    try:
        config = _configure(options)
        processes = Processes()
        teacher = make_teacher(config.teacher, processes.device)
        items, total = _share(config, options.data, processes)
        _fill(teacher, items, total, processes)
        counts = {"read": teacher.num_read, "computed": teacher.num_computed, "damaged": teacher.num_damaged}
        counts = {name: round(mean * processes.num) for name, mean in processes.mean(counts).items()}
    except AdcvsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 3
    if processes.is_main:
        num_bytes = sum(path.stat().st_size for path in teacher.folder.rglob("*.mkv"))
        print(
            f"{teacher.folder}: {counts['read']} clips were there and are whole, {counts['computed']} computed, of "
            f"which {counts['damaged']} had been damaged; {num_bytes / 1e6:.1f} MB in all"
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.cache_teacher", description="Store what a teacher makes of a run's samples."
    )
    parser.add_argument("--recipe", required=True, choices=sorted(RECIPES))
    parser.add_argument("--data", required=True, type=Path, help="as for training.train")
    parser.add_argument("--seed", type=int, help="as for training.train")
    parser.add_argument("--memory", type=int, choices=sorted(MEMORY_PRESETS), help="as for training.train")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for training.train")
    return parser


def _configure(options: argparse.Namespace) -> TrainConfig:
    config = get_recipe(options.recipe)
    if options.memory is not None:
        config = fit_memory(config, options.memory)
    if options.seed is not None:
        config = dataclasses.replace(config, seed=options.seed)
    config = override(config, options.set)
    if config.teacher.kind in ("ground_truth", "folder"):
        raise ConfigError(
            f'teacher.kind "{config.teacher.kind}" computes nothing that could be stored; use --set teacher.kind=dove, '
            "osediff, peer or checkpoint"
        )
    if not config.teacher.cache:
        raise ConfigError("no place to store: use --set teacher.cache=FOLDER")
    if not config.data.pool:
        raise ConfigError(
            "every step of this run draws new samples, so nothing stored would be used again; use --set data.pool=N, "
            "for this command and for training.train"
        )
    if not any(stage.task == "restore" for stage in config.stages):
        raise ConfigError(f"recipe {config.recipe} has no stage that follows a teacher")
    return config


def _share(config: TrainConfig, data: Path, processes: Processes) -> tuple[Iterable[Item], int]:
    """Return this process's items and their number."""
    index = Path(config.teacher.cache) / "footage"
    report = to_stderr if processes.is_main else _silent
    source = open_source(data, config.data, "train", index=index, report=report)
    pools = [_Pool(config, stage, source, processes) for stage in config.stages if stage.task == "restore"]
    cases = Validator(config, data, Path(), None, index).cases if processes.is_main else []
    shown = [(case.key, teacher_input(case, config)) for case in cases]
    return _items(shown, pools, config.data.workers), len(shown) + sum(map(len, pools))


def _silent(message: str) -> None:
    """The main process says it."""


def _items(shown: list[Item], pools: list["_Pool"], workers: int) -> Iterator[Item]:
    yield from shown
    for pool in pools:
        yield from torch.utils.data.DataLoader(pool, batch_size=None, num_workers=workers)


class _Pool(torch.utils.data.Dataset):
    """One process's share of a stage's distinct samples, as items."""

    def __init__(self, config: TrainConfig, stage: StageConfig, source: Source, processes: Processes):
        # What only losses look at changes nothing of the samples, and takes time to draw.
        bare = dataclasses.replace(stage, loss=LossConfig(), adversary=None)
        self.batches = Batches(source, bare, config.data, config.seed, with_clean=config.teacher.sees == "clean")
        num = min(config.data.pool, stage.steps * stage.batch)
        self.numbers = range(processes.rank, num, processes.num)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Item:
        sample = self.batches.sample(*divmod(self.numbers[index], self.batches.stage.batch))
        return sample["key"], sample.get("clean", sample["lr"])


def _fill(teacher: CachedTeacher, items: Iterable[Item], total: int, processes: Processes) -> None:
    """Ask the teacher for every item; the main process tells how far it is."""
    started = shown = time.monotonic()
    done = 0
    for group in _groups(items):
        teacher(torch.stack([lr for _, lr in group]).to(processes.device), [key for key, _ in group])
        now, done = time.monotonic(), done + len(group)
        if processes.is_main and (now - shown > _SECONDS_BETWEEN_LINES or done == total):
            shown, left = now, (now - started) / done * (total - done)
            share = f" of process 0 of {processes.num}" if processes.num > 1 else ""
            print(f"{done}/{total} clips{share}, {teacher.num_computed} computed, {left / 60:.1f} min left", flush=True)


def _groups(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Put neighbours of equal size together."""
    for _, alike in groupby(items, key=lambda item: item[1].shape):
        while group := list(islice(alike, _CLIPS_AT_ONCE)):
            yield group


if __name__ == "__main__":
    sys.exit(main())
