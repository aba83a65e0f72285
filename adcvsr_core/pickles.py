"""Read the tensors of a PyTorch archive without running any of its pickle.

A pickle is a program, so this reader gives it nothing to call: every global that it names becomes an inert
placeholder, but for dictionaries, storage types and the functions that rebuild plain tensors, which are
replaced by our own. Nothing is imported and no attribute is set on anything that outlives the reading.
Tensors stay in the file until they are asked for. Knows nothing about networks. The archive format is that
of torch.save since PyTorch 1.6: a zip without compression, one pickle, one entry per storage.
"""

import io
import math
import pickle
import pickletools
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import CheckpointError

_BYTES_PICKLE_MAX = 1 << 28
_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Sealed:
    __slots__ = ()

    def __setstate__(self, _: Any) -> None:
        """Ignore the attributes that a pickle would set."""


@dataclass(frozen=True)
class _Storage(_Sealed):
    archive: "TorchArchive"
    key: str
    dtype: torch.dtype
    num_elements: int


@dataclass(frozen=True)
class LazyTensor(_Sealed):
    """A tensor that is still in its archive; equal ones are the same memory."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self) -> Tensor:
        """Return the tensor, contiguous and with memory of its own."""
        flat = self.storage.archive.read_storage(self.storage)
        reach = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        if math.prod(self.shape) > flat.numel() or (0 not in self.shape and reach >= flat.numel()):
            raise CheckpointError(f"{self.storage.archive.path} is damaged: a tensor is larger than its storage")
        tensor = flat.as_strided(self.shape, self.stride, self.offset)
        whole = tensor.numel() == flat.numel() and tensor.is_contiguous()
        return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


class Inert(_Sealed):
    """What an unknown global makes: it takes anything and does nothing. Subclassed afresh for each global."""

    __slots__ = ()
    named = "nothing"

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        pass

    def _ignore(self, *_: Any) -> None:
        pass

    # All that a pickle can call on an object that it made.
    append = extend = add = __setitem__ = _ignore


class _Dict(_Sealed, dict):
    __slots__ = ()


class _RebuildTensor(_Sealed):
    """Stands for torch's functions of (storage, offset, size, stride, ...)."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> LazyTensor:
        counts = (offset, *shape, *stride)
        whole = isinstance(storage, _Storage) and isinstance(shape, tuple) and isinstance(stride, tuple)
        if not whole or len(shape) != len(stride) or not all(isinstance(n, int) and n >= 0 for n in counts):
            raise pickle.UnpicklingError("a tensor is described by something else than storage, offset, size, stride")
        return LazyTensor(storage, offset, shape, stride)


class _RebuildParameter(_Sealed):
    """Stands for torch's functions of (tensor, ...)."""

    __slots__ = ()

    def __call__(self, tensor: Any, *_: Any) -> Any:
        return tensor


class _Unpickler(pickle.Unpickler):
    def __init__(self, text: bytes, archive: "TorchArchive"):
        super().__init__(io.BytesIO(text), encoding="utf-8")
        self._archive = archive

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _RebuildTensor()
        if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return _RebuildParameter()
        if (module, name) == ("collections", "OrderedDict"):
            return type("OrderedDict", (_Dict,), {"__slots__": ()})
        return type("Inert", (Inert,), {"__slots__": (), "named": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, num_elements = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError("unknown storage")
        return _Storage(self._archive, key, dtype, int(num_elements))


class TorchArchive:
    """An open PyTorch archive; a context manager.

    Args:
        path: the file.

    Attributes:
        content: what was saved, with LazyTensor for tensors and Inert for anything that is not plain data.

    Raises:
        CheckpointError: it is no such archive, or it is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        with open(path, "rb") as file:
            if file.read(4) != b"PK\x03\x04":
                raise CheckpointError(
                    f"{path} is no PyTorch archive; if it was saved by PyTorch before 1.6 and you trust it, save it "
                    'anew: torch.save(torch.load("old", weights_only=True), "new")'
                )
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise CheckpointError(f"{path} is damaged or cut short: {error}") from error
        try:
            self._load()
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> "TorchArchive":
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def state_dict(self, containing: str = "") -> dict[str, LazyTensor]:
        """Return the saved dictionary of tensors, or the one under "state_dict".

        Args:
            containing: leave out keys without this text.

        Raises:
            CheckpointError: there is none, or it holds something that is no tensor.
        """
        state = self.content.get("state_dict", self.content) if isinstance(self.content, dict) else self.content
        if not isinstance(state, dict):
            raise CheckpointError(f"{self.path} holds {_what(state)} instead of a dictionary of tensors")
        chosen = {key: value for key, value in state.items() if isinstance(key, str) and containing in key}
        for key, value in chosen.items():
            if not isinstance(value, LazyTensor):
                raise CheckpointError(
                    f"{self.path}: {key if key.isprintable() else repr(key)} is {_what(value)}; expected a tensor"
                )
        return chosen

    def read_storage(self, storage: _Storage) -> Tensor:
        """Return a storage's elements as a flat tensor."""
        data = self._read(f"{self._prefix}data/{storage.key}")
        if len(data) != storage.num_elements * storage.dtype.itemsize:
            raise CheckpointError(f"{self.path} is damaged: storage {storage.key} has {len(data)} bytes")
        return torch.frombuffer(data, dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)

    def _load(self) -> None:
        names = self._zip.namelist()
        roots = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise CheckpointError(f"{self.path} is a zip file, but no PyTorch archive")
        self._prefix = roots[0].removesuffix("data.pkl")
        if f"{self._prefix}byteorder" in names and self._read(f"{self._prefix}byteorder").strip() != b"little":
            raise CheckpointError(f"{self.path} was saved on a big-endian machine; save it anew on another")
        if self._zip.getinfo(roots[0]).file_size > _BYTES_PICKLE_MAX:
            raise CheckpointError(f"{self.path} has a pickle of more than {_BYTES_PICKLE_MAX} bytes: not a checkpoint")
        text = bytes(self._read(roots[0]))
        try:
            for opcode, argument, _ in pickletools.genops(text):
                # The unpickler makes room for as many memos as the largest number says.
                if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > len(text):
                    raise pickle.UnpicklingError("a memo number that the pickle is too short for")
            self.content = _Unpickler(text, self).load()
        except Exception as error:  # a damaged or hostile pickle can fail in any way
            text = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{self.path} is damaged: {type(error).__name__}: {text}") from error

    def _read(self, name: str) -> bytearray:
        try:
            if self._zip.getinfo(name).compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"{self.path}: {name} is compressed, which PyTorch never does")
            return bytearray(self._zip.read(name))
        except (KeyError, zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{self.path} is damaged or cut short: {error}") from error


def _what(value: Any) -> str:
    return f"a {value.named!r}" if isinstance(value, Inert) else f"a {type(value).__name__}"
