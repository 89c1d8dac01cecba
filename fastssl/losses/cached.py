"""Exact large-batch gradients in the memory of a micro-batch (GradCache, Gao et al. 2021).

A contrastive loss couples all samples, but only through their embeddings. So: embed everything in
micro-batches without a graph, take the loss and its gradient at the embeddings (N x D), then embed
each micro-batch again, with the same random numbers, and push its part of that gradient through.
Source: arXiv:2101.06983, section 3. Costs one forward pass more.
"""

# shapes: N samples, D embedding, S whatever a sample is
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class CachedStep:
    """Forward and backward of ``loss(encoder(view0), encoder(view1), ...)`` over a large batch.

    Each call adds to ``.grad`` what backward over the whole batch at once would, and returns the
    loss, detached. Exact where a sample's embedding does not depend on its micro-batch: dropout is
    replayed; BatchNorm in training mode normalises by the micro-batch (use SyncBN, GroupNorm or
    frozen statistics where that matters), its running statistics move as in plain accumulation.

    Args:
        encoder: a module or one per view (two towers). A module may be in
            DistributedDataParallel: only its last micro-batch is averaged over the ranks.
        loss: takes one embedding per view: (N, D), or a tuple of tensors if the encoder returns
            one (several heads). Any loss of this package, ``group=`` included: the gathered rows
            are those of the whole batch. Its own parameters (a temperature) get gradients too;
            over ranks wrap it in DistributedDataParallel as well.
        micro_batch: samples that go through an encoder at a time; need not divide N.
        backward: runs the loss's backward; ``lambda loss: scaler.scale(loss).backward()`` for
            float16. It must give the embeddings their gradients.

    Example:
        >>> step = CachedStep(encoder, NTXentLoss(0.1), micro_batch=64)
        >>> optimizer.zero_grad()
        >>> loss = step(view0, view1)  # 4,096 samples each
        >>> optimizer.step()
    """

    def __init__(
        self,
        encoder: nn.Module | Sequence[nn.Module],
        loss: Callable[..., Tensor],
        *,
        micro_batch: int,
        backward: Callable[[Tensor], None] = Tensor.backward,
    ) -> None:
        if isinstance(micro_batch, bool) or not isinstance(micro_batch, int) or micro_batch < 1:
            raise _bad("micro_batch", "an integer of at least 1", repr(micro_batch))
        several = not isinstance(encoder, nn.Module)
        if several and not (
            isinstance(encoder, Sequence) and all(isinstance(x, nn.Module) for x in encoder)
        ):
            raise _bad("encoder", "a torch.nn.Module or one per view", repr(encoder))
        if not callable(loss):
            raise _bad("loss", "callable", repr(loss))
        self.encoder = encoder
        self.loss = loss
        self.micro_batch = micro_batch
        self.backward = backward

    def __call__(self, *views_NS: Tensor) -> Tensor:
        """Accumulate the gradients of one batch; views (N, ...) of one N. Returns the loss, ().

        Runs under the caller's autocast. ValueError: no view, or views and encoders do not fit.
        """
        pieces = self._pieces(views_NS)
        with _buffers_put_back(piece.encoder for piece in pieces):
            embedded = [piece.embed_and_remember() for piece in pieces]
        leaves = [
            _leaves([e for p, e in zip(pieces, embedded, strict=True) if p.view == view])
            for view in range(len(views_NS))
        ]
        del embedded
        loss = self.loss(*(x if len(x) > 1 else x[0] for x in leaves))
        if not (isinstance(loss, Tensor) and loss.numel() == 1):
            received = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise _bad(
                "loss", 'a function that returns one number (not reduction="none")', received
            )
        with _no_autocast(views_NS[0].device):
            self.backward(loss)
        last = {id(piece.encoder): piece for piece in pieces}
        for piece in pieces:
            gradients = [_rows_of(x.grad, piece.rows) for x in leaves[piece.view]]
            piece.push(gradients, averages=piece is last[id(piece.encoder)])
        return loss.detach()

    def _pieces(self, views_NS: Sequence[Tensor]) -> list[_Piece]:
        """Every micro-batch of every view, in the order in which they are embedded."""
        for view in views_NS:
            if not isinstance(view, Tensor) or view.dim() < 1:
                received = type(view).__name__ if not isinstance(view, Tensor) else "no dimension"
                raise _bad("views", "tensors (N, ...)", received)
        if not views_NS or len({len(view) for view in views_NS}) != 1 or len(views_NS[0]) < 1:
            shapes = [tuple(view.shape) for view in views_NS]
            raise _bad("views", "one or more tensors of one length N >= 1", shapes)
        several = not isinstance(self.encoder, nn.Module)
        encoders = list(self.encoder) if several else [self.encoder] * len(views_NS)  # type: ignore[arg-type]
        if len(encoders) != len(views_NS):
            raise _bad("encoder", f"{len(views_NS)} modules, one per view", len(encoders))
        return [
            _Piece(encoder, view_NS[first : first + self.micro_batch], view, first)
            for view, (encoder, view_NS) in enumerate(zip(encoders, views_NS, strict=True))
            for first in range(0, len(view_NS), self.micro_batch)
        ]


