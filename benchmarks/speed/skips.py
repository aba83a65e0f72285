"""What recomputing the finest level's skips saves and costs: `python -m benchmarks.speed.skips`.

Memory and FLOPs are counted for the full network and the bundled one, seconds measured for the bundled one, LR 128x128
(a CPU: 64x64), frames in streams. The default (stored) was chosen from this table.
"""

import sys
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from adcvsr_core import StreamState, Student, StudentConfig
from adcvsr_core.cost import state_bytes

from .command import Report, Setup, run
from .measuring import in_turns, prepare
from .networks import make_student, random_clip, student_config

_CHUNK, _CHUNKS = 8, 5
_WAYS = {"stored": False, "recomputed": True}
_META = torch.device("meta")


@torch.no_grad()
def measure(setup: Setup) -> Report:
    """Count for both networks, time the bundled one."""
    prepare(setup.device)
    size, measured = (16 if setup.tiny else 128 if setup.has_gpu else 64), "default"
    student = make_student(measured, setup)
    lr = random_clip(_CHUNK * (2 if setup.tiny else _CHUNKS), size, size, setup)
    calls = {way: partial(run_stream, student, lr, recompute) for way, recompute in _WAYS.items()}
    best = in_turns(calls, setup.device, setup.rounds)
    report = Report(settings={"LR size": size, "chunk": _CHUNK, "frames": lr.shape[1], "state in": "float16"})
    for name in ("adcvsr", measured):
        config = student_config(name, tiny=setup.tiny)
        rows = report.figures[name] = {way: _counted(config, size, recompute) for way, recompute in _WAYS.items()}
        for column in ("state MiB", "GFLOP a frame"):
            ratio = rows["recomputed"][column] / rows["stored"][column]
            report.ratios[f"{name}: {column}, recomputed over stored"] = ratio
    for way in _WAYS:
        report.figures[measured][way]["seconds a frame"] = best[way] / lr.shape[1]
    report.ratios[f"{measured}: seconds, recomputed over stored"] = best["recomputed"] / best["stored"]
    return report


def run_stream(student: Student, lr: Tensor, recompute: bool) -> None:
    """Push a clip [1,T,3,H,W] in chunks, to its end."""
    state, pieces = StreamState(recompute_skips=recompute), lr.split(_CHUNK, dim=1)
    for index, piece in enumerate(pieces):
        student(piece, state, last=index == len(pieces) - 1)


def _counted(config: StudentConfig, size: int, recompute: bool) -> dict[str, float]:
    memory = state_bytes(config, size, size, torch.float16, recompute_skips=recompute)
    return {"state MiB": memory / 2**20, "GFLOP a frame": _stream_flops(config, size, recompute) / 1e9}


def _stream_flops(config: StudentConfig, size: int, recompute: bool) -> int:
    """Return the FLOPs of one frame in the middle of a stream."""
    with _META:
        student = Student(config).train()  # in training mode nobody looks for NaN, which takes values
        before, frame = (torch.empty(1, count, 3, size, size) for count in (student.lookahead + 1, 1))
    state = StreamState(recompute_skips=recompute)
    student(before, state, last=False)
    with FlopCounterMode(display=False) as counter:
        student(frame, state, last=False)
    return counter.get_total_flops()


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run("skips", __doc__, measure, arguments)


if __name__ == "__main__":
    sys.exit(main())
