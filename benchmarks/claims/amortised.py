"""Amortised invariances on Spirograph: learned vectors, beside networks dedicated to one corner.

Bits (geometry, colour), 1: invariant to it. The error is the squared one of the ridge probe.
"""

# shapes: N images, C channels, S side, A nuisances, K bits, F features, T targets
from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.claims.amortised_rows import CORNERS, GRID, NOTES, PAPER, TASKS, TITLE, rows
from benchmarks.claims.seeds import Length
from benchmarks.claims.trained import features_of, frozen, trained, with_method, with_train
from fastssl.augment.spirograph import NUISANCES, PRESETS, draw_nuisances, render
from fastssl.data.spirograph import SpirographSource
from fastssl.evaluation.features import extract
from fastssl.evaluation.invariance import learn_vector
from fastssl.evaluation.ridge import ridge
from fastssl.recipes.catalogue import default_run
from fastssl.recipes.encoders import Conditioned, build_encoder
from fastssl.recipes.readouts import FeaturesFn
from fastssl.recipes.run import Run

__all__ = ["NOTES", "PAPER", "TITLE", "one_seed", "rows"]

SIDE = 16  # of the images, in pixels
STEPS = {"full": 3000, "quick": 600}
DEDICATED_SHARE = 3  # a dedicated network sees its corner as often as the amortised one does
VECTOR: dict[str, Any] = {"steps": 60, "batch": 512, "rate": 0.05}
DEDICATED = {"01": "spirograph-colour", "10": "spirograph-geometry", "11": "spirograph"}
READ_OUT, CHOSEN_ON, TESTED_ON, LOOKED_AT = 2400, 600, 1000, 300
_CHUNK = 500


def one_seed(seed: int, *, length: Length, folder: Path) -> dict[str, float]:
    """Each task's error under every vector and on dedicated networks; vectors, cosines, counts."""
    tasks, figures = _Tasks(seed), {}
    for generator in ("full", "low-rank"):
        run = with_method(_run("amortised", seed, length), generator=generator)
        net = frozen(trained(run, folder / generator), run)
        encode = Conditioned(net, torch.device("cpu"))
        figures[f"{generator}/count"] = _count(net)
        for corner in CORNERS:
            errors = tasks.errors(partial(_under, encode, _bits(corner)), "test")
            figures |= {f"{task}@{corner}/{generator}": e for task, e in errors.items()}
        if generator == "full":
            figures |= _learned(tasks, encode) | _cosines(tasks, encode)
    figures["ordinary/count"] = _count(build_encoder(_run("simclr", seed, length)))
    best = {task: _best(figures, task) for task in TASKS}
    for corner in sorted(set(best.values())):
        steps = STEPS[length] // DEDICATED_SHARE
        run = _run("simclr", seed, length)
        run = with_train(run, augment=DEDICATED[corner], max_steps=steps, readout_every=steps)
        errors = tasks.errors(features_of(trained(run, folder / f"only-{corner}"), run), "test")
        figures |= {f"{task}/dedicated": errors[task] for task in TASKS if best[task] == corner}
    return figures


class _Tasks:
    """Targets of each task: on images to read out, to choose the best corner on, to test on."""

    def __init__(self, seed: int) -> None:
        source = SpirographSource(seed=seed, image_size=SIDE)
        self.seed = seed
        self.train = source.labelled("train", READ_OUT + CHOSEN_ON)
        self.test = source.labelled("test", TESTED_ON)

    def wanted(self, task: str, split: str) -> Tensor:
        """(N, T) of "train" or "test"."""
        part = getattr(self, split)
        known = {name: part.target[:, [c]] for c, name in enumerate(part.names)}
        known |= {name: part.nuisance[:, [c]] for c, name in enumerate(part.varied)}
        return torch.cat([known[name] for name in TASKS[task]], dim=1)

    def errors(self, encode: FeaturesFn, split: str) -> dict[str, float]:
        """{task: squared error} on the test split, or on the "validation" part of the train one."""
        train_NF = extract(encode, self.train.images(_CHUNK))
        test_NF = extract(encode, self.test.images(_CHUNK)) if split == "test" else None
        found = {}
        for task in TASKS:
            train_NT = self.wanted(task, "train")
            pairs = (train_NF[:READ_OUT], train_NT[:READ_OUT])
            if test_NF is None:
                others = (train_NF[READ_OUT:], train_NT[READ_OUT:])
            else:
                others = (test_NF, self.wanted(task, "test"))
            found[task] = dict(ridge(*pairs, *others))["mse"]
        return found


