"""`python -m training.make_bundled --data bundled_data --out runs/bundled`: a bundled model, from nothing to its files.

Runs the recipes of `training.bundled_recipes` one after the other, each from the result of the one before, fills the
teacher's cache between, and exports both ends. Stop it at will, or with `--minutes`: the same command goes on where it
was. Knows nothing about how a recipe is trained.
"""

import _thread
import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from . import cache_teacher, export, train
from .checkpoints import list_checkpoints
from .config import TrainConfig
from .peers import PEERS
from .recipes import get_recipe

TEACHER = "realsr-df2k"
# model -> (recipe, those whose mean it begins with) in order; then which recipes' mean is which file.
CHAINS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "default": (
        ("bundled_2d", ()),
        ("bundled_stage1", ("bundled_2d",)),
        ("bundled_steady", ("bundled_stage1",)),
        ("bundled_text", ("bundled_steady",)),
        ("bundled_blocks", ("bundled_text",)),
        ("bundled_finish", ("bundled_text", "bundled_blocks")),
        ("bundled_rich", ("bundled_finish", "bundled_blocks")),
    ),
    "nano": (
        ("nano_2d", ()),
        ("nano_stage1", ("nano_2d",)),
        ("nano_steady", ("nano_stage1",)),
        ("nano_text", ("nano_stage1", "nano_steady")),
        ("nano_blocks", ("nano_text",)),
        ("nano_rich", ("nano_text", "nano_blocks")),
    ),
}
RESULTS = {
    "default": {
        "default": ("bundled_finish", "bundled_blocks"),
        "default.rich": ("bundled_rich",),
    },
    "nano": {"nano": ("nano_text", "nano_blocks"), "nano.rich": ("nano_rich",)},
}
_GPU_BATCH, _GPU_WORKERS = 16, 12
_INTERRUPTED = 3


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 = complete, 3 = stopped and resumable, 1 = failed."""
    options = _parser().parse_args(arguments)
    with _time_limit(options.minutes):
        try:
            for recipe, begins_with in CHAINS[options.model]:
                status = _train(recipe, begins_with, options)
                if status:
                    return status
        except KeyboardInterrupt:  # between two recipes
            return _INTERRUPTED
    for name, recipes in RESULTS[options.model].items():
        runs = [str(options.out / recipe) for recipe in recipes]
        target = options.out / f"{name}.safetensors"
        status = export.main([*runs, "--out", str(target), "--dtype", "float16"])
        if status:
            return status
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.make_bundled", description="Train a bundled model from nothing and export it."
    )
    parser.add_argument("--data", type=Path, default=Path("bundled_data"), help="folder of prepare_bundled_data")
    parser.add_argument("--out", required=True, type=Path, help="folder for a run of each recipe and the results")
    parser.add_argument("--model", choices=sorted(CHAINS), default="default")
    parser.add_argument("--minutes", type=float, help="stop after so long; the same command goes on")
    parser.add_argument("--budget", type=float, default=1.0, help="share of every stage's steps, to try the whole")
    parser.add_argument(
        "--gpu",
        action="store_true",
        help=f"for one data-centre GPU beside 16 cores: {_GPU_BATCH} times the clips a step, {_GPU_WORKERS} processes",
    )
    return parser


def _train(recipe: str, begins_with: tuple[str, ...], options: argparse.Namespace) -> int:
    """Run a recipe to its end, if that was not reached before."""
    run = options.out / recipe
    if (run / export.STUDENT).exists():
        return 0
    config = get_recipe(recipe)
    common = ["--recipe", recipe, "--data", str(options.data)]
    for setting in _settings(config, options):
        common += ["--set", setting]
    if config.teacher.kind != "ground_truth":
        status = cache_teacher.main(common)
        if status:
            return status
    own = []
    if begins_with:
        init = options.out / f"{recipe}.init.safetensors"
        runs = [str(options.out / name) for name in begins_with]
        status = 0 if init.exists() else export.main([*runs, "--out", str(init)])
        if status:
            return status
        own += ["--init", str(init)]
    if list_checkpoints(run / "checkpoints"):
        own.append("--resume")
    return train.main([*common, "--output", str(run), *own])


def _settings(config: TrainConfig, options: argparse.Namespace) -> Iterator[str]:
    for index, stage in enumerate(config.stages):
        if options.budget != 1:
            yield f"stage{index}.steps={max(1, round(options.budget * stage.steps))}"
        if options.gpu:
            yield f"stage{index}.batch={_GPU_BATCH * stage.batch}"
    if options.gpu:
        yield f"data.workers={_GPU_WORKERS}"
    if config.data.pool:
        # The GPU's larger steps would go round a small pool many more times.
        factor = options.budget * (_GPU_BATCH if options.gpu else 1)
        yield f"data.pool={max(2, round(factor * config.data.pool))}"
    if config.teacher.kind == "peer":
        yield f"teacher.path={options.data / 'peers' / PEERS[TEACHER]}.param"
        yield f"teacher.cache={options.out / 'teacher'}"


@contextlib.contextmanager
def _time_limit(minutes: float | None) -> Iterator[None]:
    """Interrupt this process after a while, as Ctrl-C would."""
    if minutes is None:
        yield
        return
    timer = threading.Timer(60 * minutes, _thread.interrupt_main, [signal.SIGINT])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


if __name__ == "__main__":
    sys.exit(main())
