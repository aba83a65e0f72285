"""The bundled networks beside Real-ESRGAN's and RealSR's, 128x128 to 512x512: `python -m benchmarks.speed.peers`.

Everybody runs in torch, in fp32 and in bf16, in the memory layout that suits it. The peers' networks are read from the
files that their users have (`training.prepare_benchmark_data` fetches them) and see single frames on a CPU, whose
caches gain from that, and as many at once as ours on a GPU. Ours see clips and take their temporal blocks along.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from training.peers import PEERS, load_peer

from .charts import Bars
from .command import DTYPES, Report, Setup, run
from .measuring import Call, in_turns, num_parameters, prepare
from .networks import make_student, random_clip, weights_of
from .random_peers import write_random_peers

_OURS = ("default", "nano")
_PRECISIONS = ("fp32", "bf16")
_PATIENCE = 20
# What ours shall be compared with: (ours, peer).
_PAIRS = (("default", "x4plus"), ("default", "realsr-df2k"), ("default", "animevideov3"), ("nano", "animevideov3"))


@torch.no_grad()
def measure(setup: Setup) -> Report:
    """Time all networks in both precisions."""
    prepare(setup.device)
    size = 16 if setup.tiny else 128
    num_frames, peer_frames = (8, 8) if setup.has_gpu else (4, 1)
    weights = {name: weights_of(name) for name in _OURS}
    report = Report(settings={"dtype": _PRECISIONS, "frames": num_frames, "LR size": size, "weights": weights})
    calls: dict[str, Call] = {}
    parameters: dict[str, int] = {}
    with _peers_folder(setup) as data:
        for precision in _PRECISIONS:
            lr = random_clip(num_frames, size, size, setup, DTYPES[precision])
            for name in PEERS:
                network = load_peer(name, data).to(setup.device, DTYPES[precision])
                calls[f"{name} {precision}"] = partial(network, (lr[0, :peer_frames] + 1) / 2)
                parameters[name] = sum(buffer.numel() for buffer in network.buffers())
            for name in _OURS:
                student = make_student(name, setup, DTYPES[precision])
                calls[f"{name} {precision}"] = partial(student, lr)
                parameters[name] = num_parameters([student])
    best = in_turns(calls, setup.device, setup.rounds, _PATIENCE)
    best = {name: taken / (peer_frames if name.split()[0] in PEERS else num_frames) for name, taken in best.items()}
    report.figures["seconds a frame"] = {
        name: {"parameters": parameters[name]} | {each: best[f"{name} {each}"] for each in _PRECISIONS}
        for name in (*PEERS, *_OURS)
    }
    for ours, peer in _PAIRS:
        for precision in _PRECISIONS:
            ratio = best[f"{peer} {precision}"] / best[f"{ours} {precision}"]
            report.ratios[f"{precision}: {peer}'s seconds over {ours}'s"] = ratio
    for precision in _PRECISIONS:
        bars = {name: 1 / best[f"{name} {precision}"] for name in (*PEERS, *_OURS)}
        title = f"{size}x{size} to {4 * size}x{4 * size}, {precision}, {setup.where}"
        report.charts.append(Bars(title=title, x="frames a second", bars=bars))
    return report


@contextlib.contextmanager
def _peers_folder(setup: Setup) -> Iterator[Path]:
    if not setup.tiny:
        yield setup.options.data
        return
    with tempfile.TemporaryDirectory() as folder:
        write_random_peers(Path(folder))
        yield Path(folder)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, default=Path("bundled_data"), help="folder of prepare_benchmark_data")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run("peers", __doc__, measure, arguments, _add_options)


if __name__ == "__main__":
    sys.exit(main())
