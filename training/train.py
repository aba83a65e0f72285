"""`python -m training.train`: run a recipe. Parses the command line and prints; the trainer does the work."""

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from adcvsr_core.errors import AdcvsrError, ConfigError

from .config import TrainConfig, override
from .export import read_weights
from .recipes import RECIPES, get_recipe
from .trainer import Trainer


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 = complete, 3 = stopped by a signal and resumable, 1 = failed."""
    options = _parser().parse_args(arguments)
    try:
        config = _configure(options)
        init = read_weights(options.init, config.student) if options.init else None
        trainer = Trainer(config, options.output, options.data, init=init, resume=options.resume)
        complete = trainer.run(_Progress(config))
    except AdcvsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if complete:
        print(f"done: {options.output / 'student.safetensors'}")
        return 0
    print(f"stopped after step {trainer.step}; the same command with --resume goes on")
    return 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.train", description="Train a student by a recipe.")
    parser.add_argument("--recipe", required=True, choices=sorted(RECIPES))
    parser.add_argument("--output", required=True, type=Path, help="folder of the run")
    parser.add_argument("--data", type=Path, default=Path("bundled_data"), help="folder made by prepare_bundled_data")
    parser.add_argument("--seed", type=int, help="of the weights and of every sample")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --output")
    parser.add_argument("--init", type=Path, help="student.safetensors to begin with")
    parser.add_argument(
        "--max-steps", type=int, help="shorten the run to this many steps; the schedule shortens with it"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting, repeatable"
    )
    return parser


def _configure(options: argparse.Namespace) -> TrainConfig:
    config = override(get_recipe(options.recipe), options.set)
    if options.seed is not None:
        config = dataclasses.replace(config, seed=options.seed)
    return config if options.max_steps is None else shorten(config, options.max_steps)


def shorten(config: TrainConfig, max_steps: int) -> TrainConfig:
    """Cut a run to `max_steps`, later stages first; each stage's schedule ends where the stage now ends."""
    if max_steps < 1:
        raise ConfigError(f"--max-steps {max_steps} is below 1")
    stages, left = [], max_steps
    for stage in config.stages:
        if left:
            stages.append(dataclasses.replace(stage, steps=min(stage.steps, left)))
            left -= stages[-1].steps
    return dataclasses.replace(config, stages=tuple(stages))


class _Progress:
    """Prints a line every 25 steps."""

    def __init__(self, config: TrainConfig):
        self.total = config.total_steps
        self.started, self.first, self.ratios = time.monotonic(), None, []

    def __call__(self, line: dict[str, Any]) -> None:
        if "skipped" in line:
            print(f"skipped a step: {line['skipped']}", file=sys.stderr)
            return
        self.first = line["step"] if self.first is None else self.first
        self.ratios.append(line["ratio"])
        if (line["step"] + 1) % 25:
            return
        done = line["step"] + 1
        per_step = (time.monotonic() - self.started) / (done - self.first)
        ratio = sum(self.ratios) / len(self.ratios)
        self.ratios.clear()
        print(
            f"{line['stage']} {done}/{self.total}  loss {line['loss']:.5f}  loss/bicubic {ratio:.4f}  "
            f"{per_step:.2f} s/step  {per_step * (self.total - done) / 60:.1f} min left",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
