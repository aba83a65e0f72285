"""LoRA: what training changed comes back on any student it fits, to the digit, and on no other."""

import copy
import dataclasses
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import awaken
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from adcvsr_core.checkpoint import detect_layout, load_student, save_student
from adcvsr_core.cli import main
from adcvsr_core.errors import CheckpointError, ConfigError, OutputError
from adcvsr_core.lora import (
    Lora,
    fingerprint,
    is_lora,
    load_with_lora,
    low_rank,
    merge_lora,
    parse_lora,
    read_lora,
    save_lora,
)
from adcvsr_core.student import Student
from adcvsr_core.video import VideoWriter, read_video
from training.config import LoraConfig
from training.lora import add_lora, lora_state, merged_state

LAYERS = ("unet.conv_in", "unet.mid.layers.0.transformer.ff_in", "unet.up.3.layers.0.resnet.shortcut")
WHOLE = ("unet.mid.temporal.conv1.weight", "unet.mid.temporal.conv2.bias")


@pytest.fixture
def base(student: Student) -> Student:
    """A student of the test's own: merging changes it."""
    return copy.deepcopy(student)


@pytest.fixture
def lora(base: Student) -> Lora:
    """A made-up LoRA of rank 3 over a 3x3 convolution, a linear layer, a 1x1 convolution and two whole parameters."""
    weights, tensors = base.state_dict(), {}
    for layer in LAYERS:
        shape = weights[f"{layer}.weight"].shape
        tensors[f"{layer}.lora_A"] = 0.3 * torch.randn(3, *shape[1:])
        tensors[f"{layer}.lora_B"] = 0.3 * torch.randn(shape[0], 3, *[1] * (len(shape) - 2))
    for name in WHOLE:
        tensors[f"{name}.delta"] = 0.1 * torch.randn_like(weights[name])
    texts = {"recipe": "none"}
    return Lora(tensors=tensors, rank=3, alpha=6.0, config=base.config, base=fingerprint(weights), metadata=texts)


@pytest.fixture
def saved(lora: Lora, tmp_path: Path) -> Path:
    save_lora(lora, tmp_path / "film.safetensors")
    return tmp_path / "film.safetensors"


def state_of(student: Student) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in student.state_dict().items()}


def changed_keys(student: Student, before: dict[str, torch.Tensor]) -> set[str]:
    return {key for key, value in student.state_dict().items() if not torch.equal(value, before[key])}


@torch.no_grad()
def difference(a: Student, b: Student) -> float:
    """Return the largest difference of two students' outputs, in float64: float32 alone gives up to 1e-4 of its own."""
    lr = torch.rand(1, 20, 3, 16, 32, dtype=torch.float64) * 2 - 1
    return (copy.deepcopy(a).double()(lr) - copy.deepcopy(b).double()(lr)).abs().max().item()


def rewrite(path: Path, tensors: dict | None = None, **metadata: str | None) -> Path:
    """Write a file anew with other tensors or texts; None removes a text."""
    with safe_open(path, "pt") as file:
        texts = {key: text for key, text in (file.metadata() | metadata).items() if text is not None}
        kept = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    save_file(kept if tensors is None else tensors, path, texts)
    return path


# The file


def test_what_was_saved_comes_back(lora, saved):
    found = read_lora(saved)
    assert found.tensors.keys() == lora.tensors.keys() and found.num_layers == len(LAYERS)
    assert all(torch.equal(found.tensors[key], tensor) for key, tensor in lora.tensors.items())
    assert dataclasses.replace(found, tensors=lora.tensors, source=lora.source) == lora and found.source == saved.name
    assert detect_layout(saved) == "lora" and is_lora(saved)
    save_lora(lora, saved, dtype=torch.float16)
    half = read_lora(saved).tensors
    assert all(torch.equal(half[key], tensor.half().float()) for key, tensor in lora.tensors.items())


