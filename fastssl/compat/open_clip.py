"""``open_clip.loss``: ClipLoss and SigLipLoss, over ranks too.

Features are taken as they are: open_clip's models normalise them. Values and gradients equal; no
N x N matrix is handed to autograd. Over ranks only rows travel, and two numbers per row.
"""

# shapes: N pairs, D features
from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn

from fastssl.compat.clip_over_ranks import (
    own_pairs_loss,
    own_rows_loss,
    whole_loss,
    whole_loss_of_own,
)
from fastssl.compat.rows import (
    all_ranks,
    as_peers_return_it,
    check_number,
    check_rows,
    row_dots,
    widened,
)
from fastssl.kernels.contrast.op import contrast
from fastssl.kernels.sigmoid_pairs.op import sigmoid_pairs_sum
from fastssl.losses.exchange import Ring
from fastssl.losses.sigmoid_ranks import sigmoid_over_ranks

EXCHANGES = ("bidir", "shift", "reduce", "gather")


class ClipLoss(nn.Module):
    """``open_clip.loss.ClipLoss``: symmetric cross entropy (Radford et al., arXiv:2103.00020).

    Args:
        local_loss: the loss of the local pairs instead of all ranks' (world_size > 1).
        gather_with_grad: a rank's features also get the gradient of the other ranks' losses.
        rank, world_size: as of torch.distributed, whose default group the ranks are.
        cache_labels: kept for the signature; no effect.
        use_horovod: ValueError for a world_size above 1.

    Differs: with local_loss and gather_with_grad ``logit_scale`` gets a rank's share of the sum of
    all ranks' gradients instead of its own loss's: equal after DDP's average. There is no
    ``get_logits`` or ``get_ground_truth`` to override, since the logits never exist; the gradient
    of ``logit_bias``, which cancels in a softmax, is exactly zero.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__()
        if use_horovod and world_size > 1:
            raise ValueError("ClipLoss: use_horovod must be False over ranks; received True")
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.use_horovod = use_horovod

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Loss, (), of (N, D) features, or {"contrastive_loss": loss}."""
        _check("ClipLoss", image_features, text_features, logit_scale=logit_scale)
        image_ND, text_ND = widened(image_features), widened(text_features)
        scale = logit_scale
        if isinstance(scale, Tensor):  # its gradient is a difference: summed before it is rounded
            scale = widened(scale.reshape(()))
        if self.world_size > 1:
            loss = self._over_ranks(image_ND, text_ND, scale)
        else:
            rows_N, cols_N, _ = contrast(image_ND, text_ND, scale, columns=True)
            loss = ((rows_N + cols_N) / 2 - row_dots(image_ND, text_ND) * scale).mean()
        if isinstance(logit_bias, Tensor):
            loss = loss + 0 * logit_bias.sum()  # a parameter of the graph, for DDP's sake
        return _answer(loss, image_features, output_dict)

    def _over_ranks(self, image_ND: Tensor, text_ND: Tensor, scale: float | Tensor) -> Tensor:
        group = all_ranks()
        running = 1 if group is None else group.size()
        if group is None or running != self.world_size:
            raise ValueError(
                "ClipLoss: world_size must be the number of processes of torch.distributed, "
                f"{running} here; received {self.world_size}"
            )
        if self.local_loss:
            loss = own_pairs_loss if self.gather_with_grad else own_rows_loss
        else:
            loss = whole_loss if self.gather_with_grad else whole_loss_of_own
        return loss(image_ND, text_ND, scale, group)


class SigLipLoss(nn.Module):
    """``open_clip.loss.SigLipLoss``: pairwise sigmoid loss (Zhai et al., arXiv:2303.15343).

    Args:
        cache_labels: kept for the signature; no effect, as in the original.
        rank, world_size: those of torch.distributed's default group; a ValueError at the call
            where they are not. Gradients are the original's: of the sum of all ranks' losses.
        dist_impl: None, "bidir", "shift", "reduce" or "gather"; another is a ValueError (the
            original: AssertionError). All give one answer: "bidir" and "shift" pass texts round
            the ranks, "reduce" and "gather" gather them.

    Differs: ``get_logits`` and ``get_ground_truth`` do not exist; over ranks there is no second
    derivative.
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
    ) -> None:
        super().__init__()
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.dist_impl = dist_impl or EXCHANGES[0]
        if self.dist_impl not in EXCHANGES:
            raise ValueError(
                f"SigLipLoss: dist_impl must be one of {EXCHANGES}; received {dist_impl!r}"
            )

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Loss, (), of (N, D) features, or {"contrastive_loss": loss}."""
        bias = 0.0 if logit_bias is None else logit_bias
        numbers = {"logit_scale": logit_scale, "logit_bias": bias}
        _check("SigLipLoss", image_features, text_features, **numbers)
        given = image_features, text_features, logit_scale, bias
        if self.world_size == 1:
            loss = sigmoid_pairs_sum(*given)
        else:
            world = _world("SigLipLoss", self)
            group = Ring(world) if self.dist_impl in EXCHANGES[:2] else world
            loss = sigmoid_over_ranks(*given, group=group).sum()
        return _answer(loss / image_features.shape[0], image_features, output_dict)


def _answer(loss: Tensor, features: Tensor, output_dict: bool) -> Tensor | dict[str, Tensor]:
    loss = as_peers_return_it(loss, features)
    return {"contrastive_loss": loss} if output_dict else loss


def _world(name: str, loss: SigLipLoss) -> dist.ProcessGroup:
    """The default group, if it is the one that the loss was built for."""
    live = dist.is_available() and dist.is_initialized()
    found = (dist.get_rank(), dist.get_world_size()) if live else "no process group"
    if found != (loss.rank, loss.world_size):
        expected = f"those of torch.distributed, {found}"
        received = (loss.rank, loss.world_size)
        raise ValueError(f"{name}: rank, world_size must be {expected}; received {received}")
    group = dist.group.WORLD
    assert group is not None
    return group


def _check(
    name: str, image_features: Tensor, text_features: Tensor, **numbers: float | Tensor
) -> None:
    check_rows(name, image_features=image_features, text_features=text_features)
    for argument, value in numbers.items():
        check_number(name, argument, value)
