"""``--data`` to a source of batches: an embedded set by name, or a folder of images."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fastssl.data.spirograph import SpirographSource

if TYPE_CHECKING:
    from fastssl.data.folder import Backend, FolderSource

EMBEDDED = ("spirograph",)


def open_source(
    data: str,
    *,
    image_size: int = 32,
    seed: int = 0,
    workers: int = 2,
    device: torch.device | None = None,
    cache_dir: Path | None = None,
    max_bad: float | None = None,
    num_views: int = 2,
    augment: str | None = None,
    backend: Backend = "auto",
    scan_budget_s: float | None = None,
) -> SpirographSource | FolderSource:
    """The source that ``--data`` names: "spirograph", or a path to a folder of images.

    ``cache_dir`` (inside the run folder) keeps what the header check found; None keeps nothing.
    ``augment`` names the policy that views are drawn from; None: spirograph, or simclr for images.
    ``max_bad``, ``workers`` and ``backend`` matter to folders alone: files that cannot be used are
    left out, unless they are more than the fraction ``max_bad``. ``device`` is where
    batches will be wanted: on CUDA, DALI decodes and augments there. ``scan_budget_s`` bounds the
    check of the files, for a source that only a plan is made of.
    Raises ValueError naming --data or --augment for what cannot be trained on.
    """
    if data in EMBEDDED:
        return SpirographSource(
            seed=seed, image_size=image_size, num_views=num_views, augment=augment or data
        )
    _refuse_unknown(data)
    from fastssl.data.folder import FolderSource  # PIL and torchvision only where needed

    return FolderSource(
        Path(data),
        image_size=image_size,
        workers=workers,
        device=device or torch.device("cpu"),
        cache_dir=cache_dir,
        max_bad=max_bad,
        num_views=num_views,
        augment=augment or "simclr",
        backend=backend,
        scan_budget_s=scan_budget_s,
    )


def _refuse_unknown(data: str) -> None:
    if os.path.isdir(data):
        return
    names = ", ".join(EMBEDDED)
    if os.path.exists(data):
        raise ValueError(
            f"--data {data}: expected a folder of images or one of: {names}; this is a file. "
            "Give the folder that holds it"
        )
    close = difflib.get_close_matches(data.lower(), EMBEDDED, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"--data {data}: no such folder (looked in {os.getcwd()!r}), and not one of: {names}.{hint}"
    )
