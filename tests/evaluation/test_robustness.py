"""Robustness curves: a readout fitted anew beside one that stays; bounds that move as told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastssl.augment.policy import Policy
from fastssl.augment.presets import preset
from fastssl.augment.spirograph import NUISANCES, SHIFTS, shifted_bounds
from fastssl.data import rendering
from fastssl.data.sources import open_source
from fastssl.evaluation.robustness import robustness


def mean_readout(train):
    return lambda test: iter(
        [("mse", float((test - train.mean()).square().mean())), ("mse/a", 0.0)]
    )


def test_the_refitted_readout_follows_a_shift_that_the_fixed_one_meets():
    base = torch.zeros(4, 1)
    found = dict(
        robustness(
            lambda amount: (base + (amount or 0.0), base + (amount or 0.0)),
            mean_readout,
            shift="h",
            amounts=(2.0, 0.0),
        )
    )
    assert found["mse@h=2"] == 0 and found["mse_fixed@h=2"] == 4 and found["mse_fixed@h=0"] == 0
    assert "mse_fixed/a@h=2" in found and next(iter(found)) == "mse@h=0"


def test_no_amounts_are_refused():
    with pytest.raises(ValueError, match="--amounts: expected one or more"):
        list(robustness(lambda a: (None, None), mean_readout, shift="h", amounts=()))


def test_bounds_move_or_widen_for_the_named_nuisances_alone():
    low, high = shifted_bounds("background", 0.3)
    for name, least, most in zip(NUISANCES, low, high, strict=True):
        expected = {"h": (0.5, 2.5), "b": (0.3, 0.9), "f": (0.4, 1.0)}[name[0]]
        assert (least, most) == pytest.approx(expected)
    low, high = shifted_bounds("h-wide", 0.2)
    assert (low[0], high[0]) == pytest.approx((0.3, 2.7))
    low, high = shifted_bounds("foreground", 0.2)
    assert high.max() <= 2.5 and high[NUISANCES.index("f_g")] == 1, "colours stay in 0..1"
    with pytest.raises(ValueError, match="leaves nothing for background"):
        shifted_bounds("background", 1.5)


def test_spirograph_without_a_shift_is_itself_and_with_one_keeps_its_objects():
    part = open_source("spirograph", image_size=16, seed=0).labelled("test", 6)
    clean = torch.cat(list(part.images(4)))
    for name in SHIFTS:
        assert torch.equal(torch.cat(list(part.shifted(4, name=name, amount=0.0))), clean)
    brighter = next(part.shifted(6, name="background", amount=0.4))
    corner = (brighter - clean)[:, :, 0, 0]
    torch.testing.assert_close(corner, torch.full_like(corner, 0.4), rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="--shift: expected one of: h, "):
        next(part.shifted(6, name="jitter", amount=0.0))


@pytest.mark.parametrize("name", ["simclr", "amortised-2"])
def test_jitter_of_strength_0_changes_nothing_and_no_crop_or_grey_runs(name):
    policy: Policy = preset(name, image_size=16)
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    settings, index = policy.groups[0].settings, np.arange(5)
    clean = rendering.clean(images, size=16, settings=settings)
    still = rendering.jittered(policy, images, index, strength=0.0)
    torch.testing.assert_close(still, clean, rtol=0, atol=2e-3)
    moved = rendering.jittered(policy, images, index, strength=1.0)
    assert ((moved - clean).abs().mean(dim=(1, 2, 3)) > 0.05).all(), "every image is jittered"
    with pytest.raises(ValueError, match="hue"):
        rendering.jittered(policy, images, index, strength=3.0)
