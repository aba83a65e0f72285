"""Our own checkpoint: one safetensors file with the StudentConfig in its metadata, and what all our files share.

Nothing in a file is ever executed, nothing is silently dropped or left at its random start: a key too many or
too few, a wrong shape or a weight that is not finite is refused by name. Knows the layouts of other programs
only so far as to say what to do with them; `convert` reads those.
"""

import contextlib
import dataclasses
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .config import StudentConfig
from .errors import CheckpointError, ConfigError, OutputError
from .student import Student

WEIGHTS = Path(__file__).resolve().parent / "weights"
CONVERT_HINT = "python -m adcvsr_core convert --adcsr net_params_200.pkl halfDecoder.ckpt --out model.safetensors"

CONFIG, LORA = "adcvsr_config", "adcvsr_lora"  # keys of the metadata; a file with LORA is a LoRA, see lora.py
_RESERVED, _FORMAT = "adcvsr_", "adcvsr_format"
_VERSION = "1"
RICH = ".rich"  # ends the stem of a model's rich partner, see `load_student`
_PICKLE_SUFFIXES = (".pkl", ".ckpt", ".pt", ".pth", ".bin")
_BYTES_SCANNED = 1 << 22  # enough for the names in a checkpoint's pickle, and a bound for a hostile one


def save_student(
    student: Student, path: str | Path, dtype: torch.dtype | None = None, metadata: dict[str, str] | None = None
) -> None:
    """Write a student's weights and configuration to one safetensors file, whole or not at all.

    Args:
        student: the network.
        path: the file, replaced if it is there.
        dtype: floating type of the stored weights, None = as they are.
        metadata: further texts to store, such as the recipe; `read_metadata` gives them back.

    Raises:
        CheckpointError: a weight is NaN or infinite, or becomes so in `dtype`.
        ConfigError: metadata that is not text, or uses a reserved key.
        OutputError: the file cannot be written.
    """
    own = {CONFIG: student.config.to_json(), _FORMAT: _VERSION}
    write_weights(path, student.state_dict(), dtype, own, metadata)


def load_student(
    name_or_path: str | Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    fidelity: float = 1.0,
) -> Student:
    """Read a student from a file of our own layout, ready for inference.

    Args:
        name_or_path: "default", another bundled model's name, or a safetensors file that `save_student` wrote.
        dtype: floating type to compute in.
        device: where to put the weights.
        fidelity: in [0, 1]. 1 takes the file's weights as they are: the faithful end. Below 1 needs its rich partner,
            NAME.rich.safetensors beside NAME.safetensors (the same network, trained on to draw more detail), and
            mixes the weights of both; 0 is the partner alone.

    Returns:
        the student, in eval mode, without gradients, channels_last.

    Raises:
        CheckpointError: a file is missing, broken, of another layout, or does not fit its configuration or its partner.
        ConfigError: `dtype` is not a floating type, or `fidelity` is outside [0, 1] or below 1 without a partner.
    """
    if not dtype.is_floating_point:
        raise ConfigError(f"a student computes in a floating type, not in {dtype}")
    if not 0 <= fidelity <= 1:
        raise ConfigError(f"fidelity {fidelity} is outside [0, 1]")
    path = find_weights(name_or_path)
    if fidelity == 1:
        return _read_student(path, dtype, device)
    rich = rich_partner(path)
    if rich is None:
        raise ConfigError(
            f"{path} has no richer partner, so its fidelity is 1; "
            f"lower ones need {path.stem}{RICH}{path.suffix} beside it"
        )
    if fidelity == 0:
        return _read_student(rich, dtype, device)
    # Mixed in float32: in half precision the steps between two similar weights are coarse.
    ends = [_read_student(each, torch.float32, "cpu") for each in (rich, path)]
    if ends[0].config != ends[1].config:
        raise CheckpointError(f"{rich} is another network than {path}; their weights cannot be mixed")
    weights = {}
    for (key, richer), faithful in zip(ends[0].state_dict().items(), ends[1].state_dict().values(), strict=True):
        weights[key] = torch.lerp(richer, faithful, fidelity).to(device=device, dtype=dtype)
        require_finite(key, weights[key], f"{path} at fidelity {fidelity}")
    return fill(build_empty(ends[0].config, str(path)), weights)


def rich_partner(name_or_path: str | Path) -> Path | None:
    """Return the file that a model's fidelity below 1 leads to, None where there is none."""
    path = find_weights(name_or_path)
    partner = path.with_name(f"{path.stem}{RICH}{path.suffix}")
    return partner if partner.is_file() else None


def _read_student(path: Path, dtype: torch.dtype, device: torch.device | str) -> Student:
    with open_weights(path) as file:
        config = _config_of(path, file.metadata())
        if 4 * max(config.layers, config.decoder_layers) > len(file.keys()):  # before building something absurd
            raise CheckpointError(f"{path}: {len(file.keys())} tensors are too few for {config.layers} layers a level")
        student = build_empty(config, str(path))
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        check_shapes(shapes, student, str(path))
        weights = read_weights(file, str(path), dtype, device)
    return fill(student, weights)


