"""RECIPES: whose defaults a run has, by method and kind of data. Imports no torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from fastssl.recipes import simclr
from fastssl.recipes.run import Run, method_config

RECIPES: dict[tuple[str, str], Callable[[], Run]] = {
    ("simclr", "spirograph"): simclr.spirograph,
    ("simclr", "folder"): simclr.folder,
}


def data_kind(data: str) -> str:
    """ "spirograph", or "folder" for anything that must be a path."""
    return data if any(data == kind for _, kind in RECIPES) and data != "folder" else "folder"


def short_name(data: str) -> str:
    """What ``data`` is called in the name of a run folder: "spirograph", the name of a
    torchvision set, or that of the folder or file."""
    if data_kind(data) != "folder":
        return data
    if data.startswith("torchvision:"):
        return data.split(":")[1].lower() or "torchvision"
    name = Path(data).absolute().name
    for suffix in (".npy", ".npz", ".safetensors", ".tar"):
        name = re.sub(r"\{[^}]*\}", "", name).removesuffix(suffix)
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "folder"


def default_run(method: str, data: str) -> Run:
    """The recipe's Run for this method on this data, with ``data`` as given."""
    method_config(method)
    run = RECIPES[method, data_kind(data)]()
    return dataclasses.replace(run, train=dataclasses.replace(run.train, data=data))
