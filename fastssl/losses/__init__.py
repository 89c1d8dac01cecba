"""Drop-in losses: thin modules over fused kernels. Needs torch and numpy, nothing else."""

from fastssl.losses.cached import CachedStep
from fastssl.losses.cissl import CISSLLoss, cissl_loss
from fastssl.losses.clip import CLIPLoss, clip_loss
from fastssl.losses.dcl import DCLLoss, DCLWLoss, dcl_loss, dclw_loss
from fastssl.losses.dino import DINOLoss
from fastssl.losses.dissl import DISSLLoss
from fastssl.losses.exchange import Ring
from fastssl.losses.infonce import InfoNCELoss, info_nce
from fastssl.losses.metrics import ContrastiveMetrics
from fastssl.losses.moco import MoCoLoss, moco_loss
from fastssl.losses.multicrop import MultiCropNTXentLoss, multi_crop_ntxent
from fastssl.losses.ntxent import NTXentLoss
from fastssl.losses.options import Options
from fastssl.losses.queue import KeyQueue
from fastssl.losses.siglip import SigLIPLoss, siglip_loss
from fastssl.losses.supcon import SupConLoss, sup_con_in, sup_con_out
from fastssl.losses.swav import SwAVLoss, sinkhorn

__all__ = [
    "CISSLLoss",
    "CLIPLoss",
    "CachedStep",
    "ContrastiveMetrics",
    "DCLLoss",
    "DCLWLoss",
    "DINOLoss",
    "DISSLLoss",
    "InfoNCELoss",
    "KeyQueue",
    "MoCoLoss",
    "MultiCropNTXentLoss",
    "NTXentLoss",
    "Options",
    "Ring",
    "SigLIPLoss",
    "SupConLoss",
    "SwAVLoss",
    "cissl_loss",
    "clip_loss",
    "dcl_loss",
    "dclw_loss",
    "info_nce",
    "moco_loss",
    "multi_crop_ntxent",
    "siglip_loss",
    "sinkhorn",
    "sup_con_in",
    "sup_con_out",
]
