"""Where a student's targets come from: `make_teacher(config, device)` and the one call that every teacher answers."""

from .base import Teacher
from .make import make_teacher

__all__ = ["Teacher", "make_teacher"]
