"""What stands between convolutions, as a textbook writes it and as it is here: `python -m benchmarks.speed.fused`.

Norm and SiLU, GEGLU and residual blocks at the full-size network's widths, then whole networks, each in three ways: the
textbook's operations one by one, ours (written over what nobody else holds; one kernel where Triton runs on a GPU), and
ours with the convolutions of a concatenation split in two, which spares the concatenation. Memory is counted on tensors
without data, where a GroupNorm copies channels_last maps as it does on a GPU. The third way is not built in: this
command is where it can be tried.
"""

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adcvsr_core import fused, layers
from adcvsr_core.layers import ResBlock, make_norm

from .command import Report, Setup, run
from .measuring import Call, in_turns, prepare
from .networks import make_student, random_clip, weights_of

TEXTBOOK, OURS, SPLIT = "textbook", "ours", "ours, split convolutions"
_META = torch.device("meta")


@dataclass(frozen=True)
class Case:
    """One thing that is done in all ways: `make` builds it on a setup's device, `ways` tells those that differ."""

    title: str
    make: Callable[[Setup], Callable[[], Tensor]]
    ways: tuple[str, ...] = (TEXTBOOK, OURS)


@torch.no_grad()
def measure(setup: Setup) -> Report:
    """Time every case's ways in turns, and count their memory."""
    prepare(setup.device)
    report = Report(settings={"weights": "random, but for bundled networks"})
    for case in cases(setup):
        call, counted = case.make(setup), case.make(replace(setup, device=_META))
        calls = {way: _within(way, call) for way in case.ways}
        results = {way: calls[way]().float() for way in case.ways}
        best = in_turns(calls, setup.device, setup.rounds)
        deviation = results[TEXTBOOK].std()
        report.figures[case.title] = {
            way: {
                "ms": 1000 * best[way],
                "counted peak MiB": _within(way, lambda counted=counted: peak_bytes(counted))() / 2**20,
                "largest difference over deviation": float((results[way] - results[TEXTBOOK]).abs().max() / deviation),
            }
            for way in case.ways
        }
        for way in case.ways[1:]:
            report.ratios[f"{case.title}: time, {way} over textbook"] = best[way] / best[TEXTBOOK]
    in_use = {name for (name, *_), works in fused.trusted.items() if works}
    report.settings["Triton kernels in use"] = ", ".join(sorted(in_use)) or "none"
    return report


