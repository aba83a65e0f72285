"""Weights of other programs into a student: AdcSR's two files, or a Stable Diffusion 2.1 folder to prune.

One table pairs our names with diffusers' names, which both layouts use; every tensor is consumed, or listed
here as dropped on purpose, or refused by name. Nothing is downloaded and no foreign code is run or needed.
Sources: AdcSR (arXiv 2411.13383), its public model.py and test.py; diffusers' names of Stable Diffusion 2.1.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .checkpoint import build_empty, check_shapes, detect_layout, fill, refuse_keys, require_finite
from .config import PRESETS, StudentConfig
from .errors import CheckpointError, ConfigError
from .pickles import TorchArchive
from .streaming import TemporalBlock
from .student import Student
from .unet import TemporalInput

__all__ = ["convert_adcsr", "detect_layout", "key_table", "student_from_sd", "with_recurrence", "with_temporal"]

# Our module names -> diffusers' names; the first rule that matches a key's beginning counts, and {q,k,v} stands
# for three tensors, one above the other in our fused one.
_RULES = tuple(
    (re.compile(ours), theirs)
    for ours, theirs in (
        (r"unet\.(down|up)\.(\d)\.layers\.(\d+)\.resnet\.", r"unet.\1_blocks.\2.resnets.\3."),
        (r"unet\.(down|up)\.(\d)\.layers\.(\d+)\.transformer\.", r"unet.\1_blocks.\2.attentions.\3."),
        (r"unet\.mid\.layers\.(\d)\.resnet\.", r"unet.mid_block.resnets.\1."),
        (r"unet\.mid\.layers\.(\d)\.transformer\.", r"unet.mid_block.attentions.\1."),
        (r"unet\.down\.(\d)\.resample\.", r"unet.down_blocks.\1.downsamplers.0."),
        (r"unet\.up\.(\d)\.resample\.", r"unet.up_blocks.\1.upsamplers.0."),
        (r"(unet|decoder)\.norm_out\.", r"\1.conv_norm_out."),
        (r"decoder\.mid\.resnet1\.", "decoder.mid_block.resnets.0."),
        (r"decoder\.mid\.resnet2\.", "decoder.mid_block.resnets.1."),
        (r"decoder\.mid\.attention\.norm\.", "decoder.mid_block.attentions.0.group_norm."),
        (r"decoder\.mid\.attention\.attention\.qkv\.", "decoder.mid_block.attentions.0.to_{q,k,v}."),
        (r"decoder\.mid\.attention\.attention\.out\.", "decoder.mid_block.attentions.0.to_out.0."),
        (r"decoder\.up\.(\d)\.resnets\.(\d+)\.", r"decoder.up_blocks.\1.resnets.\2."),
        (r"decoder\.up\.(\d)\.upsample\.", r"decoder.up_blocks.\1.upsamplers.0."),
    )
)
# Inside a residual block or a transformer. Their norm2 is the text's, which goes; their norm3 is our norm2.
_INNER = {
    "shortcut": "conv_shortcut",
    "attention.qkv": "transformer_blocks.0.attn1.to_{q,k,v}",
    "attention.out": "transformer_blocks.0.attn1.to_out.0",
    "ff_in": "transformer_blocks.0.ff.net.0.proj",
    "ff_out": "transformer_blocks.0.ff.net.2",
}
_INNER_NORMS = {"norm1": "transformer_blocks.0.norm1", "norm2": "transformer_blocks.0.norm3"}

# Dropped from Stable Diffusion on purpose: time and text, and the half of the VAE that encodes.
_SD_DROPPED = re.compile(
    r"unet\.time_embedding\.|unet\..*\.time_emb_proj\.|unet\..*\.attn2\.|unet\..*transformer_blocks\.0\.norm2\."
    r"|vae\.(encoder|quant_conv|post_quant_conv)\.|decoder\.conv_in\."
)
# diffusers' names of the VAE's attention before 0.17.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# AdcSR's halfDecoder has these for its training targets; the trained middle block is in net_params.
_HALF_DECODER_UNUSED = ("decoder.conv_in.", "decoder.mid_block.")


class Source(Protocol):
    """A tensor that is still in its file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self) -> Tensor: ...


