"""Few-shot episodes, batched, beside the loop over episodes with scikit-learn that papers run.

10,000 episodes, 5-way 1-shot, 15 queries of each class, on features as wide as MT-SLVR's. The loop
has RidgeClassifier, LogisticRegression and NearestCentroid fitted to the same features of unit
length, on the first episodes of the same draw, one thread (two are slower on fits this small); its
time is scaled to 10,000. Gate: on those episodes both predict the same of nearly every query, and
the mean accuracies differ by less than the 95 % interval; there the loop's logistic regression goes
on to a tolerance of 1e-7 in float64, its default of 1e-4 in float32 is what is timed.
"""

# shapes: N samples, F features, E episodes, W ways, K samples of a class, S support, Q query
from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as nnf
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import NearestCentroid
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks.clock import Timing, as_record, race
from benchmarks.machine import describe, facts
from benchmarks.targets import Verdict, at_most, conclude, keep
from fastssl.evaluation.few_shot import CLASSIFIERS, draw_episodes, few_shot, scores

EPISODES, PEER_EPISODES = 10_000, 200
WAYS, QUERIES, SHOTS = 5, 15, 1
CLASSES, EACH, WIDTH, NOISE = 100, 60, 1000, 4.0  # accuracies near 70 %
MOST_SECONDS = 60.0  # of all classifiers together
SAME = 0.999  # of the queries: the others lie on a boundary
PEERS: dict[str, Callable[..., Any]] = {
    "centroid": lambda tol: NearestCentroid(),
    "ridge": lambda tol: RidgeClassifier(),
    "logistic": lambda tol: LogisticRegression(tol=tol, max_iter=1000),
}


def run(options: argparse.Namespace) -> int:
    """The benchmark; returns the exit code."""
    warnings.simplefilter("ignore")  # the loop's, of a class with one sample
    torch.set_num_threads(options.threads)
    machine = facts(threads=options.threads)
    print(describe(machine))
    episodes, peer_episodes = (200, 40) if options.quick else (EPISODES, PEER_EPISODES)
    features_NF, label_N = problem()
    chosen_EWK = draw_episodes(label_N, ways=WAYS, samples=SHOTS + QUERIES, episodes=episodes)
    chosen_EWK = chosen_EWK[:peer_episodes]
    agreement = compare(features_NF, chosen_EWK)
    if not gate_is_green(agreement):
        return 1
    rows = {}
    for name in CLASSIFIERS:
        timings = race(
            contestants(name, features_NF, label_N, chosen_EWK, episodes),
            rounds=1 if options.quick else 3,
            slice_s=0.0,
            warmup_s=0.0,
            budget_s=90,
        )
        rows[name] = row(timings, episodes, peer_episodes)
        found = dict(few_shot(features_NF, label_N, episodes=episodes, classifiers=[name]))
        rows[name]["accuracy"] = {key: found[f"{name}_{key}"] for key in ("top1", "ci95")}
        print(f"{name:<9} {told(rows[name])}", flush=True)
    verdicts = [] if options.quick else judge(rows)
    settings = {"episodes": episodes, "loop_episodes": peer_episodes, "ways": WAYS, "shots": SHOTS,
                "queries": QUERIES, "classes": CLASSES, "features": WIDTH}  # fmt: skip
    record = {"machine": machine, "settings": settings, "agreement": agreement, "rows": rows}
    keep(options.json, record, verdicts)
    return conclude(verdicts) if verdicts else 0


def problem() -> tuple[Tensor, Tensor]:
    """Features (N, F) around a centre for each class, and the labels."""
    generator = torch.Generator().manual_seed(0)
    label_N = torch.arange(CLASSES).repeat_interleave(EACH)
    centre_CF = torch.randn(CLASSES, WIDTH, generator=generator)
    noise_NF = torch.randn(len(label_N), WIDTH, generator=generator)
    return centre_CF[label_N] + NOISE * noise_NF, label_N


def contestants(
    name: str, features_NF: Tensor, label_N: Tensor, chosen_EWK: Tensor, episodes: int
) -> dict[str, Callable[[], object]]:
    """All episodes batched, drawing them included; the first ones by the loop."""

    def ours() -> object:
        return dict(few_shot(features_NF, label_N, episodes=episodes, classifiers=[name]))

    return {"fastssl": ours, "scikit-learn": lambda: list(loop(name, features_NF, chosen_EWK))}


