"""Batches without any state: what a step trains on follows from the seed and the step's number alone.

Resuming is one integer, and neither the number of processes, of micro-batches, nor of workers changes the clips of a
step or their order. A batch is a dict:

    lr       [B,T,3,h,w] in -1..1
    hr       [B,T,3,4h,4w] in -1..1
    keys     B names; equal names mean that a teacher sees the same, so its output can be stored under them
    clean    [B,T,3,h,w] in -1..1, the HR clip reduced by bicubic, where the teacher sees that instead of `lr`
    flow     [B,T-1,2,4h,4w] (x, y) HR pixels from frame t to t + 1, exact; 0 where unknown
    visible  [B,T-1,1,4h,4w] 1 where the point of frame t is seen in frame t + 1 too; 0 elsewhere and where unknown
    real     [B,T,3,4h,4w] another clip of real video
    order    [B,T] int64, which shuffles `real`
    crops    [B,T,3,4h,4w] unrelated crops of real photographs

The last six are there where the teacher, the stage's losses and its discriminators look at them. What losses and
discriminators ask for changes nothing of the first three.
Knows nothing about networks.
"""

import hashlib
import signal
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from adcvsr_core.degradation import DEGRADATIONS, Degradation, DegradationConfig, RealWorldConfig, degrade
from adcvsr_core.degradation.codecs import VideoConfig
from adcvsr_core.errors import ConfigError

from .clips import Clip, Source
from .config import DataConfig, StageConfig
from .discriminators.labels import lessons

Batch = dict[str, Tensor | list[str]]
_SCALE = 4
_NEIGHBOURS = 2
# Which generator a sample's parts are drawn from. Not 0: numpy takes (1, 2) and (1, 2, 0) for the same seed.
_PAIR, _ADVERSARY, _DAMAGE = 1, 2, 3


class Batches(torch.utils.data.Dataset):
    """`Batches(...)[index]` is one process's share of one micro-batch; index = step * num_micro + micro.

    Clip number (micro * world + rank) * size + i of a step is clip i of that share.

    Args:
        source: where clips come from.
        stage: sizes, degradations, losses.
        data: `pool`; the rest is the source's matter.
        seed: of the run.
        rank, world: this process's number and how many there are.
        micro_batch: clips that one process takes at a time, 0 = its whole share.
        with_clean: whether the teacher sees clean clips.

    Attributes:
        size: clips of one micro-batch in one process.
        num_micro: micro-batches of a step.

    Raises:
        ConfigError: `stage.batch` does not divide, or clips are too short to be shuffled.
        InputError: the source has nothing large and long enough.
    """

    def __init__(
        self,
        source: Source,
        stage: StageConfig,
        data: DataConfig,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
        micro_batch: int = 0,
        with_clean: bool = False,
    ):
        share = world * (micro_batch or max(1, stage.batch // world))
        if stage.batch % share:
            raise ConfigError(
                f"stage {stage.name}: {stage.batch} clips a step do not divide among {world} processes"
                + (f" by {micro_batch} clips at a time" if micro_batch else "")
                + "; change stage.batch or micro_batch"
            )
        self._lessons = set() if stage.adversary is None else set(lessons(stage.adversary))
        if "shuffled" in self._lessons and stage.num_frames < 3:
            raise ConfigError(
                f"stage {stage.name}: {stage.num_frames} frames have no order but forwards and backwards; "
                "use stage.num_frames=3 or more, or stage.adversary.shuffled=0"
            )
        self.source, self.stage, self.data, self.seed = source, stage, data, seed
        self.rank, self.world, self.with_clean = rank, world, with_clean
        self.size, self.num_micro = share // world, stage.batch // share
        self._kinds, shares = zip(*stage.mixture, strict=True)
        self._shares = np.array(shares) / sum(shares)
        # A codec damages what it predicted: a single frame gets neighbours to be predicted from.
        self._spare = {kind: _NEIGHBOURS * needs_neighbours(DEGRADATIONS[kind]) for kind in self._kinds}
        if stage.num_frames > 1 or source.has_lr:
            self._spare = dict.fromkeys(self._kinds, 0)
        for spare in set(self._spare.values()):
            source.check(stage.num_frames + spare, _SCALE * stage.lr_size)

    def __len__(self) -> int:
        return self.stage.steps * self.num_micro

    def __getitem__(self, index: int) -> Batch:
        """Return one batch; see the module's text."""
        step, micro = divmod(index, self.num_micro)
        first = (micro * self.world + self.rank) * self.size
        samples = [self.sample(step, slot) for slot in range(first, first + self.size)]
        batch: Batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0] if name != "key"}
        return batch | {"keys": [sample["key"] for sample in samples]}

    def sample(self, step: int, slot: int) -> dict[str, Tensor | str]:
        """Return clip `slot` of a step over all processes: as a batch without its first axis, with "key"."""
        number = step * self.stage.batch + slot
        return self._pair(number) | self._real_material(number)

    def _pair(self, number: int) -> dict[str, Tensor | str]:
        stage = self.stage
        rng = self._generator(_PAIR, number % self.data.pool if self.data.pool else number)
        # A stored output of a teacher that sees clean clips fits a clip however it is damaged.
        damage = self._generator(_DAMAGE, number) if self.with_clean else rng
        kind = self._kinds[int(damage.choice(len(self._kinds), p=self._shares))]
        num_spare = max(self._spare.values()) if self.with_clean else self._spare[kind]
        clip = self.source.draw_clip(rng, stage.num_frames + num_spare, _SCALE * stage.lr_size)
        seed, spare = int(damage.integers(2**31)), int(rng.integers(num_spare + 1))
        if clip.lr is None:
            lr, degradation = degrade(clip.frames, kind, seed), f"{kind} {seed}, {_digest(DEGRADATIONS[kind])}"
        else:
            lr, degradation = clip.lr, "as it is"
        which = slice(spare, spare + stage.num_frames)
        frame = f" frame {spare}" if num_spare else ""
        sample = {"lr": to_network(lr[which]), "hr": to_network(clip.frames[which])}
        if self.with_clean:
            sample["clean"], degradation = clean_of(sample["hr"]), "clean"
        sample["key"] = f"{clip.name}{frame}; {degradation}"
        if stage.loss.flow > 0 and stage.loss.flow_source == "known":
            sample |= _known_motion(clip, stage.num_frames)
        return sample

    def _real_material(self, number: int) -> dict[str, Tensor]:
        """Return what the discriminators see beside the student's clips."""
        num_frames, size = self.stage.num_frames, _SCALE * self.stage.lr_size
        rng = self._generator(_ADVERSARY, number)
        material = {}
        if self._lessons & {"real", "shuffled"}:
            material["real"] = to_network(self.source.draw_clip(rng, num_frames, size, video=True).frames)
        if "shuffled" in self._lessons:
            material["order"] = torch.from_numpy(draw_order(rng, num_frames))
        if self._lessons & {"still", "stacked"}:
            crops = [self.source.draw_crop(rng, size) for _ in range(num_frames)]
            material["crops"] = to_network(torch.stack(crops))
        return material

    def _generator(self, part: int, number: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.stage.seed_offset, number, part))