def read_metadata(name_or_path: str | Path) -> dict[str, str]:
    """Return the texts stored beside the weights of one of our checkpoints, without reading the weights."""
    path = find_weights(name_or_path)
    with open_weights(path) as file:
        metadata = file.metadata()
    _config_of(path, metadata)
    return metadata


def read_config(name_or_path: str | Path) -> StudentConfig:
    """Return the configuration of one of our checkpoints, without reading the weights."""
    path = find_weights(name_or_path)
    with open_weights(path) as file:
        return _config_of(path, file.metadata())


def bundled_models() -> list[str]:
    """Return the names of the models that come with the package, "default" first; a rich partner is none by itself."""
    names = (path.stem for path in WEIGHTS.glob("*.safetensors") if not path.stem.endswith(RICH))
    return sorted(names, key=lambda name: (name != "default", name))


def find_weights(name_or_path: str | Path) -> Path:
    """Return the file that a bundled model's name, or a path, stands for.

    Raises:
        CheckpointError: there is no such name or no such file.
    """
    if isinstance(name_or_path, str) and name_or_path in bundled_models():
        return WEIGHTS / f"{name_or_path}.safetensors"
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; expected a safetensors file that adcvsr_core wrote")
    if path.suffix or len(path.parts) > 1:
        raise CheckpointError(f"no file {path}; give an existing file, or a bundled model: {_bundled()}")
    raise CheckpointError(f"no bundled model {str(name_or_path)!r}; there are: {_bundled()}. Or give a file's path")


def detect_layout(path: str | Path) -> str:
    """Say what a weights file or folder looks like, reading little and executing nothing.

    Returns:
        "student" (ours), "lora" (ours, to be put on a student), "adcsr_net" (net_params_*.pkl), "adcsr_decoder"
        (halfDecoder.ckpt), "diffusers" (a Stable Diffusion folder), "safetensors" (another program's), "torch" (another
        PyTorch archive), "pickle" (a PyTorch file from before 1.6, or any pickle) or "unknown".

    Raises:
        CheckpointError: there is nothing at this path, or it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return "diffusers" if (path / "unet").is_dir() and (path / "vae").is_dir() else "unknown"
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    if head[:4] == b"PK\x03\x04":
        return _torch_layout(path)
    if head[:1] == b"\x80" and 2 <= head[1] <= 5:
        return "pickle"
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            return "lora" if LORA in metadata else "student" if CONFIG in metadata else "safetensors"
    except (SafetensorError, OSError, ValueError):
        return "unknown"


def build_empty(config: StudentConfig, source: str) -> Student:
    """Build a student without memory for its weights.

    Raises:
        CheckpointError: the configuration that `source` gave cannot be built.
    """
    try:
        with torch.device("meta"):
            return Student(config)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"{source}: its configuration cannot be built: {_line(error)}") from error


def check_shapes(shapes: dict[str, tuple[int, ...]], student: Student, source: str) -> None:
    """Raise CheckpointError unless the shapes are exactly those of the student's weights, key by key."""
    expected = {key: tuple(tensor.shape) for key, tensor in student.state_dict().items()}
    wrong = [
        f"{k} {list(shapes[k])} instead of {list(expected[k])}"
        for k in expected
        if k in shapes and shapes[k] != expected[k]
    ]
    refuse_keys(source, "missing", expected.keys() - shapes.keys())
    refuse_keys(source, "unknown", shapes.keys() - expected.keys())
    refuse_keys(source, "wrongly shaped", wrong)


def refuse_keys(source: str, what: str, keys: Iterable[str]) -> None:
    """Raise CheckpointError that names the first few keys and counts them; do nothing when there are none."""
    keys = sorted(keys)
    if keys:
        shown = ", ".join(key[:150] if key.isprintable() else repr(key)[:150] for key in keys[:4])
        more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
        raise CheckpointError(f"{source}: {len(keys)} {what} keys: {shown}{more}")


def fill(student: Student, weights: dict[str, Tensor]) -> Student:
    """Give an empty student these tensors, which fit, and set it up for inference; `weights` is given away."""
    for key, tensor in weights.items():
        if tensor.ndim == 4:  # here and one by one, or the whole network would be there twice
            weights[key] = tensor.contiguous(memory_format=torch.channels_last)
    student.load_state_dict(weights, assign=True)
    return student.to(memory_format=torch.channels_last).requires_grad_(False).eval()


def require_finite(key: str, tensor: Tensor, source: str) -> None:
    """Raise CheckpointError when a weight holds NaN or infinity."""
    # The extremes carry NaN along and need no memory.
    if not bool(torch.stack(tensor.aminmax()).isfinite().all()):
        raise CheckpointError(f"{source}: {key} holds NaN or infinity in {str(tensor.dtype).removeprefix('torch.')}")


