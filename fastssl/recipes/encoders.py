"""The encoder of a run as it is exported, and how it is loaded without the run's method."""

# shapes: N batch, S side, K bits, F features
from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fastssl.engine.export import read_weights
from fastssl.methods.amortised import condition
from fastssl.nn.backbones import build_backbone
from fastssl.nn.expand import expand
from fastssl.nn.snippet import conditioned_snippet, expanded_snippet, loading_snippet
from fastssl.recipes.run import Run


class Under(nn.Module):
    """A conditioned encoder under one invariance vector: (N, 3, S, S) -> (N, F)."""

    bits_K: Tensor

    def __init__(self, net: nn.Module, bits_K: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("bits_K", bits_K)

    def forward(self, x_NCSS: Tensor) -> Tensor:
        """(N, F)."""
        return self.net(x_NCSS, self.bits_K)


def build_encoder(run: Run) -> nn.Module:
    """Untrained, with the keys of the run's export: conditioned, widened or plain."""
    backbone = build_backbone(run.train.backbone, run.train.image_size)
    if run.train.method == "amortised":
        return condition(backbone, run.method)
    dim = getattr(run.method, "dim", None)
    return expand(backbone, dim) if dim else backbone


def load_encoder(folder: Path, run: Run) -> nn.Module:
    """The exported encoder of the run in ``folder``, on the CPU. ValueError where it is damaged."""
    path = folder / "export" / "backbone.safetensors"
    if not path.is_file():
        raise ValueError(f"{folder} has no export/backbone.safetensors: has its training ended?")
    weights, encoder = read_weights(path), build_encoder(run)
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit the {run.train.backbone} of {folder / 'config.yaml'}: "
            f"{str(error).splitlines()[-1].strip()}"
        ) from error
    return encoder


def by_default(encoder: nn.Module) -> nn.Module:
    """The encoder as a function of images alone; a conditioned one is invariant to all groups."""
    bits = getattr(encoder, "num_bits", None)
    return encoder if bits is None else Under(encoder, torch.ones(int(bits)))


class Conditioned:
    """A frozen encoder on ``device`` as a function of CPU images and a vector (K,), to the CPU.

    Differentiable in the vector. ValueError for an encoder that is not told one.
    """

    def __init__(self, encoder: nn.Module, device: torch.device) -> None:
        if not hasattr(encoder, "num_bits"):
            raise ValueError(
                "invariance: expected a run of --method amortised, whose encoder is told an "
                f"invariance vector, received an encoder {type(encoder).__name__}"
            )
        self.num_bits = int(encoder.num_bits)  # type: ignore[arg-type]
        self._device = device
        self._net = encoder.to(device).eval().requires_grad_(False)

    def __call__(self, x_NCSS: Tensor, bits_K: Tensor) -> Tensor:
        return self._net(x_NCSS.to(self._device), bits_K.to(self._device)).cpu()


def snippet_of(run: Run) -> str:
    """The lines of the card that load the export."""
    train, method = run.train, run.method
    if train.method == "amortised":
        return conditioned_snippet(
            train.backbone,
            train.image_size,
            method.num_bits,
            generator=method.generator,
            rank=method.rank,
            prompt_networks=method.prompt_networks,
        )
    if getattr(method, "dim", None):
        return expanded_snippet(train.backbone, train.image_size, method.dim)
    return loading_snippet(train.backbone, train.image_size)
