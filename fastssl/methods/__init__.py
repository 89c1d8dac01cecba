"""One paper, one file. METHODS names them, and imports neither them nor torch."""

from __future__ import annotations

from fastssl.methods import configs, paper_configs

METHODS: dict[str, tuple[type, str]] = {
    "simclr": (configs.SimCLRConfig, "fastssl.methods.simclr:SimCLR"),
    "mocov2": (configs.MoCoV2Config, "fastssl.methods.mocov2:MoCoV2"),
    "mocov3": (configs.MoCoV3Config, "fastssl.methods.mocov3:MoCoV3"),
    "simsiam": (configs.SimSiamConfig, "fastssl.methods.simsiam:SimSiam"),
    "byol": (configs.BYOLConfig, "fastssl.methods.byol:BYOL"),
    "swav": (configs.SwAVConfig, "fastssl.methods.swav:SwAV"),
    "dino": (configs.DINOConfig, "fastssl.methods.dino:DINO"),
    "barlow": (configs.BarlowConfig, "fastssl.methods.barlow:BarlowTwins"),
    "vicreg": (configs.VICRegConfig, "fastssl.methods.vicreg:VICReg"),
    "supcon": (configs.SupConConfig, "fastssl.methods.supcon:SupCon"),
    "invclr": (paper_configs.InvCLRConfig, "fastssl.methods.invclr:InvCLR"),
    "amortised": (paper_configs.AmortisedConfig, "fastssl.methods.amortised:Amortised"),
    "cissl": (paper_configs.CISSLConfig, "fastssl.methods.cissl:CISSL"),
    "dissl": (paper_configs.DISSLConfig, "fastssl.methods.dissl:DISSL"),
    "mtslvr": (paper_configs.MTSLVRConfig, "fastssl.methods.mtslvr:MTSLVR"),
    "stochastic": (paper_configs.StochasticConfig, "fastssl.methods.stochastic:Stochastic"),
}
