"""Schedule, parameter groups, optimisers."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastssl.engine.config import TrainConfig
from fastssl.engine.lars import LARS
from fastssl.engine.optim import (
    build_optimizer,
    learning_rate,
    named_state,
    parameter_groups,
    scheduled_rate,
)


def test_schedule_values():
    def rate(step):
        return learning_rate(step, peak=2.0, total=110, warmup=10)

    assert [rate(0), rate(4), rate(9)] == [0.2, 1.0, 2.0]
    assert rate(10) == 2.0
    assert rate(60) == pytest.approx(1.0)
    assert rate(85) == pytest.approx(1 + math.cos(0.75 * math.pi))
    assert 0 < rate(109) < 0.001
    assert all(rate(s) > rate(s + 1) for s in range(10, 109))


def test_schedule_without_warmup_and_with_nothing_but_warmup():
    assert learning_rate(0, peak=1.0, total=5, warmup=0) == 1.0
    assert learning_rate(4, peak=1.0, total=5, warmup=5) == 1.0


def test_the_oscillating_rate_is_the_authors_scheduler_stepped_past_its_end():
    parameter = nn.Parameter(torch.zeros(1))
    theirs = torch.optim.SGD([parameter], lr=2.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, T_max=20)
    settings = TrainConfig(
        schedule="oscillating", half_period=20, lr=2.0, batch_size=256, max_steps=100
    )
    found = []
    for step in range(100):
        found.append(scheduled_rate(settings, step, total=100, warmup=0))
        assert found[-1] == pytest.approx(theirs.param_groups[0]["lr"], abs=1e-9)
        theirs.step()
        scheduler.step()
    assert found[20] == found[60] == 0 and found[40] == found[80] == 2.0
    warm = [scheduled_rate(settings, step, total=100, warmup=10) for step in range(60)]
    assert warm[4] == 1.0 and warm[10] == 2.0 and warm[30] == 0 and warm[50] == 2.0


def test_the_usual_schedule_falls_once():
    settings = TrainConfig(lr=2.0, batch_size=256, half_period=20)
    rates = [scheduled_rate(settings, step, total=100, warmup=0) for step in range(100)]
    assert all(a > b for a, b in itertools.pairwise(rates)) and rates[99] < 1e-3


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5)
    )


def test_biases_and_normalisation_do_not_decay_and_frozen_ones_are_left_out():
    net = model()
    net[3].weight.requires_grad_(False)
    decayed, exempt = parameter_groups(net, weight_decay=0.5)
    assert [p.ndim for p in decayed["params"]] == [4]
    assert [p.ndim for p in exempt["params"]] == [1, 1, 1]
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.5, 0.0)


def config(name: str) -> TrainConfig:
    return TrainConfig(optimizer=name, lr=0.1, weight_decay=0.01, batch_size=256)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_state_is_allocated_at_once_and_named(name):
    net = model()
    state = named_state(build_optimizer(net, config(name)), net)
    kinds = {"adamw": {"step", "exp_avg", "exp_avg_sq"}}.get(name, {"momentum_buffer"})
    assert state.keys() == {f"{k}:{n}" for k in kinds for n, _ in net.named_parameters()}
    assert not any(t.any() for t in state.values())


def train(net, optimizer, steps=5, first_bad=False) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    for step in range(steps):
        optimizer.zero_grad()
        net(torch.randn(8, 3, 4, 4, generator=generator)).square().mean().backward()
        if first_bad and step == 0:
            optimizer.grad_scale, optimizer.found_inf = None, torch.ones(())
            optimizer.step()
            optimizer.found_inf = torch.zeros(())
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


def test_allocated_state_gives_torchs_own_adamw_and_sgd():
    for name, plain in (("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)):
        net, other = model(), model()
        extra = {"momentum": 0.9} if name == "sgd" else {}
        groups = parameter_groups(other, weight_decay=0.01)
        ours = train(net, build_optimizer(net, config(name)))
        theirs = train(other, plain(groups, lr=0.1, foreach=False, **extra))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_a_skipped_first_step_is_as_if_it_never_was(name):
    """torch's fused SGD alone would leave its momentum buffer uninitialised here."""
    net, other = model(), model()
    skipped = train(net, build_optimizer(net, config(name)), first_bad=True)
    for a, b in zip(skipped, train(other, build_optimizer(other, config(name))), strict=True):
        assert torch.equal(a, b)


def test_lars_is_timms_lars():
    timm = pytest.importorskip("timm.optim", reason="timm is an optional peer")
    net, other = model(), model()
    groups = parameter_groups(other, weight_decay=0.01)
    theirs = train(other, timm.Lars(groups, lr=0.1, momentum=0.9, trust_coeff=1e-3, eps=1e-8))
    for a, b in zip(train(net, build_optimizer(net, config("lars"))), theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_lars_first_step_is_the_papers_equation():
    w = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    w.grad = torch.tensor([[0.0, 2.0]])
    LARS([{"params": [w]}], lr=10.0, weight_decay=0.1, trust=0.5, eps=0.0).step()
    ratio = 0.5 * 5 / (2 + 0.1 * 5)
    expected = torch.tensor([[3 - 10 * ratio * 0.3, 4 - 10 * ratio * 2.4]])
    torch.testing.assert_close(w.detach(), expected)


def test_lars_does_not_adapt_biases():
    b = nn.Parameter(torch.tensor([3.0, 4.0]))
    net = nn.Module()
    net.b = b
    optimizer = build_optimizer(net, replace(config("lars"), lr=1.0))
    b.grad = torch.tensor([0.0, 2.0])
    optimizer.step()
    torch.testing.assert_close(b.detach(), torch.tensor([3.0, 2.0]))


def test_lars_leaves_zero_weights_and_zero_gradients_finite():
    zero, still = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    zero.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    LARS([{"params": [zero, still]}], lr=1.0).step()
    assert torch.equal(zero.detach(), -torch.ones(2, 2))
    assert torch.equal(still.detach(), torch.ones(2, 2))


def test_an_unknown_optimiser_and_an_empty_method_are_refused():
    with pytest.raises(ValueError, match="optimizer: expected adamw, sgd or lars, received 'adam'"):
        build_optimizer(model(), replace(config("sgd"), optimizer="adam"))
    with pytest.raises(ValueError, match="no parameter"):
        build_optimizer(nn.ReLU(), config("sgd"))
