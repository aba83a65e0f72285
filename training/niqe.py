"""NIQE: how far a picture's statistics are from those of untouched photographs, without any reference.

Mittal, Soundararajan and Bovik, "Making a 'completely blind' image quality analyzer", IEEE SPL 2013. Local contrast is
evened out, blocks of 96x96 at two scales are described by the shapes of their histograms, and the Gaussian of a
picture's blocks is compared with the published one of sharp photographs. Nothing here was trained with it. It knows
nothing of what a picture shows: noise and sharpening can please it. The published numbers are in the registry package
mmagic (Apache-2.0), fetched by `training.prepare_benchmark_data`. Constants are those of the authors' code.
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adcvsr_core.errors import CheckpointError, InputError
from adcvsr_core.metrics import luma

FILE = "niqe_pris_params.npz"
_BLOCK = 96
_WINDOW, _SIGMA = 7, 7 / 6
_NUM_FEATURES = 36
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
_SHAPES = torch.arange(200, 10_001, dtype=torch.float64) / 1000  # exponents that a histogram may have


class Niqe:
    """The measure.

    Args:
        mean: [36] of the features of sharp photographs.
        covariance: [36,36] of them.
    """

    def __init__(self, mean: np.ndarray, covariance: np.ndarray):
        self._mean, self._covariance = mean, covariance

    def __call__(self, frame: Tensor) -> float | None:
        """Measure [H,W,3] in 0..1; lower is more natural.

        Returns:
            the distance, 0 or more; None where the frame holds fewer than two whole blocks that are not flat.
        """
        rows, columns = (edge // _BLOCK for edge in frame.shape[:2])
        if rows * columns < 2:
            return None
        # The authors' code sees whole levels.
        picture = luma(frame.double()).round()[None, None, : rows * _BLOCK, : columns * _BLOCK]
        half = F.interpolate(picture, scale_factor=0.5, mode="bicubic", antialias=True)
        scales = ((picture, _BLOCK), (half, _BLOCK // 2))
        features = torch.cat([_describe(_even_out(x)[0, 0], block) for x, block in scales], 1).numpy()
        whole = features[~np.isnan(features).any(1)]  # flat blocks have no histogram
        if len(whole) < 2:
            return None
        apart = self._mean - np.nanmean(features, 0)
        between = np.linalg.pinv((self._covariance + np.cov(whole, rowvar=False)) / 2)
        return math.sqrt(apart @ between @ apart)


def load_niqe(data: Path) -> Niqe:
    """Load the published numbers from a prepared folder.

    Raises:
        InputError: they are not there.
        CheckpointError: the file holds something else.
    """
    path = data / "features" / FILE
    if not path.exists():
        raise InputError(f"{path} is missing; fetch it with `python -m training.prepare_benchmark_data`")
    try:
        with np.load(path) as numbers:
            mean, covariance = numbers["mu_pris_param"].reshape(-1), numbers["cov_pris_param"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} does not hold NIQE's numbers: {error}") from error
    if mean.shape != (_NUM_FEATURES,) or covariance.shape != (_NUM_FEATURES, _NUM_FEATURES):
        raise CheckpointError(f"{path}: expected {_NUM_FEATURES} features, found {mean.shape} and {covariance.shape}")
    return Niqe(mean, covariance)


def _even_out(picture: Tensor) -> Tensor:
    """[1,1,H,W] in 0..255 -> the same without its local mean, by its local contrast."""
    at = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    line = torch.exp(-(at**2) / (2 * _SIGMA**2))
    window = line[:, None] * line
    window = (window / window.sum())[None, None]
    mean, square = (F.conv2d(F.pad(x, [_WINDOW // 2] * 4, "replicate"), window) for x in (picture, picture**2))
    return (picture - mean) / ((square - mean**2).abs().sqrt() + 1)


def _describe(evened: Tensor, size: int) -> Tensor:
    """[H,W] -> [blocks, 18]: the histograms of pixels, and of the products with four neighbours."""
    blocks = evened.unfold(0, size, size).unfold(1, size, size).flatten(0, 1)
    exponent, left, right, _ = _fit(blocks)
    found = [exponent, (left + right) / 2]
    for shift in _SHIFTS:
        exponent, left, right, mean = _fit(blocks * blocks.roll(shift, (1, 2)))
        found += [exponent, mean, left, right]
    return torch.stack(found, 1)


def _fit(values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fit a generalised Gaussian with a width of its own on either side to [N,h,w].

    Returns:
        exponent, left width, right width and mean, each [N].
    """
    values = values.flatten(1)
    left, right = (_spread(values, side) for side in (values < 0, values > 0))
    ratio = left / right
    flatness = values.abs().mean(1) ** 2 / values.square().mean(1)
    wanted = flatness * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    logs = {n: torch.lgamma(n / _SHAPES) for n in (1, 2, 3)}
    offered = torch.exp(2 * logs[2] - logs[1] - logs[3])
    best = (offered - wanted[:, None]).abs().argmin(1)
    width = torch.exp((logs[1] - logs[3]) / 2)[best]
    mean = (right - left) * width * torch.exp(logs[2] - logs[1])[best]
    return _SHAPES[best], left * width, right * width, mean


def _spread(values: Tensor, side: Tensor) -> Tensor:
    return ((values.square() * side).sum(1) / side.sum(1)).sqrt()