def needs_neighbours(config: Degradation) -> bool:
    """Return whether what happens to a frame depends on the frames around it."""
    if isinstance(config, DegradationConfig):
        return config.h264_probability > 0
    if isinstance(config, RealWorldConfig):
        compressions = [each for one in config.rounds for each in one.compressions]
        return any(isinstance(each, VideoConfig) for each in (*compressions, config.last))
    return True


def draw_order(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """Draw a permutation [T] that is neither the identity nor its reversal; T is at least 3."""
    forwards = np.arange(num_frames)
    while True:
        order = rng.permutation(num_frames)
        if not (np.array_equal(order, forwards) or np.array_equal(order, forwards[::-1])):
            return order


def clean_of(hr: Tensor) -> Tensor:
    """[T,3,H,W] in [-1, 1] -> what a teacher of `sees` "clean" looks at, [T,3,H/4,W/4]."""
    return to_network(degrade(to_frames(hr), "clean", 0))


def to_network(frames: Tensor) -> Tensor:
    """[T,H,W,3] in 0..1 -> [T,3,H,W] in [-1, 1]."""
    return frames.permute(0, 3, 1, 2) * 2 - 1


def to_frames(clip: Tensor) -> Tensor:
    """[T,3,H,W] in [-1, 1] -> [T,H,W,3] in 0..1, clamped."""
    return (clip.float().permute(0, 2, 3, 1) * 0.5 + 0.5).clamp(0, 1)


def make_loader(batches: Batches, first_step: int, workers: int) -> Iterator[tuple[int, int, Batch]]:
    """Yield (step, micro, batch) from a step on; `workers` processes draw ahead, 0 = this process draws."""
    indices = range(first_step * batches.num_micro, len(batches))
    loader = torch.utils.data.DataLoader(
        batches,
        sampler=indices,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_signals_to_the_main_process,
    )
    for index, batch in zip(indices, loader, strict=True):
        yield *divmod(index, batches.num_micro), batch


def _leave_signals_to_the_main_process(worker: int) -> None:
    # Ctrl-C and a cluster's SIGTERM reach the whole group: the main process finishes its step and needs its workers.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _known_motion(clip: Clip, num_frames: int) -> dict[str, Tensor]:
    if clip.flow is None:
        size = clip.frames.shape[1:3]
        return {"flow": torch.zeros(num_frames - 1, 2, *size), "visible": torch.zeros(num_frames - 1, 1, *size)}
    flow, visible = clip.flow[: num_frames - 1], clip.visible[: num_frames - 1]
    return {"flow": flow.permute(0, 3, 1, 2), "visible": visible[:, None]}


def _digest(config: Degradation) -> str:
    """Return eight digits that change when a number of a degradation does."""
    return hashlib.sha256(repr(config).encode()).hexdigest()[:8]
