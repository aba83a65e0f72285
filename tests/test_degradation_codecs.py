"""Laws of the compressions: what comes back is as long and as large, in colour and in order, and follows its budget."""

import numpy as np
import pytest

from adcvsr_core.degradation import bits_round_trip, h264_round_trip, rgb_to_yuv420, to_levels, yuv420_to_rgb
from adcvsr_core.degradation.codecs import (
    DECODERS,
    JpegConfig,
    VideoConfig,
    budget_encoder,
    draw_video,
    encode,
    jpeg_round_trip,
    jpeg_step,
)
from adcvsr_core.degradation.draws import Walk
from adcvsr_core.errors import ConfigError
from tests.degradation_clips import moving_clip, noisy_clip


def spent(levels: np.ndarray, codec: str, bits: int) -> float:
    """Return the bits a frame that an encoder spends."""
    return sum(8 * packet.size for packet in encode(levels, budget_encoder(levels, codec, bits))) / len(levels)


def error(levels: np.ndarray, result: np.ndarray) -> float:
    return np.abs(result.astype(float) - levels).mean()


@pytest.mark.parametrize(("num_frames", "height", "width"), [(1, 16, 16), (2, 17, 24), (9, 24, 31), (40, 16, 16)])
def test_frames_and_size_are_kept(num_frames: int, height: int, width: int) -> None:
    levels = to_levels(moving_clip(num_frames, 64, 96))[:, :height, :width]
    assert h264_round_trip(levels, 30.0).shape == levels.shape
    for codec in DECODERS:
        assert bits_round_trip(levels, codec, 1000).shape == levels.shape, codec


@pytest.mark.parametrize("preset", ["medium", "veryfast"])
def test_h264_does_not_depend_on_what_was_in_memory(preset: str) -> None:
    check_memory(lambda levels: h264_round_trip(levels, 30.0, preset))


@pytest.mark.parametrize("codec", DECODERS)
def test_budgets_do_not_depend_on_what_was_in_memory(codec: str) -> None:
    check_memory(lambda levels: bits_round_trip(levels, codec, 4000))


def check_memory(round_trip) -> None:
    rng = np.random.default_rng(0)
    rubbish = rng.integers(0, 255, 2_000_000, np.uint8)
    for seed in range(1, 4):
        levels = to_levels(moving_clip(12, 64, 64, seed))
        first = round_trip(levels)
        for _ in range(15):
            leftovers = [np.roll(rubbish[:size], size) for size in rng.choice([5_000, 50_000, 500_000, 2_000_000], 20)]
            del leftovers
            assert np.array_equal(round_trip(levels), first), f"clip {seed}"


@pytest.mark.parametrize("codec", ["crf", *DECODERS])
def test_order_and_colour_are_kept(codec: str) -> None:
    levels = np.repeat(np.linspace(40, 200, 12).astype(np.uint8)[:, None, None, None], 32, 1).repeat(32, 2).repeat(3, 3)
    levels[..., 1] //= 2
    result = h264_round_trip(levels, 18.0) if codec == "crf" else bits_round_trip(levels, codec, 20_000)
    assert np.abs(result.astype(float).mean((1, 2)) - levels.mean((1, 2))).max() < 4


def test_colour_conversion_is_unbiased() -> None:
    levels = to_levels(moving_clip(2))
    result = yuv420_to_rgb(rgb_to_yuv420(levels)).astype(float)
    assert np.abs((result - levels).mean((0, 1, 2))).max() < 0.2
    gray = np.arange(256, dtype=np.uint8)[None, None, :, None].repeat(2, 1).repeat(3, 3)
    assert np.abs(yuv420_to_rgb(rgb_to_yuv420(gray)).astype(int) - gray).max() <= 1


def test_higher_crf_is_worse() -> None:
    levels = to_levels(moving_clip(8, 96, 96))
    errors = [error(levels, h264_round_trip(levels, crf)) for crf in (12.0, 28.0, 45.0)]
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("codec", DECODERS)
def test_bits_follow_the_budget_a_frame(codec: str) -> None:
    levels = to_levels(noisy_clip(24, 96, 96))
    budgets = (3_000, 9_000, 27_000)
    found = [spent(levels, codec, bits) for bits in budgets]
    for bits, real in zip(budgets, found):
        assert 0.5 < real / bits < 2, (bits, real)
    errors = [error(levels, bits_round_trip(levels, codec, bits)) for bits in budgets]
    assert errors[0] > errors[1] > errors[2], errors


@pytest.mark.parametrize("codec", DECODERS)
def test_budgets_are_of_frames_not_of_seconds(codec: str) -> None:
    """Frames cost the same however many there are: 48 frames are no more to the codec than two seconds of 24."""
    levels = to_levels(noisy_clip(48, 64, 64))
    short, long = spent(levels[:16], codec, 5_000), spent(levels, codec, 5_000)
    assert 0.6 < short / long < 1.7, (short, long)


@pytest.mark.parametrize("codec", DECODERS)
def test_frames_are_predicted_from_each_other(codec: str) -> None:
    """No frame type is forced: a picture that stands still costs next to nothing after its first frame."""
    still = to_levels(moving_clip(1, 64, 64)).repeat(12, 0)
    assert spent(still, codec, 20_000) < 0.4 * spent(still[:1], codec, 20_000)


def test_budgets_follow_the_area_and_the_shares() -> None:
    config = VideoConfig(bits=(1e4, 1e5), area=256 * 256, shares=(2 / 3, 1 / 3))
    drawn = [draw_video(config, 256 * 256, np.random.default_rng(seed)) for seed in range(300)]
    bits = np.array([bits for _, bits in drawn])
    assert bits.min() >= 1e4 and bits.max() <= 1e5 and abs(bits.mean() - 5.5e4) < 5e3
    assert 0.55 < np.mean([codec == "libx264" for codec, _ in drawn]) < 0.78
    for seed, (codec, whole) in enumerate(drawn[:20]):
        assert draw_video(config, 64 * 64, np.random.default_rng(seed)) == (codec, pytest.approx(whole / 16, abs=1))


def test_jpeg_follows_its_quality() -> None:
    levels = to_levels(noisy_clip(2, 64, 64))
    errors = [error(levels, jpeg_round_trip(levels, quality)) for quality in (95, 60, 20)]
    assert errors[0] < errors[1] < errors[2]


def test_jpeg_quality_wanders_within_a_clip() -> None:
    frame = noisy_clip(1, 32, 32)[0].permute(2, 0, 1)
    fixed, wandering = (
        jpeg_step(JpegConfig(quality=Walk(30, 95, step)), 8, np.random.default_rng(0)) for step in (0, 3)
    )
    assert all((fixed(t, frame) == fixed(0, frame)).all() for t in range(8))
    assert not all((wandering(t, frame) == wandering(0, frame)).all() for t in range(8))


def test_faults_are_named() -> None:
    with pytest.raises(ConfigError, match="JPEG quality"):
        JpegConfig(quality=Walk(0, 95))
    with pytest.raises(ConfigError, match="bits"):
        VideoConfig(bits=(1e5, 1e4))
    with pytest.raises(ConfigError, match="area"):
        VideoConfig(area=0)
