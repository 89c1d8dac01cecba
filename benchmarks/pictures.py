"""``python -m benchmarks.pictures``: the pictures of docs/, drawn by formulas and seeds alone.

The scene is a mountain lake: sky with clouds of fractal noise, two ridges, water that mirrors them,
and flowers in front, so that crops, colours, blur and flips can be told apart by eye.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fastssl.augment import preset, views_of
from fastssl.data.batch import Shown
from fastssl.recipes.preview import sheet

DOCS = Path(__file__).resolve().parents[1] / "docs"
HEIGHT, WIDTH = 300, 400
VIEW, ROWS = 112, 3


def noise(rng: np.random.Generator, shape: tuple[int, int], octaves: int) -> np.ndarray:
    """Fractal value noise in [0, 1]: octaves of random grids, cubically enlarged."""
    from PIL import Image

    total, weight = np.zeros(shape), 0.0
    for octave in range(octaves):
        cells = rng.random((3 * 2**octave, 4 * 2**octave)).astype(np.float32)
        size = (shape[1], shape[0])
        grown = Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)
        total += 0.6**octave * np.asarray(grown)
        weight += 0.6**octave
    return np.clip(0.5 + 1.7 * (total / weight - 0.5), 0, 1)  # the mean of octaves is grey


def landscape(seed: int) -> np.ndarray:
    """(300, 400, 3) uint8; the seed moves hills, clouds, sun and flowers."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / HEIGHT
    shore = 0.62
    picture = blend((0.98, 0.83, 0.62), (0.25, 0.5, 0.85), np.clip(1 - y / shore, 0, 1))
    clouds = np.clip(2.2 * noise(rng, (HEIGHT, WIDTH), 6) - 1.0, 0, 1) * np.clip(1.4 - 2 * y, 0, 1)
    picture = over(picture, (1.0, 0.98, 0.95), clouds)
    sun_x, sun_y = rng.uniform(0.3, 1.0), rng.uniform(0.12, 0.3)
    distance = np.hypot(x - sun_x, y - sun_y)
    picture = over(picture, (1.0, 0.95, 0.75), np.exp(-((distance / 0.07) ** 2)))
    ridges = ((0.36, 0.2, (0.45, 0.47, 0.6)), (0.5, 0.13, (0.16, 0.33, 0.2)))
    for base, tall, colour in ridges:
        outline = base + tall * (0.5 - noise(rng, (1, WIDTH), 6)[0])[None, :] * 2
        shade = 0.45 + 1.1 * noise(rng, (HEIGHT, WIDTH), 7)
        picture = np.where((y > outline)[..., None], np.array(colour) * shade[..., None], picture)
    picture = mirrored(rng, picture, int(shore * HEIGHT))
    return (255 * np.clip(flowers(rng, picture), 0, 1)).round().astype(np.uint8)


def mirrored(rng: np.random.Generator, picture: np.ndarray, shore: int) -> np.ndarray:
    """Water below row ``shore``: the scene upside down, darker, with ripples."""
    depth = np.arange(HEIGHT - shore)
    ripple = (3 * np.sin(depth / 2.5 + rng.uniform(0, 6)) * depth / HEIGHT * 4).astype(int)
    below = np.stack(
        [
            np.roll(picture[max(0, shore - 1 - d)], r, axis=0)
            for d, r in zip(depth, ripple, strict=True)
        ]
    )
    tint = np.array((0.7, 0.82, 0.95))
    return np.concatenate([picture[:shore], below * tint])


def flowers(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Some tens of red, yellow and violet blossoms on a strip of grass."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    meadow = HEIGHT * (0.86 + 0.05 * np.sin(x / 40 + rng.uniform(0, 6)))
    blades = 0.6 + 0.8 * noise(rng, (HEIGHT, WIDTH), 7)
    grass = np.array((0.22, 0.45, 0.13)) * blades[..., None]
    picture = np.where((y > meadow)[..., None], grass, picture)
    colours = ((0.9, 0.15, 0.15), (0.98, 0.85, 0.2), (0.6, 0.3, 0.8))
    for _ in range(40):
        cx, cy = rng.uniform(0, WIDTH), rng.uniform(0.9 * HEIGHT, HEIGHT)
        petals = 1 + 0.35 * np.cos(5 * np.arctan2(y - cy, x - cx))
        mask = np.clip(rng.uniform(3, 6) * petals - np.hypot(x - cx, y - cy) + 0.5, 0, 1)
        picture = over(picture, colours[rng.integers(3)], mask)
    return picture


def blend(low: tuple, high: tuple, share: np.ndarray) -> np.ndarray:
    """``low`` where the share is 0, ``high`` where it is 1."""
    return np.array(low) + (np.array(high) - np.array(low)) * share[..., None]


def over(picture: np.ndarray, colour: tuple, share: np.ndarray) -> np.ndarray:
    """The colour laid over the picture."""
    return picture + (np.array(colour) - picture) * share[..., None]


def main() -> int:
    """Write docs/simclr-views.png: rows of a scene and five SimCLR views of 112 px."""
    from PIL import Image

    scenes = [torch.from_numpy(landscape(seed)).permute(2, 0, 1) for seed in range(ROWS)]
    policy = preset("simclr", image_size=VIEW, num_views=5).without_normalisation()
    views, _ = views_of(
        policy,
        scenes,
        seed=0,
        epoch=0,
        step=0,
        index_N=torch.arange(ROWS),
        sizes_N2=torch.tensor([[HEIGHT, WIDTH]] * ROWS),
    )
    images = tuple(scene.float() / 255 for scene in scenes)
    page = sheet(Shown(images, views, ("lake",) * ROWS))
    path = DOCS / "simclr-views.png"
    Image.fromarray(page).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
