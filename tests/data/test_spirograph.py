"""Spirograph: the published generator, keyed draws, restartable batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastssl.augment import keyed
from fastssl.data import spirograph
from fastssl.data.sources import open_source


def in_loops(target, nuisance):
    """The equations, point by point in Python floats."""
    m, b, sigma, f_r = target
    h, b_r, f_g, b_g, f_b, b_b = nuisance
    grid = [-6 + 12 * p / 31 for p in range(32)]
    value = [[0.0] * 32 for _ in range(32)]
    for j in range(40):
        t = 2 * math.pi * j / 39
        turn = t * (m - h) / b
        x = (m - h) * math.cos(t) + h * math.cos(turn)
        y = (m - h) * math.sin(t) - h * math.sin(turn)
        for p in range(32):
            for q in range(32):
                distance = (grid[p] - x) ** 2 + (grid[q] - y) ** 2
                value[p][q] += math.exp(-distance / sigma) / 40
    top = max(max(row) for row in value) + 1e-8
    v = torch.tensor(value, dtype=torch.float64) / top
    front, back = (f_r, f_g, f_b), (b_r, b_g, b_b)
    return torch.stack([v * f + (1 - v) * g for f, g in zip(front, back, strict=True)])


def drawn(count: int):
    index = np.arange(count)
    target = spirograph.draw_targets(index, seed=0, split="train")
    nuisance = spirograph.draw_nuisances(index, seed=0, epoch=0, stream="view0")
    return torch.as_tensor(target).double(), torch.as_tensor(nuisance).double()


def test_images_equal_the_generators_equations():
    target, nuisance = drawn(4)
    images = spirograph.render(target, nuisance)
    for image, t, n in zip(images, target.tolist(), nuisance.tolist(), strict=True):
        torch.testing.assert_close(image, in_loops(t, n), rtol=1e-9, atol=1e-9)


def test_rendering_is_differentiable_in_the_nuisances():
    target, nuisance = drawn(2)
    nuisance.requires_grad_()
    (grad,) = torch.autograd.grad(spirograph.render(target, nuisance).square().sum(), nuisance)
    assert torch.isfinite(grad).all()
    assert (grad != 0).all()


def test_parameters_stay_in_their_ranges_and_splits_differ():
    target, nuisance = drawn(5000)
    for values, low, high in (
        (target, [2, 0.1, 0.25, 0.4], [5, 1.1, 1, 1]),
        (nuisance, [0.5, 0, 0.4, 0, 0.4, 0], [2.5, 0.6, 1, 0.6, 1, 0.6]),
    ):
        low, high = torch.tensor(low).double(), torch.tensor(high).double()
        assert (values >= low - 1e-6).all() and (values <= high + 1e-6).all()
        assert ((values.mean(0) - (low + high) / 2).abs() < 0.03 * (high - low)).all()
    test = spirograph.draw_targets(np.arange(5000), seed=0, split="test")
    assert not np.any(np.isclose(test, target.numpy()).all(axis=1))


def test_batches_are_the_same_after_a_restart_and_across_epochs():
    source = open_source("spirograph", seed=7)
    per_epoch = source.steps_per_epoch(50_000)
    assert per_epoch == 2
    small = source.steps_per_epoch(100)
    cpu = torch.device("cpu")
    straight = source.batches(batch_size=100, seed=7, start_step=small - 2, device=cpu)
    seen = [next(straight) for _ in range(4)]
    straight.close()
    restarted = source.batches(batch_size=100, seed=7, start_step=small, device=cpu)
    again = [next(restarted) for _ in range(2)]
    restarted.close()
    for a, b in zip(seen[2:], again, strict=True):
        assert torch.equal(a.index_N, b.index_N)
        assert all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))
    assert not torch.equal(seen[0].views[0], seen[0].views[1])


def test_views_change_from_epoch_to_epoch():
    index = np.arange(20)
    first, second = (open_source("spirograph").batch(index, seed=0, epoch=e) for e in (0, 1))
    for one, other in zip(first.views, second.views, strict=True):
        assert (one != other).flatten(1).any(dim=1).all()


def test_every_epoch_is_a_permutation_of_its_own():
    options = {"batch_size": 50_000, "seed": 7, "device": torch.device("cpu")}
    batches = open_source("spirograph", image_size=8, num_views=1).batches(**options)
    parts = [next(batches).index_N for _ in range(4)]
    batches.close()
    first, second = torch.cat(parts[:2]), torch.cat(parts[2:])
    for order in (first, second):
        assert torch.equal(order.sort().values, torch.arange(100_000))
    assert not torch.equal(first, second)


def test_a_restart_begins_with_the_batch_of_its_own_step():
    source = open_source("spirograph", seed=7)
    b = 100
    batches = source.batches(batch_size=b, seed=7, start_step=5, device=torch.device("cpu"))
    received = next(batches)
    batches.close()
    index = keyed.permutation(source.num_samples, seed=7, epoch=0)[5 * b : 6 * b]
    expected = source.batch(index, seed=7, epoch=0)
    assert torch.equal(received.index_N, expected.index_N)
    assert all(map(torch.equal, received.views, expected.views))


def test_test_objects_are_objects_of_their_own():
    source = open_source("spirograph", seed=7)
    test, train = (source.labelled(split, 500).target for split in ("test", "train"))
    drawn = spirograph.draw_targets(np.arange(500), seed=7, split="test")
    assert torch.equal(test, torch.as_tensor(drawn, dtype=torch.float32))
    assert (test != train).any(dim=1).all()
    assert len(source.labelled("test").target) == 20_000


def test_labelled_images_are_fixed_and_regress_the_four_targets():
    source = open_source("spirograph", seed=7)
    labelled = source.labelled("test", 30)
    assert (labelled.task, labelled.names) == ("regression", ("m", "b", "sigma", "f_r"))
    assert labelled.target.shape == (30, 4)
    first, again = (torch.cat(list(labelled.images(8))) for _ in range(2))
    assert first.shape == (30, 3, 32, 32) and torch.equal(first, again)


def test_a_misspelt_name_is_answered_with_the_right_one():
    with pytest.raises(ValueError, match=r"--data spirogaph: .*Did you mean 'spirograph'"):
        open_source("spirogaph")


def test_the_table_holds_what_rendered_the_views():
    source = open_source("spirograph", image_size=16)
    batch = source.batch(np.arange(5), seed=3, epoch=1, step=9)
    table = batch.table
    for view, nuisance_NA in zip(batch.views, table.nuisance_VNA, strict=True):
        torch.testing.assert_close(
            spirograph.render(table.object_NT, nuisance_NA, side=16), view, rtol=0, atol=1e-6
        )
    assert table.labels_VNO.shape == (2, 5, 6) and table.labels_VNO.all()
    assert table.bits_K.shape == (0,) and table.tables == ()
    drawn = spirograph.draw_nuisances(np.arange(5), seed=3, epoch=1, stream="view1")
    assert torch.equal(table.nuisance_VNA[1], torch.from_numpy(drawn.astype(np.float32)))


def test_groups_of_nuisances_follow_the_bits_of_the_step():
    source = open_source("spirograph", image_size=8, num_views=3, augment="spirograph-2")
    seen = set()
    for step in range(24):
        table = source.batch(np.arange(4), seed=3, epoch=0, step=step).table
        geometry, colour = table.bits_K.tolist()
        fresh_A = (table.nuisance_VNA[1:] != table.nuisance_VNA[:1]).flatten(0, 1).all(dim=0)
        assert fresh_A.tolist() == [bool(geometry)] + [bool(colour)] * 5
        assert torch.equal(table.labels_VNO[1:].bool().all(dim=(0, 1)), fresh_A)
        seen.add((geometry, colour))
    assert seen == {(0, 1), (1, 0), (1, 1)}


def test_a_policy_of_images_is_refused_by_name():
    with pytest.raises(ValueError, match="expected one of spirograph, spirograph-2, spiro"):
        open_source("spirograph", augment="simclr")


def test_images_to_look_at_are_the_first_steps_views():
    source = open_source("spirograph", image_size=16)
    shown = source.shown(3, seed=5)
    assert [tuple(image.shape) for image in shown.images] == [(3, 16, 16)] * 3
    assert all(map(torch.equal, shown.views, source.batch(np.arange(3), seed=5, epoch=0).views))
    assert torch.equal(shown.images[1], source.labelled("train", 3).render(np.arange(3))[1])
