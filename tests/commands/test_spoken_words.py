"""Real speech of espeak-ng in a folder: trained on and told apart by the commands."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from fastssl.evaluate import main as evaluate
from fastssl.train import main as train

WORDS, VOICES, SPEEDS = ("apple", "bridge", "candle"), ("en-us", "en-gb+f3"), range(140, 260, 20)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """Three words, each said by two voices at six speeds."""
    root = tmp_path_factory.mktemp("speech")
    for word in WORDS:
        (root / word).mkdir()
        for voice in VOICES:
            for speed in SPEEDS:
                file = root / word / f"{voice}-{speed}.wav"
                command = ["espeak-ng", "-v", voice, "-s", str(speed), "-w", str(file), word]
                subprocess.run(command, check=True, capture_output=True)
    return root


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_speech_is_trained_on_and_told_apart(speech, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = "--max-steps 2 --batch-size 8 --backbone convnet --device cpu --out said".split()
    assert train(["--method", "mtslvr", "--data", str(speech), *small]) == 0
    assert "knn on 29 train, 7 test" in capsys.readouterr().out
    episodes = "--ways 2 --shots 1 --queries 1 --episodes 50 --windows 0.5".split()
    assert evaluate(["few-shot", "--run", "said", "--device", "cpu", *episodes]) == 0
    found = re.search(r"logistic_top1\D+([\d.]+)", capsys.readouterr().out)
    assert found and 0 <= float(found[1]) <= 1
