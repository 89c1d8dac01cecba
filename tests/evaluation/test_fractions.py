"""Label fractions: stratified, nested, and a test split that stays whole."""

from __future__ import annotations

import pytest
import torch

from fastssl.evaluation.fractions import FRACTIONS, fractions, subset

LABELS = torch.tensor([0] * 40 + [1] * 20 + [2] * 3)


@pytest.mark.parametrize(
    ("share", "counts"), [(0.1, (4, 2, 1)), (0.5, (20, 10, 2)), (1, (40, 20, 3))]
)
def test_each_class_keeps_its_share_and_at_least_one_image(share, counts):
    kept = subset(LABELS, share)
    assert tuple(LABELS[kept].bincount().tolist()) == counts
    assert kept.tolist() == sorted(set(kept.tolist()))


def test_subsets_are_nested_and_depend_on_the_seed():
    small, large = (set(subset(LABELS, share).tolist()) for share in (0.2, 0.6))
    assert small < large
    assert subset(LABELS, 0.5).tolist() != subset(LABELS, 0.5, seed=1).tolist()


def test_continuous_targets_keep_a_share_of_all():
    assert len(subset(torch.rand(41, 2), 0.1)) == 5


def test_the_readout_sees_the_subsets_in_rising_order():
    x, seen = torch.arange(63.0)[:, None], []

    def readout(some, labels):
        seen.append(len(some))
        assert LABELS[some[:, 0].long()].tolist() == labels.tolist()
        yield "acc", 0.5

    found = dict(fractions(x, LABELS, readout, shares=(1.0, 0.1)))
    assert seen == [7, 63]
    assert found == {"images@0.1": 7, "acc@0.1": 0.5, "images@1": 63, "acc@1": 0.5}


def test_the_defaults_are_those_of_the_paper():
    assert (
        tuple(torch.linspace(0.05, 1, 8).double().mul(1e4).round().div(1e4).tolist()) == FRACTIONS
    )


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_shares_outside_are_refused(share):
    with pytest.raises(ValueError, match="--fractions: expected above 0 and at most 1"):
        subset(LABELS, share)
