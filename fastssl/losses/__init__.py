"""Drop-in losses: thin modules over fused kernels. Needs torch and numpy, nothing else."""

from fastssl.losses.cached import CachedStep
from fastssl.losses.ntxent import NTXentLoss

__all__ = ["CachedStep", "NTXentLoss"]
