"""RECIPES: whose defaults a run has, by method and kind of data. Imports no torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from fastssl.data.sounds import holds_sounds
from fastssl.recipes import folder, simclr, spirograph, tones
from fastssl.recipes.published import published_run
from fastssl.recipes.run import Run, method_config

EMBEDDED = ("spirograph", "tones")
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
    ("simclr", "tones"): tones.simclr,
    ("simsiam", "tones"): tones.simsiam,
    ("amortised", "tones"): tones.amortised,
    ("mtslvr", "tones"): tones.mtslvr,
    ("mtslvr", "sounds"): tones.mtslvr_folder,
    ("simclr", "sounds"): tones.simclr_folder,
    ("simsiam", "sounds"): tones.simsiam_folder,
    ("amortised", "sounds"): tones.amortised_folder,
}


def data_kind(data: str) -> str:
    """ "spirograph" or "tones"; for a path "sounds" where it is a folder of them, else "folder"."""
    if data in EMBEDDED:
        return data
    return "sounds" if holds_sounds(data) else "folder"


def short_name(data: str) -> str:
    """What ``data`` is called in the name of a run folder: "spirograph", the name of a
    torchvision set, or that of the folder or file."""
    if data in EMBEDDED:
        return data
    if data.startswith("torchvision:"):
        return data.split(":")[1].lower() or "torchvision"
    name = Path(data).absolute().name
    for suffix in (".npy", ".npz", ".safetensors", ".tar"):
        name = re.sub(r"\{[^}]*\}", "", name).removesuffix(suffix)
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "folder"


def default_run(method: str, data: str, recipe: str | None = None) -> Run:
    """The recipe's Run for this method on this data, with ``data`` as given."""
    method_config(method)
    if recipe is not None:
        if data in EMBEDDED:
            raise ValueError(f"--recipe {recipe}: needs --data, a folder with its images")
        run = published_run(method, recipe)
        return dataclasses.replace(run, train=dataclasses.replace(run.train, data=data))
    kind = data_kind(data)
    if (method, kind) not in RECIPES:
        raise ValueError(_no_recipe(method, kind))
    run = RECIPES[method, kind]()
    return dataclasses.replace(run, train=dataclasses.replace(run.train, data=data))


def _no_recipe(method: str, kind: str) -> str:
    if method == "mtslvr":
        return "--method mtslvr: expected sounds (--data tones, or a folder of them)"
    if kind not in ("tones", "sounds"):
        return f"--method {method}: needs classes, which {kind} does not have"
    known = ", ".join(name for name, of in RECIPES if of == kind)
    return f"--method {method}: expected one of {known} for sounds"
