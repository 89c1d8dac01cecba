"""Runs on sounds by name: Tones, their preview, and what does not fit."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from fastssl.evaluate import main as evaluate
from fastssl.recipes import assemble
from fastssl.recipes.encoders import encoder_of
from fastssl.train import main as train

FEW = {"train_limit": 40, "test_limit": 20}
SOUND_VERBS = {
    "simclr": [
        ("averaging", ["--averages", "1", "2"]),
        ("meter", ["--draws", "2"]),
        ("few-shot", "--ways 2 --queries 1 --episodes 20".split()),
    ],
    "mtslvr": [("sensitivity", ["--parts", "2"]), ("weight-shares", ["--parts", "2"])],
    "amortised": [("finetune", ["--epochs", "1", "--batch-size", "16"])],
}


def folder_of_sounds(root):
    """Two classes of 12 short tones."""
    for name, hertz in (("low", 220.0), ("high", 880.0)):
        (root / name).mkdir(parents=True)
        for number in range(12):
            wave = 0.2 * np.sin(2 * np.pi * (hertz + 5 * number) * np.arange(6_000) / 16_000)
            soundfile.write(root / name / f"{number}.wav", wave, 16_000)
    return root


@pytest.fixture
def few(monkeypatch, tmp_path):
    """Readouts on few clips, from an empty current folder."""
    for name in ("RENDERED", "LIVE", "FINAL"):
        monkeypatch.setattr(assemble, name, FEW)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(method, *flags):
    short = ("--max-steps", "2", "--batch-size", "4", "--device", "cpu", "--out", f"{method}-run")
    return train(["--method", method, "--data", "tones", *short, *flags])


def score_a_folder(folder, sounds, capsys):
    """A run on Tones looks at files: with every verb, and in windows."""
    sounds = ["--data", sounds, "--device", "cpu"]
    for verb, own in SOUND_VERBS["simclr"]:
        assert evaluate([verb, "--run", str(folder), *sounds, *own]) == 0
    assert "windows of 5 s" in capsys.readouterr().out
    episodes = ["few-shot", "--run", str(folder), *sounds, *SOUND_VERBS["simclr"][2][1]]
    assert evaluate([*episodes, "--windows", "0.25", "--normalise", "none"]) == 0
    said = capsys.readouterr().out
    assert "test_images: 5" in said and "test_windows: 10" in said and "centroid_top1" in said
    assert evaluate([*episodes, "--windows", "0"]) == 0
    assert "crop: central second" in capsys.readouterr().out
    assert evaluate([*episodes, "--windows", "0.01"]) == 2
    assert "seconds: expected more than 0.064" in capsys.readouterr().err
    still = ["few-shot", "--run", str(folder), "--windows", "2", "--device", "cpu"]
    assert evaluate(still) == 2
    assert "tones has no sounds to cut" in capsys.readouterr().err
    assert evaluate(["knn", "--run", str(folder), *sounds]) == 0
    assert evaluate(["knn", "--run", str(folder), *sounds]) == 0
    assert "2 extractions saved" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["simclr", "mtslvr", "amortised"])
def test_a_run_on_tones_ends_in_a_score_and_an_encoder_that_loads(method, few, capsys):
    assert run(method) == 0
    said = capsys.readouterr().out
    assert "knn of timbre on 40 train, 20 test sounds" in said and "raw log-mel" in said
    folder = few / f"{method}-run"
    card = (folder / "export" / "README.md").read_text()
    assert "log-mel (N, 1, 128, F)" in card
    names: dict = {}
    code = card.split("```python\n")[1].split("```")[0]
    if method != "simclr":
        assert "encoder_of" in code
        names["model"] = encoder_of(folder)
        names["model"].load_state_dict(load_file(folder / "export" / "backbone.safetensors"))
    else:
        exec(code.replace("export/", f"{folder}/export/"), names)  # noqa: S102  (the card's own lines)
    assert names["model"].eval()(torch.zeros(2, 1, 128, 32)).shape == (2, 128)
    flags = ["--train-images", "40", "--test-images", "20", "--factor", "pitch_class"]
    assert evaluate(["knn", "--run", str(folder), *flags, "--device", "cpu"]) == 0
    assert "label: pitch_class" in capsys.readouterr().out
    for verb, own in SOUND_VERBS[method]:
        assert evaluate([verb, "--run", str(folder), *flags, *own, "--device", "cpu"]) == 0
    assert len(capsys.readouterr().out) > 100
    if method == "simclr":
        score_a_folder(folder, str(folder_of_sounds(few / "sounds")), capsys)
    refused = ["robustness", "--run", str(folder), *flags, "--device", "cpu"]
    assert evaluate(refused) == 2
    assert "needs data whose variation can be shifted" in capsys.readouterr().err


def test_three_channels_are_trained_on_kept_and_scored(few, capsys):
    three = ("--front", "mel-magnitude-phase")
    assert run("mtslvr", *three) == 0
    folder = few / "mtslvr-run"
    assert "front: mel-magnitude-phase" in (folder / "config.yaml").read_text()
    card = (folder / "export" / "README.md").read_text()
    assert "log-mel, log magnitude and phase (N, 3, 128, F)" in card
    assert "raw mel, magnitude and phase" in capsys.readouterr().out
    sounds = str(folder_of_sounds(few / "sounds"))
    asked = ["--run", str(folder), "--data", sounds, "--device", "cpu"]
    assert evaluate(["knn", *asked]) == 0
    assert evaluate(["sensitivity", *asked, "--parts", "2"]) == 0
    assert run("mtslvr", "--resume", "--front", "logmel") == 2
    assert "front was 'mel-magnitude-phase', now 'logmel'" in capsys.readouterr().err
    flags = ["--backbone", "resnet18", "--max-steps", "1", "--batch-size", "4", "--device", "cpu"]
    flags += ["--out", "resnet-run", "--adapter", "bn", *three]
    assert train(["--method", "mtslvr", "--data", sounds, *flags]) == 0
    assert encoder_of(few / "resnet-run").stem[0].weight.shape == (64, 3, 7, 7)
    assert train(["--data", "spirograph", *three]) == 2
    assert "--front mel-magnitude-phase: is for sounds" in capsys.readouterr().err


def test_weights_of_three_channels_are_scored_with_the_same_flag(few, capsys):
    assert run("simclr", "--front", "mel-magnitude-phase") == 0
    export = few / "simclr-run" / "export"
    assert 'build_backbone("convnet", 128)' in (export / "README.md").read_text()
    alone = ["--weights", str(export / "backbone.safetensors"), "--backbone", "convnet"]
    alone += ["--data", "tones", "--train-images", "40", "--test-images", "20", "--device", "cpu"]
    assert evaluate(["knn", *alone, "--front", "mel-magnitude-phase"]) == 0
    assert evaluate(["knn", *alone]) == 2
    assert "layers.0.weight" in capsys.readouterr().err
    asked = ["knn", "--run", str(few / "simclr-run"), "--front", "logmel", "--device", "cpu"]
    assert evaluate(asked) == 2
    assert "--front: goes with --weights" in capsys.readouterr().err


def test_a_run_from_before_the_front_end_was_a_setting_resumes(few, capsys):
    assert run("simclr", "--save-every", "1") == 0
    folder = few / "simclr-run"
    shutil.rmtree(max((folder / "checkpoints").iterdir()))
    config = folder / "config.yaml"
    text = re.sub(r"\n  (front|schedule|half_period): .*", "", config.read_text())
    assert "front" not in text
    config.write_text(text)
    capsys.readouterr()
    flags = ["--train-images", "40", "--test-images", "20", "--device", "cpu"]
    assert evaluate(["knn", "--run", str(folder), *flags]) == 0
    assert train(["--out", str(folder), "--resume"]) == 0
    assert "resumed from step 1 of 2" in capsys.readouterr().out


def test_the_preview_shows_sounds(few, capsys):
    assert train(["--data", "tones", "--preview", "2", "--augment", "clar"]) == 0
    assert "2 sounds, 2 views of each (clar)" in capsys.readouterr().out
    assert (few / "preview-tones-clar.png").stat().st_size > 1000


def test_a_method_without_a_recipe_for_sounds_is_refused(few, capsys):
    assert train(["--method", "dino", "--data", "tones"]) == 2
    assert "expected one of simclr, simsiam, amortised, mtslvr" in capsys.readouterr().err
