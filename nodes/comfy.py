"""The bridge to ComfyUI: the only file that touches its folders, memory, progress bar and cancel button."""

import itertools
import logging
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management as mm
import comfy.utils
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from PIL import Image
from torch import Tensor, nn

from ..adcvsr_core import Cancelled, Student, UpscaleConfig, upscale
from ..adcvsr_core.checkpoint import bundled_models
from ..adcvsr_core.engine import plan_run
from ..adcvsr_core.errors import CheckpointError, InputError, OutOfMemory
from ..adcvsr_core.lora import is_lora, load_with_lora
from ..adcvsr_core.needs import describe_plan, step_bytes

log = logging.getLogger(__name__)
FOLDER, NO_LORA = "adcvsr", "none"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SUFFIXES = (".safetensors", ".pkl", ".ckpt")  # choosing an official AdcSR file tells how to convert it
_PREVIEW_EDGE = 512


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
    """Return the models that can be chosen, those of the package first; or the LoRAs, "none" first."""
    files = {name: folder_paths.get_full_path(FOLDER, name) or "" for name in folder_paths.get_filename_list(FOLDER)}
    found = [name for name, file in files.items() if is_lora(file) == loras]
    return [*([NO_LORA] if loras else bundled_models()), *found]


def model_file(name: str) -> str:
    """Return a chosen file, or a bundled model's name; nothing outside the model folders can be named."""
    if name not in [*bundled_models(), *folder_paths.get_filename_list(FOLDER)]:
        raise InputError(f"no model {name!r} in models/{FOLDER}; there are: {', '.join(model_names())}")
    return name if name in bundled_models() else folder_paths.get_full_path_or_raise(FOLDER, name)


def load_model(name: str, dtype: str, lora: str = NO_LORA, strength: float = 1.0) -> LoadedModel:
    """Load a model, with a LoRA put on it, for ComfyUI to manage; `dtype` is "auto" or a key of `DTYPES`."""
    files, device = {each: model_file(each) for each in (name, lora) if each != NO_LORA}, mm.get_torch_device()
    best = torch.bfloat16 if device.type in ("cuda", "xpu") and mm.should_use_bf16(device) else torch.float32
    dtype = best if dtype == "auto" else DTYPES[dtype]
    try:
        student, warning = load_with_lora(files[name], files.get(lora), strength, dtype)
    except CheckpointError as error:
        text = str(error)
        for each, file in files.items():
            text = text.replace(file, each)
        raise CheckpointError(text) from None  # no folders of this machine in messages
    if warning:
        log.warning("AdcVSR: %s", warning)
    patcher = ModelPatcher(_Held(student), load_device=device, offload_device=mm.unet_offload_device())
    return LoadedModel(" with ".join(files), patcher)


def upscaled(model: LoadedModel, frames: Iterable[Tensor], size: tuple[int, int], config: UpscaleConfig):
    """Yield what the engine makes of frames of a size (height, width), with progress, preview and cancel."""
    student, device = model.student, model.patcher.load_device
    mm.load_models_gpu([model.patcher], memory_required=step_bytes(*size, student, config), force_full_load=True)
    if any(weight.device.type != device.type for weight in student.parameters()):
        raise OutOfMemory(f"the model does not fit on {device}; close other programs, or use dtype bf16")
    log.info("AdcVSR: model %s, %s", model.name, describe_plan(plan_run(*size, student, config), student))
    on_progress, pieces = _progress(getattr(frames, "num_frames", None)), iter(frames)
    first = list(itertools.islice(pieces, 1))
    for piece in first:  # shown at once: the network's first comes a look-ahead later
        on_progress(0, None, piece[0])
    try:
        yield from upscale(itertools.chain(first, pieces), student, config, on_progress, mm.processing_interrupted)
    except Cancelled:
        mm.throw_exception_if_processing_interrupted()
        raise


def _progress(total: int | None):
    """Return a callback (done, ignored, last frame) that moves ComfyUI's bar and shows the frame."""
    bar = comfy.utils.ProgressBar(1)

    def on_progress(done: int, _: int | None, frame: Tensor) -> None:
        step = max(1, max(frame.shape[:2]) // (2 * _PREVIEW_EDGE))
        small = torch.nan_to_num(frame[::step, ::step].float()).clamp(0, 1).mul(255).byte().cpu()
        bar.update_absolute(done, max(total or 0, done, 1), ("JPEG", Image.fromarray(small.numpy()), _PREVIEW_EDGE))

    return on_progress


def watched(pieces: Iterable[Tensor], num_frames: int) -> Iterator[Tensor]:
    """Pass pieces of frames on, moving the progress bar and heeding the cancel button."""
    bar = comfy.utils.ProgressBar(num_frames)
    for piece in pieces:
        mm.throw_exception_if_processing_interrupted()
        yield piece
        bar.update(len(piece))


def gather(pieces: Iterable[Tensor], num_frames: int) -> Tensor:
    """Write pieces [t,H,W,C] into one IMAGE that is allocated once, where and as ComfyUI wants it."""
    images, done, place = None, 0, {"dtype": image_dtype(), "device": mm.intermediate_device()}
    for piece in pieces:
        images = torch.empty((num_frames, *piece.shape[1:]), **place) if images is None else images
        images[done : done + len(piece)] = piece
        done += len(piece)
    return images


def image_dtype() -> torch.dtype:
    """Return the type of IMAGE tensors; ComfyUI before 0.17 knows only float32."""
    return mm.intermediate_dtype() if hasattr(mm, "intermediate_dtype") else torch.float32


def temporary_file(suffix: str) -> Path:
    """Return an unused name in ComfyUI's temp folder, which ComfyUI empties when it starts."""
    folder = folder_paths.get_temp_directory()
    os.makedirs(folder, exist_ok=True)
    return Path(folder, f"adcvsr_{uuid.uuid4().hex}{suffix}")
