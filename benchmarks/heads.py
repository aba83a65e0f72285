"""Do the discriminator's heads learn what they are for? `python -m benchmarks.heads --data DIR [--steps N]`.

Trains the pixel discriminator (offline backbone, both heads) on the training part of the prepared data, with the
bundled model's output as the student's, which stays as it is. Then asks it about held-out clips: can the consistency
head tell real from shuffled, can the detail head tell sharp from blurred, and does it stay indifferent to the order?
AUC is the chance that a clip of the first kind scores above one of the second, whichever clips these are.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adcvsr_core import load_student
from adcvsr_core.student import Student
from training.adversary import Adversary
from training.config import AdversaryConfig, DataConfig, StageConfig
from training.optimizers import make_adversary_optimizer
from training.sampling import Batches, draw_order, make_loader, to_network
from training.sources import open_source

NUM_FRAMES, LR_SIZE, BATCH = 7, 16, 4
# Order is the hardest thing to learn: unrelated frames give themselves away at once.
ADVERSARY = AdversaryConfig(
    domains=("pixel",),
    pixel_backbone="st-alex",
    channels=128,
    detail_channels=64,
    real=4.0,
    shuffled=4.0,
    still=1.0,
    stacked=0.5,
    learning_rate=3e-4,
)
DATA = DataConfig(stride=4)
NUM_CLIPS = 96
MOVING = 1 / 255  # mean change between frames in 0..1; where there is less, shuffling changes nothing


def train(adversary: Adversary, student: Student, data: Path, steps: int, say: Callable[[str], None]) -> None:
    """Move the discriminators' trainable parts by `steps` steps."""
    stage = StageConfig(
        name="heads",
        steps=steps,
        batch=BATCH,
        num_frames=NUM_FRAMES,
        lr_size=LR_SIZE,
        mixture=(("clean", 0.4), ("h264", 0.3), ("light", 0.3)),
        temporal_strength=1.0,
        adversary=adversary.config,
    )
    batches = Batches(open_source(data, DATA), stage, DATA, seed=0)
    optimizer = make_adversary_optimizer(adversary.trainable_parameters(), adversary.config)
    started = time.monotonic()
    for step, _, batch in make_loader(batches, 0, workers=1):
        with torch.no_grad():
            sr = student(batch["lr"]).clamp(-1, 1)
        loss, logits = adversary.discriminator_loss(batch, sr, None, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 25 == 24:
            real, shuffled = (logits[f"logit_pixel_{kind}_consistency"] for kind in ("real", "shuffled"))
            seconds = time.monotonic() - started
            say(f"step {step + 1}, {seconds:.0f} s: loss {loss.item():.2f}, real {real:+.2f}, shuffled {shuffled:+.2f}")


def held_out_clips(data: Path, num: int) -> Tensor:
    """Return moving held-out clips [N,T,3,H,W] in [-1, 1], film and photographs in motion."""
    source, clips, seed = open_source(data, DATA, "heldout"), [], 0
    while len(clips) < num:
        clip = source.draw_clip(np.random.default_rng((1, seed)), NUM_FRAMES, 4 * LR_SIZE).frames
        if (clip[1:] - clip[:-1]).abs().mean() > MOVING:
            clips.append(to_network(clip))
        seed += 1
    return torch.stack(clips)


@torch.no_grad()
def measure(adversary: Adversary, clips: Tensor) -> dict[str, float]:
    """Return the AUC of every question."""
    rng = np.random.default_rng(2)
    orders = torch.from_numpy(np.stack([draw_order(rng, clips.shape[1]) for _ in clips]))
    kinds = {
        "real": clips,
        "shuffled": torch.stack([clip[order] for clip, order in zip(clips, orders, strict=True)]),
        "blurred": blurred(clips),
    }
    detail, consistency = {}, {}
    for kind, each in kinds.items():
        verdicts = [adversary.discriminators["pixel"](part) for part in each.split(8)]
        detail[kind] = torch.cat([verdict.detail.mean((1, 2, 3, 4)) for verdict in verdicts])
        consistency[kind] = torch.cat([verdict.consistency.mean((1, 2, 3, 4)) for verdict in verdicts])
    return {
        "consistency head, real above shuffled": auc(consistency["real"], consistency["shuffled"]),
        "detail head, sharp above blurred": auc(detail["real"], detail["blurred"]),
        "detail head, real above shuffled": auc(detail["real"], detail["shuffled"]),
        "consistency head, real above the same clip shuffled": float(
            (consistency["real"] > consistency["shuffled"]).float().mean()
        ),
        "detail head, sharp above the same clip blurred": float((detail["real"] > detail["blurred"]).float().mean()),
    }


def blurred(clips: Tensor) -> Tensor:
    """Shrink clips to a quarter and grow them again, both bicubic: what a student begins with."""
    frames = clips.flatten(0, 1)
    small = F.interpolate(frames, scale_factor=0.25, mode="bicubic", antialias=True)
    return F.interpolate(small, scale_factor=4, mode="bicubic").unflatten(0, clips.shape[:2])


def auc(above: Tensor, below: Tensor) -> float:
    """Return the chance that one of `above` [N] exceeds one of `below` [M]; equal ones count half."""
    difference = above[:, None] - below[None]
    return float((difference > 0).float().mean() + 0.5 * (difference == 0).float().mean())


def run(data: Path, steps: int, say: Callable[[str], None] = print) -> dict[str, float]:
    """Train from one seed and measure."""
    torch.manual_seed(0)
    student = load_student("default")
    adversary = Adversary(ADVERSARY, student, features=data / "features", stable_diffusion="")
    train(adversary, student, data, steps, say)
    return measure(adversary, held_out_clips(data, NUM_CLIPS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of `python -m training.prepare_bundled_data`")
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    for question, value in run(options.data, options.steps).items():
        print(f"{value:.3f}  {question}")


if __name__ == "__main__":
    main()
