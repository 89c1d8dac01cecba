"""The learned vector is the one that held-out images of the train split want."""

from __future__ import annotations

import pytest
import torch

from fastssl.evaluation.features import hold_out
from fastssl.evaluation.invariance import invariance, learn_vector


def world(n=600, seed=0):
    """Two factors; bit k of the vector blurs factor k away, as an invariance does."""
    g = torch.Generator().manual_seed(seed)
    factor = torch.randn(n, 2, generator=g)
    noise = torch.randn(n, 2, generator=g)

    def features(position, bits):
        kept = (1 - bits) * factor[position] + (0.3 + bits) * noise[position]
        return torch.cat([kept, kept**2], dim=1)

    return factor, features


@pytest.mark.parametrize("wanted", [0, 1])
def test_the_bit_that_removes_what_the_task_needs_goes_to_zero(wanted):
    factor, features = world()
    learned = learn_vector(features, factor[:, wanted : wanted + 1], num_bits=2)
    assert learned[wanted] < 0.05
    assert ((learned >= 0) & (learned <= 1)).all()


def test_an_invariance_that_removes_noise_goes_to_one():
    factor, _ = world()
    noise = torch.randn(600, 1, generator=torch.Generator().manual_seed(7))

    def features(position, bits):
        return factor[position, :1] + (1 - bits) * 2 * noise[position]

    assert learn_vector(features, factor[:, :1], num_bits=1)[0] > 0.95


def test_the_vector_answers_to_held_out_images_and_not_to_those_of_the_readout():
    n, (fit, held) = 200, hold_out(torch.zeros(200, 1))
    g = torch.Generator().manual_seed(0)
    target = torch.randn(n, 1, generator=g)
    answer, noise = torch.zeros(n, 1), torch.randn(n, 1, generator=g)
    answer[fit] = target[fit]  # feature that is right on the readout's images alone
    answer[held] = noise[held]

    def features(position, bits):
        honest = target[position] + 0.5 * noise[position].flip(0)
        return bits * honest + (1 - bits) * answer[position]

    assert learn_vector(features, target, num_bits=1)[0] > 0.9


def test_every_corner_default_learned_and_rounded_are_scored():
    seen = []

    def score(bits):
        seen.append(tuple(bits.tolist()))
        yield "mse", float(bits @ torch.tensor([1.0, 10.0]))

    found = dict(invariance(torch.tensor([0.25, 0.5]), score))
    assert found["mse@default"] == found["mse@11"] == 11 and found["mse@01"] == 10
    assert found["mse@learned"] == pytest.approx(5.25) and found["mse@rounded"] == 10
    assert (found["bit/0"], found["bit/1"]) == (0.25, 0.5)
    assert len(seen) == len(set(seen)) == 5


@pytest.mark.parametrize("scale", [1e-12, 1e-5, 1e5])
def test_the_scale_of_the_features_is_no_matter(scale):
    factor, features = world()
    plain = learn_vector(features, factor[:, :1], num_bits=2)
    scaled = learn_vector(lambda p, b: scale * features(p, b), factor[:, :1], num_bits=2)
    torch.testing.assert_close(scaled, plain, rtol=0, atol=1e-3)
    assert plain[0] < 0.05 < 0.5 < plain[1]


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_features_that_are_constant_leave_the_vector_where_it_starts(value):
    found = learn_vector(
        lambda p, b: value * b.sum() * torch.ones(len(p), 3), world()[0][:, :1], num_bits=2
    )
    assert torch.isfinite(found).all() and ((found >= 0) & (found <= 1)).all()


def test_the_start_and_the_rate_are_those_that_are_given():
    factor, features = world()
    half = learn_vector(features, factor[:, :1], num_bits=2, start="half", steps=0)
    assert half.tolist() == [0.5, 0.5]
    best = learn_vector(features, factor[:, :1], num_bits=2, steps=0)
    assert best.tolist() == [0.25, 0.75]
    one = learn_vector(features, factor[:, :1], num_bits=2, start="half", steps=1, rate=0.3)
    torch.testing.assert_close((one - 0.5).abs(), torch.full((2,), 0.3), rtol=1e-3, atol=0)
    for wrong in ({"rate": 0.0}, {"rate": float("nan")}, {"steps": -1}):
        with pytest.raises(ValueError, match="--steps of at least 0 and --rate above 0"):
            learn_vector(features, factor[:, :1], num_bits=2, **wrong)


def test_targets_without_rows_are_refused():
    with pytest.raises(ValueError, match="learn_vector"):
        learn_vector(lambda p, b: b, torch.zeros(3), num_bits=1)
