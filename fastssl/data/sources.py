"""``--data`` to a source of batches: an embedded set, or images in files, shards and arrays."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastssl.data.sounds import holds_sounds, open_sounds
from fastssl.data.spirograph import SpirographSource

if TYPE_CHECKING:
    from fastssl.data.arrays import ArraySource
    from fastssl.data.audio_folder import AudioFolderSource
    from fastssl.data.encoded import Backend, EncodedSource
    from fastssl.data.maker import Decoded
    from fastssl.data.tones import TonesSource

EMBEDDED = ("spirograph", "tones")
FORMS = (
    "a folder of images or of sounds, tar shards ('DIR/shard-{000..009}.tar' or a folder of them), "
    "an array file (.npy, .npz, .safetensors), torchvision:NAME:FOLDER"
)


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
    factor: str | None = None,
    front: str | None = None,
    backend: Backend = "auto",
    decoded: Decoded = "whole",
    scan_budget_s: float | None = None,
) -> SpirographSource | EncodedSource | ArraySource | TonesSource | AudioFolderSource:
    """The source that ``--data`` names: "spirograph", "tones", or one of ``FORMS``.

    ``augment`` names the policy that views are drawn from; None: spirograph, simclr for
    images, mtslvr for sounds. ``factor`` of tones is their label (None: timbre). ``front``: what
    readouts are given of sounds, one of nn.hearing.FRONTS (None: logmel).
    ``device`` is where batches will be wanted: on CUDA, DALI decodes there and arrays live there.
    The others matter to image files alone. ``cache_dir`` (inside the run folder) keeps what the
    header check found; None keeps nothing. Files that cannot be used are left out, unless they are
    more than the fraction ``max_bad``. ``decoded``: each image once, or a region for each view
    (see EncodedSource). ``scan_budget_s`` bounds the check of the files, for a source that only a
    plan is made of.
    Raises ValueError naming --data or --augment for what cannot be trained on.
    """
    common: dict[str, Any] = {"workers": workers, "max_bad": max_bad}
    views: dict[str, Any] = {"num_views": num_views, "augment": augment}
    if data == "tones" or holds_sounds(data):
        return open_sounds(data, seed=seed, factor=factor, front=front, **views, **common)
    if data in EMBEDDED:
        return SpirographSource(
            seed=seed, image_size=image_size, num_views=num_views, augment=augment or data
        )
    images = {"backend": backend, "decoded": decoded, "cache_dir": cache_dir, **common}
    where = device or torch.device("cpu")
    return _images(data, image_size, where, scan_budget_s=scan_budget_s, **views, **images)


def _images(
    data: str,
    image_size: int,
    device: torch.device,
    *,
    num_views: int,
    augment: str | None,
    **options: Any,
) -> EncodedSource | ArraySource:
    refuse_missing(data)
    from fastssl.augment.presets import preset

    policy = preset(augment or "simclr", image_size=image_size, num_views=num_views)
    if data.endswith((".npy", ".npz", ".safetensors")):
        return _arrays(data, policy=policy, device=device)
    return _encoded(data, policy=policy, device=device, **options)


def _arrays(data: str, **options: Any) -> ArraySource:
    if not os.path.isfile(data):
        raise ValueError(f"--data {data}: no such file (looked in {os.getcwd()!r})")
    from fastssl.data.arrays import open_arrays

    return open_arrays(data, **options)


def _encoded(data: str, **options: Any) -> EncodedSource | ArraySource:
    """PIL, torchvision and DALI are imported only where they are needed."""
    if data.startswith("torchvision:"):
        from fastssl.data.named import open_named

        return open_named(data, **options)
    from fastssl.data.shards import names_shards, open_shards

    if names_shards(data):
        return open_shards(data, **options)
    from fastssl.data.folder import open_folder

    return open_folder(Path(data), **options)


def refuse_missing(data: str) -> None:
    """ValueError where ``data`` should be a folder and is none, before anything is made of it."""
    named = data in EMBEDDED or data.startswith("torchvision:")
    if named or data.endswith((".npy", ".npz", ".safetensors", ".tar")) or os.path.isdir(data):
        return
    names = ", ".join(EMBEDDED)
    if os.path.exists(data):
        raise ValueError(
            f"--data {data}: expected {FORMS}, or one of: {names}; this is another file. "
            "Give the folder that holds it"
        )
    close = difflib.get_close_matches(data.lower(), EMBEDDED, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"--data {data}: no such folder (looked in {os.getcwd()!r}), and not one of: {names}; "
        f"expected {FORMS}.{hint}"
    )
