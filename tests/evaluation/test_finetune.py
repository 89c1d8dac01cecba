"""Fine-tuning changes a copy of the whole encoder and lets the test split decide nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastssl.evaluation import finetune as module
from fastssl.evaluation.features import hold_out
from fastssl.evaluation.finetune import Images, Tuning, finetune


def data(count, seed=0):
    """Classes that only the ratio of two pixels tells: the frozen encoder below loses it."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 3, 2, 2, generator=g) * 2 - 1
    return x, (x[:, 0, 0, 0] * x[:, 1, 1, 1] > 0).long()


def images(x, y, seen=None):
    def clean(position):
        if seen is not None:
            seen.append(len(position))
        return x[position]

    return Images(y, clean)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU())


FAST = Tuning(lr=0.5, epochs=40, batch_size=64)


def test_the_encoder_learns_and_the_one_that_was_given_does_not_change():
    encoder, (x, y), (test_x, test_y) = net(), data(400), data(200, seed=1)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    found = dict(finetune(encoder, images(x, y), images(test_x, test_y), tuning=FAST))
    assert found["finetune_top1"] > 0.85
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, before[key])


def test_the_test_split_is_seen_once_and_decides_nothing():
    (x, y), (test_x, test_y), seen = data(100), data(50, seed=1), []
    short = Tuning(lr=0.5, epochs=5, batch_size=32)
    first = dict(finetune(net(), images(x, y), images(test_x, test_y, seen), tuning=short))
    assert seen == [50]
    other = dict(finetune(net(), images(x, y), images(test_x, 1 - test_y), tuning=short))
    assert first["best_epoch"] == other["best_epoch"]
    assert first["finetune_top1"] == pytest.approx(1 - other["finetune_top1"])


def test_the_epoch_with_the_least_held_out_loss_is_the_one_that_is_scored(monkeypatch):
    """The held-out answers get worse by hand after the second epoch; its weights must come back."""
    (x, y), states = data(100), []
    outputs = module._outputs

    def spoilt(net, some, position):
        answer = outputs(net, some, position)
        if len(position) == len(hold_out(y)[1]):
            states.append(net[0][1].weight.detach().clone())
            return (
                answer
                if len(states) == 2
                else answer * 0 + 50 * (1 - y[position])[:, None] * (torch.tensor([-1.0, 1.0]))
            )
        states.append(net[0][1].weight.detach().clone())
        return answer

    monkeypatch.setattr(module, "_outputs", spoilt)
    tuning = Tuning(lr=0.5, epochs=4, batch_size=32)
    found = dict(finetune(net(), images(x, y), images(*data(50, seed=1)), tuning=tuning))
    assert found["best_epoch"] == 2 and len(states) == 5
    assert torch.equal(states[-1], states[1])


def test_a_fraction_trains_on_that_share_and_held_out_images_are_never_trained_on():
    (x, y), trained = data(100), set()
    train = Images(y, lambda p: x[p], lambda p, epoch: trained.update(p.tolist()) or x[p])
    tuning = Tuning(epochs=2, batch_size=16, fraction=0.5)
    found = dict(finetune(net(), train, images(*data(20)), tuning=tuning))
    kept = module.subset(y, 0.5)
    assert found["images"] == len(kept) and trained == set(kept[hold_out(y[kept])[0]].tolist())


@pytest.mark.parametrize(("count", "size"), [(11, 2), (12, 3), (22, 16), (10, 7)])
def test_no_batch_is_of_one_image(count, size):
    """Batch normalisation has no statistics of one; the image joins another batch instead."""
    (x, y), sizes = data(count), []
    train = Images(y, lambda p: x[p], lambda p, epoch: sizes.append(len(p)) or x[p])
    dict(finetune(net(), train, images(x, y), tuning=Tuning(epochs=1, batch_size=size)))
    assert min(sizes) >= 2 and sum(sizes) == count - count // 5 and max(sizes) <= size + 1


def test_views_are_numbered_by_epoch():
    (x, y), epochs = data(40), []
    train = Images(y, lambda p: x[p], lambda p, epoch: epochs.append(epoch) or x[p])
    dict(finetune(net(), train, images(x, y), tuning=Tuning(epochs=3, batch_size=32)))
    assert epochs == [0, 1, 2]


@pytest.mark.parametrize("change", [{"lr": 0}, {"epochs": 0}, {"batch_size": 1}])
def test_what_cannot_be_trained_is_refused(change):
    with pytest.raises(ValueError, match="finetune: expected --lr above 0"):
        Tuning(**change)


def test_too_few_labels_and_a_loss_that_is_not_finite_are_refused():
    x, y = data(40)
    with pytest.raises(ValueError, match="at least 10 labelled images, received 5"):
        next(finetune(net(), images(x, y), images(x, y), tuning=Tuning(fraction=0.1)))
    with pytest.raises(ValueError, match="not finite; take an --lr below"):
        next(finetune(net(), images(1e38 * x, y), images(x, y), tuning=Tuning(lr=1e30, epochs=1)))
