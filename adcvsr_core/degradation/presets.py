"""The degradations that have a name, with every published number.

Sources: RealBasicVSR's training configuration (Chan et al., 2022), DOVE's (Chen et al., 2025), and the Real-ESRGAN
settings of AdcSR (Chen et al., 2025). The others are our own.
"""

from dataclasses import replace
from math import pi

from .codecs import JpegConfig, VideoConfig
from .draws import Walk
from .film import FilmConfig
from .generated import GeneratedConfig
from .kernels import BlurConfig
from .mild import DegradationConfig
from .noise import NoiseConfig
from .realworld import RealWorldConfig, RoundConfig
from .resize import ResizeConfig

Degradation = DegradationConfig | RealWorldConfig | FilmConfig | GeneratedConfig

ONLY_SINC = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
RINGING = BlurConfig(sigma=Walk(1, 1), probability=0.8, shares=ONLY_SINC, omega_lows=(pi / 3, pi / 3))


def realbasicvsr(*, walks: bool = True, sharpen: bool = True, area: int = 256 * 256) -> RealWorldConfig:
    """RealBasicVSR's pipeline.

    Args:
        walks: whether parameters wander from frame to frame; JPEG's quality always does.
        sharpen: whether the source is sharpened first.
        area: HR pixels that its bit budgets are meant for; its crops have 256 x 256.
    """

    def walk(low: float, high: float, step: float) -> Walk:
        return Walk(low, high, step if walks else 0.0)

    first = RoundConfig(
        blur=BlurConfig(
            sigma=walk(0.2, 3, 0.02),
            angle=walk(-pi, pi, 0.31416),
            beta_gaussian=walk(0.5, 4, 0.05),
            beta_plateau=walk(1, 2, 0.1),
            omega_step=0.0628 if walks else 0.0,
        ),
        resize=ResizeConfig(shares=(0.2, 0.7, 0.1), factor=walk(0.15, 1.5, 0.015), even=True),
        noise=NoiseConfig(sigma=walk(1, 30, 0.1), poisson=walk(0.05, 3, 0.005), poisson_white=255),
        compressions=(JpegConfig(quality=Walk(30, 95, 3)), VideoConfig(area=area)),
    )
    second = RoundConfig(
        blur=replace(first.blur, probability=0.8, sigma=walk(0.2, 1.5, 0.02)),
        resize=ResizeConfig(shares=(0.3, 0.4, 0.3), factor=walk(0.3, 1.2, 0.03), even=True),
        noise=replace(first.noise, sigma=walk(1, 25, 0.1), poisson=walk(0.05, 2.5, 0.005)),
        compressions=first.compressions[:1],
    )
    return RealWorldConfig(
        rounds=(first, second),
        last=first.compressions[1],
        ringing=replace(RINGING, omega_step=first.blur.omega_step),
        sharpen=sharpen,
    )


def realesrgan_adcsr() -> RealWorldConfig:
    """Real-ESRGAN's pipeline with AdcSR's lighter numbers; on clips every frame gets the same parameters."""
    first = RoundConfig(
        blur=BlurConfig(sigma=Walk(0.2, 1.5), beta_gaussian=Walk(0.5, 2), beta_plateau=Walk(1, 1.5)),
        resize=ResizeConfig(shares=(0.2, 0.7, 0.1), factor=Walk(0.3, 1.5)),
        noise=NoiseConfig(sigma=Walk(1, 15), poisson=Walk(0.05, 2)),
        compressions=(JpegConfig(quality=Walk(60, 95)),),
    )
    second = RoundConfig(
        blur=replace(first.blur, probability=0.5, sigma=Walk(0.2, 1)),
        resize=ResizeConfig(shares=(0.3, 0.4, 0.3), factor=Walk(0.6, 1.2), of_lr=True),
        noise=NoiseConfig(sigma=Walk(1, 12), poisson=Walk(0.05, 1)),
    )
    return RealWorldConfig(rounds=(first, second), last=JpegConfig(quality=Walk(60, 100)), ringing=RINGING)


DEGRADATIONS: dict[str, Degradation] = {
    "clean": DegradationConfig(),
    "light": DegradationConfig(
        blur_probability=0.7, blur_sigma=(0.4, 2.4), noise_probability=0.6, jpeg_probability=0.6
    ),
    "h264": DegradationConfig(h264_probability=1.0),
    "h264_crf30": DegradationConfig(h264_probability=1.0, h264_crf=(30.0, 30.0), h264_presets=("medium",)),
    "noise10": DegradationConfig(noise_probability=1.0, noise_sigma=(10.0, 10.0)),
    "realbasicvsr": realbasicvsr(),
    # DOVE cuts 480 x 960 pixels out, degrades them, and crops what it trains on afterwards.
    "dove": realbasicvsr(walks=False, sharpen=False, area=480 * 960),
    "realesrgan_adcsr": realesrgan_adcsr(),
    "film": FilmConfig(),
    "aigen": GeneratedConfig(),
}
