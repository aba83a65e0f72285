"""Compiled layers give the eager ones' frames, a machine that cannot compile goes on, and no graph's memory is kept."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from conftest import awaken
from torch import Tensor

from adcvsr_core import compiled
from adcvsr_core.cli import build_parser
from adcvsr_core.compiled import compile_layers
from adcvsr_core.streaming import StreamState
from adcvsr_core.student import Student


class FakeGraphs:
    """Layers return memory that the next step overwrites, as CUDA graphs do."""

    def __init__(self, student: Student, monkeypatch: pytest.MonkeyPatch):
        self.given: list[Tensor] = []  # in this step
        self.steps = 0
        student.reuses_memory = True
        for layer in student.modules():
            if isinstance(layer, compiled._LAYERS):
                layer.forward = self.replayed(layer.forward)
        monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", self.begin_step)

    def begin_step(self) -> None:
        self.steps += 1
        for tensor in self.given:
            tensor.fill_(float("nan"))
        self.given.clear()

    def replayed(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def replay(*arguments: Tensor, **settings: int) -> Tensor:
            self.given.append(forward(*arguments, **settings))
            return self.given[-1]

        return replay


def stream(student: Student, lr: Tensor, state: StreamState, after: Callable[[], None] = lambda: None) -> Tensor:
    """Push a clip in chunks of 3 and drain it."""
    frames = []
    for chunk in lr.split(3, dim=1):
        frames.append(student(chunk, state, last=False))
        after()
    while not state.closed:
        frames.append(student.drain(lr[:, :0], state))
        after()
    return torch.cat(frames, dim=1)


def test_compiled_layers_give_the_same_frames(student):
    lr = torch.rand(1, 3, 3, 32, 16) * 2 - 1
    expected, own = student(lr), copy.deepcopy(student)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    assert compile_layers(own, backend) is None
    assert (own(lr) - expected).abs().max() < 1e-5
    assert graphs, "nothing was compiled"


@pytest.mark.parametrize("kind", ["blocks", "resnets", "layers", "recurrent", "recompute"])
def test_what_a_stream_keeps_is_no_graphs_memory(kind, tiny_config, monkeypatch):
    placement = {"recurrent": "none", "recompute": "blocks"}.get(kind, kind)
    plain = awaken(Student(replace(tiny_config, temporal=placement, recurrent=kind == "recurrent")))
    own, fresh = copy.deepcopy(plain), StreamState(recompute_skips=kind == "recompute")
    lr, state = torch.rand(1, 5, 3, 16, 16) * 2 - 1, fresh.copy()
    expected, graphs = stream(plain, lr, fresh), FakeGraphs(own, monkeypatch)
    kept, made = [], []

    def look() -> None:
        pieces = {piece.untyped_storage().data_ptr() for slot in state.slots.values() for piece in slot.pieces}
        assert not pieces & {each.untyped_storage().data_ptr() for each in graphs.given}
        kept.append(len(pieces))
        made.append(len(graphs.given))

    assert torch.equal(stream(own, lr, state, look), expected)
    assert max(kept) > 0 and max(made) > 0 and graphs.steps == len(kept)


def test_without_copies_that_would_show(student, monkeypatch):
    own = copy.deepcopy(student).train()  # in training mode nothing looks for NaN
    FakeGraphs(own, monkeypatch)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, to=torch.Tensor.to, copy=False, **k: to(self, *a, **k))
    assert stream(own, torch.rand(1, 4, 3, 16, 16), StreamState()).isnan().any()


def test_layers_that_become_graphs(student, monkeypatch):
    lr, own, settings, steps = torch.rand(1, 1, 3, 16, 16) * 2 - 1, copy.deepcopy(student), [], []
    monkeypatch.setattr(compiled, "_GRAPH_DEVICES", ("cpu",))
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **given: settings.append(given))
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: steps.append(1))
    assert compile_layers(own, graphs=True) is None and own.reuses_memory
    assert settings and all(each["mode"] == "reduce-overhead" and not each["dynamic"] for each in settings)
    assert len(steps) == 3 and torch.equal(own(lr), student(lr)) and len(steps) == 4


def test_without_a_compiler_it_says_so_and_goes_on(student):
    lr = torch.rand(1, 2, 3, 16, 16) * 2 - 1
    expected, own = student(lr), copy.deepcopy(student)

    def backend(graph, inputs, mode=None):
        raise OSError("no compiler found")

    assert "cannot compile here" in compile_layers(own, backend)
    assert torch.equal(own(lr), expected)


def test_graphs_need_their_device(student):
    own = copy.deepcopy(student)
    assert "CUDA graphs need a CUDA device" in compile_layers(own, graphs=True)
    assert not own.reuses_memory and all(module._compiled_call_impl is None for module in own.modules())


def test_the_command_line_takes_both_ways_before_and_behind_the_files():
    files = ["a.mp4", "b.mp4"]
    for given in (["--compile", *files], [*files, "--cuda-graphs"]):
        options = build_parser().parse_args(["upscale", *given])
        assert (options.compile, options.cuda_graphs) == ("--compile" in given, "--cuda-graphs" in given)
        assert str(options.output) == "b.mp4"
