"""`python -m training.preview_data --recipe NAME --data DIR --out sheet.png`: a picture of what will be trained.

One row a clip, the very first ones of the run: what the student gets (every pixel a square), then what it shall make of
it, over its name and what was done to it. Where a stage has discriminators, the real material that they see beside the
student's follows. Knows nothing about networks.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from adcvsr_core.degradation import to_levels
from adcvsr_core.errors import AdcvsrError, ConfigError
from adcvsr_core.images import write_image

from .adversary import real_clip
from .config import StageConfig, TrainConfig
from .discriminators.labels import lessons
from .overrides import override
from .recipes import MEMORY_PRESETS, RECIPES, fit_memory, get_recipe
from .sampling import Batches, to_frames
from .sources import open_source

_WIDEST = 2400
_MOST_FRAMES = 4
_GAP = 6
_LETTERS = 15
_PAPER, _INK = (245, 245, 245), (20, 20, 20)
_HIDDEN = torch.tensor([1.0, 0.0, 0.0])


def make_sheet(batches: Batches, num: int, title: str) -> np.ndarray:
    """Draw the first samples of a stage.

    Args:
        batches: the stage's.
        num: how many samples.
        title: the first line.

    Returns:
        [H,W,3] uint8.
    """
    samples = [batches.sample(*divmod(index, batches.stage.batch)) for index in range(num)]
    rows = [_text(title)]
    for sample in samples:
        rows += [_text(sample["key"]), _row(_show_pair(sample))]
    adversary = batches.stage.adversary
    for kind, (_, labels) in (lessons(adversary) if adversary else {}).items():
        if kind != "student":
            clips = [to_frames(real_clip(kind, batch)[0]) for batch in map(_as_batch, samples)]
            per_row = max(1, _WIDEST // (clips[0].shape[2] * _num_shown(clips[0])))
            rows += [_text(_explain(kind, *labels)), _row([_spread(clip) for clip in clips[:per_row]])]
    return _stack(rows)


def _explain(kind: str, detail: int, consistency: int) -> str:
    words = {-1: "fake", 0: "not judged", 1: "real"}
    return f"the discriminators' {kind} clips: detail {words[detail]}, consistency {words[consistency]}"


def _as_batch(sample: dict) -> dict:
    return {name: value[None] for name, value in sample.items() if isinstance(value, Tensor)}


def _show_pair(sample: dict) -> list[Tensor]:
    """Return LR and HR frames [T,H,W,3], and HR with what gets hidden in red where its motion is known and used."""
    lr, hr = to_frames(sample["lr"]), to_frames(sample["hr"])
    shown = [lr.repeat_interleave(4, 1).repeat_interleave(4, 2), hr]
    if "visible" in sample and sample["visible"].any():
        visible = sample["visible"].permute(0, 2, 3, 1)
        shown.append(torch.cat([hr[:-1] * visible + _HIDDEN * (1 - visible), hr[-1:]]))
    width = _num_shown(hr, len(shown))
    return [_spread(clip, width) for clip in shown]


def _num_shown(clip: Tensor, num_clips: int = 1) -> int:
    return max(1, min(len(clip), _MOST_FRAMES, _WIDEST // (clip.shape[2] * num_clips)))


def _spread(clip: Tensor, num: int | None = None) -> Tensor:
    """Put frames of [T,H,W,3], first to last, side by side: [H,num * W,3]."""
    which = np.linspace(0, len(clip) - 1, num or _num_shown(clip)).round().astype(int)
    return torch.cat(list(clip[which.tolist()]), dim=1)


def _row(pictures: list[Tensor]) -> np.ndarray:
    gap = np.full((pictures[0].shape[0], _GAP, 3), _PAPER, np.uint8)
    return np.concatenate([part for picture in pictures for part in (to_levels(picture), gap)], axis=1)


def _text(line: str) -> np.ndarray:
    font = ImageFont.load_default()
    canvas = Image.new("RGB", (int(font.getlength(line)) + 2 * _GAP, _LETTERS + _GAP), _PAPER)
    ImageDraw.Draw(canvas).text((_GAP // 2, _GAP // 2), line, _INK, font)
    return np.asarray(canvas)


def _stack(rows: list[np.ndarray]) -> np.ndarray:
    width = min(max(row.shape[1] for row in rows), _WIDEST + 4 * _GAP)
    sheet = np.full((sum(row.shape[0] + _GAP for row in rows), width, 3), _PAPER, np.uint8)
    top = 0
    for row in rows:
        part = row[:, :width]
        sheet[top : top + len(part), : part.shape[1]] = part
        top += len(part) + _GAP
    return sheet


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        config = get_recipe(options.recipe)
        if options.memory is not None:
            config = fit_memory(config, options.memory)
        config = override(config, options.set)
        stage = _choose_stage(config, options.stage)
        targets = Path(config.teacher.path) if config.teacher.kind == "folder" else None
        split = "heldout" if options.held_out else "train"
        source = open_source(options.data, config.data, split, targets, index=options.index)
        batches = Batches(source, stage, config.data, config.seed)
        title = (
            f"{config.recipe}, stage {stage.name}: {stage.num_frames} frames, from {options.data} ({split}): LR | HR"
        )
        sheet = make_sheet(batches, options.num, title)
        write_image(options.out, torch.from_numpy(sheet).float() / 255)
    except AdcvsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    num_shots, num_stills = len(source.shots), len(source.stills)
    print(f"{options.out}: {options.num} clips of {num_shots} shots and {num_stills} photographs")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.preview_data", description="Draw what a recipe will train on, as one picture."
    )
    parser.add_argument("--recipe", required=True, choices=sorted(RECIPES))
    parser.add_argument("--data", required=True, type=Path, help="as for training.train")
    parser.add_argument("--out", required=True, type=Path, help="picture to write, such as sheet.png")
    parser.add_argument("--num", type=int, default=8, help="how many clips (default 8)")
    parser.add_argument("--stage", type=int, default=-1, help="which stage, from 0 on (default: the last)")
    parser.add_argument("--held-out", action="store_true", help="show what is never trained on instead")
    parser.add_argument("--index", type=Path, help="folder where a run keeps the cuts it found: RUN/footage")
    parser.add_argument("--memory", type=int, choices=sorted(MEMORY_PRESETS), help="as for training.train")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting")
    return parser


def _choose_stage(config: TrainConfig, number: int) -> StageConfig:
    if not -len(config.stages) <= number < len(config.stages):
        raise ConfigError(f"--stage {number}: recipe {config.recipe} has stages 0 to {len(config.stages) - 1}")
    return config.stages[number]


if __name__ == "__main__":
    sys.exit(main())
