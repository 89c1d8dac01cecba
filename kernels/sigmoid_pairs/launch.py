"""``sigmoid_pairs`` on CUDA: grids and scratch memory for the kernels of kernel.py.

Losses alone: one pass of 2 N K D flops. With gradients W is written once, in chunks that stay in
L2, and a GEMM per wanted side reads it (2 N K D each). float64 runs as plain-torch blocks. No
launch waits for the device: CUDA graphs capture it.
"""

# shapes: N queries, K keys, D features, P = N padded to blocks, C queries of a chunk, Q its width
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastssl.kernels.cuda import (
    Config,
    architecture,
    dtype_name,
    multiprocessors,
    on_device,
    padded_depth,
    serves,
)
from fastssl.kernels.sigmoid_pairs import kernel, reference
from fastssl.kernels.sigmoid_pairs.configs import serving
from fastssl.kernels.sigmoid_pairs.reference import Parts, Problem

CHUNK_BYTES = 24 << 20  # of W: what an L2 keeps (A100 40 MB, H100 50 MB)
BAND_KEYS = 1 << 16  # keys of one band, so that a chunk of one block of queries is never wider
HEADROOM = 2.0**-13  # what one unit of the stored W stands for
KERNELS = {"rows": kernel.sigmoid_rows_kernel, "weights": kernel.sigmoid_weights_kernel}


def forward(problem: Problem, save: bool, want_q: bool) -> Parts:
    """Losses (N,); with ``save`` also their derivatives, that of q where ``want_q`` asks for it."""
    if not _served(problem):
        return reference.forward(problem, save, want_q)
    with on_device(problem.q_ND):
        call = _as_call(problem)
        if save:
            return _weighed(call, None, (want_q, False))[0]
        rows_N = _rows(call)
        none = rows_N.new_empty(0)
        return Parts(rows_N, none, none, none)


def pull_keys(problem: Problem, g_N: Tensor) -> Tensor:
    """Gradient of the keys, (K, D) in their dtype, for the cotangents g of the queries' losses."""
    if not _served(problem):
        return reference.pull_keys(problem, g_N)
    with on_device(problem.q_ND):
        largest = g_N.abs().amax().to(torch.float32)  # fp16 holds weights of at most one
        unit = torch.where(largest == 0, 1.0, largest)
        _, dk_KD = _weighed(_as_call(problem), g_N.to(torch.float32) / unit, (False, True))
        return (dk_KD * unit).to(problem.k_KD.dtype)


def total(problem: Problem, wants: tuple[bool, bool]) -> tuple[Parts, Tensor]:
    """The sum of ``forward``'s parts over queries, dq (N, D) and dk (K, D) where wanted."""
    if not _served(problem):
        return reference.total(problem, wants)
    with on_device(problem.q_ND):
        found, dk_KD = _weighed(_as_call(problem), None, wants)
        return found.summed(), dk_KD


