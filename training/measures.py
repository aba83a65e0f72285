"""Metrics by name: what each needs, how one frame counts, and which way is better.

A metric of a clip is a quotient of two sums over its frames, so a clip streams through and only three frames are held.
`training.evaluate` feeds frames in; nothing here knows about files, models or tables. Optional packages are imported
when a metric that needs them is asked for by name. Metrics made by different implementations have different names.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from adcvsr_core import metrics
from adcvsr_core.color import blur
from adcvsr_core.errors import AdcvsrError, ConfigError

from .flow import estimate, inside, warp
from .judge import load_judge
from .niqe import load_niqe
from .optional_measures import NO_REFERENCE, build_no_reference, compatible_warping_error
from .perceptual import make_distance

# Measured when nothing is asked for by name, as far as this machine can.
DEFAULT = (
    "y_psnr",
    "rgb_psnr",
    "ssim",
    "stlpips_vgg",
    "lpips_alex",
    "dists",
    "flicker",
    "shimmer",
    "motion_energy",
    "motion_energy_lr",
    "high_pass",
    "high_pass_lr",
    "warping_error",
    "ewarp",
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What metrics are made with.

    Attributes:
        features: folder whose `features/` holds the ST-LPIPS weights.
        device: for networks.
        flow: "dis" or "raft", for `ewarp`.
        download: whether pyiqa may fetch the weights of its metrics.
    """

    features: Path
    device: torch.device
    flow: str = "dis"
    download: bool = False


@dataclass(kw_only=True, eq=False)
class Moment:
    """What is known of one frame, whoever made it. Frames are [H,W,3] in 0..1.

    Attributes:
        index: of the frame in its clip.
        lr: the frame as it was given, [h,w,3].
        reference: the frame as it should be, or, for sets without ground truth, the LR frame enlarged by bicubic.
        before: the reference of the frame before, None for the first.
        has_truth: which of both the reference is.
        motion: exact flow [H,W,2] from the frame before to this one, None = not known.
        perceptual: whether slow networks look at this frame.
        setting: how to estimate what is not known.
    """

    index: int
    lr: Tensor
    reference: Tensor
    before: Tensor | None
    has_truth: bool
    motion: Tensor | None
    perceptual: bool
    setting: Setting

    @functools.cached_property
    def flow(self) -> tuple[Tensor, Tensor]:
        """The motion from the reference before to this one, [1,2,H,W], and what stays in sight, [1,1,H,W]."""
        clip = _planar(torch.stack([self.before, self.reference])) * 2 - 1
        flow, visible = estimate(clip[None].to(self.setting.device), self.setting.flow)
        return flow[:, 0].cpu(), visible[:, 0].cpu()


@dataclass(frozen=True, eq=False)
class Shown:
    """One frame [H,W,3] in 0..1 on 8-bit levels as some method shows it, and up to two before it, newest first."""

    sr: Tensor
    past: tuple[Tensor, ...]
    moment: Moment


