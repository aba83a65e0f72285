"""Do the discriminator's heads learn what they are for? `python -m benchmarks.heads --data DIR [--steps N]`.

Trains the pixel discriminator (offline backbone, both heads) on the training part of the prepared data, with the
bundled model's output as the student's, which stays as it is. Then asks it about held-out clips: can the consistency
head tell real from shuffled, can the detail head tell sharp from blurred, and does it stay indifferent to the order?
AUC is the chance that a clip of the first kind scores above one of the second, whichever clips these are; "the same"
compares each clip with its own spoiled twin. Clips without motion and crops without detail are left out: shuffling and
blurring change nothing in them.
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
from adcvsr_core.degradation import degrade
from adcvsr_core.student import Student
from training.adversary import Adversary, real_clip
from training.clips import Source
from training.config import AdversaryConfig, DataConfig
from training.optimizers import make_adversary_optimizer
from training.sampling import draw_order, to_network
from training.sources import open_source

NUM_FRAMES, HR_SIZE, BATCH = 7, 64, 4
DEGRADED = ("clean", "h264", "light")
# Order is the hardest thing to learn: unrelated frames give themselves away at once.
ADVERSARY = AdversaryConfig(
    domains=("pixel",),
    pixel_backbone="st-alex",
    channels=128,
    detail_channels=64,
    real=8.0,
    shuffled=8.0,
    still=1.0,
    stacked=0.5,
    learning_rate=1e-3,
)
DATA = DataConfig(stride=4)
NUM_CLIPS = 96
# Mean changes in 0..1 below which a question has no answer: shuffling leaves still clips alone, blurring leaves sky.
MOVING, DETAILED = 1 / 255, 2 / 255


class Samples(torch.utils.data.Dataset):
    """Step -> batch, as `training.sampling` makes them, but every real clip moves, and half of them are photographs.

    Args:
        source: where clips come from.
        num: steps.
    """

    def __init__(self, source: Source, num: int):
        self.source, self.num = source, num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        samples = [self.sample(np.random.default_rng((0, step, slot))) for slot in range(BATCH)]
        return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}

    def sample(self, rng: np.random.Generator) -> dict[str, Tensor]:
        hr = self.source.draw_clip(rng, NUM_FRAMES, HR_SIZE).frames
        lr = degrade(hr, str(rng.choice(DEGRADED)), int(rng.integers(2**31)))
        crops = torch.stack([self.source.draw_crop(rng, HR_SIZE) for _ in range(NUM_FRAMES)])
        real, order = moving_clip(self.source, rng), torch.from_numpy(draw_order(rng, NUM_FRAMES))
        return {"lr": to_network(lr), "real": to_network(real), "crops": to_network(crops), "order": order}


def moving_clip(source: Source, rng: np.random.Generator) -> Tensor:
    """Draw a clip [T,H,W,3] in 0..1 whose frames differ; shuffling others changes nothing."""
    while True:
        clip = source.draw_clip(rng, NUM_FRAMES, HR_SIZE).frames
        if (clip[1:] - clip[:-1]).abs().mean() > MOVING:
            return clip


def train(adversary: Adversary, student: Student, data: Path, steps: int, say: Callable[[str], None]) -> None:
    """Move the discriminators' trainable parts by `steps` steps."""
    samples = Samples(open_source(data, DATA), steps)
    loader = torch.utils.data.DataLoader(samples, batch_size=None, num_workers=1)
    optimizer = make_adversary_optimizer(adversary.trainable_parameters(), adversary.config)
    # Down to nothing: at a constant rate the verdicts of a few hundred steps still swing from step to step.
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    started = time.monotonic()
    for step, batch in enumerate(loader):
        with torch.no_grad():
            sr = student(batch["lr"]).clamp(-1, 1)
        loss, logits = adversary.discriminator_loss(batch, sr, None, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 25 == 24:
            real, shuffled = (logits[f"logit_pixel_{kind}_consistency"] for kind in ("real", "shuffled"))
            seconds = time.monotonic() - started
            say(f"step {step + 1}, {seconds:.0f} s: loss {loss.item():.2f}, real {real:+.2f}, shuffled {shuffled:+.2f}")


@torch.no_grad()
def measure(adversary: Adversary, data: Path) -> dict[str, float]:
    """Return the answer to every question, on held-out material."""
    source, rng = open_source(data, DATA, "heldout"), np.random.default_rng(1)
    real = torch.stack([to_network(moving_clip(source, rng)) for _ in range(NUM_CLIPS)])
    orders = np.stack([draw_order(rng, NUM_FRAMES) for _ in range(NUM_CLIPS)])
    sharp = torch.stack([sharp_crop(source, rng) for _ in range(NUM_CLIPS)])
    clips = {
        "real": real,
        "shuffled": real_clip("shuffled", {"real": real, "order": torch.from_numpy(orders)}),
        "sharp": sharp,
        "blurred": blurred(sharp),
    }
    detail, consistency = {}, {}
    for kind, each in clips.items():
        verdicts = [adversary.discriminators["pixel"](part) for part in each.split(8)]
        detail[kind] = torch.cat([verdict.detail.mean((1, 2, 3, 4)) for verdict in verdicts])
        consistency[kind] = torch.cat([verdict.consistency.mean((1, 2, 3, 4)) for verdict in verdicts])
    return {
        "consistency head, real above shuffled": auc(consistency["real"], consistency["shuffled"]),
        "consistency head, real above the same shuffled": share_above(consistency["real"], consistency["shuffled"]),
        "detail head, sharp above blurred": auc(detail["sharp"], detail["blurred"]),
        "detail head, sharp above the same blurred": share_above(detail["sharp"], detail["blurred"]),
        "detail head, real above shuffled": auc(detail["real"], detail["shuffled"]),
    }


def sharp_crop(source: Source, rng: np.random.Generator) -> Tensor:
    """Draw a crop [1,3,H,W] in [-1, 1] that blurring changes; sky and background are blurred as they are."""
    while True:
        crop = to_network(source.draw_crop(rng, HR_SIZE)[None])
        if (crop - blurred(crop[None])[0]).abs().mean() > 2 * DETAILED:
            return crop


def blurred(clips: Tensor) -> Tensor:
    """Shrink clips to a quarter and grow them again, both bicubic: what a student begins with."""
    frames = clips.flatten(0, 1)
    small = F.interpolate(frames, scale_factor=0.25, mode="bicubic", antialias=True)
    return F.interpolate(small, scale_factor=4, mode="bicubic").unflatten(0, clips.shape[:2])


def auc(above: Tensor, below: Tensor) -> float:
    """Return the chance that one of `above` [N] exceeds one of `below` [M]; equal ones count half."""
    difference = above[:, None] - below[None]
    return float((difference > 0).float().mean() + 0.5 * (difference == 0).float().mean())


def share_above(above: Tensor, below: Tensor) -> float:
    """Return the share of pairs of which the first is above the second; both [N]."""
    return float((above > below).float().mean())


def run(data: Path, steps: int, say: Callable[[str], None] = print) -> dict[str, float]:
    """Train from one seed and measure."""
    torch.manual_seed(0)
    student = load_student("default")
    adversary = Adversary(ADVERSARY, student, features=data / "features", stable_diffusion="")
    train(adversary, student, data, steps, say)
    return measure(adversary, data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of `python -m training.prepare_bundled_data`")
    parser.add_argument("--steps", type=int, default=450)
    options = parser.parse_args()
    for question, value in run(options.data, options.steps).items():
        print(f"{value:.3f}  {question}")


if __name__ == "__main__":
    main()
