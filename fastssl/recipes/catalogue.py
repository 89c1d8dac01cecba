"""RECIPES: whose defaults a run has, by method and kind of data. Imports no torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from fastssl.recipes import folder, simclr, spirograph
from fastssl.recipes.run import Run, method_config

RECIPES: dict[tuple[str, str], Callable[[], Run]] = {
    ("simclr", "spirograph"): simclr.spirograph,
    ("simclr", "folder"): simclr.folder,
    ("mocov2", "spirograph"): spirograph.mocov2,
    ("mocov3", "spirograph"): spirograph.mocov3,
    ("simsiam", "spirograph"): spirograph.simsiam,
    ("byol", "spirograph"): spirograph.byol,
    ("swav", "spirograph"): spirograph.swav,
    ("dino", "spirograph"): spirograph.dino,
    ("barlow", "spirograph"): spirograph.barlow,
    ("vicreg", "spirograph"): spirograph.vicreg,
    ("invclr", "spirograph"): spirograph.invclr,
    ("amortised", "spirograph"): spirograph.amortised,
    ("cissl", "spirograph"): spirograph.cissl,
    ("dissl", "spirograph"): spirograph.dissl,
    ("stochastic", "spirograph"): spirograph.stochastic,
    ("mocov2", "folder"): folder.mocov2,
    ("mocov3", "folder"): folder.mocov3,
    ("simsiam", "folder"): folder.simsiam,
    ("byol", "folder"): folder.byol,
    ("swav", "folder"): folder.swav,
    ("dino", "folder"): folder.dino,
    ("barlow", "folder"): folder.barlow,
    ("vicreg", "folder"): folder.vicreg,
    ("supcon", "folder"): folder.supcon,
    ("invclr", "folder"): folder.invclr,
    ("amortised", "folder"): folder.amortised,
    ("cissl", "folder"): folder.cissl,
    ("dissl", "folder"): folder.dissl,
    ("stochastic", "folder"): folder.stochastic,
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
    kind = data_kind(data)
    if (method, kind) not in RECIPES:
        raise ValueError(f"--method {method}: needs classes, which {kind} does not have")
    run = RECIPES[method, kind]()
    return dataclasses.replace(run, train=dataclasses.replace(run.train, data=data))
