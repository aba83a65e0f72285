"""Finish, views, sound and the checks on whole clips."""

import av
import pytest
import torch

from adcvsr_core.compare import fit
from adcvsr_core.errors import ConfigError, InputError
from adcvsr_core.finish import FinishConfig, carry_alpha, finish
from adcvsr_core.frames import require_clip
from adcvsr_core.needs import require_ram
from adcvsr_core.sound import write_sound
from adcvsr_core.views import VIEWS, num_pictures, show


def clips(num_frames: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    source = 0.3 + 0.4 * torch.rand(num_frames, 12, 16, 3)
    return (fit(source, 48, 64) + 0.1 * torch.rand(num_frames, 48, 64, 3) - 0.05).clamp(0, 1), source


def finished(frames, source, **options) -> torch.Tensor:
    return torch.cat(list(finish(frames, source, FinishConfig(**options))))


def test_the_defaults_change_nothing():
    frames, source = clips()
    assert (finished(frames, source) - frames).abs().max() < 1e-6


def test_detail_goes_from_the_source_to_more_than_there_was():
    frames, source = clips()
    base = fit(source, 48, 64)
    distance = [float((finished(frames, source, detail=d) - base).abs().mean()) for d in (0, 0.5, 1, 2)]
    assert distance == sorted(distance) and distance[0] < 0.7 * distance[2]


def test_color_follows_the_source():
    frames, source = clips()
    tinted = (frames * torch.tensor([0.7, 1.0, 0.9])).clamp(0, 1)
    error = {
        color: float((finished(tinted, source, color=color).mean((1, 2)) - source.mean((1, 2))).abs().max())
        for color in ("none", "adain", "wavelet")
    }
    assert error["adain"] < 0.02 and error["wavelet"] < 0.02 and error["none"] > 0.1


def test_size_is_even_and_keeps_the_aspect():
    frames, source = clips(1)
    assert finished(frames, source, height=25).shape == (1, 25, 34, 3)


def test_grain_is_seeded_and_different_in_every_frame():
    frames = torch.full((3, 64, 64, 3), 0.5)
    grainy = finished(frames, frames, grain=5.0, seed=3)
    assert torch.equal(grainy, finished(frames, frames, grain=5.0, seed=3))
    assert not torch.equal(grainy, finished(frames, frames, grain=5.0, seed=4))
    assert (grainy[0] - grainy[1]).abs().mean() > 0.01
    assert float(grainy.std() * 255) == pytest.approx(5, rel=0.05)
    black = torch.zeros(1, 16, 16, 3)
    assert torch.equal(finished(black, black, grain=5.0), black)


def test_alpha_goes_along():
    frames, source = clips()
    alpha = torch.linspace(0, 1, 4)[:, None, None, None].expand(4, 12, 16, 1)
    joined = torch.cat(list(carry_alpha(frames.split(3), torch.cat((source, alpha), 3))))
    assert torch.equal(joined[..., :3], frames)
    assert torch.allclose(joined[..., 3].mean((1, 2)), torch.linspace(0, 1, 4), atol=1e-5)


def test_finish_faults():
    frames, source = clips()
    with pytest.raises(InputError, match="has 3; they must be the same clip"):
        finish(frames, source[:3], FinishConfig())
    with pytest.raises(InputError, match="not a larger version"):
        finish(frames, source[:, :, :8], FinishConfig())
    with pytest.raises(ConfigError, match="grain"):
        FinishConfig(grain=-1.0)
    with pytest.raises(ConfigError, match="sepia"):
        FinishConfig(color="sepia")


def test_require_clip_tells_what_is_wrong():
    with pytest.raises(InputError, match="no frames"):
        require_clip(torch.rand(0, 4, 4, 3), "images")
    with pytest.raises(InputError, match="got 2"):
        require_clip(torch.rand(1, 4, 4, 2), "images")
    with pytest.raises(InputError, match="got str"):
        require_clip("a.mp4", "images")
    bad = torch.rand(3, 4, 4, 3)
    bad[1, 2, 2, 0] = float("inf")
    with pytest.raises(InputError, match="frame 1"):
        require_clip(bad, "images")
    assert require_clip(bad, "images", finite=False) is not None


@pytest.mark.parametrize("view", VIEWS)
def test_views(view):
    frames, source = clips(5)
    pictures = torch.cat(list(show(source, frames, view, 0.5, 4.0)))
    assert len(pictures) == num_pictures(view, 5) and pictures.shape[3] == 3
    assert pictures.min() >= 0 and pictures.max() <= 1
    if view == "difference":
        assert not torch.cat(list(show(frames, frames, view, 0.5, 4.0))).any()
    if view == "time slice":
        assert torch.equal(pictures[0, ::51, -64:], frames[:, round(0.5 * 47)])


def test_views_refuse_other_clips():
    frames, source = clips()
    with pytest.raises(InputError, match="same clip"):
        show(source[:2], frames, "wipe", 0.5, 4.0)
    with pytest.raises(ConfigError, match="mosaic"):
        show(source, frames, "mosaic", 0.5, 4.0)


@pytest.mark.parametrize(("channels", "rate"), [(1, 48000), (2, 44100), (2, 16000), (6, 50000)])
def test_sound_is_written_whole(tmp_path, channels, rate):
    waveform = torch.sin(torch.arange(2 * rate) / 20).expand(channels, -1) * 0.5
    write_sound(tmp_path / "sound.m4a", waveform, rate)
    with av.open(str(tmp_path / "sound.m4a")) as container:
        stream = container.streams.audio[0]
        assert stream.codec_context.channels == channels
        seconds = sum(frame.samples / frame.sample_rate for frame in container.decode(stream))
    assert seconds == pytest.approx(2, abs=0.1)


def test_sound_faults(tmp_path):
    with pytest.raises(InputError, match="channels"):
        write_sound(tmp_path / "sound.m4a", torch.zeros(3, 100), 48000)


def test_too_little_ram_names_both_numbers_and_the_way_out():
    require_ram(1, 16, 16, 3, 4, "")
    with pytest.raises(InputError, match=r"need 92697\.1 GiB of RAM and [\d.]+ GiB are free; use the other"):
        require_ram(1_000_000, 2160, 3840, 3, 4, "use the other")
