"""Drop-in losses: thin modules over fused kernels. Needs torch and numpy, nothing else."""

from fastssl.losses.dino import DINOLoss
from fastssl.losses.dissl import DISSLLoss
from fastssl.losses.ntxent import NTXentLoss
from fastssl.losses.queue import KeyQueue
from fastssl.losses.swav import SwAVLoss, sinkhorn

__all__ = ["DINOLoss", "DISSLLoss", "KeyQueue", "NTXentLoss", "SwAVLoss", "sinkhorn"]
