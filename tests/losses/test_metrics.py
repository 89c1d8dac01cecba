"""Metrics equal what a dense matrix of similarities says, and cost no second pass."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fastssl import losses
from fastssl.losses import ContrastiveMetrics, spec
from fastssl.losses import denominators as door
from fastssl.losses.classes import class_tops

NUM, WIDTH = 7, 4


def dense(queries, keys, positive_NK, kept_NK):
    """top1, alignment and mean negative similarity from masks."""
    similarity_NK = queries @ keys.T
    rows = positive_NK.any(1)
    best = similarity_NK.masked_fill(~positive_NK, -math.inf).amax(1)
    top1 = (best >= similarity_NK.masked_fill(~kept_NK, -math.inf).amax(1)).double()
    align = (similarity_NK * positive_NK).sum(1)[rows] / positive_NK.sum(1)[rows]
    negative = similarity_NK[kept_NK & ~positive_NK].mean()
    return ContrastiveMetrics(top1[rows].mean(), align.mean(), negative)


def views(seed=0, noise=0.7):
    generator = torch.Generator().manual_seed(seed)
    z0 = torch.randn(NUM, WIDTH, generator=generator, dtype=torch.float64)
    z1 = z0 + noise * torch.randn(NUM, WIDTH, generator=generator, dtype=torch.float64)
    return z0, z1, F.normalize(z0), F.normalize(z1)


def same(ids):
    return ids[:, None] == ids[None, :]


def agree(found, expected):
    for name, got, truth in zip(found._fields, found, expected, strict=True):
        assert not got.requires_grad
        torch.testing.assert_close(got, truth.to(got.dtype), rtol=1e-10, atol=1e-12, msg=name)


EYE, TWICE = torch.eye(NUM, dtype=torch.bool), torch.arange(NUM).repeat(2)
ALL = torch.ones(NUM, NUM, dtype=torch.bool)
OTHERS = ~torch.eye(2 * NUM, dtype=torch.bool)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "options", [None, {"margin": 0.2}, {"beta": 0.5, "tau_plus": 0.1}, {"smoothing": 0.1}], ids=str
)
def test_of_pairs(seed, options):
    z0, z1, u0, u1 = views(seed)
    options = options and losses.Options(**options)
    expected = dense(u0, u1, EYE, ALL)
    agree(losses.InfoNCELoss(options=options).with_metrics(z0, z1)[1], expected)
    agree(losses.InfoNCELoss(symmetric=True, options=options).with_metrics(z0, z1)[1], expected)
    agree(losses.CLIPLoss(options=options).with_metrics(z0, z1)[1], expected)
    both = torch.cat([u0, u1])
    expected = dense(both, both, same(TWICE) & OTHERS, OTHERS)
    agree(losses.NTXentLoss(options=options).with_metrics(z0, z1)[1], expected)
    agree(losses.MultiCropNTXentLoss().with_metrics(z0, z1)[1], expected)
    agree(losses.DCLLoss().with_metrics(z0, z1)[1], expected)
    agree(losses.DCLWLoss().with_metrics(z0, z1)[1], expected)


@pytest.mark.parametrize("seed", range(5))
def test_of_ids_and_hard_negatives(seed):
    z0, z1, u0, u1 = views(seed)
    ids = torch.tensor([0, 1, 0, 2, 2, 3, 0])
    kept = ~same(ids) | EYE
    agree(losses.InfoNCELoss().with_metrics(z0, z1, sample_ids=ids)[1], dense(u0, u1, EYE, kept))
    hard = torch.randn(NUM, 3, WIDTH, dtype=torch.float64)
    keys = torch.cat([u1, F.normalize(hard, dim=2).flatten(0, 1)])
    own = torch.arange(NUM).repeat_interleave(3)[None, :] == torch.arange(NUM)[:, None]
    positive = torch.cat([EYE, torch.zeros_like(own)], 1)
    found = losses.InfoNCELoss().with_metrics(z0, z1, hard_negatives=hard)[1]
    agree(found, dense(u0, keys, positive, torch.cat([ALL, own], 1)))


@pytest.mark.parametrize("seed", range(5))
def test_of_a_queue(seed):
    z0, z1, u0, u1 = views(seed)
    queue = spec.queue(width=WIDTH)
    keys = torch.cat([u1, queue])
    positive = torch.cat([EYE, torch.zeros(NUM, len(queue), dtype=torch.bool)], 1)
    kept = torch.cat([EYE, torch.ones(NUM, len(queue), dtype=torch.bool)], 1)
    agree(losses.MoCoLoss().with_metrics(z0, z1, queue)[1], dense(u0, keys, positive, kept))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_views", [1, 2, 3])
def test_of_cissl(seed, num_views):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 4 * num_views, WIDTH, generator=generator, dtype=torch.float64).unbind(0)
    positive = same(torch.arange(4).repeat(num_views))
    _, found = losses.CISSLLoss(num_views=num_views).with_metrics(a, b)
    agree(found, dense(F.normalize(a), F.normalize(b), positive, torch.ones_like(positive)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("form", ["out", "in"])
def test_of_sup_con(seed, form):
    z = views(seed)[0]
    labels = torch.tensor([0, 0, 1, 0, 2, 1, 0])
    others = ~EYE
    u = F.normalize(z)
    expected = dense(u, u, same(labels) & others, others)
    _, found = losses.SupConLoss(form=form).with_metrics(z, labels)
    agree(found, expected)


@pytest.mark.parametrize("scale", [5.0, -5.0])
@pytest.mark.parametrize("at_once", [1, 7, 1 << 20])
def test_the_best_of_a_class_in_pieces_of_any_size(scale, at_once, monkeypatch):
    monkeypatch.setattr("fastssl.losses.classes.LOGITS_AT_ONCE", at_once)
    ids = torch.tensor([3, 0, 3, 3, 1, 0, 8, 1, 3, 2, 2, 3])
    z = torch.randn(12, 5, dtype=torch.float64)
    others = same(ids) & ~torch.eye(12, dtype=torch.bool)
    expected = (scale * z @ z.T).masked_fill(~others, -math.inf).amax(1)
    torch.testing.assert_close(class_tops(z, ids, scale), expected)


@pytest.mark.parametrize("seed", range(5))
def test_of_crops(seed):
    """Two samples have three crops, one has one."""
    z0, z1, u0, u1 = views(seed)
    ids = [torch.arange(NUM) // 2, torch.arange(NUM)[:4]]
    rows, row_ids = torch.cat([u0, u1[:4]]), torch.cat(ids)
    others = ~torch.eye(len(rows), dtype=torch.bool)
    _, found = losses.MultiCropNTXentLoss().with_metrics(z0, z1[:4], ids=ids)
    agree(found, dense(rows, rows, same(row_ids) & others, others))
    _, found = losses.NTXentLoss().with_metrics(z0, z1, z0 + z1)
    rows, row_ids = torch.cat([u0, u1, F.normalize(z0 + z1)]), torch.arange(NUM).repeat(3)
    others = ~torch.eye(len(rows), dtype=torch.bool)
    agree(found, dense(rows, rows, same(row_ids) & others, others))


def test_a_positive_that_is_the_largest_logit_is_found_in_float32():
    """The kernel's logit and torch's differ by rounding; no row may be lost to it."""
    z = torch.randn(400, 96)
    for loss_fn in (losses.InfoNCELoss(0.07), losses.CLIPLoss(), losses.NTXentLoss(0.07)):
        assert loss_fn.with_metrics(z, z.clone())[1].top1 == 1
    assert losses.CISSLLoss().with_metrics(torch.cat([z, z]), torch.cat([z, z]))[1].top1 == 1


@pytest.mark.parametrize("case", spec.CASES, ids=lambda case: case.name)
def test_metrics_cost_no_second_pass(case, monkeypatch):
    calls = []
    original = door.denominators
    for module in ("matching", "cissl", "supcon"):
        monkeypatch.setattr(
            f"fastssl.losses.{module}.denominators",
            lambda *a, **k: calls.append(1) or original(*a, **k),
        )
    case.call(case.embeddings(), 4.0)
    alone = len(calls)
    case.with_metrics(case.embeddings(), 4.0)
    if any(promise == "top-1" for promise, _ in case.without):
        assert len(calls) == 0  # an operator of its own, which the metrics do not run again
    else:
        assert len(calls) - alone == max(alone, 1)  # ntxent itself is one


METERED = (
    losses.InfoNCELoss(),
    losses.CLIPLoss(),
    losses.NTXentLoss(),
    losses.MultiCropNTXentLoss(),
    losses.DCLLoss(),
    losses.CISSLLoss(),
)
EACH = pytest.mark.parametrize("loss_fn", METERED, ids=lambda loss_fn: type(loss_fn).__name__)


@EACH
def test_collapsed_embeddings_score_no_hit(loss_fn):
    z = torch.randn(1, 96).repeat(200, 1)
    assert loss_fn.with_metrics(z, z.clone())[1].top1 == 0
    assert losses.SupConLoss().with_metrics(z, torch.arange(200) // 4)[1].top1 == 0


@EACH
def test_nan_embeddings_give_nan(loss_fn):
    z = torch.randn(8, 5)
    broken = z.clone()
    broken[3] = torch.nan
    assert loss_fn.with_metrics(broken, z)[1].top1.isnan()
    assert losses.SupConLoss().with_metrics(broken, torch.arange(8) // 2)[1].top1.isnan()


def test_autocast_changes_no_metric():
    z = torch.randn(12, 8)
    for call in (
        lambda: losses.SupConLoss().with_metrics(z, torch.arange(12) // 3)[1],
        lambda: losses.MultiCropNTXentLoss().with_metrics(z, z + 0.1)[1],
    ):
        expected = call()
        with torch.autocast("cpu", torch.bfloat16):
            assert call() == expected
