"""The baselines on Spirograph: each above raw pixels and above an encoder that was not trained.

Lower mean squared error of the ridge probe is better.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.claims.rows import Row, lower
from benchmarks.claims.seeds import Length
from benchmarks.claims.trained import features_of, trained, untrained, with_train
from fastssl.data.spirograph import SpirographSource
from fastssl.recipes.catalogue import default_run
from fastssl.recipes.readouts import make_readout, pixels

TITLE = "Baselines learn"
PAPER = "SwAV, DINO, MoCo v2"
NOTES = ""
METHODS = ("mocov2", "swav", "dino")
STEPS = {"full": 1000, "quick": 300}


def one_seed(seed: int, *, length: Length, folder: Path) -> dict[str, float]:
    """Mean squared errors on objects that training has not seen."""
    source = SpirographSource(seed=seed)
    readout = make_readout(source, "ridge", train_limit=6000, test_limit=2000)
    figures = {"pixels": readout.score(pixels)}
    for method in METHODS:
        run = with_train(default_run(method, "spirograph"), seed=seed, max_steps=STEPS[length])
        figures[f"{method}/untrained"] = readout.score(untrained(run))
        figures[method] = readout.score(features_of(trained(run, folder / method), run))
    return figures


def rows(figures: dict[str, list[float]]) -> list[Row]:
    """Two lines a method."""
    found = []
    for method in METHODS:
        found.append(lower(f"{method}: below pixels", figures[method], figures["pixels"], errors=2))
        floor = figures[f"{method}/untrained"]
        found.append(lower(f"{method}: below its untrained self", figures[method], floor, errors=2))
    return found
