"""Runs on sounds: the embedded Tones with the small conv net, folders of sounds with a ResNet-18.

Clips of one second at 16 kHz, MT-SLVR's augmentations, log-mel with 128 bands. Times and scores:
docs/audio.md where measured. ``image_size`` 128 gives a ResNet the stem that its library publishes.
"""

from __future__ import annotations

from typing import Any

from fastssl.engine.config import TrainConfig
from fastssl.methods import configs, paper_configs
from fastssl.recipes.run import Run


def _tones(method: str, settings: Any, **train: Any) -> Run:
    values = {
        "method": method,
        "data": "tones",
        "augment": "mtslvr",
        "backbone": "convnet",
        "image_size": 128,
        "max_steps": 1000,
        "batch_size": 64,
        "lr": 16e-3,
        "warmup_steps": 40,
        "save_every": 500,
    }
    return Run(train=TrainConfig(**{**values, **train}), method=settings)


def _folder(method: str, settings: Any, **train: Any) -> Run:
    values = {"data": "DIR", "backbone": "resnet18", "max_steps": None, "epochs": 100}
    longer = {"batch_size": 128, "lr": 1e-3, "warmup_steps": 100}
    return _tones(method, settings, **{**values, **longer, **train})


def simclr() -> Run:
    """SimCLR on Tones.

    Command: python -m fastssl.train --method simclr --data tones
    Tuned on clips of 8 kHz with 32 bands (seed 100, 400 steps, 2,000 train and 1,500 test objects),
    kNN of timbre: .79 at a rate of 6e-3, .77 at 2e-3, .68 at 7e-4; temperature .1 .75, .5 .76.
    Mean and deviation of every band over time .71, the untrained encoder .43. Of pitch class, which
    is an augmentation: .26, .81 and .55. Clamped and scaled decibels changed nothing (.78 at 2e-3).
    """
    return _tones("simclr", configs.SimCLRConfig(temperature=0.2, projector_dims=(128, 64)))


def simsiam() -> Run:
    """SimSiam on Tones.

    Command: python -m fastssl.train --method simsiam --data tones
    """
    settings = configs.SimSiamConfig(projector_dims=(256, 256, 256), predictor_hidden_dim=64)
    return _tones("simsiam", settings, lr=4e-3)


def amortised() -> Run:
    """Amortised invariances to four groups of operators on Tones, over SimCLR; 15 corners.

    Each corner has a head and a fifteenth of the steps: fewer corners learn faster
    (benchmarks/claims/amortised_audio.py has 5).

    Command: python -m fastssl.train --method amortised --data tones
    """
    settings = paper_configs.AmortisedConfig(
        num_bits=4, num_corners=15, projector_dims=(128, 64), temperature=0.2
    )
    return _tones("amortised", settings, augment="amortised-audio", lr=8e-3)


def simclr_folder() -> Run:
    """SimCLR on a folder of sounds.

    Command: python -m fastssl.train --method simclr --data DIR
    """
    return _folder("simclr", configs.SimCLRConfig(temperature=0.2, projector_dims=(512, 128)))


def simsiam_folder() -> Run:
    """SimSiam on a folder of sounds (SGD, lr .05, weight decay 1e-4).

    Command: python -m fastssl.train --method simsiam --data DIR
    """
    sgd = {"optimizer": "sgd", "lr": 0.05, "weight_decay": 1e-4}
    return _folder("simsiam", configs.SimSiamConfig(), **sgd)


def amortised_folder() -> Run:
    """Amortised invariances on a folder of sounds, over SimCLR, ResNet-18 with low-rank kernels.

    Command: python -m fastssl.train --method amortised --data DIR
    """
    settings = paper_configs.AmortisedConfig(
        num_bits=4, num_corners=15, projector_dims=(512, 128), generator="low-rank"
    )
    return _folder("amortised", settings, augment="amortised-audio", lr=5e-4, weight_decay=2e-5)


def mtslvr() -> Run:
    """MT-SLVR on Tones, parallel adapters; --method.adapter and --method.task for its variants.

    Command: python -m fastssl.train --method mtslvr --data tones
    """
    settings = paper_configs.MTSLVRConfig(output_dim=128, projector_dims=(128, 64), temperature=0.2)
    return _tones("mtslvr", settings)


def mtslvr_folder() -> Run:
    """MT-SLVR on a folder of sounds with the paper's heads, Adam-like, one cosine decay to 0.

    Command: python -m fastssl.train --method mtslvr --data DIR
    """
    return _folder("mtslvr", paper_configs.MTSLVRConfig())
