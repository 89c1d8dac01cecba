"""InvCLR's parts: derivatives beside values, and the three estimators of one variance."""

# shapes: N batch, A parameters, F features, S side
from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from fastssl.augment.differentiable import alpha_of, limits_of, moved, rerender, with_leaf
from fastssl.methods.invclr import InvCLR
from fastssl.methods.paper_configs import InvCLRConfig
from fastssl.nn.convnet import ConvNet
from fastssl.nn.tangent import tangent
from tests.methods.papers import told
from tests.methods.twice import by_hand, twice

pytestmark = pytest.mark.usefixtures("one_thread")


class Residual(nn.Module):
    """Every rule: biases, batch norm, ReLU in place, maximum, sum, mean, linear."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(True))
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.pool, self.out = nn.MaxPool2d(3, 2, 1), nn.Linear(4, 5)

    def forward(self, x):
        x = self.pool(self.layers(x))
        x = x + self.inner(x)
        return self.out(torch.flatten(x.mean((2, 3)), 1))


@pytest.mark.parametrize("kind", [ConvNet, Residual])
def test_tangents_and_their_gradients_are_exact(kind):
    torch.manual_seed(0)
    net = kind().double()
    nn.init.uniform_(net.layers[1].weight, 0.5, 1.5)
    x, dx = torch.rand(5, 3, 16, 16, dtype=torch.float64), torch.randn(5, 3, 16, 16).double()
    ours, theirs = tangent(net, x, dx), twice(by_hand(net), x, dx)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    parameters = list(net.parameters())
    gradients = [
        torch.autograd.grad(y.sin().sum() + dy.square().sum(), parameters)
        for y, dy in (ours, theirs)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)


def test_tangents_move_running_statistics_as_values_do_and_use_them_in_eval_mode():
    torch.manual_seed(0)
    net = ConvNet().double()
    twin = copy.deepcopy(net)
    x, dx = torch.rand(5, 3, 8, 8, dtype=torch.float64), torch.randn(5, 3, 8, 8).double()
    tangent(net, x, dx)
    twin(x)
    torch.testing.assert_close(net.state_dict(), twin.state_dict())
    net.eval()
    torch.testing.assert_close(tangent(net, x, dx), twice(net, x, dx), rtol=1e-9, atol=1e-11)


def test_what_has_no_rule_is_refused():
    with pytest.raises(ValueError, match="of convol.* received gelu; --expectation closed"):
        tangent(nn.GELU(), torch.rand(2, 3), torch.rand(2, 3))


def test_the_spirograph_moves_as_its_derivative_says():
    table = with_leaf(told(6, torch.float64))
    alpha = alpha_of(table, 0)
    step = torch.randn(alpha.shape, dtype=torch.float64)
    ours = moved(table, 0, alpha, step, side=16)
    theirs = twice(lambda a: rerender(table, 0, a, side=16), alpha, step)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert not ours[0].requires_grad and not ours[1].requires_grad


@pytest.mark.parametrize("make", [moved, lambda *given, side: rerender(*given[:3], side=side)])
def test_views_are_made_in_float32_whatever_the_networks_run_in(make):
    table = with_leaf(told(6))
    alpha = alpha_of(table, 0)
    torch.manual_seed(0)
    step = torch.randn_like(alpha)
    outside = make(table, 0, alpha, step, side=16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = make(table, 0, alpha, step, side=16)
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)


def built(**settings):
    torch.manual_seed(0)
    return InvCLR(
        ConvNet(), InvCLRConfig(projector_dims=(32, 16), penalty=1e-4, **settings)
    ).double()


def test_closed_expectation_equals_the_paper_written_as_loops():
    method, n = built(expectation="closed"), 6
    table = with_leaf(told(n, torch.float64))
    alpha = alpha_of(table, 0)
    views = tuple(rerender(table, view, alpha_of(table, view), side=16).detach() for view in (0, 1))
    twin = copy.deepcopy(method)
    torch.manual_seed(3)
    variance = method(views, table)[1]["variance"]
    torch.manual_seed(3)
    unit = normalize(twin.backbone(rerender(table, 0, alpha, side=16)), dim=1)
    signs = torch.randint(0, 2, unit.shape).to(unit.dtype) * 2 - 1
    (g,) = torch.autograd.grad((signs * unit).sum(), alpha)
    low, high = limits_of(table)
    by_loops = 0.0
    for i in range(n):
        for a in range(6):
            by_loops += g[i, a] ** 2 * (high[a] - low[a]) ** 2 / 12 / n
        by_loops += torch.dot(g[i], (low + high) / 2 - alpha[i].detach()) ** 2 / n
    assert variance.item() == pytest.approx(by_loops.item(), rel=1e-10)


@pytest.mark.parametrize("normalise", ["unit", "none", "total"])
def test_the_three_estimators_have_one_mean(normalise):
    """In eval mode, where no sample moves another: with batch statistics they differ there."""
    table, means = with_leaf(told(8, torch.float64)), []
    views = (torch.rand(8, 3, 8, 8).double(),) * 2
    for expectation in ("forward", "closed", "monte-carlo"):
        method = built(expectation=expectation, normalise=normalise).eval()
        torch.manual_seed(1)
        drawn = [float(method(views, table)[1]["variance"]) for _ in range(100)]
        means.append(sum(drawn) / len(drawn))
    assert means == pytest.approx([sum(means) / 3] * 3, rel=0.1)


def test_each_samples_variance_is_bounded_by_itself():
    table = with_leaf(told(6, torch.float64))
    views = tuple(rerender(table, view, alpha_of(table, view), side=16).detach() for view in (0, 1))
    losses = {}
    for bound, clip in (("mean", 1e9), ("each", 1e9), ("each", 0.5)):
        method = built(bound=bound, clip=clip, expectation="closed").eval()
        torch.manual_seed(3)
        loss, metrics = method(views, table)
        losses[bound, clip] = (loss - metrics["contrast"]).item() / method.penalty
        torch.manual_seed(3)
        variance_N = method._reverse(views[0], table)[1]
    by_hand = sum(v * 0.5 / (v + 0.5) for v in variance_N.tolist()) / 6
    assert losses["each", 0.5] == pytest.approx(by_hand, rel=1e-9)
    assert losses["each", 1e9] == pytest.approx(losses["mean", 1e9], rel=1e-6)
    assert losses["mean", 1e9] == pytest.approx(variance_N.mean().item(), rel=1e-9)
    assert by_hand < 0.5 < losses["mean", 1e9]


@pytest.mark.parametrize("expectation", ["forward", "closed", "monte-carlo"])
def test_the_relative_penalty_is_that_of_unit_features_over_their_variance(expectation):
    table = with_leaf(told(6, torch.float64))
    views = tuple(rerender(table, view, alpha_of(table, view), side=16).detach() for view in (0, 1))
    found = {}
    for normalise in ("unit", "total"):
        method = built(normalise=normalise, expectation=expectation).eval()
        torch.manual_seed(3)
        found[normalise] = method(views, table)[1]["variance"].item()
    unit = normalize(method.backbone(views[0]), dim=1)
    assert found["total"] == pytest.approx(found["unit"] / unit.var(0).sum().item(), rel=1e-9)
