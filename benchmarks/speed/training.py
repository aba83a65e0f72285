"""Seconds and peak memory of a training step, for every stage of the recipes: `python -m benchmarks.speed.training`.

Real steps of the real trainer, on made-up footage, without loading. A CPU tries the recipes of the bundled model and
two of the fine-tunings, a GPU every recipe. A stage that needs files which are not here (a teacher, Stable Diffusion,
perceptual networks) is listed with what it asked for; `--set` and `--features` name them.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from adcvsr_core.checkpoint import read_config
from adcvsr_core.errors import AdcvsrError, ConfigError
from training.config import StageConfig, TrainConfig
from training.export import read_weights
from training.overrides import override
from training.recipes import RECIPES, get_recipe
from training.trainer import Trainer

from .command import Report, Setup, run
from .footage import write_clip
from .measuring import PeakMemory

_SMALL = ("bundled_2d", "bundled_stage1", "bundled_rich", "bundled_stage2", "finetune_full", "finetune_lora")
_TINY = ("debug",)
_NUM_CLIPS = 3  # of which some are held out
_STRIDE = 2  # most frames of the footage between two of a clip
_COST = "seconds a million HR pixels"
_MARGIN = 32  # pixels that footage is larger than a clip


def measure(setup: Setup) -> Report:
    """Rehearse every stage of the chosen recipes."""
    options = setup.options
    names = options.recipes or (_TINY if setup.tiny else tuple(RECIPES) if setup.has_gpu else _SMALL)
    report = Report(settings={"dtype": "each recipe's own", "set": options.set})
    rows = report.figures["a step, without loading"] = {}
    for name in names:
        try:
            config, init = _configure(name, setup)
        except AdcvsrError as error:
            report.not_measured[name] = str(error)
            continue
        for stage in config.stages:
            title = f"{name}: {stage.name}"
            try:
                rows[title] = _rehearse(config, stage, init, setup)
            except AdcvsrError as error:
                report.not_measured[title] = str(error)
    cheapest = min((row[_COST] for row in rows.values()), default=0.0)
    report.ratios = {
        f"{title}: seconds a pixel over the cheapest": row[_COST] / cheapest for title, row in rows.items()
    }
    return report


def _configure(name: str, setup: Setup) -> tuple[TrainConfig, dict[str, Tensor] | None]:
    """Return a recipe without processes that load ahead, and the weights it begins with where it needs any."""
    config = get_recipe(name)
    init = None
    if config.student is None:
        config = replace(config, student=read_config("default"))
        init = read_weights("default", config.student)
    settings = [f"features={setup.options.features}", "data.workers=0", *setup.options.set]
    return override(config, settings), init


def _rehearse(
    config: TrainConfig, stage: StageConfig, init: dict[str, Tensor] | None, setup: Setup
) -> dict[str, float | int | None]:
    edge = 4 * stage.lr_size + _MARGIN
    with tempfile.TemporaryDirectory() as folder, PeakMemory(setup.device) as peak:
        footage = Path(folder) / "footage"
        footage.mkdir()
        for index in range(_NUM_CLIPS):
            write_clip(footage / f"{index}.mp4", _STRIDE * stage.num_frames + 1, edge, edge, seed=index)
        trainer = Trainer(config, Path(folder) / "run", footage, init=init)
        if trainer.processes.device.type != setup.device.type:
            raise ConfigError(f"the trainer takes {trainer.processes.device}; hide the GPU (CUDA_VISIBLE_DEVICES=)")
        with torch.random.fork_rng():
            lines = trainer.rehearse(stage, setup.rounds + 1)
    seconds, pixels = min(line["seconds"] for line in lines), stage.batch * stage.num_frames * (4 * stage.lr_size) ** 2
    return {
        "clips": stage.batch,
        "frames": stage.num_frames,
        "HR size": 4 * stage.lr_size,
        "seconds a step": seconds,
        _COST: seconds / pixels * 1e6,
        "peak GB": None if peak.bytes is None else peak.bytes / 1e9,
    }


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipes", nargs="+", choices=sorted(RECIPES), help="only these")
    parser.add_argument("--features", default="bundled_data", help="folder of prepare_bundled_data")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as training.train takes it")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run("training", __doc__, measure, arguments, _add_options)


if __name__ == "__main__":
    sys.exit(main())
