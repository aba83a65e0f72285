"""Files like those of `training.peers`, small and with random weights, to try a command without the real ones."""

from pathlib import Path

import numpy as np

from training.peers import PEERS

_LAYERS = """7767517
7 8
Input data 0 1 data
Split split 1 2 data a b
Convolution first 1 1 a c 0=8 1=3 4=1 5=1 6=216 9=2 -23310=1,2.0e-01
Convolution last 1 1 c d 0=48 1=3 4=1 5=1 6=3456
PixelShuffle shuffle 1 1 d e 0=4
Interp enlarge 1 1 b f 0=1 1=4.0 2=4.0
BinaryOp add 2 1 e f output
"""
_WIDTHS = ((216, 8), (3456, 48))  # weights and biases of the convolutions
_WHOLE = np.uint32(0)  # stands before weights in single precision


def write_random_peers(data: Path) -> None:
    """Write a network for each of `PEERS` below `data`/peers, which is made."""
    folder = data / "peers"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for stem in PEERS.values():
        (folder / f"{stem}.param").write_text(_LAYERS)
        content = b""
        for weights, biases in _WIDTHS:
            content += _WHOLE.tobytes() + rng.normal(0, 0.1, weights + biases).astype(np.float32).tobytes()
        (folder / f"{stem}.bin").write_bytes(content)
