"""Compiled layers give the eager ones' frames, and a machine that cannot compile goes on."""

import copy

import torch

from adcvsr_core.compiled import compile_layers


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


def test_without_a_compiler_it_says_so_and_goes_on(student):
    lr = torch.rand(1, 2, 3, 16, 16) * 2 - 1
    expected, own = student(lr), copy.deepcopy(student)

    def backend(graph, inputs):
        raise OSError("no compiler found")

    assert "cannot compile here" in compile_layers(own, backend)
    assert torch.equal(own(lr), expected)
