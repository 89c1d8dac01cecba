"""Scores an exported encoder: run folder and data in, a record with its protocol out."""

from __future__ import annotations

import contextlib
import json
import math
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fastssl.data.sources import open_source, refuse_missing
from fastssl.engine.device import resolve_device
from fastssl.engine.files import write_json
from fastssl.nn.backbones import stem_name
from fastssl.recipes.catalogue import EMBEDDED, data_kind
from fastssl.recipes.compression import TakenApart
from fastssl.recipes.encoders import Conditioned, by_default, hears, load_encoder
from fastssl.recipes.feature_cache import KeptEncoder
from fastssl.recipes.foreign import foreign_run, load_foreign
from fastssl.recipes.readouts import Readout, make_readout
from fastssl.recipes.run import Run, own_data, read_run
from fastssl.recipes.studies import STUDIES, Study, make_study

RECORDS = "evaluation/scores.jsonl"  # inside the run folder
KEPT = "evaluation"
EMBEDDED_IMAGES = {"train": 6000, "test": 2000}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The encoder that is scored, and the run whose settings tell what it is given."""

    run: Run
    net: nn.Module
    name: str
    folder: Path | None  # where features are kept; None: nowhere
    trained_on: str | None = None  # the run's data; None: there is no telling


def subject_of_run(folder: Path, *, cache: Literal["keep", "off"] = "keep") -> Subject:
    """The export of a run. ValueError for a folder that is no run, or a damaged export."""
    run = read_run(folder)
    kept = folder if cache == "keep" else None
    net, data = load_encoder(folder, run), run.train.data
    return Subject(run=run, net=net, name=str(folder), folder=kept, trained_on=data)


def subject_of_weights(
    path: Path,
    *,
    backbone: str | None,
    image_size: int | None,
    prefix: str | None,
    data: str | None,
    front: str | None = None,
) -> Subject:
    """A safetensors file of any encoder; see recipes.foreign. No features are kept."""
    run = foreign_run(backbone=backbone, image_size=image_size, data=data, front=front)
    net = load_foreign(path, run, prefix=prefix)
    return Subject(run=run, net=net, name=str(path), folder=None)


def evaluate(
    kind: str,
    *,
    subject: Subject,
    data: str | None,
    train_images: int | None,
    test_images: int | None,
    device: str,
    workers: int,
    factor: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Score an encoder; ``append_record`` keeps what it returns.

    kind: one of READOUTS or STUDIES; options: its own, as k and temperature of kNN; factor: the
    label of tones, None for the run's. Raises ValueError for labels that do not fit.
    """
    _check_counts({"train-images": train_images, "test-images": test_images, "k": options.get("k")})
    run, where = subject.run, resolve_device(device)
    source, policy = _opened(subject, data, device=where, workers=workers, factor=factor)
    data = data or run.train.data
    if source.kind in EMBEDDED:
        train_images = train_images or EMBEDDED_IMAGES["train"]
        test_images = test_images or EMBEDDED_IMAGES["test"]
    make = make_study if kind in STUDIES else make_readout
    readout = make(source, kind, train_limit=train_images, test_limit=test_images, **options)
    with torch.no_grad():
        encode: Any = _encoder(kind, subject, where)
        metrics = dict(readout(encode))
    record = make_record(
        readout,
        metrics,
        run=run,
        data=data,
        test_split=split_name(source, own=data == subject.trained_on),
        by="fastssl.evaluate",
        factor=factor,
    )
    if kind in ("meter", "sensitivity", "averaging"):
        record["protocol"]["policy"] = policy
    record["encoder"] = subject.name
    record["extractions_saved"] = getattr(encode, "found", 0)
    return record


def _opened(
    subject: Subject,
    data: str | None,
    *,
    device: torch.device,
    workers: int,
    factor: str | None,
) -> tuple[Any, str]:
    """The source to score on (None: the run's own data), and the policy of its views."""
    train = subject.run.train
    whose = own_data(train.data) if data is None else contextlib.nullcontext()
    data = data or train.data
    if factor is not None and data != "tones":
        raise ValueError(f"--factor {factor}: goes with --data tones")
    with whose:
        refuse_missing(data)
        sounds = _fitting(data, subject.run, subject.name)
        alike = sounds or data_kind(data) == data_kind(train.data)
        source = open_source(
            data,
            image_size=train.image_size,
            seed=train.seed,
            augment=train.augment if alike else None,  # the same normalisation
            factor=factor or train.factor,
            front=train.front,
            workers=workers,
            device=device,
        )
    return source, train.augment if alike else "spirograph" if data == "spirograph" else "simclr"