@dataclass(frozen=True)
class _Slice:
    file: safe_open
    key: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.file.get_slice(self.key).get_shape())

    def read(self) -> Tensor:
        return self.file.get_tensor(self.key)


@dataclass(frozen=True)
class _Repeated:
    """A tensor repeated along one axis and cut at `size`."""

    source: Source
    axis: int
    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.source.shape)
        shape[self.axis] = self.size
        return tuple(shape)

    def read(self) -> Tensor:
        index = torch.arange(self.size) % self.source.shape[self.axis]
        return self.source.read().index_select(self.axis, index)


def key_table(config: StudentConfig) -> dict[str, tuple[str, ...]]:
    """Pair every spatial weight of a student with diffusers' names for it.

    Returns:
        our key -> "unet." or "decoder." and diffusers' key; three of them are stacked (q, k, v) in our one.
    """
    student = build_empty(_flat(config), "key_table")
    return {key: _diffusers_names(key) for key in student.state_dict()}


def convert_adcsr(
    net_params: str | Path, half_decoder: str | Path, config: StudentConfig = PRESETS["adcsr"]
) -> Student:
    """Read the official AdcSR pair.

    Args:
        net_params: net_params_200.pkl, the trained UNet and the decoder's trained middle block.
        half_decoder: halfDecoder.ckpt, whose upsampling half is used.
        config: the network's shape.

    Returns:
        the 2D student, float32, ready for inference; `with_temporal` or `with_recurrence` makes it a video student.

    Raises:
        CheckpointError: a file is not what it should be; it names the key.
    """
    source = f"{Path(net_params).name} + {Path(half_decoder).name}"
    with _open_archive(net_params, "adcsr_net") as net, _open_archive(half_decoder, "adcsr_decoder") as half:
        theirs: dict[str, Source] = dict(_net_names(net.state_dict(), str(net_params)))
        # All else in this file belongs to its training (encoder, quantiser, loss): AdcSR ignores it too.
        for key, tensor in half.state_dict(containing="decoder").items():
            if not key.startswith(_HALF_DECODER_UNUSED):
                theirs[key] = tensor
        student = build_empty(_flat(config), source)
        return fill(student, dict(_joined(student, theirs, source)))


def with_temporal(student: Student, placement: str = "blocks") -> Student:
    """Add temporal blocks that do nothing yet to a 2D student.

    Args:
        student: a student without temporal blocks; its weights are shared, not copied.
        placement: where the blocks go, see StudentConfig.temporal.

    Returns:
        a student of the same output, in eval mode and without gradients.
    """
    _require_flat(student)
    config = dataclasses.replace(student.config, temporal=placement)
    weights = dict(student.state_dict())
    result = build_empty(config, "with_temporal")
    for name, module in result.named_modules():
        if isinstance(module, TemporalBlock):
            hidden, channels, kernel = module.conv1.weight.shape
            fresh = TemporalBlock(channels, hidden, kernel, module.name).to(student.device, student.dtype)
            weights |= {f"{name}.{key}": tensor for key, tensor in fresh.state_dict().items()}
    return fill(result, weights)


def with_recurrence(student: Student) -> Student:
    """Let a 2D student see its own output for the frame before, of which it makes nothing yet.

    Args:
        student: a student without temporal blocks; its weights are shared, not copied.

    Returns:
        a student of the same output, in eval mode and without gradients.
    """
    _require_flat(student)
    config = dataclasses.replace(student.config, recurrent=True)
    fresh = TemporalInput(config.channels[0]).to(student.device, student.dtype)
    weights = dict(student.state_dict()) | {"unet.temporal_in.weight": fresh.weight.detach()}
    return fill(build_empty(config, "with_recurrence"), weights)


