"""Feature averaging averages both splits over the same number of draws, cumulatively."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastssl.data.arrays import array_source
from fastssl.data.spirograph import SpirographSource
from fastssl.evaluation.averaging import averaging
from fastssl.evaluation.features import extract
from fastssl.evaluation.ridge import ridge


def noisy(draw):
    g = torch.Generator().manual_seed(draw)
    signal = torch.linspace(-1, 1, 60)[:, None]
    return tuple(signal + torch.randn(60, 1, generator=g) for _ in range(2))


def test_each_number_is_the_readout_of_the_mean_of_so_many_draws():
    target = torch.linspace(-1, 1, 60)[:, None]

    def readout(train, test):
        return ridge(train, target, test, target)

    found = dict(averaging(noisy, readout, averages=(5, 1, 30)))
    for m in (1, 5, 30):
        means = [
            torch.stack([noisy(d)[side] for d in range(m)]).double().mean(0) for side in (0, 1)
        ]
        assert found[f"mse@{m}"] == pytest.approx(dict(readout(*means))["mse"], rel=1e-9)
    assert found["mse@30"] < 0.5 * found["mse@5"] < found["mse@1"]


def test_numbers_below_one_are_refused():
    with pytest.raises(ValueError, match="averages"):
        list(averaging(noisy, lambda a, b: iter(()), averages=(0, 5)))


def test_spirograph_redraws_the_nuisances_alone():
    part = SpirographSource().labelled("test", 12)
    clean, again, other = (
        next(iter(x)) for x in (part.images(12), part.redrawn(12, draw=0), part.redrawn(12, draw=1))
    )
    assert torch.equal(clean, again)
    assert ((clean - other).abs().amax((1, 2, 3)) > 0.01).all()
    red = next(part.redrawn(12, draw=1, only="b_r"))
    assert torch.equal(red[:, 1:], clean[:, 1:]) and not torch.equal(red[:, 0], clean[:, 0])
    assert part.nuisance.shape == (12, 6)


def test_arrays_redraw_one_stage_or_all():
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    part = array_source(images, np.arange(20) % 2).labelled("train")
    n = len(part.target)
    clean = extract(lambda x: x.flatten(1), part.images(7))
    for only in (None, "crop", "hflip", "gray"):
        draws = [
            extract(lambda x: x.flatten(1), part.redrawn(7, draw=d, only=only)) for d in (1, 1)
        ]
        assert torch.equal(*draws) and draws[0].shape == clean.shape
        moved = ((draws[0] - clean).abs().amax(1) > 1e-3).sum()
        assert 0 < moved <= n, only
    flipped = extract(lambda x: x.flatten(1), part.redrawn(7, draw=1, only="hflip"))
    both = clean.view(n, 3, 32, 32), flipped.view(n, 3, 32, 32)
    for a, b in zip(*both, strict=True):
        assert torch.allclose(a, b, atol=1e-4) or torch.allclose(a.flip(2), b, atol=1e-4)
