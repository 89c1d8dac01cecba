"""Process-wide random generators. Data and augmentation never use them: their draws are keyed."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (all devices). Call before the method is built."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state(device: torch.device) -> dict[str, str]:
    """State of torch's generators as hexadecimal text, JSON-able."""
    state = {"cpu": bytes(torch.get_rng_state().numpy()).hex()}
    if device.type == "cuda":
        state["cuda"] = bytes(torch.cuda.get_rng_state(device).numpy()).hex()
    return state


def set_rng_state(state: dict[str, str], device: torch.device) -> None:
    """Inverse of ``rng_state``. Raises ValueError or RuntimeError for a state that is none."""

    def tensor(name: str) -> torch.Tensor:
        return torch.tensor(list(bytes.fromhex(state[name])), dtype=torch.uint8)

    torch.set_rng_state(tensor("cpu"))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(tensor("cuda"), device)
