"""Statistics of GroupNorms that one clip lends to another, frame by frame, at inference.

A tile that normalises by itself gets other colours and contrasts than its neighbours. Tiles that all normalise by one
sample of the whole frame do not. The sample goes through the network as a stream of its own beside the tiles' streams,
in the same pushes. So every layer meets the same frames in the same order in all of them, and statistics need no names:
they are handed on in the order of the calls.
Nothing of it is left in a network after the `with` block. Knows nothing about tiles.
"""

import contextlib
import sys
from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

Moments = tuple[Tensor, Tensor]  # mean and variance of every frame and group, [N,groups], float32 or wider
Exchange = Callable[[nn.GroupNorm, Callable[[], Moments]], Moments]  # (norm, its own) -> those that it shall use
NormStatistics = dict[nn.GroupNorm, list[Moments]]


@contextlib.contextmanager
def noting(network: nn.Module) -> Iterator[NormStatistics]:
    """Note the statistics of every GroupNorm of a network while the block lasts."""
    noted: NormStatistics = {}

    def note(norm: nn.GroupNorm, own: Callable[[], Moments]) -> Moments:
        noted.setdefault(norm, []).append(own())
        return noted[norm][-1]

    with _exchanging(network, note):
        yield noted


@contextlib.contextmanager
def lending(network: nn.Module, noted: NormStatistics) -> Iterator[None]:
    """Let every GroupNorm of a network use what was noted, call by call, instead of its own statistics.

    Args:
        network: what `noting` was given.
        noted: left as it is; the block must make the same calls on as many frames, of any size.
    """
    waiting = {norm: deque(moments) for norm, moments in noted.items()}
    with _exchanging(network, lambda norm, own: waiting[norm].popleft()):
        yield


def moments(norm: nn.GroupNorm, own: Callable[[], Moments]) -> Moments:
    """Return the statistics that a norm shall use: its own, or those that are lent to it."""
    exchange: Exchange | None = getattr(norm, "exchange", None)
    return own() if exchange is None else exchange(norm, own)


def affine(norm: nn.GroupNorm, statistics: Moments) -> Moments:
    """Return GroupNorm with given statistics as a factor and a summand for each channel, [N,C,1,1]."""
    mean, variance = statistics
    weight, bias = (each.to(mean.dtype).view(norm.num_groups, -1) for each in (norm.weight, norm.bias))
    scale = weight * torch.rsqrt(variance + norm.eps)[..., None]
    shift = bias - scale * mean[..., None]
    return tuple(each.flatten(1)[..., None, None] for each in (scale, shift))


@contextlib.contextmanager
def _exchanging(network: nn.Module, exchange: Exchange) -> Iterator[None]:
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    with contextlib.ExitStack() as stack:
        if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
            # Compiled layers do not see hooks that come later. PyTorch before 2.6 cannot set them aside for a while:
            # there they keep their own statistics.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for norm in norms:
            stack.callback(norm.register_forward_hook(_normalise_again).remove)
            norm.exchange = exchange
            stack.callback(delattr, norm, "exchange")
        yield


def _normalise_again(norm: nn.GroupNorm, inputs: tuple[Tensor], normed: Tensor) -> Tensor:
    (x,) = inputs
    scale, shift = affine(norm, moments(norm, lambda: _own_moments(norm, x)))
    # In float32, as F.group_norm computes inside: half-precision factors would lose digits.
    return torch.addcmul(shift, x.to(scale.dtype), scale).to(x.dtype)


def _own_moments(norm: nn.GroupNorm, x: Tensor) -> Moments:
    groups = x.unflatten(1, (norm.num_groups, -1)).to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(groups, dim=(2, 3, 4), correction=0)
    return mean, variance
