"""Laws of conversion: other programs' weights give other programs' numbers, and nothing is dropped, guessed or run."""

import dataclasses
import datetime
import os
import pathlib
import re
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adcvsr_core.checkpoint import detect_layout, load_student, save_student
from adcvsr_core.config import PRESETS, StudentConfig
from adcvsr_core.convert import convert_adcsr, key_table, with_temporal
from adcvsr_core.errors import CheckpointError, ConfigError
from adcvsr_core.streaming import TemporalBlock
from adcvsr_core.student import Student

SMALL = StudentConfig(
    channels=(8, 16, 24, 24),
    layers=1,
    heads=(1, 2, 2, 0),
    mid_heads=2,
    decoder_channels=(4, 8, 8, 8),
    decoder_layers=0,
    temporal="none",
    norm_groups=4,
)


# The official pair, from a student


def official_pair(student: Student) -> tuple[OrderedDict, dict[str, Tensor]]:
    """Return what net_params_200.pkl and halfDecoder.ckpt["state_dict"] would hold for a 2D student."""
    net, half, weights = {}, {}, student.state_dict()
    for key, names in key_table(student.config).items():
        for name, tensor in zip(names, weights[key].chunk(len(names)), strict=True):
            tensor = tensor.contiguous()
            if name.startswith("unet."):
                net["body.1." + name[5:]] = tensor
            elif name.startswith("decoder.mid_block."):
                net["body.2." + name[18:]] = tensor
                half[name] = torch.randn_like(tensor)  # another one, for training targets only
            else:
                half[name] = tensor
    half["decoder.conv_in.weight"] = torch.randn(student.config.decoder_channels[-1], 4, 3, 3)
    half["decoder.conv_in.bias"] = torch.randn(student.config.decoder_channels[-1])
    blocks = [*(f"down_blocks.{i}" for i in range(4)), "mid_block", *(f"up_blocks.{i}" for i in range(4))]
    for number, block in enumerate([*blocks, "conv_norm_out", "activation", "conv_out"]):
        for key in [key for key in net if key.startswith(f"body.1.{block}.")]:
            net[key.replace(f"body.1.{block}.", f"body.1.body.{number}.")] = net[key]
    return OrderedDict(("module." + key, tensor) for key, tensor in net.items()), half


def randomize(student: Student) -> Student:
    """Give norms and biases an effect, too."""
    with torch.no_grad():
        for weight in student.parameters():
            if weight.ndim == 1:
                weight.add_(0.2 * torch.randn_like(weight))
    return student


class Pair:
    """The two official files of a small student, to be spoiled."""

    def __init__(self, student: Student, folder: Path):
        self.student = student
        self.net_path, self.half_path = folder / "net_params_200.pkl", folder / "halfDecoder.ckpt"
        self.net, self.half = official_pair(student)
        self.extra: dict = {}

    def convert(self) -> Student:
        torch.save(self.net, self.net_path)
        torch.save(self.extra | {"state_dict": self.half}, self.half_path)
        return convert_adcsr(self.net_path, self.half_path, SMALL)


@pytest.fixture(scope="module")
def small_student() -> Student:
    torch.manual_seed(0)
    return randomize(Student(SMALL)).eval()


@pytest.fixture
def pair(small_student: Student, tmp_path: Path) -> Pair:
    return Pair(small_student, tmp_path)


def assert_same_weights(one: Student, other: Student) -> None:
    weights, expected = one.state_dict(), other.state_dict()
    assert weights.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(weights[key], tensor), key


@pytest.mark.parametrize("config", [SMALL, PRESETS["adcvsr"], dataclasses.replace(SMALL, layers=2, decoder_layers=1)])
def test_key_table_is_a_bijection_over_every_spatial_weight(config: StudentConfig) -> None:
    with torch.device("meta"):
        keys = set(Student(config).state_dict())
    table = key_table(config)
    assert table.keys() == {key for key in keys if "temporal" not in key}
    names = [name for names in table.values() for name in names]
    assert len(names) == len(set(names))
    assert all(("qkv" in key) == (len(names) == 3) for key, names in table.items())


