"""Every loss stays one graph when a float of it changes between two calls, and with its metrics."""

from __future__ import annotations

import pytest
import torch

from fastssl import losses
from fastssl.losses import spec

QUICK = ("clip_loss", "cissl_loss", "sup_con_out")


def one_of_each():
    """One case of every loss; most are slow to compile."""
    for case in {case.loss: case for case in spec.CASES}.values():
        marks = () if case.loss in QUICK else (pytest.mark.slow,)
        yield pytest.param(case, marks=marks, id=case.name)


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)


@pytest.mark.parametrize("case", list(one_of_each()))
def test_a_float_that_became_symbolic_does_not_break_the_graph(case):
    rows = case.embeddings(torch.float32)
    found = compiled(lambda knob: case.call(rows, knob))
    for knob in (0.5, 0.25):
        torch.testing.assert_close(found(knob), case.call(rows, knob))


def test_a_temperature_set_anew_does_not_break_the_graph():
    z0, z1 = torch.randn(2, 6, 5).unbind(0)
    loss_fn = losses.InfoNCELoss(0.1)
    torch._dynamo.reset()
    found = torch.compile(lambda: loss_fn(z0, z1), fullgraph=True, backend="aot_eager")
    for temperature in (0.1, 0.2):
        loss_fn.temperature = temperature
        torch.testing.assert_close(found(), losses.info_nce(z0, z1, temperature))


def with_metrics(case):
    """Of a module made outside the graph, where parameters are made."""
    made = {"clip_loss": losses.CLIPLoss, "siglip_loss": losses.SigLIPLoss}.get(case.loss)
    return made().with_metrics if made else lambda *rows: case.with_metrics(rows, 0.5)


@pytest.mark.parametrize("case", list(one_of_each()))
def test_the_metrics_are_of_the_same_graph(case):
    rows = case.embeddings(torch.float32)
    asked = with_metrics(case)
    loss, metrics = compiled(asked)(*rows)
    expected, of_eager = asked(*rows)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(tuple(metrics), tuple(of_eager), equal_nan=True)
