"""Probes by SGD: the schedule of torch, the optimum of scikit-learn, a choice that ignores test."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from fastssl.evaluation import sgd_probe as module
from fastssl.evaluation.features import standardise
from fastssl.evaluation.linear import fitted as lbfgs
from fastssl.evaluation.sgd_probe import Schedule, head, outputs, sgd_probe, train_probe


def blobs(count, seed=0, classes=3, features=5, spread=1.5):
    g = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, features, generator=torch.Generator().manual_seed(9))
    y = torch.arange(count) % classes
    return centres[y] + spread * torch.randn(count, features, generator=g), y


def test_linear_probes_reach_the_optimum_that_scikit_learn_finds():
    """Of decay/2 |(W, b)|^2 + mean CE for SGD, of l2 |W|^2 + mean CE for L-BFGS."""
    x, y = blobs(120)
    schedule = Schedule(lr=0.3, epochs=300, batch_size=120)
    net = train_probe(x, y, 3, 1e-2, schedule)
    with_one = F.pad(x, (0, 1), value=1.0).numpy()  # a column of its own: the bias is decayed too
    model = LogisticRegression(C=1 / (1e-2 * 120), tol=1e-10, max_iter=1000, fit_intercept=False)
    model.fit(with_one, y)
    mine = F.softmax(outputs(net, x), dim=1)
    theirs = torch.from_numpy(model.predict_proba(with_one)).float()
    assert (mine - theirs).abs().max() < 1e-3
    scores, _ = lbfgs(x, y, penalties=(0.5e-2,))
    (scaled,) = standardise(x)
    same = LogisticRegression(C=1 / (1e-2 * 120), tol=1e-12, max_iter=5000).fit(scaled, y)
    expected = torch.from_numpy(same.predict_proba(scaled.numpy()))
    assert (F.softmax(scores(x), dim=1) - expected).abs().max() < 1e-4


def test_the_steps_are_those_of_momentum_with_a_cosine_written_as_loops():
    x, y = blobs(20)
    schedule = Schedule(lr=0.1, epochs=3, batch_size=8, seed=4)
    net = train_probe(x, y, 3, 1e-3, schedule)
    g = torch.Generator().manual_seed(4)
    (layer,) = head(5, 3, (), g)
    parts = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    speed = [torch.zeros_like(p) for p in parts]
    for epoch in range(3):
        order = torch.randperm(20, generator=g)
        for begin in (0, 8, 16):
            some = order[begin : begin + 8]
            loss = F.cross_entropy(x[some] @ parts[0].T + parts[1], y[some])
            for p, v, slope in zip(parts, speed, torch.autograd.grad(loss, parts), strict=True):
                v.mul_(0.9).add_(slope + 1e-3 * p.detach())
                p.data -= 0.1 * 0.5 * (1 + math.cos(math.pi * epoch / 3)) * v
    for mine, theirs in zip(net.parameters(), parts, strict=True):
        torch.testing.assert_close(mine.detach(), theirs.detach(), rtol=1e-5, atol=1e-6)


def test_an_mlp_has_the_layers_of_the_paper():
    layers = [type(part).__name__ for part in head(5, 3, (16, 8), torch.Generator())]
    hidden = ["Linear", "BatchNorm1d", "ReLU"]
    assert layers == [*hidden, *hidden, "Linear"]


def test_an_mlp_learns_what_no_line_separates():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(400, 2, generator=g) * 2 - 1
    y = (x[:, 0] * x[:, 1] > 0).long()
    schedule = Schedule(epochs=40, batch_size=64, hidden_dims=(32, 32), weight_decays=(1e-5,))
    found = dict(sgd_probe(x[:300], y[:300], x[300:], y[300:], name="mlp", schedule=schedule))
    line = Schedule(epochs=40, batch_size=64, weight_decays=(1e-5,))
    straight = dict(sgd_probe(x[:300], y[:300], x[300:], y[300:], schedule=line))
    assert found["mlp_top1"] > 0.9 > 0.75 > straight["linear_sgd_top1"]


def test_continuous_targets_come_back_in_their_own_units():
    x, _ = blobs(200)
    y = torch.stack([x @ torch.arange(5.0), 1000 + 50 * x[:, 0]], dim=1)
    schedule = Schedule(lr=0.02, epochs=60, batch_size=32, weight_decays=(0.0,))
    found = dict(sgd_probe(x[:150], y[:150], x[150:], y[150:], schedule=schedule, names=("a", "b")))
    assert found["r2"] > 0.99 and found["mse/b"] < 0.02 * float(y[150:, 1].var())


def test_the_weight_decay_is_chosen_on_the_train_split_alone(monkeypatch):
    x, y = blobs(150, spread=4.0)
    test_x, test_y = blobs(40, seed=1)
    schedule = Schedule(epochs=5, batch_size=32, weight_decays=(1e-5, 3.0))
    seen = []
    train = module.train_probe
    monkeypatch.setattr(module, "train_probe", lambda x, *a: seen.append(len(x)) or train(x, *a))
    first = dict(sgd_probe(x, y, test_x, test_y, schedule=schedule))
    other = dict(sgd_probe(x, y, -test_x, (test_y + 1) % 3, schedule=schedule))
    assert seen == [120, 120, 150] * 2
    assert first["weight_decay"] == other["weight_decay"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"lr": 0.0}, "--lr: expected above 0"),
        ({"batch_size": 0}, "--batch-size: expected above 0"),
        ({"weight_decays": ()}, "--weight-decays: expected one or more"),
        ({"weight_decays": (-1.0,)}, "--weight-decays: expected one or more"),
        ({"hidden_dims": (4, 0)}, "--hidden-dims: expected at least 1"),
    ],
)
def test_schedules_that_cannot_be_are_refused(change, told):
    with pytest.raises(ValueError, match=told):
        Schedule(**change)


def test_few_images_and_a_divergent_fit_are_refused():
    x, y = blobs(30)
    with pytest.raises(ValueError, match="at least 10 train images, received 9"):
        next(sgd_probe(x[:9], y[:9], x, y))
    wild = Schedule(lr=1e38, epochs=2, weight_decays=(1.0,))
    with pytest.raises(ValueError, match="take an --lr below"):
        next(sgd_probe(1e20 * x, y, x, y, schedule=wild))
