"""The bridge to ComfyUI's memory, progress bar, cancel button and folders; its models are in comfy_models.py."""

import logging
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import comfy.model_management as mm
import comfy.utils
import folder_paths
import torch
from PIL import Image
from torch import Tensor

from ..adcvsr_core import Cancelled, UpscaleConfig, upscale
from ..adcvsr_core.engine import plan_run
from ..adcvsr_core.errors import OutOfMemory
from ..adcvsr_core.needs import describe_plan, require_ram, step_bytes
from .comfy_models import LoadedModel

log = logging.getLogger(__name__)
_PREVIEW_EDGE = 512


def upscaled(model: LoadedModel, frames: Iterable[Tensor], size: tuple[int, int], config: UpscaleConfig):
    """Yield what the engine makes of frames of a size (height, width), with progress, preview and cancel."""
    student, device = model.student, model.patcher.load_device
    # Other models make room, so the plan may count on all that the weights leave of the device.
    room = mm.get_total_memory(device) - mm.minimum_inference_memory() - model.patcher.model_size()
    needed = step_bytes(*size, student, config, device, room)
    mm.load_models_gpu([model.patcher], memory_required=needed, force_full_load=True)
    if any(weight.device.type != device.type for weight in student.parameters()):
        raise OutOfMemory(f"the model does not fit on {device}; close other programs, or use dtype bf16")
    log.info("AdcVSR: model %s, %s", model.name, describe_plan(plan_run(*size, student, config), student))
    on_progress = _progress(getattr(frames, "num_frames", None))
    try:
        yield from upscale(_shown(frames, on_progress), student, config, on_progress, mm.processing_interrupted)
    except Cancelled:
        mm.throw_exception_if_processing_interrupted()
        raise


def _shown(frames: Iterable[Tensor], on_progress) -> Iterator[Tensor]:
    """Pass frames on, showing the first at once: the network's first comes a look-ahead later."""
    for index, piece in enumerate(frames):
        if index == 0:
            on_progress(0, None, piece[0])
        yield piece


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


def gather(pieces: Iterable[Tensor], num_frames: int, advice: str) -> Tensor:
    """Write pieces [t,H,W,C] into one IMAGE that is allocated once, where and as ComfyUI wants it.

    Raises:
        InputError: there is too little RAM for it; `advice` says what to do instead.
    """
    images, done, place = None, 0, {"dtype": image_dtype(), "device": mm.intermediate_device()}
    for piece in pieces:
        if images is None:
            require_ram(num_frames, *piece.shape[1:], image_dtype().itemsize, advice)
            images = torch.empty((num_frames, *piece.shape[1:]), **place)
        images[done : done + len(piece)] = piece
        done += len(piece)
    return images


def image_dtype() -> torch.dtype:
    """Return the type of IMAGE tensors; ComfyUI before 0.17 knows only float32."""
    return mm.intermediate_dtype() if hasattr(mm, "intermediate_dtype") else torch.float32


def output_file(suffix: str) -> Path:
    """Return the next free name in ComfyUI's output folder, numbered as ComfyUI does."""
    folder, name, number, *_ = folder_paths.get_save_image_path("AdcVSR", folder_paths.get_output_directory())
    return Path(folder, f"{name}_{number:05}_{suffix}")


def temporary_file(suffix: str) -> Path:
    """Return an unused name in ComfyUI's temp folder, which ComfyUI empties when it starts."""
    folder = folder_paths.get_temp_directory()
    os.makedirs(folder, exist_ok=True)
    return Path(folder, f"adcvsr_{uuid.uuid4().hex}{suffix}")
