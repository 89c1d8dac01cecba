"""``lightly.loss`` (1.6): NTXentLoss with its memory bank, DCLLoss, DCLWLoss.

Values and gradients equal; computed in float32 where the input is 16-bit, and no N x N or
N x bank matrix is handed to autograd. Over several processes ``gather_distributed`` gathers rows
and keeps gradients at home: a rank's are those of the sum of all ranks' losses, as the original's.
"""

# shapes: N samples, K bank rows, D features
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as torch_dist

from fastssl.compat.rows import (
    all_ranks,
    as_peers_return_it,
    check_rows,
    excess,
    row_dots,
    unit_rows,
)
from fastssl.kernels.contrast.checks import Pairs
from fastssl.kernels.contrast.op import contrast, contrast_mean
from fastssl.kernels.ntxent.op import ntxent
from fastssl.losses.distributed import gather_rows, ids_over_ranks, symmetric_over_ranks
from fastssl.losses.ntxent import gathered_ntxent

LEAST_TEMPERATURE = 1e-8


class MemoryBankModule(nn.Module):
    """Ring of past embeddings, as lightly's class of that name.

    Args:
        size: 0 (no bank), (num_features, dim), or num_features alone: the width is then taken
            from the first batch, as lightly up to 1.5 did and 1.6 refuses.
        gather_distributed: the batches of all processes are written, in the order of their ranks.
        feature_dim_first: ``forward`` returns the bank as (dim, num_features).

    A batch that reaches the end of the bank is cut there and the pointer returns to 0: the tail is
    dropped. The buffers ``bank`` and ``bank_ptr`` are, as in the original, not in the state_dict.
    """

    bank: Tensor
    bank_ptr: Tensor

    def __init__(
        self,
        size: int | Sequence[int],
        gather_distributed: bool = False,
        feature_dim_first: bool = True,
    ) -> None:
        super().__init__()
        shape = (size,) if isinstance(size, int) else tuple(size)
        if any(extent < 0 for extent in shape):
            raise ValueError(f"Illegal memory bank size {size}, all entries must be non-negative.")
        if len(shape) > 2 or (len(shape) == 1 and not isinstance(size, int) and shape != (0,)):
            raise ValueError(
                f"Illegal memory bank size {size}, expected a (num_features, dim) tuple, "
                "num_features alone or 0."
            )
        self.size = shape
        self.gather_distributed = gather_distributed
        self.feature_dim_first = feature_dim_first
        self.register_buffer("bank", torch.empty(shape, dtype=torch.float), persistent=False)
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.long), persistent=False)
        if len(shape) == 2:
            self._fill(shape)

    def forward(
        self, output: Tensor, labels: Tensor | None = None, update: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """``output`` (N, D) itself and a copy of the bank before it is enqueued (None if off)."""
        if self.size[0] == 0:
            return output, None
        bank_KD = self.rows_for(output).clone()
        if update:
            self.enqueue(output)
        return output, bank_KD.transpose(0, -1) if self.feature_dim_first else bank_KD

    def rows_for(self, output_ND: Tensor) -> Tensor:
        """The bank itself, (K, D), made at the first call if its width was not given."""
        if self.bank.dim() == 1:
            self._fill((*self.size, *output_ND.shape[1:]))
        return self.bank

    @torch.no_grad()
    def enqueue(self, batch_ND: Tensor) -> None:
        """Write a batch at the pointer, cut at the end of the bank."""
        group = all_ranks() if self.gather_distributed else None
        if group is not None:
            batch_ND = gather_rows(batch_ND, group=group)
        start, num_rows = int(self.bank_ptr), self.size[0]
        stop = min(start + batch_ND.shape[0], num_rows)
        self.bank[start:stop] = batch_ND.detach()[: stop - start]
        self.bank_ptr.fill_(0 if stop == num_rows else stop)

    @torch.no_grad()
    def _fill(self, shape: Sequence[int]) -> None:
        """Random unit rows: the same numbers as the original draws from the same seed."""
        self.bank = F.normalize(torch.randn(shape).type_as(self.bank), dim=-1)


class NTXentLoss(nn.Module):
    """``lightly.loss.NTXentLoss``: SimCLR's loss, or MoCo's with a memory bank.

    Args:
        temperature: may be negative; ValueError where abs(temperature) < 1e-8.
        memory_bank_size: see ``MemoryBankModule``. With a bank the first argument is the query, the
            second its positive, and the bank before the update holds the negatives; the bank is
            written only where the query requires a gradient.
        gather_distributed: rows of all processes are negatives; a bank takes the keys of all.

    Differs: a second derivative through a bank that was written to is refused (no copy is kept),
    and so is one over several processes.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        self.memory_bank = MemoryBankModule(memory_bank_size, gather_distributed)
        self.temperature = temperature
        self.gather_distributed = gather_distributed
        self.eps = LEAST_TEMPERATURE
        if abs(temperature) < LEAST_TEMPERATURE:
            raise ValueError(f"Illegal temperature: abs({temperature}) < 1e-8")
        if gather_distributed:
            _require_distributed()

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Mean loss, (), of two (N, D) views given raw: they are normalised inside."""
        check_rows("NTXentLoss", out0=out0, out1=out1)
        group = all_ranks() if self.gather_distributed else None
        if self.memory_bank.size[0] != 0:
            loss = self._with_bank(out0, out1)
        elif group is not None:
            loss = gathered_ntxent([out0, out1], self.temperature, group=group)
        else:
            loss = ntxent([out0, out1], self.temperature)
            if out0.shape[0] == 1:
                loss = 0 * loss  # no negatives: exactly 0 as in the original, not its rounding
        return as_peers_return_it(loss, out0)

    def _with_bank(self, out0: Tensor, out1: Tensor) -> Tensor:
        query_ND, positive_ND = unit_rows(out0), unit_rows(out1)
        scale = 1 / self.temperature
        bank_KD = self.memory_bank.rows_for(positive_ND).to(out0.device)
        negative_N = contrast_mean(query_ND, bank_KD, scale, bound=1.0).rows
        positive_N = row_dots(query_ND, positive_ND) * scale
        if out0.requires_grad:
            self.memory_bank.enqueue(positive_ND)
        return excess(negative_N, positive_N).mean()


def negative_mises_fisher_weights(out0: Tensor, out1: Tensor, sigma: float = 0.5) -> Tensor:
    """(N,) weights 2 - N softmax(out0_i . out1_i / sigma) of DCLW; they carry no gradient."""
    similarity_N = row_dots(out0.detach(), out1.detach()) / sigma
    return (2 - out0.shape[0] * similarity_N.softmax(dim=0)).to(out0.dtype)


class DCLLoss(nn.Module):
    """``lightly.loss.DCLLoss``: decoupled contrastive loss (Yeh et al., arXiv:2110.06848, eq. 6).

    Args:
        temperature: non-zero; ValueError for 0, where the original returns NaN.
        weight_fn: called with the normalised views, in both orders; returns (N,) weights of the
            positive terms. None weighs all by one.
        gather_distributed: rows of all processes are negatives; ``weight_fn`` sees the local ones.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        weight_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        if temperature == 0:
            raise ValueError(f"DCLLoss: temperature must be non-zero; received {temperature}")
        self.temperature = temperature
        self.weight_fn = weight_fn
        self.gather_distributed = gather_distributed
        if gather_distributed:
            _require_distributed()

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Mean loss, (), of two (N, D) views given raw: they are normalised inside."""
        check_rows(type(self).__name__, out0=out0, out1=out1)
        z0_ND, z1_ND = unit_rows(out0), unit_rows(out1)
        scale = 1 / self.temperature
        both = torch.cat([z0_ND, z1_ND])
        group = all_ranks() if self.gather_distributed else None
        sample = ids_over_ranks(out0, group=group).repeat(2)
        if group is None:
            pairs = Pairs(keep="different", labels=(sample, sample))
            negative = contrast(both, both, scale, pairs=pairs, bound=1.0).rows
        else:
            negative = symmetric_over_ranks(
                both, scale, group=group, keep="different", labels=sample, bound=1.0
            ).rows
        # The loss is a small difference of large terms: taken per row, and in float64.
        positive_N = row_dots(z0_ND.double(), z1_ND.double()) * scale
        negative0_N, negative1_N = negative.double().split(len(out0))
        loss0_N = negative0_N - self._weights(z0_ND, z1_ND) * positive_N
        loss1_N = negative1_N - self._weights(z1_ND, z0_ND) * positive_N
        return as_peers_return_it((0.5 * (loss0_N + loss1_N)).mean(), out0)

    def _weights(self, z0_ND: Tensor, z1_ND: Tensor) -> Tensor | float:
        return self.weight_fn(z0_ND, z1_ND) if self.weight_fn else 1.0


class DCLWLoss(DCLLoss):
    """``lightly.loss.DCLWLoss``: DCL with negative von Mises-Fisher weights of width ``sigma``."""

    def __init__(
        self, temperature: float = 0.1, sigma: float = 0.5, gather_distributed: bool = False
    ) -> None:
        weight_fn = partial(negative_mises_fisher_weights, sigma=sigma)
        super().__init__(temperature, weight_fn, gather_distributed)


def _require_distributed() -> None:
    if not torch_dist.is_available():
        raise ValueError(
            "gather_distributed is True but torch.distributed is not available. "
            "Please set gather_distributed=False or install a torch version with "
            "distributed support."
        )
