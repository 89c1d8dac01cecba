"""Encoders whose convolution kernels are functions of an invariance vector.

Chavhan et al. 2023 (arXiv:2302.12712): per residual block an embedding e = E i of the vector
i in [0, 1]^K, shared by its convolutions; per convolution a small network from e to the kernel,
  kernel(i) = W_0 + sum_j relu(A e + a)_j W_j                     "full": the authors', J = 32
  kernel(i) = W_0 + U diag(relu(A e + a)) V                       "low-rank": U, V of rank R
Stem, batch norms and everything outside the blocks are ordinary and shared by all vectors.
"""

# shapes: N batch, C channels, S side, K bits, E embedding, J hidden, R rank, F features
from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fastssl.nn.convnet import ConvNet

Generator = Literal["full", "low-rank"]


class FullKernel(nn.Module):
    """e (E,) -> a kernel (out, in, k, k), affine in a hidden code of J numbers."""

    def __init__(self, shape: torch.Size, embedding: int, hidden: int) -> None:
        super().__init__()
        self.shape = shape
        self.code = nn.Linear(embedding, hidden)
        self.kernel = nn.Linear(hidden, shape.numel())
        # as the authors start them: W_j of deviation sqrt(2 / (out in k k)) hardly move W_0, the
        # layer's usual bias, which is the kernel then; batch norms take its scale away
        for layer in (self.code, self.kernel):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, e_E: Tensor) -> Tensor:
        """The kernel."""
        return self.kernel(torch.relu(self.code(e_E))).view(self.shape)


class LowRankKernel(nn.Module):
    """e (E,) -> W_0 + U diag(code) V: R (out + in k k) numbers in place of J out in k k."""

    def __init__(self, shape: torch.Size, embedding: int, rank: int) -> None:
        super().__init__()
        self.shape = shape
        self.code = nn.Linear(embedding, rank)
        nn.init.kaiming_normal_(self.code.weight, mode="fan_out", nonlinearity="relu")
        self.base = nn.Parameter(torch.empty(shape))
        nn.init.kaiming_normal_(self.base, mode="fan_out", nonlinearity="relu")
        columns = shape.numel() // shape[0]
        self.left = nn.Parameter(torch.randn(shape[0], rank) / rank**0.5)
        self.right = nn.Parameter(torch.randn(rank, columns) * self.base.detach().std())

    def forward(self, e_E: Tensor) -> Tensor:
        """The kernel."""
        change = (self.left * torch.relu(self.code(e_E))) @ self.right
        return self.base + change.view(self.shape)


class HyperEncoder(nn.Module):
    """A backbone (N, 3, S, S) -> (N, F) whose block kernels depend on the invariance vector.

    Args:
        backbone: a torchvision ResNet, or the convnet (each layer of it counts as a block).
        num_bits: K.
        generator: "full" or "low-rank". embedding: E. hidden: J. rank: R.
        dropout: share of the pooled features that training drops.

    Attributes: num_features, as of the backbone; num_bits.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_bits: int,
        *,
        generator: Generator = "full",
        embedding: int = 16,
        hidden: int = 32,
        rank: int = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        if num_bits < 1:
            raise ValueError(f"HyperEncoder: num_bits must be at least 1, received {num_bits}")
        self.num_features = int(backbone.num_features)  # type: ignore[arg-type]
        self.num_bits = num_bits
        self.net = backbone
        self.blocks = conditioned_blocks(backbone)
        self.embed = nn.ModuleList(nn.Linear(num_bits, embedding, bias=False) for _ in self.blocks)
        for layer in self.embed:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        self.kernels = nn.ModuleList()
        for names in self.blocks:
            shapes = [_take_kernel(backbone, name) for name in names]
            if generator == "full":
                made: list[nn.Module] = [FullKernel(s, embedding, hidden) for s in shapes]
            else:
                made = [LowRankKernel(s, embedding, rank) for s in shapes]
            self.kernels.append(nn.ModuleList(made))

    def forward(self, x_NCSS: Tensor, bits_K: Tensor | None = None) -> Tensor:
        """(N, F) under one invariance vector (K,), differentiable in it; None: invariant to all."""
        if bits_K is None:
            bits_K = x_NCSS.new_ones(self.num_bits)
        h_NF = functional_call(self.net, self.generated(bits_K), (x_NCSS,))
        return F.dropout(h_NF, self.dropout, self.training)

    def generated(self, bits_K: Tensor) -> dict[str, Tensor]:
        """The kernels under ``bits_K`` by their names in the backbone."""
        found = {}
        for names, embed, kernels in zip(self.blocks, self.embed, self.kernels, strict=True):
            e_E = embed(bits_K)
            for name, kernel in zip(names, kernels, strict=True):  # type: ignore[call-overload]
                found[f"{name}.weight"] = kernel(e_E)
        return found


def conditioned_blocks(backbone: nn.Module) -> list[list[str]]:
    """Names of the convolutions of each residual block; of each layer of the convnet.

    Raises ValueError for another backbone.
    """
    if isinstance(backbone, ConvNet):
        return [[n] for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d)]
    stages = [name for name in ("layer1", "layer2", "layer3", "layer4") if hasattr(backbone, name)]
    if not stages:
        raise ValueError(
            "amortised: expected a torchvision ResNet, its ViT or the convnet as backbone, "
            f"received {type(backbone).__name__}"
        )
    blocks = []
    for stage in stages:
        for name, block in getattr(backbone, stage).named_children():
            prefix = f"{stage}.{name}"
            convs = [n for n, m in block.named_modules() if isinstance(m, nn.Conv2d)]
            blocks.append([f"{prefix}.{n}" for n in convs])
    return blocks


def _take_kernel(backbone: nn.Module, name: str) -> torch.Size:
    """Makes the convolution's weight a placeholder that functional_call fills; its shape."""
    conv = backbone.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)
    shape = conv.weight.shape
    del conv.weight
    conv.register_buffer("weight", torch.empty(0), persistent=False)
    return shape