def student_from_sd(root: str | Path, config: StudentConfig = PRESETS["adcvsr"]) -> Student:
    """Prune a Stable Diffusion 2.1 folder in diffusers' layout to a student that training can start from.

    Keeps the first channels of every layer, as AdcSR does, and differs from it where a plain cut would pair
    what never belonged together: each input of a skip connection, the value and the gate of a feed-forward,
    and each attention head is cut for itself. Inputs repeat SD's four latent channels, outputs its four rows,
    both without rescaling, as AdcSR: three times the inputs, but of about half the spread of latents.

    Args:
        root: the folder that holds unet/ and vae/.
        config: the student, at most as wide as Stable Diffusion; what it has for time does nothing at first.

    Returns:
        the student, float32, in eval mode and without gradients.

    Raises:
        CheckpointError: not such a folder, or weights of another shape, such as SD 1.x or SDXL.
        ConfigError: a student without group norms, which these weights need.
    """
    if config.norm != "group":
        raise ConfigError(f'Stable Diffusion needs norm "group"; this student has norm "{config.norm}"')
    root = Path(root)
    flat = _flat(config)
    with _open_sd(root, "unet") as unet, _open_sd(root, "vae") as vae:
        theirs = {f"unet.{key}": tensor for key, tensor in unet.items()}
        for key, tensor in vae.items():
            theirs[_modern(key) if key.startswith("decoder.") else f"vae.{key}"] = tensor
        theirs = {key: tensor for key, tensor in theirs.items() if not _SD_DROPPED.match(key)}
        full = _sd_config(theirs, flat, root)
        student = build_empty(flat, "the student")
        shapes = {key: tensor.shape for key, tensor in student.state_dict().items()}
        weights = {}
        tensors = _joined(build_empty(full, str(root)), _repeat_latents(theirs, full, root), str(root))
        for key, tensor in tensors:
            weights[key] = _prune(key, tensor, shapes[key], flat, full)
    fill(student, weights)
    if config.recurrent:
        return with_recurrence(student)
    return student if config.temporal == "none" else with_temporal(student, config.temporal)


def _flat(config: StudentConfig) -> StudentConfig:
    return dataclasses.replace(config, temporal="none", recurrent=False)


def _require_flat(student: Student) -> None:
    if student.config.recurrent:
        raise ConfigError("this student is recurrent already")
    if student.config.temporal != "none":
        raise ConfigError(f'this student already has temporal blocks (placement "{student.config.temporal}")')


def _diffusers_names(key: str) -> tuple[str, ...]:
    name = key
    for rule, theirs in _RULES:
        match = rule.match(key)
        if match:
            inner, _, kind = key[match.end() :].rpartition(".")
            norms = _INNER_NORMS if ".transformer." in key else {}
            name = match.expand(theirs) + ".".join(part for part in ((_INNER | norms).get(inner, inner), kind) if part)
            break
    return tuple(name.replace("{q,k,v}", letter) for letter in "qkv") if "{q,k,v}" in name else (name,)


def _joined(student: Student, theirs: dict[str, Source], source: str) -> Iterator[tuple[str, Tensor]]:
    """Check by name and shape that tensors make up a (2D) student, then read them one by one under our names."""
    table = {key: _diffusers_names(key) for key in student.state_dict()}
    names = {name for group in table.values() for name in group}
    refuse_keys(source, "missing", names - theirs.keys())
    refuse_keys(source, "unknown", theirs.keys() - names)
    shapes = {}
    for key, group in table.items():
        parts = [theirs[name].shape for name in group]
        alike = len(set(parts)) == 1 and len(parts[0]) > 0
        shapes[key] = (len(parts) * parts[0][0], *parts[0][1:]) if alike else parts[0]
    check_shapes(shapes, student, source)
    for key, group in table.items():
        tensors = [theirs[name].read().float() for name in group]
        tensor = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        require_finite(group[0], tensor, source)
        yield key, tensor


# AdcSR


