"""`python -m training.train`: run a recipe. Parses the command line and prints; the trainer does the work.

Also under `accelerate launch -m training.train ...`, which starts one process per GPU.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
from pathlib import Path

from torch import Tensor

from adcvsr_core.checkpoint import read_config
from adcvsr_core.degradation import DEGRADATIONS
from adcvsr_core.errors import AdcvsrError, ConfigError

from .config import TrainConfig
from .export import read_weights
from .overrides import override
from .recipes import MEMORY_PRESETS, RECIPES, fit_memory, get_recipe
from .trainer import Trainer


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 = complete, 3 = stopped by a signal and resumable, 1 = failed."""
    options = _parser().parse_args(arguments)
    try:
        config, init = _configure(options)
        if options.dry_run:
            from .dry_run import describe_run

            print(describe_run(config, options.data, init))
            return 0
        trainer = Trainer(config, options.output, options.data, init=init, resume=options.resume)
        if trainer.processes.is_main:
            print(f"{config.recipe}: {config.total_steps} steps, on {trainer.processes.describe()}", flush=True)
        with _progress(trainer, config) as watch:
            complete = trainer.run(watch)
    except AdcvsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not trainer.processes.is_main:
        return 0 if complete else 3
    if complete:
        print("\n".join([f"done: {options.output / 'student.safetensors'}", *held_out_report(options.output)]))
        return 0
    print(f"stopped after step {trainer.step}; the same command with --resume goes on")
    return 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.train", description="Train a student by a recipe.")
    parser.add_argument("--recipe", required=True, choices=sorted(RECIPES))
    parser.add_argument("--output", required=True, type=Path, help="folder of the run")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("bundled_data"),
        help="folder made by prepare_bundled_data, one of your videos and pictures, or a text file that lists them",
    )
    parser.add_argument("--seed", type=int, help="of the weights and of every sample")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --output")
    parser.add_argument("--init", help='weights to begin with: a student\'s safetensors file, or "default"')
    parser.add_argument(
        "--damage",
        nargs="+",
        choices=sorted(DEGRADATIONS),
        help="what low-resolution footage suffers from: the clips that are trained on get it, but for two of five",
    )
    parser.add_argument("--max-steps", type=int, help="end the run, and its last schedule, after so many steps")
    parser.add_argument(
        "--memory", type=int, choices=sorted(MEMORY_PRESETS), help="fit the recipe to a GPU of so many GB"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting")
    parser.add_argument("--dry-run", action="store_true", help="estimate time and memory from one step, train nothing")
    return parser


def _configure(options: argparse.Namespace) -> tuple[TrainConfig, dict[str, Tensor] | None]:
    config = get_recipe(options.recipe)
    if config.student is None:
        if not options.init:
            raise ConfigError(f"recipe {config.recipe} goes on from a model: give --init FILE, or --init default")
        config = dataclasses.replace(config, student=read_config(options.init))
    if options.memory is not None:
        config = fit_memory(config, options.memory)
    if options.seed is not None:
        config = dataclasses.replace(config, seed=options.seed)
    config = override(config, options.set)
    if options.damage:
        mixture = (("clean", 0.4), *((kind, 0.6 / len(options.damage)) for kind in options.damage))
        stages = tuple(dataclasses.replace(stage, mixture=mixture) for stage in config.stages)
        config = dataclasses.replace(config, stages=stages)
    if options.max_steps is not None:
        config = shorten(config, options.max_steps)
    return config, read_weights(options.init, config.student) if options.init else None


def held_out_report(folder: Path) -> list[str]:
    """Return lines that say what became of the held-out clips between the first validation and the last.

    Args:
        folder: of the run.
    """
    lines = (folder / "validation" / "metrics.jsonl").read_text().splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    kinds = [key for key in last if key.startswith("gain_")]
    changes = (
        f"{key.removeprefix('gain_').removesuffix('_db')} {first[key]:+.2f} -> {last[key]:+.2f}" for key in kinds
    )
    report = [f"held-out clips, dB over bicubic: {', '.join(changes)}"]
    if all(last[key] < first[key] for key in kinds):
        report.append(
            "they became worse, so the start is the better model, as far as PSNR tells: lower the rates (--set "
            "stage.learning_rate=..., stage.temporal_learning_rate=...), enlarge the batch, or give more footage"
        )
    return report


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


def _progress(trainer: Trainer, config: TrainConfig) -> contextlib.AbstractContextManager:
    if not trainer.processes.is_main:
        return contextlib.nullcontext()
    from .progress import TrainingProgress

    return TrainingProgress(config.total_steps)


if __name__ == "__main__":
    sys.exit(main())
