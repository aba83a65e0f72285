"""The command line: reads arguments, calls the core, shows progress. No logic of its own.

python -m adcvsr_core upscale IN OUT | info MODEL_OR_CLIP | convert ... --out FILE | compare A B --out FILE
"""

import argparse
import contextlib
import signal
import sys
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from .checkpoint import CONVERT_HINT, detect_layout, read_config, save_student
from .compare import sheet, wipe
from .compiled import compile_layers
from .config import COLORS, PRESETS, StudentConfig, UpscaleConfig
from .convert import convert_adcsr, student_from_sd, with_temporal
from .cost import count_flops, count_parameters, state_bytes
from .engine import RunPlan, plan_run, upscale
from .errors import AdcvsrError, Cancelled, ConfigError
from .lora import is_lora, load_with_lora, parse_lora, read_lora
from .memory import keep_freed_memory
from .needs import describe_needs, describe_plan, trial_seconds
from .pipeline import beside
from .student import Student
from .video import CODECS, VideoWriter, read_video, save_png

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
INTERRUPTED = 130
# H.273's numbers, as far as people know them by name.
MATRICES = {1: "BT.709", 5: "BT.601", 6: "BT.601", 9: "BT.2020"}
RANGES = {1: "limited", 2: "full"}

console = Console(stderr=True, highlight=False)


