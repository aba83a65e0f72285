"""AdcVSR: one-step x4 video super-resolution, streamed exactly. The README shows the tree."""

from .checkpoint import load_student
from .config import PRESETS, StudentConfig, UpscaleConfig
from .engine import upscale
from .errors import AdcvsrError, Cancelled
from .streaming import StreamState
from .student import Student

__all__ = [
    "PRESETS",
    "AdcvsrError",
    "Cancelled",
    "StreamState",
    "Student",
    "StudentConfig",
    "UpscaleConfig",
    "load_student",
    "upscale",
]
