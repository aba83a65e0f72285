"""Seconds and bytes: of calls in turns, of one call alone; and what machine they were measured on.

A time is the best of several rounds, in which everything that is compared runs once, in turns: what else a machine does
only ever makes a call longer. A single thread of a CPU is timed by the processor's own clock, which stands still while
other programs run: `--threads 1` measures well on a busy machine, where several threads wait for each other. Knows
nothing about networks or files.
"""

import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adcvsr_core.memory import keep_freed_memory

Call = Callable[[], object]
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # what Linux takes for it (man 5 proc)


def prepare(device: torch.device) -> None:
    """Set the process up as the command line does, and let convolutions of a GPU be chosen by trial."""
    if device.type == "cpu":
        keep_freed_memory()
    torch.backends.cudnn.benchmark = True


def wait(device: torch.device) -> None:
    """Return when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Call, device: torch.device) -> float:
    """Return how long one call takes, the device's work included."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    wait(device)
    started = clock()
    call()
    wait(device)
    return clock() - started


def in_turns(calls: dict[str, Call], device: torch.device, rounds: int, patience: float = 60) -> dict[str, float]:
    """Time calls in turns, one round more than `rounds` to warm up; the best of each.

    Args:
        calls: by name.
        device: where they work.
        rounds: at least 1.
        patience: a call that took this many seconds in all, in two runs or more, is not run again.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            if len(times[name]) < 2 or sum(times[name]) < patience:
                times[name].append(seconds(call, device))
    return {name: min(taken) for name, taken in times.items()}


class PeakMemory:
    """The most memory held inside a `with` block.

    Attributes:
        bytes: a GPU's allocated memory, or on Linux the process's resident memory; None where neither can be asked.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.bytes: int | None = None

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._asked = _reset_resident_peak()
        return self

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
        elif self._asked:
            self.bytes = _resident_peak()


def _reset_resident_peak() -> bool:
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:  # another system, or one that does not let us
        return False
    return True


def _resident_peak() -> int:
    return next(1024 * int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))


def own_peak_bytes(call: Call, modules: Iterable[nn.Module], device: torch.device) -> int | None:
    """Return the most that one network alone would take of a GPU during a call, its weights included.

    None on a CPU, whose process does not know whose memory is whose.
    """
    if device.type != "cuda":
        return None
    call()  # its workspaces are there now
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    with PeakMemory(device) as peak:
        call()
    return peak.bytes - before + weight_bytes(modules)


def num_parameters(modules: Iterable[nn.Module]) -> int:
    """Return the number of parameters of modules that share none."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def weight_bytes(modules: Iterable[nn.Module]) -> int:
    """Return the bytes of all parameters and buffers of modules that share none."""
    return sum(each.nbytes for module in modules for each in (*module.parameters(), *module.buffers()))


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine, its software and the date."""
    facts = {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "busy": _busy(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(device),
    }
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        facts |= {"gpu": about.name, "gpu_bytes": about.total_memory, "cuda": torch.version.cuda}
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or sys.platform


def _busy() -> float | None:
    """Return how many programs wanted a core over the last minute, this one among them."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
