"""From images and what was drawn to views, and again with other values, differentiably.

``alpha`` are the values of the table that a policy names as differentiable. Its views are rendered
in two calls: what comes before those stages, kept as ``Drawn.base``, and the rest. ``rerender``
does the rest anew, so that the gradient of a view by its parameters costs no second crop.
"""

# shapes: V views, N samples, S side, P values, A differentiable values
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastssl.augment.drawn import Drawn
from fastssl.augment.policy import Policy
from fastssl.augment.sample import sample
from fastssl.kernels.augment.op import augment
from fastssl.kernels.augment.table import CODES, STAGE_BIT, STAGES, VALUES, Table

Images = Tensor | Sequence[Tensor]
_JITTERED = {"brightness", "contrast", "saturation", "hue"}
_BEFORE = sum(STAGE_BIT[stage] for stage in STAGES[: STAGES.index("jitter")])


def views_of(
    policy: Policy,
    images: Images,
    *,
    seed: int,
    epoch: int,
    step: int,
    index_N: Any,
    sizes_N2: Any,
) -> tuple[tuple[Tensor, ...], Drawn]:
    """``sample`` on the device of the images, then ``render``: the views and their table."""
    drawn = sample(
        policy,
        seed=seed,
        epoch=epoch,
        step=step,
        index_N=index_N,
        sizes_N2=sizes_N2,
        device=images[0].device,
    )
    drawn = with_base(policy, images, drawn, sizes_N2=sizes_N2)
    return render(policy, images, drawn, sizes_N2=sizes_N2), drawn


def render(
    policy: Policy, images: Images, drawn: Drawn, *, sizes_N2: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The V views, each (N, 3, S, S), of the images that ``drawn`` was drawn for.

    images: (N, 3, H, W) uint8 or float; or N tensors (3, H_n, W_n); or a padded batch (N, 3, H, W)
    whose ``sizes_N2`` says how much of each is the image. Where ``drawn`` has a base, it is used.
    """
    if drawn.base:
        return tuple(_rest(policy, drawn, view, None) for view in range(policy.num_views))
    views: list[Tensor] = []
    sizes = _padded(images, sizes_N2)
    for group, table in zip(policy.groups, drawn.tables, strict=True):
        made = augment(images, table, size=group.size, sizes_N2=sizes, settings=group.settings)
        views.extend(made.unbind(0))
    return tuple(views)


def with_base(
    policy: Policy, images: Images, drawn: Drawn, *, sizes_N2: Tensor | None = None
) -> Drawn:
    """``drawn`` with the views from before the stages of ``policy.alpha``; itself without any.

    Only jitter's values can be alpha: ValueError otherwise.
    """
    if not policy.alpha:
        return drawn
    if not set(policy.alpha) <= _JITTERED:
        raise ValueError(
            f"Policy {policy.name}: alpha may name {', '.join(sorted(_JITTERED))}, received "
            f"{', '.join(policy.alpha)}"
        )
    before = tuple(_masked(table, _BEFORE) for table in drawn.tables)
    base = render(
        policy.without_normalisation(), images, replace(drawn, tables=before), sizes_N2=sizes_N2
    )
    return replace(drawn, base=base)


def alpha_of(policy: Policy, drawn: Drawn, view: int) -> Tensor:
    """(N, A): the drawn values of ``policy.alpha`` in one view."""
    return torch.stack([drawn.value(name)[view] for name in policy.alpha], dim=1)


def rerender(policy: Policy, drawn: Drawn, view: int, alpha_NA: Tensor) -> Tensor:
    """(N, 3, S, S): the view with ``alpha_NA`` in place of what was drawn; differentiable in it.

    With ``alpha_of(policy, drawn, view)`` it is the view itself. A sample whose jitter does not run
    has gradient zero.
    """
    assert drawn.base, "rerender needs with_base"
    return _rest(policy, drawn, view, alpha_NA)


def _rest(policy: Policy, drawn: Drawn, view: int, alpha_NA: Tensor | None) -> Tensor:
    """One view from its base: the stages from jitter on."""
    group, table = _table_of(policy, drawn, view)
    side, base = policy.sizes[view], drawn.base[view]
    columns = dict(zip(VALUES, table.values_VNP[0].unbind(1), strict=True))
    whole = {"left": 0.0, "top": 0.0, "width": float(side), "height": float(side)}
    for name, value in whole.items():
        columns[name] = torch.full_like(columns[name], value)
    if alpha_NA is not None:
        columns.update(zip(policy.alpha, alpha_NA.unbind(1), strict=True))
    values_1NP = torch.stack([columns[name] for name in VALUES], dim=1)[None]
    rest = Table(values_1NP, _masked(table, ~_BEFORE).codes_VNC)
    return augment(base, rest, size=side, settings=policy.groups[group].settings)[0]


def _table_of(policy: Policy, drawn: Drawn, view: int) -> tuple[int, Table]:
    """The group of a view, and the table of that view alone."""
    assert 0 <= view < policy.num_views
    for position, table in enumerate(drawn.tables):
        if view < len(table.values_VNP):
            one = slice(view, view + 1)
            return position, Table(table.values_VNP[one], table.codes_VNC[one])
        view -= len(table.values_VNP)
    raise AssertionError("more views than the tables hold")


def _masked(table: Table, kept: int) -> Table:
    """The table with the stages of the mask alone."""
    codes_VNC = table.codes_VNC.clone()
    codes_VNC[..., CODES.index("stages")] &= kept
    return Table(table.values_VNP, codes_VNC)


def _padded(images: Images, sizes_N2: Tensor | None) -> Tensor | None:
    """Sizes matter to the operator where the images are a padded batch."""
    if sizes_N2 is None or not isinstance(images, Tensor):
        return None
    return torch.as_tensor(sizes_N2, dtype=torch.int64, device=images.device)
