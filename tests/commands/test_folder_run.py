"""The commands end to end on a folder of images that the test makes, through DALI where it is."""

from __future__ import annotations

import importlib.util
import json
import time

import numpy as np
import pytest
from PIL import Image

from fastssl.data import scan as scanning
from fastssl.evaluate import main as evaluate
from fastssl.recipes.assess import RECORDS
from fastssl.train import main

SMALL = ["--backbone", "convnet", "--image-size", "32", "--epochs", "2", "--batch-size", "8"]
needs_dali = pytest.mark.skipif(
    importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None,
    reason="DALI is not installed here",
)


def stripes(rng, vertical):
    """A picture whose class can be seen: stripes of random colours, sizes and phases."""
    height, width = rng.integers(36, 90, 2)
    axis = np.arange(width)[None, :] if vertical else np.arange(height)[:, None]
    wave = (np.sin(axis * rng.uniform(0.3, 0.9) + rng.uniform(0, 6)) > 0)[..., None]
    picture = np.where(wave, rng.integers(0, 256, 3), rng.integers(0, 256, 3))
    return Image.fromarray(np.broadcast_to(picture, (height, width, 3)).astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of 40 pictures in four formats and several modes, and one broken file."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("photos")
    formats = [("jpg", "RGB"), ("png", "RGBA"), ("webp", "RGB"), ("bmp", "L"), ("jpg", "CMYK")]
    for name in ("across", "upright"):
        (root / name).mkdir()
        for i in range(40):
            suffix, mode = formats[i % len(formats)]
            stripes(rng, name == "upright").convert(mode).save(root / name / f"{i:03}.{suffix}")
    (root / "across" / "broken.jpg").write_bytes(b"this is no picture")
    return root


@pytest.fixture(scope="module")
def folder_run(photos, small_readouts, tmp_path_factory):
    out = tmp_path_factory.mktemp("folder") / "run"
    flags = ["--data", photos, "--out", out, "--log-every", "1"]
    assert main([*map(str, flags), *SMALL]) == 0
    return out


def test_folder_trains_and_is_scored_by_knn_beside_its_yardsticks(folder_run):
    log = (folder_run / "train.log").read_text()
    for part in ("knn_top1", "commonest class", "raw pixels", "untrained encoder"):
        assert part in log
    losses = [json.loads(line) for line in (folder_run / "metrics.jsonl").read_text().splitlines()]
    assert any("loss" in line for line in losses)


def test_the_broken_file_is_named_and_survived(folder_run):
    log = (folder_run / "train.log").read_text()
    assert "skipped" in log and "broken.jpg" in log


@needs_dali
def test_dry_run_names_the_loader(photos, capsys):
    assert main(["--data", str(photos), *SMALL, "--dry-run"]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("data loader")]
    assert "dali" in line.lower()


def test_dry_run_only_glances_at_a_large_folder(photos, capsys, monkeypatch):
    check = scanning.check
    monkeypatch.setattr(scanning, "check", lambda path: time.sleep(0.1) or check(path))
    monkeypatch.setattr(scanning, "_AT_A_TIME", 4)
    assert main(["--data", str(photos), *SMALL, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "81 samples" in told and "were looked at; training looks at all" in told


@pytest.mark.parametrize("readout", ["knn", "linear"])
def test_evaluate_scores_the_export_and_stores_the_protocol(readout, folder_run, capsys):
    assert evaluate([readout, "--run", str(folder_run)]) == 0
    told = capsys.readouterr().out
    record = json.loads((folder_run / RECORDS).read_text().splitlines()[-1])
    assert record["readout"] == readout
    assert 0 <= record["metrics"][f"{readout}_top1"] <= 1
    for key in ("batch_norm", "stem", "crop", "image_size", "train_images", "test_images"):
        assert key in record["protocol"] and f"{key}: " in told
    if readout == "knn":
        assert record["protocol"]["k"] == 20 and record["protocol"]["temperature"] == 0.07


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["knn", "--k", "0"], "--k: expected at least 1"),
        (["knn", "--k", "65"], "--k: expected 1 to 64"),
        (["knn", "--train-images", "0"], "--train-images: expected at least 1"),
        (["linear", "--test-images", "-3"], "--test-images: expected at least 1"),
    ],
)
def test_counts_out_of_range_are_refused_by_flag(flags, told, folder_run, capsys):
    assert evaluate([*flags, "--run", str(folder_run)]) == 2
    assert told in capsys.readouterr().err


def test_a_score_that_cannot_be_recorded_is_printed_all_the_same(folder_run, monkeypatch, capsys):
    monkeypatch.setattr("fastssl.recipes.assess.RECORDS", "train.log/scores.jsonl")
    assert evaluate(["knn", "--run", str(folder_run)]) == 0
    told = capsys.readouterr()
    assert "knn_top1" in told.out and "the score was not recorded" in told.err


def test_the_default_run_folder_is_named_after_method_and_data(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my photos").symlink_to(photos)
    assert main(["--data", "my photos/", *SMALL, "--max-steps", "1"]) == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["simclr-my-photos-1"]


def test_ridge_is_refused_for_classes(folder_run, capsys):
    assert evaluate(["ridge", "--run", str(folder_run)]) == 2
    assert "use knn or linear" in capsys.readouterr().err


def test_a_flat_folder_without_labels_trains_without_a_score(photos, tmp_path, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted((photos / "across").glob("0*.*"))[:16]):
        (flat / f"{i}{path.suffix}").write_bytes(path.read_bytes())
    out = tmp_path / "run"
    assert main(["--data", str(flat), "--out", str(out), *SMALL]) == 0
    told = capsys.readouterr().out
    assert "no labels" in told and "knn_top1" not in told
    assert (out / "export" / "backbone.safetensors").is_file()


def test_resnet_with_the_small_stem_trains_on_a_folder(photos, tmp_path, small_readouts):
    flags = [*SMALL, "--backbone", "resnet18", "--max-steps", "1"]
    assert main(["--data", str(photos), "--out", str(tmp_path / "run"), *flags]) == 0
    assert "small_stem" in (tmp_path / "run" / "export" / "README.md").read_text()
