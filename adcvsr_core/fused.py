"""What stands between a block's convolutions and matrices, with little memory moved: norm and SiLU, GEGLU, sums.

Where gradients are recorded all of it is plain PyTorch. At inference, results are written over tensors that nobody else
holds, which changes no bit. On a GPU with Triton, one kernel takes the place of several operations
(triton_kernels.py); it rounds once where they round twice. A kernel is used on a device in a dtype only when it gave
there, on a small random tensor, what plain PyTorch gives in float32; if not, or if it ever fails, plain PyTorch works
from then on and a warning says why. Compilers get plain PyTorch, which they fuse by themselves. Knows nothing about
blocks or networks.
"""

import functools
import importlib.util
import warnings
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .memory import is_out_of_memory

# How far a kernel may be from float32, as a share of the largest number: a rounding of its result, and a little more.
_BOUNDS = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-5}
_DEVICES = ("cuda",)

Operation = Callable[..., Tensor]  # (x, *arguments) -> a new tensor
# Whether a kernel (name, device, dtype, contiguous) is used, of those that were tried in this process.
trusted: dict[tuple[str, torch.device, torch.dtype, bool], bool] = {}


def norm_silu(norm: nn.Module, x: Tensor, own: bool = False) -> Tensor:
    """Return silu(norm(x)).

    Args:
        norm: maps x to its shape.
        x: [N,C,H,W].
        own: whether nobody else holds x, so that it may be written over.
    """
    made = _norm_silu_at_once(norm, x)
    if made is not None:
        return made
    normed = norm(x)
    return F.silu(normed, inplace=(own or normed is not x) and not normed.requires_grad)


def geglu(x: Tensor) -> Tensor:
    """Return value * gelu(gate) of their concatenation: [...,2C] to [...,C], with the exact GELU."""
    kernels = _kernels(x)
    if kernels is not None and x.is_contiguous():
        made = _run(kernels.geglu, plain_geglu, (64, x.shape[-1]), x)
        if made is not None:
            return made
    return plain_geglu(x)


def add_onto(own: Tensor, other: Tensor) -> Tensor:
    """Return own + other, written over `own`, which nobody else may hold, where that gives the same numbers."""
    # Where autocast mixes dtypes, the sum's is the wider.
    return own + other if own.requires_grad or own.dtype != other.dtype else own.add_(other)


def plain_geglu(x: Tensor) -> Tensor:
    """See `geglu`."""
    value, gate = x.chunk(2, dim=-1)
    opened = F.gelu(gate)
    return value * opened if x.requires_grad else opened.mul_(value)


def plain_norm_silu(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return silu(group_norm(x))."""
    return F.silu(F.group_norm(x, num_groups, weight, bias, eps))


def _norm_silu_at_once(norm: nn.Module, x: Tensor) -> Tensor | None:
    """Return silu(norm(x)) where a kernel can make it."""
    # Whoever hooks a norm, or makes one of another kind, means it to be called.
    if type(norm) is not nn.GroupNorm or norm._forward_hooks or norm._forward_pre_hooks:
        return None
    kernels = _kernels(x, norm.weight)
    if kernels is None or not kernels.takes(x):
        return None
    small = kernels.has_small_groups(x, norm.num_groups)
    kernel = kernels.norm_silu_by_group if small else kernels.norm_silu_in_pieces
    arguments = (norm.num_groups, norm.weight, norm.bias, norm.eps)
    return _run(kernel, plain_norm_silu, (2, x.shape[1], 32, 32), x, *arguments)


def _kernels(x: Tensor, *weights: Tensor) -> ModuleType | None:
    """Return the kernels if they are for this tensor."""
    if torch.compiler.is_compiling() or x.device.type not in _DEVICES or x.dtype not in _BOUNDS:
        return None
    recorded = torch.is_grad_enabled() and any(each.requires_grad for each in (x, *weights))
    # Autocast gives norms another dtype.
    return None if recorded or torch.is_autocast_enabled(x.device.type) else _load()


@functools.cache
def _load() -> ModuleType | None:
    """Return the kernels, or None where Triton is not installed, or is and cannot be used."""
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        from . import triton_kernels
    except Exception as error:  # whatever a broken installation says: the run shall go on
        _warn("anywhere", _line(error))
        return None
    return triton_kernels


def _run(kernel: Operation, plain: Operation, trial: tuple[int, ...], x: Tensor, *arguments: object) -> Tensor | None:
    """Run a kernel if it is trusted; at first, try it on a random tensor of shape `trial`.

    Returns:
        its result, or None when plain PyTorch has to make it.
    """
    key = (kernel.__name__, x.device, x.dtype, x.is_contiguous())
    if not trusted.get(key, True):
        return None
    try:
        with torch.cuda.device_of(x):
            fault = None if key in trusted else _fault(kernel, plain, _like(x, trial), arguments)
            trusted[key] = fault is None
            if fault is None:
                return kernel(x, *arguments)
    except Exception as error:
        if is_out_of_memory(error):  # the ladder's to deal with
            raise
        fault = _line(error)
    trusted[key] = False
    _warn(f"on {x.device} in {x.dtype}", f"{kernel.__name__}: {fault}")
    return None


def _fault(kernel: Operation, plain: Operation, x: Tensor, arguments: tuple[object, ...]) -> str | None:
    """Say what is wrong with a kernel's result for x, if anything is."""
    made = kernel(x, *arguments)
    wide = plain(x.float(), *(each.float() if isinstance(each, Tensor) else each for each in arguments))
    difference = float((made.float() - wide).abs().max() / (1 + wide.abs().max()))
    if made.dtype == x.dtype and difference <= _BOUNDS[x.dtype]:
        return None
    return f"it differs from plain PyTorch by {difference:.2g} of the largest number, {_BOUNDS[x.dtype]:g} are allowed"


def _like(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return random numbers in the dtype and layout of x, always the same and without using the global generator."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 1
    is_flat = x.ndim != 4 or x.is_contiguous()
    return numbers.to(x, memory_format=torch.contiguous_format if is_flat else torch.channels_last)


def _line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _warn(where: str, reason: str) -> None:
    warnings.warn(f"no Triton kernels {where} ({reason}); plain PyTorch computes instead, more slowly", stacklevel=3)
