"""A run's method and encoder, built anew; the encoder as it is exported, loaded and described."""

# shapes: N batch, S side, K bits, F features
from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from fastssl.augment.audio_policies import AUDIO_POLICIES
from fastssl.engine.config import TrainConfig
from fastssl.engine.export import read_weights
from fastssl.engine.seeding import seed_everything
from fastssl.methods import METHODS
from fastssl.nn.backbones import build_backbone
from fastssl.nn.hearing import FRONTS, hear
from fastssl.nn.latent import Coded
from fastssl.nn.snippet import (
    coded_snippet,
    conditioned_snippet,
    expanded_snippet,
    loading_snippet,
)
from fastssl.recipes.run import Run, read_run

IMAGE_CHANNELS = 3


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


def hears(train: TrainConfig) -> bool:
    """Whether the run is one on sounds; the policy tells, also where the data have moved."""
    return train.augment in AUDIO_POLICIES


def channels_of(train: TrainConfig) -> int:
    """Channels of what the encoder is given."""
    return FRONTS[train.front].channels if hears(train) else IMAGE_CHANNELS


def build_method(run: Run) -> nn.Module:
    """The method on a fresh encoder; the weights depend on the seed alone."""
    seed_everything(run.train.seed)
    module, _, name = METHODS[run.train.method][1].partition(":")
    method_class: Callable[..., nn.Module] = getattr(importlib.import_module(module), name)
    method = method_class(_plain(run.train), run.method)
    if hears(run.train):
        hear(method, FRONTS[run.train.front]())
    return method


def encoder_of(folder: str | Path) -> nn.Module:
    """The untrained encoder of the run in ``folder``: what its export's tensors fit."""
    return build_encoder(read_run(Path(folder)))


def build_encoder(run: Run) -> nn.Module:
    """Untrained, with the keys of the run's export: conditioned, widened or plain."""
    backbone = build_method(run).backbone
    assert isinstance(backbone, nn.Module)
    return backbone


def load_encoder(folder: Path, run: Run) -> nn.Module:
    """The exported encoder of the run in ``folder``, on the CPU. ValueError where it is damaged."""
    path = folder / "export" / "backbone.safetensors"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no export/backbone.safetensors: its training has not ended; finish it "
            f"with python -m fastssl.train --resume --out {folder}"
        )
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


def snippet_of(run: Run, backbone: nn.Module) -> str:
    """The lines of the card that load the export, by the library's own names where they fit."""
    train, method = run.train, run.method
    if train.method == "amortised" and not hears(train):
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
    if isinstance(backbone, Coded) and not hears(train):
        return coded_snippet(train.backbone, train.image_size, backbone.latent)
    plain = {name: t.shape for name, t in _plain(train).state_dict().items()}
    if plain == {name: t.shape for name, t in backbone.state_dict().items()}:
        return loading_snippet(train.backbone, train.image_size, channels=channels_of(train))
    lines = (
        "from fastssl.recipes.encoders import encoder_of",
        "from safetensors.torch import load_file",
        'model = encoder_of(".")  # in the run folder, from its config.yaml',
        'model.load_state_dict(load_file("export/backbone.safetensors"))',
    )
    return "\n".join(lines) + "\n"


def _plain(train: TrainConfig) -> nn.Module:
    return build_backbone(train.backbone, train.image_size, channels=channels_of(train))
