"""Fused operations: the textbook's numbers to the last bit in plain PyTorch, within a rounding by kernels.

Where Triton is installed, kernels run on a CPU by its interpreter and are compiled for GPUs that are not there. That a
kernel which fails or differs is not used is tried with made-up ones.
"""

import copy
import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import awaken
from einops import rearrange
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from adcvsr_core import fused
from adcvsr_core.config import PRESETS, StepConfig
from adcvsr_core.layers import FrameAttention, ResBlock, Transformer, make_norm
from adcvsr_core.streaming import StreamState
from adcvsr_core.student import Student

has_triton = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not has_triton, reason="the package triton is not installed")
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def textbook_block(block: ResBlock, x: Tensor, skip: Tensor) -> Tensor:
    x = torch.cat((x, skip), dim=1)
    return block.shortcut(x) + block.conv2(F.silu(block.norm2(block.conv1(F.silu(block.norm1(x))))))


def textbook_transformer(layer: Transformer, x: Tensor) -> Tensor:
    h = layer.proj_in(rearrange(layer.norm(x), "n c h w -> n (h w) c"))
    h = h + layer.attention(layer.norm1(h), x.shape[2:])
    value, gate = layer.ff_in(layer.norm2(h)).chunk(2, dim=-1)
    h = h + layer.ff_out(value * F.gelu(gate))
    return x + rearrange(layer.proj_out(h), "n (h w) c -> n c h w", h=x.shape[2])


def textbook_attention(layer: FrameAttention, x: Tensor) -> Tensor:
    h = layer.attention(rearrange(layer.norm(x), "n c h w -> n (h w) c"), x.shape[2:])
    return x + rearrange(h, "n (h w) c -> n c h w", h=x.shape[2])


# Plain PyTorch


