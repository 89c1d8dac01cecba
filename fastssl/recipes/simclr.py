"""SimCLR's runs (Chen et al. 2020, arXiv:2002.05709)."""

from __future__ import annotations

from fastssl.engine.config import TrainConfig
from fastssl.methods.configs import SimCLRConfig
from fastssl.recipes.run import Run


def spirograph() -> Run:
    """SimCLR on the embedded Spirograph with the small conv net.

    Command: python -m fastssl.train --method simclr --compile
    """
    return Run(
        train=TrainConfig(
            method="simclr",
            data="spirograph",
            backbone="convnet",
            image_size=32,
            max_steps=1600,
            batch_size=128,
            lr=1.2e-2,
            warmup_steps=40,
            save_every=400,
        ),
        method=SimCLRConfig(temperature=0.2, projector_dims=(128, 64)),
    )


def folder() -> Run:
    """SimCLR on a folder of images with a ResNet-18; see ``--image-size`` for other sizes.

    Command: python -m fastssl.train --method simclr --compile --data DIR
    """
    return Run(
        train=TrainConfig(
            method="simclr",
            data="DIR",
            backbone="resnet18",
            image_size=64,
            epochs=100,
            batch_size=256,
            lr=1e-3,
            warmup_steps=100,
        ),
        method=SimCLRConfig(temperature=0.2, projector_dims=(512, 128)),
    )
