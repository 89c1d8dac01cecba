"""kNN is exact: it equals loops over all pairs."""

from __future__ import annotations

import math

import pytest
import torch

from fastssl.evaluation import knn as module
from fastssl.evaluation.knn import knn, top_accuracies


def brute_force(train, train_y, test, test_y, *, k, temperature):
    hits = [0, 0]
    for row, truth in zip(test.double(), test_y.tolist(), strict=True):
        cosines = [float(row @ other / (row.norm() * other.norm())) for other in train.double()]
        nearest = sorted(range(len(cosines)), key=lambda j: -cosines[j])[:k]
        votes = [0.0] * (int(train_y.max()) + 1)
        for j in nearest:
            votes[int(train_y[j])] += math.exp(cosines[j] / temperature)
        ranking = sorted(range(len(votes)), key=lambda c: -votes[c])
        hits[0] += ranking[0] == truth
        hits[1] += truth in ranking[:5]
    return hits[0] / len(test), hits[1] / len(test)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (20, 1.0)])
def test_knn_equals_loops_over_all_pairs(k, temperature, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 7)  # several chunks, the last one ragged
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 12, generator=g)
    train_y, test_y = torch.arange(90) % 8, torch.arange(45) % 8
    train = centres[train_y] + 1.6 * torch.randn(90, 12, generator=g)
    test = centres[test_y] + 1.6 * torch.randn(45, 12, generator=g)
    expected = brute_force(train, train_y, test, test_y, k=k, temperature=temperature)
    found = dict(knn(train, train_y, test, test_y, k=k, temperature=temperature))
    assert (found["knn_top1"], found["knn_top5"]) == pytest.approx(expected, abs=1e-12)
    assert 0.3 < found["knn_top1"] < 1, "the problem must be neither trivial nor hopeless"


def test_nearer_neighbours_outvote_a_majority_at_low_temperature():
    train = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
    labels, query, truth = torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    assert dict(knn(train, labels, query, truth, k=3, temperature=0.07))["knn_top1"] == 1
    assert dict(knn(train, labels, query, truth, k=3, temperature=10.0))["knn_top1"] == 0


def test_top5_is_reported_from_six_classes_on():
    score = torch.eye(6)
    assert dict(top_accuracies("x", score, torch.arange(6)))["x_top5"] == 1
    assert "x_top5" not in dict(top_accuracies("x", torch.eye(5), torch.arange(5)))


def test_a_class_unseen_in_training_counts_as_wrong():
    train, labels = torch.eye(2), torch.tensor([0, 1])
    found = dict(knn(train, labels, torch.eye(2), torch.tensor([0, 7]), k=1))
    assert found["knn_top1"] == 0.5


def test_vast_features_do_not_overflow():
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(30, 5, generator=g) * 1e18, torch.arange(30) % 3
    assert dict(knn(x, y, x, y, k=1, temperature=1e-3))["knn_top1"] == 1


@pytest.mark.parametrize("options", [{"k": 0}, {"k": 31}, {"temperature": 0.0}])
def test_impossible_settings_are_refused_by_name(options):
    x, y = torch.randn(30, 5), torch.arange(30) % 3
    with pytest.raises(ValueError, match=f"knn: {next(iter(options))} must"):
        list(knn(x, y, x, y, **options))
