"""Drop-in losses: thin modules over fused kernels. Needs torch and numpy, nothing else."""

from fastssl.losses.ntxent import NTXentLoss
from fastssl.losses.siglip import SigLIPLoss, siglip_loss

__all__ = ["NTXentLoss", "SigLIPLoss", "siglip_loss"]