def test_full_size_counts_are_the_official_ones() -> None:
    with torch.device("meta"):
        net, half = official_pair(Student(PRESETS["adcsr"]))
    assert len(net) == 1076
    assert sum(".body.1.body." in key for key in net) == 524
    unique = {key: tensor for key, tensor in net.items() if ".body.1.body." not in key}
    assert len(unique) == 552 and sum(tensor.numel() for tensor in unique.values()) == 446_321_744
    assert len(half) == 138


def test_official_pair_gives_the_same_student(pair: Pair) -> None:
    converted = pair.convert()
    assert converted.config == SMALL
    assert not converted.training and not any(weight.requires_grad for weight in converted.parameters())
    assert_same_weights(converted, pair.student)


def test_official_files_are_recognised(pair: Pair) -> None:
    pair.convert()
    assert detect_layout(pair.net_path) == "adcsr_net"
    assert detect_layout(pair.half_path) == "adcsr_decoder"


def test_order_prefix_precision_and_copies_do_not_matter(pair: Pair) -> None:
    names = sorted(pair.net, reverse=True)
    pair.net = {name.removeprefix("module."): nn.Parameter(pair.net[name].double()) for name in names}
    pair.half = dict(reversed(pair.half.items()))
    assert_same_weights(pair.convert(), pair.student)


def test_decoder_mid_block_comes_from_the_trained_net(pair: Pair) -> None:
    for name in [name for name in pair.half if name.startswith(("decoder.mid_block.", "decoder.conv_in."))]:
        pair.half[name] = torch.full_like(pair.half[name], float("nan"))
    assert_same_weights(pair.convert(), pair.student)


def test_the_rest_of_a_training_checkpoint_is_ignored(pair: Pair) -> None:
    pair.half |= {"encoder.conv_in.weight": torch.zeros(3), "quant_conv.bias": torch.zeros(1), "loss.x": torch.zeros(2)}
    pair.half["logvar"] = 3  # not even a tensor
    assert_same_weights(pair.convert(), pair.student)


@pytest.mark.parametrize(
    "duplicate, original",
    [
        ("body.0.resnets.0.conv1.weight", "down_blocks.0.resnets.0.conv1.weight"),
        ("body.4.attentions.0.proj_in.bias", "mid_block.attentions.0.proj_in.bias"),
        ("body.8.resnets.1.conv2.bias", "up_blocks.3.resnets.1.conv2.bias"),
        ("body.9.weight", "conv_norm_out.weight"),
        ("body.11.bias", "conv_out.bias"),
    ],
)
def test_duplicates_that_differ_are_refused(pair: Pair, duplicate: str, original: str) -> None:
    key = f"module.body.1.{duplicate}"
    pair.net[key] = pair.net[key].clone()
    assert_same_weights(pair.convert(), pair.student)
    pair.net[key].view(-1)[-1] += 1e-3
    with pytest.raises(CheckpointError, match=f"{re.escape(duplicate)} differs from .*{re.escape(original)}"):
        pair.convert()


@pytest.mark.parametrize("key", ["body.1.body.10.weight", "body.1.body.12.weight", "body.1.body.0.nonsense"])
def test_duplicates_of_nothing_are_refused(pair: Pair, key: str) -> None:
    pair.net["module." + key] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=re.escape(key)):
        pair.convert()


