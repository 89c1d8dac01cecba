"""Spoken words: encoders trained on synthesised speech tell words and speakers from one example.

espeak-ng says 16 words in 10 voices at three speeds and two pitches. The same files lie in folders
by word and in folders by speaker; a fifth of each is for testing, the encoders hear the others.
"""

# shapes: N clips, F features
from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.claims import sounds
from benchmarks.claims.rows import Row, higher
from benchmarks.claims.seeds import Length
from fastssl.augment.audio_policies import AUDIO_POLICIES
from fastssl.data.audio_folder import AudioFolderSource
from fastssl.data.audio_views import AudioViews
from fastssl.evaluation.few_shot import few_shot
from fastssl.nn.logmel import LogMel
from fastssl.recipes.encoders import build_method
from fastssl.recipes.readouts import FeaturesFn

TITLE = "Spoken words"
PAPER = "no paper: speech of espeak-ng, which must be installed"
NOTES = """\
16 words x 10 voices x 3 speeds x 2 pitches, 960 files; clips of a second at 8 kHz, 32 mel bands,
convnet, batch 64, the recipes of Tones. An episode: 5 ways, one example each, 5 to be told;
logistic regression on features of unit length; mean of 1,000 episodes on the files for testing.
Log-mel statistics: mean and deviation of each band. The encoders hear other files of the same words
and voices, without their labels. `amortised` is invariant to all of its groups here."""

WORDS = tuple(
    "apple bridge candle desert engine forest guitar hammer island jacket kettle lemon mirror "
    "needle orange pencil".split()
)
VOICES = ("en-gb", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan",
          "en-us+f2", "en-gb+f4", "en-us+m3", "en-gb-scotland+f3", "en-gb-x-rp+m7")  # fmt: skip
SPEEDS, PITCHES = (140, 175, 210), (40, 60)
STEPS = {"full": 600, "quick": 150}
METHODS = {"simclr": "mtslvr", "simsiam": "mtslvr", "mtslvr": "mtslvr",
           "amortised": "amortised-audio"}  # fmt: skip
"""Each method's augmentation."""
TASKS = ("word", "speaker")
EPISODES = 1000


def speak(folder: Path) -> None:
    """``folder``/word/WORD/... and ``folder``/speaker/VOICE/...: the same WAV files.

    RuntimeError without espeak-ng.
    """
    program = shutil.which("espeak-ng")
    if program is None:
        raise RuntimeError("spoken-words: expected the program espeak-ng on the path; install it")
    for word, voice, speed, pitch in itertools.product(WORDS, VOICES, SPEEDS, PITCHES):
        by_word = folder / "word" / word / f"{voice}-{speed}-{pitch}.wav"
        by_speaker = folder / "speaker" / voice / f"{word}-{speed}-{pitch}.wav"
        if by_speaker.is_file():
            continue
        for file in (by_word, by_speaker):
            file.parent.mkdir(parents=True, exist_ok=True)
        settings = ["-v", voice, "-s", str(speed), "-p", str(pitch), "-w", str(by_word)]
        subprocess.run([program, *settings, word], check=True, capture_output=True)
        os.link(by_word, by_speaker)


def heard(root: Path, policy: str) -> AudioFolderSource:
    """The files below ``root`` in the small setting of sounds.py."""
    rate, window, hop, bands = sounds.RATE, sounds.WINDOW, sounds.HOP, sounds.BANDS
    front = LogMel(sample_rate=rate, n_fft=window, hop=hop, n_mels=bands)
    views = AudioViews(policy=AUDIO_POLICIES[policy], sample_rate=rate, front=front)
    return AudioFolderSource(root, views=views)


def one_seed(seed: int, *, length: Length, folder: Path) -> dict[str, float]:
    """{"METHOD/TASK": accuracy in %}, of the methods, trained and not, and of log-mel bands."""
    files = folder / "speech"
    speak(files)
    runs = {name: sounds.run_of(name, seed, STEPS[length]) for name in METHODS}
    encoders: dict[str, FeaturesFn] = {"bands": sounds.bands}
    for policy in sorted(set(METHODS.values())):
        some = {name: runs[name] for name in METHODS if METHODS[name] == policy}
        nets = sounds.together(some, heard(files / "word", policy), folder)
        encoders |= {name: net.features for name, net in nets.items()}
    for name, run in runs.items():
        torch.manual_seed(seed)
        encoders[f"untrained-{name}"] = build_method(run).eval().features
    found: dict[str, float] = {}
    for task in TASKS:
        part = heard(files / task, "mtslvr").labelled("test", None)
        clean_NCMT = torch.cat(list(part.images(250)))
        for name, encode in encoders.items():
            found[f"{name}/{task}"] = _accuracy(sounds.features(encode, clean_NCMT), part.target)
    return found


def rows(figures: dict[str, list[float]]) -> list[Row]:
    """Each method on both tasks above both floors."""
    found = []
    for task, name in itertools.product(TASKS, METHODS):
        for floor, what in (("bands", "log-mel statistics"), (f"untrained-{name}", "untrained")):
            pair = (figures[f"{name}/{task}"], figures[f"{floor}/{task}"])
            found.append(higher(f"{name}, {task}, %: above {what}", *pair, errors=2))
    return found


def _accuracy(feature_NF: Tensor, label_N: Tensor) -> float:
    settings = {"ways": 5, "shots": 1, "queries": 5, "episodes": EPISODES}
    scores = dict(few_shot(feature_NF, label_N, classifiers=("logistic",), **settings))  # type: ignore[arg-type]
    return 100 * scores["logistic_top1"]
