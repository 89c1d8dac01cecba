"""Scores that would mean nothing are refused by the command, in one line."""

from __future__ import annotations

import shutil

import numpy as np
from PIL import Image
from safetensors.torch import load_file, save_file

from fastssl.evaluate import main as evaluate

FEW = ["--train-images", "60", "--test-images", "30", "--device", "cpu"]


def test_features_that_are_not_finite_are_refused_and_not_kept(finished_run, tmp_path, capsys):
    """Finite weights, as a diverging run exports them, whose features overflow."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    path = run / "export" / "backbone.safetensors"
    state = load_file(path)
    save_file({k: v * 1e37 if k.endswith("weight") else v for k, v in state.items()}, path)
    (run / "export" / "SHA256SUMS").unlink()
    for verb, split in (("ridge", "train"), ("meter", "test")):
        kept = set((run / "evaluation").glob("features-*"))
        assert evaluate([verb, "--run", str(run), *FEW]) == 2
        said = capsys.readouterr().err
        assert f"rows of the {split} features are NaN or infinite" in said
        assert len(said.strip().splitlines()) == 1
        assert set((run / "evaluation").glob("features-*")) == kept


def test_alpha_of_images_is_refused_with_what_to_use_instead(finished_run, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(10):
            picture = np.full((32, 32, 3), 20 * number, dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / name / f"{number}.png")
    run = ["--run", str(finished_run), "--data", str(tmp_path), "--cache", "off"]
    assert evaluate(["alpha", *run, "--device", "cpu"]) == 2
    assert "--augment invclr too, is not probed: use meter or sens" in capsys.readouterr().err
