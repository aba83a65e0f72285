"""Clips in and out: the one place to import video reading and writing from.

A clip is a video file, one picture or a folder of pictures. `read_video` yields chunks `[t, H, W, 3]` of
float RGB in 0..1 and queues their timestamps; `VideoWriter` takes such chunks:

    with read_video("in.mp4", chunk=8) as reader, VideoWriter("out.mp4", width=w, height=h, source=reader) as writer:
        for frames in reader:
            writer.write(frames, reader.take_pts(len(frames)))

Knows nothing of networks.
"""

from .images import read_image, save_png, write_image
from .pixels import ColorTags
from .video_codecs import CODECS
from .video_read import VideoInfo, VideoReader, read_video
from .video_write import VideoWriter

__all__ = [
    "CODECS",
    "ColorTags",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "read_image",
    "read_video",
    "save_png",
    "write_image",
]
