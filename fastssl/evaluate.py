"""``python -m fastssl.evaluate VERB --run DIR``: score a run's exported encoder.

Needs the run's config.yaml and export/backbone.safetensors, no checkpoint; or --weights FILE with
--backbone NAME, any encoder in safetensors. Each number is printed with its protocol and appended
to DIR/evaluation/scores.jsonl; features are kept beside it for the next verb. docs/evaluation.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from fastssl import _extras
from fastssl._cli import guarded, parse_verb

DESCRIPTION = """\
Score the encoder that a run exported.

  python -m fastssl.evaluate ridge --run runs/simclr-spirograph-1
  python -m fastssl.evaluate knn --run runs/simclr-photos-1 --data other_photos
  python -m fastssl.evaluate linear --weights net.safetensors --backbone resnet50 --data photos
"""


@dataclass(frozen=True, kw_only=True)
class Common:
    """Settings of every read-out."""

    run: Path | None = None
    """Run folder with config.yaml and export/backbone.safetensors."""
    weights: Path | None = None
    """Instead of --run: a safetensors file with the tensors of --backbone."""
    backbone: str | None = None
    """With --weights: convnet, or the name of a torchvision or timm model."""
    image_size: int | None = None
    """With --weights: side of the images in pixels. Default: 224, 32 for Spirograph."""
    prefix: str | None = None
    """With --weights: what the encoder's keys begin with, as `backbone.`. Default: found out."""
    front: Literal["logmel", "mel-magnitude-phase"] | None = None
    """With --weights, on sounds: what the encoder is given of them. Default: logmel."""
    json: Path | None = None
    """File that the record is written to, beside the run's evaluation/scores.jsonl."""
    cache: Literal["keep", "off"] = "keep"
    """Features of a run: kept in RUN/evaluation for the next verb, or neither read nor written."""
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
    windows: float | None = None
    """Seconds of the windows that each sound of a folder is cut into: one is a sample's support,
    all of a query's vote. 0: its central second alone. Default: 5."""
    normalise: Literal["clip", "none"] = "clip"
    """Before it is cut, each sound less its mean and over its deviation, or as it is."""


@dataclass(frozen=True, kw_only=True)
class Invariance(Common):
    """The invariance vector that a task wants of an amortised run, and the score at each corner."""

    targets: Literal["own", "nuisances"] = "own"
    """The data's own targets, or (Spirograph) the parameters that vary between views."""
    steps: int = 60
    """Steps of the vector."""
    rate: float = 0.1
    """Adam's learning rate of the vector."""
    start: Literal["best", "half"] = "best"
    """Of the vector: the best of 1/2 and of the points half way to each corner, or 1/2."""


@dataclass(frozen=True, kw_only=True)
class LinearSgd(Common):
    """Linear probe by SGD as papers report it; weight decay chosen on a fifth of train."""

    lr: float = 0.3
    """Learning rate at the start of its cosine."""
    epochs: int = 100
    """Epochs."""
    batch_size: int = 512
    """Features of a step."""
    weight_decays: tuple[float, ...] = (1e-4, 1e-5, 1e-6)
    """Tried on a held-out fifth of the train images."""


@dataclass(frozen=True, kw_only=True)
class Mlp(LinearSgd):
    """MLP probe by SGD: hidden layers with BatchNorm and ReLU; otherwise as linear-sgd."""

    hidden_dims: tuple[int, ...] = (2048, 2048)
    """Widths of the hidden layers."""


@dataclass(frozen=True, kw_only=True)
class Fractions(Common):
    """Linear probe (ridge for continuous targets) from shares of the labels, stratified."""

    fractions: tuple[float, ...] = (0.05, 0.1857, 0.3214, 0.4571, 0.5929, 0.7286, 0.8643, 1.0)
    """Shares of each class of the train split. Default: InvCLR's linspace(.05, 1, 8)."""


@dataclass(frozen=True, kw_only=True)
class Finetune(Common):
    """Fine-tuning of the whole encoder; the epoch is chosen on a fifth of the labelled images."""

    lr: float = 0.05
    """Learning rate for a batch of 256; scales with the batch."""
    epochs: int = 30
    """Epochs."""
    batch_size: int = 256
    """Images of a step."""
    fraction: float = 1.0
    """Share of the train labels that is used, stratified."""
    views: Literal["usual", "clean", "crop", "policy"] = "usual"
    """Trained on: clean images, random crops, or views of the run's policy. Usual: crops of images,
    else the policy's views."""


@dataclass(frozen=True, kw_only=True)
class Robustness(Common):
    """Score under shifted or widened variation, readout fitted anew and left as it was."""

    shift: str | None = None
    """Spirograph: h, background, foreground, each also with -wide; images: jitter. Default: all."""
    amounts: tuple[float, ...] | None = None
    """Of the shift; of jitter its strength. Default: InvCLR's, see docs/evaluation.md."""


@dataclass(frozen=True, kw_only=True)
class Sensitivity(Common):
    """Mahalanobis distance of features from those of the augmented image, over chance."""

    parts: int = 1
    """Parts of the features, of one width, that are looked at by themselves; 2 for MT-SLVR."""


@dataclass(frozen=True, kw_only=True)
class WeightShares(Common):
    """Shares of a linear classifier's weight on the parts of the features."""

    parts: int = 2
    """Parts of one width: MT-SLVR's halves are the contrastive and the predictive one."""


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
    "linear-sgd": LinearSgd,
    "mlp": Mlp,
    "fractions": Fractions,
    "finetune": Finetune,
    "robustness": Robustness,
    "sensitivity": Sensitivity,
    "weight-shares": WeightShares,
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
        subject=_subject(config, assess),
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
        if config.run is not None:
            assess.append_record(config.run, record)
    except OSError as error:  # a score is a score, also of a run that may only be read
        print(f"fastssl: warning: the score was not recorded: {error}", file=sys.stderr)
    if config.json is not None:
        assess.write_record(config.json, record)
    return 0


def _subject(config: Common, assess: Any) -> Any:
    """What is scored; ValueError unless the flags name one thing."""
    if (config.run is None) == (config.weights is None):
        raise ValueError("expected --run DIR, or --weights FILE with --backbone NAME: one of them")
    if config.weights is not None:
        return assess.subject_of_weights(
            config.weights,
            backbone=config.backbone,
            image_size=config.image_size,
            prefix=config.prefix,
            data=config.data,
            front=config.front,
        )
    for flag in ("backbone", "image_size", "prefix", "front"):
        if getattr(config, flag) is not None:
            raise ValueError(
                f"--{flag.replace('_', '-')}: goes with --weights; a run knows its own"
            )
    return assess.subject_of_run(config.run, cache=config.cache)


if __name__ == "__main__":
    sys.exit(main())
