"""``--preview N``: a picture of images and of what the policy makes of them, to look at first."""

# shapes: N samples, V views, S side, C channels
from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastssl.data.batch import Shown
from fastssl.engine.files import write_bytes
from fastssl.engine.plan import check
from fastssl.recipes.assemble import open_data
from fastssl.recipes.catalogue import short_name
from fastssl.recipes.encoders import hears
from fastssl.recipes.run import Run

GAP = 4  # pixels between the cells
LEAST_CELL = 96  # smaller views are enlarged, by whole pixels


def write_preview(run: Run, folder: Path) -> str:
    """Write preview-DATA-AUGMENT.png to ``folder``; what was written, in one line.

    A row per image: itself, then its views in the order of the batch. The views are those of the
    first step for this seed, without normalisation.
    """
    check(run.train)
    source = open_data(run, device=torch.device("cpu"), cache_dir=None)
    path = folder / f"preview-{short_name(run.train.data)}-{run.train.augment}.png"
    if hears(run.train):
        return _write_sounds(source, run, path)
    shown = source.shown(run.train.preview, seed=run.train.seed)
    write_sheet(shown, path)
    count, views = len(shown.images), len(shown.views)
    return f"preview: {count} images, {views} views of each ({run.train.augment}), in {path}"


def _write_sounds(source: Any, run: Run, path: Path) -> str:
    """Log-mels of clips and of their views, titled by the operators that ran."""
    from fastssl.data.audio_sheet import draw_sheet

    seed = run.train.seed
    clip_NT, names = source.heard(run.train.preview, seed=seed)
    draw_sheet(clip_NT, source.views, path, seed=seed, names=names)
    views = source.num_views
    return f"preview: {len(names)} sounds, {views} views of each ({run.train.augment}), in {path}"


def write_sheet(shown: Shown, path: Path) -> None:
    """The contact sheet as a PNG file."""
    from PIL import Image

    png = io.BytesIO()
    Image.fromarray(sheet(shown)).save(png, format="PNG", optimize=True)
    write_bytes(path, png.getvalue())


def sheet(shown: Shown) -> NDArray[np.uint8]:
    """(height, width, 3): a row per sample, the image first, on white."""
    largest = max(view.shape[-1] for view in shown.views)
    zoom = math.ceil(LEAST_CELL / largest) if largest < LEAST_CELL else 1
    cell = largest * zoom
    rows, columns = len(shown.images), 1 + len(shown.views)
    pitch = cell + GAP
    page = np.full((rows * pitch + GAP, columns * pitch + GAP, 3), 255, np.uint8)
    for row, image in enumerate(shown.images):
        cells = [_fitted(image, cell), *(_enlarged(view[row], zoom) for view in shown.views)]
        for column, pixels in enumerate(cells):
            top = GAP + row * pitch + (cell - pixels.shape[0]) // 2
            left = GAP + column * pitch + (cell - pixels.shape[1]) // 2
            page[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return page


def _fitted(image_CHW: Tensor, cell: int) -> NDArray[np.uint8]:
    """The whole image, its longer side as long as the cell."""
    from PIL import Image

    pixels = Image.fromarray(_bytes(image_CHW))
    scale = cell / max(pixels.size)
    width, height = (max(1, round(side * scale)) for side in pixels.size)
    filters = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    return np.asarray(pixels.resize((width, height), filters))


def _enlarged(view_CSS: Tensor, zoom: int) -> NDArray[np.uint8]:
    return _bytes(view_CSS).repeat(zoom, axis=0).repeat(zoom, axis=1)


def _bytes(image_CHW: Tensor) -> NDArray[np.uint8]:
    scaled = image_CHW.float().clamp(0.0, 1.0).mul(255.0).round()
    return scaled.to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
