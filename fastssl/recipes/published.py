"""``--recipe NAME``: runs at the papers' scale, for data in a folder, in shards or in arrays.

A line is one run. ``source`` says whose numbers they are: "paper" (the method's own, compared with
the code that its authors published), "paper, unchecked" (the method's own, from memory), "usual"
(what others run on this set, from memory), "ours" (chosen here, untried).
None of them was trained here. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fastssl.engine.config import OptimizerName, TrainConfig
from fastssl.methods import configs as c
from fastssl.methods import paper_configs as p
from fastssl.recipes.run import Run

Source = Literal["paper", "paper, unchecked", "usual", "ours"]
SIZES = {"cifar10": 32, "cifar100": 32, "tinyimagenet": 64, "imagenet100": 224, "imagenet": 224}
IMAGES = {
    "cifar10": 50_000,
    "cifar100": 50_000,
    "tinyimagenet": 100_000,
    "imagenet100": 126_689,
    "imagenet": 1_281_167,
}


@dataclass(frozen=True)
class Line:
    """A run: lr is for 256 samples (the engine multiplies by batch / 256), warm-up in epochs."""

    backbone: str
    optimizer: OptimizerName
    lr: float
    weight_decay: float
    batch: int
    epochs: int
    warmup: int
    augment: str
    settings: Any
    source: Source = "paper, unchecked"


CIFAR: dict[str, Line] = {
    "simclr": Line("resnet50", "lars", 1.0, 1e-6, 512, 1000, 10, "simclr",
        c.SimCLRConfig(temperature=0.5, projector_dims=(2048, 128))),
    "mocov2": Line("resnet18", "sgd", 0.03, 5e-4, 512, 200, 0, "mocov2",
        c.MoCoV2Config(temperature=0.1, projector_dims=(512, 128), queue_size=4096, momentum=0.99),
        "usual"),
    "mocov3": Line("resnet18", "lars", 0.3, 1e-6, 256, 1000, 10, "byol",
        c.MoCoV3Config(projector_dims=(4096, 4096, 256)), "usual"),
    "simsiam": Line("resnet18", "sgd", 0.03, 5e-4, 512, 800, 0, "mocov2",
        c.SimSiamConfig(projector_dims=(2048, 2048))),
    "byol": Line("resnet18", "lars", 1.0, 1e-5, 256, 1000, 10, "byol",
        c.BYOLConfig(momentum=0.99), "usual"),
    "swav": Line("resnet18", "lars", 0.6, 1e-6, 256, 1000, 10, "simclr",
        c.SwAVConfig(queue_size=3840), "usual"),
    "dino": Line("resnet18", "lars", 0.3, 1e-6, 256, 1000, 10, "simclr",
        c.DINOConfig(num_outputs=4096), "usual"),
    "barlow": Line("resnet18", "lars", 0.3, 1e-4, 256, 1000, 10, "byol",
        c.BarlowConfig(projector_dims=(2048, 2048, 2048)), "usual"),
    "vicreg": Line("resnet18", "lars", 0.3, 1e-4, 256, 1000, 10, "byol",
        c.VICRegConfig(projector_dims=(2048, 2048, 2048)), "usual"),
    "supcon": Line("resnet50", "sgd", 0.125, 1e-4, 1024, 1000, 10, "simclr",
        c.SupConConfig(temperature=0.1)),
    "invclr": Line("resnet50", "lars", 1.5, 1e-6, 512, 1000, 10, "invclr",
        p.InvCLRConfig(penalty=0.1, clip=1.0, temperature=0.5, projector_dims=(2048, 128)),
        "paper"),
    "amortised": Line("resnet18", "adamw", 1e-3, 2e-5, 256, 300, 0, "amortised-2",
        p.AmortisedConfig(projector_dims=(512, 128), generator="low-rank"), "ours"),
    "cissl": Line("resnet18", "adamw", 1e-3, 1e-6, 512, 300, 10, "dissl",
        p.CISSLConfig(), "ours"),
    "dissl": Line("resnet18", "adamw", 2e-3, 1e-6, 256, 300, 10, "dissl",
        p.DISSLConfig(), "ours"),
    "stochastic": Line("resnet18", "adamw", 1e-3, 1e-6, 512, 500, 10, "simclr",
        p.StochasticConfig(latent_dim=512, projector_dims=(512, 128)), "ours"),
}  # fmt: skip

TINY: dict[str, Line] = {
    "simclr": Line("resnet18", "adamw", 1e-3, 1e-6, 512, 300, 10, "dissl",
        c.SimCLRConfig(temperature=0.07, projector_dims=(1024, 128)), "paper"),
    "dino": Line("resnet18", "adamw", 2e-3, 1e-6, 256, 300, 10, "dissl",
        c.DINOConfig(projector_dims=(1024, 256), num_outputs=1000, teacher_temperature=0.07,
            warmup_teacher_steps=19_500, freeze_outputs_steps=390), "paper"),
    "cissl": Line("resnet18", "adamw", 1e-3, 1e-6, 512, 300, 10, "dissl",
        p.CISSLConfig(), "paper"),
    "dissl": Line("resnet18", "adamw", 2e-3, 1e-6, 256, 300, 10, "dissl",
        p.DISSLConfig(), "paper"),
}  # fmt: skip

IMAGENET100: dict[str, Line] = {
    "mocov2": Line("resnet50", "adamw", 1e-3, 2e-5, 128, 300, 0, "mocov2",
        c.MoCoV2Config(temperature=0.1, momentum=0.99)),
    "amortised": Line("resnet50", "adamw", 1e-3, 2e-5, 128, 300, 0, "amortised-2",
        p.AmortisedConfig(over="mocov2"), "paper"),
}  # fmt: skip

IMAGENET: dict[str, Line] = {
    "simclr": Line("resnet50", "lars", 0.3, 1e-6, 4096, 1000, 10, "simclr",
        c.SimCLRConfig(temperature=0.1, projector_dims=(2048, 128))),
    "mocov2": Line("resnet50", "sgd", 0.03, 1e-4, 256, 800, 0, "mocov2", c.MoCoV2Config()),
    "mocov3": Line("vit_b_16", "adamw", 1.5e-4, 0.1, 4096, 300, 40, "byol",
        c.MoCoV3Config(freeze_patch_embedding=True)),
    "simsiam": Line("resnet50", "sgd", 0.05, 1e-4, 512, 100, 0, "mocov2", c.SimSiamConfig()),
    "byol": Line("resnet50", "lars", 0.2, 1.5e-6, 4096, 1000, 10, "byol", c.BYOLConfig()),
    "swav": Line("resnet50", "lars", 0.3, 1e-6, 4096, 800, 10, "swav", c.SwAVConfig()),
    "dino": Line("timm/vit_small_patch16_224", "adamw", 5e-4, 0.04, 1024, 300, 10, "swav",
        c.DINOConfig()),
    "barlow": Line("resnet50", "lars", 0.2, 1.5e-6, 2048, 1000, 10, "byol", c.BarlowConfig()),
    "vicreg": Line("resnet50", "lars", 0.2, 1e-6, 2048, 1000, 10, "byol", c.VICRegConfig()),
    "supcon": Line("resnet50", "lars", 0.3, 1e-4, 4096, 700, 10, "simclr",
        c.SupConConfig(), "ours"),
    "amortised": Line("vit_b_16", "adamw", 1.5e-4, 0.1, 1024, 300, 40, "amortised-2",
        p.AmortisedConfig(over="mocov3", temperature=0.2, projector_dims=(4096, 4096, 256)),
        "paper"),
    "cissl": Line("resnet50", "lars", 0.3, 1e-6, 2560, 100, 10, "dissl",
        p.CISSLConfig(temperature=0.1, projector_dims=(2048, 2048, 128)), "paper"),
    "dissl": Line("resnet50", "lars", 0.3, 1e-6, 2560, 100, 10, "dissl",
        p.DISSLConfig(invariance=0.6, teacher_hidden_dims=(2048, 2048)), "paper"),
    "stochastic": Line("resnet50", "lars", 0.3, 1e-6, 4096, 500, 10, "simclr",
        p.StochasticConfig(projector_dims=(2048, 128)), "ours"),
}  # fmt: skip

PUBLISHED = {
    "cifar10": CIFAR,
    "cifar100": CIFAR,
    "tinyimagenet": TINY,
    "imagenet100": IMAGENET100,
    "imagenet": IMAGENET,
}


def published_run(method: str, recipe: str) -> Run:
    """The line as a Run. ValueError for a recipe that is unknown, or not there for this method."""
    if recipe not in PUBLISHED:
        raise ValueError(f"--recipe: expected one of {', '.join(PUBLISHED)}, received {recipe!r}")
    if method not in PUBLISHED[recipe]:
        those = [name for name, lines in PUBLISHED.items() if method in lines]
        have = f"has {', '.join(those)}" if those else "has none"
        raise ValueError(f"--recipe {recipe}: --method {method} {have}")
    line = PUBLISHED[recipe][method]
    train = TrainConfig(
        method=method,
        data="DIR",
        recipe=recipe,
        augment=line.augment,
        backbone=line.backbone,
        image_size=SIZES[recipe],
        epochs=line.epochs,
        batch_size=line.batch,
        lr=line.lr,
        weight_decay=line.weight_decay,
        optimizer=line.optimizer,
        warmup_steps=line.warmup * (IMAGES[recipe] // line.batch),
        save_every=1000,
        log_every=50,
    )
    return Run(train=train, method=line.settings)
