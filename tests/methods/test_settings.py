"""A setting that no run can have is refused as the method is built: named, expected, received."""

from __future__ import annotations

import math

import pytest

from fastssl.nn.latent import CategoricalLatent
from tests.methods.test_contract import build

NOT_NEGATIVE = "finite and at least 0"
REFUSED = [
    *(("invclr", "penalty", value, NOT_NEGATIVE) for value in (-1.0, math.nan, math.inf)),
    *(("invclr", "clip", value, "finite and above 0") for value in (0.0, -1.0, math.nan)),
    *(("stochastic", "beta", value, NOT_NEGATIVE) for value in (-1.0, math.nan)),
    *(("stochastic", "relaxation", value, "finite and above 0") for value in (0.0, -1.0)),
    *(("vicreg", name, -3.0, NOT_NEGATIVE) for name in ("invariance", "variance", "covariance")),
    *(("barlow", "redundancy", value, NOT_NEGATIVE) for value in (-1.0, math.nan)),
    *(("amortised", "rank", value, "a positive integer") for value in (0, -1)),
    *((name, "dim", -1, NOT_NEGATIVE) for name in ("cissl", "dissl")),
    ("dino", "warmup_teacher_temperature", 0.0, "finite and above 0"),
]


@pytest.mark.parametrize("name, setting, value, expected", REFUSED)
def test_a_setting_that_cannot_be_is_refused_by_name(name, setting, value, expected):
    with pytest.raises(ValueError, match=f"{name}: {setting} must be {expected}; received {value}"):
        build(name, **{setting: value})


@pytest.mark.parametrize("name", ["cissl", "dissl"])
@pytest.mark.parametrize("none", [0, None])
def test_a_dim_of_zero_is_the_backbones_own(name, none):
    method = build(name, dim=none)
    assert method.backbone.num_features == build(name).backbone.num_features


@pytest.mark.parametrize("values", [-2, 0, 1])
def test_a_categorical_latent_needs_two_values_to_tell_anything(values):
    with pytest.raises(ValueError, match=f"values: expected at least 2.*, received {values}"):
        CategoricalLatent(8, 8, values=values)
