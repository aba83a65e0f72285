"""Laws of conversion: other programs' weights give other programs' numbers, and nothing is dropped, guessed or run."""

import dataclasses
import datetime
import os
import pathlib
import pickle
import re
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adcvsr_core.checkpoint import detect_layout, load_student, save_student
from adcvsr_core.config import PRESETS, StudentConfig
from adcvsr_core.convert import convert_adcsr, key_table, student_from_sd, with_temporal
from adcvsr_core.errors import CheckpointError, ConfigError
from adcvsr_core.pickles import TorchArchive
from adcvsr_core.streaming import TemporalBlock
from adcvsr_core.student import Student

SMALL = StudentConfig(
    channels=(8, 16, 24, 24),
    heads=(1, 2, 2, 0),
    mid_heads=2,
    decoder_channels=(4, 8, 8, 8),
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

    def __init__(self, folder: Path):
        self.student = randomize(Student(SMALL)).eval()
        self.net_path, self.half_path = folder / "net_params_200.pkl", folder / "halfDecoder.ckpt"
        self.net, self.half = official_pair(self.student)
        self.extra: dict = {}

    def convert(self) -> Student:
        torch.save(self.net, self.net_path)
        torch.save(self.extra | {"state_dict": self.half}, self.half_path)
        return convert_adcsr(self.net_path, self.half_path, SMALL)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def assert_same_weights(one: Student, other: Student) -> None:
    weights, expected = one.state_dict(), other.state_dict()
    assert weights.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(weights[key], tensor), key


@pytest.mark.parametrize("config", [SMALL, PRESETS["adcvsr"], dataclasses.replace(SMALL, layers=1, decoder_layers=1)])
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
        ("body.8.resnets.2.conv2.bias", "up_blocks.3.resnets.2.conv2.bias"),
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


# Hostile and merely foreign pickles


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def payloads(marker: Path) -> dict:
    """Return objects that write a marker file when something unpickles them carelessly."""
    write = f"open({str(marker)!r}, 'w').write('ran')"
    run = Call(os.system, f"echo ran > {marker}")
    return {
        "system": run,
        "eval": Call(eval, write),
        "exec": Call(exec, write),
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
        "nested": {"a": [({"b": (run,)},)], run: "key"},
        "argument": Call(OrderedDict, [("a", run)]),
        "state": Call(OrderedDict, state={"x": run}),
        "path": Call(pathlib.Path, run),
        "partial": Call(map, Call(eval, "exec"), [write]),
        "import": Call(__import__, "this"),
    }


@pytest.mark.parametrize("name", list(payloads(Path("marker"))))
def test_hostile_pickle_beside_the_weights_stays_inert(pair: Pair, tmp_path: Path, name: str) -> None:
    sys.modules.pop("this", None)
    pair.extra = {"hyper_parameters": payloads(tmp_path / "ran")[name]}
    assert_same_weights(pair.convert(), pair.student)
    assert not (tmp_path / "ran").exists() and "this" not in sys.modules


@pytest.mark.parametrize("name", list(payloads(Path("marker"))))
def test_hostile_pickle_in_place_of_a_weight_is_refused(pair: Pair, tmp_path: Path, name: str) -> None:
    pair.net["module.body.1.conv_in.bias"] = payloads(tmp_path / "ran")[name]
    with pytest.raises(CheckpointError, match=r"conv_in\.bias is .*; expected a tensor"):
        pair.convert()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", list(payloads(Path("marker"))))
def test_hostile_pickle_in_place_of_everything_is_refused(pair: Pair, tmp_path: Path, name: str) -> None:
    pair.net = payloads(tmp_path / "ran")[name]
    with pytest.raises(CheckpointError):
        pair.convert()
    assert not (tmp_path / "ran").exists()


def raw_archive(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", struct.pack("<4f", 1, 2, 3, 4))
    return path


def rebuild(storage: str = "FloatStorage", key: str = "0", num: int = 4, offset=0, shape=(4,), stride=(1,)) -> bytes:
    """Return the opcodes of one tensor, without protocol and stop."""

    def plain(value: object) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    pid = b"(" + plain("storage") + f"ctorch\n{storage}\n".encode() + plain(key) + plain("cpu") + plain(num) + b"tQ"
    arguments = pid + plain(offset) + plain(shape) + plain(stride) + b"\x89" + b"N"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def test_raw_tensor_is_read(tmp_path: Path) -> None:
    path = raw_archive(tmp_path / "a.pt", b"\x80\x02}X\x01\x00\x00\x00a" + rebuild(shape=(2, 2), stride=(1, 2)) + b"s.")
    with TorchArchive(path) as archive:
        assert archive.state_dict()["a"].read().tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize(
    "tensor",
    [
        rebuild(num=5),
        rebuild(num=2**62),
        rebuild(storage="DoubleStorage"),
        rebuild(key="1"),
        rebuild(key="../data.pkl"),
        rebuild(shape=(5,)),
        rebuild(offset=1),
        rebuild(offset=-1),
        rebuild(stride=(-1,)),
        rebuild(stride=(2,)),
        rebuild(shape=(1 << 40, 1 << 40), stride=(0, 0)),
        rebuild(shape=(4, 1)),
        rebuild(shape=4),
        rebuild(storage="UnknownStorage"),
        rebuild() + b"}X\x06\x00\x00\x00offsetK\x03sb}X\x05\x00\x00\x00shape(K\x09tsb" + b"N\x85R",
    ],
)
def test_absurd_tensor_is_an_error(tmp_path: Path, tensor: bytes) -> None:
    path = raw_archive(tmp_path / "a.pt", b"\x80\x02}X\x01\x00\x00\x00a" + tensor + b"s.")
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        with TorchArchive(path) as archive:
            archive.state_dict()["a"].read()


def test_a_pickle_cannot_alter_a_tensor_or_the_reader(tmp_path: Path) -> None:
    state = b"}X\x06\x00\x00\x00offsetK\x03sb"  # BUILD with {"offset": 3}
    functions = (
        b"ctorch._utils\n_rebuild_tensor_v2\n" + state + b"0" + b"ctorch._utils\n_rebuild_parameter\n" + state + b"0"
    )
    text = b"\x80\x02" + functions + b"}X\x01\x00\x00\x00a" + rebuild() + state + b"s."
    with TorchArchive(raw_archive(tmp_path / "a.pt", text)) as archive:
        assert archive.state_dict()["a"].read().tolist() == [1, 2, 3, 4]
    slots = b"N}X\x07\x00\x00\x00find_ncN\x86b"
    for target in (b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n", b"cos\nsystem\n"):
        with pytest.raises(CheckpointError, match="damaged"):
            TorchArchive(raw_archive(tmp_path / "b.pt", b"\x80\x02" + target + slots.replace(b"\x07", b"\x07") + b"."))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x09N.",
        b"hello",
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # a memo for 17 GB
        b"\x80\x02Np999999999999\n.",
        b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.",  # a byte array of a terabyte
        b"\x80\x02(" * 50_000,
        b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
        b"\x80\x02\x82\x01.",  # an extension code
        b"\x80\x02X\x01\x00\x00\x00aQ.",
        b"\x80\x02N.",
    ],
)
def test_broken_pickle_is_an_error(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        with TorchArchive(raw_archive(tmp_path / "a.pt", text)) as archive:
            archive.state_dict()


def test_compressed_archive_is_refused(tmp_path: Path) -> None:
    text = b"\x80\x02" + b"N0" * 1_000_000 + b"N."
    with pytest.raises(CheckpointError, match="compressed"):
        TorchArchive(raw_archive(tmp_path / "bomb.pt", text, zipfile.ZIP_DEFLATED))


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


# The independent reference: diffusers' own modules with time and text switched off


def reference_unet(config: StudentConfig, channels_in: int, channels_out: int, **options: object) -> nn.Module:
    from diffusers import UNet2DConditionModel

    settings = dict(
        in_channels=channels_in,
        out_channels=channels_out,
        block_out_channels=config.channels,
        attention_head_dim=[*config.heads[:3], config.mid_heads],  # which diffusers takes as numbers of heads
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        norm_num_groups=config.norm_groups,
        cross_attention_dim=16,
        use_linear_projection=True,
    )
    return randomize(UNet2DConditionModel(**(settings | options))).eval()


def reference_vae(config: StudentConfig) -> nn.Module:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=config.decoder_channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=config.decoder_layers,
        norm_num_groups=config.norm_groups,
    )
    return randomize(vae).eval()


# Heads of 48 channels, as AdcSR's, and groups that straddle the borders of concatenated skips.
LIKE_ADCSR = StudentConfig(
    channels=(48, 96, 144, 144),
    heads=(1, 2, 3, 0),
    mid_heads=3,
    decoder_channels=(24, 24, 48, 48),
    temporal="none",
    norm_groups=24,
)


@pytest.mark.parametrize("size", [(32, 32), (16, 48)])
def test_converted_student_equals_diffusers(tmp_path: Path, size: tuple[int, int]) -> None:
    config = LIKE_ADCSR
    unet = reference_unet(config, 12, config.decoder_channels[-1])
    decoder = reference_vae(config).decoder
    decoder.conv_in = nn.Conv2d(config.decoder_channels[-1], config.decoder_channels[-1], 3, padding=1)
    nn.init.dirac_(decoder.conv_in.weight)
    nn.init.zeros_(decoder.conv_in.bias)
    net = {f"module.body.1.{key}": tensor for key, tensor in unet.state_dict().items()}
    gone = re.compile(r".*(time_emb|attn2\.|transformer_blocks\.0\.norm2\.)")
    net = {key: tensor for key, tensor in net.items() if not gone.match(key)}
    net |= {f"module.body.2.{key}": tensor for key, tensor in decoder.mid_block.state_dict().items()}
    torch.save(net, tmp_path / "net_params_200.pkl")
    half = {f"decoder.{key}": tensor for key, tensor in decoder.state_dict().items()}
    torch.save({"state_dict": half}, tmp_path / "halfDecoder.ckpt")
    student = convert_adcsr(tmp_path / "net_params_200.pkl", tmp_path / "halfDecoder.ckpt", config)

    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "time_emb_proj" in name or "attn2.to_out" in name:
                weight.zero_()
        lr = torch.rand(2, 3, *size) * 2 - 1
        features = unet(F.pixel_unshuffle(lr, 2), 7, torch.randn(2, 5, 16)).sample
        expected = decoder(features)
        assert (student(lr[:, None])[:, 0] - expected).abs().max() <= 1e-4 and expected.std() > 0.1


# Stable Diffusion, pruned

SD_SHAPED = StudentConfig(
    channels=(16, 32, 64, 64),
    heads=(1, 2, 4, 0),
    mid_heads=4,
    decoder_channels=(8, 16, 32, 32),
    temporal="none",
    norm_groups=4,
)
PRUNED = dataclasses.replace(SD_SHAPED, channels=(12, 24, 48, 48), decoder_channels=(4, 8, 16, 16), temporal="blocks")


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sd")
    reference_unet(SD_SHAPED, 4, 4).save_pretrained(folder / "unet")
    reference_vae(SD_SHAPED).save_pretrained(folder / "vae")
    return folder


def sd_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return tuple(load_file(folder / part / "diffusion_pytorch_model.safetensors") for part in ("unet", "vae"))


def sd_copy(folder: Path, unet: dict[str, Tensor], vae: dict[str, Tensor]) -> Path:
    for part, tensors in (("unet", unet), ("vae", vae)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / part / "diffusion_pytorch_model.safetensors")
    return folder


def test_pruned_student_runs_and_starts_without_time(sd_folder: Path) -> None:
    student = student_from_sd(sd_folder, PRUNED)
    assert student.config == PRUNED
    lr = torch.rand(1, 4, 3, 16, 32) * 2 - 1
    with torch.no_grad():
        sr = student(lr)
        assert sr.isfinite().all() and sr.std() > 0
        assert (student(lr, temporal_strength=0.0) - sr).abs().max() <= 1e-4


def test_pruning_takes_what_the_formulas_say(sd_folder: Path) -> None:
    unet, vae = sd_weights(sd_folder)
    ours = student_from_sd(sd_folder, PRUNED).state_dict()

    def check(key: str, expected: Tensor) -> None:
        assert torch.equal(ours[key], expected), key

    # The first layer sees three colours of 2x2 pixels as three times four latents; the last one repeats its four rows.
    check("unet.conv_in.weight", torch.cat([unet["conv_in.weight"][:12]] * 3, dim=1))
    check("unet.conv_out.weight", torch.cat([unet["conv_out.weight"][:, :12]] * 4))
    check("unet.conv_out.bias", torch.cat([unet["conv_out.bias"]] * 4))
    check("unet.down.1.layers.0.resnet.conv1.weight", unet["down_blocks.1.resnets.0.conv1.weight"][:24, :12])
    check("unet.down.1.layers.0.resnet.shortcut.bias", unet["down_blocks.1.resnets.0.conv_shortcut.bias"][:24])
    check("unet.norm_out.weight", unet["conv_norm_out.weight"][:12])
    # A skip: 64 channels from below and 32 of the skip become 48 and 24.
    both = [*range(48), *range(64, 64 + 24)]
    check("unet.up.1.layers.2.resnet.norm1.bias", unet["up_blocks.1.resnets.2.norm1.bias"][both])
    check("unet.up.1.layers.2.resnet.conv1.weight", unet["up_blocks.1.resnets.2.conv1.weight"][:48, both])
    check("unet.up.1.layers.2.resnet.shortcut.weight", unet["up_blocks.1.resnets.2.conv_shortcut.weight"][:48, both])
    both = [*range(24), *range(32, 32 + 12)]
    check("unet.up.3.layers.0.resnet.conv1.weight", unet["up_blocks.3.resnets.0.conv1.weight"][:12, both])
    # Four heads of 16 become four of 12.
    block = "up_blocks.1.attentions.0.transformer_blocks.0"
    heads = [16 * head + i for head in range(4) for i in range(12)]
    qkv = torch.cat([unet[f"{block}.attn1.to_{name}.weight"][heads, :48] for name in "qkv"])
    check("unet.up.1.layers.0.transformer.attention.qkv.weight", qkv)
    check("unet.up.1.layers.0.transformer.attention.out.weight", unet[f"{block}.attn1.to_out.0.weight"][:48][:, heads])
    block = "down_blocks.1.attentions.1.transformer_blocks.0"
    heads = [*range(12), *range(16, 28)]
    check(
        "unet.down.1.layers.1.transformer.attention.out.weight", unet[f"{block}.attn1.to_out.0.weight"][:24][:, heads]
    )
    # The feed-forward of 32 channels: value 0..127 and gate 128..255.
    halves = [*range(96), *range(128, 128 + 96)]
    check("unet.down.1.layers.1.transformer.ff_in.weight", unet[f"{block}.ff.net.0.proj.weight"][halves, :24])
    check("unet.down.1.layers.1.transformer.ff_in.bias", unet[f"{block}.ff.net.0.proj.bias"][halves])
    check("unet.down.1.layers.1.transformer.ff_out.weight", unet[f"{block}.ff.net.2.weight"][:24, :96])
    check("unet.down.1.layers.1.transformer.norm2.weight", unet[f"{block}.norm3.weight"][:24])
    # The decoder, by half.
    mid = "decoder.mid_block.attentions.0"
    check("decoder.mid.attention.attention.qkv.bias", torch.cat([vae[f"{mid}.to_{name}.bias"][:16] for name in "qkv"]))
    check("decoder.mid.resnet2.conv1.weight", vae["decoder.mid_block.resnets.1.conv1.weight"][:16, :16])
    check("decoder.up.3.resnets.0.shortcut.weight", vae["decoder.up_blocks.3.resnets.0.conv_shortcut.weight"][:4, :8])
    check("decoder.conv_out.weight", vae["decoder.conv_out.weight"][:, :4])
    check("decoder.conv_out.bias", vae["decoder.conv_out.bias"])


def test_unpruned_student_equals_diffusers(sd_folder: Path) -> None:
    """With Stable Diffusion's own widths only the first and the last layer differ, and those by repetition."""
    from diffusers import UNet2DConditionModel

    student = student_from_sd(sd_folder, SD_SHAPED)
    unet = UNet2DConditionModel.from_pretrained(sd_folder / "unet").eval()
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "time_emb_proj" in name or "attn2.to_out" in name:
                weight.zero_()
        lr = torch.rand(1, 3, 32, 32) * 2 - 1
        latents = F.pixel_unshuffle(lr, 2).unflatten(1, (3, 4)).sum(1)
        features = unet(latents, 7, torch.randn(1, 5, 16)).sample.repeat(1, 8, 1, 1)
        expected = student.decoder(features)
        assert (student(lr[:, None])[:, 0] - expected).abs().max() <= 1e-4


def test_bin_files_half_precision_and_old_names_give_the_same(sd_folder: Path, tmp_path: Path) -> None:
    unet, vae = sd_weights(sd_folder)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        for part in ("encoder", "decoder"):
            for kind in ("weight", "bias"):
                mid = f"{part}.mid_block.attentions.0"
                vae[f"{mid}.{name}.{kind}"] = vae.pop(f"{mid}.{new}.{kind}")
    for part, tensors in (("unet", unet), ("vae", vae)):
        (tmp_path / part).mkdir()
        torch.save(tensors, tmp_path / part / "diffusion_pytorch_model.bin")
    expected, student = student_from_sd(sd_folder, PRUNED), student_from_sd(tmp_path, PRUNED)
    assert all(torch.equal(student.state_dict()[k], v) for k, v in expected.state_dict().items() if "temporal" not in k)
    half = sd_copy(tmp_path / "half", {k: v.half() for k, v in unet.items()}, {k: v.half() for k, v in vae.items()})
    bias = student_from_sd(half, PRUNED).unet.conv_in.bias
    assert torch.equal(bias, expected.unet.conv_in.bias.half().float())


def test_other_folders_are_refused(sd_folder: Path, tmp_path: Path) -> None:
    unet, vae = sd_weights(sd_folder)

    def check(message: str, unet: dict = unet, vae: dict = vae, config: StudentConfig = PRUNED) -> None:
        with pytest.raises(CheckpointError, match=message):
            student_from_sd(sd_copy(tmp_path / "sd", unet, vae), config)

    def without(tensors: dict, beginning: str) -> dict:
        return {key: tensor for key, tensor in tensors.items() if not key.startswith(beginning)}

    convolutional = {key: t[..., None, None] if "proj_in.weight" in key else t for key, t in unet.items()}
    check("as in SD 1.x", unet=convolutional)
    check("SDXL has three", unet=without(unet, "down_blocks.3."))
    check(
        r"unknown keys: unet\.add_embedding\.linear_1\.weight",
        unet=unet | {"add_embedding.linear_1.weight": vae["encoder.conv_in.bias"]},
    )
    check(r"conv_in\.weight is .* expected 4 latent", unet=unet | {"conv_in.weight": torch.zeros(16, 9, 3, 3)})
    check(r"missing keys: unet\.conv_in\.bias", unet=without(unet, "conv_in.bias"))
    check(r"missing keys: .*attn1\.to_v", unet=without(unet, "mid_block.attentions.0.transformer_blocks.0.attn1.to_v"))
    check(r"unknown keys: vae\.surprise", vae=vae | {"surprise": torch.zeros(1)})
    check("wrongly shaped", unet=unet | {"conv_norm_out.bias": torch.zeros(15)})
    check("student wants", config=dataclasses.replace(PRUNED, channels=(20, 24, 48, 48)))
    check("heads do not divide", config=dataclasses.replace(PRUNED, heads=(1, 3, 4, 0)))
    check("unknown keys", config=dataclasses.replace(PRUNED, layers=1))
    check("unknown keys", config=dataclasses.replace(PRUNED, decoder_attention=False))
    with pytest.raises(CheckpointError, match="expected a Stable Diffusion"):
        student_from_sd(tmp_path, PRUNED)
    with pytest.raises(ConfigError, match="norm"):
        student_from_sd(sd_folder, dataclasses.replace(PRUNED, norm="none"))
    path = tmp_path / "sd" / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="damaged"):
        student_from_sd(tmp_path / "sd", PRUNED)


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
