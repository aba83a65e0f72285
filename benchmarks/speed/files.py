"""A video from file to file, and where its time goes: `python -m benchmarks.speed.files`.

Made-up footage, 1280x720 to 5120x2880 by the full-size network on a GPU, 160x96 to 640x384 by the bundled one on a
CPU, through the reader, engine and writer of the command line: with everything in turns, and with reading and writing
in threads beside the network, as the command line does it. Decoding and encoding are timed at their calls, UNet and
decoder by the device's own clock; waiting is what the engine's thread spends until it has its frames or is rid of
them; the rest is bicubic, colours, sizes and copies. Where parts work at the same time, their shares add up to more
than 1.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from adcvsr_core import Student, UpscaleConfig, upscale
from adcvsr_core.pipeline import Ahead, Behind
from adcvsr_core.video import VideoWriter, read_video

from .charts import Bars
from .command import Report, Setup, run
from .footage import write_clip
from .measuring import prepare, wait
from .networks import make_student

IN_TURNS, BESIDE = "in turns", "beside the network"
_PARTS = ("decoding", "network", "encoding")


class Clock:
    """The seconds of all `with` blocks that it was used for."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self._started

    def over(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """Pass pieces on, timing how long each took to come."""
        pieces = iter(pieces)
        while True:
            with self:
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def around(self, work: Callable[..., object]) -> Callable[..., object]:
        """Return a function with its calls timed."""

        def timed(*arguments: object) -> object:
            with self:
                return work(*arguments)

        return timed


class NetworkClock:
    """The seconds that a student's parts take on its device, whoever calls them; use as a context manager."""

    def __init__(self, student: Student):
        self._on_gpu = student.device.type == "cuda"
        self._marks: list[tuple[object, object]] = []
        self._started: object = None
        self._hooks = []
        for part in student.children():
            self._hooks.append(part.register_forward_pre_hook(self._start))
            # Also when no frame is final yet, which the UNet tells by an exception.
            self._hooks.append(part.register_forward_hook(self._stop, always_call=True))

    def __enter__(self) -> "NetworkClock":
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def seconds(self) -> float:
        """Of all calls so far, once the device has done them."""
        if self._on_gpu:
            return sum(start.elapsed_time(stop) for start, stop in self._marks) / 1000
        return sum(stop - start for start, stop in self._marks)

    def _start(self, *call: object) -> None:
        self._started = self._now()

    def _stop(self, *call: object) -> None:
        self._marks.append((self._started, self._now()))

    def _now(self) -> object:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@torch.no_grad()
def measure(setup: Setup) -> Report:
    """Upscale a clip several times in both ways; the quickest of each counts."""
    prepare(setup.device)
    height, width, num_frames = (32, 48, 8) if setup.tiny else (720, 1280, 96) if setup.has_gpu else (96, 160, 24)
    num_frames = setup.options.frames or num_frames
    name = setup.options.model or ("adcvsr" if setup.has_gpu and not setup.tiny else "default")
    student = make_student(name, setup)
    passes: dict[str, list[dict[str, float]]] = {IN_TURNS: [], BESIDE: []}
    with tempfile.TemporaryDirectory() as folder:
        clip = write_clip(Path(folder) / "clip.mp4", num_frames, height, width)
        for index in range(setup.rounds + 1):
            for way, found in passes.items():
                found.append(run_file(clip, Path(folder) / f"{index} {way}.mp4", student, way == BESIDE))
    best = {way: min(found, key=lambda parts: parts["in all"]) for way, found in passes.items()}
    parts = best[IN_TURNS]
    parts["the rest"] = max(0.0, parts["in all"] - sum(parts[part] for part in _PARTS))
    settings = {"model": name, "size": f"{width}x{height}", "frames": num_frames, "codec": "auto"}
    report = Report(settings=settings)
    report.figures = {way: _table(parts, num_frames) for way, parts in best.items()}
    report.ratios[f"{BESIDE}: speed over {IN_TURNS}"] = best[IN_TURNS]["in all"] / best[BESIDE]["in all"]
    for way, parts in best.items():
        for part in ("network", "waiting"):
            report.ratios[f"{way}: {part}'s share of the time"] = parts[part] / parts["in all"]
    report.charts = [
        Bars(
            title=f"{way}, {name}, {width}x{height}, {setup.where}",
            x="share of the time",
            bars={part: taken / parts["in all"] for part, taken in parts.items() if part != "in all"},
        )
        for way, parts in best.items()
    ]
    return report


def _table(parts: dict[str, float], num_frames: int) -> dict[str, dict[str, float | None]]:
    return {
        part: {
            "seconds": taken,
            "share": taken / parts["in all"],
            "frames a second": num_frames / taken if taken else None,
        }
        for part, taken in parts.items()
    }


def run_file(source: Path, target: Path, student: Student, beside: bool) -> dict[str, float]:
    """Upscale a file, as the command line does when `beside`; returns the seconds of its parts and "in all"."""
    started = time.perf_counter()
    decoding, encoding, waiting = Clock(), Clock(), Clock()
    with contextlib.closing(read_video(source)) as reader, NetworkClock(student) as network:
        size = {"width": student.scale * reader.info.width, "height": student.scale * reader.info.height}
        with VideoWriter(target, source=reader, **size) as writer, contextlib.ExitStack() as threads:
            pieces, write = decoding.over(reader), encoding.around(writer.write)
            if beside:
                pieces, write = threads.enter_context(Ahead(pieces)), threads.enter_context(Behind(write))
            write = waiting.around(write)
            for frames in upscale(waiting.over(pieces), student, UpscaleConfig()):
                write(frames, reader.take_pts(len(frames)))
            with waiting:
                threads.close()
            with waiting, encoding:
                writer.close()
        wait(student.device)
        in_all = time.perf_counter() - started
        clocks = {"decoding": decoding, "network": network, "encoding": encoding, "waiting": waiting}
        return {name: clock.seconds for name, clock in clocks.items()} | {"in all": in_all}


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="a bundled model or preset; default on a CPU, adcvsr on a GPU")
    parser.add_argument("--frames", type=int, default=0, help="length of the clip, 0 = 24 on a CPU, 96 on a GPU")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run("files", __doc__, measure, arguments, _add_options)


if __name__ == "__main__":
    sys.exit(main())
