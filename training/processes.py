"""The processes of a run: which one this is and what all of them agree on. Thin over accelerate's PartialState.

One process needs nothing; `accelerate launch` starts more, on one machine or many. Each holds the whole student and
gradients are averaged once per optimizer step, by one explicit all-reduce instead of DistributedDataParallel: steps
that bypass the temporal blocks, two optimizers, accumulation and recomputed activations all work with it as they are,
and a step's arithmetic is the same on one process and on eight. Knows nothing about networks.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator

import torch
from accelerate import PartialState
from torch import Tensor, nn

from adcvsr_core.errors import ConfigError

_BUCKET = 1 << 26  # numbers that travel together: 256 MB in float32
_DATA_PARALLEL = {"NO", "MULTI_GPU", "MULTI_CPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU"}


class Processes:
    """The group of processes that train one student.

    Attributes:
        rank: of this process, from 0.
        num: how many there are.
        device: of this process.
        is_main: whether this one writes files and prints.

    Raises:
        ConfigError: started with FSDP, DeepSpeed or another scheme that splits the network.
    """

    def __init__(self) -> None:
        for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"):
            if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("1", "true", "yes"):
                raise ConfigError(
                    f"accelerate is configured for {name}; this trainer keeps the whole student in every process. "
                    "FSDP2 and DeepSpeed take one network per run, and here student and discriminators train together. "
                    "The student has half a billion parameters at most, which fits. Use plain multi-GPU"
                )
        # Left to itself, accelerate takes several processes without a CUDA device for one.
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self._state = PartialState(cpu=several and not torch.cuda.is_available())
        if self._state.distributed_type.name not in _DATA_PARALLEL:
            raise ConfigError(f"accelerate's {self._state.distributed_type} is not supported; use plain multi-GPU")
        self.rank, self.num = self._state.process_index, self._state.num_processes
        self.device: torch.device = self._state.device
        self.is_main = self._state.is_main_process

    def describe(self) -> str:
        """Say where this process computes and how many there are."""
        return f"{self.device}, {'1 process' if self.num == 1 else f'the first of {self.num} processes'}"

    def wait(self) -> None:
        """Return when every process has come here."""
        self._state.wait_for_everyone()

    def main_first(self) -> contextlib.AbstractContextManager:
        """Let the main process go through a block before the others."""
        return self._state.main_process_first()

    def share(self, module: nn.Module) -> None:
        """Give every process the main one's weights."""
        if self.num > 1:
            for tensor in module.state_dict().values():
                torch.distributed.broadcast(tensor.data, 0)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their mean over the processes. All must have gradients for the same parameters."""
        if self.num == 1:
            return
        with_gradient = [p for p in parameters if p.grad is not None]
        for bucket in _buckets(with_gradient):
            flat = torch.cat([p.grad.flatten() for p in bucket])
            torch.distributed.all_reduce(flat)
            flat /= self.num
            for parameter, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                parameter.grad.copy_(part.view_as(parameter))

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Return each value's mean over the processes; all must give the same names."""
        if self.num == 1 or not values:
            return values
        flat = torch.tensor(list(values.values()), dtype=torch.float32, device=self.device)
        torch.distributed.all_reduce(flat)
        return dict(zip(values, (flat / self.num).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return self.mean({"flag": float(flag)})["flag"] > 0


def _buckets(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        if bucket and sum(p.numel() for p in bucket) + parameter.numel() > _BUCKET:
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


def is_finite(values: Iterable[float | Tensor]) -> bool:
    """Return whether all numbers are finite."""
    return all(torch.isfinite(torch.as_tensor(value)).all().item() for value in values)
