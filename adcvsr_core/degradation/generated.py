"""Video that a generator made: what a latent with 8 x 8 x 4 pixels a cell does to a picture, then H.264.

Weak texture and skin come out waxy; what texture there is boils, for it is made anew with every latent frame (one for
four frames); moving things smear within these four; a faint grid with a period of 8 pixels and small jumps at every
fourth frame remain. All lengths are LR pixels, because it is the generator's own size that users upscale. Knows
nothing about the other pipelines. Source: our own, after looking at such videos.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .codecs import h264_round_trip
from .draws import Range, require_probabilities, require_ranges, require_scale
from .filters import gaussian_blur, luma
from .latents import Latents, draw_latents, draw_pattern
from .levels import to_levels
from .resize import downscale

DETAIL_SIGMA = 1.6  # pixels: what is finer is detail
NEARBY_SIGMA = 2.5  # pixels over which the strength of detail is judged


@dataclass(frozen=True, kw_only=True)
class GeneratedConfig:
    """How much of a generator is seen. A clip draws one number from each range; (0, 0) is neutral.

    Attributes:
        scale: HR size over LR size, a whole number; HR must be a multiple of it.
        softness: sigma of the decoder's blur.
        wax: share of weak detail that is gone, 0 to 1.
        wax_level: detail weaker than this is weak, in levels of 255; twice as much on skin (neutral: no matter).
        boil: standard deviation of how far texture swims, each way.
        texture: invented texture, as a share of the detail around it.
        smear: how far a frame is drawn to the mean of its latent frame's, 0 to 1.
        grid: standard deviation of the pattern and the steps of cells, in levels of 255, where there is detail; a third
            of it elsewhere.
        jump: standard deviation of brightness and colour from latent frame to latent frame, as a share of them.
        h264_probability: chance of an H.264 round trip (neutral: 0).
        h264_crf: x264's constant rate factor, 0 to 51.
    """

    scale: int = 4
    softness: Range = (0.0, 0.7)
    wax: Range = (0.4, 1.0)
    wax_level: Range = (2.0, 7.0)
    boil: Range = (0.15, 0.8)
    texture: Range = (0.1, 0.6)
    smear: Range = (0.0, 0.3)
    grid: Range = (0.4, 2.5)
    jump: Range = (0.0, 0.012)
    h264_probability: float = 0.9
    h264_crf: Range = (14.0, 26.0)

    def __post_init__(self) -> None:
        require_scale(self.scale)
        require_probabilities(self, "h264_probability")
        limits = {"softness": (0, 10), "wax_level": (0, 255), "boil": (0, 8), "grid": (0, 255), "h264_crf": (0, 51)}
        require_ranges(self, dict.fromkeys(("wax", "texture", "smear", "jump"), (0, 1)) | limits)


def degrade_generated(frames: Tensor, config: GeneratedConfig, rng: np.random.Generator) -> np.ndarray:
    """Map HR frames [T,3,H,W] in 0..1 to LR levels [T,H/scale,W/scale,3] uint8."""
    place, soft, wax, texture, grid, jump, codec = rng.spawn(7)
    frames = downscale(frames, config.scale)
    latents = draw_latents(len(frames), tuple(frames.shape[2:]), place)
    frames = _smear(frames, latents, soft.uniform(*config.smear))
    sigma = soft.uniform(*config.softness)
    if sigma:
        frames = gaussian_blur(frames, sigma)
    base = gaussian_blur(frames, DETAIL_SIGMA)
    detail = _wax(frames, frames - base, config, wax)
    nearby = _strength(detail)
    detail = _boil(detail, latents, config, texture)
    frames = base + detail + _invent(latents, texture, frames.device) * nearby * texture.uniform(*config.texture)
    frames = frames + grid_pattern(latents, grid.uniform(*config.grid), nearby, grid)
    frames = _jump(frames, latents, jump.uniform(*config.jump), jump)
    levels = to_levels(frames.permute(0, 2, 3, 1))
    if codec.random() < config.h264_probability:
        levels = h264_round_trip(levels, codec.uniform(*config.h264_crf))
    return levels


def _smear(frames: Tensor, latents: Latents, amount: float) -> Tensor:
    """Draw every frame towards the mean of its latent frame's."""
    means = torch.stack([frames[torch.from_numpy(latents.group == g)].mean(0) for g in range(latents.num_groups)])
    return torch.lerp(frames, means[latents.group], amount)


