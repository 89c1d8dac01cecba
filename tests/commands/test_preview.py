"""--preview: a contact sheet in the current folder and nothing else; --augment chooses for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fastssl.data.batch import Shown
from fastssl.recipes import preview
from fastssl.train import main


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    (root / "a").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(4):
        coarse = Image.fromarray(rng.integers(0, 255, (4, 4, 3)).astype(np.uint8))
        size = (90 + 10 * number, 70)
        coarse.resize(size, Image.Resampling.BICUBIC).save(root / "a" / f"{number}.png")
    (root / "a" / "1.png").write_bytes((root / "a" / "1.png").read_bytes()[:400])  # damaged
    return root


def run(tmp_path, monkeypatch, capsys, *flags):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert main([*map(str, flags)]) == 0
    said = capsys.readouterr().out
    (made,) = here.iterdir()
    assert str(made) in said, "it says where the picture went"
    return np.asarray(Image.open(made)), made.name, said


def cells(page, rows, columns):
    """The contact sheet cut into its cells."""
    pitch_y = (page.shape[0] - preview.GAP) // rows
    pitch_x = (page.shape[1] - preview.GAP) // columns
    cut = page[preview.GAP :, preview.GAP :]
    return [[cut[r * pitch_y : (r + 1) * pitch_y - preview.GAP,
                 c * pitch_x : (c + 1) * pitch_x - preview.GAP] for c in range(columns)]
            for r in range(rows)]  # fmt: skip


def test_spirograph_and_its_views_side_by_side(tmp_path, monkeypatch, capsys):
    page, name, said = run(tmp_path, monkeypatch, capsys, "--preview", 3, "--augment=spirograph-2")
    assert name == "preview-spirograph-spirograph-2.png"
    assert "3 images, 2 views of each (spirograph-2)" in said
    grid = cells(page, 3, 3)
    assert grid[0][0].shape == (96, 96, 3), "32 px, enlarged three times"
    for row in grid:
        assert all(len(np.unique(cell)) > 20 for cell in row)
        assert (row[1] != row[2]).any()


def test_a_folder_shows_each_image_and_its_views(photos, tmp_path, monkeypatch, capsys):
    flags = ("--data", photos, "--image-size", 64, "--augment", "swav", "--preview", 5)
    page, name, said = run(tmp_path, monkeypatch, capsys, *flags)
    assert name == "preview-photos-swav.png" and "3 images, 8 views of each" in said
    grid = cells(page, 3, 9)
    first = np.asarray(Image.open(photos / "a" / "0.png").resize((96, 75)))
    assert np.abs(grid[0][0].mean(axis=(0, 1)) - first.mean(axis=(0, 1))).max() < 60


def test_the_sheet_keeps_the_pixels_of_the_views():
    generator = torch.Generator().manual_seed(0)
    view = torch.rand(2, 3, 128, 128, generator=generator)
    images = (torch.rand(3, 30, 60, generator=generator), torch.zeros(3, 128, 128))
    grid = cells(preview.sheet(Shown(images, (view, view[..., ::2, ::2]), ("a", "b"))), 2, 3)
    expected = (view[1] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(grid[1][1], expected)
    assert np.array_equal(grid[1][2][32:96, 32:96], expected[::2, ::2])
    assert (grid[0][0][:32] == 255).all(), "a wide image has white above it"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--preview", "-1"), "preview: expected at least 0"),
        (("--preview", "2", "--augment", "spirograf"), "did you mean 'spirograph'"),
        (("--preview", "2", "--data", "nowhere"), "--data nowhere: no such folder"),
    ],
)
def test_what_cannot_be_shown_is_one_line(flags, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(list(flags)) == 2
    assert told in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_an_unknown_policy_of_images_is_refused_with_what_was_meant(photos, capsys):
    assert main(["--data", str(photos), "--augment", "mocov3", "--dry-run"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--augment: expected one of simclr" in line and "did you mean 'mocov2'" in line
