"""LoRA: a small file that changes a student, and how it is put on one.

One safetensors file of our own. `<module>.lora_A` and `<module>.lora_B` hold a low-rank change of a convolution's or
a linear layer's weight, in peft's shapes; `<parameter>.delta` holds the change of a parameter that was trained whole,
such as those of the temporal blocks. The metadata tells rank and alpha, the student's configuration, and a fingerprint
of the weights that it was trained on.

    weight += strength * alpha / rank * lora_B @ lora_A        parameter += strength * delta

Knows nothing about peft or training. Source of the method: LoRA (arXiv 2106.09685).
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import (
    CONFIG,
    LORA,
    detect_layout,
    load_student,
    open_weights,
    parse_config,
    read_weights,
    refuse_keys,
    require_finite,
    write_weights,
)
from .config import StudentConfig
from .errors import CheckpointError, ConfigError
from .student import Student

MAX_STRENGTH = 2.0
_VERSION = "1"
_RANK, _ALPHA, _BASE = "adcvsr_lora_rank", "adcvsr_lora_alpha", "adcvsr_lora_base"


@dataclass(frozen=True, kw_only=True)
class Lora:
    """What a LoRA file holds.

    Attributes:
        tensors: for a weight [O,I,h,w] lora_A [rank,I,h,w] and lora_B [O,rank,1,1]; for a weight [O,I] lora_A [rank,I]
            and lora_B [O,rank]; for any other parameter a delta of its shape.
        rank: of every low-rank change, at least 1.
        alpha: low-rank changes are scaled by alpha / rank.
        config: of the student that it was trained on.
        base: fingerprint of that student's weights before the training.
        metadata: further texts, such as the recipe.
        source: its file's name, for messages.
    """

    tensors: dict[str, Tensor]
    rank: int
    alpha: float
    config: StudentConfig
    base: str
    metadata: dict[str, str] = field(default_factory=dict)
    source: str = "the LoRA"

    @property
    def num_layers(self) -> int:
        """How many weights have a low-rank change."""
        return sum(key.endswith(".lora_A") for key in self.tensors)


def save_lora(lora: Lora, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a LoRA to one safetensors file, whole or not at all.

    Args:
        lora: what to write; `source` is not written.
        path: the file, replaced if it is there.
        dtype: floating type of the stored tensors, None = as they are.

    Raises:
        CheckpointError: a value is NaN or infinite, or becomes so in `dtype`.
        ConfigError: metadata that is not text, or uses a reserved key.
        OutputError: the file cannot be written.
    """
    own = {LORA: _VERSION, _RANK: str(lora.rank), _ALPHA: repr(float(lora.alpha)), _BASE: lora.base}
    write_weights(path, lora.tensors, dtype, own | {CONFIG: lora.config.to_json()}, lora.metadata)


def read_lora(path: str | Path) -> Lora:
    """Read a LoRA, in float32; whether it fits a student is checked when it is put on one.

    Raises:
        CheckpointError: the file is missing, broken, no LoRA of ours, or holds NaN or infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no file {path}; expected a LoRA, a safetensors file that adcvsr_core wrote")
    with open_weights(path) as file:
        texts = dict(file.metadata() or {})
        if LORA not in texts:
            what = "a model, not a LoRA" if CONFIG in texts else "no LoRA of an AdcVSR model"
            raise CheckpointError(f"{path} is {what}; expected a file that adcvsr_core.lora wrote")
        if texts[LORA] != _VERSION:
            raise CheckpointError(
                f"{path} has LoRA format {texts[LORA]!r} and this version reads {_VERSION!r}: update adcvsr_core"
            )
        rank, alpha = _scale_of(texts, path)
        config = parse_config(texts.get(CONFIG, ""), str(path))
        tensors = read_weights(file, str(path), torch.float32, "cpu")
    own = (LORA, _RANK, _ALPHA, _BASE, CONFIG)
    rest = {key: text for key, text in texts.items() if key not in own}
    base = texts.get(_BASE, "")
    return Lora(tensors=tensors, rank=rank, alpha=alpha, config=config, base=base, metadata=rest, source=path.name)


def parse_lora(text: str) -> tuple[str, float]:
    """Read FILE or FILE:STRENGTH, as a command line gives it: (path, strength), 1 where none is given."""
    path, _, strength = text.rpartition(":")
    try:
        return (path, float(strength)) if path else (text, 1.0)
    except ValueError:  # the colon is the path's, as in C:\\lora.safetensors
        return text, 1.0


def is_lora(path: str | Path) -> bool:
    """Tell whether a file is one of our LoRAs, by its name's end and its header; anything unreadable is none."""
    path = Path(path)
    try:
        return path.suffix == ".safetensors" and path.is_file() and detect_layout(path) == "lora"
    except (CheckpointError, OSError):
        return False


