"""The contact sheet of sounds is a picture, and says what ran."""

from __future__ import annotations

from PIL import Image

from fastssl.augment.waveform_table import OPERATORS
from fastssl.data import audio_sheet
from fastssl.data.audio_views import AudioViews
from fastssl.data.tones import TonesSource


def test_a_sheet_is_drawn_and_every_view_is_described(tmp_path):
    source = TonesSource(views=AudioViews())
    clip_NT = source.clips(source_index(), split="train", seed=0)
    table = audio_sheet.draw_sheet(clip_NT, source.views, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.size[0] > 700 and len(picture.convert("RGB").getcolors(1 << 20)) > 50
    for view in range(2):
        said = audio_sheet.describe(table, view=view, sample=0).replace("\n", ", ")
        steps = [s for s in table.steps_VNK[view, 0].tolist() if s >= 0]
        fades = OPERATORS.index("fade") in steps  # has a comma of its own
        assert said.count(", ") + 1 == len(steps) + fades


def source_index():
    import numpy as np

    return np.array([3])
