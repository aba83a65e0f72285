"""The least time that a GPU could take for a network: modelled, never measured.

Every operation alone takes the longer of its arithmetic at the GPU's rate and its traffic at the memory's; nothing is
fused, attention reads and writes its four tensors once. Programs that fuse may beat it; few come within half of it.
Runs on meta tensors. Knows nothing about students.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .measuring import Call

_FREE = ("empty", "detach")  # allocations and names


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """What long kernels reach on a GPU: `flops` a second in bf16, `bandwidth` in bytes a second."""

    flops: float
    bandwidth: float


# Four fifths of the arithmetic that its maker names (989 TFLOP a second), nine tenths of the traffic (4.8 TB a second).
H200 = Gpu(flops=790e12, bandwidth=4.3e12)


def least_seconds(call: Call, gpu: Gpu) -> float:
    """Return the modelled time of a call whose tensors are all on the meta device."""
    bound = _Bound(gpu)
    with torch.no_grad(), bound, _WholeAttention(bound):
        call()
    return bound.seconds


class _Bound(TorchDispatchMode):
    """Adds up the operations that run under it."""

    def __init__(self, gpu: Gpu):
        super().__init__()
        self.gpu = gpu
        self.seconds = 0.0

    def add(self, flops: float, traffic: int) -> None:
        self.seconds += max(flops / self.gpu.flops, traffic / self.gpu.bandwidth)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        read, written = _tensors((args, kwargs)), _tensors(made)
        views = {each.untyped_storage()._cdata for each in read}
        is_view = all(each.untyped_storage()._cdata in views for each in written) and not func._schema.is_mutable
        if not is_view and not any(name in func._schema.name for name in _FREE):
            count = flop_registry.get(func._overloadpacket)
            flops = count(*args, **kwargs, out_val=made) if count else 0
            self.add(flops, sum(each.nbytes for each in (*read, *written)))
        return made


class _WholeAttention(TorchFunctionMode):
    """Counts attention as the one operation that it is on a GPU; meta tensors would go through its scores."""

    def __init__(self, bound: _Bound):
        super().__init__()
        self.bound = bound

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, v = args[:3]
        made = q.new_empty((*q.shape[:-1], v.shape[-1]))
        scores = q.shape[:-1].numel() * k.shape[-2]
        self.bound.add(2 * scores * (q.shape[-1] + v.shape[-1]), sum(each.nbytes for each in (q, k, v, made)))
        return made


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