def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Every scratch and output tensor of this module, so that tests can guard them all."""
    return torch.empty(shape, dtype=dtype, device=device)


def launch(config: Config, grid: tuple[int, ...], *arguments: object) -> None:
    """Every kernel launch of this module, so that the compile gate can record them all."""
    KERNELS[config.kernel][grid](*arguments, **config.options())


@dataclass(frozen=True)
class _Call:
    """Whole rows of the padded depth, numbers in float32, the diagonal as an integer."""

    q_ND: Tensor
    k_KD: Tensor
    scale: Tensor
    bias: Tensor
    diagonal: int
    width: int  # D before padding
    dtype: str  # as in Config

    @property
    def device(self) -> torch.device:
        return self.q_ND.device

    def config(self, name: str) -> Config:
        found = serving(name, self.dtype, self.q_ND.shape[1], architecture(self.device))
        assert found is not None, f"no {name} for {self.dtype}"
        return found

    def scratch(self, *shape: int) -> Tensor:
        return allocate(shape, torch.float32, self.device)


def _served(problem: Problem) -> bool:
    return problem.dtype != torch.float64 and serves(problem.q_ND.device, "sigmoid_pairs")


def _as_call(problem: Problem) -> _Call:
    """Operands of mixed dtypes meet in the wider one, as in torch."""
    q_ND, k_KD, scale, bias, diagonal = problem
    dtype = torch.promote_types(q_ND.dtype, k_KD.dtype)
    name = dtype_name(dtype)
    depth = padded_depth(q_ND.shape[1], name)
    q_width = q_ND.shape[1]
    scale, bias = scale.to(torch.float32), bias.to(torch.float32)
    q_ND, k_KD = (_operand(x, dtype, depth) for x in (q_ND, k_KD))
    place = len(k_KD) if diagonal is None else diagonal  # beyond the last key: no partner
    return _Call(q_ND, k_KD, scale, bias, place, q_width, name)


def _operand(x_RD: Tensor, dtype: torch.dtype, depth: int) -> Tensor:
    """The rows themselves unless dtype, width or alignment do not fit."""
    fits = x_RD.dtype == dtype and x_RD.shape[1] == depth and x_RD.is_contiguous()
    if fits and x_RD.data_ptr() % 16 == 0:
        return x_RD
    padded_RD = allocate((x_RD.shape[0], depth), dtype, x_RD.device)
    padded_RD[:, : x_RD.shape[1]].copy_(x_RD)
    padded_RD[:, x_RD.shape[1] :].zero_()
    return padded_RD


def _rows(call: _Call) -> Tensor:
    """Losses (N,): strips of keys, enough to occupy every multiprocessor twice."""
    config, N, K = call.config("rows"), len(call.q_ND), len(call.k_KD)
    BI, BJ, BK = (config.constants[name] for name in ("BI", "BJ", "BK"))
    num_i, num_j = -(-N // BI), -(-K // BJ)
    strip = -(-num_j // min(num_j, max(1, 2 * multiprocessors(call.device) // num_i)))
    strips = -(-num_j // strip)
    rows_SP = call.scratch(strips, num_i * BI)
    launch(
        config, (num_i, strips), call.q_ND, call.k_KD, call.scale, call.bias, rows_SP, N, K,
        call.q_ND.shape[1] // BK, call.diagonal, num_i, strip,
    )  # fmt: skip
    return rows_SP[:, :N].sum(0)


def _weighed(call: _Call, g_N: Tensor | None, wants: tuple[bool, bool]) -> tuple[Parts, Tensor]:
    """Parts per query, and scale W^T (g q): (N, D) and (K, D) where wanted, all float32."""
    N, depth = call.q_ND.shape
    g_N = torch.ones(N, device=call.device) if g_N is None else g_N
    sums_3N = torch.zeros(3, N, device=call.device)
    acc_ND, acc_KD = (
        call.scratch(len(x) if want else 0, depth)
        for x, want in zip((call.q_ND, call.k_KD), wants, strict=True)
    )
    for keys in _slices(len(call.k_KD), BAND_KEYS):
        k_BD = call.k_KD[keys]
        for rows, w_CB in _chunks(call, k_BD, keys.start, g_N, sums_3N):
            if wants[0]:
                _gemm(w_CB, k_BD, acc_ND[rows], keys.start > 0)
            if wants[1]:
                _gemm(w_CB.T, call.q_ND[rows], acc_KD[keys], rows.start > 0)
    unit = call.scale * HEADROOM
    dq_ND, dk_KD = (
        acc[:, : call.width] * unit if want else acc.new_empty(0)
        for acc, want in zip((acc_ND, acc_KD), wants, strict=True)
    )
    rows_N, by_scale_N, by_bias_N = sums_3N.unbind(0)
    return Parts(rows_N, by_scale_N, by_bias_N, dq_ND), dk_KD


def _slices(count: int, step: int) -> Iterator[slice]:
    for begin in range(0, count, step):
        yield slice(begin, min(begin + step, count))


def _chunks(
    call: _Call, k_BD: Tensor, first: int, g_N: Tensor, sums_3N: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """2^13 g W of one band of keys, chunk of queries by chunk; the sums are added on the way."""
    config, N, K = call.config("weights"), len(call.q_ND), len(k_BD)
    BI, BJ, BK = (config.constants[name] for name in ("BI", "BJ", "BK"))
    num_i, num_j = -(-N // BI), -(-K // BJ)
    Q = num_j * BJ
    per_chunk = min(num_i, max(1, CHUNK_BYTES // (Q * k_BD.element_size() * BI)))
    C = per_chunk * BI
    w_CQ = allocate((C, Q), k_BD.dtype, call.device)
    sums_3JC = call.scratch(3, num_j, C)
    for begin in range(0, num_i, per_chunk):
        count = min(per_chunk, num_i - begin)
        launch(
            config, (num_j, count), call.q_ND, k_BD, call.scale, call.bias, g_N, sums_3JC, w_CQ, N,
            K, call.q_ND.shape[1] // BK, call.diagonal - first, begin, C, Q,
        )  # fmt: skip
        rows = slice(begin * BI, min((begin + count) * BI, N))
        here = rows.stop - rows.start
        sums_3N[:, rows] += sums_3JC[:, :, :here].sum(1)
        yield rows, w_CQ[:here, :K]


def _gemm(a: Tensor, b: Tensor, out: Tensor, add: bool) -> None:
    """out = a @ b, or out += a @ b, in float32."""
    beta = int(add)
    if a.dtype == torch.float32:
        torch.addmm(out, a, b, beta=beta, out=out)
    elif a.is_cuda:
        torch.addmm(out, a, b, out_dtype=torch.float32, beta=beta, out=out)
    else:  # the interpreter: no CPU GEMM takes 16 bits in and gives 32 bits out
        torch.addmm(out, a.float(), b.float(), beta=beta, out=out)