def merge_lora(student: Student, lora: Lora, strength: float = 1.0) -> str | None:
    """Put a LoRA on a student: change its weights in place, or none of them.

    Args:
        student: best in float32; other types round the changed weights once.
        lora: one that was trained on a student of the same configuration.
        strength: factor on the change in [-2, 2]; 0 leaves the weights exactly as they are.

    Returns:
        a warning for the user when the LoRA was trained on other weights than these, else None.

    Raises:
        ConfigError: a strength out of range.
        CheckpointError: another configuration, or tensors that do not fit; they are named.
    """
    if not -MAX_STRENGTH <= strength <= MAX_STRENGTH:
        raise ConfigError(f"a LoRA's strength of {strength} is outside [{-MAX_STRENGTH:g}, {MAX_STRENGTH:g}]")
    weights = student.state_dict()
    _check(lora, student.config, weights)
    found = fingerprint(weights)
    with torch.no_grad():
        for key, change in _changes(lora) if strength else ():
            weight = weights[key]
            exact = torch.promote_types(weight.dtype, torch.float32)
            weight.copy_(weight.to(exact) + strength * change.to(weight.device, exact))
    if found == lora.base:
        return None
    return (
        f"{lora.source} was trained on other weights ({lora.base or 'unknown'}) than this model's ({found}), so its "
        "effect is not what it learned; give the model that it was made for"
    )


def load_with_lora(
    model: str | Path,
    lora: str | Path | None = None,
    strength: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    fidelity: float = 1.0,
) -> tuple[Student, str | None]:
    """Read a student and put a LoRA on it, in float32 before it is brought to `dtype`.

    Args:
        model: as `load_student` takes it.
        lora: the LoRA's file; None = the student as it is.
        strength: as for `merge_lora`.
        dtype, device: of the result.
        fidelity: as for `load_student`.

    Returns:
        the student, as from `load_student`, and the warning of `merge_lora`, if there is one.

    Raises:
        CheckpointError, ConfigError: as `load_student`, `read_lora` and `merge_lora`; or a changed weight that `dtype`
            cannot hold.
    """
    if lora is None:
        return load_student(model, dtype=dtype, device=device, fidelity=fidelity), None
    student = load_student(model, fidelity=fidelity)
    warning = merge_lora(student, read_lora(lora), strength)
    student = student.to(device=device, dtype=dtype)
    for key, weight in student.state_dict().items():
        require_finite(key, weight, f"{model} with {lora}")
    return student, warning


def low_rank(lora_a: Tensor, lora_b: Tensor) -> Tensor:
    """Return the product of a pair in the shape of its layer's weight, not yet scaled by alpha / rank."""
    return (lora_b.flatten(1) @ lora_a.flatten(1)).unflatten(1, lora_a.shape[1:])


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits that tell weights apart; weights and their copy in fp16 count as the same."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        weight = weights[key].detach().to("cpu", torch.float16).contiguous()
        digest.update(f"{key} {list(weight.shape)} ".encode())
        digest.update(weight.numpy())
    return digest.hexdigest()[:16]


def _changes(lora: Lora) -> Iterator[tuple[str, Tensor]]:
    """Yield (parameter, its change at strength 1)."""
    for key, tensor in lora.tensors.items():
        name, _, kind = key.rpartition(".")
        if kind == "delta":
            yield name, tensor
        elif kind == "lora_A":
            yield f"{name}.weight", lora.alpha / lora.rank * low_rank(tensor, lora.tensors[f"{name}.lora_B"])


def _scale_of(texts: dict[str, str], path: Path) -> tuple[int, float]:
    try:
        rank, alpha = int(texts[_RANK]), float(texts[_ALPHA])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: its rank and alpha cannot be read; the file is damaged") from error
    if rank < 1 or not math.isfinite(alpha):
        raise CheckpointError(f"{path}: rank {rank} and alpha {alpha} make no LoRA; expected rank >= 1")
    return rank, alpha


def _check(lora: Lora, config: StudentConfig, weights: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless a LoRA fits a student of this configuration, key by key."""
    ours, theirs = dataclasses.asdict(config), dataclasses.asdict(lora.config)
    different = [f"{name} {theirs[name]!r} instead of {ours[name]!r}" for name in ours if theirs[name] != ours[name]]
    if different:
        raise CheckpointError(f"{lora.source} was made for another kind of model: {', '.join(different)}")
    if not lora.tensors:
        raise CheckpointError(f"{lora.source} holds no tensors; expected lora_A, lora_B or delta")
    unknown, missing, wrong = [], [], []
    for key, tensor in lora.tensors.items():
        expected = _expected_shape(key, lora.rank, weights)
        if expected is None:
            unknown.append(key)
        elif tuple(tensor.shape) != expected:
            wrong.append(f"{key} {list(tensor.shape)} instead of {list(expected)}")
        partner = key[:-1] + ("B" if key.endswith("A") else "A")
        if key.endswith((".lora_A", ".lora_B")) and partner not in lora.tensors:
            missing.append(partner)
    refuse_keys(lora.source, "missing", missing)
    refuse_keys(lora.source, "unknown", unknown)
    refuse_keys(lora.source, "wrongly shaped", wrong)


def _expected_shape(key: str, rank: int, weights: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    """Return the shape that one of a LoRA's tensors must have, or None when the student has no place for it."""
    name, _, kind = key.rpartition(".")
    weight = weights.get(name if kind == "delta" else f"{name}.weight")
    if weight is None or kind not in ("delta", "lora_A", "lora_B"):
        return None
    if kind == "delta":
        return tuple(weight.shape)
    if weight.ndim not in (2, 4):
        return None
    return (rank, *weight.shape[1:]) if kind == "lora_A" else (weight.shape[0], rank, *[1] * (weight.ndim - 2))
