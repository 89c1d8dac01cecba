"""The compression study: an encoder taken apart into its floats, its code and its samples."""

# shapes: N train images, M test images, n batch, S side, F features, D code
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastssl.evaluation import compression, features, knn, linear, ridge
from fastssl.nn.codes import pack
from fastssl.nn.latent import Coded, Posterior
from fastssl.recipes.readouts import pixels

Metrics = Iterator[tuple[str, float]]
_CHUNK = 500  # images encoded at a time


class TakenApart:
    """A frozen encoder on ``device``; images and what it makes of them are on the CPU."""

    def __init__(self, encoder: nn.Module, device: torch.device) -> None:
        net = encoder.to(device).eval().requires_grad_(False)
        self._device = device
        self.coded = net if isinstance(net, Coded) else None
        self._trunk: Any = net.trunk if isinstance(net, Coded) else net

    def floats(self, x_nCSS: Tensor) -> Tensor:
        """(n, F): the encoder's features, before the latent where there is one."""
        return self._trunk(x_nCSS.to(self._device)).float().cpu()

    def posterior(self, h_NF: Tensor) -> Posterior:
        """Of such features."""
        assert self.coded is not None
        found = self.coded.latent(h_NF.to(self._device))
        return Posterior(*(part.float().cpu() for part in found))


def study(
    train: Any, test: Any, parts: TakenApart, *, input_bits: int | None, codes: Path | None
) -> Metrics:
    """The metrics of ``evaluation.compression``; hard codes are written to ``codes`` (.npz).

    ValueError for ``codes`` of an encoder without hard codes.
    """
    both = (train, test)
    floats = [features.extract(parts.floats, p.images(_CHUNK), p.split) for p in both]
    raw = [features.extract(pixels, part.images(_CHUNK), part.split) for part in both]
    values = next(iter(test.images(1)))[0].numel()
    forms = [
        compression.Form("pixels", float(input_bits or 8 * values), *raw),
        compression.Form("features", 32.0 * floats[0].shape[1], *floats),
    ]
    _check_codes(codes, parts)
    if parts.coded is not None:
        latent: Any = parts.coded.latent
        found = [parts.posterior(h_NF) for h_NF in floats]
        rate = float(found[0].rate_N.double().mean()) / compression.NATS_PER_BIT
        coded = [part.code_ND for part in found]
        forms.append(compression.Form("code", float(latent.code_bits), *coded))
        drawn = [latent.hardened(part.sample_ND) for part in found]
        forms.append(compression.Form("sample", max(rate, 0.0), *drawn))
        if codes is not None:
            form = {"values": latent.values, "layout": latent.layout}
            _write(codes, [pack(code_ND, **form) for code_ND in coded], train, test)

    def readout(train_NF: Tensor, test_MF: Tensor) -> Metrics:
        split = (train_NF, train.target, test_MF, test.target)
        if train.task == "regression":
            yield from ridge.ridge(*split)
            return
        yield from linear.linear(*split)
        yield from knn.knn(*split, k=min(20, len(train_NF)))

    return compression.compression(forms, readout)


def _check_codes(codes: Path | None, parts: TakenApart) -> None:
    if codes is None:
        return
    if parts.coded is None or not parts.coded.latent.values:
        raise ValueError(
            f"--codes {codes}: expected a run of --method stochastic with --latent bernoulli or "
            "categorical before the projection head: others have no hard codes"
        )
    if codes.suffix != ".npz":
        raise ValueError(f"--codes {codes}: expected the name of a .npz file")


def _write(codes: Path, packed: list[np.ndarray], train: Any, test: Any) -> None:
    labels = {"labels": train.target.numpy(), "test_labels": test.target.numpy()}
    np.savez(codes, codes=packed[0], test_codes=packed[1], **labels)
