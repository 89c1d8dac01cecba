"""SimCLR's runs (Chen et al. 2020, arXiv:2002.05709)."""

from __future__ import annotations

from fastssl.engine.config import TrainConfig
from fastssl.methods.configs import SimCLRConfig
from fastssl.recipes.run import Run


def spirograph() -> Run:
    """SimCLR on the embedded Spirograph with the small conv net.

    Command: python -m fastssl.train --method simclr --compile
    Time: 1 min 32 s on two cores of an AMD EPYC (Zen 4), compilation included; on two busy cores of
    a Zen 3, 1,500 steps took 4 min 18 s to over 5 min 30 s.
    Score: ridge MSE 0.0091 (n = 1), beside 0.234 mean predictor, 0.061 pixels, 0.078 untrained.

    At 800 steps of 128: temperature 0.2 gave 0.0106; 0.07, 0.1, 0.3 gave 0.0125, 0.0115, 0.0128;
    half as many steps of 256 gave 0.0140.
    """
    return Run(
        train=TrainConfig(
            method="simclr",
            data="spirograph",
            augment="spirograph",
            backbone="convnet",
            image_size=32,
            max_steps=1000,
            batch_size=128,
            lr=6e-3,
            warmup_steps=40,
            save_every=500,
        ),
        method=SimCLRConfig(temperature=0.2, projector_dims=(128, 64)),
    )


def folder() -> Run:
    """SimCLR on a folder of images with a ResNet-18; see ``--image-size`` for other sizes.

    Command: python -m fastssl.train --method simclr --compile --data DIR
    Time and score: not measured; they depend on the images.
    """
    return Run(
        train=TrainConfig(
            method="simclr",
            data="DIR",
            augment="simclr",
            backbone="resnet18",
            image_size=64,
            epochs=100,
            batch_size=256,
            lr=1e-3,
            warmup_steps=100,
        ),
        method=SimCLRConfig(temperature=0.2, projector_dims=(512, 128)),
    )
