"""Settings of the methods of the papers this project is about. Imports no torch, as configs.py.

Every attribute's comment is its help text on the command line and its meaning in ``config.yaml``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class CISSLConfig:
    """CISSL (Dubois et al. 2022, arXiv:2209.06235)."""

    temperature: float = 0.07
    """Divides the cosine similarities."""
    projector_dims: tuple[int, ...] = (1024, 128)
    """Widths of the teacher head's layers; the student is linear, to the last of them."""
    dim: int | None = None
    """Width of the representation, by a bottleneck before the pooling; 0: the backbone's."""


@dataclass(frozen=True, kw_only=True)
class DISSLConfig:
    """DISSL (Dubois et al. 2022, arXiv:2209.06235)."""

    temperature: float = 1.0
    """Of the student."""
    teacher_temperature: float = 0.5
    """Of the teacher."""
    num_outputs: int = 16384
    """Classes that teacher and student tell apart."""
    teacher_hidden_dims: tuple[int, ...] = (1024,)
    """Hidden widths of the teacher head before the bottleneck."""
    bottleneck_dim: int = 512
    """Width that both heads pass before their outputs."""
    maximality: float = 2.3
    """Weight lambda of the entropy of the batch's mean class; 1.8 to 2.8 is useful."""
    invariance: float = 0.8
    """Weight beta of the teachers' agreement; 0.6 on ImageNet."""
    dim: int | None = None
    """Width of the representation, by a bottleneck before the pooling; 0: the backbone's."""


@dataclass(frozen=True, kw_only=True)
class StochasticConfig:
    """Stochastic contrastive learning, after the abstract (Ramapuram et al. 2021, 2110.00552)."""

    latent: Literal["gaussian", "bernoulli", "categorical"] = "bernoulli"
    """Family of the latent variables."""
    latent_dim: int = 2048
    """Dimensions of the latent (bits of a Bernoulli one)."""
    placement: Literal["representation", "head"] = "representation"
    """The latent stands for the representation, or follows the projection head."""
    sampling: Literal["relaxed", "hard"] = "relaxed"
    """Relaxed samples, or hard ones with a straight-through gradient (discrete latents)."""
    relaxation: float = 0.5
    """Temperature of the relaxed samples."""
    values: int = 16
    """Values of each categorical variable."""
    beta: float = 1e-3
    """Weight of the rate (KL from the prior, nats, summed over dimensions)."""
    warmup_beta_steps: int = 0
    """Steps in which beta rises from 0."""
    temperature: float = 0.1
    """Divides the cosine similarities."""
    projector_dims: tuple[int, ...] = (1024, 128)
    """Widths of the projection head's layers."""


@dataclass(frozen=True, kw_only=True)
class AmortisedConfig:
    """Amortised invariance learning (Chavhan et al. 2023, arXiv:2302.12712).

    Every micro-batch has an invariance vector of its own: with --accumulate k a step has up to k.
    """

    over: Literal["simclr", "mocov2", "mocov3"] = "simclr"
    """The contrastive method that it amortises."""
    num_bits: int = 2
    """Groups of augmentations, those of --augment (amortised-2: 2, amortised-5: 5)."""
    num_corners: int = 3
    """Invariance vectors that are trained (amortised-2: 3, amortised-5: 26); each has a head."""
    generator: Literal["full", "low-rank"] = "full"
    """Kernels from the authors' 32-fold hyper-network, or from a low-rank one."""
    rank: int = 8
    """Of the low-rank generator."""
    dropout: float = 0.2
    """Share of a ResNet's pooled features that training drops; a ViT's are kept."""
    prompt_networks: int = 256
    """Networks that are averaged into a ViT's prompt token."""
    temperature: float = 0.1
    """Divides the cosine similarities."""
    projector_dims: tuple[int, ...] = (2048, 128)
    """Widths of each head's layers; the last one is the embedding."""
    predictor_hidden_dims: tuple[int, ...] = (4096,)
    """Hidden widths of each prediction head (over mocov3)."""
    queue_size: int = 65536
    """Keys in each corner's queue (over mocov2)."""
    momentum: float = 0.99
    """Of the key encoder's average; over mocov3 it rises to 1."""
    bn_splits: int = 8
    """Parts of a batch that the key encoder's batch norms see apart (over mocov2)."""


@dataclass(frozen=True, kw_only=True)
class InvCLRConfig:
    """Improved transformation invariance (Foster et al. 2021, arXiv:2010.09515)."""

    over: Literal["simclr", "mocov2"] = "simclr"
    """The contrastive method that is penalised."""
    penalty: float = 0.01
    """Weight lambda of the penalty: 0.1 on CIFAR, 0.01 on Spirograph. Too much collapses."""
    clip: float = 1000.0
    """Bound u of the penalty (1 on CIFAR, 1000 on Spirograph)."""
    bound: Literal["mean", "each"] = "mean"
    """What u bounds: the batch's mean V, whose gradient is zero above it, as the authors do; or
    each sample's V_n, smoothly, V_n u / (V_n + u)."""
    expectation: Literal["forward", "closed", "monte-carlo"] = "forward"
    """Estimator of the variance: one draw of fresh parameters and every feature, in forward mode
    (convolutional encoders); or, twice backward and dearer, a random sign for each feature and
    the draws in closed form, or the authors' 100 of them."""
    normalise: Literal["unit", "none", "total"] = "unit"
    """Penalise features of unit length; or as they are; or, with "total", those of unit length
    relative to their variance over this rank's batch, so that shrinking all of it gains nothing."""
    temperature: float = 0.5
    """Divides the cosine similarities."""
    projector_dims: tuple[int, ...] = (512, 128)
    """Widths of the projection head's layers; the last one is the embedding."""
    queue_size: int = 2048
    """Keys of earlier batches (over mocov2)."""
    momentum: float = 0.99
    """Of the key encoder's average (over mocov2)."""
    bn_splits: int = 8
    """Parts of a batch that the key encoder's batch norms see apart (over mocov2)."""


@dataclass(frozen=True, kw_only=True)
class MTSLVRConfig:
    """MT-SLVR (Heggan et al. 2023, arXiv:2305.17191)."""

    adapter: Literal["none", "split", "bn", "series", "parallel"] = "parallel"
    """What each task has of its own: nothing, its output, or adapters in the later stages."""
    task: Literal["both", "cont", "pred"] = "both"
    """Both losses, or one alone (then there are no adapters): contrastive or predictive."""
    over: Literal["simclr", "simsiam"] = "simclr"
    """The contrastive loss."""
    weight: float = 1.0
    """Of the predictive loss."""
    num_operators: int = 7
    """Operators whose presence is predicted: those of --augment (mtslvr and clar: 7)."""
    output_dim: int = 1000
    """Width of the features: both tasks' halves together."""
    temperature: float = 0.07
    """Divides the cosine similarities."""
    projector_dims: tuple[int, ...] = (500, 256)
    """Widths of the projection head's layers; the last one is the embedding."""
    predictor_hidden_dim: int = 512
    """Hidden width of the prediction head (over simsiam)."""
    operator_hidden_dims: tuple[int, ...] = (256, 64, 16)
    """Hidden widths of the head that predicts the operators."""
