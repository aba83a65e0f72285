"""What recomputing the finest level's skips saves and costs: `python -m benchmarks.skip_memory`.

Memory and FLOPs are counted for the full network and the bundled one; seconds are measured side by side for the
bundled one, alternating, best of several streams. The default (store) was chosen from this table.
"""

import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from adcvsr_core import PRESETS, StreamState, Student
from adcvsr_core.cost import state_bytes

SIZE, CHUNK, CHUNKS, ROUNDS = 128, 8, 5, 3


def flops(name: str, recompute: bool) -> float:
    """Return GFLOP a frame in the middle of a stream."""
    with torch.device("meta"):
        student = Student(PRESETS[name]).train()
    state = StreamState(recompute_skips=recompute)
    with torch.no_grad():
        student(torch.empty(1, 19, 3, SIZE, SIZE, device="meta"), state, last=False)
        with FlopCounterMode(display=False) as counter:
            student(torch.empty(1, 1, 3, SIZE, SIZE, device="meta"), state, last=False)
    return counter.get_total_flops() / 1e9


def seconds_per_frame(student: Student, lr: torch.Tensor, recompute: bool) -> float:
    """Return the time of one stream, over its frames."""
    state, start = StreamState(recompute_skips=recompute), time.perf_counter()
    for index, piece in enumerate(lr.split(CHUNK, dim=1)):
        student(piece, state, last=index == CHUNKS - 1)
    return (time.perf_counter() - start) / lr.shape[1]


@torch.no_grad()
def main() -> None:
    print(f"LR {SIZE}x{SIZE}, state in fp16")
    for name in ("adcvsr", "default"):
        for recompute in (False, True):
            memory = state_bytes(PRESETS[name], SIZE, SIZE, torch.float16, recompute_skips=recompute) / 2**20
            how = "recompute" if recompute else "store"
            print(f"{name:8} {how:10} {memory:7.1f} MiB {flops(name, recompute):9.1f} GFLOP a frame")
    student = Student(PRESETS["default"]).eval()
    lr = torch.rand(1, CHUNK * CHUNKS, 3, SIZE, SIZE) * 2 - 1
    times = {recompute: [] for recompute in (False, True)}
    for _ in range(ROUNDS):
        for recompute, measured in times.items():
            measured.append(seconds_per_frame(student, lr, recompute))
    stored, recomputed = min(times[False]), min(times[True])
    print(f"default, {torch.get_num_threads()} CPU threads: store {stored:.3f} s a frame")
    print(f"default, recompute: {recomputed / stored:.2f} times that")


if __name__ == "__main__":
    main()
