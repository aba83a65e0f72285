"""The log of a run: one JSON object a step, and the same numbers for TensorBoard where it is installed.

Knows nothing about what the numbers mean.
"""

import json
import math
from pathlib import Path
from typing import Any


class RunLog:
    """Appends to `folder`/metrics.jsonl; numbers that are not finite are written as null.

    Args:
        folder: the run's.
        first_step: steps done before; later lines of an earlier attempt are removed.
    """

    def __init__(self, folder: Path, first_step: int):
        self.path = folder / "metrics.jsonl"
        _cut(self.path, first_step)
        self._file = self.path.open("a")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # an optional package; the JSON lines hold the same
            self._board = None
        else:
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def write(self, line: dict[str, Any]) -> None:
        """Write one step's line at once."""
        safe = {key: _plain(value) for key, value in line.items()}
        self._file.write(json.dumps(safe) + "\n")
        self._file.flush()
        if self._board is not None:
            for key, value in safe.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{line['stage']}/{key}", value, line["step"])

    def close(self) -> None:
        """Finish writing."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 7) if math.isfinite(value) else None
    return value


def _cut(path: Path, first_step: int) -> None:
    """Keep the whole lines of the steps before `first_step`: a kill may leave later ones, and a torn one."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < first_step]
        path.write_text("".join(kept))
