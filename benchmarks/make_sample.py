"""Make the bundled demo clip, `adcvsr_core/samples/demo.mp4`, from the film Big Buck Bunny.

Takes frames 4641..4696 (two shots, the cut at 4672), averages 4x4 pixels to 320x180, adds a little noise and
compresses hard with x264, as a small clip from the web would be. The film's own AAC packets are copied. The
frames lie in a range that `training/heldout.json` keeps from every training run. The film is inside the source
archive of `moviepy` 2.2.1:

    pip download --no-deps --no-binary :all: moviepy==2.2.1     # then docs/.../moviepy_10_minutes.zip
    python benchmarks/make_sample.py bbb.mp4

Knows nothing about the network. Source: Big Buck Bunny, (c) 2008 Blender Foundation, CC BY 3.0.
"""

import argparse
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FIRST, END = 4641, 4697  # film frames, half open
FPS = 24
WIDTH, HEIGHT = 320, 180
NOISE = 1.5  # standard deviation on the luma, in 8-bit steps
CRF = 28
SEED = 0
SAMPLE = Path(__file__).resolve().parent.parent / "adcvsr_core" / "samples" / "demo.mp4"


def read_shots(film: Path) -> tuple[list[np.ndarray], list[av.Packet], av.AudioStream]:
    """Return the clip's frames as yuv420p planes [HEIGHT * 3 / 2, WIDTH], and the film's sound of the same seconds."""
    container = av.open(str(film))
    video, audio = container.streams.video[0], container.streams.audio[0]
    container.seek(int(Fraction(FIRST - 10 * FPS, FPS) / video.time_base), stream=video)
    frames, packets = [], []
    for packet in container.demux(video, audio):
        if packet.stream is audio:
            if packet.pts is not None and Fraction(FIRST, FPS) <= packet.pts * packet.time_base < Fraction(END, FPS):
                packets.append(packet)
            continue
        for frame in packet.decode():
            if FIRST <= round(frame.pts * frame.time_base * FPS) < END:
                frames.append(frame.reformat(WIDTH, HEIGHT, "yuv420p", interpolation="AREA").to_ndarray())
        if packet.pts is not None and packet.pts * packet.time_base > Fraction(END, FPS) + 1:
            break
    if len(frames) != END - FIRST or not packets:
        raise SystemExit(f"{film}: found {len(frames)} of {END - FIRST} frames, {len(packets)} packets of sound")
    return frames, packets, audio


def write_clip(frames: list[np.ndarray], packets: list[av.Packet], audio: av.AudioStream, target: Path) -> None:
    """Degrade and write the clip."""
    generator = np.random.default_rng(SEED)
    with av.open(str(target), "w") as out:
        options = {"crf": str(CRF), "preset": "medium", "threads": "1"}
        video = out.add_stream("libx264", rate=FPS, options=options)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for tag in ("color_range", "colorspace", "color_primaries", "color_trc"):
            setattr(video.codec_context, tag, 1)  # limited range, BT.709, as the film
        sound = out.add_stream_from_template(audio)
        for index, planes in enumerate(frames):
            luma = planes[:HEIGHT] + generator.normal(0, NOISE, (HEIGHT, WIDTH))
            planes[:HEIGHT] = np.clip(np.rint(luma), 0, 255)
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            out.mux(video.encode(frame))
        out.mux(video.encode())
        start = int(Fraction(FIRST, FPS) / audio.time_base)
        for packet in packets:
            packet.pts -= start
            packet.dts -= start
            packet.stream = sound
            out.mux(packet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("film", type=Path, help="Big Buck Bunny, 1280x720, 24 fps, 14,315 frames")
    parser.add_argument("--out", type=Path, default=SAMPLE)
    arguments = parser.parse_args()
    write_clip(*read_shots(arguments.film), arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
