"""How ranges in a configuration become the numbers of a clip.

Every number comes from a numpy Generator on the CPU, so that a seed means the same on every device. A step that draws
for itself gets a child (`rng.spawn`): what it draws, or how often, then shifts nobody else's numbers. Knows nothing of
frames.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..errors import ConfigError

Range = tuple[float, float]
FrameStep = Callable[[int, Tensor], Tensor]
"""What is done to one frame: (its index in the clip, frame [3,H,W]) -> frame, with the clip's numbers bound in."""


@dataclass(frozen=True)
class Walk:
    """A number that is drawn once a clip and then wanders by a small uniform step a frame, inside its range.

    Attributes:
        low, high: the range.
        step: the largest step; 0 = one number for the whole clip.
    """

    low: float
    high: float
    step: float = 0.0

    def __post_init__(self) -> None:
        if not self.low <= self.high or self.step < 0:
            raise ConfigError(f"{self} is no range; expected low <= high and step >= 0")

    def path(self, num_frames: int, rng: np.random.Generator, start: float | None = None) -> np.ndarray:
        """Return the number in each of `num_frames` frames; it begins at `start`, or anywhere in the range."""
        begin = rng.uniform(self.low, self.high)
        values = [begin if start is None else start]
        for step in rng.uniform(-1, 1, num_frames - 1) * self.step:  # drawn in any case: see above
            values.append(min(max(values[-1] + step, self.low), self.high))
        return np.array(values)


def wander(num_frames: int, memory: float, rng: np.random.Generator) -> np.ndarray:
    """Return [T] of mean 0 and standard deviation 1 in which neighbours correlate by `memory`, 0 to 1."""
    fresh = rng.standard_normal(num_frames)
    for t in range(1, num_frames):
        fresh[t] = memory * fresh[t - 1] + (1 - memory**2) ** 0.5 * fresh[t]
    return fresh


def choose(shares: Sequence[float], rng: np.random.Generator) -> int:
    """Draw an index with the given shares, which need not sum to 1."""
    shares = np.asarray(shares, dtype=np.float64)
    return int(rng.choice(len(shares), p=shares / shares.sum()))


def require_probabilities(config: object, *names: str) -> None:
    """Raise ConfigError unless these fields lie in [0, 1]."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} {value} is outside [0, 1]")


def require_ranges(config: object, limits: dict[str, Range]) -> None:
    """Raise ConfigError unless these fields are increasing ranges inside their limits."""
    for name, (low, high) in limits.items():
        start, stop = getattr(config, name)
        if not low <= start <= stop <= high:
            raise ConfigError(f"{name} ({start}, {stop}) is not an increasing range inside [{low}, {high}]")


def require_scale(scale: int) -> None:
    """Raise ConfigError unless HR size over LR size is a whole number from 1."""
    if scale < 1:
        raise ConfigError(f"scale {scale} is below 1")
