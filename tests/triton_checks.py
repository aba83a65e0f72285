"""What tests/test_fused.py runs in processes of their own: `python -m tests.triton_checks interpret` or `compile`.

Triton decides when it is imported whether it interprets kernels on a CPU or compiles them for GPUs, so one process can
only do one of the two. Neither needs a GPU. Prints a line for each thing it did.
"""

import os
import sys

_SHAPES = (  # frames, channels, height, width, groups
    (2, 30, 5, 7, 6),
    (1, 12, 40, 40, 2),
    (1, 240, 4, 4, 24),
    (1, 12, 1, 1, 4),
    (3, 8, 70, 3, 1),
    (1, 1, 5, 4, 1),
    (0, 8, 4, 4, 4),
)


def interpret() -> None:
    """Compare every kernel with plain PyTorch in float32, then let whole layers use them."""
    os.environ["TRITON_INTERPRET"] = "1"
    import torch

    from adcvsr_core import fused, triton_kernels

    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in ("float32", "float16", "bfloat16"):
        dtype = getattr(torch, name)
        for frames, channels, height, width, groups in _SHAPES if name == "float32" else _SHAPES[:2]:
            x = (2 * torch.randn(frames, channels, height, width) + 3).to(dtype)
            arguments = (groups, torch.randn(channels).to(dtype), torch.randn(channels).to(dtype), 1e-5)
            wide = fused.plain_norm_silu(x.float(), groups, *(each.float() for each in arguments[1:3]), 1e-5)
            for layout in (torch.contiguous_format, torch.channels_last):
                for kernel in (triton_kernels.norm_silu_by_group, triton_kernels.norm_silu_in_pieces):
                    made = kernel(x.contiguous(memory_format=layout), *arguments)
                    assert made.is_contiguous(memory_format=layout) or not frames
                    _compare(f"{kernel.__name__} {dtype} {tuple(x.shape)} {layout}", made, wide, dtype)
        x = torch.randn(3, 5, 2 * 1030).to(dtype)
        _compare(f"geglu {dtype}", triton_kernels.geglu(x), fused.plain_geglu(x.float()), dtype)
    _hard_statistics(triton_kernels)
    _whole_layers(fused)


def _compare(what: str, made, wide, dtype) -> None:
    import torch

    assert made.dtype == dtype and made.shape == wide.shape
    bound = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps  # a rounding is half of that
    worst = ((made.float() - wide).abs() / (1 + wide.abs())).max().item() if made.numel() else 0.0
    assert worst <= bound, f"{what}: {worst:.3g}, expected {bound:.3g} or less"
    print(f"{what}: {worst:.2g}")


def _hard_statistics(kernels) -> None:
    """Sums of squares would lose these: a mean far above the deviation, and one pixel that is not as the others."""
    import torch
    import torch.nn.functional as F

    far = torch.randn(1, 4, 40, 40) + 1000
    lone = torch.zeros(1, 4, 40, 40)
    lone[:, :, 0, 0] = 100
    weight, bias = torch.ones(4), torch.zeros(4)
    for x in (far, lone):
        exact = F.silu(F.group_norm(x.double(), 2, weight.double(), bias.double(), 1e-5))
        for kernel in (kernels.norm_silu_by_group, kernels.norm_silu_in_pieces):
            difference = (kernel(x, 2, weight, bias, 1e-5).double() - exact).abs().max().item()
            assert difference < 2e-4 * exact.abs().max().item(), (kernel.__name__, difference)


def _whole_layers(fused) -> None:
    """A block with a skip and a transformer, by kernels that were tried first and trusted."""
    import torch

    from adcvsr_core.layers import ResBlock, Transformer

    x, skip = (torch.randn(2, 8, 6, 4).to(memory_format=torch.channels_last) for _ in range(2))
    block = ResBlock(16, 8, "group", 4, 1e-5).requires_grad_(False)
    transformer = Transformer(8, 1, "group", 4).requires_grad_(False)
    expected = transformer(block(x, skip))
    fused._DEVICES = ("cpu",)
    made = transformer(block(x, skip))
    assert {(name, works) for (name, *_), works in fused.trusted.items()} == {
        ("norm_silu_by_group", True),
        ("geglu", True),
    }
    assert (made - expected).abs().max() < 1e-5 and made.stride() == expected.stride()
    print("whole layers")


def compile_for_gpus() -> None:
    """Compile every kernel to machine code of two generations of GPUs."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from adcvsr_core import triton_kernels as k

    variants = (
        (k._group_kernel, {"BLOCK_P": 128, "BLOCK_C": 16, "stride_c": 1}),
        (k._group_kernel, {"BLOCK_P": 128, "BLOCK_C": 16, "stride_p": 1}),
        (k._moments_kernel, {"BLOCK_P": 32, "BLOCK_C": 64, "stride_c": 1}),
        (k._factors_kernel, {"BLOCK_K": 64, "BLOCK_C": 16}),
        (k._apply_kernel, {"BLOCK_P": 32, "BLOCK_C": 64, "stride_c": 1}),
        (k._geglu_kernel, {"BLOCK": 1024}),
    )
    types = {"eps": "fp32", "stride_n": "i64"} | dict.fromkeys(("means", "spreads", "scales", "shifts"), "*fp32")
    for capability, dtype in ((80, "fp16"), (90, "bf16"), (90, "fp32")):
        data = dict.fromkeys(("x", "y", "weight", "bias"), f"*{dtype}")
        for kernel, fixed in variants:
            known = types | data | dict.fromkeys(fixed, "constexpr")
            signature = {name: known.get(name, "i32") for name in kernel.arg_names}
            source = ASTSource(kernel, signature, constexprs=fixed)
            made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
            assert len(made.asm["cubin"]) > 1000 and f"sm_{capability}" in made.asm["ptx"]
            print(f"{kernel.__name__} {dtype} for {capability}: {len(made.asm['cubin'])} bytes")


if __name__ == "__main__":
    interpret() if sys.argv[1] == "interpret" else compile_for_gpus()
