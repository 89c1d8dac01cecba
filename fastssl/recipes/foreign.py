"""Any encoder in a safetensors file, scored as if it were a run's: file and backbone name in.

Only tensors that the backbone has are read, after their shapes were compared. A file of another
architecture, damaged or hostile is a ValueError of one line.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fastssl.nn.backbones import build_backbone
from fastssl.recipes.catalogue import data_kind, default_run
from fastssl.recipes.encoders import channels_of
from fastssl.recipes.run import Run

PREFIXES = (
    *("", "module.", "backbone.", "encoder.", "model.", "_orig_mod.", "trunk.", "net.", "visual."),
    *("module.backbone.", "module.encoder.", "model.backbone.", "student.backbone."),
    *("module.encoder_q.", "encoder_q.", "base_encoder.", "module.base_encoder.", "teacher."),
    *("momentum_encoder.", "module.momentum_encoder.", "module.model.", "model.encoder."),
)
"""What other programs put before an encoder's keys; the one that fits most keys is taken off."""
HEADS = (
    *("fc", "head", "heads", "head_dist", "classifier", "last_linear", "linear", "projector"),
    *("projection_head", "predictor", "prediction_head", "aux1", "aux2", "AuxLogits", "prototypes"),
)
"""Modules beside an encoder that are not part of it."""
_SIDES = {"sound": 128, "spirograph": 32}
_USUAL_SIDE = 224


def foreign_run(
    *, backbone: str | None, image_size: int | None, data: str | None, front: str | None = None
) -> Run:
    """The settings of a run whose encoder is ``backbone``, with the usual images of ``data``.

    image_size: None for 224 px, 32 for Spirograph. front: of sounds, None for log-mel. Raises
    ValueError naming the missing flag.
    """
    if backbone is None or data is None:
        raise ValueError("--weights: needs --backbone NAME and --data DATA, too")
    sound = data_kind(data) in ("tones", "sounds")
    side = image_size or _SIDES.get("sound" if sound else data, _USUAL_SIDE)
    if front is not None and not sound:
        raise ValueError(f"--front {front}: is for sounds, received --data {data}")
    train = replace(default_run("simclr", data).train, data=data, backbone=backbone)
    train = replace(train, image_size=side, front=front or train.front)  # type: ignore[arg-type]
    return replace(default_run("simclr", data), train=train)


def load_foreign(path: Path, run: Run, *, prefix: str | None = None) -> nn.Module:
    """The encoder of ``run`` with the weights of ``path``.

    prefix: what the encoder's keys begin with; None: the one of PREFIXES that fits best. Raises
    ValueError for keys that are missing or left over, other shapes, and values that are not finite.
    """
    train = run.train
    net = build_backbone(train.backbone, train.image_size, channels=channels_of(train))
    _check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            wanted = net.state_dict()
            chosen = _best_prefix(names, wanted) if prefix is None else prefix
            _check_names(path, names, wanted, chosen, train.backbone)
            state = {
                key: _tensor(file, path, chosen + key, tuple(value.shape))
                for key, value in wanted.items()
                if chosen + key in names
            }
    except (SafetensorError, OSError) as error:
        raise ValueError(f"--weights {path}: not a sound safetensors file: {error}") from error
    net.load_state_dict({**wanted, **state})
    return net


def _check_regular(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        why = "a symbolic link; name the file itself" if path.is_symlink() else error.strerror
        raise ValueError(f"--weights {path}: {why}") from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError(f"--weights {path}: expected a file")
    finally:
        os.close(handle)


def _best_prefix(names: Sequence[str], wanted: dict[str, Tensor]) -> str:
    known = set(names)
    fits = [sum(prefix + key in known for key in wanted) for prefix in PREFIXES]
    return PREFIXES[fits.index(max(fits))]


def _check_names(
    path: Path, names: Sequence[str], wanted: dict[str, Tensor], prefix: str, backbone: str
) -> None:
    """Counters of BatchNorm may be missing; heads and what lies outside the prefix may be there."""
    known = set(names)
    missing = [
        key for key in wanted if prefix + key not in known and "num_batches_tracked" not in key
    ]
    what = f"--weights {path}: for --backbone {backbone} with prefix {prefix!r}"
    if missing:
        raise ValueError(
            f"{what}, {len(missing)} of {len(wanted)} keys are missing: {_few(missing)}; the file "
            f"has {_few(sorted(names)) or 'none'}"
        )
    inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    extra = [name for name in inside if name not in wanted]
    strange = [name for name in extra if name.partition(".")[0] not in HEADS]
    if strange:
        raise ValueError(f"{what}, {len(strange)} keys are of another net: {_few(strange)}")
    left = [prefix + name for name in extra]
    left += [name for name in names if not name.startswith(prefix)]
    if left:
        logging.getLogger("fastssl").warning(
            "%s: %d keys that are no part of the encoder are left out: %s",
            path,
            len(left),
            _few(left),
        )


def _tensor(file: Any, path: Path, name: str, shape: tuple[int, ...]) -> Tensor:
    found = tuple(file.get_slice(name).get_shape())
    if found != shape:
        raise ValueError(
            f"--weights {path}: {name}: expected the shape {shape}, received {found}; is it "
            "another --backbone, or --image-size (a ResNet below 64 px has a smaller stem)?"
        )
    value = file.get_tensor(name)
    if value.is_floating_point() and not bool(torch.isfinite(value.float()).all()):
        raise ValueError(f"--weights {path}: {name} holds values that are not finite")
    return value


def _few(names: Sequence[str]) -> str:
    """The first ones, as text that fits a line."""
    shown = ", ".join(name[:80].encode("unicode_escape").decode() for name in names[:4])
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")
