"""What every speed benchmark is as a command: its options, what it returns, its JSON, table and charts.

Knows nothing about what is measured.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from adcvsr_core.errors import AdcvsrError, ConfigError

from ..tables import markdown
from .charts import Bars, Lines, draw_charts
from .measuring import machine

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# title of a table -> row -> column -> number; None = not measured here
Figures = dict[str, dict[str, dict[str, float | int | None]]]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What one run of a benchmark was told.

    Attributes:
        device: where networks work.
        dtype: what they compute in.
        tiny: whether sizes are those of a trial.
        rounds: see `measuring.in_turns`.
        out: folder of the results.
        options: the benchmark's own.
    """

    device: torch.device
    dtype: torch.dtype
    tiny: bool
    rounds: int
    out: Path
    options: argparse.Namespace

    @property
    def has_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def where(self) -> str:
        """The GPU's name, or the number of threads, for the title of a chart."""
        if self.has_gpu:
            return torch.cuda.get_device_name(self.device)
        return f"{self.device.type}, {torch.get_num_threads()} threads".replace(" 1 threads", " 1 thread")


@dataclass(kw_only=True)
class Report:
    """What one run of a benchmark found.

    Attributes:
        settings: what the figures depend on.
        figures: tables of numbers; every column's name says its unit.
        ratios: one number each, the point of the benchmark.
        not_measured: what could not be, and why.
        charts: drawn side by side, where there are any.
    """

    settings: dict[str, Any]
    figures: Figures = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
    charts: list[Lines | Bars] = field(default_factory=list)


Measure = Callable[[Setup], Report]
AddOptions = Callable[[argparse.ArgumentParser], object]


def run(
    name: str, doc: str, measure: Measure, arguments: list[str] | None, add_options: AddOptions = lambda parser: None
) -> int:
    """Run one benchmark as a command; returns the exit status.

    Args:
        name: of the module.
        doc: its docstring, whose first line is the command's description.
        measure: the benchmark.
        arguments: of the command line, None = the process's.
        add_options: adds its own to the parser.
    """
    parser = _parser(name, doc)
    add_options(parser)
    options = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        setup = _setup(options)
        report = measure(setup)
    except AdcvsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _write(name, setup, report, time.monotonic() - started)
    return 0


def _parser(name: str, doc: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.speed.{name}", description=doc.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="try the command in seconds; its figures mean nothing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="auto: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--threads", type=int, default=0, help="of a CPU, 0 = torch's choice")
    parser.add_argument("--rounds", type=int, default=0, help="of which the best counts, 0 = 3, a CPU 2, tiny 1")
    parser.add_argument("--out", type=Path, default=Path("runs/speed"), help="folder of the results")
    return parser


def _setup(options: argparse.Namespace) -> Setup:
    try:
        device = torch.device(options.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {options.device!r} cannot be used ({reason}); try --device cpu") from error
    if min(options.threads, options.rounds) < 0:
        raise ConfigError(f"threads {options.threads} and rounds {options.rounds} must be 0 (automatic) or more")
    if options.threads:
        torch.set_num_threads(options.threads)
    dtype = DTYPES["bf16" if device.type == "cuda" else "fp32"] if options.dtype == "auto" else DTYPES[options.dtype]
    rounds = options.rounds or (1 if options.tiny else 2 if device.type == "cpu" else 3)
    return Setup(device=device, dtype=dtype, tiny=options.tiny, rounds=rounds, out=options.out, options=options)


def _write(name: str, setup: Setup, report: Report, took: float) -> None:
    setup.out.mkdir(parents=True, exist_ok=True)
    settings = {
        "tiny": setup.tiny,
        "dtype": str(setup.dtype).removeprefix("torch."),
        "rounds": setup.rounds,
        **report.settings,
    }
    content = {
        "benchmark": name,
        "machine": machine(setup.device),
        "settings": settings,
        "figures": report.figures,
        "ratios": report.ratios,
        "not_measured": report.not_measured,
        "seconds_in_all": took,
    }
    path = setup.out / f"{name}.json"
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    if report.charts:
        draw_charts(report.charts, path.with_suffix(".png"))
    print(_as_text(content))
    print(path)


def _as_text(content: dict[str, Any]) -> str:
    facts = content["machine"] | content["settings"]
    parts = [", ".join(f"{key} {value}" for key, value in facts.items()) + "\n"]
    for title, rows in content["figures"].items():
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        cells = {name: [_cell(row.get(column)) for column in columns] for name, row in rows.items()}
        parts.append(f"### {title}\n\n{markdown(columns, cells)}")
    parts += [f"{name}: {value:.3g}" for name, value in content["ratios"].items()]
    parts += [f"not measured: {what}: {reason}" for what, reason in content["not_measured"].items()]
    return "\n".join(parts)


def _cell(value: float | int | None) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0  # three that count
    return f"{value:,.{max(0, digits)}f}"
