"""Tones as the claims hear them, small: encoders trained side by side on it, few-shot accuracies.

Clips of one second at 8 kHz, 32 mel bands and 32 frames. Augmenting a batch costs more than a step
of the small conv net, so that runs which differ in the method alone share their batches.
"""

# shapes: N clips, C channels, M mel bands, T frames, F features, K factors
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.claims.trained import with_train
from fastssl.augment.audio_policies import AudioPolicy
from fastssl.data.audio_views import AudioViews
from fastssl.data.tones import FACTORS, TonesSource, draw_factors
from fastssl.engine.export import read_weights
from fastssl.engine.guard import Guard
from fastssl.engine.optim import build_optimizer, learning_rate
from fastssl.engine.step import TrainStep, place, place_batch
from fastssl.evaluation.few_shot import few_shot
from fastssl.nn.logmel import LogMel
from fastssl.recipes.catalogue import default_run
from fastssl.recipes.encoders import build_method
from fastssl.recipes.readouts import FeaturesFn
from fastssl.recipes.run import Run

RATE, WINDOW, HOP, BANDS = 8000, 512, 256, 32
WAYS = {name: min(5, len(classes)) for name, classes in FACTORS.items()}
"""Five, or as many as the factor has classes: the envelope 4; octave, modulation and noise 3."""
CPU = torch.device("cpu")
_CHUNK = 250


def heard(seed: int, policy: AudioPolicy) -> TonesSource:
    """Tones in the small setting."""
    front = LogMel(sample_rate=RATE, n_fft=WINDOW, hop=HOP, n_mels=BANDS)
    views = AudioViews(policy=policy, sample_rate=RATE, front=front)
    return TonesSource(seed=seed, views=views)


def run_of(method: str, seed: int, steps: int) -> Run:
    """The method's run on Tones, for so many steps of which a tenth warms up, to 40."""
    run = default_run(method, "tones")
    return with_train(run, seed=seed, max_steps=steps, warmup_steps=min(40, steps // 10))


def together(runs: Mapping[str, Run], source: TonesSource, folder: Path) -> dict[str, nn.Module]:
    """The runs' methods, trained on the same batches as each would be alone; in eval mode.

    They agree in seed, batch size and steps. Weights are kept in ``folder``; nothing is trained
    where all are there.
    """
    methods = {name: build_method(run) for name, run in runs.items()}
    files = {name: folder / f"{name}.safetensors" for name in runs}
    for method in methods.values():
        place(method, CPU)
    if all(file.is_file() for file in files.values()):
        for name, method in methods.items():
            method.load_state_dict(read_weights(files[name]))
    else:
        _train(runs, methods, source)
        folder.mkdir(parents=True, exist_ok=True)
        for name, method in methods.items():
            save_file({k: t.contiguous() for k, t in method.state_dict().items()}, files[name])
    return {name: method.eval().requires_grad_(False) for name, method in methods.items()}


def _train(runs: Mapping[str, Run], methods: dict[str, nn.Module], source: TonesSource) -> None:
    """As the engine's loop, without its checkpoints and logs."""
    first = next(iter(runs.values())).train
    total = first.max_steps
    assert total is not None
    steps = {name: _step(methods[name], run, total) for name, run in runs.items()}
    torch.manual_seed(first.seed + 1)
    batches = source.batches(batch_size=first.batch_size, seed=first.seed, device=CPU)
    for step in range(total):
        batch = [place_batch(next(batches), CPU)]
        for name, (train, guard, peak) in steps.items():
            lr = learning_rate(step, peak=peak, total=total, warmup=runs[name].train.warmup_steps)
            train(batch, step=step, lr=lr)
            guard.stop_if_diverged(first.max_bad_steps)


def _step(method: nn.Module, run: Run, total: int) -> tuple[TrainStep, Guard, float]:
    method.train()
    guard, optimizer = Guard(method, CPU), build_optimizer(method, run.train)
    train = TrainStep(method, optimizer, guard, device=CPU, precision="fp32", total=total)
    return train, guard, optimizer.param_groups[0]["lr"]


class Objects:
    """The first ``limit`` objects of "train" or "test": clips as they are, and all factors."""

    def __init__(self, source: TonesSource, split: str, limit: int, *, seed: int) -> None:
        self._labelled = source.labelled(split, limit)
        self.clean_NCMT = torch.cat(list(self._labelled.images(_CHUNK)))
        factor_NK = draw_factors(np.arange(limit), seed=seed, split=split)
        self.classes = {name: torch.from_numpy(factor_NK[:, k]) for k, name in enumerate(FACTORS)}

    def changed(self, operator: str, limit: int) -> Tensor:
        """(limit, C, M, T): the first clips after one augmentation alone."""
        assert self._labelled.redraw is not None
        return self._labelled.redraw(np.arange(limit), 0, operator)


@torch.no_grad()
def features(encode: FeaturesFn, x_NCMT: Tensor) -> Tensor:
    """(N, F) of any number of clips."""
    return torch.cat([encode(part_NCMT) for part_NCMT in x_NCMT.split(_CHUNK)])


def accuracies(
    feature_NF: Tensor, classes: Mapping[str, Tensor], *, episodes: int
) -> dict[str, float]:
    """{factor: 1-shot accuracy in %, logistic, in WAYS ways}."""
    found = {}
    for name, label_N in classes.items():
        settings = {"ways": WAYS[name], "shots": 1, "queries": 5, "episodes": episodes}
        scores = dict(few_shot(feature_NF, label_N, classifiers=("logistic",), **settings))
        found[name] = 100 * scores["logistic_top1"]
    return found


def bands(x_NCMT: Tensor) -> Tensor:
    """(N, 2 M): mean and deviation of every band over time, in units of 20 dB; nothing learned."""
    x_NMT = x_NCMT[:, 0] / 20
    return torch.cat([x_NMT.mean(2), x_NMT.std(2)], dim=1)
