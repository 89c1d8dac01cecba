"""Hard codes as bits: what a discrete latent keeps of a sample, 8 bits to the byte.

A variable of K values takes ceil(log2 K) bits, most significant first; a Bernoulli bit one. Rows
are padded with zeros to whole bytes, as ``np.packbits`` does.
"""

# shapes: N samples, D code, G variables, K values of each, B bits, Y bytes
from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Layout = Literal["signs", "one-hot"]


def pack(code_ND: Tensor, *, values: int = 2, layout: Layout | None = None) -> np.ndarray:
    """(N, Y) uint8 of a latent's hard codes.

    code_ND: ``code_ND`` of a latent, whose ``values`` and ``layout`` these are: "signs" for -1 and
        1, or "one-hot" groups of ``values``; None for signs where ``values`` is 2, else one-hot.
        ValueError for codes that are something else, as a Gaussian's.
    """
    width, layout = _bits(values), _layout(values, layout)
    code_ND = code_ND.detach().cpu()
    if layout == "signs" and _all_in(code_ND, (-1.0, 1.0)):
        bit_NB = (code_ND > 0).numpy()
    elif layout == "one-hot" and _one_hot(code_ND, values):
        index_NG = code_ND.unflatten(1, (-1, values)).argmax(2).numpy()
        bit_NB = (index_NG[..., None] >> np.arange(width)[::-1] & 1).reshape(len(index_NG), -1)
    else:
        expected = "-1 and 1" if layout == "signs" else f"one-hot groups of {values}"
        raise ValueError(
            f"pack: code_ND: expected {expected}, received a {tuple(code_ND.shape)} code with "
            "other values; give the layout of the latent; a Gaussian's mean is no hard code"
        )
    return np.packbits(bit_NB.astype(np.uint8), axis=1)


def unpack(
    packed_NY: np.ndarray, dim: int, *, values: int = 2, layout: Layout | None = None
) -> Tensor:
    """(N, dim) float32: what ``pack`` was given. ValueError where the bytes do not fit."""
    width, layout = _bits(values), _layout(values, layout)
    count = dim if layout == "signs" else dim // values * width
    if packed_NY.dtype != np.uint8 or packed_NY.shape[1:] != (math.ceil(count / 8),):
        raise ValueError(
            f"unpack: packed_NY: expected uint8 (N, {math.ceil(count / 8)}) for {count} bits, "
            f"received {packed_NY.dtype} {packed_NY.shape}"
        )
    bit_NB = torch.from_numpy(np.unpackbits(packed_NY, axis=1, count=count)).long()
    if layout == "signs":
        return 2.0 * bit_NB - 1.0
    index_NG = (bit_NB.unflatten(1, (-1, width)) << torch.arange(width).flip(0)).sum(2)
    return torch.nn.functional.one_hot(index_NG, values).flatten(1).float()


def _bits(values: int) -> int:
    if values < 2:
        raise ValueError(f"values: expected 2 or more, received {values}: floats are not packed")
    return math.ceil(math.log2(values))


def _layout(values: int, layout: Layout | None) -> Layout:
    if layout == "signs" and values != 2:
        raise ValueError(f"layout: signs are of 2 values, received {values}; take one-hot")
    return layout or ("signs" if values == 2 else "one-hot")


def _all_in(code_ND: Tensor, allowed: tuple[float, ...]) -> bool:
    return bool(torch.isin(code_ND.float(), torch.tensor(allowed)).all())


def _one_hot(code_ND: Tensor, values: int) -> bool:
    if code_ND.shape[1] % values:
        return False
    groups_NG = code_ND.unflatten(1, (-1, values)).sum(2)
    return _all_in(code_ND, (0.0, 1.0)) and bool((groups_NG == 1).all())
