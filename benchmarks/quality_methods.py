"""The upscalers of the quality benchmark under their names, and a store for what slow ones made.

Each maps frames [T,h,w,3] in 0..1 to [T,4h,4w,3] on 8-bit levels. Knows nothing about clips or metrics.
"""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adcvsr_core.checkpoint import load_student
from adcvsr_core.color import scale_detail
from adcvsr_core.degradation import to_levels
from adcvsr_core.student import Student
from training.checkpoints import sha256
from training.peers import PEERS, enlarge, load_peer
from training.sampling import to_frames, to_network
from training.validation import bicubic_frames, run_student

Method = Callable[[Tensor], Tensor]
WITHOUT_TIME = ", without time"


def make_methods(
    data: Path, models: dict[str, str], store: Path | None, peers: Sequence[str] = tuple(PEERS)
) -> dict[str, Method]:
    """Make every method, in the order of the table.

    Args:
        data: the prepared folder with the peers' networks.
        models: names and files of ours; each comes with and without its temporal blocks. FILE@1.5 runs it with that
            gain on the detail it adds, as `--detail` does.
        store: folder in which what the peers make is kept between runs, None = nowhere.
        peers: which of them.

    Raises:
        AdcvsrError: a file is missing or broken.
    """
    methods: dict[str, Method] = {"bicubic": bicubic_frames, "lanczos": lanczos_frames}
    for name in peers:
        network = load_peer(name, data)
        method = _of_network(network)
        methods[name] = method if store is None else _kept(method, store, sha256(_weights_of(name, data)))
    for name, model in models.items():
        file, gain = re.fullmatch(r"(.*?)(?:@([0-9.]+))?", model).groups()
        student, detail = load_student(file), float(gain or 1)
        methods[name] = _of_student(student, 1.0, detail)
        if student.config.temporal != "none":
            methods[name + WITHOUT_TIME] = _of_student(student, 0.0, detail)
    return methods


def lanczos_frames(lr: Tensor) -> Tensor:
    """Enlarge by Pillow's Lanczos filter."""
    size = (4 * lr.shape[2], 4 * lr.shape[1])
    pictures = [Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS) for frame in to_levels(lr)]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).float() / 255


def _of_student(student: Student, strength: float, detail: float) -> Method:
    def run(lr: Tensor) -> Tensor:
        made = run_student(student, lr, strength)
        if detail == 1:
            return made
        return to_frames(scale_detail(to_network(made), to_network(lr), detail)).mul(255).round() / 255

    return run


def _of_network(network: torch.nn.Module) -> Method:
    """Run a network frame by frame."""

    def run(lr: Tensor) -> Tensor:
        made = enlarge(network, lr.permute(0, 3, 1, 2))  # which is channels_last
        return to_frames(made * 2 - 1).mul(255).round() / 255

    return run


def _kept(method: Method, store: Path, identity: str) -> Method:
    """Look a clip up before computing it; what is kept depends on the weights and on every pixel of the clip."""

    def run(lr: Tensor) -> Tensor:
        key = hashlib.sha256(identity.encode() + to_levels(lr).tobytes() + repr(tuple(lr.shape)).encode()).hexdigest()
        path = store / f"{key[:24]}.npy"
        if path.exists():
            return torch.from_numpy(np.load(path)).float() / 255
        made = method(lr)
        store.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part.npy")
        np.save(partial, to_levels(made))
        os.replace(partial, path)
        return made

    return run


def _weights_of(name: str, data: Path) -> Path:
    return data / "peers" / f"{PEERS[name]}.bin"