# What a frame adds to the two sums; None = nothing.
Step = Callable[[Shown], tuple[float, float] | None]
Scores = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A metric.

    Attributes:
        title: for tables.
        better: "higher", "lower", "1" (of the reference), or "" where more is neither.
        build: makes what a frame adds to the sums; raises AdcvsrError where the metric cannot be had.
        absolute: whether it also says something about the ground truth itself.
        digits: decimals in tables.
    """

    title: str
    better: str
    build: Callable[[Setting], Step]
    absolute: bool = False
    digits: int = 4


def make_steps(names: list[str], setting: Setting) -> dict[str, Step]:
    """Make metrics.

    Args:
        names: of `MEASURES`.
        setting: see there.

    Raises:
        ConfigError: an unknown name, or a missing package.
        InputError: missing weights.
    """
    unknown = [name for name in names if name not in MEASURES]
    if unknown:
        raise ConfigError(f"unknown metrics {', '.join(unknown)}; expected of {', '.join(MEASURES)}")
    return {name: MEASURES[name].build(setting) for name in names}


def make_default_steps(setting: Setting) -> tuple[dict[str, Step], list[str]]:
    """Make the metrics of `DEFAULT` that this machine can; also returns one line for each that it cannot."""
    steps, missing = {}, []
    for name in DEFAULT:
        try:
            steps |= make_steps([name], setting)
        except AdcvsrError as error:
            missing.append(f"{name}: {error}")
    return steps, missing


class Tally:
    """Collects what frames add to each metric, for one clip and one method.

    Args:
        steps: the metrics.
    """

    def __init__(self, steps: dict[str, Step]) -> None:
        self.steps = steps
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, frame: Shown, *, is_truth: bool = False) -> None:
        """Add a frame; of the ground truth itself only what also has a meaning without it."""
        for name, step in self.steps.items():
            part = step(frame) if not is_truth or MEASURES[name].absolute else None
            if part is not None:
                value, weight = self._sums.get(name, (0.0, 0.0))
                self._sums[name] = value + part[0], weight + part[1]

    def scores(self) -> Scores:
        """Return the quotients; one over nothing, such as the motion energy of a still clip, is not measured."""
        return {name: value / weight for name, (value, weight) in self._sums.items() if weight}


# With ground truth


def _frame(measure: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Setting], Step]:
    """A full-reference metric of single frames [1,H,W,3]."""

    def step(shown: Shown) -> tuple[float, float] | None:
        if not shown.moment.has_truth:
            return None
        return float(measure(shown.sr[None], shown.moment.reference[None])), 1.0

    return lambda setting: step


def rgb_psnr(sr: Tensor, hr: Tensor) -> Tensor:
    """PSNR over the three channels of [T,H,W,3] in 0..1, in dB; inf for equal frames."""
    return -10 * torch.log10((sr.double() - hr.double()).square().mean((1, 2, 3)))


def _named(distance: str) -> Callable[[Path], nn.Module]:
    return lambda folder: make_distance(distance, folder)


def _perceptual(make: Callable[[Path], nn.Module]) -> Callable[[Setting], Step]:
    """A distance of single frames by a network; `make` gets the folder of its weights."""

    def build(setting: Setting) -> Step:
        distance = make(setting.features).to(setting.device)

        @torch.no_grad()
        def step(shown: Shown) -> tuple[float, float] | None:
            if not (shown.moment.has_truth and shown.moment.perceptual):
                return None
            a, b = (_planar(x[None]).to(setting.device) * 2 - 1 for x in (shown.sr, shown.moment.reference))
            return distance(a, b).item(), 1.0

        return step

    return build


def _flicker(shown: Shown) -> tuple[float, float] | None:
    if not (shown.past and shown.moment.has_truth):
        return None
    reference = torch.stack([shown.moment.before, shown.moment.reference])
    return float(metrics.flicker(torch.stack([shown.past[0], shown.sr]), reference)), 1.0


# Against ground truth, or against the enlarged LR frames where there is none


def _motion_energy(shown: Shown) -> tuple[float, float] | None:
    if not shown.past:
        return None
    return _change(shown.past[0], shown.sr), _change(shown.moment.before, shown.moment.reference)


def _high_pass(shown: Shown) -> tuple[float, float]:
    return fine_energy(shown.sr), fine_energy(shown.moment.reference)


def _sharpness(shown: Shown) -> tuple[float, float]:
    return fine_energy(shown.sr), 1.0


def _change(before: Tensor, now: Tensor) -> float:
    return float((metrics.luma(now) - metrics.luma(before)).abs().mean())


def fine_energy(frame: Tensor) -> float:
    """Return the energy of the finest wavelet band of the luma of [H,W,3] in 0..1, in squared levels a pixel."""
    return float(_fine_band(frame).square().mean())


def _fine_band(frame: Tensor) -> Tensor:
    luma = metrics.luma(frame)[None, None]
    return luma - blur(luma, 1)


def _only(truth: bool, step: Step) -> Callable[[Setting], Step]:
    """The same arithmetic against another reference is another metric, with another name."""
    return lambda setting: lambda shown: step(shown) if shown.moment.has_truth == truth else None


# Over time, without ground truth for the picture


def _shimmer(shown: Shown) -> tuple[float, float] | None:
    # Motion of sharp edges counts too: what matters is how far it is from the ground truth's.
    if len(shown.past) < 2:
        return None
    return metrics.shimmer(torch.stack([*reversed(shown.past), shown.sr])), 1.0


def _warping_error(shown: Shown) -> tuple[float, float] | None:
    if not shown.past or shown.moment.motion is None:
        return None
    motion = shown.moment.motion[None]
    weight = float(inside(motion.permute(0, 3, 1, 2)).sum())
    return float(metrics.warping_error(torch.stack([shown.past[0], shown.sr]), motion)) * weight, weight


def _crawl(shown: Shown) -> tuple[float, float] | None:
    # A texture that sticks to its object gives 0, one drawn anew for every frame 1, however strong it is: unlike the
    # plain warping error, blur does not lower this.
    if not shown.past or shown.moment.motion is None:
        return None
    flow = shown.moment.motion.permute(2, 0, 1)[None].double()
    before, now = _fine_band(shown.past[0]), _fine_band(shown.sr)
    seen = inside(flow)
    error = ((before - warp(now, flow, "bicubic")).square() * seen).sum()
    energy = ((before.square() + now.square()) * seen).sum()
    return float(error), float(energy)


def _ewarp(setting: Setting) -> Step:
    """Make ours: 1000 * mean squared RGB difference to the next frame fetched along the motion, where both see a point.

    The motion is estimated on the reference and never on what is measured, the same for all methods, so that standing
    still costs. Blur still lowers it: what is below the ground truth's own value is smoother than the truth. Not
    comparable with published E*warp; that is `ewarp_compat`.
    """
    estimate(torch.zeros(1, 2, 3, 16, 16, device=setting.device), setting.flow)  # missing packages are told here

    def step(shown: Shown) -> tuple[float, float] | None:
        if not shown.past:
            return None
        flow, visible = shown.moment.flow
        before, now = (_planar(x[None]) for x in (shown.past[0], shown.sr))
        error = (before - warp(now, flow, "bicubic").clamp(0, 1)).square().mean(1, keepdim=True)
        return 1000 * float((error * visible).double().sum()), float(visible.sum())

    return step


def _ewarp_compat(setting: Setting) -> Step:
    between = compatible_warping_error(setting.device)

    def step(shown: Shown) -> tuple[float, float] | None:
        return (between(*(_planar(x[None]) for x in (shown.past[0], shown.sr))), 1.0) if shown.past else None

    return step


def _niqe(setting: Setting) -> Step:
    measure = load_niqe(setting.features)

    def step(shown: Shown) -> tuple[float, float] | None:
        score = measure(shown.sr)
        return None if score is None else (score, 1.0)

    return step


def _no_reference(name: str) -> Callable[[Setting], Step]:
    def build(setting: Setting) -> Step:
        score = build_no_reference(name, setting.device, setting.download)
        return lambda shown: (score(_planar(shown.sr[None])), 1.0)

    return build


def _planar(frames: Tensor) -> Tensor:
    return frames.permute(0, 3, 1, 2).contiguous()


def _always(step: Step) -> Callable[[Setting], Step]:
    return lambda setting: step


MEASURES: dict[str, Measure] = {
    "y_psnr": Measure(title="Y-PSNR", better="higher", build=_frame(metrics.psnr), digits=2),
    "rgb_psnr": Measure(title="RGB-PSNR", better="higher", build=_frame(rgb_psnr), digits=2),
    "ssim": Measure(title="SSIM(Y)", better="higher", build=_frame(metrics.ssim)),
    "stlpips_vgg": Measure(title="ST-LPIPS(VGG)", better="lower", build=_perceptual(_named("st-lpips-vgg"))),
    "stlpips_alex": Measure(title="ST-LPIPS(Alex)", better="lower", build=_perceptual(_named("st-lpips-alex"))),
    "lpips_alex": Measure(title="LPIPS(Alex)", better="lower", build=_perceptual(_named("lpips-alex"))),
    "lpips_vgg": Measure(title="LPIPS(VGG)", better="lower", build=_perceptual(_named("lpips-vgg"))),
    "judge": Measure(title="judge(EffNet-Lite0)", better="lower", build=_perceptual(load_judge)),
    "niqe": Measure(title="NIQE", better="lower", build=_niqe, absolute=True, digits=2),
    "dists": Measure(title="DISTS", better="lower", build=_perceptual(_named("dists"))),
    "flicker": Measure(title="flicker", better="lower", build=_always(_flicker), digits=3),
    "shimmer": Measure(title="shimmer", better="", build=_always(_shimmer), absolute=True, digits=3),
    "motion_energy": Measure(title="motion energy", better="1", build=_only(True, _motion_energy), digits=3),
    "motion_energy_lr": Measure(title="motion energy/LR", better="1", build=_only(False, _motion_energy), digits=3),
    "high_pass": Measure(title="high-pass energy", better="1", build=_only(True, _high_pass), digits=3),
    "high_pass_lr": Measure(title="high-pass energy/LR", better="", build=_only(False, _high_pass), digits=3),
    "warping_error": Measure(
        title="warping error", better="lower", build=_always(_warping_error), absolute=True, digits=3
    ),
    "crawl": Measure(title="crawl of fine detail", better="lower", build=_always(_crawl), absolute=True, digits=3),
    "sharpness": Measure(title="sharpness", better="", build=_always(_sharpness), absolute=True, digits=2),
    "ewarp": Measure(title="ewarp", better="lower", build=_ewarp, absolute=True, digits=3),
    "ewarp_compat": Measure(title="ewarp_compat", better="lower", build=_ewarp_compat, absolute=True, digits=3),
} | {
    name: Measure(title=name, better=better, build=_no_reference(name), absolute=True)
    for name, better in NO_REFERENCE.items()
}
