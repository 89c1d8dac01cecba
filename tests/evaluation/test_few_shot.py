"""Batched few-shot episodes answer as a loop over episodes with scikit-learn does."""

from __future__ import annotations

import time

import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier

from fastssl.evaluation.few_shot import CLASSIFIERS, accuracies, draw_episodes, few_shot

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES, EACH, WIDTH = 8, 30, 12


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def problem(seed=0, noise=1.0, each=EACH, width=WIDTH):
    g = torch.Generator().manual_seed(seed)
    label = torch.arange(CLASSES).repeat_interleave(each)[
        torch.randperm(CLASSES * each, generator=g)
    ]
    centre = torch.randn(CLASSES, width, generator=g)
    return centre[label] + noise * torch.randn(len(label), width, generator=g) + 0.5, label


def by_sklearn(unit, episode, shots):
    """Accuracies of one episode (W, K) by the published estimators, in float64."""
    unit = unit.double()
    ways = len(episode)
    x, y = unit[episode[:, :shots].flatten()].numpy(), torch.arange(ways).repeat_interleave(shots)
    q, t = (
        unit[episode[:, shots:].flatten()].numpy(),
        torch.arange(ways).repeat_interleave(episode.shape[1] - shots),
    )
    mean = torch.from_numpy(x).view(ways, shots, -1).mean(1)
    nearest = torch.cdist(torch.from_numpy(q), mean).argmin(1)
    models = (RidgeClassifier(), LogisticRegression(tol=1e-7, max_iter=1000))
    scores = [model.fit(x, y.numpy()).score(q, t.numpy()) for model in models]
    return [float((nearest == t).double().mean()), *scores]


@pytest.mark.parametrize("shots", [1, 5])
def test_every_episode_scores_as_scikit_learn_does(shots):
    features, label = problem()
    unit = torch.nn.functional.normalize(features, dim=1)
    chosen = draw_episodes(label, ways=5, samples=shots + 10, episodes=12, seed=1)
    found = accuracies(unit, chosen, shots, CLASSIFIERS)
    expected = torch.tensor([by_sklearn(unit, episode, shots) for episode in chosen])
    for column, name in enumerate(CLASSIFIERS):
        # a query on a boundary may fall to either side: one of the 50, in one episode
        apart = (found[name] - expected[:, column].float()).abs()
        assert apart.max() <= 0.0201 and (apart > 1e-6).sum() <= 1, name


def test_the_mean_of_another_draw_lies_in_the_interval():
    features, label = problem()
    unit = torch.nn.functional.normalize(features, dim=1)
    found = dict(few_shot(features, label, shots=5, queries=10, episodes=2000))
    chosen = draw_episodes(label, ways=5, samples=15, episodes=30, seed=9)
    score = torch.tensor([by_sklearn(unit, episode, 5) for episode in chosen])
    for column, name in enumerate(CLASSIFIERS):
        error = float(score[:, column].std()) / len(score) ** 0.5
        apart = abs(found[f"{name}_top1"] - float(score[:, column].mean()))
        assert apart < 3 * (error + found[f"{name}_ci95"])
        assert 0 < found[f"{name}_ci95"] < 0.01


def test_episodes_hold_different_samples_of_different_classes():
    label = torch.tensor([3] * 4 + [7] * 6 + [9] * 5 + [11] * 3)
    chosen = draw_episodes(label, ways=3, samples=4, episodes=500)
    assert chosen.shape == (500, 3, 4)
    of = label[chosen]
    assert (of == of[:, :, :1]).all() and 11 not in of
    assert all(len(set(episode[:, 0].tolist())) == 3 for episode in of)
    assert (chosen.flatten(1).sort(1).values.diff(dim=1) > 0).all()


def test_every_sample_is_drawn_as_often_at_every_place():
    label = torch.tensor([0] * 6 + [1] * 6)
    chosen = draw_episodes(label, ways=2, samples=3, episodes=6000)
    for place in range(3):
        count = torch.bincount(chosen[:, :, place].flatten(), minlength=12) / 1000
        assert (count - 1).abs().max() < 0.15, place


def test_ten_thousand_episodes_take_less_than_a_minute():
    features, label = problem(each=40, width=128)
    begin = time.perf_counter()
    found = dict(few_shot(features, label, shots=5, episodes=2000))  # a fifth of them
    assert time.perf_counter() - begin < 12
    assert set(found) == {f"{n}_{what}" for n in CLASSIFIERS for what in ("top1", "ci95")}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"ways": 9}, "9 ways"),
        ({"queries": 40}, "0 such classes"),
        ({"classifiers": ["svm"]}, "received svm"),
        ({"episodes": 0}, "1 episode"),
    ],
)
def test_impossible_episodes_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        list(few_shot(*problem(), **wrong))
