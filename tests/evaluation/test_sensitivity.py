"""Mahalanobis sensitivity as a ratio to chance, and a classifier's shares."""

from __future__ import annotations

import pytest
import torch

from fastssl.evaluation.sensitivity import mahalanobis_ratio, weight_shares


def rows(seed, n=2000, f=12):
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(f, f, generator=torch.Generator().manual_seed(9))
    return torch.randn(n, f, generator=g) @ mix


def test_nothing_changed_is_0_and_another_sample_is_1():
    clean = rows(0)
    assert mahalanobis_ratio(clean, clean) == 0
    assert mahalanobis_ratio(clean, rows(1)) == pytest.approx(1, abs=0.05)


def test_scales_of_the_features_do_not_matter():
    clean, scale = rows(0), torch.linspace(0.5, 2, 12)
    changed = clean + 0.3 * rows(2)
    ratio = mahalanobis_ratio(clean, changed)
    assert ratio == pytest.approx(0.3 * mahalanobis_ratio(clean, clean + rows(2)), rel=1e-5)
    assert mahalanobis_ratio(clean * scale, changed * scale) == pytest.approx(ratio, rel=0.05)


def test_shares_of_two_halves():
    weight = torch.tensor([[1.0, -1.0, 3.0, 0.0], [0.0, 0.0, -3.0, 0.0]])
    assert weight_shares(weight, (2, 2)) == pytest.approx((0.25, 0.75))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="mahalanobis_ratio: expected two tensors"):
        mahalanobis_ratio(rows(0), rows(1)[:, :3])
    with pytest.raises(ValueError, match="widths: expected a sum of 12"):
        weight_shares(rows(0), (4, 4))
