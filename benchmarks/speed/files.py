"""A video from file to file, and where its time goes: `python -m benchmarks.speed.files`.

Made-up footage, 1280x720 to 5120x2880 by the full-size network on a GPU, 160x96 to 640x384 by the bundled one on a
CPU, through the reader, engine and writer of the command line. Decoding and encoding are timed at their calls, UNet and
decoder by the device's own clock; the rest is bicubic, colours, sizes and copies. Where parts work at the same time,
their shares add up to more than 1.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from adcvsr_core import Student, UpscaleConfig, upscale
from adcvsr_core.video import VideoReader, VideoWriter, read_video

from .charts import Bars
from .command import Report, Setup, run
from .footage import write_clip
from .measuring import prepare, wait
from .networks import make_student


class Decoding:
    """A reader's frames, and the seconds that they took."""

    def __init__(self, reader: VideoReader):
        self.num_frames = reader.num_frames
        self.seconds = 0.0
        self._reader = reader

    def __iter__(self) -> Iterator[Tensor]:
        frames = iter(self._reader)
        while True:
            started = time.perf_counter()
            piece = next(frames, None)
            self.seconds += time.perf_counter() - started
            if piece is None:
                return
            yield piece


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
    """Upscale a clip several times; the quickest counts."""
    prepare(setup.device)
    height, width, num_frames = (32, 48, 8) if setup.tiny else (720, 1280, 96) if setup.has_gpu else (96, 160, 24)
    num_frames = setup.options.frames or num_frames
    name = setup.options.model or ("adcvsr" if setup.has_gpu and not setup.tiny else "default")
    student = make_student(name, setup)
    with tempfile.TemporaryDirectory() as folder:
        clip = write_clip(Path(folder) / "clip.mp4", num_frames, height, width)
        passes = [run_file(clip, Path(folder) / f"{index}.mp4", student) for index in range(setup.rounds + 1)]
    best = min(passes, key=lambda parts: parts["in all"])
    parts = ("decoding", "network", "encoding")
    best["the rest"] = max(0.0, best["in all"] - sum(best[part] for part in parts))
    settings = {"model": name, "size": f"{width}x{height}", "frames": num_frames, "codec": "auto"}
    report = Report(settings=settings)
    shares = {part: best[part] / best["in all"] for part in (*parts, "the rest")}
    report.figures["file to file"] = {
        part: {
            "seconds": taken,
            "share": taken / best["in all"],
            "frames a second": num_frames / taken if taken else None,
        }
        for part, taken in best.items()
    }
    report.ratios = {f"{part}: share of the time": share for part, share in shares.items()}
    report.charts = [Bars(title=f"{name}, {width}x{height}, {setup.where}", x="share of the time", bars=shares)]
    return report


def run_file(source: Path, target: Path, student: Student) -> dict[str, float]:
    """Upscale a file as the command line does; returns the seconds of its parts and "in all"."""
    started, encoding = time.perf_counter(), 0.0
    with contextlib.closing(read_video(source)) as reader, NetworkClock(student) as network:
        decoding = Decoding(reader)
        size = {"width": student.scale * reader.info.width, "height": student.scale * reader.info.height}
        with VideoWriter(target, source=reader, **size) as writer:
            for frames in upscale(decoding, student, UpscaleConfig()):
                before = time.perf_counter()
                writer.write(frames, reader.take_pts(len(frames)))
                encoding += time.perf_counter() - before
            closing = time.perf_counter()
        encoding += time.perf_counter() - closing
        wait(student.device)
        in_all = time.perf_counter() - started
        return {"decoding": decoding.seconds, "network": network.seconds, "encoding": encoding, "in all": in_all}


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="a bundled model or preset; default on a CPU, adcvsr on a GPU")
    parser.add_argument("--frames", type=int, default=0, help="length of the clip, 0 = 24 on a CPU, 96 on a GPU")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run("files", __doc__, measure, arguments, _add_options)


if __name__ == "__main__":
    sys.exit(main())