def test_missing_unknown_and_misshapen_keys_are_named(pair: Pair) -> None:
    def check(message: str, net: dict | None = None, half: dict | None = None) -> None:
        complete = pair.net, pair.half
        pair.net, pair.half = pair.net | (net or {}), pair.half | (half or {})
        pair.net, pair.half = ({k: v for k, v in d.items() if v is not None} for d in (pair.net, pair.half))
        with pytest.raises(CheckpointError, match=message):
            pair.convert()
        pair.net, pair.half = complete

    check(r"1 missing keys: unet\.conv_in\.weight", net={"module.body.1.conv_in.weight": None})
    check(r"1 missing keys: .*mid_block\.attentions\.0\.to_k\.bias", net={"module.body.2.attentions.0.to_k.bias": None})
    check(r"1 missing keys: decoder\.conv_out\.bias", half={"decoder.conv_out.bias": None})
    check(r"1 unknown keys: .*time_embedding", net={"module.body.1.time_embedding.linear_1.weight": torch.zeros(1)})
    check(r"1 unknown keys: body\.3\.weight", net={"module.body.3.weight": torch.zeros(1)})
    check(r"1 unknown keys: decoder\.extra", half={"decoder.extra": torch.zeros(1)})
    check(r"1 unknown keys: ema\.decoder\.conv_out\.bias", half={"ema.decoder.conv_out.bias": torch.zeros(1)})
    check(r"conv_in\.bias \[9\] instead of \[8\]", net={"module.body.1.conv_in.bias": torch.zeros(9)})
    check(r"qkv\.bias", net={"module.body.2.attentions.0.to_k.bias": torch.zeros(7)})
    check(r"conv_in\.bias holds NaN", net={"module.body.1.conv_in.bias": torch.full((8,), float("nan"))})
    check(r"conv_in\.bias is a int; expected a tensor", net={"module.body.1.conv_in.bias": 3})


def test_wrong_files_are_refused(pair: Pair, tmp_path: Path) -> None:
    pair.convert()
    net, half, ours = pair.net_path, pair.half_path, tmp_path / "m.safetensors"
    save_student(pair.student, ours)
    (tmp_path / "text").write_text("hello")
    with zipfile.ZipFile(tmp_path / "plain.zip", "w") as archive:
        archive.writestr("a/b.txt", "hello")
    for first, second, message in (
        (half, net, "the other one of AdcSR's two files"),
        (net, net, "the other one of AdcSR's two files"),
        (ours, half, "PyTorch archives"),
        (net, tmp_path, "PyTorch archives"),
        (tmp_path / "none.pkl", half, r"cannot read .*none\.pkl"),
        (tmp_path / "text", half, "no PyTorch archive"),
        (tmp_path / "plain.zip", half, "no PyTorch archive"),
    ):
        with pytest.raises(CheckpointError, match=message):
            convert_adcsr(first, second, SMALL)
    with pytest.raises(CheckpointError, match=r"wrongly shaped"):
        convert_adcsr(net, half, dataclasses.replace(SMALL, channels=(8, 16, 32, 32)))


@pytest.mark.parametrize("keep", [0, 3, 4, 100, 0.3, 0.9, -1])
def test_truncated_pair_is_an_error(pair: Pair, keep: float) -> None:
    pair.convert()
    data = pair.net_path.read_bytes()
    pair.net_path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"net_params_200\.pkl"):
        convert_adcsr(pair.net_path, pair.half_path, SMALL)


def test_damaged_bytes_are_noticed(pair: Pair) -> None:
    pair.convert()
    data = bytearray(pair.net_path.read_bytes())
    weights = pair.student.unet.conv_in.weight.detach().contiguous().numpy().tobytes()
    position = data.index(weights)
    data[position + 5] ^= 1
    pair.net_path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        convert_adcsr(pair.net_path, pair.half_path, SMALL)


