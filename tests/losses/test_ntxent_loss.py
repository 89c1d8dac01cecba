"""``NTXentLoss`` as a drop-in for the class of that name in lightly, and as a module."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from fastssl.kernels.ntxent.op import ntxent
from fastssl.losses import NTXentLoss


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, -0.5])
@pytest.mark.parametrize("shape", [(2, 3), (16, 32), (33, 128)])
def test_same_call_and_value_as_lightlys_class(temperature, shape):
    from lightly.loss import NTXentLoss as LightlyNTXentLoss

    torch.manual_seed(0)
    z0, z1 = torch.randn(2, *shape).unbind(0)
    views = [z0.requires_grad_(), z1.requires_grad_()]
    ours = NTXentLoss(temperature=temperature)(*views)
    theirs = LightlyNTXentLoss(temperature=temperature)(*views)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for mine, peer in zip(
        torch.autograd.grad(ours, views), torch.autograd.grad(theirs, views), strict=True
    ):
        torch.testing.assert_close(mine, peer, rtol=1e-4, atol=1e-6)


def test_a_learnt_temperature_is_a_parameter_and_moves():
    loss_fn = NTXentLoss(nn.Parameter(torch.tensor(0.5)))
    assert [name for name, _ in loss_fn.named_parameters()] == ["temperature"]
    optimiser = torch.optim.SGD(loss_fn.parameters(), lr=0.01)
    z = torch.randn(16, 8)
    loss_fn(z, z).backward()
    optimiser.step()
    assert loss_fn.temperature.item() < 0.5  # identical views: colder is better


def test_the_module_copies_prints_and_has_no_state():
    loss_fn = copy.deepcopy(NTXentLoss(0.2, reduction="sum"))
    assert repr(loss_fn) == "NTXentLoss(temperature=0.2, reduction='sum')"
    assert loss_fn.state_dict() == {}


def test_a_plain_tensor_temperature_follows_the_module():
    loss_fn = NTXentLoss(torch.tensor(0.2))
    z = torch.randn(8, 4)
    assert loss_fn(z, z) == NTXentLoss(0.2)(z, z)
    assert list(loss_fn.parameters()) == [] and loss_fn.state_dict() == {}
    assert loss_fn.to("meta").temperature.device.type == "meta"
    assert loss_fn(z.to("meta"), z.to("meta")).device.type == "meta"


@pytest.mark.parametrize("dynamic", [True, None])
def test_the_module_compiles_to_one_graph_under_a_temperature_schedule(dynamic):
    torch._dynamo.reset()
    loss_fn = NTXentLoss(0.1)
    compiled = torch.compile(loss_fn, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    views = [view.requires_grad_() for view in torch.randn(2, 12, 6).unbind(0)]
    for temperature in (0.1, 0.2, 0.35, 0.5):
        loss_fn.temperature = temperature
        expected, found = loss_fn(*views), compiled(*views)
        torch.testing.assert_close(found, expected)
        exact = torch.autograd.grad(expected, views)
        torch.testing.assert_close(torch.autograd.grad(found, views), exact)


def test_a_compiled_schedule_is_refused_at_a_bad_temperature():
    torch._dynamo.reset()
    loss_fn = NTXentLoss(0.1)
    compiled = torch.compile(loss_fn, dynamic=True, backend="aot_eager")
    z = torch.randn(12, 6)
    compiled(z, z)
    for temperature in (0.0, math.inf, math.nan):
        loss_fn.temperature = temperature
        with pytest.raises(ValueError, match="^ntxent: temperature"):
            compiled(z, z)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_module_reduces_as_the_operator_does(reduction):
    torch.manual_seed(0)
    z = torch.randn(2, 7, 5).unbind(0)
    expected = ntxent(z, 0.1, reduction=reduction)
    assert torch.equal(NTXentLoss(0.1, reduction=reduction)(*z), expected)
    assert expected.shape == ((14,) if reduction == "none" else ())


def test_an_unknown_reduction_is_refused_when_built():
    with pytest.raises(ValueError, match=r"NTXentLoss: reduction .* received 'avg'"):
        NTXentLoss(reduction="avg")


def test_a_small_training_loop_pulls_pairs_together():
    torch.manual_seed(0)
    encoder = nn.Linear(12, 6)
    optimiser = torch.optim.Adam(encoder.parameters(), lr=0.02)
    loss_fn = NTXentLoss(0.2)
    x = torch.randn(32, 12)
    first = last = None
    for _ in range(60):
        views = [encoder(x + 0.1 * torch.randn_like(x)) for _ in range(2)]
        loss = loss_fn(*views)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        first, last = first or loss.item(), loss.item()
    assert last < 0.6 * first
