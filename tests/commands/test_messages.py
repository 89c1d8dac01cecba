"""Messages that name flags, protocols that say what was done, settings refused in time."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image

from fastssl.augment.presets import preset
from fastssl.data import rendering
from fastssl.engine.config import TrainConfig
from fastssl.engine.pace import slow_folder_hint
from fastssl.engine.progress import Stopwatch
from fastssl.evaluate import main as evaluate
from fastssl.recipes import assess
from fastssl.recipes.assess import RECORDS
from fastssl.train import main

FEW = ["--train-images", "60", "--test-images", "20", "--device", "cpu"]


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("told") / "run"
    shutil.copytree(finished_run, folder)
    return folder


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Three classes of ten pictures, a fifth of which is for testing."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("colours")
    for name in ("red", "green", "blue"):
        (root / name).mkdir()
        for number in range(10):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["few-shot", "--queries", "0"], "--queries: expected at least 1, received 0"),
        (["few-shot", "--shots", "-1"], "--shots: expected at least 1, received -1"),
        (["few-shot", "--episodes", "1"], "--episodes: expected at least 2"),
        (
            ["few-shot", "--ways", "3"],
            "--queries 15: expected 3 classes with 16 test images",
        ),
        (["meter", "--draws", "1"], "--draws: expected at least 2, received 1"),
        (["robustness", "--amounts", "9"], "--amounts: expected 0 to 2.5 for jitter"),
        (["robustness", "--amounts", "-1"], "--amounts: expected 0 to 2.5 for jitter"),
        (["robustness", "--shift", "h"], "--shift: expected one of: jitter; received 'h'"),
        (["knn", "--factor", "octave"], "--factor octave: goes with --data tones"),
    ],
)
def test_a_flag_that_cannot_be_is_named_before_anything_is_encoded(
    flags, told, run, colours, capsys, monkeypatch
):
    monkeypatch.setattr("fastssl.recipes.feature_cache.extract", None)
    assert evaluate([*flags, "--run", str(run), "--data", str(colours)]) == 2
    said = capsys.readouterr().err
    assert told in said and len(said.strip().splitlines()) == 1


def test_what_is_not_finite_is_null_in_the_record(tmp_path):
    record = {"metrics": {"a": math.nan, "b": 1.0}, "protocol": {"amounts": [math.inf, 2]}}
    assess.append_record(tmp_path, record)
    assess.write_record(tmp_path / "one.json", record)
    for text in ((tmp_path / RECORDS).read_text(), (tmp_path / "one.json").read_text()):
        assert json.loads(text, parse_constant=None)["metrics"] == {"a": None, "b": 1.0}
        assert "NaN" not in text and "Infinity" not in text


def record_of(run, *flags):
    assert evaluate([*map(str, flags), "--run", str(run), "--device", "cpu"]) == 0
    return json.loads((run / RECORDS).read_text().splitlines()[-1])


def test_the_protocol_says_where_the_test_images_come_from(run, colours, tmp_path):
    record = record_of(run, "knn", "--data", colours)
    assert record["protocol"]["test_split"] == "a fifth of the labelled images"
    split = tmp_path / "split"
    shutil.copytree(colours, split / "train")
    shutil.copytree(colours, split / "val")
    record = record_of(run, "knn", "--data", split)
    assert record["protocol"]["test_split"] == "the test split of the data"


def test_the_protocol_has_the_shifts_the_amounts_and_the_policy(run, colours):
    record = record_of(run, "robustness", "--data", colours)
    assert record["protocol"]["amounts"] == {"jitter": [step / 8 for step in range(9)]}
    record = record_of(run, "meter", "--draws", "2", "--data", colours)
    assert record["protocol"]["policy"] == "simclr"
    drawn = {name for name in record["metrics"] if name.startswith("cosine/")}
    assert "cosine/jitter" in drawn and not drawn & {"cosine/affine", "cosine/posterize"}


def test_an_operator_that_a_policy_never_draws_is_not_varied():
    size = {"image_size": 32, "num_views": 2}
    assert "solarize" not in rendering.varied(preset("simclr", **size))
    assert {"crop", "hflip", "jitter"} <= set(rendering.varied(preset("simclr", **size)))


@pytest.mark.parametrize("how", [[], ["--dry-run"]], ids=["start", "dry-run"])
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--method", "mocov2", "--bn-splits", "3"], "bn_splits: expected a divisor of the batch"),
        (["--method", "mocov2", "--batch-size", "21"], "--bn-splits or --batch-size"),
        (["--method", "mocov2", "--momentum", "2"], "momentum"),
        (["--device", "cpu:99"], "device: received 'cpu:99'"),
    ],
)
def test_settings_that_step_one_would_refuse_are_refused_before_it(
    flags, told, how, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main([*flags, *how, "--max-steps", "1"]) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("method", "told"), [("byol", "PyTorch's own"), ("swav", "soft_targets")])
def test_a_dry_run_names_the_operators_of_the_method(method, told, capsys):
    assert main(["--method", method, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert told in said and "op ntxent" not in said


@pytest.mark.parametrize(
    ("backbone", "size", "told"),
    [
        ("resnet18", 96, "--backbone convnet or a smaller --image-size is faster"),
        ("convnet", 96, "with --backbone convnet; a smaller --image-size is faster"),
        ("convnet", 32, "fewer --epochs end sooner"),
    ],
)
def test_a_slow_run_is_told_what_helps(backbone, size, told):
    watch = Stopwatch()
    watch.steps, watch.views, watch.trained = 9, 10, 10.0
    config = TrainConfig(backbone=backbone, image_size=size)
    assert slow_folder_hint("folder", "cpu", watch, config).endswith(told)


@pytest.mark.parametrize(
    ("content", "told"),
    [("garbage", "something else than .npz"), ("objects", "objects, not numbers")],
)
def test_a_file_that_holds_no_arrays_is_called_so(content, told, tmp_path, capsys):
    path = tmp_path / "some.npz"
    path.write_bytes(b"garbage")
    if content == "objects":
        images = np.zeros((8, 8, 8, 3), dtype=np.uint8)
        np.savez(path, images=images, labels=np.array(["a"] * 8, dtype=object))
    assert main(["--data", str(path), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert told in said and "pickle" not in said


def test_a_run_that_has_not_ended_says_how_to_end_it(run, tmp_path, capsys):
    unfinished = tmp_path / "run"
    shutil.copytree(run, unfinished, ignore=shutil.ignore_patterns("export"))
    assert evaluate(["ridge", "--run", str(unfinished)]) == 2
    assert f"--resume --out {unfinished}" in capsys.readouterr().err


def test_a_backbone_is_suggested_once(capsys):
    assert main(["--backbone", "resnet19", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert said.count("resnet18,") + said.count("resnet18?") == 1