def test_a_model_and_a_lora_are_told_apart(base, saved, tmp_path):
    with pytest.raises(CheckpointError, match=r"is a LoRA.*--lora film\.safetensors.*Load Model"):
        load_student(saved)
    model = tmp_path / "model.safetensors"
    save_student(base, model)
    with pytest.raises(CheckpointError, match="a model, not a LoRA"):
        read_lora(model)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="no LoRA of an AdcVSR model"):
        read_lora(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="no file"):
        read_lora(tmp_path / "absent.safetensors")
    assert not any(map(is_lora, (model, tmp_path / "other.safetensors", tmp_path / "absent.safetensors", tmp_path, "")))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"adcvsr_lora": "2"}, r"LoRA format '2'.*update"),
        ({"adcvsr_lora_rank": "many"}, "rank and alpha cannot be read"),
        ({"adcvsr_lora_rank": None}, "rank and alpha cannot be read"),
        ({"adcvsr_lora_rank": "0"}, "make no LoRA"),
        ({"adcvsr_lora_alpha": "nan"}, "make no LoRA"),
        ({"adcvsr_config": "{"}, "bad configuration"),
        ({"adcvsr_config": None}, "bad configuration"),
    ],
)
def test_bad_metadata_is_refused(saved, metadata, message):
    with pytest.raises(CheckpointError, match=message):
        read_lora(rewrite(saved, **metadata))


def test_bad_tensors_and_files_are_refused(lora, saved):
    for value in (torch.full((1,), float("nan")), torch.full((1,), float("inf")), torch.zeros(1, dtype=torch.int64)):
        with pytest.raises(CheckpointError, match=r"unet\.conv_in\.lora_A holds"):
            read_lora(rewrite(saved, lora.tensors | {"unet.conv_in.lora_A": value}))
    whole = saved.read_bytes()
    for keep in (0, 7, 100, len(whole) - 1):
        saved.write_bytes(whole[:keep])
        with pytest.raises(CheckpointError, match=r"film\.safetensors"):
            read_lora(saved)
        assert not is_lora(saved) or keep > 7


def test_a_save_that_fails_leaves_the_old_file(lora, saved, tmp_path):
    before = saved.read_bytes()
    lora.tensors["unet.conv_in.lora_B"][0] = float("nan")
    with pytest.raises(CheckpointError, match=r"unet\.conv_in\.lora_B holds NaN"):
        save_lora(lora, saved)
    lora.tensors["unet.conv_in.lora_B"][0] = 0.0
    with pytest.raises(ConfigError, match="reserved"):
        save_lora(dataclasses.replace(lora, metadata={"adcvsr_lora": "9"}), saved)
    with pytest.raises(OutputError, match="cannot write"):
        save_lora(lora, tmp_path / "none" / "x.safetensors")
    assert saved.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == [saved.name]


class _Payload:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_pickle_under_a_loras_name_is_not_run(tmp_path):
    path = tmp_path / "evil.safetensors"
    torch.save({"a": _Payload(tmp_path / "ran")}, path)
    assert not is_lora(path)
    with pytest.raises(CheckpointError, match="pickle"):
        read_lora(path)
    assert not (tmp_path / "ran").exists()


# On a student


