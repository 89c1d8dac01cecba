"""Runs on a folder of images with a ResNet-18, one per method; SimCLR's is simclr.py.

Settings of the methods are their papers' (methods/configs.py) where a ResNet-18 at 64 px can use
them; the loop is one for all: 100 epochs, batches of 256. Not measured: it depends on the images.
"""

from __future__ import annotations

from typing import Any

from fastssl.engine.config import TrainConfig
from fastssl.methods import configs, paper_configs
from fastssl.recipes.run import Run


def _run(method: str, settings: Any, **train: Any) -> Run:
    values = {
        "method": method,
        "data": "DIR",
        "augment": "simclr",
        "backbone": "resnet18",
        "image_size": 64,
        "epochs": 100,
        "batch_size": 256,
        "lr": 1e-3,
        "warmup_steps": 100,
    }
    return Run(train=TrainConfig(**{**values, **train}), method=settings)


def mocov2() -> Run:
    """MoCo v2 (SGD, lr .03, weight decay 1e-4, its own augmentation)."""
    settings = configs.MoCoV2Config(projector_dims=(512, 128), queue_size=16384)
    sgd = {"optimizer": "sgd", "lr": 0.03, "weight_decay": 1e-4}
    return _run("mocov2", settings, augment="mocov2", **sgd)


def mocov3() -> Run:
    """MoCo v3 (AdamW, BYOL's augmentation; a ViT by --backbone vit_b_16)."""
    settings = configs.MoCoV3Config(projector_dims=(2048, 2048, 256), predictor_hidden_dims=(2048,))
    return _run("mocov3", settings, augment="byol", lr=1.5e-4, weight_decay=0.1)


def simsiam() -> Run:
    """SimSiam (SGD, lr .05, weight decay 1e-4)."""
    sgd = {"optimizer": "sgd", "lr": 0.05, "weight_decay": 1e-4}
    return _run("simsiam", configs.SimSiamConfig(), augment="mocov2", **sgd)


def byol() -> Run:
    """BYOL (LARS, lr .2, weight decay 1.5e-6)."""
    lars = {"optimizer": "lars", "lr": 0.2, "weight_decay": 1.5e-6}
    return _run("byol", configs.BYOLConfig(), augment="byol", **lars)


def swav() -> Run:
    """SwAV with multi-crop (LARS, lr .6, weight decay 1e-6)."""
    settings = configs.SwAVConfig(queue_size=3840)
    lars = {"optimizer": "lars", "lr": 0.6, "weight_decay": 1e-6}
    return _run("swav", settings, augment="swav", **lars)


def dino() -> Run:
    """DINO with SwAV's multi-crop (AdamW, lr 5e-4, weight decay .04)."""
    return _run("dino", configs.DINOConfig(), augment="swav", lr=5e-4, weight_decay=0.04)


def barlow() -> Run:
    """Barlow Twins (LARS, lr .2, weight decay 1.5e-6)."""
    settings = configs.BarlowConfig(projector_dims=(2048, 2048, 2048))
    lars = {"optimizer": "lars", "lr": 0.2, "weight_decay": 1.5e-6}
    return _run("barlow", settings, augment="byol", **lars)


def vicreg() -> Run:
    """VICReg (LARS, lr .2, weight decay 1e-6)."""
    settings = configs.VICRegConfig(projector_dims=(2048, 2048, 2048))
    lars = {"optimizer": "lars", "lr": 0.2, "weight_decay": 1e-6}
    return _run("vicreg", settings, augment="byol", **lars)


def supcon() -> Run:
    """SupCon (SGD, lr .05, weight decay 1e-4); the folder needs one folder per class."""
    sgd = {"optimizer": "sgd", "lr": 0.05, "weight_decay": 1e-4}
    return _run("supcon", configs.SupConConfig(projector_dims=(512, 128)), **sgd)


def invclr() -> Run:
    """InvCLR on photographs: penalty .1, clip 1 (its CIFAR settings), its own augmentation."""
    settings = paper_configs.InvCLRConfig(penalty=0.1, clip=1.0)
    return _run("invclr", settings, augment="invclr")


def amortised() -> Run:
    """Amortised invariances, two groups, over SimCLR, low-rank kernels."""
    settings = paper_configs.AmortisedConfig(projector_dims=(512, 128), generator="low-rank")
    return _run("amortised", settings, augment="amortised-2", lr=5e-4, weight_decay=2e-5)


def cissl() -> Run:
    """CISSL (Adam-like, lr 2e-3 at batch 512, its own augmentation)."""
    return _run("cissl", paper_configs.CISSLConfig(), augment="dissl")


def dissl() -> Run:
    """DISSL (Adam-like, lr 2e-3 at batch 256, its own augmentation)."""
    return _run("dissl", paper_configs.DISSLConfig(), augment="dissl", lr=2e-3)


def stochastic() -> Run:
    """Stochastic contrastive learning, 512 Bernoulli bits."""
    settings = paper_configs.StochasticConfig(latent_dim=512, projector_dims=(512, 128))
    return _run("stochastic", settings)
