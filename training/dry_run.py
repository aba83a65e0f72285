"""What a run will need, from the first steps of every stage: `python -m training.train ... --dry-run`.

It uses the real material, teacher and sizes and keeps nothing. Knows nothing about how a step is done.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from .config import TrainConfig
from .progress import memory_peak
from .trainer import Trainer


def describe_run(config: TrainConfig, data: Path, init: dict[str, Tensor] | None) -> str:
    """Return, stage by stage, sizes, seconds a step, hours in all and the peak of memory.

    Raises:
        AdcvsrError: what would have stopped the run.
    """
    lines, total = [f"recipe {config.recipe}, student of {_millions(config)}"], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for index, stage in enumerate(config.stages):
            trainer = Trainer(config, Path(folder) / str(index), data, init=init)
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            seconds = trainer.rehearse(stage)[-1]["seconds"]
            total += seconds * stage.steps
            lines.append(
                f"{stage.name}: {stage.steps} steps of {stage.batch} clips of {stage.num_frames} frames at "
                f"{4 * stage.lr_size}x{4 * stage.lr_size}, training {_count(trainer.objective.trained)}, "
                f"{seconds:.2f} s a step and {seconds * stage.steps / 3600:.1f} h in all, without loading, "
                f"{memory_peak()}"
            )
    lines.append(
        f"in all {total / 3600:.1f} h on {trainer.processes.num} process(es), device {trainer.processes.device}"
    )
    return "\n".join(lines)


def _millions(config: TrainConfig) -> str:
    from adcvsr_core.student import Student

    with torch.device("meta"):
        return f"{sum(p.numel() for p in Student(config.student).parameters()) / 1e6:.1f} M parameters"


def _count(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters() if p.requires_grad) / 1e6:.2f} M parameters"