@pytest.mark.parametrize("norm", ["group", "none"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layers_give_the_textbooks_bits_and_gradients(norm, layout):
    layers = (
        (ResBlock(12, 8, norm, 4, 1e-5), textbook_block, 2),
        (Transformer(6, 2, norm, 3), textbook_transformer, 1),
        (FrameAttention(6, norm, 3), textbook_attention, 1),
    )
    for layer, textbook, num_inputs in layers:
        inputs = [torch.randn(2, 6, 5, 4).to(memory_format=layout).requires_grad_() for _ in range(num_inputs)]
        kept = [each.detach().clone() for each in inputs]
        with torch.no_grad():
            assert torch.equal(layer(*inputs), textbook(layer, *inputs))
        assert all(torch.equal(a, b) for a, b in zip(inputs, kept, strict=True)), "inputs were written over"
        wanted = [*inputs, *layer.parameters()]
        results = (layer(*inputs), textbook(layer, *inputs))
        gradients = [torch.autograd.grad(result.square().sum(), wanted) for result in results]
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_nothing_is_written_over_that_somebody_holds():
    x = torch.randn(1, 8, 4, 4)
    for norm in (nn.GroupNorm(2, 8), nn.Identity()):
        before = x.clone()
        fused.norm_silu(norm.requires_grad_(False), x)
        assert torch.equal(x, before)
    own, other = torch.randn(3), torch.randn(3)
    assert fused.add_onto(own, other).data_ptr() == own.data_ptr()
    # What autocast or autograd makes of a sum stays so.
    half, weight = torch.ones(3, dtype=torch.float16), torch.ones(3, requires_grad=True)
    assert fused.add_onto(half, other).dtype == torch.float32 and half.eq(1).all()
    fused.add_onto(weight * 2, other).sum().backward()
    assert weight.grad.eq(2).all()


@pytest.mark.parametrize("kind", ["blocks", "layers", "recurrent", "recompute"])
def test_no_push_changes_what_a_stream_holds(kind, tiny_config):
    placement = {"recurrent": "none", "recompute": "blocks"}.get(kind, kind)
    student = awaken(Student(replace(tiny_config, temporal=placement, recurrent=kind == "recurrent")))
    state = StreamState(recompute_skips=kind == "recompute")
    for frames in (torch.rand(1, 2, 3, 16, 16) for _ in range(3)):
        held = [frames, *(piece for slot in state.slots.values() for piece in slot.pieces)]
        before = [each.clone() for each in held]
        student(frames, state, last=False)
        assert all(torch.equal(a, b) for a, b in zip(held, before, strict=True))


class Attended(TorchFunctionMode):
    """Collects what attention is asked for."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.calls.append((args, kwargs or {}))
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def test_full_size_attention_is_fit_for_flash():
    """What PyTorch's flash kernel asks for: no mask, heads of 8 to 256 numbers in eights that lie side by side."""
    with torch.device("meta"):
        student, lr = Student(PRESETS["adcsr"]).train().bfloat16(), torch.empty(1, 1, 3, 64, 96)
    with torch.no_grad(), Attended() as attended:
        student(lr, how=StepConfig(attention_window=64))
    assert len(attended.calls) > 17
    for tensors, settings in attended.calls:
        assert len(tensors) == 3 and not settings
        assert all(each.dtype == torch.bfloat16 and each.stride(-1) == 1 for each in tensors)
        assert all(each.shape[-1] in (48, 256) for each in tensors)


# Whether a kernel is used


def kernels_that(behave) -> SimpleNamespace:
    """Return made-up kernels; `behave` is given what the right one makes, and x."""

    def norm_silu_by_group(x, *arguments):
        return behave(fused.plain_norm_silu(x, *arguments), x)

    def geglu(x):
        return behave(fused.plain_geglu(x), x)

    return SimpleNamespace(
        norm_silu_by_group=norm_silu_by_group,
        geglu=geglu,
        takes=lambda x: True,
        has_small_groups=lambda x, num_groups: True,
    )


@pytest.fixture
def use(monkeypatch):
    """Let the CPU use made-up kernels; counts their calls."""
    monkeypatch.setattr(fused, "_DEVICES", ("cpu",))
    monkeypatch.setattr(fused, "trusted", {})
    calls = []

    def install(behave) -> list[tuple[int, ...]]:
        kernels = kernels_that(lambda made, x: behave(calls.append(tuple(x.shape)) or made, x))
        monkeypatch.setattr(fused, "_load", lambda: kernels)
        return calls

    return install


def make(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor, Tensor]:
    norm = make_norm("group", 4, 8, 1e-5).requires_grad_(False).to(dtype)
    x = torch.randn(1, 8, 6, 6).to(dtype)
    return norm, x, F.silu(norm(x))


def test_a_kernel_is_tried_once_and_used_from_then_on(use):
    calls, (norm, x, expected) = use(lambda made, x: made), make()
    random = torch.get_rng_state()
    for _ in range(2):
        assert torch.equal(fused.norm_silu(norm, x), expected)
    assert calls == [(2, 8, 32, 32), tuple(x.shape), tuple(x.shape)] and torch.equal(random, torch.get_rng_state())
    rows = torch.randn(3, 4, 10)
    assert torch.equal(fused.geglu(rows), fused.plain_geglu(rows)) and calls[3:] == [(64, 10), (3, 4, 10)]


@pytest.mark.parametrize("dtype", list(fused._BOUNDS), ids=str)
def test_a_kernel_that_differs_is_not_used(use, dtype):
    bound = fused._BOUNDS[dtype]
    for error, is_used in ((0.25 * bound, True), (4 * bound, False), (float("nan"), False)):
        fused.trusted.clear()
        use(lambda made, x, error=error: made + (error * (1 + made.abs().max())).to(made.dtype))
        norm, x, expected = make(dtype)
        if is_used:
            fused.norm_silu(norm, x)
        else:
            with pytest.warns(UserWarning, match="no Triton kernels on cpu.*differs from plain PyTorch"):
                assert torch.equal(fused.norm_silu(norm, x), expected)
            assert torch.equal(fused.norm_silu(norm, x), expected)  # and says so once
        assert list(fused.trusted.values()) == [is_used]


@pytest.mark.parametrize("late", [False, True])
def test_a_kernel_that_fails_is_not_used_again(use, late):
    norm, x, expected = make()

    def fail(made, given):
        if not late or given.shape == x.shape:
            raise ValueError("no registers\nleft")
        return made

    calls = use(fail)
    with pytest.warns(UserWarning, match=r"norm_silu_by_group: ValueError: no registers\)"):
        assert torch.equal(fused.norm_silu(norm, x), expected)
    num_calls = len(calls)
    assert torch.equal(fused.norm_silu(norm, x), expected) and len(calls) == num_calls == 1 + late


def test_out_of_memory_is_not_the_kernels_fault(use):
    norm, x, _ = make()
    full = [True]

    def fail_once(made, given):
        if full.pop() if full else False:
            raise torch.OutOfMemoryError("out of memory")
        return made

    calls = use(fail_once)
    with pytest.raises(torch.OutOfMemoryError):
        fused.norm_silu(norm, x)
    fused.norm_silu(norm, x)
    assert list(fused.trusted.values()) == [True] and len(calls) == 3


def test_gradients_autocast_and_hooks_get_plain_pytorch(use):
    calls, (norm, x, expected) = use(lambda made, x: made), make()
    trained = copy.deepcopy(norm).requires_grad_()
    assert fused.norm_silu(trained, x).requires_grad and fused.norm_silu(norm, x.clone().requires_grad_()).requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        fused.norm_silu(norm, x)
    seen = []
    handle = norm.register_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(fused.norm_silu(norm, x), expected) and seen and not calls
    handle.remove()
    with torch.no_grad():
        fused.norm_silu(trained, x)
    assert calls


@pytest.mark.skipif(has_triton, reason="triton is installed")
def test_without_triton_nobody_is_told():
    assert fused._load() is None


# Triton's


def run_checks(what: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.triton_checks", what],
        env=os.environ | environment,
        cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@needs_triton
def test_kernels_give_what_plain_pytorch_gives():
    lines = run_checks("interpret")
    assert len(lines) == (7 + 2 + 2) * 4 + 3 + 1 and lines[-1] == "whole layers"


@needs_triton
def test_kernels_compile_for_gpus(tmp_path):
    assert len(run_checks("compile", TRITON_CACHE_DIR=str(tmp_path))) == 3 * 6
