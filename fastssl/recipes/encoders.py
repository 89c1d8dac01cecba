"""A run's method and encoder, built anew, and the lines that load what the run exported."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from torch import nn

from fastssl.augment.audio_policies import AUDIO_POLICIES
from fastssl.engine.config import TrainConfig
from fastssl.engine.seeding import seed_everything
from fastssl.methods import METHODS
from fastssl.nn.backbones import build_backbone
from fastssl.nn.snippet import loading_snippet
from fastssl.recipes.run import Run, read_run

SOUND_CHANNELS, IMAGE_CHANNELS = 1, 3  # of a log-mel, of an image


def hears(train: TrainConfig) -> bool:
    """Whether the run is one on sounds; the policy tells, also where the data have moved."""
    return train.augment in AUDIO_POLICIES


def channels_of(train: TrainConfig) -> int:
    """Channels of what the encoder is given."""
    return SOUND_CHANNELS if hears(train) else IMAGE_CHANNELS


def build_method(run: Run) -> nn.Module:
    """The method on a fresh encoder; the weights depend on the seed alone."""
    seed_everything(run.train.seed)
    module, _, name = METHODS[run.train.method][1].partition(":")
    method_class: Callable[..., nn.Module] = getattr(importlib.import_module(module), name)
    return method_class(_plain(run.train), run.method)


def encoder_of(folder: str | Path) -> nn.Module:
    """The untrained encoder of the run in ``folder``: what its export's tensors fit."""
    backbone = build_method(read_run(Path(folder))).backbone
    assert isinstance(backbone, nn.Module)
    return backbone


def snippet(run: Run, backbone: nn.Module) -> str:
    """Python that loads the export into ``model``, by the library's own names where they fit."""
    plain = {name: t.shape for name, t in _plain(run.train).state_dict().items()}
    if plain == {name: t.shape for name, t in backbone.state_dict().items()}:
        train = run.train
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
