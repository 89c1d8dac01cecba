"""``python -m fastssl.evaluate VERB --run DIR``: score a run's exported encoder.

Needs the run's config.yaml and export/backbone.safetensors, no checkpoint. Each number is printed
with its protocol and appended to DIR/evaluation/scores.jsonl.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from fastssl import _extras
from fastssl._cli import guarded, parse_verb

DESCRIPTION = """\
Score the encoder that a run exported.

  python -m fastssl.evaluate ridge --run runs/simclr-spirograph-1
  python -m fastssl.evaluate knn --run runs/simclr-photos-1 --data other_photos
"""


@dataclass(frozen=True, kw_only=True)
class Common:
    """Settings of every read-out."""

    run: Path
    """Run folder with config.yaml and export/backbone.safetensors."""
    data: str | None = None
    """Data to score on: `spirograph`, `tones` or a folder with one sub-folder per class. Default:
    the data of the run."""
    factor: str | None = None
    """Label of `tones`: timbre, pitch_class, octave, envelope, modulation or noise. Default: that
    of the run."""
    train_images: int | None = None
    """Images to fit on. Default: 6000 for Spirograph and Tones, all of a folder's train split."""
    test_images: int | None = None
    """Images to score. Default: 2000 for Spirograph and Tones, all of a folder's test split."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    workers: int = 2
    """Threads that decode images."""


@dataclass(frozen=True, kw_only=True)
class Knn(Common):
    """Weighted k-nearest-neighbour classification on cosine similarity (Wu et al. 2018)."""

    k: int | None = None
    """Neighbours that vote. Default: 20, or all train images where they are fewer."""
    temperature: float = 0.07
    """Divides the similarity in a vote's weight, exp(similarity / temperature)."""


@dataclass(frozen=True, kw_only=True)
class Linear(Common):
    """Logistic regression on the frozen features, full-batch L-BFGS."""


@dataclass(frozen=True, kw_only=True)
class Ridge(Common):
    """Ridge regression of continuous targets, in closed form."""


@dataclass(frozen=True, kw_only=True)
class Averaging(Common):
    """Ridge or logistic regression on features averaged over augmented views (InvCLR)."""

    averages: tuple[int, ...] = (1, 5, 30)
    """Views of each image that are averaged, of the train and of the test split."""


@dataclass(frozen=True, kw_only=True)
class Meter(Common):
    """Invariance: cosine similarity by augmentation, conditional over total variance."""

    draws: int = 10
    """Views of each test image for the variances."""


@dataclass(frozen=True, kw_only=True)
class Alpha(Common):
    """Ridge regression of the nuisance parameters (Spirograph)."""


@dataclass(frozen=True, kw_only=True)
class Compression(Common):
    """Bits of pixels, features, code and sample, and the accuracy from each (stochastic runs)."""

    input_bits: int | None = None
    """Of one image. Default: 8 for each value that the encoder is given."""
    codes: Path | None = None
    """Write the hard codes of both splits, packed to bits, into this .npz file."""


@dataclass(frozen=True, kw_only=True)
class FewShot(Common):
    """N-way k-shot episodes on the test split: nearest centroid, ridge, logistic regression."""

    ways: int = 5
    """Classes of an episode."""
    shots: int = 1
    """Labelled samples of each class."""
    queries: int = 15
    """Unlabelled samples of each class."""
    episodes: int = 10_000
    """Episodes."""


@dataclass(frozen=True, kw_only=True)
class Invariance(Common):
    """The invariance vector that a task wants of an amortised run, and the score at each corner."""

    targets: Literal["own", "nuisances"] = "own"
    """The data's own targets, or (Spirograph) the parameters that vary between views."""
    steps: int = 60
    """Steps of the vector."""


VERBS: dict[str, type[Common]] = {
    "knn": Knn,
    "linear": Linear,
    "ridge": Ridge,
    "averaging": Averaging,
    "meter": Meter,
    "alpha": Alpha,
    "compression": Compression,
    "few-shot": FewShot,
    "invariance": Invariance,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 an error of the user's."""
    return guarded(lambda: _main(sys.argv[1:] if argv is None else list(argv)))


def _main(argv: list[str]) -> int:
    _extras.check("tyro", "yaml", "safetensors", extra="train")
    config = parse_verb(VERBS, argv, prog="python -m fastssl.evaluate", text=DESCRIPTION)
    from fastssl.recipes import assess

    kind = next(name for name, verb in VERBS.items() if type(config) is verb)
    shared = {field.name for field in fields(Common)}
    options = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in shared}
    record = assess.evaluate(
        kind,
        folder=config.run,
        data=config.data,
        train_images=config.train_images,
        test_images=config.test_images,
        device=config.device,
        workers=config.workers,
        factor=config.factor,
        **options,
    )
    print("\n".join(assess.describe(record)))
    try:
        assess.append_record(config.run, record)
    except OSError as error:  # a score is a score, also of a run that may only be read
        print(f"fastssl: warning: the score was not recorded: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
