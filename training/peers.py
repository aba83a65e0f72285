"""Other upscalers to measure against, read from the files that their users have: ncnn's `.param` and `.bin`.

The networks are RealSR's and Real-ESRGAN's, as registry packages carry them (`PEERS`);
`training.prepare_benchmark_data` fetches them. ncnn's files are a list of layers and their weights one after the other,
in half precision; they are run here by torch, layer by layer. Every peer enlarges frames 4 times, each alone. Knows
nothing about clips.

Sources: ncnn's documentation of its param and model files; Real-ESRGAN (Wang et al., 2021, BSD-3-Clause), RealSR (Ji et
al., 2020, Apache-2.0).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcvsr_core.errors import CheckpointError, ConfigError, InputError

# name -> the files' stem below `peers/` of a prepared folder.
PEERS = {
    "animevideov3": "REALESRGAN_ANIMAVIDEOV3_UP4X",
    "x4plus": "REALESRGAN_X4PLUS_UP4X",
    "realsr-df2k": "REALSR_DF2K_UP4X",
}
_MAGIC = "7767517"
_HALF = 0x01306B47  # stands before weights in half precision
_SUM = 1  # of Eltwise's operations; the others do not occur
_RELU, _LEAKY_RELU = "1", "2"
_PAD = 4  # LR pixels


def load_peer(name: str, data: Path) -> "NcnnNetwork":
    """Load one of `PEERS` from a prepared folder.

    Raises:
        ConfigError: an unknown name.
        InputError: the files are not there.
        CheckpointError: they are not what they should be.
    """
    if name not in PEERS:
        raise ConfigError(f"unknown peer {name!r}; expected one of {', '.join(PEERS)}")
    path = data / "peers" / f"{PEERS[name]}.param"
    if not path.exists():
        raise InputError(f"{path} is missing; fetch it with `python -m training.prepare_benchmark_data`")
    # A CPU runs it faster so.
    return NcnnNetwork(path).eval().requires_grad_(False).to(memory_format=torch.channels_last)


@torch.no_grad()
def enlarge(network: "NcnnNetwork", frames: Tensor) -> Tensor:
    """Enlarge frames [N,3,h,w] in 0..1 to [N,3,4h,4w], one by one, with repeated edges beyond which it never sees."""
    padded = F.pad(frames, (_PAD,) * 4, mode="replicate")
    inside = slice(4 * _PAD, -4 * _PAD)
    return torch.cat([network(frame[None])[..., inside, inside] for frame in padded])


@dataclass(frozen=True)
class _Layer:
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: dict[str, str]


class NcnnNetwork(nn.Module):
    """A network of ncnn's, as far as upscalers use its layers.

    Args:
        path: the `.param` file; the `.bin` file lies beside it.

    Raises:
        CheckpointError: no such file format, a layer that is not known here, or too few or too many weights.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.layers = _read_layers(path)
        weights = _Weights(path.with_suffix(".bin"))
        channels = {"data": 3}
        for index, layer in enumerate(self.layers):
            channels |= dict.fromkeys(layer.outputs, sum(channels[name] for name in layer.inputs[:1]))
            if layer.kind == "Concat":
                channels[layer.outputs[0]] = sum(channels[name] for name in layer.inputs)
            elif layer.kind == "Convolution":
                width, kernel = int(layer.options["0"]), int(layer.options["1"])
                shape = (width, channels[layer.inputs[0]], kernel, kernel)
                self.register_buffer(f"weight{index}", weights.tagged(shape))
                self.register_buffer(f"bias{index}", weights.plain((width,)))
                channels[layer.outputs[0]] = width
            elif layer.kind == "PReLU":
                self.register_buffer(f"weight{index}", weights.plain((int(layer.options["0"]),)))
            elif layer.kind == "PixelShuffle":
                channels[layer.outputs[0]] //= int(layer.options["0"]) ** 2
        weights.check_used()
        last_use = {name: index for index, layer in enumerate(self.layers) for name in layer.inputs}
        self._done_after = [
            [name for name in layer.inputs if last_use[name] == i] for i, layer in enumerate(self.layers)
        ]

    def forward(self, frames: Tensor) -> Tensor:
        """Enlarge [N,3,H,W] in 0..1 to [N,3,4H,4W], not clamped."""
        values = {"data": frames}
        for index, layer in enumerate(self.layers):
            made = self._run(index, layer, [values[name] for name in layer.inputs])
            values |= dict.fromkeys(layer.outputs, made)
            for name in self._done_after[index]:
                values.pop(name, None)
        return values["output"]

    def _run(self, index: int, layer: _Layer, inputs: list[Tensor]) -> Tensor:
        options, x = layer.options, inputs[0]
        match layer.kind:
            case "Split":
                return x
            case "Concat":
                return torch.cat(inputs, 1)
            case "Convolution":
                x = F.conv2d(x, self._buffer("weight", index), self._buffer("bias", index), padding=int(options["4"]))
                return F.leaky_relu(x, _slope(options))
            case "PReLU":
                return F.prelu(x, self._buffer("weight", index))
            case "PixelShuffle":
                return F.pixel_shuffle(x, int(options["0"]))
            case "Interp":
                return F.interpolate(x, scale_factor=float(options["1"]), mode="nearest")
            case "Eltwise":
                scales = [float(value) for value in options["-23301"].split(",")[1:]]
                return sum(scale * each for scale, each in zip(scales, inputs, strict=True))
            case _:  # BinaryOp, an addition
                return x + inputs[1]

    def _buffer(self, name: str, index: int) -> Tensor:
        return getattr(self, f"{name}{index}")


