"""The averaged weights of a run: an exponential moving average that is validated and exported.

Knows nothing about optimizers or files.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Average:
    """A moving average of the parameters of a module that train.

    Args:
        module: the one that trains; its parameters keep their names, and train or not, while the average lives.
        decay: share of the old average that stays at each update. Early updates use less, (1 + n) / (10 + n), so that
            the start is forgotten.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in _trained(module)}

    @torch.no_grad()
    def update(self, module: nn.Module, num_updates: int) -> None:
        """Take a step towards the parameters that train; `num_updates` came before this one."""
        decay = min(self.decay, (1 + num_updates) / (10 + num_updates))
        for name, value in _trained(module):
            self.values[name].lerp_(value, 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Set the module's parameters to the average."""
        for name, value in _trained(module):
            value.copy_(self.values[name])

    @contextlib.contextmanager
    def inside(self, module: nn.Module) -> Iterator[None]:
        """Let the module have the averaged parameters for a while."""
        own = {name: value.data for name, value in _trained(module)}
        for name, value in _trained(module):
            value.data = self.values[name]
        try:
            yield
        finally:
            for name, value in _trained(module):
                value.data = own[name]

    def load(self, values: dict[str, Tensor], device: torch.device) -> None:
        """Continue from what `values` held when a checkpoint was written."""
        self.values = {name: value.to(device) for name, value in values.items()}


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, value) for name, value in module.named_parameters() if value.requires_grad)
