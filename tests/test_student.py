"""The network: counts against the papers, shapes, dtypes, the quirks of AdcSR's layers."""

import dataclasses

import pytest
import torch

from adcvsr_core.config import PRESETS, StudentConfig, UpscaleConfig
from adcvsr_core.cost import count_flops, count_parameters, state_bytes
from adcvsr_core.errors import ConfigError, InputError
from adcvsr_core.layers import Attention, Transformer, make_norm
from adcvsr_core.streaming import StreamState
from adcvsr_core.student import Student

FULL = PRESETS["adcvsr"]


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (PRESETS["adcsr"], 456_073_683),
        (FULL, 487_190_163),
        (PRESETS["recurrent"], 456_073_683 + 192 * 240 * 3 * 3),
        (dataclasses.replace(FULL, temporal="resnets"), 531_099_123),
        (dataclasses.replace(FULL, temporal="layers"), 572_935_443),
        (dataclasses.replace(FULL, temporal_kernel=11), 570_134_163),
        (dataclasses.replace(FULL, temporal_hidden=4.0), 580_520_883),
    ],
    ids=["adcsr", "adcvsr", "recurrent", "resnets", "layers", "kernel 11", "hidden x4"],
)
def test_parameter_counts(config, parameters):
    assert count_parameters(config)[0] == parameters


def test_tiny_presets_fit_ten_megabytes_in_fp16():
    for name in set(PRESETS) - {"adcsr", "adcvsr", "recurrent"}:
        assert 2 * count_parameters(PRESETS[name])[0] <= 10e6, name


def test_flops_of_the_full_network():
    # Counted independently in the 2D network: 1,099.0 GFLOP a frame at 128x128, of which attention 109.
    assert count_flops(PRESETS["adcsr"], 128, 128) == pytest.approx(1_099.0e9, rel=1e-3)
    assert count_flops(FULL, 128, 128) == pytest.approx(1_099.0e9 + 31.9e9, rel=1e-3)
    assert count_flops(FULL, 128, 128, temporal_strength=0.0) == count_flops(PRESETS["adcsr"], 128, 128)


def test_counted_state_is_what_a_stream_holds(tiny_config, student):
    state = StreamState()
    for _ in range(22):
        student(torch.rand(1, 1, 3, 32, 48), state, last=False)
    held = sum(piece.numel() * 4 for slot in state.slots.values() for piece in slot.pieces)
    assert held == state_bytes(tiny_config, 32, 48, torch.float32)


def test_state_of_the_full_network():
    assert state_bytes(FULL, 128, 128, torch.float16) / 2**20 == pytest.approx(166.6, abs=0.1)
    stored = state_bytes(FULL, 512, 512, torch.float16)
    assert stored / 2**20 == pytest.approx(2_666, abs=1)
    assert state_bytes(FULL, 512, 512, torch.float16, recompute_skips=True) < 0.5 * stored


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype_runs_and_agrees(tiny_config, student, dtype):
    lr = torch.rand(1, 3, 3, 32, 16) * 2 - 1
    expected = student(lr)
    other = Student(tiny_config).eval().requires_grad_(False)
    other.load_state_dict(student.state_dict())
    sr = other.to(dtype)(lr)
    assert sr.dtype == torch.float32 and sr.shape == (1, 3, 3, 128, 64)
    bound = {torch.float32: 1e-5, torch.float64: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.15}[dtype]
    assert (sr - expected).square().mean().sqrt() < bound * expected.std()


def test_a_bicubic_residual_keeps_more_than_bf16_can(tiny_config):
    config = dataclasses.replace(tiny_config, residual="bicubic", output_scale=0.0, norm="none")
    student = Student(config).bfloat16().eval()
    lr = torch.linspace(-1, 1, 32 * 32).reshape(1, 1, 1, 32, 32).expand(1, 1, 3, 32, 32)
    with torch.no_grad():
        sr = student(lr)
    assert sr.unique().numel() > 2_000


def test_layout_is_channels_last_throughout(student):
    assert student.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    seen = []
    hooks = [
        m.register_forward_hook(lambda _, __, y: seen.append(y.is_contiguous(memory_format=torch.channels_last)))
        for m in student.modules()
        if isinstance(m, torch.nn.Conv2d)
    ]
    student(torch.rand(1, 3, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    assert seen and all(seen)


def test_frames_that_do_not_fit_are_refused(student):
    for lr, message in (
        (torch.rand(1, 1, 3, 30, 32), "32x30.*multiples of 16"),
        (torch.rand(1, 1, 4, 32, 32), "expected floating-point frames"),
        (torch.rand(1, 3, 32, 32), "expected floating-point frames"),
        (torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8), "uint8"),
    ):
        with pytest.raises(InputError, match=message):
            student(lr)
    with pytest.raises(ConfigError, match="temporal_strength 1.5"):
        student(torch.rand(1, 1, 3, 16, 16), temporal_strength=1.5)


def test_heads_are_48_wide_and_scaled_by_their_width():
    attention = Attention(96, 2, qkv_bias=False).eval()
    x = torch.randn(1, 10, 96)
    q, k, v = (part.reshape(1, 10, 2, 48).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=-1))
    weights = (q @ k.transpose(-1, -2) / 48**0.5).softmax(dim=-1)
    expected = attention.out((weights @ v).transpose(1, 2).reshape(1, 10, 96))
    assert torch.allclose(attention(x, (2, 5)), expected, atol=1e-6)


def test_feed_forward_takes_value_first_and_gate_second():
    block = Transformer(8, 1, "none", 32).eval()
    for part in (block.attention.out, block.proj_in, block.proj_out):
        torch.nn.init.zeros_(part.bias)
    torch.nn.init.zeros_(block.attention.out.weight)
    torch.nn.init.eye_(block.proj_in.weight)
    torch.nn.init.eye_(block.proj_out.weight)
    x = torch.randn(1, 8, 1, 1)
    tokens = x[:, :, 0, 0]
    projected = block.ff_in(block.norm2(tokens))
    expected = tokens + tokens + block.ff_out(projected[:, :32] * torch.nn.functional.gelu(projected[:, 32:]))
    assert torch.allclose(block(x)[:, :, 0, 0], expected, atol=1e-6)


def test_groups_divide_widths_that_32_does_not():
    expected = {240: 24, 720: 24, 480: 32, 960: 32, 1440: 32, 1920: 32, 64: 32, 12: 12, 7: 1}
    assert {width: make_norm("group", 32, width, 1e-5).num_groups for width in expected} == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temporal_kernel": 4}, "no centre frame"),
        ({"temporal": "everywhere"}, "expected one of none, blocks"),
        ({"heads": (7, 10, 20, 0)}, "7 heads do not divide a width of 240"),
        ({"channels": (8, 8)}, "four whole numbers"),
        ({"norm": "batch"}, "expected one of group, none"),
        ({"layers": 0}, "layers must be >= 1"),
    ],
)
def test_configs_that_make_no_network_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        StudentConfig(**change)


def test_config_survives_its_json():
    for config in PRESETS.values():
        assert StudentConfig.from_json(config.to_json()) == config
    for text in ("{", "[]", '{"colour": 1}', '{"channels": 3}', "null"):
        with pytest.raises(ConfigError):
            StudentConfig.from_json(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.0}, "scale"),
        ({"chunk": -1}, "chunk is -1"),
        ({"tile": 1.5}, "tile is 1.5"),
        ({"color": "lab"}, "expected one of auto"),
        ({"temporal_strength": 2.0}, "outside"),
        ({"cuts": -0.1}, "outside"),
        ({"detail": 9.0}, "outside"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        UpscaleConfig(**change)