def _slope(options: dict[str, str]) -> float:
    """Return what a convolution's own activation multiplies values below 0 by; 1 = it has none."""
    match options.get("9", "0"):
        case "0":
            return 1.0
        case kind if kind == _RELU:
            return 0.0
        case _:
            return float(options["-23310"].split(",")[1])


# What an option must be, where only one of its values is understood here: stride 1, equal padding, nearest, sums.
_REQUIRED = {
    "Convolution": {"3": ("1",), "2": ("1",), "5": ("1",), "9": ("0", _RELU, _LEAKY_RELU)},
    "Interp": {"0": ("1",)},
    "Eltwise": {"0": (str(_SUM),)},
    "BinaryOp": {"0": ("0",)},
    "PixelShuffle": {"1": ("0",)},
    "PReLU": {},
    "Split": {},
    "Concat": {"0": ("0",)},
}


def _read_layers(path: Path) -> list[_Layer]:
    lines = path.read_text("ascii", errors="replace").split("\n")
    if lines[0].strip() != _MAGIC:
        raise CheckpointError(f"{path} is no ncnn param file: it does not begin with {_MAGIC}")
    layers = []
    for line in lines[2:]:
        words = line.split()
        if not words or words[0] == "Input":
            continue
        kind, num_in, num_out = words[0], int(words[2]), int(words[3])
        names = words[4 : 4 + num_in + num_out]
        options = dict(word.split("=", 1) for word in words[4 + num_in + num_out :])
        required = _REQUIRED.get(kind)
        if required is None or any(options.get(key, values[0]) not in values for key, values in required.items()):
            raise CheckpointError(f"{path}: a layer that is not understood here: {line.strip()}")
        layers.append(_Layer(kind, tuple(names[:num_in]), tuple(names[num_in:]), options))
    return layers


class _Weights:
    """The `.bin` file, read from its beginning to its end."""

    def __init__(self, path: Path):
        if not path.exists():
            raise CheckpointError(f"{path} is missing; it belongs beside the .param file")
        self.path, self._bytes, self._at = path, path.read_bytes(), 0

    def tagged(self, shape: tuple[int, ...]) -> Tensor:
        """Read weights that say themselves whether they are in half precision."""
        half = int(self._take(np.uint32, 1)[0]) == _HALF
        values = self._take(np.float16 if half else np.float32, int(np.prod(shape)))
        self._at += -self._at % 4
        return torch.from_numpy(values.astype(np.float32)).reshape(shape)

    def plain(self, shape: tuple[int, ...]) -> Tensor:
        """Read weights in float32."""
        return torch.from_numpy(self._take(np.float32, int(np.prod(shape))).copy()).reshape(shape)

    def check_used(self) -> None:
        if self._at != len(self._bytes):
            raise CheckpointError(f"{self.path} holds {len(self._bytes)} bytes, the layers take {self._at}")

    def _take(self, dtype: type, count: int) -> np.ndarray:
        end = self._at + count * np.dtype(dtype).itemsize
        if end > len(self._bytes):
            raise CheckpointError(f"{self.path} ends after {len(self._bytes)} bytes; the layers need more")
        values = np.frombuffer(self._bytes, dtype, count, self._at)
        self._at = end
        return values
