"""Optimizers and their learning rates, by step. Knows nothing about losses."""

import math
from collections.abc import Collection, Iterable

import torch
from torch import nn

from .config import AdversaryConfig, StageConfig


def make_student_optimizer(
    trained: nn.Module, temporal_names: Collection[str], stage: StageConfig, weight_decay: float
) -> torch.optim.Optimizer:
    """Return the optimizer of a module's parameters that train: those over space first, then those over time."""
    spatial, temporal = [], []
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            (temporal if name in temporal_names else spatial).append(parameter)
    groups = [{"params": each, "peak": rate} for each, rate in zip((spatial, temporal), _rates(stage)) if each]
    kind = torch.optim.AdamW if stage.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=stage.learning_rate, betas=stage.betas, weight_decay=weight_decay)


def make_adversary_optimizer(parameters: Iterable[nn.Parameter], config: AdversaryConfig) -> torch.optim.Optimizer:
    """Return the discriminators' optimizer; its rate is constant."""
    return torch.optim.Adam(parameters, lr=config.learning_rate, betas=config.betas)


def set_learning_rates(optimizer: torch.optim.Optimizer, stage: StageConfig, step: int) -> None:
    """Set the rates of one step of a stage: warm-up, then the stage's schedule."""
    share = min(1.0, (step + 1) / max(1, stage.warmup)) * schedule(stage, step)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share


def schedule(stage: StageConfig, step: int) -> float:
    """Return the rate at a step as a share of the top one, without the warm-up."""
    if stage.schedule == "halve":
        return 0.5 if stage.halve_after and step >= stage.halve_after else 1.0
    falling = 0.5 * (1 + math.cos(math.pi * step / stage.steps))
    return stage.final_learning_rate + (1 - stage.final_learning_rate) * falling


def _rates(stage: StageConfig) -> tuple[float, float]:
    return stage.learning_rate, stage.temporal_learning_rate