def test_legacy_file_is_told_to_be_saved_anew(pair: Pair) -> None:
    pair.convert()
    torch.save(pair.net, pair.net_path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before 1\.6 .*torch\.save\(torch\.load"):
        convert_adcsr(pair.net_path, pair.half_path, SMALL)


# Foreign and hostile objects


class Payload:
    """Runs a command when it is unpickled by something that lets it."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"echo ran > {self.marker}",)


def test_hostile_pickle_beside_the_weights_stays_inert(pair: Pair, tmp_path: Path) -> None:
    pair.extra = {"hyper_parameters": [{"deep": (Payload(tmp_path / "ran"),)}]}
    assert_same_weights(pair.convert(), pair.student)
    assert not (tmp_path / "ran").exists()


def test_hostile_pickle_in_place_of_a_weight_is_refused(pair: Pair, tmp_path: Path) -> None:
    pair.net["module.body.1.conv_in.bias"] = Payload(tmp_path / "ran")
    with pytest.raises(CheckpointError, match=r"conv_in\.bias is a .*system.; expected a tensor"):
        pair.convert()
    pair.net = Payload(tmp_path / "ran")
    with pytest.raises(CheckpointError, match="instead of a dictionary of tensors"):
        pair.convert()
    assert not (tmp_path / "ran").exists()


def test_foreign_objects_are_not_imported(pair: Pair, monkeypatch) -> None:
    module = types.ModuleType("lightning_that_is_not_installed")
    module.Config = type("Config", (dict,), {"__module__": module.__name__})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        pair.extra = {
            "hyper_parameters": module.Config(lr=np.float64(1e-4), when=datetime.datetime(2024, 1, 1)),
            "callbacks": {module.Config: {"best": np.float32(0.5), "where": pathlib.PurePosixPath("/x"), "s": {1, 2}}},
            "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "array": np.arange(5)}],
        }
        torch.save(pair.net, pair.net_path)
        torch.save(pair.extra | {"state_dict": pair.half}, pair.half_path)
    assert_same_weights(convert_adcsr(pair.net_path, pair.half_path, SMALL), pair.student)
    assert module.__name__ not in sys.modules


# Time


@pytest.mark.parametrize("placement", ["blocks", "resnets", "layers"])
def test_new_temporal_blocks_do_nothing(placement: str) -> None:
    flat = randomize(Student(SMALL)).eval()
    video = with_temporal(flat, placement)
    assert video.config == dataclasses.replace(SMALL, temporal=placement) and video.lookahead > 0
    lr = torch.rand(1, 3, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        assert (video(lr) - flat(lr)).abs().max() <= 1e-4
    blocks = [module for module in video.modules() if isinstance(module, TemporalBlock)]
    assert all(block.conv1.weight.abs().max() > 0 and block.conv2.weight.abs().max() == 0 for block in blocks)
    with pytest.raises(ConfigError, match="already has"):
        with_temporal(video)


def test_temporal_blocks_follow_the_dtype() -> None:
    assert {weight.dtype for weight in with_temporal(Student(SMALL).bfloat16()).parameters()} == {torch.bfloat16}


# Full size


@pytest.mark.slow
def test_full_size_official_pair_upscales_with_strong_temporal_weights(tmp_path: Path) -> None:
    from adcvsr_core.config import UpscaleConfig
    from adcvsr_core.engine import upscale

    net_path, half_path = tmp_path / "net_params_200.pkl", tmp_path / "halfDecoder.ckpt"
    flat = randomize(Student(PRESETS["adcsr"])).eval()
    lr = torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = torch.stack([flat(frame[None, None])[0, 0] for frame in lr])
    net, half = official_pair(flat)
    torch.save(net, net_path)
    torch.save({"state_dict": half, "hyper_parameters": {"lr": np.float64(1e-4)}}, half_path)
    del flat, net, half
    video = with_temporal(convert_adcsr(net_path, half_path))
    net_path.unlink()
    assert video.config == PRESETS["adcvsr"]
    assert sum(weight.numel() for weight in video.parameters()) == 487_190_163
    with torch.no_grad():
        sr = video(lr[None])[0]
        assert (sr - expected).abs().max() <= 1e-4
        for module in video.modules():
            if isinstance(module, TemporalBlock):
                module.conv2.weight.normal_(std=0.5 / module.conv2.weight[0].numel() ** 0.5)
    save_student(video, tmp_path / "m.safetensors")
    del video
    student = load_student(tmp_path / "m.safetensors")
    with torch.no_grad():
        moved = student(lr[None])[0]
    assert (moved - expected).std() >= 0.1 * expected.std()
    frames = (lr / 2 + 0.5).permute(0, 2, 3, 1)
    chunks = list(upscale([frames[:1], frames[1:]], student, UpscaleConfig(chunk=1, color="none", cuts=0.0)))
    result = torch.cat(chunks)
    assert result.shape == (4, 256, 256, 3) and result.dtype == torch.float32 and result.isfinite().all()
    whole = (moved / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert (result - whole).abs().max() <= 1e-4