@pytest.mark.parametrize(("kernel", "rank"), [(3, 4), (1, 2), (0, 3)], ids=["3x3", "1x1", "linear"])
def test_the_product_acts_as_one_after_the_other(kernel, rank):
    """Through lora_A and then lora_B is the same as through their product: what makes merging possible."""
    a = torch.randn(rank, 5, *[kernel] * 2 * bool(kernel)).double()
    b = torch.randn(7, rank, *[1] * 2 * bool(kernel)).double()
    x = torch.randn(2, 5, 6, 6).double() if kernel else torch.randn(2, 5).double()
    through = (lambda x, w: F.conv2d(x, w, padding=w.shape[2] // 2)) if kernel else F.linear
    assert (through(through(x, a), b) - through(x, low_rank(a, b))).abs().max() < 1e-12


def test_merging_adds_exactly_what_the_file_says(base, lora):
    before = state_of(base)
    assert merge_lora(base, lora, 0.5) is None
    after = base.state_dict()
    assert changed_keys(base, before) == {*WHOLE, *(f"{layer}.weight" for layer in LAYERS)}
    for layer in LAYERS:
        a, b = lora.tensors[f"{layer}.lora_A"], lora.tensors[f"{layer}.lora_B"]
        expected = before[f"{layer}.weight"] + 0.5 * 2.0 * torch.einsum("or...,ri...->oi...", b, a)
        assert torch.allclose(after[f"{layer}.weight"], expected, atol=1e-6)
    for name in WHOLE:
        assert torch.equal(after[name], before[name] + 0.5 * lora.tensors[f"{name}.delta"])


def test_strength(base, lora):
    before = state_of(base)
    assert merge_lora(base, lora, 0.0) is None and not changed_keys(base, before)
    merge_lora(base, lora, 1.5)
    merge_lora(base, lora, -1.5)
    assert max((base.state_dict()[key] - value).abs().max() for key, value in before.items()) < 1e-6
    for strength in (2.1, -2.1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"strength.*outside \[-2, 2\]"):
            merge_lora(base, lora, strength)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("unet.conv_in.lora_B"), r"1 missing keys: unet\.conv_in\.lora_B"),
        (lambda t: t.pop("unet.conv_in.lora_A"), r"1 missing keys: unet\.conv_in\.lora_A"),
        (lambda t: t.update({"unet.conv_out.delta": torch.zeros(1)}), r"1 unknown keys: unet\.conv_out\.delta"),
        (lambda t: t.update({"unet.conv_in.weight": torch.zeros(1)}), r"1 unknown keys: unet\.conv_in\.weight"),
        (lambda t: t.update({f"{WHOLE[1][:-5]}.lora_A": torch.zeros(1)}), "missing keys"),
        (lambda t: t.update({f"{WHOLE[1]}.delta": torch.zeros(3)}), r"1 wrongly shaped keys: .*bias\.delta \[3\]"),
        (lambda t: t.update({"unet.conv_in.lora_A": torch.zeros(4, 12, 3, 3)}), r"lora_A \[4, 12, 3, 3\] instead of"),
        (lambda t: t.update({"unet.conv_in.lora_B": torch.zeros(8, 3)}), r"lora_B \[8, 3\] instead of \[8, 3, 1, 1\]"),
        (lambda t: t.clear(), "holds no tensors"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_changes_nothing(base, lora, change, message):
    change(lora.tensors)
    before = state_of(base)
    with pytest.raises(CheckpointError, match=f"the LoRA.*{message}"):
        merge_lora(base, lora)
    assert not changed_keys(base, before)


def test_another_kind_of_model_is_refused_by_name(base, lora):
    other = dataclasses.replace(base.config, temporal="none", color="wavelet")
    with pytest.raises(
        CheckpointError, match=r"temporal 'none' instead of 'blocks', color 'wavelet' instead of 'adain'"
    ):
        merge_lora(base, dataclasses.replace(lora, config=other))


def test_other_weights_are_warned_about_and_a_half_copy_is_not(base, lora, tmp_path):
    save_student(base, tmp_path / "half.safetensors", dtype=torch.float16)
    assert merge_lora(load_student(tmp_path / "half.safetensors"), lora) is None
    other = awaken(Student(base.config))
    warning = merge_lora(other, lora)
    assert lora.base in warning and "other weights" in warning
    assert changed_keys(other, base.state_dict()), "it is put on all the same"
    order = dict(reversed(base.state_dict().items()))
    assert fingerprint(order) == lora.base


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_both_merges_before_rounding(base, lora, saved, tmp_path, dtype):
    model = tmp_path / "model.safetensors"
    save_student(base, model)
    student, warning = load_with_lora(model, saved, 0.7, dtype)
    assert warning is None and student.dtype == dtype and not student.training
    assert not any(weight.requires_grad for weight in student.parameters())
    merge_lora(base, lora, 0.7)
    assert all(torch.equal(value, base.state_dict()[key].to(dtype)) for key, value in student.state_dict().items())
    assert student.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    plain, warning = load_with_lora(model, dtype=dtype)
    assert warning is None and plain.dtype == dtype and changed_keys(plain, student.state_dict())


def test_a_sum_that_a_dtype_cannot_hold_is_refused(base, lora, saved, tmp_path):
    save_student(base, tmp_path / "model.safetensors")
    lora.tensors[f"{WHOLE[1]}.delta"].fill_(1e6)
    save_lora(lora, saved)
    with pytest.raises(CheckpointError, match=r"conv2\.bias holds NaN or infinity in float16"):
        load_with_lora(tmp_path / "model.safetensors", saved, dtype=torch.float16)


# The command line


def test_the_option_is_a_file_and_perhaps_a_strength():
    for text, expected in {
        "film.safetensors": ("film.safetensors", 1.0),
        "film.safetensors:0.5": ("film.safetensors", 0.5),
        "film.safetensors:-1": ("film.safetensors", -1.0),
        "C:\\film.safetensors": ("C:\\film.safetensors", 1.0),
        "C:\\film.safetensors:2": ("C:\\film.safetensors", 2.0),
    }.items():
        assert parse_lora(text) == expected


def test_the_command_line_puts_it_on(base, saved, lora, tmp_path, capsys):
    from adcvsr_core import upscale

    model, clip = tmp_path / "model.safetensors", tmp_path / "in.mkv"
    save_student(base, model)
    with VideoWriter(clip, width=16, height=16, fps=24, codec="ffv1") as writer:
        writer.write(torch.rand(3, 16, 16, 3))
    line = ["upscale", str(clip), str(tmp_path / "out.mkv"), "--codec", "ffv1", "--overwrite", "--model"]
    assert main([*line, str(model), "--lora", f"{saved}:0.5"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "film.safetensors at 0.5" in told and "warning" not in told
    merge_lora(base, lora, 0.5)
    with read_video(clip) as before, read_video(tmp_path / "out.mkv") as after:
        expected = torch.cat(list(upscale([torch.cat(list(before))], base)))
        assert (torch.cat(list(after)) - expected).abs().max() < 0.51 / 255
    save_student(base, model)
    assert main([*line, str(model), "--lora", str(saved)]) == 0
    assert "warning: film.safetensors was trained on other weights" in " ".join(capsys.readouterr().err.split())
    for wrong, message in (([str(model), "--lora", f"{saved}:3"], "strength of 3.0"), ([str(saved)], "is a LoRA")):
        assert main([*line, *wrong]) == 1
        assert message in " ".join(capsys.readouterr().err.split())
    assert main(["info", str(saved)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert all(
        text in told for text in ("rank 3, alpha 6", "3 layers and 2 whole parameters", lora.base, "recipe none")
    )


# Training


@pytest.fixture
def trained(base: Student) -> tuple[Student, dict[str, torch.Tensor]]:
    """A student whose adapters and temporal blocks took a few steps, and the weights it began with."""
    pytest.importorskip("peft", reason="adapters are made by peft")
    before = state_of(base)
    add_lora(base, LoraConfig(rank=4, alpha=8.0))
    optimizer = torch.optim.Adam([each for each in base.parameters() if each.requires_grad], lr=1e-3)
    lr = torch.rand(1, 3, 3, 16, 16) * 2 - 1
    for _ in range(2):  # after one, lora_A has not moved: lora_B was zero
        base.train()(lr).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return base.eval(), before


def test_adapters_begin_as_nothing_on_every_layer_over_space(base):
    pytest.importorskip("peft", reason="adapters are made by peft")
    plain, layers = copy.deepcopy(base), {n for n, m in base.named_modules() if type(m) in (nn.Conv2d, nn.Linear)}
    add_lora(base, LoraConfig(rank=2, alpha=2.0))
    assert difference(base, plain) < 1e-12
    trainable = {name for name, each in base.named_parameters() if each.requires_grad}
    adapted = {name.split(".lora_")[0] for name in trainable if ".lora_" in name}
    assert adapted == layers and {name for name in trainable if ".lora_" not in name} == base.temporal_names()
    assert all(".base_layer." in name or "norm" in name for name in base.state_dict().keys() - trainable)
    with pytest.raises(ConfigError, match="has adapters already"):
        add_lora(base, LoraConfig())


def test_the_file_gives_what_training_made(trained, student, tmp_path):
    adapted, before = trained
    lora = lora_state(adapted, before, {"recipe": "finetune_lora"})
    assert lora.rank == 4 and lora.alpha == 8.0
    save_lora(lora, tmp_path / "film.safetensors")
    other = copy.deepcopy(student)
    assert merge_lora(other, read_lora(tmp_path / "film.safetensors")) is None
    plain = Student(student.config).eval()
    plain.load_state_dict(merged_state(adapted))
    moved = changed_keys(other, before)
    assert difference(adapted, student) > 0.01, "training moved it"
    assert difference(adapted, other) < 1e-5 and difference(adapted, plain) < 1e-5
    assert moved >= student.temporal_names() and not any("norm" in key or key == "unet.conv_in.bias" for key in moved)


def test_what_a_recurrent_student_carries_is_trained_whole(tiny_config):
    pytest.importorskip("peft", reason="adapters are made by peft")
    student = Student(dataclasses.replace(tiny_config, temporal="none", recurrent=True))
    before = state_of(student)
    add_lora(student, LoraConfig(rank=2, alpha=2.0))
    with torch.no_grad():
        student.unet.temporal_in.weight += 0.01
    lora = lora_state(student, before)
    assert [key for key in lora.tensors if key.endswith(".delta")] == ["unet.temporal_in.weight.delta"]
    other = Student(student.config)
    other.load_state_dict(before)
    merge_lora(other, lora)
    assert difference(student, other) < 1e-5


def test_a_student_without_adapters_has_nothing_to_save(base):
    with pytest.raises(ConfigError, match="no adapters"):
        lora_state(base, base.state_dict())
    assert all(torch.equal(value, base.state_dict()[key]) for key, value in merged_state(base).items())
