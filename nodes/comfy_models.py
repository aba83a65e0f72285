"""The bridge to ComfyUI's model folders and its management of weights: models and LoRAs by name.

What runs a model is in comfy.py; nothing else touches ComfyUI.
"""

import logging
import os
from dataclasses import dataclass

import comfy.model_management as mm
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from ..adcvsr_core import Student
from ..adcvsr_core.checkpoint import RICH, bundled_models, rich_partner
from ..adcvsr_core.errors import CheckpointError, ConfigError, InputError
from ..adcvsr_core.lora import is_lora, load_with_lora
from ..adcvsr_core.paths import require_inside

log = logging.getLogger(__name__)
FOLDER, NO_LORA = "adcvsr", "none"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SUFFIXES = (".safetensors", ".pkl", ".ckpt")  # choosing an official AdcSR file tells how to convert it


class _Held(nn.Module):
    """A student in a box: ComfyUI writes its own attributes onto what it manages."""

    def __init__(self, student: Student):
        super().__init__()
        self.student = student


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """What an ADCVSR_MODEL wire carries: a student whose weights ComfyUI moves."""

    name: str
    patcher: ModelPatcher

    @property
    def student(self) -> Student:
        return self.patcher.model.student


def register_model_folder() -> None:
    """Make models/adcvsr known beside what extra_model_paths.yaml may have named already."""
    paths, suffixes = folder_paths.folder_names_and_paths.get(FOLDER, ([], set()))
    own = os.path.join(folder_paths.models_dir, FOLDER)
    folder_paths.folder_names_and_paths[FOLDER] = (list(dict.fromkeys([*paths, own])), {*suffixes, *_SUFFIXES})


def model_names(loras: bool = False) -> list[str]:
    """Return the models that can be chosen, those of the package first; or the LoRAs, "none" first.

    A rich partner is no choice: the model's fidelity leads to it.
    """
    names = [name for name in folder_paths.get_filename_list(FOLDER) if not os.path.splitext(name)[0].endswith(RICH)]
    files = {name: folder_paths.get_full_path(FOLDER, name) or "" for name in names}
    found = [name for name, file in files.items() if is_lora(file) == loras]
    return [*([NO_LORA] if loras else bundled_models()), *found]


def model_file(name: str) -> str:
    """Return a chosen file, or a bundled model's name; nothing outside the model folders can be named."""
    if name not in [*bundled_models(), *folder_paths.get_filename_list(FOLDER)]:
        raise InputError(f"no model {name!r} in models/{FOLDER}; there are: {', '.join(model_names())}")
    if name in bundled_models():
        return name
    return require_inside(folder_paths.get_full_path_or_raise(FOLDER, name), folder_paths.get_folder_paths(FOLDER))


def load_model(name: str, dtype: str, lora: str = NO_LORA, strength: float = 1.0, fidelity: float = 1.0) -> LoadedModel:
    """Load a model, with a LoRA put on it, for ComfyUI to manage; `dtype` is "auto" or a key of `DTYPES`."""
    files, device = {each: model_file(each) for each in (name, lora) if each != NO_LORA}, mm.get_torch_device()
    best = torch.bfloat16 if device.type in ("cuda", "xpu") and mm.should_use_bf16(device) else torch.float32
    dtype = best if dtype == "auto" else DTYPES[dtype]
    if fidelity < 1 and name not in bundled_models() and (partner := rich_partner(files[name])):
        require_inside(partner, folder_paths.get_folder_paths(FOLDER))  # a link may lead elsewhere
    try:
        student, warning = load_with_lora(files[name], files.get(lora), strength, dtype, fidelity=fidelity)
    except (CheckpointError, ConfigError) as error:
        text = str(error)
        for each, file in files.items():
            text = text.replace(file, each)
        raise type(error)(text) from None  # no folders of this machine in messages
    if warning:
        log.warning("AdcVSR: %s", warning)
    patcher = ModelPatcher(_Held(student), load_device=device, offload_device=mm.unet_offload_device())
    return LoadedModel(" with ".join(files), patcher)
