"""Hard codes as bits: what a discrete latent keeps of a sample, 8 bits to the byte.

A variable of K values takes ceil(log2 K) bits, most significant first; a Bernoulli bit one. Rows are
padded with zeros to whole bytes, as ``np.packbits`` does.
"""

# shapes: N samples, D code, G variables, K values of each, B bits, Y bytes
from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def pack(code_ND: Tensor, *, values: int = 2) -> np.ndarray:
    """(N, Y) uint8 of a latent's hard codes.

    code_ND: -1 and 1 for bits (``values`` 2), or one-hot groups of ``values``: ``code_ND`` of a
        latent, whose ``values`` these are. ValueError for codes that are neither, as a Gaussian's.
    """
    width = _bits(values)
    code_ND = code_ND.detach().cpu()
    if values == 2 and _all_in(code_ND, (-1.0, 1.0)):
        bit_NB = (code_ND > 0).numpy()
    elif values > 2 and code_ND.shape[1] % values == 0 and _one_hot(code_ND, values):
        index_NG = code_ND.unflatten(1, (-1, values)).argmax(2).numpy()
        bit_NB = (index_NG[..., None] >> np.arange(width)[::-1] & 1).reshape(len(index_NG), -1)
    else:
        raise ValueError(
            f"pack: code_ND: expected -1 and 1, or one-hot groups of {values}, received a "
            f"{tuple(code_ND.shape)} code with other values; a Gaussian's mean is no hard code"
        )
    return np.packbits(bit_NB.astype(np.uint8), axis=1)


def unpack(packed_NY: np.ndarray, dim: int, *, values: int = 2) -> Tensor:
    """(N, dim) float32: what ``pack`` was given. ValueError where the bytes do not fit."""
    width = _bits(values)
    count = dim if values == 2 else dim // values * width
    if packed_NY.dtype != np.uint8 or packed_NY.shape[1:] != (math.ceil(count / 8),):
        raise ValueError(
            f"unpack: packed_NY: expected uint8 (N, {math.ceil(count / 8)}) for {count} bits, "
            f"received {packed_NY.dtype} {packed_NY.shape}"
        )
    bit_NB = torch.from_numpy(np.unpackbits(packed_NY, axis=1, count=count)).long()
    if values == 2:
        return 2.0 * bit_NB - 1.0
    index_NG = (bit_NB.unflatten(1, (-1, width)) << torch.arange(width).flip(0)).sum(2)
    return torch.nn.functional.one_hot(index_NG, values).flatten(1).float()


def _bits(values: int) -> int:
    if values < 2:
        raise ValueError(f"values: expected 2 or more, received {values}: floats are not packed")
    return math.ceil(math.log2(values))


def _all_in(code_ND: Tensor, allowed: tuple[float, ...]) -> bool:
    return bool(torch.isin(code_ND.float(), torch.tensor(allowed)).all())


def _one_hot(code_ND: Tensor, values: int) -> bool:
    groups_NG = code_ND.unflatten(1, (-1, values)).sum(2)
    return _all_in(code_ND, (0.0, 1.0)) and bool((groups_NG == 1).all())
