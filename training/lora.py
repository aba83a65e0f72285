"""LoRA on a student, by peft: adapters on its convolutions and linear layers, what looks through time trained whole.

peft puts adapters beside the layers that they change, so a student with them has other keys in its state dict
(`X.base_layer.weight`, `X.lora_A.default.weight`, ...) and stays a Student in all else: it streams, upscales and trains
as before. Here they are put in, and taken out again as a file's content or as plain weights. Knows nothing about files
(`adcvsr_core.lora`) or steps.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from adcvsr_core.errors import ConfigError
from adcvsr_core.lora import Lora, fingerprint, low_rank
from adcvsr_core.student import Student

from .config import LoraConfig
from .packages import unavailable

_ADAPTER = "default"
_SIDES = {f".lora_{side}.{_ADAPTER}.weight": f".lora_{side}" for side in "AB"}
_BASE = ".base_layer."


def add_lora(student: Student, lora: LoraConfig) -> None:
    """Put adapters into a student, in place, and freeze all but them and the parameters that look through time.

    The output does not change: every adapter's second half starts at zero. The first half is drawn from torch's global
    generator, so seed that before.

    Args:
        student: one without adapters.
        lora: their rank and scale.

    Raises:
        ConfigError: the student has adapters already, or peft is missing.
    """
    if hasattr(student, "peft_config"):
        raise ConfigError("this student has adapters already; merge them first")
    try:
        import peft
    except Exception as error:  # a broken package raises anything
        raise unavailable("peft", 'trainable "lora"', 'train "temporal" or "all"', error) from error
    # By exact type: temporal convolutions and the input from the frame before are classes of their own.
    layers = [name for name, module in student.named_modules() if type(module) in (nn.Conv2d, nn.Linear)]
    settings = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=layers, lora_dropout=0.0, bias="none")
    peft.inject_adapter_in_model(settings, student, adapter_name=_ADAPTER)
    temporal = student.temporal_names()
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name in temporal or _is_adapter(name))


def lora_state(student: Student, base: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Lora:
    """Return what training has changed, ready for `adcvsr_core.lora.save_lora`.

    Args:
        student: one with adapters.
        base: the state dict of the student before the training, without adapters.
        metadata: texts that shall travel with it, such as the recipe.

    Returns:
        the adapters, and the differences of the parameters trained whole, as float32 on the CPU.

    Raises:
        ConfigError: the student has no adapters.
    """
    settings, state = _settings(student), student.state_dict()
    tensors = {_lora_key(name): _plain(value) for name, value in state.items() if _is_adapter(name)}
    for name in sorted(student.temporal_names()):
        tensors[f"{name}.delta"] = _plain(state[name]) - _plain(base[name])
    return Lora(
        tensors=tensors,
        rank=settings.r,
        alpha=float(settings.lora_alpha),
        config=student.config,
        base=fingerprint(base),
        metadata=metadata or {},
        source="this training",
    )


def merged_state(student: Student) -> dict[str, Tensor]:
    """Return the state dict of a student without adapters that gives the same output; new tensors where they differ.

    A student that has no adapters gives its own.
    """
    state = student.state_dict()
    if not hasattr(student, "peft_config"):
        return state
    settings = _settings(student)
    merged = {name.replace(_BASE, "."): value for name, value in state.items() if not _is_adapter(name)}
    scale = settings.lora_alpha / settings.r
    for layer, lora_a, lora_b in _pairs(state):
        merged[f"{layer}.weight"] = merged[f"{layer}.weight"] + scale * low_rank(lora_a, lora_b)
    return merged


def _settings(student: Student):
    if not hasattr(student, "peft_config"):
        raise ConfigError("this student has no adapters; add_lora puts them in")
    return student.peft_config[_ADAPTER]


def _pairs(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    first, second = _SIDES
    for name, value in state.items():
        if name.endswith(first):
            layer = name.removesuffix(first)
            yield layer, value, state[layer + second]


def _is_adapter(name: str) -> bool:
    return name.endswith(tuple(_SIDES))


def _lora_key(name: str) -> str:
    end = next(end for end in _SIDES if name.endswith(end))
    return name.removesuffix(end) + _SIDES[end]


def _plain(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float32)