@contextlib.contextmanager
def _open_archive(path: str | Path, expected: str) -> Iterator[TorchArchive]:
    found = detect_layout(path)
    if found != expected and found in ("adcsr_net", "adcsr_decoder"):
        wanted = "net_params_200.pkl first, halfDecoder.ckpt second"
        raise CheckpointError(f"{path} is the other one of AdcSR's two files; give {wanted}")
    if Path(path).is_dir() or found in ("student", "safetensors"):
        raise CheckpointError(f"{path} is none of AdcSR's two files, which are PyTorch archives (.pkl and .ckpt)")
    with TorchArchive(Path(path)) as archive:
        yield archive


def _net_names(state: dict[str, Source], source: str) -> Iterator[tuple[str, Source]]:
    """Undo AdcSR's nesting: body.1 is the UNet, whose own `body` holds its blocks again, body.2 the decoder's mid."""
    state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    blocks = [f"down_blocks.{i}" for i in range(4)] + ["mid_block"] + [f"up_blocks.{i}" for i in range(4)]
    again = {f"body.1.body.{i}.": f"body.1.{name}." for i, name in enumerate([*blocks, "conv_norm_out"])}
    again["body.1.body.11."] = "body.1.conv_out."  # 10 is an activation
    for key, tensor in state.items():
        number = re.match(r"body\.1\.body\.\d+\.", key)
        first = key.replace(number[0], again.get(number[0], "?"), 1) if number else key
        if first == key:
            name = re.sub(r"^body\.1\.", "unet.", re.sub(r"^body\.2\.", "decoder.mid_block.", key))
            yield name, tensor
        elif first not in state:
            raise CheckpointError(f"{source}: {key} repeats {first.replace('?', 'nothing known ')}, which is missing")
        elif tensor != state[first] and not tensor.read().equal(state[first].read()):
            raise CheckpointError(f"{source}: {key} differs from {first}, which it must repeat: the file is damaged")


# Stable Diffusion


