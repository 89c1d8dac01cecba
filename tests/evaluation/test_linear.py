"""The linear probe reaches the optimum of its convex objective."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fastssl.evaluation.features import encoder, extract, standardise
from fastssl.evaluation.linear import choose_penalty, fit, linear


def blobs(count, classes=4, features=6, spread=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, features, generator=torch.Generator().manual_seed(99))
    y = torch.arange(count) % classes
    return centres[y] + spread * torch.randn(count, features, generator=g), y


def test_two_points_have_the_known_answer():
    """x = -1, +1 in classes 0, 1: W = (-w, w) with w solving 4 p w = sigmoid(-2 w) * 2 / 2."""
    penalty = 0.05
    weight, bias = fit(torch.tensor([[-1.0], [1.0]]).double(), torch.tensor([0, 1]), penalty)
    low, high = 0.0, 50.0
    for _ in range(200):  # d/dw [log(1 + exp(-2w)) + 2 p w^2] = 0
        w = (low + high) / 2
        slope = -2 / (1 + math.exp(2 * w)) + 4 * penalty * w
        low, high = (w, high) if slope < 0 else (low, w)
    assert weight[:, 0].tolist() == pytest.approx([-w, w], rel=1e-6)
    assert bias.tolist() == pytest.approx([0, 0], abs=1e-7)


def test_the_gradient_vanishes_at_the_fit():
    x, y = blobs(200)
    (x,) = standardise(x)
    weight, bias = (part.requires_grad_() for part in fit(x, y, 1e-3))
    loss = F.cross_entropy(x @ weight.T + bias, y) + 1e-3 * weight.square().sum()
    slopes = torch.autograd.grad(loss, [weight, bias])
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-6


def test_separable_classes_are_separated_and_noise_is_not():
    clear = dict(linear(*blobs(200, spread=0.1), *blobs(80, spread=0.1, seed=1)))
    assert clear["linear_top1"] == 1
    noisy = dict(linear(*blobs(200, spread=50.0), *blobs(80, spread=50.0, seed=1)))
    assert noisy["linear_top1"] < 0.6


def test_penalty_is_chosen_on_the_train_split_alone():
    x, y = blobs(150, spread=3.0)
    test_x, test_y = blobs(60, spread=3.0, seed=1)
    found = dict(linear(x, y, test_x, test_y))
    other = dict(linear(x, y, 1e3 * test_x, (test_y + 1) % 4))
    assert found["l2"] == other["l2"] == choose_penalty(x, y, (1e-5, 1e-4, 1e-3, 1e-2))


def test_noise_gets_the_strongest_penalty_and_clear_classes_the_weakest():
    noise = torch.randn(100, 30, generator=torch.Generator().manual_seed(0))
    y = torch.arange(100) // 5 % 4
    clear = noise + 5 * F.pad(F.one_hot(y, 4), (0, 26))
    assert choose_penalty(noise, y, (1e-5, 10.0)) == 10.0
    assert choose_penalty(clear, y, (1e-5, 10.0)) == 1e-5


def test_standardise_uses_the_train_part_only():
    train, test = torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([[9.0, 6.0]])
    train_z, test_z = standardise(train, test)
    assert train_z.tolist() == [[-1, 0], [1, 0]]
    assert test_z[0, 0] == 7 and torch.isfinite(test_z).all()


def test_features_are_taken_in_eval_mode_whatever_the_batch():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3), torch.nn.BatchNorm1d(3))
    x = torch.randn(10, 3, 2, 2)
    net.train()
    encode = encoder(net, torch.device("cpu"))
    whole, single = extract(encode, [x]), extract(encode, x.split(1))
    torch.testing.assert_close(whole, single)
    assert not whole.requires_grad
    with pytest.raises(ValueError, match="extract: expected at least one batch"):
        extract(encode, [])