@dataclass(eq=False)
class _Piece:
    """One micro-batch of one view and the random state before its first pass."""

    encoder: nn.Module
    samples: Tensor
    view: int
    first: int
    random: tuple[Tensor, Tensor | None] | None = None

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + len(self.samples))

    def embed_and_remember(self) -> tuple[Tensor, ...]:
        device = self.samples.device
        on_cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self.random = (torch.get_rng_state(), on_cuda)
        with torch.no_grad(), _fresh_casts():
            return _as_tuple(self.encoder(self.samples))

    def push(self, gradients: list[Tensor | None], *, averages: bool) -> None:
        """Second pass, same random numbers; ``gradients`` (rows, D) go backward through it."""
        quiet = getattr(self.encoder, "no_sync", None)
        waits = contextlib.nullcontext() if averages or quiet is None else quiet()
        with waits:
            with self._replayed(), _fresh_casts():
                embedding = _as_tuple(self.encoder(self.samples))
            pairs = [
                (x, g)
                for x, g in zip(embedding, gradients, strict=True)
                if g is not None and x.requires_grad
            ]
            if pairs:
                with _no_autocast(self.samples.device):
                    torch.autograd.backward([x for x, _ in pairs], [g for _, g in pairs])

    @contextlib.contextmanager
    def _replayed(self) -> Iterator[None]:
        device = self.samples.device
        assert self.random is not None
        on_cpu, on_cuda = self.random
        with torch.random.fork_rng(devices=[] if on_cuda is None else [device]):
            torch.set_rng_state(on_cpu)
            if on_cuda is not None:
                torch.cuda.set_rng_state(on_cuda, device)
            yield


def _bad(argument: str, expected: str, received: object) -> ValueError:
    return ValueError(f"CachedStep: {argument} must be {expected}; received {received}")


def _as_tuple(embedding: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    found = (embedding,) if isinstance(embedding, Tensor) else embedding
    if not (isinstance(found, tuple) and all(isinstance(x, Tensor) for x in found)):
        raise _bad("encoder", "a module that returns a tensor or a tuple of them", type(embedding))
    return found


def _leaves(embeddings: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The micro-batches of one view joined (N, D), as leaves that collect gradients."""
    joined = (torch.cat(parts) for parts in zip(*embeddings, strict=True))
    return tuple(x.requires_grad_(x.is_floating_point()) for x in joined)


def _rows_of(gradient_ND: Tensor | None, rows: slice) -> Tensor | None:
    return None if gradient_ND is None else gradient_ND[rows]


@contextlib.contextmanager
def _fresh_casts() -> Iterator[None]:
    """Autocast keeps what it has cast, in releases of torch that do not look also without a graph.

    The second pass must not meet casts of the first: its weights would silently get no gradient.
    """
    torch.clear_autocast_cache()
    yield
    torch.clear_autocast_cache()


def _no_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Backward passes follow their forward; autocast round them would cast a second time."""
    if not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


@contextlib.contextmanager
def _buffers_put_back(encoders: Iterator[nn.Module]) -> Iterator[None]:
    """The first pass must not count: running statistics move in the second alone."""
    modules = {id(module): module for encoder in encoders for module in encoder.modules()}
    before = [
        (module, name, buffer, buffer.clone())
        for module in modules.values()
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, saved in before:
                buffer.copy_(saved)
                if getattr(module, name) is not buffer:  # the encoder put another in its place
                    setattr(module, name, buffer)
