"""Laws of our checkpoint: what was saved comes back, and nothing else is accepted, executed or half written."""

import dataclasses
import json
import os
import random
import stat
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from adcvsr_core import checkpoint
from adcvsr_core.checkpoint import detect_layout, load_student, read_config, read_metadata, save_student
from adcvsr_core.config import PRESETS, StudentConfig
from adcvsr_core.errors import CheckpointError, ConfigError, OutputError
from adcvsr_core.student import Student


@pytest.fixture
def student(tiny_config: StudentConfig) -> Student:
    student = Student(tiny_config)
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return student.eval()


@pytest.fixture
def saved(student: Student, tmp_path: Path) -> Path:
    save_student(student, tmp_path / "m.safetensors", metadata={"recipe": "none"})
    return tmp_path / "m.safetensors"


def rewrite(path: Path, tensors: dict | None = None, config: str | None = None, **metadata: str) -> Path:
    """Write the file anew with other tensors or texts."""
    with safe_open(path, "pt") as file:
        texts = file.metadata() | metadata
        tensors = {key: file.get_tensor(key) for key in file.keys()} if tensors is None else tensors  # noqa: SIM118
    if config is not None:
        texts["adcvsr_config"] = config
    save_file(tensors, path, texts)
    return path


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118


class Payload:
    """Runs a command when it is unpickled by something that lets it."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"echo ran > {self.marker}",)


def test_saved_student_comes_back_exactly(student: Student, saved: Path) -> None:
    loaded = load_student(saved)
    assert loaded.config == student.config
    for key, tensor in student.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    lr = torch.rand(1, 3, 3, 16, 32) * 2 - 1
    with torch.no_grad():
        assert torch.equal(loaded(lr), student(lr))


def test_loaded_student_is_ready_for_inference(saved: Path) -> None:
    loaded = load_student(str(saved), dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert not loaded.training and not any(weight.requires_grad for weight in loaded.parameters())
    assert all(not weight.is_meta for weight in loaded.parameters())
    for weight in loaded.parameters():
        assert weight.ndim != 4 or weight.is_contiguous(memory_format=torch.channels_last)


def test_loaded_weights_do_not_depend_on_the_file(student: Student, saved: Path) -> None:
    loaded = load_student(saved)
    saved.write_bytes(b"\0" * saved.stat().st_size)
    assert all(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in student.state_dict().items())


def test_half_precision_file_is_half_as_large(student: Student, saved: Path, tmp_path: Path) -> None:
    save_student(student, tmp_path / "half.safetensors", dtype=torch.float16)
    sizes = {path: sum(t.nbytes for t in tensors_of(path).values()) for path in (saved, tmp_path / "half.safetensors")}
    assert sizes[tmp_path / "half.safetensors"] * 2 == sizes[saved]
    loaded = load_student(tmp_path / "half.safetensors")
    for key, tensor in student.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor.half().float()), key


def test_metadata_is_read_without_weights(student: Student, saved: Path) -> None:
    assert read_config(saved) == student.config
    texts = read_metadata(saved)
    assert texts["recipe"] == "none" and texts["adcvsr_format"] == "1"
    assert json.loads(texts["adcvsr_config"])["channels"] == list(student.config.channels)


@pytest.mark.parametrize("metadata", [{"adcvsr_config": "{}"}, {"adcvsr_format": "2"}, {"steps": 3}])
def test_reserved_or_non_text_metadata_is_refused(student: Student, tmp_path: Path, metadata: dict) -> None:
    with pytest.raises(ConfigError, match="metadata"):
        save_student(student, tmp_path / "m.safetensors", metadata=metadata)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_saved_file_is_as_readable_as_any_new_file(saved: Path) -> None:
    other = saved.with_name("other")
    other.touch()
    assert saved.stat().st_mode == other.stat().st_mode


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_weights_are_not_saved(student: Student, saved: Path, value: float) -> None:
    before = saved.read_bytes()
    with torch.no_grad():
        student.decoder.conv_out.weight[1, 1, 1, 1] = value
    with pytest.raises(CheckpointError, match=r"decoder\.conv_out\.weight"):
        save_student(student, saved)
    assert saved.read_bytes() == before and [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_weights_that_a_dtype_cannot_hold_are_refused(student: Student, saved: Path) -> None:
    with torch.no_grad():
        student.unet.conv_in.bias[0] = 1e6
    with pytest.raises(CheckpointError, match=r"unet\.conv_in\.bias .*float16"):
        save_student(student, saved, dtype=torch.float16)
    save_student(student, saved)
    with pytest.raises(CheckpointError, match=r"unet\.conv_in\.bias .*float16"):
        load_student(saved, dtype=torch.float16)


def test_non_finite_weights_are_not_loaded(saved: Path) -> None:
    tensors = tensors_of(saved)
    tensors["unet.norm_out.bias"][2] = float("nan")
    with pytest.raises(CheckpointError, match=r"unet\.norm_out\.bias holds NaN"):
        load_student(rewrite(saved, tensors))


@pytest.mark.parametrize("step", ["save_file", "fsync", "replace"])
def test_failed_save_leaves_the_old_file_and_no_other(student, saved, monkeypatch, step: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr(checkpoint if step == "save_file" else checkpoint.os, step, fail)
    with pytest.raises(OutputError, match="No space left"):
        save_student(student, saved)
    assert saved.read_bytes() == before and [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_unwritable_places_are_output_errors(student: Student, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none" / "m.safetensors", tmp_path / "folder"):
        with pytest.raises(OutputError, match="cannot write"):
            save_student(student, path)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.skipif(
    os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_read_only_folder_is_an_output_error(student: Student, tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(OutputError, match="Permission"):
            save_student(student, tmp_path / "m.safetensors")
    finally:
        tmp_path.chmod(stat.S_IRWXU)


def test_missing_unknown_and_misshapen_keys_are_named(saved: Path) -> None:
    tensors = tensors_of(saved)
    gone = {key: tensor for key, tensor in tensors.items() if not key.startswith("decoder.mid.resnet1.")}
    with pytest.raises(CheckpointError, match=r"8 missing keys: decoder\.mid\.resnet1\.conv1\.bias, .* and 4 more"):
        load_student(rewrite(saved, gone))
    with pytest.raises(CheckpointError, match=r"1 unknown keys: extra\.weight"):
        load_student(rewrite(saved, tensors | {"extra.weight": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"1 wrongly shaped keys: unet\.conv_in\.bias \[7\] instead of \[8\]"):
        load_student(rewrite(saved, tensors | {"unet.conv_in.bias": torch.zeros(7)}))
    with pytest.raises(CheckpointError, match=r"unet\.conv_in\.bias holds torch\.int64"):
        load_student(rewrite(saved, tensors | {"unet.conv_in.bias": torch.zeros(8, dtype=torch.int64)}))


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 0.01, 0.1, 0.5, 0.99, -1])
def test_truncated_file_is_an_error(saved: Path, keep: float) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    for read in (load_student, read_config, read_metadata):
        with pytest.raises(CheckpointError, match=r"m\.safetensors"):
            read(saved)


@pytest.mark.parametrize("length", [0, 2, 1 << 26, 1 << 31, (1 << 63) - 1, (1 << 64) - 1])
@pytest.mark.parametrize(
    "rest", [b"", b"{}", b"{" * 100_000, b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,9]}}']
)
def test_hostile_header_is_an_error(tmp_path: Path, length: int, rest: bytes) -> None:
    path = tmp_path / "h.safetensors"
    path.write_bytes(struct.pack("<Q", length) + rest)
    with pytest.raises(CheckpointError):
        load_student(path)


def test_deep_or_overlapping_header_is_an_error(saved: Path, tmp_path: Path) -> None:
    def header(text: str, data: bytes = b"") -> Path:
        path = tmp_path / "h.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + data)
        return path

    ours = json.dumps(read_metadata(saved))
    entry = '{"dtype":"F32","shape":[%s],"data_offsets":[0,4]}'
    for text, data in (
        ('{"__metadata__":' + "[" * 200_000, b""),
        (f'{{"__metadata__":{ours},"a":{entry % 1},"b":{entry % 1}}}', b"\0" * 4),
        (f'{{"__metadata__":{ours},"a":{entry % 4294967296}}}', b"\0" * 4),
        (f'{{"__metadata__":{ours},"a":{entry % "4294967296,4294967296,4294967296"}}}', b"\0" * 4),
        (f'{{"__metadata__":{ours}}}', b""),
    ):
        with pytest.raises(CheckpointError):
            load_student(header(text, data))


def test_a_damaged_header_never_raises_anything_else(saved: Path) -> None:
    data = saved.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    choose = random.Random(5)
    for _ in range(60):
        damaged = bytearray(data)
        for position in choose.sample(range(end), 2):
            damaged[position] = choose.randrange(256)
        saved.write_bytes(damaged)
        try:
            load_student(saved)
        except CheckpointError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "field, value",
    [
        ("layers", 10**9),
        ("layers", 1.5),
        ("layers", True),
        ("decoder_layers", 10**9),
        ("channels", [10**30, 8, 12, 12]),
        ("channels", [8, 8, 12]),
        ("channels", 8),
        ("heads", [1, 1, "2", 0]),
        ("mid_heads", None),
        ("temporal_hidden", float("inf")),
        ("temporal_kernel", 3.0),
        ("temporal_kernel", 2),
        ("output_scale", "large"),
        ("decoder_attention", "yes"),
        ("norm", "batch"),
        ("norm", ["group"]),
        ("surprise", 1),
    ],
)
def test_absurd_configuration_is_an_error(saved: Path, tiny_config: StudentConfig, field: str, value: object) -> None:
    config = json.dumps(dataclasses.asdict(tiny_config) | {field: value})
    with pytest.raises(CheckpointError, match=r"m\.safetensors"):
        load_student(rewrite(saved, config=config))


@pytest.mark.parametrize("config", ["", "[]", "3", "null", "{", "[" * 100_000])
def test_configuration_that_is_none_is_an_error(saved: Path, config: str) -> None:
    with pytest.raises(CheckpointError, match="configuration"):
        read_config(rewrite(saved, config=config))


def test_other_formats_are_told_what_to_do(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"format '2'.*update"):
        load_student(rewrite(saved, adcvsr_format="2"))
    save_file({"a": torch.zeros(1)}, saved)
    with pytest.raises(CheckpointError, match="another program's model"):
        load_student(saved)
    official = tmp_path / "net_params_200.pkl"
    torch.save({"module.body.1.conv_in.weight": torch.zeros(1)}, official)
    with pytest.raises(CheckpointError, match=r"convert --adcsr net_params_200\.pkl halfDecoder\.ckpt --out"):
        load_student(official)
    torch.save({"state_dict": {"decoder.up_blocks.0.resnets.0.norm1.weight": torch.zeros(1)}}, tmp_path / "h")
    with pytest.raises(CheckpointError, match="convert --adcsr"):
        load_student(tmp_path / "h")
    (tmp_path / "half.ckpt").write_bytes(official.read_bytes()[:300])
    with pytest.raises(CheckpointError, match="convert --adcsr"):
        load_student(tmp_path / "half.ckpt")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["evil.safetensors", "evil.pkl"])
def test_hostile_pickle_is_refused_unread(tmp_path: Path, name: str, legacy: bool) -> None:
    marker = tmp_path / "ran"
    torch.save({"a": Payload(marker)}, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    for read in (load_student, read_config, detect_layout):
        if read is detect_layout:
            assert read(tmp_path / name) == ("pickle" if legacy else "torch")
        else:
            with pytest.raises(CheckpointError, match="pickle"):
                read(tmp_path / name)
    assert not marker.exists()


def test_names_and_paths_that_are_not_there(student: Student, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "WEIGHTS", tmp_path)
    save_student(student, tmp_path / "nano.safetensors")
    save_student(student, tmp_path / "default.safetensors")
    assert checkpoint.bundled_models() == ["default", "nano"]
    assert load_student("default").config == load_student("nano").config == student.config
    with pytest.raises(CheckpointError, match=r"no bundled model 'adcsr'; there are: default, nano"):
        load_student("adcsr")
    with pytest.raises(CheckpointError, match=r"no file .*x\.safetensors"):
        load_student(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_student(tmp_path)


def test_integer_dtype_is_refused(saved: Path) -> None:
    with pytest.raises(ConfigError, match="floating"):
        load_student(saved, dtype=torch.int8)


def test_layouts_are_recognised(saved: Path, tmp_path: Path) -> None:
    assert detect_layout(saved) == "student"
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert detect_layout(tmp_path / "other.safetensors") == "safetensors"
    (tmp_path / "text").write_text("hello")
    assert detect_layout(tmp_path / "text") == "unknown"
    (tmp_path / "sd" / "unet").mkdir(parents=True)
    assert detect_layout(tmp_path / "sd") == "unknown"
    (tmp_path / "sd" / "vae").mkdir()
    assert detect_layout(tmp_path / "sd") == "diffusers"
    with pytest.raises(CheckpointError, match="cannot read"):
        detect_layout(tmp_path / "none")


def test_every_bundled_model_loads(root: Path) -> None:
    for name in checkpoint.bundled_models():
        assert load_student(name).config == PRESETS[name]
        assert (root / "adcvsr_core" / "weights" / f"{name}.safetensors").stat().st_size <= 10_000_000