def loop(
    name: str, features_NF: Tensor, chosen_EWK: Tensor, *, tol: float = 1e-4
) -> Iterator[Tensor]:
    """(Q,) predictions of each episode by scikit-learn, one fit after another."""
    unit_NF = nnf.normalize(features_NF, dim=1).numpy()
    label_S = torch.arange(WAYS).repeat_interleave(SHOTS).numpy()
    with threadpool_limits(1):
        for chosen_WK in chosen_EWK.numpy():
            model = PEERS[name](tol)
            model.fit(unit_NF[chosen_WK[:, :SHOTS].ravel()], label_S)
            yield torch.from_numpy(model.predict(unit_NF[chosen_WK[:, SHOTS:].ravel()]))


def compare(features_NF: Tensor, chosen_EWK: Tensor) -> dict[str, dict[str, float]]:
    """Of each classifier: share of equal predictions, both accuracies, the loop's interval."""
    unit_NF = nnf.normalize(features_NF, dim=1)
    label_Q = torch.arange(WAYS).repeat_interleave(QUERIES)
    parts = chosen_EWK[:, :, :SHOTS].flatten(1), chosen_EWK[:, :, SHOTS:].flatten(1)
    found = {}
    for name, score_EQW in scores(unit_NF, *parts, WAYS, CLASSIFIERS).items():
        ours_EQ = score_EQW.argmax(2)
        theirs_EQ = torch.stack(list(loop(name, features_NF.double(), chosen_EWK, tol=1e-7)))
        right_E = (theirs_EQ == label_Q).double().mean(1)
        found[name] = {
            "same": float((ours_EQ == theirs_EQ).double().mean()),
            "ours": float((ours_EQ == label_Q).double().mean()),
            "loop": float(right_E.mean()),
            "loop_ci95": float(1.96 * right_E.std() / len(right_E) ** 0.5),
        }
    return found


def gate_is_green(agreement: dict[str, dict[str, float]]) -> bool:
    """Whether batch and loop answer alike; says what does not."""
    mistakes = [
        f"{name}: {fact['same']:.4f} of the predictions are the same, {fact['ours']:.4f} right, "
        f"in the loop {fact['loop']:.4f} +- {fact['loop_ci95']:.4f}"
        for name, fact in agreement.items()
        if fact["same"] < SAME or abs(fact["ours"] - fact["loop"]) > fact["loop_ci95"]
    ]
    for mistake in mistakes:
        print(f"wrong     {mistake}")
    least = min(fact["same"] for fact in agreement.values())
    good = f"green: at least {least:.4f} of the predictions are the same"
    print(f"gate      {'red: nothing is timed' if mistakes else good}", flush=True)
    return not mistakes


def row(timings: dict[str, Timing], episodes: int, peer_episodes: int) -> dict[str, Any]:
    """Both timings, and the seconds of 10,000 episodes."""
    counts = {"fastssl": episodes, "scikit-learn": peer_episodes}
    return {
        who: {**as_record(timing), "episodes": counts[who],
              "seconds_of_10000": timing.median * EPISODES / counts[who]}
        for who, timing in timings.items()
    }  # fmt: skip


def told(row: dict[str, Any]) -> str:
    """The row in a line."""
    ours, theirs = row["fastssl"]["seconds_of_10000"], row["scikit-learn"]["seconds_of_10000"]
    accuracy = row["accuracy"]
    return (
        f"10,000 episodes: {ours:.2f} s; scikit-learn's loop {theirs:.1f} s (scaled from "
        f"{row['scikit-learn']['episodes']}); {theirs / ours:.1f}x; "
        f"{accuracy['top1']:.4f} +- {accuracy['ci95']:.4f}"
    )


def judge(rows: dict[str, dict[str, Any]]) -> list[Verdict]:
    """All classifiers in a minute."""
    total = sum(row["fastssl"]["seconds_of_10000"] for row in rows.values())
    return [at_most("10,000 episodes, three classifiers", total, MOST_SECONDS, " s")]
