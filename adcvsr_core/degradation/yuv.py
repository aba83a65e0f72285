"""RGB frames to the planes that video codecs take, and back: BT.709, studio range, 4:2:0.

By hand, for libswscale's default conversion darkens by more than one level. Knows nothing about codecs.
"""

import numpy as np

_TO_YUV = np.array(
    [[0.2126, 0.7152, 0.0722], [-0.2126 / 1.8556, -0.7152 / 1.8556, 0.5], [0.5, -0.7152 / 1.5748, -0.0722 / 1.5748]],
    dtype=np.float32,
)
_YUV_SCALE = np.array([219, 224, 224], dtype=np.float32) / 255
_YUV_OFFSET = np.array([16, 128, 128], dtype=np.float32)
_TO_RGB = np.linalg.inv(_TO_YUV)


def rgb_to_yuv420(levels: np.ndarray) -> np.ndarray:
    """Map [T,H,W,3] uint8, H and W even, to stacked planes [T,H*3/2,W] uint8: Y, then U, then V."""
    num_frames, height, width, _ = levels.shape
    yuv = levels.astype(np.float32) @ _TO_YUV.T * _YUV_SCALE + _YUV_OFFSET
    chroma = yuv[..., 1:].reshape(num_frames, height // 2, 2, width // 2, 2, 2).mean((2, 4))
    planes = (yuv[..., 0], chroma[..., 0], chroma[..., 1])
    stacked = np.concatenate([plane.reshape(num_frames, -1) for plane in planes], axis=1)
    return stacked.round().clip(0, 255).astype(np.uint8).reshape(num_frames, height * 3 // 2, width)


def yuv420_to_rgb(planes: np.ndarray) -> np.ndarray:
    """Map stacked planes [T,H*3/2,W] uint8 to [T,H,W,3] uint8; chroma is repeated."""
    num_frames, rows, width = planes.shape
    height = rows * 2 // 3
    flat = planes.reshape(num_frames, -1)
    luma = flat[:, : height * width].reshape(num_frames, height, width)
    chroma = flat[:, height * width :].reshape(num_frames, 2, height // 2, width // 2)
    chroma = chroma.repeat(2, axis=2).repeat(2, axis=3)
    yuv = np.stack([luma, chroma[:, 0], chroma[:, 1]], axis=-1).astype(np.float32)
    rgb = (yuv - _YUV_OFFSET) / _YUV_SCALE @ _TO_RGB.T
    return rgb.round().clip(0, 255).astype(np.uint8)
