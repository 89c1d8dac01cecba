"""environment.json: what the run was made with, for whoever must repeat it."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import torch

import fastssl

_PACKAGES = (
    "torch torchvision torchaudio triton nvidia-dali-cuda130 numpy safetensors timm rich tyro"
).split()


def describe() -> dict:
    """Versions, processor, GPU and thread counts. No user name, host name or path."""
    return {
        "fastssl": fastssl.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def arithmetic(device: torch.device) -> dict[str, str]:
    """What byte-exact repetition depends on; compared on resume."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "torch": torch.__version__,
        "device": f"{device.type} {name}",
        "threads": str(torch.get_num_threads()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
