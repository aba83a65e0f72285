"""What a running training prints: a bar with the time left on a terminal, a line now and then elsewhere.

Knows nothing about training; it gets the lines of the log.
"""

import sys
import time
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_EVERY = 25  # steps between lines where there is no terminal


class TrainingProgress:
    """Shows steps, time left, loss and the peak of memory; a context manager.

    Args:
        total: steps of the run.
    """

    def __init__(self, total: int):
        self.total = total
        self.console = Console()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("", total=total, numbers="")
        self.started, self.first = time.monotonic(), -1
        self.losses: list[tuple[float, float | None]] = []

    def __enter__(self) -> "TrainingProgress":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def __call__(self, line: dict[str, Any]) -> None:
        """Take one line of the log."""
        if "skipped" in line:
            print(f"skipped a step: {line['skipped']}", file=sys.stderr)
            return
        done = line["step"] + 1
        self.first = done - 1 if self.first < 0 else self.first
        self.losses = [*self.losses[-(_EVERY - 1) :], (line["loss"], line.get("ratio"))]
        self.bar.update(self.task, completed=done, description=line["stage"], numbers=self._numbers())
        if not self.console.is_terminal and (done % _EVERY == 0 or done == self.total):
            per_step = (time.monotonic() - self.started) / (done - self.first)
            left = per_step * (self.total - done) / 60
            line_text = f"{line['stage']} {done}/{self.total}  {self._numbers()}  {per_step:.2f} s/step"
            print(f"{line_text}  {left:.1f} min left", flush=True)

    def _numbers(self) -> str:
        losses, ratios = zip(*self.losses)
        known = [ratio for ratio in ratios if ratio is not None]
        text = f"loss {sum(losses) / len(losses):.5f}"
        if known:
            text += f"  loss/bicubic {sum(known) / len(known):.4f}"
        return f"{text}  {memory_peak()}"


def memory_peak() -> str:
    """Return the most memory that this process has held, in words: the GPU's where there is one."""
    if torch.cuda.is_available():
        return f"peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of the GPU"
    try:
        import resource
    except ImportError:  # Windows
        return ""
    unit = 1 if sys.platform == "darwin" else 1024
    return f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB"