def _encoder(kind: str, subject: Subject, device: torch.device) -> Any:
    """A function of images; for some kinds of readout one of a form of their own."""
    if kind == "invariance":
        return Conditioned(subject.net, device)
    if kind == "compression":
        return TakenApart(by_default(subject.net), device)
    kept = None if subject.folder is None else subject.folder / KEPT
    train = subject.run.train
    identity = f"{train.backbone} {train.image_size} {subject.run.method}"
    return KeptEncoder(by_default(subject.net), device, folder=kept, identity=identity)


def _check_counts(counts: dict[str, int | None]) -> None:
    for flag, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"--{flag}: expected at least 1, received {count}")


def _fitting(data: str, run: Run, name: str) -> bool:
    """Whether the data are sounds; ValueError where the run's encoder takes the other kind."""
    sounds = data_kind(data) in ("tones", "sounds")
    if sounds != hears(run.train):
        takes, given = ("images", "sounds") if sounds else ("sounds", "images")
        raise ValueError(f"--data {data}: the encoder of {name} takes {takes}, not {given}")
    return sounds


def make_record(
    readout: Readout | Study,
    metrics: dict[str, float],
    *,
    run: Run,
    data: str,
    test_split: str,
    by: str,
    factor: str | None = None,
) -> dict[str, Any]:
    """One line of ``RECORDS``: when, by which command, what, the numbers, how they were taken."""
    train = run.train
    facts = readout.protocol()
    protocol = {
        **facts,
        "backbone": train.backbone,
        "stem": stem_name(train.backbone, train.image_size),
        "image_size": train.image_size,
        "crop": facts.get("crop", crop_name(data, train.image_size)),
        "test_split": test_split,
        "precision": "fp32",
    }
    if data == "tones":
        protocol["label"] = factor or train.factor
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "by": by,
        "readout": readout.kind,
        "data": data,
        "metrics": metrics,
        "protocol": protocol,
    }


def crop_name(data: str, image_size: int) -> str:
    """What part of an image evaluation sees."""
    if data in EMBEDDED:
        return "none (drawn at this size)"
    if data_kind(data) == "sounds":
        return "central second"
    return "central square of the shorter side" + ("" if image_size < 96 else " * 224/256")


def split_name(source: Any, *, own: bool) -> str:
    """Where the test images come from; ``own``: the encoder was trained on these data."""
    if source.kind in EMBEDDED:
        return "objects of their own"
    if source.has_test_split:
        return "the test split of the data"
    return f"a fifth of the labelled images{', seen by pre-training' if own else ''}"


def recorded_by(folder: Path, by: str) -> bool:
    """Whether the run's ``RECORDS`` hold a line of the command ``by``."""
    try:
        lines = (folder / RECORDS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return False
    return any(f'"by": "{by}"' in line for line in lines)


def append_record(folder: Path, record: dict[str, Any]) -> None:
    """Append one line to the run's ``RECORDS``, on disk when this returns."""
    (folder / RECORDS).parent.mkdir(exist_ok=True)
    with open(folder / RECORDS, "a", encoding="utf-8") as file:
        file.write(json.dumps(_without_nan(record), allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def write_record(path: Path, record: dict[str, Any]) -> None:
    """The record as a JSON file, whole or not at all."""
    write_json(path, _without_nan(record))


def _without_nan(value: Any) -> Any:
    """The same as JSON has it: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def describe(record: dict[str, Any]) -> list[str]:
    """The record as lines for people: the numbers, then the protocol."""
    width = max(16, *map(len, record["metrics"]))
    lines = [f"{name:<{width}} {value:.5g}" for name, value in record["metrics"].items()]
    lines += [f"  {key}: {value}" for key, value in record["protocol"].items()]
    if record.get("extractions_saved"):
        lines.append(f"  features: {record['extractions_saved']} extractions saved by kept ones")
    return lines
