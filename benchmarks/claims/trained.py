"""Encoders that a claim looks at, trained by the recipes in run folders: kept, and resumed."""

# shapes: N images, C channels, S side, F features
from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import torch
from torch import nn

from fastssl.evaluation.features import encoder
from fastssl.recipes import assemble
from fastssl.recipes.encoders import build_encoder, by_default, load_encoder
from fastssl.recipes.readouts import FeaturesFn
from fastssl.recipes.run import Run


def trained(run: Run, folder: Path) -> Path:
    """``folder`` with ``run`` trained in it: at once where that was done before, and from its
    newest checkpoint where it was begun. What the run prints goes to ``folder``.log."""
    if (folder / "export" / "backbone.safetensors").is_file():
        return folder
    begun = (folder / "config.yaml").is_file()
    train = dataclasses.replace(run.train, out=folder, resume=begun, device="cpu")
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(f"{folder.name}.log")
    with open(log, "a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        status = assemble.train(dataclasses.replace(run, train=train))
    if status:
        raise RuntimeError(f"{folder}: training ended with status {status}; see {log}")
    return folder


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
