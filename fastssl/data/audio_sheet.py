"""A contact sheet of sounds: the log-mel of each clip beside those of its views.

``python -m fastssl.data.audio_sheet FILE.png`` draws three Tones under MT-SLVR's policy.
"""

# shapes: N clips, V views, T samples, M mel bands, F frames, K operators
from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastssl.augment.waveform_table import OPERATORS, WaveformTable
from fastssl.data.audio_views import AudioViews
from fastssl.data.tones import FACTORS, TonesSource, draw_factors


def draw_sheet(
    clip_NT: Tensor, views: AudioViews, path: Path, *, seed: int = 0, names: Sequence[str] = ()
) -> WaveformTable:
    """Writes a PNG with one row per clip (N, T): itself, then its views, titled by what ran.

    Returns the table of the views. ``names`` (N) title the rows. Needs matplotlib and Pillow.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    index_N = np.arange(len(clip_NT))
    batch = views.batch(clip_NT, slot_N=index_N, index_N=index_N, seed=seed, epoch=0)
    table = batch.table.waveforms
    assert table is not None
    shown = (clip_NT, *batch.views)
    columns = [views.clean(each) if each.ndim == 2 else each for each in shown]
    figure = Figure(figsize=(3.2 * len(columns), 2.2 * len(clip_NT)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(clip_NT), len(columns), squeeze=False)
    for n in range(len(clip_NT)):
        top = float(columns[0][n, 0].max())
        for place, image_NCMF in enumerate(columns):
            title = names[n] if names else f"clip {n}"
            if place:
                title = describe(table, view=place - 1, sample=n)
            _panel(axes[n, place], image_NCMF[n, 0], title, top, views.seconds)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=80)
    with Image.open(drawn) as picture:  # 64 colours are enough, and a quarter of the bytes
        picture.convert("RGB").quantize(64).save(path, optimize=True)
    return table


def describe(table: WaveformTable, *, view: int, sample: int) -> str:
    """The operators of one view in their order, with the parameter that says most."""
    words = {
        "pitch_shift": "{semitones:+.1f} semitones",
        "fade": "fade {fade_in:.2f}, {fade_out:.2f}",
        "white_noise": "white {white_snr:.0f} dB",
        "mixed_noise": "noise {mixed_snr:.0f} dB",
        "time_stretch": "speed {rate:.2f}",
        "time_mask": "mask {mask_length:.2f}",
        "time_shift": "shift {shift:+.2f}",
        "gain": "{gain:+.1f} dB",
    }
    value = {
        word.split(":")[0]: float(table.value(word.split(":")[0])[view, sample])
        for form in words.values()
        for word in form.split("{")[1:]
    }
    steps = table.steps_VNK[view, sample].tolist()
    said = [words[OPERATORS[step]].format(**value) for step in steps if step >= 0]
    return "\n".join(", ".join(said[i : i + 2]) for i in range(0, len(said), 2)) or "unchanged"


def _panel(axis: Any, image_MF: Tensor, title: str, top: float, seconds: float) -> None:
    axis.imshow(
        image_MF.cpu().numpy(),
        origin="lower",
        aspect="auto",
        extent=(0, seconds, 0, len(image_MF)),
        vmin=top - 70,
        vmax=top,
        cmap="magma",
    )
    axis.set_title(title, fontsize=7)
    axis.tick_params(labelsize=6)


def main(arguments: list[str] | None = None) -> int:
    """Three Tones and their two views each."""
    (path,) = sys.argv[1:] if arguments is None else arguments
    source, index_N = TonesSource(), np.array([7, 1, 2])
    clip_NT = source.clips(index_N, split="train", seed=0)
    factor_NK = draw_factors(index_N, seed=0, split="train")
    names = [
        ", ".join(classes[k] for classes, k in zip(FACTORS.values(), row, strict=True))
        for row in factor_NK
    ]
    draw_sheet(clip_NT, source.views, Path(path), names=names)
    return 0


if __name__ == "__main__":
    sys.exit(main())
