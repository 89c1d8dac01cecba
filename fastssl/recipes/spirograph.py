"""Runs on the embedded Spirograph with the small conv net, one per method; SimCLR's is simclr.py.

All share its loop (32 px, batches of 128, AdamW) and differ in the method's settings, whose widths
are cut to the small encoder. Times and scores: docs/claims.md where measured.
"""

from __future__ import annotations

from typing import Any

from fastssl.engine.config import TrainConfig
from fastssl.methods import configs, paper_configs
from fastssl.recipes.run import Run


def _run(method: str, settings: Any, **train: Any) -> Run:
    values = {
        "method": method,
        "data": "spirograph",
        "augment": "spirograph",
        "backbone": "convnet",
        "image_size": 32,
        "max_steps": 1000,
        "batch_size": 128,
        "lr": 6e-3,
        "warmup_steps": 40,
        "save_every": 500,
    }
    return Run(train=TrainConfig(**{**values, **train}), method=settings)


def mocov2() -> Run:
    """MoCo v2, a queue of 4,096.

    Command: python -m fastssl.train --method mocov2 --compile
    """
    settings = configs.MoCoV2Config(
        projector_dims=(128, 64), queue_size=4096, momentum=0.99, bn_splits=4
    )
    return _run("mocov2", settings)


def mocov3() -> Run:
    """MoCo v3.

    Command: python -m fastssl.train --method mocov3 --compile
    """
    settings = configs.MoCoV3Config(projector_dims=(256, 256, 64), predictor_hidden_dims=(256,))
    return _run("mocov3", settings)


def simsiam() -> Run:
    """SimSiam.

    Command: python -m fastssl.train --method simsiam --compile
    """
    settings = configs.SimSiamConfig(projector_dims=(256, 256, 256), predictor_hidden_dim=64)
    return _run("simsiam", settings, lr=2e-3)


def byol() -> Run:
    """BYOL.

    Command: python -m fastssl.train --method byol --compile
    """
    settings = configs.BYOLConfig(projector_dims=(256, 64), predictor_hidden_dim=256, momentum=0.99)
    return _run("byol", settings, lr=2e-3)


def swav() -> Run:
    """SwAV, two views of one size.

    Command: python -m fastssl.train --method swav --compile
    """
    settings = configs.SwAVConfig(
        temperature=0.2, projector_dims=(128, 64), num_prototypes=256, freeze_prototypes_steps=10
    )
    return _run("swav", settings)


def dino() -> Run:
    """DINO, two views of one size.

    Command: python -m fastssl.train --method dino --compile
    """
    settings = configs.DINOConfig(
        projector_dims=(256, 256, 64), num_outputs=1024, momentum=0.99, freeze_outputs_steps=50
    )
    return _run("dino", settings, lr=2e-3)


def barlow() -> Run:
    """Barlow Twins.

    Command: python -m fastssl.train --method barlow --compile
    """
    settings = configs.BarlowConfig(projector_dims=(256, 256, 256))
    return _run("barlow", settings, lr=2e-3)


def vicreg() -> Run:
    """VICReg.

    Command: python -m fastssl.train --method vicreg --compile
    """
    settings = configs.VICRegConfig(projector_dims=(256, 256, 256))
    return _run("vicreg", settings, lr=2e-3)


def invclr() -> Run:
    """SimCLR with the gradient penalty on the six nuisances.

    Command: python -m fastssl.train --method invclr --compile
    """
    settings = paper_configs.InvCLRConfig(projector_dims=(128, 64), temperature=0.2, penalty=1e-4)
    return _run("invclr", settings)


def amortised() -> Run:
    """Amortised invariances to geometry and colour (bits of spirograph-2), over SimCLR.

    Command: python -m fastssl.train --method amortised --compile

    After 400 steps (n = 1) the ridge MSE of [1,1] was 0.0297; with --lr 6e-3 0.0339, and 0.0492
    with the authors' dropout of 0.2 besides.
    """
    settings = paper_configs.AmortisedConfig(projector_dims=(128, 64), temperature=0.2, dropout=0.0)
    return _run("amortised", settings, augment="spirograph-2", lr=2e-3)


def cissl() -> Run:
    """CISSL.

    Command: python -m fastssl.train --method cissl --compile
    """
    settings = paper_configs.CISSLConfig(projector_dims=(256, 64), temperature=0.2)
    return _run("cissl", settings)


def dissl() -> Run:
    """DISSL with 1,024 classes.

    Command: python -m fastssl.train --method dissl --compile
    """
    settings = paper_configs.DISSLConfig(
        num_outputs=1024, teacher_hidden_dims=(256,), bottleneck_dim=64
    )
    return _run("dissl", settings, lr=2e-3)


def stochastic() -> Run:
    """SimCLR through 256 Bernoulli bits.

    Command: python -m fastssl.train --method stochastic --compile
    """
    settings = paper_configs.StochasticConfig(
        latent_dim=256, projector_dims=(128, 64), temperature=0.2, beta=1e-4, warmup_beta_steps=200
    )
    return _run("stochastic", settings)
