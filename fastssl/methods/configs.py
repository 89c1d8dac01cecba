"""Each method's own settings. Imports no torch: ``--help`` must stay fast.

Every attribute's comment is its help text on the command line and its meaning in ``config.yaml``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SimCLRConfig:
    """SimCLR (Chen et al. 2020, arXiv:2002.05709)."""

    temperature: float = 0.5
    """Divides the cosine similarities. Lower weighs the nearest negatives more."""
    projector_dims: tuple[int, ...] = (128, 64)
    """Widths of the projection head's layers; the last one is the embedding."""


@dataclass(frozen=True, kw_only=True)
class MoCoV2Config:
    """MoCo v2 (Chen et al. 2020, arXiv:2003.04297)."""

    temperature: float = 0.2
    """Divides the cosine similarities."""
    projector_dims: tuple[int, ...] = (2048, 128)
    """Widths of the projection head's layers; the last one is the embedding."""
    queue_size: int = 65536
    """Keys of earlier batches that serve as negatives."""
    momentum: float = 0.999
    """Of the key encoder's average."""
    bn_splits: int = 8
    """Parts of a batch that the key encoder's batch norms see apart (in place of shuffled BN)."""
    queries: Literal["first", "both"] = "first"
    """Views that are queries: the first, as in the paper, or each in turn (symmetric)."""


@dataclass(frozen=True, kw_only=True)
class MoCoV3Config:
    """MoCo v3 (Chen, Xie, He 2021, arXiv:2104.02057)."""

    temperature: float = 0.2
    """Divides the cosine similarities."""
    projector_dims: tuple[int, ...] = (4096, 4096, 256)
    """Widths of the projection head's layers; the last one is the embedding."""
    predictor_hidden_dims: tuple[int, ...] = (4096,)
    """Hidden widths of the prediction head."""
    momentum: float = 0.99
    """Of the key encoder's average at the start; it rises to 1."""
    freeze_patch_embedding: bool = False
    """Keep a ViT's patch projection at its random start (the paper does for ViTs)."""


@dataclass(frozen=True, kw_only=True)
class SimSiamConfig:
    """SimSiam (Chen and He 2021, arXiv:2011.10566)."""

    projector_dims: tuple[int, ...] = (2048, 2048, 2048)
    """Widths of the projection head's layers."""
    predictor_hidden_dim: int = 512
    """Hidden width of the prediction head."""


@dataclass(frozen=True, kw_only=True)
class BYOLConfig:
    """BYOL (Grill et al. 2020, arXiv:2006.07733)."""

    projector_dims: tuple[int, ...] = (4096, 256)
    """Widths of the projection head's layers."""
    predictor_hidden_dim: int = 4096
    """Hidden width of the prediction head."""
    momentum: float = 0.996
    """Of the target network's average at the start; it rises to 1."""


@dataclass(frozen=True, kw_only=True)
class BarlowConfig:
    """Barlow Twins (Zbontar et al. 2021, arXiv:2103.03230)."""

    projector_dims: tuple[int, ...] = (8192, 8192, 8192)
    """Widths of the projection head's layers; the last one is the embedding."""
    redundancy: float = 0.0051
    """Weight lambda of the off-diagonal correlations."""


@dataclass(frozen=True, kw_only=True)
class VICRegConfig:
    """VICReg (Bardes, Ponce, LeCun 2022, arXiv:2105.04906)."""

    projector_dims: tuple[int, ...] = (8192, 8192, 8192)
    """Widths of the expander's layers; the last one is the embedding."""
    invariance: float = 25.0
    """Weight of the distance between views."""
    variance: float = 25.0
    """Weight of the hinge that keeps each dimension's deviation at 1."""
    covariance: float = 1.0
    """Weight of the off-diagonal covariances."""


@dataclass(frozen=True, kw_only=True)
class SupConConfig:
    """Supervised contrastive learning (Khosla et al. 2020, arXiv:2004.11362)."""

    temperature: float = 0.1
    """Divides the cosine similarities."""
    projector_dims: tuple[int, ...] = (2048, 128)
    """Widths of the projection head's layers; the last one is the embedding."""
    form: Literal["out", "in"] = "out"
    """Average over positives outside the logarithm (the paper's choice) or inside."""


@dataclass(frozen=True, kw_only=True)
class SwAVConfig:
    """SwAV (Caron et al. 2020, arXiv:2006.09882)."""

    temperature: float = 0.1
    """Divides the scores that predict."""
    epsilon: float = 0.05
    """Smoothness of the codes (Sinkhorn's regularisation)."""
    projector_dims: tuple[int, ...] = (2048, 128)
    """Widths of the projection head's layers; the last one is the embedding."""
    num_prototypes: int = 3000
    """Learned cluster centres."""
    queue_size: int = 0
    """Embeddings of earlier batches that take part in balancing the codes; for small batches."""
    freeze_prototypes_steps: int = 313
    """Steps at the start in which the prototypes stand still."""


@dataclass(frozen=True, kw_only=True)
class DINOConfig:
    """DINO (Caron et al. 2021, arXiv:2104.14294)."""

    temperature: float = 0.1
    """Of the student."""
    teacher_temperature: float = 0.04
    """Of the teacher after its warm-up."""
    warmup_teacher_temperature: float = 0.04
    """Of the teacher at the start."""
    warmup_teacher_steps: int = 0
    """Steps in which the teacher's temperature goes from the first to the last."""
    projector_dims: tuple[int, ...] = (2048, 2048, 256)
    """Widths of the head's layers; the last one is the bottleneck."""
    num_outputs: int = 65536
    """Outputs that student and teacher are compared on."""
    momentum: float = 0.996
    """Of the teacher's average at the start; it rises to 1."""
    centre_momentum: float = 0.9
    """Of the running mean that the teacher's outputs are centred by."""
    freeze_outputs_steps: int = 1251
    """Steps at the start in which the last layer stands still."""
