"""Few-shot episodes with a vote over windows answer as loops over clips and windows do."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier

from fastssl.evaluation.few_shot import CLASSIFIERS, draw_episodes, few_shot
from fastssl.evaluation.window_vote import draw_windows, few_shot_windows, vote

CLASSES, EACH, WIDTH = 6, 14, 8
WAYS, QUERIES = 5, 4


def problem(most=5, seed=0):
    """Features of 1 to ``most`` windows of each clip, numbers of their clips, labels."""
    g = torch.Generator().manual_seed(seed)
    label = torch.arange(CLASSES).repeat(EACH)
    count = torch.randint(1, most + 1, (len(label),), generator=g)
    clip = torch.arange(len(label)).repeat_interleave(count)
    centre = 0.8 * torch.randn(CLASSES, WIDTH, generator=g)
    features = centre[label[clip]] + torch.randn(len(clip), WIDTH, generator=g)
    return features, clip, label[clip]


def scores_of(name, x, y, q):
    """(queries, ways) by the published estimators."""
    if name == "centroid":
        means = torch.stack([x[y == way].mean(0) for way in range(WAYS)])
        return -torch.cdist(q, means).square()
    tight = LogisticRegression(tol=1e-7, max_iter=1000)
    model = RidgeClassifier() if name == "ridge" else tight
    return torch.from_numpy(model.fit(x.numpy(), y.numpy()).decision_function(q.numpy()))


def answered(name, x, y, windows):
    """One clip: every window has one vote; a tie goes to the larger sum of scores."""
    score = scores_of(name, x, y, windows)
    votes = Counter(score.argmax(1).tolist())
    most = max(votes.values())
    tied = [way for way, count in votes.items() if count == most]
    return max(tied, key=lambda way: float(score[:, way].sum())), len(tied) > 1


@pytest.mark.parametrize("shots", [1, 3])
def test_every_clip_is_answered_as_by_loops(shots):
    features, clip, label = problem()
    unit = torch.nn.functional.normalize(features, dim=1)
    count = torch.bincount(clip)
    first = count.cumsum(0) - count
    chosen = draw_episodes(label[first], ways=WAYS, samples=shots + QUERIES, episodes=8, seed=1)
    support = draw_windows(chosen[:, :, :shots].flatten(1), first, count, seed=1)
    query = chosen[:, :, shots:].flatten(1)
    found = vote(unit, support, query, first, count, WAYS, CLASSIFIERS)
    y, ties = torch.arange(WAYS).repeat_interleave(shots), 0
    for name in CLASSIFIERS:
        other = 0
        for e in range(len(chosen)):
            x = unit[support[e]].double()
            for q, n in enumerate(query[e].tolist()):
                way, tied = answered(name, x, y, unit[clip == n].double())
                other += int(found[name][e, q]) != way
                ties += tied
        assert other <= 1, name  # a window on a boundary may fall to either side
    assert ties > 30  # ties happen, and are settled as written


def test_a_support_window_is_one_of_its_clip_and_any_of_them():
    count = torch.tensor([1, 4, 2])
    first = count.cumsum(0) - count
    window = draw_windows(torch.tensor([0, 1, 2]).expand(4000, 3), first, count, seed=3)
    for n in range(3):
        share = torch.bincount(window[:, n], minlength=7)[first[n] : first[n] + count[n]] / 4000
        assert share.sum() == 1 and (share - 1 / count[n]).abs().max() < 0.03


def test_clips_of_one_window_score_as_without_windows():
    features, clip, label = problem(most=1)
    options = {"ways": WAYS, "queries": QUERIES, "episodes": 300, "seed": 5}
    with_windows = dict(few_shot_windows(features, clip, label, **options))
    assert with_windows == pytest.approx(dict(few_shot(features, label, **options)), abs=1e-6)


def test_the_vote_helps():
    features, clip, label = problem(most=9)
    options = {"ways": WAYS, "queries": QUERIES, "episodes": 400}
    voted = dict(few_shot_windows(features, clip, label, **options))
    alone = torch.cat([torch.ones(1, dtype=torch.bool), clip.diff() > 0])
    single = dict(few_shot(features[alone], label[alone], **options))
    assert all(voted[f"{n}_top1"] > single[f"{n}_top1"] + 0.05 for n in CLASSIFIERS)


def test_what_does_not_fit_is_refused():
    features, clip, label = problem()
    with pytest.raises(ValueError, match="as many features, clips and labels"):
        list(few_shot_windows(features[1:], clip, label))
    with pytest.raises(ValueError, match="received svm"):
        list(few_shot_windows(features, clip, label, classifiers=["svm"]))
    with pytest.raises(ValueError, match="0 such classes"):
        list(few_shot_windows(features, clip, label, queries=40))
