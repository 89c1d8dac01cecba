"""What ``benchmarks.micro.contrast`` races: inputs, contestants, the gate and the targets."""

# shapes: N samples, K keys, D embedding
from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.kernels.contrast.native import KEEP_BYTES
from fastssl.losses import CLIPLoss, KeyQueue, MoCoLoss, SupConLoss

TAU = {"moco": 0.2, "clip": 0.07, "supcon": 0.1}
TOLERANCE = 1e-4  # of a float32 loss against float64, relative; the operator has tests of its own

Steps = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    shape: tuple[int, ...]
    quick_shape: tuple[int, ...]
    build: Callable[..., Steps]
    gate: Callable[..., list[str]]
    flops: Callable[..., float]
    gains: dict[str, float] = field(default_factory=dict)
    of_floor: float | None = None
    most_bytes: Callable[..., float] | None = None
    most_time: dict[str, float] = field(default_factory=dict)  # of a variant of ours, over ours


def pair(rows: int, width: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Two leaves (rows, width) that ask for gradients."""
    generator = torch.Generator().manual_seed(rows + width)
    x = torch.randn(2, rows, width, generator=generator).to(device)
    return x[0].clone().requires_grad_(), x[1].clone().requires_grad_()


def moco_steps(num_samples: int, num_keys: int, width: int, *, device: str = "cpu") -> Steps:
    """A whole step of the loss: forward, backward to the queries, keys into the queue."""
    query_ND, key_ND = pair(num_samples, width, device)
    key_ND = key_ND.detach()

    def ours(dtype: torch.dtype) -> Callable[[], object]:
        queue = KeyQueue(num_keys, width, dtype=dtype).to(device)
        loss = MoCoLoss(TAU["moco"])

        def step() -> Tensor:
            (grad,) = torch.autograd.grad(loss(query_ND, key_ND, queue), query_ND)
            queue.enqueue(key_ND)
            return grad

        return step

    steps = {"ours": ours(torch.float32), "ours, bfloat16 queue": ours(torch.bfloat16)}
    return {**steps, **_moco_peers(query_ND, key_ND, num_keys)}


def _moco_peers(query_ND: Tensor, key_ND: Tensor, num_keys: int) -> Steps:
    from lightly.loss import NTXentLoss as Lightly

    num_samples, width = key_ND.shape
    queue_KD = F.normalize(torch.randn(num_keys, width, device=key_ND.device), dim=1)
    queue_DK = queue_KD.T.contiguous()
    slots_N = torch.arange(num_samples, device=key_ND.device)
    bank = Lightly(temperature=TAU["moco"], memory_bank_size=(num_keys, width)).to(key_ND.device)

    def reference() -> Tensor:
        """The formula as published code writes it: the queue (D, K), cloned for autograd."""
        q, k = F.normalize(query_ND, dim=1), F.normalize(key_ND, dim=1)
        positive_N1 = (q * k).sum(dim=1, keepdim=True)
        logits = torch.cat([positive_N1, q @ queue_DK.clone()], dim=1) / TAU["moco"]
        loss = F.cross_entropy(logits, torch.zeros_like(slots_N))
        (grad,) = torch.autograd.grad(loss, query_ND)
        queue_DK[:, :num_samples] = k.T
        return grad

    def linear(options: object) -> Callable[[], object]:
        """torch's own loss; the other keys of the batch are negatives too."""

        def step() -> Tensor:
            q, k = F.normalize(query_ND, dim=1), F.normalize(key_ND, dim=1)
            keys = torch.cat([k, queue_KD])
            loss = F.linear_cross_entropy(q / TAU["moco"], keys, slots_N, options=options)
            (grad,) = torch.autograd.grad(loss, query_ND)
            queue_KD[:num_samples] = k
            return grad

        return step

    def lightly() -> Tensor:
        return torch.autograd.grad(bank(query_ND, key_ND), query_ND)[0]

    peers = {"lightly memory bank": lightly, "reference code": reference}
    if hasattr(F, "linear_cross_entropy"):
        peers["torch linear_cross_entropy"] = linear(None)
        peers["the same, chunked"] = linear(torch.nn.LinearCrossEntropyOptions())
    return peers


def moco_gate(num_samples: int, num_keys: int, width: int, *, device: str = "cpu") -> list[str]:
    """The loss against a dense float64 one."""
    query_ND, key_ND = pair(num_samples, width, device)
    queue_KD = F.normalize(torch.randn(num_keys, width, device=device), dim=1)
    q, k = (F.normalize(x.detach().double(), dim=1) for x in (query_ND, key_ND))
    positive_N1 = (q * k).sum(dim=1, keepdim=True)
    logits = torch.cat([positive_N1, q @ queue_KD.double().T], dim=1) / TAU["moco"]
    exact = F.cross_entropy(logits, torch.zeros(num_samples, dtype=torch.long, device=device))
    return _differs("moco", MoCoLoss(TAU["moco"])(query_ND, key_ND.detach(), queue_KD), exact)


def clip_steps(num_samples: int, width: int, *, device: str = "cpu") -> Steps:
    """Normalisation, loss and gradients of both towers and of the scale."""
    image_ND, text_ND = pair(num_samples, width, device)
    ours = CLIPLoss().to(device)
    scale = torch.tensor(1 / TAU["clip"], device=device, requires_grad=True)
    steps: Steps = {
        "ours": lambda: torch.autograd.grad(
            ours(image_ND, text_ND), (image_ND, text_ND, *ours.parameters())
        )
    }
    if importlib.util.find_spec("open_clip") is None:
        return steps
    from open_clip.loss import ClipLoss

    def towers(loss: Callable) -> Callable[[], object]:
        def step() -> object:
            unit = (F.normalize(x, dim=1) for x in (image_ND, text_ND))
            return torch.autograd.grad(loss(*unit, scale), (image_ND, text_ND, scale))

        return step

    peer = ClipLoss()
    steps["open_clip"] = towers(peer)
    steps["open_clip+compile"] = towers(torch.compile(peer, dynamic=False))
    return steps


def clip_gate(num_samples: int, width: int, *, device: str = "cpu") -> list[str]:
    """The loss against a dense float64 one."""
    image_ND, text_ND = pair(num_samples, width, device)
    ours = CLIPLoss().to(device)
    image, text = (F.normalize(x.detach().double(), dim=1) for x in (image_ND, text_ND))
    logits = image @ text.T / TAU["clip"]
    ids = torch.arange(num_samples, device=device)
    exact = (F.cross_entropy(logits, ids) + F.cross_entropy(logits.T, ids)) / 2
    return _differs("clip", ours(image_ND, text_ND), exact)


def supcon_steps(num_samples: int, width: int, num_labels: int, *, device: str = "cpu") -> Steps:
    """Embeddings (N, D) with labels, the form that pytorch-metric-learning takes."""
    z_ND, _ = pair(num_samples, width, device)
    label_N = torch.arange(num_samples, device=device) % num_labels
    ours = SupConLoss(TAU["supcon"])
    steps: Steps = {"ours": lambda: torch.autograd.grad(ours(z_ND, labels=label_N), z_ND)}
    if importlib.util.find_spec("pytorch_metric_learning") is None:
        return steps
    from pytorch_metric_learning.losses import SupConLoss as Peer

    peer = Peer(temperature=TAU["supcon"])
    steps["pytorch-metric-learning"] = lambda: torch.autograd.grad(peer(z_ND, label_N), z_ND)
    return steps


def supcon_gate(num_samples: int, width: int, num_labels: int, *, device: str = "cpu") -> list[str]:
    """The loss against a dense float64 one."""
    z_ND, _ = pair(num_samples, width, device)
    label_N = torch.arange(num_samples, device=device) % num_labels
    z = F.normalize(z_ND.detach().double(), dim=1)
    itself = torch.eye(num_samples, dtype=torch.bool, device=device)
    logits = (z @ z.T / TAU["supcon"]).masked_fill(itself, -torch.inf)
    positive = (label_N[:, None] == label_N) & ~itself
    log_p = logits - logits.logsumexp(dim=1, keepdim=True)
    exact = -(log_p.masked_fill(~positive, 0).sum(dim=1) / positive.sum(dim=1)).mean()
    return _differs("supcon", SupConLoss(TAU["supcon"])(z_ND, labels=label_N), exact)


def memory_step(*, name: str) -> Callable[[], object]:
    """What benchmarks.memory measures, in its own process."""
    case = next(case for case in CASES if case.name == name)
    case.build(*case.quick_shape)["ours"]()
    return case.build(*case.shape)["ours"]


def _differs(name: str, found: Tensor, exact: Tensor) -> list[str]:
    error = ((found.double() - exact) / exact).abs().item()
    return [] if error <= TOLERANCE else [f"{name}: relative error {error:.1e} against float64"]


CASES = (
    Case(
        "moco",
        (256, 65_536, 128),
        (16, 512, 32),
        moco_steps,
        moco_gate,
        lambda n, k, d: 4.0 * n * k * d,
        {"lightly memory bank": 6.0, "reference code": 6.0, "torch linear_cross_entropy": 4.0},
        0.70,
        most_time={"ours, bfloat16 queue": 1.02},  # no slower, up to the noise of a median
    ),
    Case(
        "clip",
        (8_192, 512),
        (64, 32),
        clip_steps,
        clip_gate,
        lambda n, d: 6.0 * n * n * d,
        {"open_clip": 2.2, "open_clip+compile": 2.2},
        most_bytes=lambda n, d: KEEP_BYTES + 16 * 4 * n * d,
    ),
    Case(
        "supcon",
        (4_096, 128, 10),
        (64, 32, 4),
        supcon_steps,
        supcon_gate,
        lambda n, d, labels: 3.0 * n * n * d,
        {"pytorch-metric-learning": 20.0},
    ),
)
