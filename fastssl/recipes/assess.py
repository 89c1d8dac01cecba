"""Scores an exported encoder: run folder and data in, a record with its protocol out."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from fastssl.data.sources import open_source
from fastssl.engine.device import resolve_device
from fastssl.evaluation.features import encoder
from fastssl.nn.backbones import stem_name
from fastssl.recipes.catalogue import EMBEDDED, data_kind
from fastssl.recipes.compression import TakenApart
from fastssl.recipes.encoders import Conditioned, by_default, hears, load_encoder
from fastssl.recipes.readouts import Readout, make_readout
from fastssl.recipes.run import Run, read_run
from fastssl.recipes.studies import STUDIES, Study, make_study

RECORDS = "evaluation/scores.jsonl"  # inside the run folder
EMBEDDED_IMAGES = {"train": 6000, "test": 2000}


def evaluate(
    kind: str,
    *,
    folder: Path,
    data: str | None,
    train_images: int | None,
    test_images: int | None,
    device: str,
    workers: int,
    factor: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Score the encoder of the run in ``folder``; ``append_record`` keeps what it returns.

    kind: one of READOUTS or STUDIES; options: its own, as k and temperature of kNN; factor: the
    label of tones, None for the run's. Raises ValueError for a folder that is no run, a damaged
    export, or labels that do not fit.
    """
    _check_counts({"train-images": train_images, "test-images": test_images, "k": options.get("k")})
    run = read_run(folder)
    net = load_encoder(folder, run)
    data = data or run.train.data
    where = resolve_device(device)
    sounds = _fitting(data, run, folder)
    alike = sounds or data_kind(data) == data_kind(run.train.data)
    source = open_source(
        data,
        image_size=run.train.image_size,
        seed=run.train.seed,
        augment=run.train.augment if alike else None,  # the same normalisation
        factor=factor or run.train.factor,
        workers=workers,
        device=where,
    )
    if source.kind in EMBEDDED:
        train_images = train_images or EMBEDDED_IMAGES["train"]
        test_images = test_images or EMBEDDED_IMAGES["test"]
    make = make_study if kind in STUDIES else make_readout
    readout = make(source, kind, train_limit=train_images, test_limit=test_images, **options)
    with torch.no_grad():
        told = kind == "invariance"
        encode: Any = Conditioned(net, where) if told else encoder(by_default(net), where)
        if kind == "compression":
            encode = TakenApart(by_default(net), where)
        metrics = dict(readout(encode))
    return make_record(readout, metrics, run=run, data=data, by="fastssl.evaluate", factor=factor)


def _check_counts(counts: dict[str, int | None]) -> None:
    for flag, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"--{flag}: expected at least 1, received {count}")


def _fitting(data: str, run: Run, folder: Path) -> bool:
    """Whether the data are sounds; ValueError where the run's encoder takes the other kind."""
    sounds = data_kind(data) in ("tones", "sounds")
    if sounds != hears(run.train):
        takes, given = ("images", "sounds") if sounds else ("sounds", "images")
        raise ValueError(f"--data {data}: the encoder of {folder} takes {takes}, not {given}")
    return sounds


def make_record(
    readout: Readout | Study,
    metrics: dict[str, float],
    *,
    run: Run,
    data: str,
    by: str,
    factor: str | None = None,
) -> dict[str, Any]:
    """One line of ``RECORDS``: when, by which command, what, the numbers, how they were taken."""
    train = run.train
    protocol = {
        **readout.protocol(),
        "backbone": train.backbone,
        "stem": stem_name(train.backbone, train.image_size),
        "image_size": train.image_size,
        "crop": crop_name(data, train.image_size),
        "test_split": split_name(data),
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


def split_name(data: str) -> str:
    """Where the test images come from."""
    if data in EMBEDDED:
        return "objects of their own"
    return "DATA/val or DATA/test; without them a fifth of the files, seen by pre-training"


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
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def describe(record: dict[str, Any]) -> list[str]:
    """The record as lines for people: the numbers, then the protocol."""
    lines = [f"{name:<16} {value:.5g}" for name, value in record["metrics"].items()]
    lines += [f"  {key}: {value}" for key, value in record["protocol"].items()]
    return lines