def _strength(detail: Tensor) -> Tensor:
    """Return how strong detail [T,3,h,w] is around each pixel: its mean deviation in brightness, [T,1,h,w]."""
    return gaussian_blur(luma(detail).abs().expand(-1, 3, -1, -1), NEARBY_SIGMA)[:, :1]


def _wax(frames: Tensor, detail: Tensor, config: GeneratedConfig, rng: np.random.Generator) -> Tensor:
    """Remove what is weak from the detail of the frames."""
    share, level = rng.uniform(*config.wax), rng.uniform(*config.wax_level) / 255
    level = level * (1 + skin(frames))
    keep = _strength(detail) ** 2
    keep = keep / (keep + level**2 + 1e-12)
    return detail * (1 - share * (1 - keep))


def skin(frames: Tensor) -> Tensor:
    """Return how much each pixel of [T,3,h,w] has a colour that skin has, [T,1,h,w] in 0..1."""
    red, green, blue = frames.split(1, dim=1)
    warm = torch.sigmoid((red - green - 0.05) / 0.02) * torch.sigmoid((0.4 - red + green) / 0.04)
    return warm * torch.sigmoid((green - blue) / 0.02) * torch.sigmoid((red - 0.25) / 0.05)


def _boil(detail: Tensor, latents: Latents, config: GeneratedConfig, rng: np.random.Generator) -> Tensor:
    """Let detail [T,3,h,w] swim, otherwise in every latent frame."""
    reach = rng.uniform(*config.boil)
    if not reach:
        return detail
    height, width = latents.size
    moves = latents.smooth_noise(2, rng, detail.device) * reach  # [T,2,h,w], x then y, in pixels
    still = torch.eye(2, 3, dtype=detail.dtype, device=detail.device).expand(len(detail), 2, 3)
    grid = F.affine_grid(still, list(detail.shape), align_corners=False)
    grid = grid + moves.permute(0, 2, 3, 1) * 2 / detail.new_tensor([width, height])
    return F.grid_sample(detail, grid, mode="bicubic", padding_mode="reflection", align_corners=False)


def _invent(latents: Latents, rng: np.random.Generator, device: torch.device) -> Tensor:
    """Return texture of its own, [T,3,h,w] of standard deviation near 1: noise between two blurs."""
    noise = latents.noise((1, *latents.size), rng, device).expand(-1, 3, -1, -1)
    band = gaussian_blur(noise, 0.6) - gaussian_blur(noise, DETAIL_SIGMA)
    return band / 0.38


def grid_pattern(latents: Latents, level: float, nearby: Tensor, rng: np.random.Generator) -> Tensor:
    """Return what the cells leave in a picture, [T,3,h,w].

    Args:
        latents: where the cells lie.
        level: in levels of 255, where there is detail.
        nearby: strength of the detail around, [T,1,h,w].
        rng: where pattern and steps come from.
    """
    device = nearby.device
    pattern = latents.tile(torch.from_numpy(draw_pattern(rng)).to(nearby))
    strength = 0.5 + 0.5 * latents.smooth_noise(1, rng, device).abs()
    steps = 0.6 * latents.block_noise(1, rng, device)
    seen = (1 / 3 + nearby * (255 / 6)).clamp(max=1)
    return (pattern * strength + steps) * seen * (level / 255)


def _jump(frames: Tensor, latents: Latents, amount: float, rng: np.random.Generator) -> Tensor:
    """Change brightness, and a little of the colour, with every latent frame."""
    common, own = (latents.noise((channels, 1, 1), rng, frames.device) for channels in (1, 3))
    return frames * (1 + amount * (common + 0.4 * own))
