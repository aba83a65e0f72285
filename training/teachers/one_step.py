"""Weights of one-step Stable Diffusion upscalers, merged into the plain UNet and VAE of Stable Diffusion 2.1.

Three public files are understood, told apart by their own keys: OSEDiff's (LoRA on UNet and encoder, and a new first
layer), PiSA-SR's (two sets of LoRA on the UNet) and the one that AdcSR trains by (whole UNet and VAE). They are pickles
and are read without running them. LoRA was made by peft with its default alpha, 8, which the files do not mention.
Sources: OSEDiff (arXiv 2406.08177), PiSA-SR (arXiv 2412.03017), AdcSR (arXiv 2411.13383) and their public code.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adcvsr_core.errors import CheckpointError
from adcvsr_core.pickles import LazyTensor, TorchArchive

from .base import one_line

_ALPHA = 8
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.(?P<adapter>\w+)\.weight")


@dataclass(frozen=True)
class Form:
    """How the merged UNet is used.

    Attributes:
        name: "osediff" or "pisa-sr".
        timestep: that it is told.
        residual: whether its output is what to subtract from the latents, instead of the noise in them.
    """

    name: str
    timestep: int
    residual: bool


OSEDIFF = Form("osediff", 999, residual=False)
PISA_SR = Form("pisa-sr", 1, residual=True)


def merge_file(path: Path, unet: nn.Module, vae: nn.Module) -> Form:
    """Merge a file's weights into Stable Diffusion's, which is changed.

    Args:
        path: one of the three public files.
        unet, vae: of Stable Diffusion 2.1, float32.

    Raises:
        CheckpointError: it is none of them, is damaged, or does not fit.
    """
    if not path.is_file():
        raise CheckpointError(f"no file {path}; expected OSEDiff's, PiSA-SR's or AdcSR's teacher weights (.pkl)")
    with TorchArchive(path) as archive:
        content = archive.content if isinstance(archive.content, dict) else {}
        if isinstance(content.get("unet"), dict) and isinstance(content.get("vae"), dict):
            _replace(unet, _tensors(content, "unet", path), path)
            _replace(vae, _tensors(content, "vae", path), path)
            return OSEDIFF
        if "rank_unet" in content and "rank_vae" in content:
            _merge(unet, _tensors(content, "state_dict_unet", path), {"": content["rank_unet"]}, path)
            _merge(vae, _tensors(content, "state_dict_vae", path), {"": content["rank_vae"]}, path)
            return OSEDIFF
        if "lora_rank_unet_pix" in content and "lora_rank_unet_sem" in content:
            ranks = {kind: content[f"lora_rank_unet_{kind}"] for kind in ("pix", "sem")}
            _merge(unet, _tensors(content, "state_dict_unet", path), ranks, path)
            return PISA_SR
    names = sorted(map(str, content))[:8]
    raise CheckpointError(f"{path} holds {names}; expected OSEDiff's, PiSA-SR's or AdcSR's file")


def _tensors(content: dict[Any, Any], name: str, path: Path) -> dict[str, LazyTensor]:
    state = content.get(name)
    if not isinstance(state, dict) or not all(isinstance(value, LazyTensor) for value in state.values()):
        raise CheckpointError(f"{path}: {name} is no dictionary of tensors")
    return {str(key): value for key, value in state.items()}


def _replace(model: nn.Module, state: dict[str, LazyTensor], path: Path) -> None:
    try:
        model.load_state_dict({key: value.read().float() for key, value in state.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {one_line(error)}") from error


def _merge(model: nn.Module, state: dict[str, LazyTensor], ranks: dict[str, int], path: Path) -> None:
    """Add LoRA to the weights that it adapts, and put in place what was trained whole; ranks by adapters' endings."""
    weights = dict(model.named_parameters())
    pairs: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, value in state.items():
        match = _LORA.fullmatch(key)
        if match:
            pairs.setdefault((match["module"], match["adapter"]), {})[match["side"]] = value.read().float()
            continue
        name = key.replace(".base_layer.", ".")
        if name not in weights or weights[name].shape != value.shape:
            raise CheckpointError(f"{path}: {key} {list(value.shape)} has no counterpart in Stable Diffusion 2.1")
        weights[name].data.copy_(value.read())
    for (module, adapter), pair in pairs.items():
        rank = next((rank for ending, rank in ranks.items() if adapter.endswith(ending)), 0)
        _add(weights.get(f"{module}.weight"), pair, rank, f"{path}: {module}, adapter {adapter}")


def _add(weight: nn.Parameter | None, pair: dict[str, Tensor], rank: int, what: str) -> None:
    if weight is None or set(pair) != {"A", "B"}:
        raise CheckpointError(f"{what}: no such layer in Stable Diffusion 2.1, or only one of the two matrices")
    a, b = pair["A"].flatten(1), pair["B"].flatten(1)  # a convolution's second matrix is 1x1
    if not len(a) == rank > 0 or b.shape[1] != rank or b.shape[0] != len(weight) or a.shape[1] != weight[0].numel():
        raise CheckpointError(
            f"{what}: {list(pair['A'].shape)} and {list(pair['B'].shape)} of rank {rank} do not fit a weight of "
            f"{list(weight.shape)}"
        )
    with torch.no_grad():
        weight += (_ALPHA / rank) * (b @ a).view_as(weight)
