"""How much memory a step needs and how much is there, in bytes.

Estimates come from the config alone: the widest picture of the decoder sets a step's peak. For the full-size network
at 128x128 LR in bf16 that is 192 MiB a frame; modelled, not measured on a GPU. Knows nothing about tiles, streams or
frames.
"""

import contextlib
import ctypes
import os
import sys

import torch

from .config import StudentConfig

# Tensors of the widest size that are alive at once: the input, the convolution's result and its workspace.
_ALIVE = 3
# Share of the free memory that a step may plan with; the rest is for weights' workspace and other programs.
_SHARE = 0.6
# Beyond this many frames a step gains no speed and the first picture comes later. A CPU gains nothing from the start.
MAX_CHUNK, _MAX_CHUNK_CPU = 8, 4
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h


def bytes_per_frame(config: StudentConfig, height: int, width: int, dtype: torch.dtype) -> int:
    """Return the estimated peak of one LR frame of height x width in a step."""
    widths = tuple(reversed(config.decoder_channels))
    # Level i works at 2**i times half the LR size; an upsampling shows its own width at the next level's size.
    levels = [w * 4**i for i, w in enumerate(widths)] + [w * 4 ** (i + 1) for i, w in enumerate(widths[:-1])]
    unet = 8 * config.channels[0] if config.heads[0] else 3 * config.channels[0]
    widest = max(*levels, unet) * (height // 2) * (width // 2)
    return _ALIVE * widest * dtype.itemsize


def available_bytes(device: torch.device) -> int:
    """Return the free memory of a device; for the CPU what the system can hand out without swapping."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if sys.platform == "win32":
        return _available_windows()
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        # macOS tells no better figure without a helper program: count on half of the memory.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def choose_chunk(
    config: StudentConfig, height: int, width: int, dtype: torch.dtype, available: int, device: torch.device
) -> int:
    """Return the frames per step that fit, at least 1."""
    fitting = int(available * _SHARE) // bytes_per_frame(config, height, width, dtype)
    most = _MAX_CHUNK_CPU if device.type == "cpu" else MAX_CHUNK
    return max(1, min(most, fitting))


def choose_tile(
    config: StudentConfig, height: int, width: int, dtype: torch.dtype, available: int, multiple: int
) -> int:
    """Return the largest tile edge whose single frame fits, or 0 when the whole frame does."""
    budget = available * _SHARE
    if bytes_per_frame(config, height, width, dtype) <= budget:
        return 0
    tile = max(height, width) // multiple * multiple
    while tile > 4 * multiple and bytes_per_frame(config, tile, tile, dtype) > budget:
        tile -= multiple
    return tile


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception means that an allocation failed, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def release_cached(device: torch.device) -> None:
    """Hand a device's cached but unused memory back, after a failed allocation."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def keep_freed_memory() -> None:
    """Let this process keep freed memory for its next step instead of handing it back (Linux with glibc only).

    A step on a CPU frees and takes the same large blocks again and again; fetched from the system each time, they
    cost a good part of a small network's time. For programs of our own: it changes the whole process.
    """
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            allocator = ctypes.CDLL("libc.so.6")
            allocator.mallopt(_M_MMAP_MAX, 0)
            allocator.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


class _MemoryStatus(ctypes.Structure):
    _fields_ = [
        ("length", ctypes.c_ulong),
        ("load", ctypes.c_ulong),
        *((name, ctypes.c_ulonglong) for name in ("total", "free", "total_page", "free_page", "total_virtual")),
        *((name, ctypes.c_ulonglong) for name in ("free_virtual", "free_extended")),
    ]


def _available_windows() -> int:
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return status.free
