"""Sound that exists only as samples, as a file that a video can take it from. Knows nothing about pictures."""

from fractions import Fraction
from pathlib import Path

import av
import torch
from torch import Tensor

from .errors import InputError

_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_BITS_PER_CHANNEL = 128_000


def write_sound(path: Path, waveform: Tensor, sample_rate: int) -> None:
    """Encode samples as AAC.

    Args:
        path: an .m4a file to write.
        waveform: [channels,samples] in -1..1; 1, 2, 6 or 8 channels.
        sample_rate: samples per second; one that AAC lacks becomes 48000.

    Raises:
        InputError: another number of channels, or no samples.
    """
    if waveform.ndim != 2 or not waveform.numel() or len(waveform) not in _LAYOUTS:
        raise InputError(f"sound [channels,samples] is {list(waveform.shape)}; expected 1, 2, 6 or 8 channels")
    samples = torch.nan_to_num(waveform.detach().float().cpu()).clamp(-1, 1).contiguous()
    layout = _LAYOUTS[len(samples)]
    with av.open(f"file:{path}", "w", format="mp4") as container:
        rate = sample_rate if sample_rate in _AAC_RATES else 48000
        stream = container.add_stream("aac", rate=rate)
        stream.codec_context.layout = layout
        stream.codec_context.bit_rate = min(_BITS_PER_CHANNEL, 4 * rate) * len(samples)
        resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate, frame_size=1024)
        for start in range(0, samples.shape[1], sample_rate):
            piece = samples[:, start : start + sample_rate].contiguous().numpy()
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = sample_rate, start, Fraction(1, sample_rate)
            for part in resampler.resample(frame):
                container.mux(stream.encode(part))
        for part in resampler.resample(None):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
