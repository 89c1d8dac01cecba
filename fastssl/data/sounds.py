"""Is ``--data`` sound? The embedded Tones, or a folder whose first image or sound is a sound."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fastssl.data.suffixes import IMAGES

if TYPE_CHECKING:
    from fastssl.data.audio_folder import AudioFolderSource
    from fastssl.data.tones import TonesSource

EXTENSIONS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")


def open_sounds(
    data: str,
    *,
    seed: int,
    num_views: int,
    workers: int,
    max_bad: float | None,
    augment: str | None = None,
    factor: str | None = None,
    front: str | None = None,
) -> TonesSource | AudioFolderSource:
    """The source of "tones" or of a folder of sounds; arguments as of ``open_source``.

    Batches hold waveforms: the methods of recipes.encoders have the front end themselves.
    """
    from fastssl.augment.audio_policies import audio_policy
    from fastssl.data.audio_views import AudioViews
    from fastssl.nn.hearing import FRONTS

    if front is not None and front not in FRONTS:
        raise ValueError(f"--front: expected one of {', '.join(FRONTS)}, received {front!r}")
    views = AudioViews(
        policy=audio_policy(augment or "mtslvr"),
        num_views=num_views,
        front=FRONTS[front or "logmel"](),
        handed="waveforms",
    )
    if data == "tones":
        from fastssl.data.tones import TonesSource

        return TonesSource(seed=seed, views=views, factor=factor or "timbre")
    from fastssl.data.audio_folder import AudioFolderSource

    return AudioFolderSource(Path(data), views=views, workers=workers, max_bad=max_bad)


def holds_sounds(root: str) -> bool:
    """Whether the first image or sound by name below ``root`` is a sound; reads no file."""
    for _, subfolders, files in os.walk(root):
        subfolders.sort()
        for name in sorted(files):
            if name.lower().endswith((*EXTENSIONS, *IMAGES)):
                return name.lower().endswith(EXTENSIONS)
    return False
