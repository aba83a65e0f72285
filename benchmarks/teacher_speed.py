"""A DOVE-shaped teacher beside a student, both with random weights: `python -m benchmarks.teacher_speed`.

Seconds and peak memory for one clip, measured in turns, the best of several rounds. At true size it writes and reads
back an 11.6 GB folder (or takes one: --dove) and wants a GPU; --tiny tries the command itself on any machine, and its
figures mean nothing.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from adcvsr_core import PRESETS, Student
from adcvsr_core.errors import AdcvsrError
from training.teachers.dove import DoveTeacher
from training.teachers.random_dove import write_random_dove


@torch.no_grad()
def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    device = torch.device(options.device)
    frames, size = (9, 16) if options.tiny else (options.frames, options.size)
    lr = torch.rand(1, frames, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    lr = lr.to(device)
    try:
        with _dove_folder(options) as folder:
            teacher = DoveTeacher(folder, device)
            teacher.load()
    except AdcvsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    name = "default" if options.tiny else "adcvsr"
    student = Student(PRESETS[name]).eval().requires_grad_(False).to(device, teacher.dtype)
    networks = {
        "DOVE (transformer and VAE)": (lambda: teacher(lr, ["clip"]), [teacher.transformer, teacher.vae]),
        f"student {name!r}": (lambda: student(lr), [student]),
    }
    print(f"{device}, {teacher.dtype}, {frames} frames {4 * size}x{4 * size}, random weights")
    seconds = {each: float("inf") for each in networks}
    for _ in range(options.rounds + 1):  # one to warm up, which is also slower: the best counts
        for each, (call, _) in networks.items():
            seconds[each] = min(seconds[each], _seconds(call, device))
    for each, (call, modules) in networks.items():
        parameters = sum(p.numel() for module in modules for p in module.parameters())
        print(f"{each}: {parameters / 1e9:.4f} B parameters, {seconds[each]:.3f} s, {_memory(call, modules, device)}")
    first, second = seconds.values()
    print(f"ratio of seconds: {first / second:.2f}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.teacher_speed", description=__doc__.split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a shrunken teacher, the bundled student, 9 frames 64x64")
    parser.add_argument("--dove", type=Path, help="folder of DOVE; random weights by default")
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("--size", type=int, default=128, help="LR edge, a multiple of 16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


@contextlib.contextmanager
def _dove_folder(options: argparse.Namespace) -> Iterator[Path]:
    if options.dove is not None:
        yield options.dove
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "dove"
        write_random_dove(folder, tiny=options.tiny)
        yield folder


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _memory(call: Callable[[], object], modules: list[torch.nn.Module], device: torch.device) -> str:
    """Describe the most that one network alone would take on the device during a call."""
    if device.type != "cuda":
        return "memory not measured"
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    weights = sum(tensor.nbytes for tensor in tensors if tensor.device.type == device.type)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    peak = torch.cuda.max_memory_allocated(device) - before + weights
    return f"peak {peak / 1e9:.2f} GB, of which {weights / 1e9:.2f} GB are weights that stay on the device"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
