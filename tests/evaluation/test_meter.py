"""The meter's variances are those of one image, and the alpha probe knows chance."""

from __future__ import annotations

import math

import pytest
import torch

from fastssl.evaluation.alpha import alpha
from fastssl.evaluation.meter import meter, variances


def drawn(draws=40, images=300, width=3, within=0.5, between=2.0):
    g = torch.Generator().manual_seed(0)
    mean = between * torch.randn(images, width, generator=g, dtype=torch.float64)
    noise = within * torch.randn(draws, images, width, generator=g, dtype=torch.float64)
    return 7.0 + mean + noise


def test_variances_are_the_known_ones_of_a_random_effects_model():
    conditional, total = variances(drawn())
    assert conditional == pytest.approx(3 * 0.25, rel=0.05)
    assert total == pytest.approx(3 * 4.25, rel=0.1)
    few = variances(drawn(draws=2, images=3000))
    assert few[1] == pytest.approx(3 * 4.25, rel=0.1)


def test_mixing_images_and_draws_would_be_seen():
    wrong = drawn(draws=30, images=30).transpose(0, 1).reshape(30, 30, 3)
    assert variances(wrong)[0] > 5 * variances(drawn(draws=30, images=30))[0]


def test_invariant_features_have_ratio_zero_and_cosine_one():
    clean = torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    found = dict(meter(clean, {"flip": clean * 3, "gray": -clean}, clean.expand(4, -1, -1)))
    assert found["cosine/flip"] == pytest.approx(1) and found["cosine/gray"] == pytest.approx(-1)
    assert found["variance_ratio"] == pytest.approx(0, abs=1e-12)
    noise = torch.randn(6, 500, 5, generator=torch.Generator().manual_seed(2))
    assert dict(meter(noise[0], {}, noise))["variance_ratio"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0, 50.0])
@pytest.mark.parametrize("width", [8, 512])
def test_a_collapsed_encoder_has_no_ratio(level, width):
    """Equal features, and such as differ by rounding: any ratio would be that of the rounding."""
    equal = torch.full((3, 20, width), level)
    rounded = equal * (1 + 1e-7 * torch.randn(3, 20, width, generator=torch.manual_seed(0)))
    for drawn_DNF in (equal, rounded):
        found = dict(meter(drawn_DNF[0], {}, drawn_DNF))
        assert math.isnan(found["variance_ratio"]) and found["variance_total"] < 1e-11
    apart = equal + 1e-3 * torch.randn(3, 20, width, generator=torch.manual_seed(1))
    assert math.isfinite(dict(meter(apart[0], {}, apart))["variance_ratio"])


def test_meter_refuses_a_single_draw():
    with pytest.raises(ValueError, match="D >= 2"):
        list(meter(torch.ones(3, 2), {}, torch.ones(1, 3, 2)))


def test_alpha_is_chance_for_noise_and_nothing_for_the_parameters_themselves():
    g = torch.Generator().manual_seed(0)
    train, test, noise = (torch.rand(n, 2, generator=g) for n in (400, 200, 600))
    blind = dict(alpha(noise[:400], train, noise[400:], test))
    assert blind["alpha_mse"] == pytest.approx(blind["alpha_chance"], rel=0.05)
    seeing = dict(alpha(train, train, test, test, names=("h", "b_r")))
    assert max(seeing["alpha_mse/h"], seeing["alpha_mse/b_r"]) < 1e-6
