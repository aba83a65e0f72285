"""Networks in ncnn's files, against the same layers written in torch; bad files are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from adcvsr_core.color import match_color
from adcvsr_core.errors import CheckpointError, ConfigError, InputError
from tests.teacher_clips import clip
from training.config import TeacherConfig
from training.peers import NcnnNetwork, enlarge, load_peer
from training.teachers import make_teacher

LAYERS = """7767517
9 12
Input input 0 1 data
Split split 1 2 data a b
Convolution conv1 1 1 a c 0=8 1=3 4=1 5=1 6=216 9=2 -23310=1,2.000000e-01
Convolution conv2 1 1 c d 0=4 1=1 4=0 5=1 6=32
Split split2 1 2 d d1 d2
Concat concat 2 1 d1 d2 e
PReLU prelu 1 1 e f 0=8
Convolution conv3 1 1 f g 0=12 1=3 4=1 5=1 6=864
PixelShuffle shuffle 1 1 g h 0=2
Interp interp 1 1 h h2 0=1 1=2.0 2=2.0
Interp interp2 1 1 b i 0=1 1=4.0 2=4.0
Eltwise sum 2 1 h2 i j 0=1 -23301=2,2.000000e-01,1.000000e+00
BinaryOp add 2 1 j i output
"""
LAYERS = LAYERS.replace("0 1 data\nSplit split 1 2 data a b", "0 1 data\nSplit split 1 3 data a b b2").replace(
    "j i output", "j b3 output"
)
LAYERS = LAYERS.replace("BinaryOp add", "Interp interp3 1 1 b2 b3 0=1 1=4.0 2=4.0\nBinaryOp add")
SHAPES = {"conv1": (8, 3, 3, 3), "conv2": (4, 8, 1, 1), "prelu": (8,), "conv3": (12, 8, 3, 3)}


def write_network(path: Path, seed: int = 0) -> dict[str, tuple[torch.Tensor, torch.Tensor | None]]:
    """Write a network and return its weights and biases: the first in half precision, the others whole."""
    rng, weights, content = np.random.default_rng(seed), {}, b""
    for name, shape in SHAPES.items():
        values = (rng.normal(size=shape) / 4).astype(np.float16)
        bias = rng.normal(size=shape[0]).astype(np.float32)
        if name == "prelu":
            content += values.astype(np.float32).tobytes()
            weights[name] = torch.from_numpy(values).float(), None
            continue
        if name == "conv1":
            half = values.tobytes()
            content += np.uint32(0x01306B47).tobytes() + half + b"\0" * (-len(half) % 4)
        else:
            content += np.uint32(0).tobytes() + values.astype(np.float32).tobytes()
        content += bias.tobytes()
        weights[name] = torch.from_numpy(values).float(), torch.from_numpy(bias)
    path.write_text(LAYERS)
    path.with_suffix(".bin").write_bytes(content)
    return weights


def test_layers_do_what_they_are_called(tmp_path):
    weights = write_network(tmp_path / "net.param")
    frames = torch.rand(2, 3, 10, 14)
    h = F.leaky_relu(F.conv2d(frames, *weights["conv1"], padding=1), 0.2)
    h = F.conv2d(h, *weights["conv2"])
    h = F.prelu(torch.cat([h, h], 1), weights["prelu"][0])
    h = F.pixel_shuffle(F.conv2d(h, *weights["conv3"], padding=1), 2)
    large = frames.repeat_interleave(4, 2).repeat_interleave(4, 3)
    expected = 0.2 * h.repeat_interleave(2, 2).repeat_interleave(2, 3) + 2 * large
    network = NcnnNetwork(tmp_path / "net.param")
    assert torch.allclose(network(frames), expected, atol=1e-5)
    assert torch.allclose(network.double()(frames.double()).float(), expected, atol=1e-5)  # it moves as modules do


@pytest.mark.parametrize(
    "spoil, told",
    [
        (lambda param, weights: param.write_text("7767518\n" + LAYERS.split("\n", 1)[1]), "no ncnn param file"),
        (lambda param, weights: param.write_text(LAYERS.replace("PReLU", "Softmax")), "Softmax"),
        (lambda param, weights: param.write_text(LAYERS.replace("0=1 1=2.0", "0=2 1=2.0")), "not understood"),
        (lambda param, weights: weights.write_bytes(weights.read_bytes()[:-4]), "need more"),
        (lambda param, weights: weights.write_bytes(weights.read_bytes() + b"1234"), "the layers take"),
        (lambda param, weights: weights.unlink(), "missing"),
    ],
)
def test_other_files_are_refused(tmp_path, spoil, told):
    path = tmp_path / "net.param"
    write_network(path)
    spoil(path, path.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match=told):
        NcnnNetwork(path)


def test_a_missing_peer_says_how_to_get_it(tmp_path):
    with pytest.raises(InputError, match="prepare_benchmark_data"):
        load_peer("x4plus", tmp_path)
    with pytest.raises(ConfigError, match="animevideov3"):
        load_peer("topaz", tmp_path)


def test_a_peer_teaches_what_it_makes_of_each_frame_in_the_frames_colours(tmp_path):
    path = tmp_path / "net.param"
    write_network(path)
    teacher, lr = make_teacher(TeacherConfig(kind="peer", path=str(path)), "cpu"), clip(2, 3, 3, 9, 11)
    sr = teacher(lr, ["a", "b"])
    assert sr.shape == (2, 3, 3, 36, 44)
    frames = (lr * 0.5 + 0.5).flatten(0, 1)
    made = enlarge(NcnnNetwork(path), frames) * 2 - 1
    whole = match_color(made, lr.flatten(0, 1), "wavelet").unflatten(0, (2, 3))
    assert (sr - whole.clamp(-1, 1)).abs().mean() < 0.02, "bfloat16"
    assert (made.unflatten(0, (2, 3)).clamp(-1, 1) - whole).abs().mean() > 0.2, "its own colours are others"
    alone = teacher(lr[:1, 1:2], ["c"])
    torch.testing.assert_close(alone[0, 0], sr[0, 1], rtol=0, atol=0)  # frame by frame
    write_network(path, seed=1)
    assert make_teacher(TeacherConfig(kind="peer", path=str(path)), "cpu").identity != teacher.identity
    path.with_suffix(".bin").unlink()
    with pytest.raises(CheckpointError, match="net.bin"):
        make_teacher(TeacherConfig(kind="peer", path=str(path)), "cpu")