def cases(setup: Setup) -> list[Case]:
    """Return what is compared: sizes of the full-size network at LR 128x128, frames as many as a device likes."""
    shrink = 8 if setup.tiny else 1
    middle, fine, frames = 64 // shrink, 512 // shrink, 8 if setup.has_gpu else 1
    skip = (TEXTBOOK, OURS, SPLIT)
    made = [
        Case(f"norm and SiLU, 240 channels, {middle}x{middle}", _norm(240, 24, middle, frames)),
        Case(f"norm and SiLU, 64 channels, {fine}x{fine}", _norm(64, 32, fine, frames)),
        Case(f"GEGLU, 960 channels, {middle}x{middle}", _geglu(960, middle, frames)),
        Case(f"block, 480 + 240 to 240 channels, {middle}x{middle}", _block(480, 240, middle, frames), skip),
        Case(f"block, 64 channels, {fine}x{fine}", _block(64, 0, fine, frames)),
    ]
    networks = ("default", "nano", "adcvsr") if setup.has_gpu or setup.tiny else ("default", "nano")
    return made + [Case(f"network {name}", _network(name, 16 * 8 // shrink, frames), skip) for name in networks]


def _norm(channels: int, groups: int, size: int, frames: int) -> Callable[[Setup], Call]:
    def make(setup: Setup) -> Call:
        norm = make_norm("group", groups, channels, 1e-6).to(setup.device, setup.dtype)
        x = _random((frames, channels, size, size), setup)
        return lambda: layers.norm_silu(norm, x)

    return make


def _geglu(channels: int, size: int, frames: int) -> Callable[[Setup], Call]:
    def make(setup: Setup) -> Call:
        x = _random((frames, size * size, 2 * channels), setup)
        return lambda: layers.geglu(x)

    return make


def _block(width: int, skip_width: int, size: int, frames: int) -> Callable[[Setup], Call]:
    def make(setup: Setup) -> Call:
        block = ResBlock(width + skip_width, skip_width or width, "group", 32, 1e-5)
        block = block.requires_grad_(False).to(setup.device, setup.dtype, memory_format=torch.channels_last)
        inputs = [_random((frames, each, size, size), setup) for each in (width, skip_width) if each]
        return lambda: block(*inputs)

    return make


def _network(name: str, size: int, frames: int) -> Callable[[Setup], Call]:
    def make(setup: Setup) -> Call:
        if setup.device == _META and weights_of(name) == "bundled":
            student = make_student(name, replace(setup, device=torch.device("cpu"))).to(_META)
        else:
            student = make_student(name, setup)
        # In training mode nobody looks for NaN, which takes values; nothing else depends on it.
        student, lr = student.train(), random_clip(frames, size, size, setup)
        return lambda: student(lr)

    return make


def _random(shape: tuple[int, ...], setup: Setup) -> Tensor:
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(setup.device, setup.dtype)
    return numbers.to(memory_format=torch.channels_last) if len(shape) == 4 else numbers


# The ways


def _within(way: str, call: Call) -> Call:
    def called() -> object:
        with _WAYS[way]():
            return call()

    return called


@contextmanager
def _textbook() -> Iterator[None]:
    with (
        mock.patch.object(ResBlock, "forward", _textbook_block),
        mock.patch.object(layers, "norm_silu", lambda norm, x, own=False: F.silu(norm(x))),
        mock.patch.object(layers, "geglu", _textbook_geglu),
        mock.patch.object(layers, "add_onto", lambda own, other: own + other),
    ):
        yield


@contextmanager
def _ours() -> Iterator[None]:
    yield


@contextmanager
def _split() -> Iterator[None]:
    with mock.patch.object(ResBlock, "forward", _split_block):
        yield


_WAYS = {TEXTBOOK: _textbook, OURS: _ours, SPLIT: _split}


def _textbook_block(block: ResBlock, x: Tensor, skip: Tensor | None = None) -> Tensor:
    x = x if skip is None else torch.cat((x, skip), dim=1)
    h = block.conv1(F.silu(block.norm1(x)))
    h = block.conv2(F.silu(block.norm2(h)))
    return block.shortcut(x) + h


def _textbook_geglu(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


_our_block = ResBlock.forward


def _split_block(block: ResBlock, x: Tensor, skip: Tensor | None = None) -> Tensor:
    if skip is None:
        return _our_block(block, x)
    h = _convolve_apart(block.conv1, _activate_apart(block.norm1, [x, skip]))
    h = fused.norm_silu(block.norm2, h, own=True)
    return fused.add_onto(block.conv2(h), _convolve_apart(block.shortcut, [x, skip]))


def _convolve_apart(conv: nn.Conv2d, parts: list[Tensor]) -> Tensor:
    """Return the convolution of a concatenation as a sum of convolutions."""
    first, second = conv.weight.split([part.shape[1] for part in parts], dim=1)
    made = F.conv2d(parts[0], first, conv.bias, padding=conv.padding)
    return made.add_(F.conv2d(parts[1], second, padding=conv.padding))


def _activate_apart(norm: nn.Module, parts: list[Tensor]) -> list[Tensor]:
    """Return silu(norm) of the parts of a concatenation, whose groups may lie across the seam."""
    if not isinstance(norm, nn.GroupNorm):
        return [F.silu(part) for part in parts]
    moments = [torch.var_mean(part.float(), dim=(2, 3), correction=0) for part in parts]
    variance, mean = (torch.cat(each, dim=1).unflatten(1, (norm.num_groups, -1)) for each in zip(*moments, strict=True))
    group_mean = mean.mean(2, keepdim=True)
    spread = variance.mean(2, keepdim=True) + (mean - group_mean).square().mean(2, keepdim=True)
    scale = norm.weight.float().view(norm.num_groups, -1) * torch.rsqrt(spread + norm.eps)
    shift = norm.bias.float().view(norm.num_groups, -1) - group_mean * scale
    widths = [part.shape[1] for part in parts]
    factors = zip(
        parts, *(each.flatten(1)[..., None, None].split(widths, dim=1) for each in (scale, shift)), strict=True
    )
    return [F.silu(torch.addcmul(b, part.float(), a), inplace=True).to(part.dtype) for part, a, b in factors]


# Memory


def peak_bytes(call: Call) -> int:
    """Return the most bytes alive at once of what a call makes, on tensors without data."""
    with torch.no_grad(), _Alive() as alive:
        call()
    return alive.peak


class _Alive(TorchDispatchMode):
    """Counts the storages that are made, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {each.untyped_storage()._cdata for each in _tensors((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for each in _tensors(made):
            storage = each.untyped_storage()
            if storage._cdata not in given | self.known:
                self.known.add(storage._cdata)
                weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
        return made

    def _forget(self, key: int, num_bytes: int) -> None:
        self.known.discard(key)
        self.now -= num_bytes


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run("fused", __doc__, measure, arguments)


if __name__ == "__main__":
    sys.exit(main())
