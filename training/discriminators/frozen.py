"""Networks that do not train: for good, or while another one does. Gradients still flow through them to their input."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def freeze(module: Module) -> Module:
    """Turn a network's training off for good, and return it in eval mode."""
    return module.requires_grad_(False).eval()


@contextmanager
def held(module: nn.Module) -> Iterator[None]:
    """Keep a network's parameters out of whatever is computed inside; they train again afterwards."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
