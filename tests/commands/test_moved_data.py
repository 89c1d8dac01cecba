"""A run's data between two starts: changed ones are refused, moved ones are found by --data."""

from __future__ import annotations

import shutil
import wave

import numpy as np
import pytest
import yaml
from PIL import Image

from fastssl.evaluate import main as evaluate
from fastssl.train import main

SMALL = ["--backbone", "convnet", "--image-size", "8", "--batch-size", "4", "--max-steps", "2"]


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (10, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def train(*flags):
    return main([str(flag) for flag in flags])


@pytest.fixture
def photos(tmp_path):
    """Two classes of four pictures."""
    for number in range(8):
        picture(tmp_path / "photos" / ("across", "upright")[number % 2] / f"{number}.png", number)
    return tmp_path / "photos"


@pytest.fixture
def run(photos, tmp_path):
    assert train("--data", photos, "--out", tmp_path / "run", *SMALL) == 0
    return tmp_path / "run"


def snapshot(run):
    skipped = (".lock", "image-headers.jsonl")
    files = (path for path in run.rglob("*") if path.is_file() and path.name not in skipped)
    return {path: path.read_bytes() for path in files}


@pytest.mark.parametrize("how", [[], ["--dry-run"]], ids=["start", "dry-run"])
def test_a_resume_on_a_folder_with_another_class_is_refused(how, run, photos, capsys):
    for number in range(3):
        picture(photos / "new" / f"{number}.png", number)
    before = snapshot(run)
    assert train("--resume", "--out", run, *how) == 2
    told = capsys.readouterr().err
    assert "the data had 8 samples, now 11" in told and "another --out" in told
    assert snapshot(run) == before


def test_as_many_other_files_are_refused_too(run, photos, capsys):
    (photos / "across" / "0.png").rename(photos / "across" / "renamed.png")
    assert train("--resume", "--out", run) == 2
    assert "8 samples as before, but other names, sizes or labels" in capsys.readouterr().err


def test_a_run_without_a_fingerprint_resumes_as_before(run, photos):
    config = run / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    del settings["resolved"]["data"]
    config.write_text("# fastssl run\n" + yaml.safe_dump(settings, sort_keys=False))
    picture(photos / "new" / "0.png", 0)
    assert train("--resume", "--out", run) == 0


def test_moved_data_are_asked_for_and_found(run, photos, tmp_path, capsys):
    (run / "checkpoints" / "step-00000002").rename(tmp_path / "away")
    moved = tmp_path / "elsewhere"
    shutil.copytree(photos, moved)
    shutil.rmtree(photos)
    for command in (
        lambda: train("--resume", "--out", run),
        lambda: train("--resume", "--out", run, "--dry-run"),
        lambda: evaluate(["knn", "--run", str(run)]),
    ):
        assert command() == 2
        told = capsys.readouterr().err
        assert "the run's data cannot be used; give --data DIR if they moved" in told
        assert "no such folder" in told
    assert train("--resume", "--out", run, "--data", f"{moved}/", "--dry-run") == 0
    assert train("--resume", "--out", run, "--data", f"{moved}/") == 0
    assert evaluate(["knn", "--run", str(run)]) == 0, "the new place is kept"
    assert train("--resume", "--out", run) == 0
    assert train("--resume", "--out", run, "--data", "spirograph") == 2


def test_a_checkpoint_fits_wherever_the_data_are(run, photos, tmp_path, capsys):
    moved = photos.rename(tmp_path / "elsewhere")
    assert train("--resume", "--out", run, "--data", moved) == 0
    assert "resumed from step 2" in capsys.readouterr().out
    assert train("--resume", "--out", run) == 0
    assert "resumed from step 2" in capsys.readouterr().out


def test_missing_sounds_are_called_missing(tmp_path, capsys):
    folder = tmp_path / "sounds"
    folder.mkdir()
    for number in range(4):
        with wave.open(str(folder / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            noise = np.random.default_rng(number).integers(-999, 999, 16_000, dtype=np.int16)
            file.writeframes(noise.tobytes())
    flags = ["--backbone", "convnet", "--batch-size", "4", "--max-steps", "1"]
    run = tmp_path / "run"
    assert train("--data", folder, "--out", run, *flags) == 0
    with open(folder / "3.wav", "ab") as file:
        file.write(b"0000")
    assert train("--resume", "--out", run) == 2
    assert "other names, sizes or labels" in capsys.readouterr().err
    shutil.rmtree(folder)
    for command in (
        lambda: train("--resume", "--out", run),
        lambda: evaluate(["knn", "--run", str(run)]),
    ):
        assert command() == 2
        told = capsys.readouterr().err
        assert "give --data DIR if they moved" in told and "no such folder" in told


@pytest.mark.parametrize("change", ["more", "labels"])
def test_arrays_of_another_shape_or_with_other_labels_are_refused(change, tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (8, 10, 10, 3), dtype=np.uint8)
    labels, file, run = np.arange(8) % 2, tmp_path / "arrays.npz", tmp_path / "run"
    np.savez(file, images=images, labels=labels)
    assert train("--data", file, "--out", run, *SMALL) == 0
    assert train("--data", file, "--out", run, "--resume") == 0
    if change == "more":
        images, labels = np.concatenate([images] * 2), np.concatenate([labels] * 2)
    else:
        labels = labels[::-1]
    np.savez(file, images=images, labels=labels)
    assert train("--out", run, "--resume") == 2
    assert ("8 samples, now 16" if change == "more" else "other names") in capsys.readouterr().err
