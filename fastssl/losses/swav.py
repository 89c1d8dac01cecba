"""SwAV's swapped prediction and its codes (Caron et al. 2020, arXiv:2006.09882)."""

# shapes: N samples, C prototypes, Q rows of a queue
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastssl.kernels.soft_targets.op import given_targets
from fastssl.losses.arguments import bad, check_count, check_setting
from fastssl.losses.crops import crop_list, other_crops
from fastssl.losses.distributed import gather_rows, mean_over_ranks

if TYPE_CHECKING:
    from fastssl.losses.exchange import Group


@torch.no_grad()
def sinkhorn(
    scores: Tensor,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    group: Group | None = None,
) -> Tensor:
    """Codes (N, C): the softmax of scores / epsilon, balanced over the prototypes.

    The iterations of algorithm 1 run on logarithms, so that no epsilon is too small. Rows sum to
    one. float32 (float64 for float64), without gradient. With a group the rows of all ranks are
    balanced together; those held here are returned.

    Raises:
        ValueError: scores are not (N, C), epsilon not positive, iterations not at least 1.

    Source: Caron et al. 2020, alg. 1 and its code in the appendix.
    """
    if not isinstance(scores, Tensor) or scores.dim() != 2 or not scores.is_floating_point():
        received = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"sinkhorn: scores must be floating, (N, C); received {received}")
    check_setting("sinkhorn", "epsilon", epsilon, above=0)
    check_count("sinkhorn", "iterations", iterations)
    dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
    logits_NC = scores.to(dtype) / epsilon
    # log Q = logits + row_N + column_C; constants of alg. 1 cancel in the last normalisation
    row_N1 = torch.zeros_like(logits_NC[:, :1])
    for _ in range(iterations):
        column_C = -(logits_NC + row_N1).logsumexp(0)
        if group is not None:
            column_C = -gather_rows(-column_C[None], group=group).logsumexp(0)
        row_N1 = -(logits_NC + column_C).logsumexp(1, keepdim=True)
    return (logits_NC + column_C).softmax(1)


def swav_loss(
    scores: Sequence[Tensor],
    *,
    num_assigned: int = 2,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
    queue_scores: Sequence[Tensor] | None = None,
    group: Group | None = None,
) -> Tensor:
    """Loss () of the scores of all crops: the codes of one crop are predicted from every other.

    Args:
        scores: (N, C) per crop, unit features times unit prototypes.
        num_assigned: codes are taken of the first so many crops (SwAV: the two large ones).
        temperature: of the predictions. epsilon, iterations: of ``sinkhorn``.
        queue_scores: one (Q, C) per assigned crop; they take part in its balancing only.
        group: ranks whose batches are one batch, or ``Ring`` of them to pass rows round instead of
            gathering them; None: this process alone. The loss is over local rows; averaged by DDP
            its gradient is exact (convention: fastssl/losses/distributed.py).
            Codes are balanced over all ranks, queues included: each rank brings its own part.

    Raises:
        ValueError: an argument does not fit; the message names it.

    Source: Caron et al. 2020, eq. 1 and 2; section 3.1 for multi-crop, 4.1 for the queue.
    """
    scores = crop_list("SwAVLoss", "scores", scores, at_least=2)
    check_count("SwAVLoss", "num_assigned", num_assigned)
    if num_assigned > len(scores):
        expected = f"between 1 and the {len(scores)} crops"
        raise ValueError(f"SwAVLoss: num_assigned must be {expected}; received {num_assigned}")
    _check_queue_scores(queue_scores, scores, num_assigned)
    losses = []
    for position in range(num_assigned):
        rows = scores[position].detach()
        balanced = rows if queue_scores is None else torch.cat([rows, queue_scores[position]])
        codes = sinkhorn(balanced, epsilon=epsilon, iterations=iterations, group=group)
        for other in other_crops(position, scores):
            losses.append(given_targets(other, codes[: len(rows)], temperature=temperature))
    loss_N = torch.stack(losses).mean(0)
    return loss_N.mean() if group is None else mean_over_ranks(loss_N, group=group)


def _check_queue_scores(
    queue_scores: Sequence[Tensor] | None, scores: list[Tensor], num_assigned: int
) -> None:
    if queue_scores is None:
        return
    width = scores[0].shape[1]
    expected = f"one (Q, {width}) tensor for each of {num_assigned} crops"
    many = isinstance(queue_scores, Sequence | Tensor)
    if not many or len(queue_scores) != num_assigned:
        received: object = len(queue_scores) if many else type(queue_scores).__name__
        raise bad("SwAVLoss", "queue_scores", expected, received)
    for rows in queue_scores:
        if not isinstance(rows, Tensor) or rows.dim() != 2 or rows.shape[1] != width:
            received = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise bad("SwAVLoss", "queue_scores", expected, received)


class SwAVLoss(nn.Module):
    """``swav_loss`` as a module, ``group`` included.

    Example:
        >>> import torch
        >>> from fastssl.losses import SwAVLoss
        >>> z, prototypes = torch.randn(2, 64, 128), torch.randn(3000, 128, requires_grad=True)
        >>> unit = torch.nn.functional.normalize
        >>> loss = SwAVLoss()(list(unit(z, dim=2) @ unit(prototypes, dim=1).T))
        >>> loss.backward()
    """

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        epsilon: float = 0.05,
        iterations: int = 3,
        num_assigned: int = 2,
        group: Group | None = None,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.epsilon = epsilon
        self.iterations = iterations
        self.num_assigned = num_assigned
        self.group = group

    def forward(
        self, scores: Sequence[Tensor], queue_scores: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Loss () of the crops' scores, (N, C) each; see ``swav_loss``."""
        return swav_loss(
            scores,
            num_assigned=self.num_assigned,
            temperature=self.temperature,
            epsilon=self.epsilon,
            iterations=self.iterations,
            queue_scores=queue_scores,
            group=self.group,
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, epsilon={self.epsilon}, iterations={self.iterations}"
        )