@contextlib.contextmanager
def open_weights(path: Path) -> Iterator[safe_open]:
    """Open a safetensors file; what is wrong with it, or with reading it, becomes a CheckpointError."""
    layout = detect_layout(path)
    if layout in ("adcsr_net", "adcsr_decoder"):
        raise CheckpointError(f"{path} is one of the two official AdcSR files; convert the pair once: {CONVERT_HINT}")
    if layout in ("torch", "pickle") or path.suffix in _PICKLE_SUFFIXES:
        raise CheckpointError(f"{path} is a PyTorch pickle, which is not read; if it is AdcSR's: {CONVERT_HINT}")
    try:
        with safe_open(str(path), "pt") as file:
            yield file
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {_line(error)}") from error


def read_weights(file: safe_open, source: str, dtype: torch.dtype, device: torch.device | str) -> dict[str, Tensor]:
    """Read all tensors of an open file into memory of their own.

    Raises:
        CheckpointError: one is not of a floating type, or holds NaN or infinity in `dtype`; it is named.
    """
    weights = {}
    for key in file.keys():  # noqa: SIM118
        tensor = file.get_tensor(key)
        if not tensor.is_floating_point():
            raise CheckpointError(f"{source}: {key} holds {tensor.dtype}; expected floating-point weights")
        layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
        # A copy, for what safetensors gives is a window into the file.
        weights[key] = tensor.to(device=device, dtype=dtype, memory_format=layout, copy=True)
        require_finite(key, weights[key], source)
    return weights


def write_weights(
    path: str | Path,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    own: dict[str, str],
    metadata: dict[str, str] | None,
) -> None:
    """Write tensors and texts to one safetensors file, whole or not at all.

    Args:
        path: the file, replaced if it is there.
        weights: the tensors.
        dtype: floating type to store them in, None = as they are.
        own: the texts that make up the format; their keys begin with "adcvsr_".
        metadata: the user's texts.

    Raises:
        CheckpointError: a weight is NaN or infinite, or becomes so in `dtype`.
        ConfigError: metadata that is not text, or uses a reserved key.
        OutputError: the file cannot be written.
    """
    path, metadata = Path(path), metadata or {}
    if any(not isinstance(k, str) or not isinstance(v, str) or k.startswith(_RESERVED) for k, v in metadata.items()):
        raise ConfigError(f"metadata must map text to text, and keys that begin with {_RESERVED} are reserved")
    tensors = {}
    for key, tensor in weights.items():
        tensors[key] = tensor.detach().to("cpu", dtype).contiguous()
        require_finite(key, tensors[key], f"not saving {path.name}")
    _write(path, tensors, metadata | own)


def parse_config(text: str, source: str) -> StudentConfig:
    """Return the configuration that a file's metadata holds.

    Raises:
        CheckpointError: it is none, or a field has a wrong type.
    """
    try:
        config = StudentConfig.from_json(text)
    except (ConfigError, RecursionError, ValueError) as error:
        raise CheckpointError(f"{source}: bad configuration: {_line(error)}") from error
    for field in dataclasses.fields(config):
        value, allowed = getattr(config, field.name), {type(field.default)}
        allowed |= {int} if float in allowed else set()
        if type(value) not in allowed:
            raise CheckpointError(f"{source}: bad configuration: {field.name} is {value!r}")
    return config


def _config_of(path: Path, metadata: dict[str, str] | None) -> StudentConfig:
    if metadata and LORA in metadata:
        raise CheckpointError(
            f"{path} is a LoRA: it changes a model and is none. Give it beside its model: --lora {path.name} on the "
            "command line, or the menu lora of AdcVSR Load Model"
        )
    if not metadata or CONFIG not in metadata:
        raise CheckpointError(
            f"{path} holds no {CONFIG}, so it is another program's model; expected a file that adcvsr_core wrote"
        )
    if metadata.get(_FORMAT) != _VERSION:
        raise CheckpointError(
            f"{path} has format {metadata.get(_FORMAT)!r} and this version reads {_VERSION!r}: update adcvsr_core"
        )
    return parse_config(metadata[CONFIG], str(path))


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    part = path.with_name(path.name + ".part")
    try:
        part.unlink(missing_ok=True)
        part.touch()
        mode = part.stat().st_mode
        save_file(tensors, part, metadata)
        part.chmod(mode)  # safetensors lets nobody else read it
        with open(part, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {path}: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _torch_layout(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((n for n in archive.namelist() if n.endswith("data.pkl")), None)
            if name is None:
                return "unknown"
            with archive.open(name) as file:
                text = file.read(_BYTES_SCANNED)
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, NotImplementedError):
        return "unknown"
    if b"body.1.conv_in.weight" in text:
        return "adcsr_net"
    return "adcsr_decoder" if b"decoder.up_blocks.0.resnets.0" in text else "torch"


def _bundled() -> str:
    return ", ".join(bundled_models()) or "none"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
