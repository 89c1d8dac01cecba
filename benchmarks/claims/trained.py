"""Encoders that a claim looks at, trained by the recipes in run folders: kept, and resumed."""

# shapes: N images, C channels, S side, F features
from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import torch
from torch import nn

from benchmarks.claims.kept import refuse_differences
from benchmarks.machine import commit
from fastssl.engine.config import as_plain
from fastssl.engine.files import write_text
from fastssl.evaluation.features import encoder
from fastssl.recipes import assemble
from fastssl.recipes.encoders import build_encoder, by_default, load_encoder
from fastssl.recipes.readouts import FeaturesFn
from fastssl.recipes.run import Run, read_run


def trained(run: Run, folder: Path) -> Path:
    """``folder`` with ``run`` trained in it: at once where that was done before, and from its
    newest checkpoint where it was begun. What the run prints goes to ``folder``.log.

    RuntimeError where the folder holds another run, or one of another commit: the figures would
    be stamped with settings and code that did not make them.
    """
    begun = (folder / "config.yaml").is_file()
    if begun:
        refuse_another(folder, run)
    if (folder / "export" / "backbone.safetensors").is_file():
        return folder
    train = dataclasses.replace(run.train, out=folder, resume=begun, device="cpu")
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_text(commit_file(folder), commit() + "\n")
    log = folder.with_name(f"{folder.name}.log")
    with open(log, "a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        status = assemble.train(dataclasses.replace(run, train=train))
    if status:
        raise RuntimeError(f"{folder}: training ended with status {status}; see {log}")
    return folder


def commit_file(folder: Path) -> Path:
    """What keeps the commit that trains in ``folder``: beside it, so that it is there from the
    start and a run that is resumed is of one commit too."""
    return folder.with_name(f"{folder.name}.commit")


def refuse_another(folder: Path, run: Run) -> None:
    """Raise RuntimeError, which names what differs, unless ``folder`` is of ``run`` and of now."""
    asked, file = _settings(run), commit_file(folder)
    try:
        kept = _settings(read_run(folder))
    except ValueError as error:  # a setting that has gone since, or a damaged file
        kept = {"config.yaml": str(error)}
    kept["commit"] = file.read_text(encoding="utf-8").strip() if file.is_file() else None
    asked["commit"] = commit()
    refuse_differences(str(folder), kept, asked)


def _settings(run: Run) -> dict[str, object]:
    """By name; where it is written, how it is begun and on what device make no other encoder."""
    train = {k: v for k, v in as_plain(run.train).items() if k not in ("out", "resume", "device")}
    return {
        **{f"train.{name}": value for name, value in train.items()},
        **{f"method.{name}": value for name, value in as_plain(run.method).items()},
    }


def with_train(run: Run, **settings: object) -> Run:
    """The run with other settings of the loop."""
    return dataclasses.replace(run, train=dataclasses.replace(run.train, **settings))  # type: ignore[arg-type]


def with_method(run: Run, **settings: object) -> Run:
    """The run with other settings of its method."""
    return dataclasses.replace(run, method=dataclasses.replace(run.method, **settings))


def frozen(folder: Path, run: Run) -> nn.Module:
    """The exported encoder, in eval mode, without gradients."""
    return load_encoder(folder, run).eval().requires_grad_(False)


def features_of(folder: Path, run: Run) -> FeaturesFn:
    """The exported encoder as a function of images (N, C, S, S) to features (N, F)."""
    return encoder(by_default(load_encoder(folder, run)), torch.device("cpu"))


def untrained(run: Run) -> FeaturesFn:
    """The same before training."""
    return encoder(by_default(build_encoder(run)), torch.device("cpu"))