def _learned(tasks: _Tasks, encode: Conditioned) -> dict[str, float]:
    """The vector that each task learns, its error, and the corner that validation likes best."""
    chosen = {c: tasks.errors(partial(_under, encode, _bits(c)), "validation") for c in CORNERS}
    figures = {f"{t}@{c}/validation": e for c, errors in chosen.items() for t, e in errors.items()}

    def features(position_N: Tensor, bits_K: Tensor) -> Tensor:
        return encode(tasks.train.render(position_N.numpy()), bits_K)

    for task in TASKS:
        wanted_NT = tasks.wanted(task, "train")[:READ_OUT]
        bits_K = learn_vector(features, wanted_NT, num_bits=2, seed=tasks.seed, **VECTOR)
        figures |= {f"{task}/bit{k}": bit for k, bit in enumerate(bits_K.tolist())}
        figures[f"{task}/learned"] = tasks.errors(partial(_under, encode, bits_K), "test")[task]
        best_K = _bits(_best(figures, task))
        figures |= {f"{task}/best{k}": bit for k, bit in enumerate(best_K.tolist())}
        figures[f"{task}/distance"] = float((bits_K - best_K).abs().max())
    return figures


def _cosines(tasks: _Tasks, encode: Conditioned) -> dict[str, float]:
    """Mean cosine of features before and after a group is drawn afresh, by that group's bit."""
    target_NT, before_NA = tasks.test.target[:LOOKED_AT], tasks.test.nuisance[:LOOKED_AT]
    where = {"seed": tasks.seed, "epoch": 1, "stream": "readout/test"}
    fresh_NA = torch.from_numpy(draw_nuisances(np.arange(LOOKED_AT), **where)).float()
    figures = {}
    for position, group in enumerate(PRESETS["spirograph-2"].groups):
        after_NA, columns = before_NA.clone(), [NUISANCES.index(name) for name in group]
        after_NA[:, columns] = fresh_NA[:, columns]
        pair = [render(target_NT, some_NA, side=SIDE) for some_NA in (before_NA, after_NA)]
        for bit in GRID:
            bits_K = torch.ones(2)
            bits_K[position] = bit
            first_NF, second_NF = (encode(x_NCSS, bits_K).double() for x_NCSS in pair)
            cosine_N = F.cosine_similarity(first_NF, second_NF, dim=1)
            figures[f"cosine/{position}/{bit}"] = float(cosine_N.mean())
    return figures


def _best(figures: dict[str, float], task: str) -> str:
    """Of the corners that were trained, the one with the least error on the validation draw."""
    return min(DEDICATED, key=lambda corner: figures[f"{task}@{corner}/validation"])


def _run(method: str, seed: int, length: Length) -> Run:
    run = default_run(method, "spirograph")
    steps = STEPS[length]
    return with_train(run, seed=seed, max_steps=steps, readout_every=steps, image_size=SIDE)


def _bits(corner: str) -> Tensor:
    return torch.tensor([float(bit) for bit in corner])


def _under(encode: Conditioned, bits_K: Tensor, x_NCSS: Tensor) -> Tensor:
    return encode(x_NCSS, bits_K)


def _count(net: nn.Module) -> float:
    """Parameters that make the kernels: of the generator, or the kernels themselves."""
    made = [p for name, p in net.named_parameters() if name.startswith(("embed.", "kernels."))]
    plain = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d)]
    return float(sum(p.numel() for p in made or plain))
