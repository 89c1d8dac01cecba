"""``--data`` to a source of batches: an embedded set by name, or a folder of images."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fastssl.data.sounds import holds_sounds, open_sounds
from fastssl.data.spirograph import SpirographSource

if TYPE_CHECKING:
    from fastssl.augment.policy import Policy
    from fastssl.data.audio_folder import AudioFolderSource
    from fastssl.data.folder import Backend, FolderSource
    from fastssl.data.tones import TonesSource

EMBEDDED = ("spirograph", "tones")


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
    policy: Policy | None = None,
    backend: Backend = "auto",
    scan_budget_s: float | None = None,
) -> SpirographSource | FolderSource | TonesSource | AudioFolderSource:
    """The source that ``--data`` names: "spirograph", "tones", or a folder of images or of sounds.

    ``cache_dir`` (inside the run folder) keeps what the header check found; None keeps nothing.
    ``max_bad``, ``policy``, ``workers`` and ``backend`` matter to folders alone: files that cannot
    be used are left out, unless they are more than the fraction ``max_bad``. ``device`` is where
    batches will be wanted: on CUDA, DALI decodes and augments there. ``scan_budget_s`` bounds the
    check of the files, for a source that only a plan is made of.
    Raises ValueError naming --data for anything that cannot be trained on.
    """
    if data == "tones" or holds_sounds(data):
        return open_sounds(data, seed=seed, num_views=num_views, workers=workers, max_bad=max_bad)
    if data in EMBEDDED:
        return SpirographSource(seed=seed, image_size=image_size, num_views=num_views)
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
        policy=policy,
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