@contextlib.contextmanager
def _open_sd(root: Path, part: str) -> Iterator[dict[str, Source]]:
    folder = root / part
    stem = "diffusion_pytorch_model"
    paths = [folder / f"{stem}{end}" for end in (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise CheckpointError(
            f"{folder} holds no {stem}.safetensors or .bin; expected a Stable Diffusion 2.1 folder in diffusers' layout"
        )
    if path.suffix == ".bin":
        with TorchArchive(path) as archive:
            yield archive.state_dict()
        return
    try:
        with safe_open(str(path), "pt") as file:
            yield {key: _Slice(file, key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {' '.join(str(error).split())[:300]}") from error


def _sd_config(theirs: dict[str, Source], student: StudentConfig, root: Path) -> StudentConfig:
    """Return the student's configuration at Stable Diffusion's own widths, which the shapes tell."""
    channels = _level_widths(theirs, "unet.down_blocks")
    decoder_channels = _level_widths(theirs, "decoder.up_blocks")[::-1]
    if len(channels) != 4 or len(decoder_channels) != 4:
        raise CheckpointError(
            f"{root}: the UNet has levels of {list(channels)} channels and the decoder of {list(decoder_channels)}; "
            "expected four of each, as in Stable Diffusion 2.1 (SDXL has three)"
        )
    projection = theirs.get("unet.down_blocks.0.attentions.0.proj_in.weight")
    if projection is not None and len(projection.shape) != 2:
        raise CheckpointError(f"{root}: attention projects by convolutions, as in SD 1.x; expected SD 2.1 (linear)")
    for name, narrow, wide in (
        ("UNet", student.channels, channels),
        ("decoder", student.decoder_channels, decoder_channels),
    ):
        if any(ours > full for ours, full in zip(narrow, wide, strict=True)):
            raise CheckpointError(f"{root}: its {name} has {list(wide)} channels; the student wants {list(narrow)}")
    try:
        return dataclasses.replace(student, channels=channels, decoder_channels=decoder_channels)
    except ConfigError as error:
        raise CheckpointError(f"{root}: not the attention of Stable Diffusion 2.1: {error}") from error


def _level_widths(theirs: dict[str, Source], blocks: str) -> tuple[int, ...]:
    widths: list[int] = []
    while (first := theirs.get(f"{blocks}.{len(widths)}.resnets.0.conv1.weight")) is not None:
        widths.append(first.shape[0] if first.shape else 0)
    return tuple(widths)


def _modern(key: str) -> str:
    head, _, tail = key.partition(".mid_block.attentions.0.")
    name, _, kind = tail.rpartition(".")
    return f"{head}.mid_block.attentions.0.{_OLD_ATTENTION[name]}.{kind}" if name in _OLD_ATTENTION else key


def _repeat_latents(theirs: dict[str, Source], full: StudentConfig, root: Path) -> dict[str, Source]:
    """Let the first layer take unshuffled pixels and the last one give the decoder's features."""
    theirs, rows = dict(theirs), full.decoder_channels[-1]
    for key, axis, size in (("conv_in.weight", 1, 12), ("conv_out.weight", 0, rows), ("conv_out.bias", 0, rows)):
        tensor = theirs.get(f"unet.{key}")
        if tensor is None:
            continue  # reported with all other missing keys
        if tensor.shape[axis : axis + 1] != (4,):
            raise CheckpointError(f"{root}: unet {key} is {list(tensor.shape)}; expected 4 latent channels")
        theirs[f"unet.{key}"] = _Repeated(tensor, axis, size)
    return theirs


def _prune(key: str, tensor: Tensor, shape: tuple[int, ...], student: StudentConfig, full: StudentConfig) -> Tensor:
    """Cut rows and columns: of each group of channels that belong together the first ones stay."""
    for axis, (kept, whole) in enumerate(zip(shape, tensor.shape, strict=True)):
        groups = _skip_groups(key, axis, student, full)
        if groups is None:
            num_groups = _num_groups(key, axis, student)
            groups = [(kept // num_groups, whole // num_groups)] * num_groups
        starts = [sum(size for _, size in groups[:i]) for i in range(len(groups))]
        index = torch.cat([torch.arange(start, start + n) for start, (n, _) in zip(starts, groups, strict=True)])
        if len(index) < whole:
            tensor = tensor.index_select(axis, index)
    return tensor


def _num_groups(key: str, axis: int, config: StudentConfig) -> int:
    """Return how many equal groups of channels an axis of one of our weights has."""
    heads = 1
    if ".transformer." in key:
        _, part, level, *_ = key.split(".")
        heads = (
            {"down": config.heads, "up": config.heads[::-1]}[part][int(level)] if part != "mid" else config.mid_heads
        )
    if axis == 0 and ".qkv." in key:
        return 3 * heads
    if axis == 1 and key.endswith(".attention.out.weight"):
        return heads
    return 2 if axis == 0 and ".ff_in." in key else 1  # value and gate


def _skip_groups(key: str, axis: int, student: StudentConfig, full: StudentConfig) -> list[tuple[int, int]] | None:
    """Return the (kept, whole) channels of an upward layer's two inputs, or None for any other axis."""
    match = re.match(r"unet\.up\.(\d)\.layers\.(\d+)\.resnet\.(norm1|conv1|shortcut)\.", key)
    if match is None or axis != (0 if match[3] == "norm1" else 1):
        return None
    place = int(match[1]), int(match[2])
    return list(zip(_inputs_of_up(student)[place], _inputs_of_up(full)[place], strict=True))


def _inputs_of_up(config: StudentConfig) -> dict[tuple[int, int], tuple[int, int]]:
    """Return the widths of (features from below, skip) of every layer on the way up."""
    skips = [config.channels[0]]
    for level, width in enumerate(config.channels):
        skips += [width] * (config.layers + (level < 3))
    width, inputs = config.channels[-1], {}
    for block, level in enumerate(reversed(range(4))):
        for layer in range(config.layers + 1):
            inputs[block, layer] = width, skips.pop()
            width = config.channels[level]
    return inputs
