"""A teacher's outputs, computed once and read ever after.

FOLDER/TEACHER/ab/CLIP-CONTENTS.mkv: TEACHER is the hash of the teacher's identity, which identity.json beside spells
out, CLIP that of the sample's key and size. Any number of processes may read and fill one folder. What the run is
given is always what a file holds, so the first pass over the data and the second see the same targets.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from adcvsr_core.errors import OutputError

from .base import SCALE, Teacher
from .storage import find_clips, read_clip, write_clip

_log = logging.getLogger(__name__)


class CachedTeacher(Teacher):
    """Another teacher behind a folder of its outputs; that one is loaded when something is missing.

    Damaged files are removed, told of by a warning, and computed anew.

    Args:
        teacher: whose outputs.
        folder: of the cache; may serve several teachers.

    Attributes:
        num_read, num_computed, num_damaged: clips so far.

    Raises:
        OutputError: the folder cannot be made.
    """

    def __init__(self, teacher: Teacher, folder: Path | str):
        self.teacher, self.identity, self.device = teacher, teacher.identity, teacher.device
        self.folder = Path(folder) / hashlib.sha256(self.identity.encode()).hexdigest()[:16]
        self.num_read = self.num_computed = self.num_damaged = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "identity.json").write_text(json.dumps(json.loads(self.identity), indent=1) + "\n")
        except OSError as error:
            raise OutputError(f"teacher.cache: cannot write {self.folder}: {error.strerror or error}") from error

    def load(self) -> None:
        """Do nothing: the teacher behind is loaded when it is needed."""

    def super_resolve(self, lr: Tensor, keys: Sequence[str]) -> Tensor:
        num_frames, _, height, width = lr.shape[1:]
        shape = (num_frames, 3, SCALE * height, SCALE * width)
        names = [hashlib.sha256(json.dumps([key, *shape]).encode()).hexdigest()[:32] for key in keys]
        clips = [self._read(name, shape) for name in names]
        missing = [index for index, clip in enumerate(clips) if clip is None]
        if missing:
            computed = self.teacher(lr[missing], [keys[index] for index in missing])
            for index, sr in zip(missing, computed, strict=True):
                clips[index] = self._store(names[index], sr, keys[index])
        self.num_read += len(clips) - len(missing)
        self.num_computed += len(missing)
        return torch.stack(clips).to(lr.device)

    def _store(self, name: str, sr: Tensor, key: str) -> Tensor:
        path = write_clip(self.folder / name[:2], name, sr, key)
        clip = read_clip(path, tuple(sr.shape))
        if clip is None:
            raise OutputError(f"{path} does not read as it was written; is the disk sound and its space enough?")
        return clip

    def _read(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        for path in find_clips(self.folder / name[:2], name):
            clip = read_clip(path, shape)
            if clip is not None:
                return clip
            _log.warning("%s is damaged: removed, and computed anew", path)
            self.num_damaged += 1
            path.unlink(missing_ok=True)
        return None
