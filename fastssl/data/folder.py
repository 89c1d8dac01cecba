"""A folder of images: nested or flat, labelled by folder or not, some files bad."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fastssl.augment.policy import Policy
from fastssl.data.encoded import EncodedSource
from fastssl.data.folder_labels import find_split
from fastssl.data.scan import Scan, scan
from fastssl.data.store import printable


def open_folder(
    root: Path,
    *,
    policy: Policy,
    workers: int,
    cache_dir: Path | None,
    scan_budget_s: float | None,
    **options: Any,
) -> EncodedSource:
    """All images below ``root`` (of root/train where it exists); ``options``: EncodedSource's.

    ValueError where there is none.
    """
    found = scan(root, workers=max(workers, 4), cache_dir=cache_dir, budget_s=scan_budget_s)
    _refuse_nothing(found, root)
    return EncodedSource(
        found,
        find_split(found.paths),
        name=os.path.basename(os.path.abspath(root)) or "folder",
        kind="folder",
        policy=policy,
        workers=workers,
        cache_dir=cache_dir,
        **options,
    )


def _refuse_nothing(found: Scan, root: Path) -> None:
    if found.paths:
        return
    skipped = [f"{printable(path)}: {reason}" for path, reason in found.skipped[:5]]
    what = "; ".join(skipped) if skipped else "no file named *.jpg, *.png, *.webp or *.bmp"
    raise ValueError(f"--data {root}: expected a folder with images, found {what}")
