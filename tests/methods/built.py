"""Methods small enough for loops, and what they are given: for every test of the contract."""

# shapes: N batch, S side
from __future__ import annotations

import importlib

import torch
from torch import nn

from fastssl.methods import METHODS
from fastssl.nn.convnet import ConvNet
from tests.methods.papers import SMALL, told


def build(name, seed=0, *, backbone=ConvNet, **settings):
    """The method ``name``, small, with other ``settings`` than those where they are given."""
    config_class, path = METHODS[name]
    module, _, cls = path.partition(":")
    torch.manual_seed(seed)
    config = config_class(**(SMALL.get(name, {}) | settings))
    return getattr(importlib.import_module(module), cls)(backbone(), config)


def two_views(n=6, seed=1, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    base = torch.rand(n, 3, 16, 16, generator=g, dtype=dtype)
    noise = [0.1 * torch.rand(n, 3, 16, 16, generator=g, dtype=dtype) for _ in range(2)]
    return tuple(base + part for part in noise)


def four_crops(n=6, seed=1, dtype=torch.float32):
    """The two views, and the middle of each as a smaller crop."""
    large = two_views(n, seed, dtype)
    return (*large, *(view[:, :, 4:12, 4:12] for view in large))


def table_of(method, views):
    """What the method reads beside the views, as the step hands it over."""
    table = told(len(views[0]), views[0].dtype)
    return method.leaves(table) if hasattr(method, "leaves") else table


def run(method, views, table=None):
    """Loss and metrics; random numbers, where a method draws some, are those of one seed."""
    table = table_of(method, views) if table is None else table
    torch.manual_seed(3)
    return method(views, table)


def by_loops(paper, method, views):
    """The loss as ``paper`` (of papers.py) writes it, with the same random numbers."""
    table = table_of(method, views)
    torch.manual_seed(3)
    return paper(method, views, table)


def gradients(method, loss):
    params = [p for p in method.parameters() if p.requires_grad]
    return torch.autograd.grad(loss, params)


def assert_gradients_reach(method, loss, unused=""):
    """Every trained parameter has a finite gradient that is not zero, ``unused`` ones apart."""
    loss.backward()
    for key, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key
            assert parameter.grad.abs().max() > 0 or (unused and unused in key), key


class Counting:
    """A compiler that keeps what it is given, and runs it as it is."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, _):
        self.graphs.append(graph)
        return graph.forward


def compiled_whole(method):
    """The method's forward, compiled as one graph (a break is an error), and its compiler."""
    torch._dynamo.reset()
    counting = Counting()
    torch._dynamo.config.trace_autograd_ops = hasattr(method, "leaves")
    return torch.compile(method.forward, fullgraph=True, dynamic=False, backend=counting), counting


def without_an_eye(method: nn.Module) -> nn.Module:
    """The method with an encoder that sees nothing: each of its norms gives its bias alone."""
    with torch.no_grad():
        for module in method.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.zero_()
                module.bias.fill_(0.5)
    return method