def _interrupt(*_: object) -> None:
    """Stop as Ctrl-C does, also where Ctrl-C itself is ignored: what a shell starts in the background begins so."""
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 a fault told in one line, 2 usage, 130 interrupted."""
    options = build_parser().parse_args(arguments)
    warnings.showwarning = lambda message, *_, **__: console.print(f"[yellow]warning:[/] {message}", soft_wrap=True)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        options.run(options)
    except (KeyboardInterrupt, Cancelled):
        console.print("[yellow]interrupted[/]")
        return INTERRUPTED
    except (AdcvsrError, OSError, MemoryError) as error:
        if options.debug:
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        console.print(f"[red]error:[/] {text}", soft_wrap=True, markup=True)
        return 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="python -m adcvsr_core", description="One-step video super-resolution.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_upscale(commands.add_parser("upscale", help="upscale a video, a picture or a folder of pictures"))
    info = commands.add_parser("info", help="tell what a model or a clip is, and what it costs")
    info.add_argument("subject", help="a model file, a bundled model or preset by name, or a clip")
    info.set_defaults(run=run_info)
    _add_convert(commands.add_parser("convert", help="turn other weights into one of our files"))
    compare = commands.add_parser("compare", help="put two versions of a clip side by side")
    compare.add_argument("a", help="the clip before")
    compare.add_argument("b", help="the clip after; A is brought to its size")
    compare.add_argument("--out", required=True, help="a .png for a sheet of details, or a video for a moving wipe")
    compare.add_argument("--overwrite", action="store_true", help="replace an existing file")
    compare.set_defaults(run=run_compare)
    return parser


def _add_upscale(parser: argparse.ArgumentParser) -> None:
    default = UpscaleConfig()
    parser.add_argument("input", help="a video, a picture, or a folder of pictures")
    parser.add_argument("output", help="a video, a picture, a folder ending in /, or a pattern such as out_%%05d.png")
    parser.add_argument("--model", default="default", help="a bundled model's name or a safetensors file")
    parser.add_argument(
        "--lora",
        type=parse_lora,
        metavar="FILE[:STRENGTH]",
        help="a LoRA that was trained on this model, and how strongly it counts: -2 to 2, 0 = not at all (default 1)",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--scale", type=float, default=default.scale, help="output over input size (default 4)")
    size.add_argument("--height", type=int, default=0, help="output height in pixels, instead of --scale")
    parser.add_argument(
        "--fidelity", type=float, default=1.0, help="1 = invents nothing, 0 = the richest; models with a rich partner"
    )
    parser.add_argument("--work-size", type=int, default=0, help="height the network sees, 0 = a quarter of the output")
    parser.add_argument("--chunk", type=int, default=0, help="frames per step, 0 = automatic; never changes the result")
    parser.add_argument(
        "--tile", type=int, default=0, help="tile edge in LR pixels, 0 = only if memory demands; not exact"
    )
    parser.add_argument(
        "--attention-window",
        type=int,
        default=0,
        help="LR pixels that attention sees around a pixel, a multiple of 32; 0 = automatic, -1 = the whole frame",
    )
    parser.add_argument(
        "--memory", type=float, default=0.0, metavar="GB", help="what weights and steps may take, 0 = what is free"
    )
    parser.add_argument("--overlap", type=int, default=0, help="LR pixels that tiles share, 0 = automatic")
    parser.add_argument("--color", choices=("auto", *COLORS), default=default.color, help="colour match to the input")
    parser.add_argument(
        "--detail", type=float, default=default.detail, help="gain on added detail, 1 = the network's own"
    )
    parser.add_argument(
        "--temporal-strength", type=float, default=default.temporal_strength, help="0 = every frame alone, 1 = full"
    )
    parser.add_argument("--cuts", type=float, default=default.cuts, help="scene-cut sensitivity 0..1, 0 = never cut")
    parser.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        default="auto",
        help="auto: bf16 on GPUs that have it, else fp32; bf16 is also faster on CPUs with AVX512-BF16 or AMX",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--compile", action="store_true", help="compile the layers first: a minute or more, then faster; for long clips"
    )
    parser.add_argument(
        "--cuda-graphs",
        action="store_true",
        help="compile, and replay the layers as CUDA graphs; nobody has tried this on a GPU yet",
    )
    parser.add_argument("--codec", default="auto", choices=("auto", *CODECS), help="auto: h264, or vp9 for .webm")
    parser.add_argument("--crf", type=int, help="quality of the codec, lower is better")
    parser.add_argument("--start", type=_seconds, default=Fraction(0), help="first moment, in seconds or h:m:s")
    parser.add_argument("--end", type=_seconds, help="moment to stop before, in seconds or h:m:s")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output file")
    parser.add_argument("--plan", action="store_true", help="tell memory, speed and time of the run, and write nothing")
    parser.set_defaults(run=run_upscale)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--adcsr", nargs=2, metavar=("NET", "HALF_DECODER"), help="net_params_200.pkl halfDecoder.ckpt")
    source.add_argument(
        "--sd", metavar="FOLDER", help="Stable Diffusion 2.1 in diffusers layout, to prune for training"
    )
    parser.add_argument("--out", required=True, help="the safetensors file to write")
    parser.add_argument("--temporal", action="store_true", help="with --adcsr: add fresh temporal blocks, for training")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp16", help="type of the stored weights")
    parser.set_defaults(run=run_convert)


def run_upscale(options: argparse.Namespace) -> None:
    """Upscale a clip file to file."""
    config = UpscaleConfig(
        **{
            name: getattr(options, name)
            for name in (
                "scale",
                "height",
                "work_size",
                "chunk",
                "tile",
                "overlap",
                "color",
                "detail",
                "cuts",
                "memory",
            )
        },
        temporal_strength=options.temporal_strength,
        attention_window=options.attention_window,
    )
    device = _choose_device(options.device)
    if device.type == "cpu":
        keep_freed_memory()
    with contextlib.closing(read_video(options.input, start=options.start, end=options.end)) as reader:
        student = _load(options, device)
        plan = plan_run(reader.info.height, reader.info.width, student, config)
        if options.plan:
            _print_plan(plan, student, reader.num_frames, config)
            return
        with VideoWriter(
            options.output,
            width=plan.target[1],
            height=plan.target[0],
            source=reader,
            codec=options.codec,
            crf=options.crf,
            overwrite=options.overwrite,
        ) as writer:
            lora = f" with {options.lora[0]} at {options.lora[1]:g}" if options.lora else ""
            fidelity = f" at fidelity {options.fidelity:g}" if options.fidelity < 1 else ""
            console.print(f"model {options.model}{fidelity}{lora}, {describe_plan(plan, student)}")
            with (
                _progress(reader.num_frames, "upscaling") as on_progress,
                _keeping(writer),
                beside(student.device, reader, writer.write) as (pieces, write),
            ):
                for frames in upscale(pieces, student, config, on_progress):
                    write(frames, reader.take_pts(len(frames)))
        for line in dict.fromkeys(reader.warnings + writer.warnings):
            warnings.warn(line, stacklevel=1)
    console.print(f"{writer.num_frames} frames, peak memory {_peak_memory()}")
    print(options.output)


def _print_plan(plan: RunPlan, student: Student, num_frames: int | None, config: UpscaleConfig) -> None:
    table = Table(show_header=False, box=None)
    table.add_row("run", describe_plan(plan, student))
    seconds = trial_seconds(plan, student, config.temporal_strength)
    for name, value in describe_needs(plan, student, num_frames, seconds).items():
        table.add_row(name, value)
    Console(highlight=False).print(table)


def _load(options: argparse.Namespace, device: torch.device) -> Student:
    dtype = _choose_dtype(options.dtype, device)
    student, warning = load_with_lora(
        options.model, *(options.lora or ()), dtype=dtype, device=device, fidelity=options.fidelity
    )
    if options.compile or options.cuda_graphs:
        warning = " ".join(filter(None, (warning, compile_layers(student, graphs=options.cuda_graphs))))
    if warning:
        warnings.warn(warning, stacklevel=1)
    return student


def run_info(options: argparse.Namespace) -> None:
    """Print what a model or a clip is."""
    subject = options.subject
    if subject in PRESETS or Path(subject).suffix in (".safetensors", ".pkl", ".ckpt"):
        table = _describe_model(subject)
    else:
        table = _describe_clip(subject)
    Console(highlight=False).print(table)


def run_convert(options: argparse.Namespace) -> None:
    """Convert other weights into one of our checkpoints."""
    if options.temporal and not options.adcsr:
        raise ConfigError("--temporal belongs to --adcsr; --sd makes the temporal blocks by itself")
    student = convert_adcsr(*options.adcsr) if options.adcsr else student_from_sd(options.sd)
    if options.temporal:
        student = with_temporal(student)
    save_student(student, options.out, dtype=DTYPES[options.dtype])
    print(options.out)


def run_compare(options: argparse.Namespace) -> None:
    """Write a before/after sheet or a wipe."""
    if Path(options.out).suffix.lower() == ".png":
        if Path(options.out).exists() and not options.overwrite:
            raise ConfigError(f"{options.out} exists; give another name or --overwrite")
        save_png(options.out, sheet(list(_moments(options.a, options.b, 3)), ("source, bicubic", "AdcVSR")))
    else:
        _write_wipe(options)
    print(options.out)


def _moments(a: str, b: str, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    with contextlib.closing(read_video(b)) as reader:
        duration = reader.info.duration_seconds or Fraction(0)
    for index in range(count if duration else 1):
        moment = duration * (2 * index + 1) / (2 * count)
        pair = []
        for path in (a, b):
            with contextlib.closing(read_video(path, start=moment, chunk=1)) as reader:
                pair.append(next(iter(reader))[0])
        yield tuple(pair)


def _write_wipe(options: argparse.Namespace) -> None:
    with (
        contextlib.closing(read_video(options.a, chunk=1)) as a,
        contextlib.closing(read_video(options.b, chunk=1)) as b,
    ):
        info = b.info
        with (
            VideoWriter(
                options.out, width=info.width, height=info.height, source=b, overwrite=options.overwrite
            ) as writer,
            _progress(b.num_frames, "comparing") as on_progress,
            _keeping(writer),
        ):
            sweep = 4 * info.fps  # frames for the line to cross the picture and come back
            for index, (before, after) in enumerate(zip(a, b, strict=False)):
                position = 1 - abs(2 * float(index % sweep / sweep) - 1)
                writer.write(wipe(before, after, position), b.take_pts(1))
                on_progress(index + 1, b.num_frames, after[0])


@contextlib.contextmanager
def _keeping(writer: VideoWriter) -> Iterator[None]:
    """On an interrupt, say where the playable part is."""
    try:
        yield
    except (KeyboardInterrupt, Cancelled):
        if writer.num_frames:
            console.print(f"stopped after {writer.num_frames} frames; they are kept in {writer.part_path}")
        raise


@contextlib.contextmanager
def _progress(total: int | None, text: str) -> Iterator:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[fps]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(text, total=total, fps="")

        def on_progress(done: int, _: int | None, __: torch.Tensor) -> None:
            speed = bar.tasks[task].speed
            bar.update(task, completed=done, fps=f"{speed:.2f} fps" if speed else "")

        yield on_progress
        bar.update(task, total=bar.tasks[task].completed)


def _describe_model(subject: str) -> Table:
    table = Table(show_header=False, box=None)
    if Path(subject).suffix in (".pkl", ".ckpt"):
        table.add_row("layout", detect_layout(subject))
        table.add_row("to use it", CONVERT_HINT)
        return table
    if is_lora(subject):
        return _describe_lora(subject)
    config = _config(subject)
    total, temporal = count_parameters(config)
    with torch.device("meta"):
        lookahead = Student(config).lookahead
    memory = "; recurrent: it remembers every frame before" if config.recurrent else ""
    table.add_row("parameters", f"{total:,} ({temporal:,} temporal), {2 * total / 1e6:.1f} MB in fp16")
    table.add_row("look-ahead", f"{lookahead} frames{memory}")
    for size in (64, 128, 256, 512):
        flops = count_flops(config, size, size)
        state = state_bytes(config, size, size, torch.float16)
        table.add_row(
            f"{size}x{size} -> {4 * size}x{4 * size}",
            f"{flops / 1e9:,.1f} GFLOP a frame, {state / 2**20:,.1f} MiB of temporal state in fp16",
        )
    table.add_row("config", config.to_json())
    return table


def _describe_lora(path: str) -> Table:
    lora, table = read_lora(path), Table(show_header=False, box=None)
    table.add_row("layout", f"LoRA of rank {lora.rank}, alpha {lora.alpha:g}")
    num_whole, total = len(lora.tensors) - 2 * lora.num_layers, sum(each.numel() for each in lora.tensors.values())
    table.add_row("changes", f"{lora.num_layers} layers and {num_whole} whole parameters, by {total:,} numbers")
    table.add_row("made for", f"weights with fingerprint {lora.base}")
    for key, text in lora.metadata.items():
        table.add_row(key, text)
    table.add_row("to use it", f"--lora {path}:1, beside the --model that it was made for")
    table.add_row("config", lora.config.to_json())
    return table


def _config(subject: str) -> StudentConfig:
    # A bundled file knows its weights' configuration best; presets without a file are told as they are.
    try:
        return read_config(subject)
    except AdcvsrError:
        if subject not in PRESETS:
            raise
        return PRESETS[subject]


def _describe_clip(subject: str) -> Table:
    table = Table(show_header=False, box=None)
    with contextlib.closing(read_video(subject)) as reader:
        info = reader.info
    duration = "unknown" if info.duration_seconds is None else f"{float(info.duration_seconds):.2f} s"
    table.add_row("size", f"{info.width}x{info.height} (rotation {info.rotation}, pixel aspect {info.sample_aspect})")
    table.add_row("frames", f"{info.num_frames or 'unknown'} at {float(info.fps):.3f} fps, {duration}")
    table.add_row("codec", f"{info.codec}, {info.pixel_format}, {info.bit_depth} bit")
    matrix, extent = MATRICES.get(info.color.matrix, "untagged"), RANGES.get(info.color.range, "untagged")
    table.add_row("colour", f"{matrix} matrix, {extent} range")
    table.add_row("sound", f"{'yes' if info.has_audio else 'no'}, {info.num_subtitles} subtitle streams")
    return table


def _choose_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used ({reason}); try --device cpu") from error
    return device


def _choose_dtype(name: str, device: torch.device) -> torch.dtype:
    if name != "auto":
        return DTYPES[name]
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def _seconds(text: str) -> Fraction:
    try:
        seconds = Fraction(0)
        for part in text.split(":"):
            seconds = seconds * 60 + Fraction(part)
        return seconds
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; use seconds (12.5) or h:m:s (0:01:30)") from None


def _peak_memory() -> str:
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on the GPU"
    try:
        import resource
    except ImportError:  # Windows
        return "unknown"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB"
