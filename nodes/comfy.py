"""The bridge to ComfyUI: the only file that touches its folders, memory, progress bar and cancel button."""

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

from ..adcvsr_core import Cancelled, Student, UpscaleConfig, load_student, upscale
from ..adcvsr_core.checkpoint import bundled_models
from ..adcvsr_core.engine import plan_run
from ..adcvsr_core.errors import CheckpointError, InputError, OutOfMemory
from ..adcvsr_core.needs import describe_plan, step_bytes

log = logging.getLogger(__name__)
FOLDER = "adcvsr"
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


def model_names() -> list[str]:
    """Return the models that can be chosen: those of the package, then the files of models/adcvsr."""
    return [*bundled_models(), *folder_paths.get_filename_list(FOLDER)]


def model_file(name: str) -> str:
    """Return a chosen model's file, or a bundled model's name; nothing outside the model folders can be named."""
    if name not in model_names():
        raise InputError(f"no model {name!r} in models/{FOLDER}; there are: {', '.join(model_names())}")
    return name if name in bundled_models() else folder_paths.get_full_path_or_raise(FOLDER, name)


def load_model(name: str, dtype: str) -> LoadedModel:
    """Load a model for ComfyUI to manage; `dtype` is "auto" or a key of `DTYPES`."""
    file, device = model_file(name), mm.get_torch_device()
    best = torch.bfloat16 if device.type in ("cuda", "xpu") and mm.should_use_bf16(device) else torch.float32
    try:
        student = load_student(file, dtype=best if dtype == "auto" else DTYPES[dtype])
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(file, name)) from None  # no folders of this machine in messages
    patcher = ModelPatcher(_Held(student), load_device=device, offload_device=mm.unet_offload_device())
    return LoadedModel(name, patcher)


def upscaled(model: LoadedModel, frames: Iterable[Tensor], size: tuple[int, int], config: UpscaleConfig):
    """Yield what the engine makes of frames of a size (height, width), with progress, preview and cancel."""
    student, device = model.student, model.patcher.load_device
    mm.load_models_gpu([model.patcher], memory_required=step_bytes(*size, student, config), force_full_load=True)
    if any(weight.device.type != device.type for weight in student.parameters()):
        raise OutOfMemory(f"the model does not fit on {device}; close other programs, or use dtype bf16")
    log.info("AdcVSR: model %s, %s", model.name, describe_plan(plan_run(*size, student, config), student))
    try:
        yield from upscale(_Shown(frames), student, config, _progress(), mm.processing_interrupted)
    except Cancelled:
        mm.throw_exception_if_processing_interrupted()
        raise


class _Shown:
    """Frames whose first is shown in the preview at once: the network's first comes a look-ahead later."""

    def __init__(self, frames: Iterable[Tensor]):
        self.frames, self.num_frames = frames, getattr(frames, "num_frames", None)

    def __iter__(self) -> Iterator[Tensor]:
        for index, piece in enumerate(self.frames):
            if index == 0:
                _progress()(0, self.num_frames, piece[0])
            yield piece


def _progress():
    """Return a callback (done, total or None, last frame) that moves ComfyUI's bar and shows the frame."""
    bar = comfy.utils.ProgressBar(1)

    def on_progress(done: int, total: int | None, frame: Tensor) -> None:
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
